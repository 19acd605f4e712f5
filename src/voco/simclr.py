"""Pre-training by SimCLR (arXiv 2002.05709): two views of a crop are alike, all others differ."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from src.voco.dataset import VolumeSample
from src.voco.losses import contrast_loss
from src.voco.monitors import spread_of
from src.voco.pretraining import Pretraining


class SimClrPretraining(Pretraining):
    """Embeds the views of a batch by the student; the teacher is only the average that is exported."""

    def compute_terms(self, batch: VolumeSample, number: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        runtime = self.runtime
        with runtime.autocast():
            embeddings, _ = self.network(self.change_appearance(batch))  # (B, 2V, D)
        embeddings = normalize(embeddings.float(), dim=-1)
        views = runtime.gather(embeddings)
        first = runtime.rank * len(embeddings)
        terms = {"contrast": contrast_loss(embeddings, views, first, self.options.temperature)}
        return terms, {"embedding_std": spread_of([embeddings.detach()])}

    def encoding_networks(self) -> tuple[torch.nn.Module, ...]:
        return (self.runtime.unwrap(self.network),)
