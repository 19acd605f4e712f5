"""encoder.safetensors: plain timm reads it, our loader adapts it, and nothing is lost without a word."""

import pytest
import timm
import torch

from src.core.errors import UserError
from src.nn.encoder import (
    EncoderFile,
    adapt_input_channels,
    create_encoder,
    encoder_width,
    load_encoder,
    read_encoder_file,
    save_encoder,
)

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


def test_input_channels_are_repeated_so_that_a_grey_image_gives_the_same_response(saved):
    path, _, _ = saved
    wide, narrow = create_encoder(NAME, 5).eval(), create_encoder(NAME, 3).eval()
    assert len(load_encoder(wide, path).adapted) == 1
    load_encoder(narrow, path)
    kernel = torch.randn(4, 1, 3, 3)
    torch.testing.assert_close(adapt_input_channels(kernel, 3).sum(dim=1, keepdim=True), kernel)


def test_matching_nothing_is_an_error(saved):
    path, _, _ = saved
    with pytest.raises(UserError, match="holds no weight of this backbone"):
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
