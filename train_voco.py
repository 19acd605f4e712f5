"""Pre-train an encoder without labels to tell where in the body a crop lies, on sets of prepare_data.py.

    python train_voco.py --config configs/voco/plus.yaml --data data/prepared --output runs/voco/plus
    python train_voco.py --config configs/voco/v2_small.yaml --data data/a data/b --output runs/voco/small
    torchrun --nproc-per-node 4 train_voco.py --config configs/voco/v2.yaml --data data/prepared --batch 16 \\
        --output runs/voco/v2

Presets: v1 and v2 (2D-VoCo as published), plus (ours), 3d (VoCo on sub-volumes), large (large-scale VoCo),
each with a _small version for CPUs; --objective simclr takes their crops for SimCLR; docs/pretraining.md
compares them. The same command continues an interrupted run from its last checkpoint, with the same result.
The run's folder gets encoder.safetensors (the backbone, for train_cls.py --encoder and for plain timm),
last.pt, metrics.csv, curves.png, TensorBoard events, patients.csv (patients that it was trained on) and
config.yaml. Watch `placing: cross`, which should rise: the share of crops placed right among another
patient's base crops; chance is 1 / number of bases.
"""

from pathlib import Path

from src.core.config import parse_options
from src.core.errors import exit_on_user_error
from src.core.log import is_main_process, say
from src.voco.options import VocoOptions


def main(argv: list[str] | None = None) -> None:
    """Read the options, pre-train, draw the curves."""
    options = parse_options(VocoOptions, argv, prog="train_voco.py", description=__doc__)
    # imported here, so that --help and errors in options do not wait for torch
    from src.report.curves import plot_metrics
    from src.report.voco_pictures import draw_predictions
    from src.voco.run import pretrain

    pretrain(options, draw_predictions)
    if is_main_process():
        say(f"wrote {plot_metrics(Path(options.output))}")


if __name__ == "__main__":
    with exit_on_user_error():
        main()
