"""encoder.safetensors: plain timm reads it, our loader adapts it, and nothing is lost without a word."""

import pytest
import segmentation_models_pytorch as smp
import timm
import torch

from src.core.errors import UserError
from src.nn.encoder import (
    EncoderFile,
    check_input_size,
    create_encoder,
    encoder_width,
    read_encoder_file,
    require_true_bf16,
    save_encoder,
)
from src.nn.encoder_weights import adapt_input_channels, load_encoder

NAME = "test_efficientnet"


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    encoder = create_encoder(NAME, 3)
    about = EncoderFile(
        NAME, 3, (0.5,) * 3, (0.25,) * 3, ("soft", "organ", "wide"), {"steps": 7}, ("12", "9")
    )
    path = tmp_path / "encoder.safetensors"
    save_encoder(path, encoder, about)
    return path, encoder.eval(), about


@pytest.mark.parametrize("name", ["test_efficientnet", "resnet10t", "mobilenetv3_small_050"])
def test_any_backbone_gives_one_vector_a_slice_of_the_width_told(name):
    encoder = create_encoder(name, 2).eval()
    with torch.inference_mode():
        assert encoder(torch.zeros(2, 2, 64, 64)).shape == (2, encoder_width(encoder))


def test_plain_timm_loads_the_file_with_nothing_missing(saved):
    path, encoder, _ = saved
    plain = timm.create_model(NAME, in_chans=3, num_classes=0, checkpoint_path=str(path)).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(plain(images), encoder(images), rtol=0, atol=0)


def test_metadata_comes_back(saved):
    path, _, about = saved
    assert read_encoder_file(path) == about


def test_our_loader_reports_a_complete_match(saved):
    path, encoder, _ = saved
    other = create_encoder(NAME, 3)
    report = load_encoder(other, path)
    assert not report.missing and not report.unused and not report.adapted
    for name, tensor in other.state_dict().items():
        torch.testing.assert_close(tensor, encoder.state_dict()[name], rtol=0, atol=0)


@pytest.mark.parametrize("prefix", ["student.", "module.backbone.", "module.student.encoder."])
def test_published_prefixes_are_understood(saved, tmp_path, prefix):
    _, encoder, _ = saved
    path = tmp_path / "published.pt"
    torch.save({"state_dict": {prefix + name: tensor for name, tensor in encoder.state_dict().items()}}, path)
    report = load_encoder(create_encoder(NAME, 3), path)
    assert not report.missing and not report.unused


def test_of_a_run_the_teacher_is_taken_and_of_two_networks_never_a_mixture(saved, tmp_path):
    """A mixture would have all its tensors and the weights of neither."""
    _, teacher, _ = saved
    student = create_encoder(NAME, 3).state_dict()
    parts = {f"encoder.{name}": tensor for name, tensor in teacher.state_dict().items()}
    run = {"student": {f"encoder.{name}": tensor for name, tensor in student.items()}, "teacher": parts}
    run["student"]["head.layers.0.weight"] = run["teacher"]["head.layers.0.weight"] = torch.zeros(2, 2)
    torch.save(
        run | {"step": 3, "optimizer": {"state": {0: {"step": torch.tensor(3)}}}}, tmp_path / "last.pt"
    )
    other = create_encoder(NAME, 3)
    report = load_encoder(other, tmp_path / "last.pt")
    for name, tensor in other.state_dict().items():
        torch.testing.assert_close(tensor, teacher.state_dict()[name], rtol=0, atol=0)
    assert report.root == "teacher.encoder." and "student.encoder. holds another" in str(report)
    assert not report.missing and len(report.unused) == len(student) + 2


def test_on_a_shared_backbone_the_students_is_taken(saved, tmp_path):
    _, encoder, _ = saved
    student = {f"encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}
    run = {"student": student, "teacher": {"head.layers.0.weight": torch.zeros(2, 2)}}
    torch.save(run, tmp_path / "last.pt")
    report = load_encoder(create_encoder(NAME, 3), tmp_path / "last.pt")
    assert report.root == "student.encoder." and report.unused == ("teacher.head.layers.0.weight",)


@pytest.mark.parametrize("channels", [1, 2, 5, 6])
def test_another_number_of_channels_adapts_the_first_layer_alone(saved, channels):
    path, encoder, _ = saved
    other = create_encoder(NAME, channels)
    report = load_encoder(other, path)
    assert len(report.adapted) == 1 and not report.missing
    kernel, adapted = encoder.conv_stem.weight, other.conv_stem.weight
    assert adapted.shape[1] == channels
    torch.testing.assert_close(adapted[:, 0], kernel[:, 0] * 3 / channels)


def test_copies_of_a_grey_image_give_the_response_of_one():
    kernel, grey = torch.randn(4, 1, 3, 3), torch.randn(1, 1, 8, 8)
    one = torch.nn.functional.conv2d(grey, kernel)
    three = torch.nn.functional.conv2d(grey.repeat(1, 3, 1, 1), adapt_input_channels(kernel, 3))
    torch.testing.assert_close(three, one, rtol=1e-4, atol=1e-5)


def test_kernels_of_extra_masks_begin_at_zero(saved):
    path, encoder, _ = saved
    other = create_encoder(NAME, 5)
    report = load_encoder(other, path, mask_channels=2)
    assert len(report.adapted) == 1
    torch.testing.assert_close(other.conv_stem.weight[:, :3], encoder.conv_stem.weight)
    assert not other.conv_stem.weight[:, 3:].any()
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        masked = other.eval()(torch.cat([images, torch.rand(2, 2, 64, 64)], dim=1))
        torch.testing.assert_close(masked, encoder(images))


def test_kernels_of_volumes_are_adapted_like_those_of_images():
    kernel, grey = torch.randn(4, 1, 3, 3, 3), torch.randn(1, 1, 8, 8, 8)
    adapted = adapt_input_channels(kernel, 4, mask_channels=1)
    assert not adapted[:, 3].any()
    one = torch.nn.functional.conv3d(grey, kernel)
    four = torch.nn.functional.conv3d(grey.repeat(1, 4, 1, 1, 1), adapted)
    torch.testing.assert_close(four, one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["efficientnet_b0", "mobilenetv3_small_050", "resnet10t", "convnext_atto"])
def test_segmentation_networks_take_the_file(name, tmp_path):
    """Their `tu-` encoders list a backbone's stages, for which timm changes the names of some tensors."""
    torch.manual_seed(0)
    encoder = create_encoder(name, 1)
    path = tmp_path / "encoder.safetensors"
    save_encoder(path, encoder, EncoderFile(name, 1, (0.5,), (0.25,), ("soft",)))
    backbone = smp.encoders.get_encoder(f"tu-{name}", in_channels=3, weights=None).model
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
    ("held", "wanted"),
    [("resnet34", "resnet18"), ("resnet18", "resnet34"), ("efficientnet_b1", "efficientnet_b0")],
)
def test_a_sibling_that_shares_most_names_is_refused(held, wanted, tmp_path):
    """Their common tensors have equal names and shapes; half a network would be loaded without a word."""
    torch.save(create_encoder(held, 3).state_dict(), tmp_path / "sibling.pth")
    with pytest.raises(UserError, match="was it trained with another --backbone"):
        load_encoder(create_encoder(wanted, 3), tmp_path / "sibling.pth")


def test_a_classifier_of_timm_with_its_head_is_taken(tmp_path):
    """The classifier of some backbones is a part of a group that the encoder has, too."""
    torch.save(timm.create_model("convnext_atto").state_dict(), tmp_path / "classifier.pth")
    report = load_encoder(create_encoder("convnext_atto", 3), tmp_path / "classifier.pth")
    assert not report.missing and report.unused == ("head.fc.weight", "head.fc.bias")


def test_a_backbone_of_one_input_size_is_refused_at_another():
    check_input_size(create_encoder(NAME, 3), 3, 96)
    with pytest.raises(UserError, match="cannot take images of 96 px"):
        check_input_size(create_encoder("vit_tiny_patch16_224", 3), 3, 96)


def test_matching_nothing_is_an_error(saved):
    path, _, _ = saved
    with pytest.raises(UserError, match="lacks 42 of the 42 weights of this backbone"):
        load_encoder(create_encoder("resnet10t", 3), path)


def test_a_partial_match_is_reported(saved, tmp_path):
    _, encoder, _ = saved
    weights = dict(encoder.state_dict())
    first = next(iter(weights))
    weights["extra.weight"] = weights.pop(first)
    torch.save(weights, tmp_path / "partial.pt")
    report = load_encoder(create_encoder(NAME, 3), tmp_path / "partial.pt")
    assert report.missing == (first,) and report.unused == ("extra.weight",)


@pytest.mark.parametrize("content", [b"", b"not a model"])
def test_files_that_are_no_encoder_are_refused_in_one_line(tmp_path, content):
    for name in ("a.safetensors", "a.pt"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError):
            load_encoder(create_encoder(NAME, 3), tmp_path / name)


def test_pickled_objects_are_not_run(tmp_path):
    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"model": Payload()}, tmp_path / "evil.pt")
    with pytest.raises(UserError):
        load_encoder(create_encoder(NAME, 3), tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()


def test_an_unknown_backbone_is_refused_with_close_names():
    with pytest.raises(UserError, match="no backbone 'resnet9000'"):
        create_encoder("resnet9000", 3)


def test_strides_over_one_pixel_are_found_for_bf16():
    encoder = create_encoder("mobilenetv3_small_050", 2).train()
    with pytest.raises(UserError, match="wrong gradients for images of 16 px"):
        require_true_bf16(encoder, 2, 16)
    assert encoder.training and not any(layer._forward_pre_hooks for layer in encoder.modules())
    require_true_bf16(encoder, 2, 32)
    require_true_bf16(create_encoder("test_resnet", 2), 2, 16)  # has no depthwise convolutions
