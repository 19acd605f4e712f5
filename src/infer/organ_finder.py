"""Organs of raw series at inference: their masks by segment.py's networks, and the stacks that show them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from src.cls.dataset import StackBatch, as_sample
from src.cls.organs import GROUP_OF_LABEL, find_regions
from src.cls.plans import plan_stack
from src.cls.stacks import as_predicted, cut_stack
from src.cls.views import Box
from src.core.errors import UserError
from src.infer.placement import Placement
from src.infer.sources import StackKind, Volume
from src.seg.model import find_segmenter, load_segmenter
from src.seg.volume import segment_volume

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
        self._placement = placement

    def cut(
        self, volume: Volume, kinds: Sequence[StackKind], slices_at_once: int | None = None
    ) -> dict[StackKind, StackBatch]:
        """The stacks that show organs; a series in which none can be found is seen whole.

        Args:
            slices_at_once: that pass the networks together, where memory is short.
        """
        masks, boxes = self._find(volume, min(CHUNK, slices_at_once or CHUNK))
        return {kind: _cut(volume, masks, boxes, kind) for kind in kinds}

    def _find(self, volume: Volume, chunk: int) -> tuple[np.ndarray | None, dict[str, Box]]:
        """Label maps (Z, H, W), and where the regions lie."""
        try:
            masks, organs = segment_volume(
                self.pair,
                self.spec,
                volume.show(self.spec.windows),
                volume.z_mm,
                volume.pixel_mm,
                device=self._placement.device,
                chunk=chunk,
            )
        except UserError:
            return None, {}
        return masks, find_regions(organs)


def _cut(volume: Volume, masks: np.ndarray | None, boxes: dict[str, Box], kind: StackKind) -> StackBatch:
    view = kind.view
    plan = plan_stack(volume.z_mm, boxes.get(view.z_range), view, kind.offset)
    maps = None
    if view.mask_channels:
        maps = np.zeros((view.slices, view.size, view.size), dtype=np.uint8)
        if masks is not None:
            maps = GROUP_OF_LABEL[masks[plan.indices]]
    images = volume.show(view.windows)[plan.wanted]
    stack = cut_stack(plan, images, maps, view, boxes.get(view.in_plane))
    return as_sample(as_predicted(stack, view), view)
