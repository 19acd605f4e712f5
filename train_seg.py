"""Train the pair of networks that segments the organs, on labelled and unlabelled series.

    python train_seg.py --config configs/seg/dual.yaml --data data/prepared \\
        --encoder runs/voco/plus/encoder.safetensors --output runs/seg/dual
    python train_seg.py --config configs/seg/dual_small.yaml --data data/prepared --output runs/seg/small
    torchrun --nproc-per-node 4 train_seg.py --config configs/seg/dual.yaml --data data/prepared --batch 32 \\
        --unlabelled-batch 32 --output runs/seg/dual

Presets: dual (two sub-networks that correct and teach each other) and supervised (the same two without the
unlabelled terms), each with a _small version for CPUs; docs/studies/segmentation.md compares them. All series
with masks are used for training, except doubtful ones and those of the --validation share of patients, which
are scored in 3D at the end. The same command continues an interrupted run from its last checkpoint, with the
same result. The run's folder gets segmenter.safetensors (for segment.py), last.pt, metrics.csv, curves.png,
TensorBoard events, split.csv (the part of every series), scores.csv, sheets (pictures of the held-out
patients) and config.yaml.
"""

from pathlib import Path

from src.core.config import parse_options
from src.core.errors import exit_on_user_error
from src.core.log import is_main_process, say
from src.seg.options import SegOptions


def main(argv: list[str] | None = None) -> None:
    """Read the options, train, score, draw the curves."""
    options = parse_options(SegOptions, argv, prog="train_seg.py", description=__doc__)
    # imported here, so that --help and errors in options do not wait for torch
    from src.report.curves import plot_metrics
    from src.seg.run import train_pair

    train_pair(options)
    if is_main_process():
        say(f"wrote {plot_metrics(Path(options.output))}")


if __name__ == "__main__":
    with exit_on_user_error():
        main()
