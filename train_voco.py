"""Pre-train an encoder without labels by 2D-VoCo, on sets that prepare_data.py wrote.

    python train_voco.py --config configs/voco/v2.yaml --data data/prepared --output runs/voco/v2
    python train_voco.py --config configs/voco/v2_small.yaml --data data/prepared --output runs/voco/small
    python train_voco.py --config configs/voco/demo.yaml --data data/a data/b --output runs/voco/ab --steps 20

The same command again continues an interrupted run from its last checkpoint, to the same result. The run's
folder gets encoder.safetensors (the backbone, for train_cls.py --encoder and for plain timm), last.pt,
metrics.csv, TensorBoard events, patients.csv (whose images the encoder has seen) and config.yaml. Watch
`placing: cross`: the share of crops of one patient placed right among another patient's base crops; chance is
1 / grid^2.
"""

from src.core.config import parse_options
from src.core.errors import exit_on_user_error
from src.voco.options import VocoOptions


def main(argv: list[str] | None = None) -> None:
    """Read the options, then pre-train."""
    options = parse_options(VocoOptions, argv, prog="train_voco.py", description=__doc__)
    # imported here, so that --help and a wrong option answer before torch is loaded
    from src.voco.task import pretrain

    pretrain(options)


if __name__ == "__main__":
    with exit_on_user_error():
        main()
