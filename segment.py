"""Segment the organs of every series of a prepared data set with a pair trained by train_seg.py.

    python segment.py --model runs/seg/dual --data data/prepared
    python segment.py --model runs/seg/dual --data data/prepared --series some.csv --preview
    torchrun --nproc-per-node 4 segment.py --model runs/seg/dual --data data/prepared --batch 64

Masks go to predicted_masks/<patient_id>/<series_id>/0000.png ... in the data set (or to --output); true masks
are not changed. organs.csv has one row per series and organ (volume in ml, slices, z range, box in pixels),
areas.csv one row per slice (mm2 of each organ), failed.csv the series that could not be segmented. Specks are
removed: the largest 3D component of an organ is kept, and all others of at least a quarter of its size;
kidneys are labelled by side. The same command continues an interrupted run, with the same result.
"""

from src.core.config import parse_options
from src.core.errors import exit_on_user_error
from src.seg.options import SegmentOptions


def main(argv: list[str] | None = None) -> None:
    """Read the options, segment, write the tables."""
    options = parse_options(SegmentOptions, argv, prog="segment.py", description=__doc__)
    # imported here, so that --help and errors in options do not wait for torch
    from src.seg.segment import segment_dataset

    segment_dataset(options)


if __name__ == "__main__":
    with exit_on_user_error():
        main()
