"""Pre-training by contextual position: place crops among base crops (2D-VoCo, VoCo, and `plus`)."""

import torch
from torch import Tensor

from src.core.files import atomic_path
from src.core.log import is_main_process
from src.core.runtime import Runtime
from src.data.png import write_png
from src.nn.training import Progress
from src.voco.comparisons import Comparisons, Embeddings, GlobalBases
from src.voco.dataset import VocoDataset, VolumeSample
from src.voco.losses import build_objective
from src.voco.model import embed_by_both
from src.voco.monitors import Monitors
from src.voco.options import VocoOptions
from src.voco.pretraining import DrawPicture, Pretraining


class PositionPretraining(Pretraining):
    """Compares the random crops of a batch with the base crops of all its volumes, by student and teacher."""

    def __init__(
        self,
        options: VocoOptions,
        dataset: VocoDataset,
        runtime: Runtime,
        draw: DrawPicture | None = None,
        with_first_weights: bool = True,
    ) -> None:
        super().__init__(options, dataset, runtime, draw, with_first_weights)
        self.objective = build_objective(options)
        self.similarity: Tensor | None = None
        """(B, R, N) cosine of the student's random crops to the teacher's bases, of the last batch"""
        # series with the same patient_id in two sets must not count as different patients
        number_of = dataset.index.table().groupby("patient_id").ngroup()
        self._patient_of = torch.tensor(number_of.to_numpy(), device=runtime.device)
        self.monitors = Monitors(int(number_of.max()) + 1, runtime.device)

    def compute_terms(self, batch: VolumeSample, number: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        runtime = self.runtime
        tiles = self.change_appearance(batch)
        label = batch.label.to(runtime.device, non_blocking=True)
        with runtime.autocast():
            both = embed_by_both(self.network, self.teacher, tiles)  # (B, R + N, D) each
        student, teacher = (Embeddings.split(embeddings, label.shape[1]) for embeddings in both)
        all_bases = GlobalBases(
            runtime.gather(student.bases), runtime.gather(teacher.bases), first=runtime.rank * len(tiles)
        )
        pairs = Comparisons(student, teacher, all_bases)
        terms = self.objective(pairs, label)
        patient = self._patient_of[batch.series_row.to(runtime.device, non_blocking=True)]
        self.monitors.update(pairs, label, patient, runtime.gather(patient))
        self.similarity = pairs.own(pairs.forth.detach())
        return terms, {}

    def read_monitors(self) -> dict[str, float]:
        return self.monitors.read(self.runtime.sum)

    def report(self, at: Progress, means: dict[str, float]) -> dict[str, float]:
        metrics, every = super().report(at, means), self.options.picture_every
        if every and at.step % every == 0:
            self._write_picture(at)
        return metrics

    def before_save(self, step: int) -> None:
        self.monitors.forget_previous()
        super().before_save(step)

    def _write_picture(self, at: Progress) -> None:
        if self.draw is None or not is_main_process():
            return
        grid = (self.options.grid_z, self.options.grid, self.options.grid)
        middle = self.options.neighbours // 2 * len(self.options.windows)  # the slice itself, first window
        batch = at.batch._replace(tiles=self.change_appearance(at.batch))
        picture = self.draw(batch, self.similarity.cpu(), grid, middle)
        with atomic_path(self.options.output / "pictures" / f"step_{at.step:07d}.png") as temporary:
            write_png(temporary, picture)
