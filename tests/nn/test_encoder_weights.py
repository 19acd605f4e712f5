"""Loading of a backbone's weights from files of several layouts, with a report of what matched."""

import pytest
import segmentation_models_pytorch as smp
import timm
import torch

from src.core.errors import UserError
from src.nn.encoder import EncoderFile, create_encoder, save_encoder
from src.nn.encoder_weights import load_encoder, load_tensors, timm_backbone
from tests.helpers.encoder_files import write_encoder

NAME = "test_efficientnet"


@pytest.fixture
def saved(tmp_path):
    """The path of an encoder file, and the encoder in it."""
    path = tmp_path / "encoder.safetensors"
    return path, write_encoder(path)


def assert_equal_weights(one, other):
    for name, tensor in one.state_dict().items():
        torch.testing.assert_close(tensor, other.state_dict()[name], rtol=0, atol=0)


def test_load_encoder_reports_a_complete_match(saved):
    path, encoder = saved
    other = create_encoder(NAME, 3)
    report = load_encoder(other, path)
    assert not report.missing and not report.unused and not report.adapted
    assert_equal_weights(other, encoder)


def test_load_encoder_takes_the_whole_teacher_of_a_run(saved, tmp_path):
    """A mixture would have all its tensors and the weights of neither."""
    _, teacher = saved
    student = create_encoder(NAME, 3).state_dict()
    parts = {f"encoder.{name}": tensor for name, tensor in teacher.state_dict().items()}
    run = {"student": {f"encoder.{name}": tensor for name, tensor in student.items()}, "teacher": parts}
    run["student"]["head.layers.0.weight"] = run["teacher"]["head.layers.0.weight"] = torch.zeros(2, 2)
    torch.save(
        run | {"step": 3, "optimizer": {"state": {0: {"step": torch.tensor(3)}}}}, tmp_path / "last.pt"
    )
    other = create_encoder(NAME, 3)
    report = load_encoder(other, tmp_path / "last.pt")
    assert_equal_weights(other, teacher)
    assert report.root == "teacher.encoder." and "student.encoder. holds another" in str(report)
    assert not report.missing and len(report.unused) == len(student) + 2


def test_load_encoder_takes_the_student_of_a_shared_backbone(saved, tmp_path):
    _, encoder = saved
    student = {f"encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}
    run = {"student": student, "teacher": {"head.layers.0.weight": torch.zeros(2, 2)}}
    torch.save(run, tmp_path / "last.pt")
    report = load_encoder(create_encoder(NAME, 3), tmp_path / "last.pt")
    assert report.root == "student.encoder." and report.unused == ("teacher.head.layers.0.weight",)


@pytest.mark.parametrize("channels", [1, 2, 5, 6])
def test_load_encoder_adapts_the_first_layer_to_other_channels(saved, channels):
    path, encoder = saved
    other = create_encoder(NAME, channels).eval()
    report = load_encoder(other, path)
    assert len(report.adapted) == 1 and not report.missing
    grey = torch.rand(2, 1, 64, 64)
    with torch.inference_mode():  # the response to equal channels stays
        expected = encoder(grey.expand(2, 3, 64, 64))
        torch.testing.assert_close(other(grey.expand(2, channels, 64, 64)), expected)


def test_load_tensors_sets_kernels_of_masks_to_zero(saved):
    _, encoder = saved
    other = create_encoder(NAME, 5)
    report = load_tensors(other, encoder.state_dict(), "file", mask_channels=2)
    assert len(report.adapted) == 1
    torch.testing.assert_close(other.conv_stem.weight[:, :3], encoder.conv_stem.weight)
    assert not other.conv_stem.weight[:, 3:].any()
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        masked = other.eval()(torch.cat([images, torch.rand(2, 2, 64, 64)], dim=1))
        torch.testing.assert_close(masked, encoder(images))


@pytest.mark.parametrize("name", ["efficientnet_b0", "mobilenetv3_small_050", "resnet10t", "convnext_atto"])
def test_load_encoder_into_segmentation_networks(name, tmp_path):
    """Their `tu-` encoders list a backbone's stages, for which timm changes the names of some tensors."""
    path = tmp_path / "encoder.safetensors"
    encoder = write_encoder(path, name, mean=(0.5,), std=(0.25,), windows=("soft",))
    backbone = timm_backbone(smp.encoders.get_encoder(f"tu-{name}", in_channels=3, weights=None))
    report = load_encoder(backbone, path)
    assert not report.missing and len(report.adapted) == 1
    parts = dict(encoder.named_parameters())
    loaded = {
        name.replace("stem_", "stem.").replace("stages_", "stages."): value
        for name, value in backbone.named_parameters()
    }
    for key in loaded.keys() - {report.adapted[0], report.adapted[0].replace("stem_", "stem.")}:
        torch.testing.assert_close(loaded[key], parts[key], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("held", "wanted", "problem"),
    [
        ("resnet34", "resnet18", "holds .* weights that this backbone has no place for"),
        ("resnet18", "resnet34", "lacks"),
        (NAME, "resnet10t", "lacks 42 of the 42 weights of this backbone"),
    ],
)
def test_load_encoder_refuses_another_backbone(held, wanted, problem, tmp_path):
    """Siblings share names and shapes: half of a network would be loaded silently."""
    torch.save(create_encoder(held, 3).state_dict(), tmp_path / "other.pth")
    with pytest.raises(UserError, match=f"{problem}.*: was it trained with another --backbone or image size"):
        load_encoder(create_encoder(wanted, 3), tmp_path / "other.pth")


def test_load_encoder_ignores_the_head_of_a_timm_classifier(tmp_path):
    """The classifier of some backbones is a part of a group that the encoder has, too."""
    torch.save(timm.create_model("convnext_atto").state_dict(), tmp_path / "classifier.pth")
    report = load_encoder(create_encoder("convnext_atto", 3), tmp_path / "classifier.pth")
    assert not report.missing and report.unused == ("head.fc.weight", "head.fc.bias")


def test_load_encoder_reports_a_partial_match(saved, tmp_path):
    _, encoder = saved
    weights = dict(encoder.state_dict())
    first = next(iter(weights))
    weights["extra.weight"] = weights.pop(first)
    torch.save(weights, tmp_path / "partial.pt")
    report = load_encoder(create_encoder(NAME, 3), tmp_path / "partial.pt")
    assert report.missing == (first,) and report.unused == ("extra.weight",)


@pytest.mark.parametrize("content", [b"", b"not a model", b"hello\n"])
def test_load_encoder_refuses_other_files(tmp_path, content):
    for name in ("a.safetensors", "a.pt"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError):
            load_encoder(create_encoder(NAME, 3), tmp_path / name)


def test_load_encoder_runs_no_pickled_objects(tmp_path):
    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"model": Payload()}, tmp_path / "evil.pt")
    with pytest.raises(UserError, match=r"pickled objects .* give the .pth file beside it"):
        load_encoder(create_encoder(NAME, 3), tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()


FAMILIES = [
    "coat_lite_tiny",
    "maxvit_nano_rw_256",
    "coatnet_nano_rw_224",
    "swinv2_cr_tiny_ns_224",
    "vit_tiny_patch16_224",
]


@pytest.mark.parametrize("name", FAMILIES)
def test_load_encoder_resamples_for_another_image_size(name, tmp_path):
    """As timm does when a network of the old size is changed to the new one, or is built for it.

    It builds CoaT alone, and MaxViT and CoAtNet before version 1.0.31.
    """
    path = tmp_path / "encoder.safetensors"
    torch.manual_seed(0)
    save_encoder(path, create_encoder(name, 3, 64), EncoderFile(name, 3, (0.5,), (0.25,), ("soft",), size=64))
    encoder = create_encoder(name, 3, 96).eval()
    report = load_encoder(encoder, path)
    assert not report.missing
    if hasattr(encoder, "set_input_size"):
        plain = timm.create_model(name, img_size=64, num_classes=0, checkpoint_path=str(path))
        plain.set_input_size(img_size=96)
    else:
        weights = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(path)}}
        plain = timm.create_model(name, img_size=96, num_classes=0, **weights)
    images = torch.randn(2, 3, 96, 96)
    with torch.inference_mode():
        torch.testing.assert_close(encoder(images), plain.eval()(images))


def test_load_encoder_into_a_segmentation_network_of_another_image_size(tmp_path):
    path, name = tmp_path / "encoder.safetensors", "swin_tiny_patch4_window7_224"
    save_encoder(path, create_encoder(name, 3, 64), EncoderFile(name, 3, (0.5,), (0.25,), ("soft",), size=64))
    backbone = timm_backbone(smp.encoders.get_encoder(f"tu-{name}", weights=None, img_size=96))
    report = load_encoder(backbone, path)
    assert report.resized and not report.missing


def test_load_encoder_refuses_layers_of_one_image_size(tmp_path):
    """An MLP over the positions cannot be resampled."""
    torch.save(timm.create_model("mixer_s32_224", img_size=64).state_dict(), tmp_path / "mixer.pth")
    with pytest.raises(UserError, match="another --backbone or image size"):
        load_encoder(create_encoder("mixer_s32_224", 3, 96), tmp_path / "mixer.pth")
