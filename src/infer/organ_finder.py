"""Organs of raw series at inference: masks by the networks of segment.py, and stacks that use them."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from src.cls.organs import find_regions
from src.core.errors import UserError
from src.infer.stack_sources import DecodedSlices, StackKind, Stacks
from src.seg.model import SegmenterPair, SegmenterSpec, find_segmenter, load_segmenter
from src.seg.predict import segment_volume

CHUNK = 16
"""Slices per forward pass, as in segment.py."""


@dataclass(frozen=True)
class ForwardSettings:
    """Settings of forward passes that do not change the result."""

    autocast: Callable[[], AbstractContextManager] = nullcontext
    """context of forward passes that sets their precision, by default full"""
    slices_at_once: int | None = None
    """slices per forward pass; None for all of a stack"""
    check: Callable[[], None] = lambda: None
    """called between networks, offsets and chunks of slices; an exception from it ends the work"""


@dataclass(frozen=True)
class OrganFinder:
    """A trained pair of train_seg.py."""

    pair: SegmenterPair
    spec: SegmenterSpec
    spacing_mm: float = 0.0
    """about the distance between slices that the networks see; 0: they see all"""

    @classmethod
    def load(cls, model: Path, spacing_mm: float = 0.0) -> "OrganFinder":
        """Load a run folder, or its segmenter.safetensors, on the CPU.

        Raises:
            UserError: there is no such model.
        """
        return cls(*load_segmenter(find_segmenter(model)), spacing_mm)

    def make_stacks(
        self, volume: DecodedSlices, kinds: Sequence[StackKind], settings: ForwardSettings
    ) -> tuple[Stacks, str]:
        """Make the stacks that use organs; for a region that is not found the whole series is used.

        Returns:
            The stacks, and a note on regions that were not found.

        Raises:
            FloatingPointError: the networks return NaN or infinity.
        """
        masks, boxes, note = None, {}, ""
        try:
            with settings.autocast():
                masks, organs = segment_volume(
                    self.pair,
                    self.spec,
                    volume.channels(self.spec.windows),
                    volume.z_mm,
                    volume.stack.pixel_mm,
                    device=next(self.pair.parameters()).device,
                    chunk=min(CHUNK, settings.slices_at_once or CHUNK),
                    spacing_mm=self.spacing_mm,
                    check=settings.check,
                )
            boxes = find_regions(organs)
        except UserError as error:  # a single slice
            note = f"seen whole: {error}"
        missing = {region for kind in kinds for region in kind.view.regions if region not in boxes}
        if missing and not note:
            note = f"{' and '.join(sorted(missing))} not found: seen whole"
        return {kind: volume.make_stack(kind, masks, boxes) for kind in kinds}, note
