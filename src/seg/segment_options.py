"""Options of `segment.py`."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class SegmentOptions:
    model: Path
    """run folder of train_seg.py, or its segmenter.safetensors"""
    data: Path
    """prepared data set whose series are to be segmented"""
    output: Path | None = None
    """folder for masks and tables; by default predicted_masks in --data"""
    series: Path | None = None
    """table with patient_id and series_id: segment these alone"""
    batch: int = 16
    """slices that pass the networks together; more is faster on a GPU and takes more memory"""
    workers: int = 1
    """processes that read slices; 0 reads between the forward passes"""
    precision: str = "auto"
    """auto (bf16 on GPUs that have it, fp16 on other GPUs, fp32 on CPU), fp32, bf16 or fp16"""
    preview: bool = False
    """write a picture of every series to preview/, the true organs above the predicted ones"""
    overwrite: bool = False
    """discard the masks and tables in the output and start anew"""

    def __post_init__(self) -> None:
        if self.batch < 1 or self.workers < 0:
            raise ValueError("--batch must be at least 1 and --workers at least 0")
