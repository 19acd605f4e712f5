"""Options of `segment.py`."""

from dataclasses import dataclass
from pathlib import Path

from src.core.config import Precision, check_range


@dataclass(frozen=True)
class SegmentOptions:
    """Options of `segment.py`."""

    model: Path
    """Run folder of train_seg.py, or its segmenter.safetensors."""

    data: Path
    """Prepared data set whose series are segmented."""

    output: Path | None = None
    """Folder for masks and tables; by default predicted_masks in --data."""

    series: Path | None = None
    """Table with patient_id and series_id: only these series are segmented."""

    batch: int = 16
    """Slices that pass the networks together; more is faster on a GPU and takes more memory."""

    workers: int = 1
    """Processes that read slices; 0 reads between the forward passes."""

    precision: Precision = "auto"
    """auto (bf16 on GPUs that have it, fp16 on other GPUs, fp32 on CPU), fp32, bf16 or fp16."""

    preview: bool = False
    """Write a picture of every series to preview/, the true organs above the predicted ones."""

    overwrite: bool = False
    """Delete the masks and tables in the output and start anew."""

    def __post_init__(self) -> None:
        check_range(self, "batch", at_least=1)
        check_range(self, "workers", at_least=0)
