"""Organs of raw series at inference: their masks by segment.py's networks, and the stacks that show them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from src.cls.dataset import StackBatch, as_sample
from src.cls.organs import GROUP_OF_LABEL, find_regions
from src.cls.stacks import crop_centre, cut_stack
from src.cls.views import Box, plan_stack
from src.core.errors import UserError
from src.infer.ensemble import Effort
from src.infer.placement import Placement
from src.infer.sources import StackKind, Volume
from src.seg.model import find_segmenter, load_segmenter
from src.seg.predict import segment_volume

CHUNK = 16
"""Slices that pass the networks together, as segment.py does it."""


class OrganFinder:
    """A trained pair of train_seg.py.

    Args:
        model: run folder, or its segmenter.safetensors.

    Raises:
        UserError: there is no such model.
    """

    def __init__(self, model: Path, placement: Placement) -> None:
        self.pair, self.spec = load_segmenter(find_segmenter(model))
        self.pair.to(placement.device)
        self._device = placement.device

    def cut(
        self, volume: Volume, kinds: Sequence[StackKind], effort: Effort
    ) -> tuple[dict[StackKind, StackBatch], str]:
        """The stacks that show organs; a region that cannot be found is the whole series.

        Returns:
            The stacks, and what could not be found in words.

        Raises:
            FloatingPointError: the networks give what is no number.
        """
        masks, boxes, reason = self._find(volume, effort)
        missing = {region for kind in kinds for region in kind.view.regions if region not in boxes}
        if missing and not reason:
            reason = f"{' and '.join(sorted(missing))} not found: seen whole"
        return {kind: _cut(volume, masks, boxes, kind) for kind in kinds}, reason

    def _find(self, volume: Volume, effort: Effort) -> tuple[np.ndarray | None, dict[str, Box], str]:
        """Label maps (Z, H, W), where the regions lie, and why there are none."""
        try:
            with effort.autocast():
                masks, organs = segment_volume(
                    self.pair,
                    self.spec,
                    volume.show(self.spec.windows),
                    volume.z_mm,
                    volume.pixel_mm,
                    device=self._device,
                    chunk=min(CHUNK, effort.slices_at_once or CHUNK),
                    check=effort.check,
                )
        except UserError as error:
            return None, {}, f"seen whole: {error}"
        return masks, find_regions(organs), ""


def _cut(volume: Volume, masks: np.ndarray | None, boxes: dict[str, Box], kind: StackKind) -> StackBatch:
    view = kind.view
    plan = plan_stack(volume.z_mm, boxes.get(view.z_range), view, kind.offset)
    maps = None
    if view.mask_channels:
        maps = np.zeros((view.slices, view.size, view.size), dtype=np.uint8)
        if masks is not None:
            maps = GROUP_OF_LABEL[masks[plan.indices]]
    images = volume.images[plan.wanted][..., [volume.windows.index(name) for name in view.windows]]
    stack = cut_stack(plan, images, maps, view, boxes.get(view.in_plane))
    return as_sample(crop_centre(stack, view), view)
