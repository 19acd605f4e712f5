"""Convert a published 2D-VoCo or VoCo checkpoint to an encoder file of this kit.

    python -m src.nn.published --input step60000.pth --backbone efficientnet_b0 --output encoder.safetensors
    python -m src.nn.published --input VoCo_B.pt --backbone swin_unetr_b --output encoder.safetensors

train_voco.py --encoder accepts the result; train_cls.py --encoder and plain timm accept it if it is 2D.
Layouts of the authors' public code, each plain or under `state_dict`, with or without `module.`:

- 2D-VoCo: `student.<timm name>`, `teacher.<timm name>`, `student_proj_head.`, `teacher_proj_head.`. Its .pt
  files contain a pickled optimiser and are refused; the .pth files beside them contain the same weights.
- VoCo in 3D: `student.swinViT.`, `student.encoder1.` ..., `student.proj_head.`, and the same for `teacher.`;
  the released file contains one network without a prefix.
- Large-scale VoCo: `backbone.swinViT.` ..., and heads `student.` and `teacher.`; released files have no
  prefix, and those of the omni-supervised stage also contain a decoder.

The published networks use axes x, y, z of RAS files, this kit z, y, x of LPS: training can continue from
their weights, but their frozen features do not fit these transposed images.
"""

from dataclasses import dataclass
from pathlib import Path

from src.core.config import parse_options
from src.core.errors import UserError, exit_on_user_error
from src.core.files import require_writable
from src.core.log import say, warn
from src.ct.windows import WINDOWS
from src.nn.encoder import EncoderFile, create_encoder, save_encoder
from src.nn.encoder3d import VOLUME_BACKBONES, create_volume_encoder
from src.nn.encoder_weights import load_encoder


@dataclass(frozen=True)
class PublishedOptions:
    """Options of `python -m src.nn.published`."""

    input: Path
    """Checkpoint to read (.pth, .pt or .safetensors)."""

    backbone: str
    """timm's name of its backbone (efficientnet_b0, efficientnetv2_rw_t, efficientnetv2_rw_s), or
    swin_unetr_b, swin_unetr_l, swin_unetr_h."""

    output: Path
    """Encoder file to write, .safetensors."""

    windows: tuple[str, ...] = ("soft",)
    """CT windows of its input channels; the first layer of the file is spread over them."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.windows if name not in WINDOWS]
        if unknown or not self.windows:
            raise ValueError(
                f"option --windows takes {', '.join(WINDOWS)}, got {' '.join(unknown) or 'none'}"
            )
        if self.output.suffix != ".safetensors":
            raise ValueError(f"option --output must end in .safetensors, got {self.output}")


def convert(options: PublishedOptions) -> str:
    """Write the encoder file; return the report of matched, missing and unused tensors."""
    if options.output.resolve() == options.input.resolve():
        raise UserError(f"--output {options.output} is the checkpoint itself: name another file")
    require_writable(options.output)
    channels = len(options.windows)
    create = create_volume_encoder if options.backbone in VOLUME_BACKBONES else create_encoder
    encoder = create(options.backbone, channels)
    report = load_encoder(encoder, options.input)
    about = EncoderFile(
        name=options.backbone,
        in_channels=channels,
        mean=(0.0,) * channels,  # the published runs train on unnormalised grey levels
        std=(1.0,) * channels,
        windows=options.windows,
        trained_by={"method": "published checkpoint", "file": options.input.name, "weights": report.root},
    )
    save_encoder(options.output, encoder, about)
    return str(report)


def main(argv: list[str] | None = None) -> None:
    options = parse_options(PublishedOptions, argv, prog="python -m src.nn.published", description=__doc__)
    say(f"{options.input}: {convert(options)}")
    warn(
        "the file does not record which patients it was trained on: 2D-VoCo's runs saw 2,518 of the "
        "competition's 3,147, so that no fold of them is known to be unseen"
    )
    say(f"wrote {options.output}")


if __name__ == "__main__":
    with exit_on_user_error():
        main()
