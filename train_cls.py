"""Train the CNN-LSTM injury classifier on 5 folds, and predict every patient out of fold.

The competition data, with a 2D-VoCo encoder:
    python train_cls.py --data data/prepared --labels data/rsna/train.csv --folds folds/rsna2023_5fold.csv \\
        --encoder runs/voco/v2/encoder.safetensors --output runs/cls/v2

One fold, from ImageNet weights, with a preset:
    python train_cls.py --config configs/cls/cnn_lstm.yaml --fold 0 --data ... --labels ... --folds ... \\
        --output runs/cls/imagenet

Commands with other folds may train into the same output at the same time, such as one per GPU.

The same command continues an interrupted run from its last epoch, with the same result.
"""

from src.cls.options import ClassifierOptions
from src.core.config import parse_options
from src.core.errors import exit_on_user_error


def main(argv: list[str] | None = None) -> None:
    options = parse_options(ClassifierOptions, argv, prog="train_cls.py", description=__doc__)
    # imported here, so that --help and errors in options do not wait for torch
    from src.cls.run import train_folds

    train_folds(options)


if __name__ == "__main__":
    with exit_on_user_error():
        main()
