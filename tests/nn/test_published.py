"""Published checkpoints, in the key layouts that their authors' code saves."""

import pytest
import timm
import torch
from torch import nn

from src.core.errors import UserError
from src.nn.encoder import read_encoder_file
from src.nn.encoder3d import SwinEncoder
from src.nn.encoder_weights import load_encoder
from src.nn.published import PublishedOptions, convert, main

BACKBONE = "test_efficientnet"  # names of the EfficientNets that 2D-VoCo trains, in small


def prefixed(prefix, weights):
    return {f"{prefix}{name}": tensor for name, tensor in weights.items()}


def head(prefix, width=8):
    """The projection head of all three: layer1 and layer2 of a Linear and a norm without tensors, layer3."""
    linear = nn.Linear(width, width).state_dict()
    return {f"{prefix}layer{i}.0.{name}": tensor for i in (1, 2, 3) for name, tensor in linear.items()}


@pytest.fixture(scope="module")
def networks():
    """Student and teacher of 2D-VoCo: timm backbones of one channel with their ImageNet classifier."""
    torch.manual_seed(0)
    return [timm.create_model(BACKBONE, in_chans=1).state_dict() for _ in range(2)]


def two_d_voco(networks):
    student, teacher = networks
    return {
        **prefixed("student.", student),
        **prefixed("teacher.", teacher),
        **head("student_proj_head."),
        **head("teacher_proj_head."),
    }


def assert_holds(path, backbone, expected):
    """The encoder file holds these weights, as plain timm reads it."""
    loaded = timm.create_model(backbone, in_chans=1, num_classes=0, checkpoint_path=str(path)).state_dict()
    for name, tensor in loaded.items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0)


@pytest.mark.parametrize("wrapper", ["", "module."])
@pytest.mark.parametrize("container", [None, "state_dict"])
def test_convert_takes_the_student_of_2d_voco(networks, tmp_path, wrapper, container):
    content = prefixed(wrapper, two_d_voco(networks))
    source, output = tmp_path / "step60000.pth", tmp_path / "encoder.safetensors"
    torch.save({"global_step": 60000, container: content} if container else content, source)
    report = convert(PublishedOptions(source, BACKBONE, output))
    assert_holds(output, BACKBONE, networks[0])
    root = f"{container}." * bool(container) + wrapper
    kept, all_tensors = len(networks[0]) - 2, len(networks[1])
    assert report.startswith(f"{kept} tensors matched under {root}student. ({root}teacher. holds another")
    assert "0 missing" in report and f"{all_tensors + 14} unused" in report
    assert f"teacher {all_tensors}, student_proj_head 6, teacher_proj_head 6, classifier 2" in report


def test_main_records_what_the_encoder_is(networks, tmp_path, capsys):
    torch.save(two_d_voco(networks), tmp_path / "step.pth")
    output = tmp_path / "out" / "encoder.safetensors"
    main(f"--input {tmp_path}/step.pth --backbone {BACKBONE} --windows soft organ --output {output}".split())
    printed = capsys.readouterr()
    assert "tensors matched under student." in printed.out and f"wrote {output}" in printed.out
    assert "which patients it was trained on" in printed.err
    about = read_encoder_file(output)
    assert (about.name, about.in_channels, about.windows) == (BACKBONE, 2, ("soft", "organ"))
    assert (about.mean, about.std) == ((0.0, 0.0), (1.0, 1.0))  # grey levels from 0 to 1, as published
    assert about.trained_by["weights"] == "student."


@pytest.fixture(scope="module")
def volume_networks():
    """The encoder of SwinUNETR, a quarter as wide as the smallest published one."""
    torch.manual_seed(0)
    return [SwinEncoder(1, features=12).state_dict() for _ in range(2)]


@pytest.mark.parametrize(
    ("layout", "root"),
    [
        (
            lambda a, b: prefixed("student.", a) | prefixed("teacher.", b) | head("student.proj_head."),
            "student.",
        ),
        (lambda a, b: prefixed("module.student.", a) | prefixed("module.teacher.", b), "module.student."),
        (
            lambda a, b: {"state_dict": prefixed("module.backbone.", a) | head("module.student.")},
            "state_dict.module.backbone.",
        ),
        (lambda a, b: prefixed("backbone.", a) | head("student.") | head("teacher."), "backbone."),
        (
            lambda a, b: (
                a | {"decoder5.conv_block.conv1.conv.weight": torch.zeros(1), "out.conv.bias": torch.zeros(1)}
            ),
            "",
        ),
    ],
    ids=["voco", "voco on several GPUs", "large-scale", "large-scale final", "released"],
)
def test_load_encoder_understands_3d_layouts(volume_networks, tmp_path, layout, root):
    torch.save(layout(*volume_networks), tmp_path / "published.pt")
    encoder = SwinEncoder(1, features=12)
    report = load_encoder(encoder, tmp_path / "published.pt")
    assert report.root == root and not report.missing and not report.adapted
    for name, tensor in encoder.state_dict().items():
        torch.testing.assert_close(tensor, volume_networks[0][name], rtol=0, atol=0)


def test_convert_leaves_no_file_for_another_backbone(networks, tmp_path):
    torch.save(two_d_voco(networks), tmp_path / "step.pth")
    with pytest.raises(UserError, match="was it trained with another --backbone"):
        convert(PublishedOptions(tmp_path / "step.pth", "resnet10t", tmp_path / "encoder.safetensors"))
    assert not (tmp_path / "encoder.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--windows", "bone"], "option --windows takes soft, organ, wide, got bone"),
        (["--output", "encoder.pth"], "option --output must end in .safetensors"),
        (["--input", "nothing.pth"], "there is no file nothing.pth: expected weights of an encoder"),
    ],
)
def test_main_refuses_mistakes(arguments, message, tmp_path):
    given = {"--input": "a.pth", "--backbone": BACKBONE, "--output": str(tmp_path / "encoder.safetensors")}
    given |= dict(zip(arguments[::2], arguments[1::2], strict=True))
    with pytest.raises(UserError, match=message):
        main([word for pair in given.items() for word in pair])
