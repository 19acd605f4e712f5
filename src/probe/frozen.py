"""The network of a finished run, frozen: what its teacher makes of crops."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from src.core.checkpoint import load_checkpoint
from src.core.errors import UserError
from src.core.runtime import torch_seed
from src.voco.model import VocoNet, VolumeVocoNet, build_network
from src.voco.options import VocoOptions

_IMAGES_AT_ONCE = 256


@dataclass(frozen=True)
class FrozenNet:
    """A network that only looks. `load_run` makes one."""

    options: VocoOptions
    network: VocoNet

    @property
    def is_volume(self) -> bool:
        """Whether the backbone takes a crop as a volume; else it takes its slices one by one."""
        return isinstance(self.network, VolumeVocoNet)

    def embed(self, crops: np.ndarray) -> dict[str, np.ndarray]:
        """Embed crops, some at a time, each on its own: neighbours in a batch change nothing.

        Args:
            crops: uint8 (K, T, tile, tile, C).

        Returns:
            float32 `features` (K, width), pooled, and `projection` (K, projection) of the head.

        Raises:
            UserError: values that are not finite.
        """
        self.network.eval()
        features, projections = [], []
        with torch.inference_mode():
            for batch in self._batches(crops):
                projection, pooled = self.network(batch)
                features.append(pooled[0].float().cpu())
                projections.append(projection[0].float().cpu())
        embedded = {"features": torch.cat(features).numpy(), "projection": torch.cat(projections).numpy()}
        if not all(np.isfinite(values).all() for values in embedded.values()):
            raise UserError("the network gives values that are not finite: its run has failed")
        return embedded

    def _batches(self, crops: np.ndarray) -> list[torch.Tensor]:
        device = next(self.network.parameters()).device
        at_once = max(1, _IMAGES_AT_ONCE // crops.shape[1])
        parts = torch.from_numpy(crops).split(at_once)
        return [part[None].to(device) for part in parts]  # (1, K, T, tile, tile, C)


def load_run(folder: Path, random_seed: int | None = None) -> FrozenNet:
    """The teacher of a run, backbone and head, or its architecture with random weights.

    A teacher that is only a head (large-scale VoCo) stands on the student's backbone. BatchNorms normalise by
    their running statistics, as in any later use. Those of random weights are the initial 0 and 1, which
    leave a network nearly linear: a stronger baseline than random weights that normalise by crops.

    Args:
        random_seed: draw new weights from this seed instead.

    Raises:
        UserError: no checkpoint of pre-training in `folder`, or one of another version.
    """
    path = folder / "last.pt"
    saved = load_checkpoint(path)
    if not {"options", "student", "teacher"} <= saved.keys():
        raise UserError(f"{path} is not a checkpoint of train_voco.py")
    given = {
        name: tuple(value) if isinstance(value, list) else value for name, value in saved["options"].items()
    }
    try:
        options = VocoOptions(**given)
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} was written by another version of train_voco.py ({error})") from None
    if len(set(options.windows_of_sets)) == 1:  # what all sets showed; of a mixture, --windows
        options = replace(options, windows=options.windows_of_sets[0], set_windows=())
    fresh = replace(options, pretrained=False, encoder=None, compile=False, micro_batch=0)
    with torch_seed(random_seed or 0):
        network = build_network(fresh)
    if random_seed is None:
        try:
            network.load_state_dict(saved["student"] | saved["teacher"])
        except RuntimeError as error:
            raise UserError(f"{path} does not fit its backbone: {str(error).splitlines()[-1]}") from None
    network.to("cuda" if torch.cuda.is_available() else "cpu").requires_grad_(False)
    return FrozenNet(options, network)
