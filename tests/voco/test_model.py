"""The student embeds crops one by one; the teacher is its moving average, all of it and nothing else."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from src.core.errors import UserError
from src.nn.encoder import encoder_width
from src.nn.imagenet import read_package
from src.voco.model import (
    ProjectionHead,
    TeacherUpdate,
    VocoNet,
    VolumeVocoNet,
    build_network,
    embed_by_both,
    load_start,
    make_teacher,
    teacher_distance,
    teacher_momentum,
)
from src.voco.options import VocoOptions
from tests.helpers.voco_nets import draw_tiles, embed, make_net, place_loss


def take_step(student, teacher, optimizer, tiles):
    embeddings, targets = embed_by_both(student, teacher, tiles)
    (place_loss(embeddings) + (embeddings - targets).square().mean()).backward()
    optimizer.step()


def test_projection_head_does_not_depend_on_position_or_batch():
    """BatchNorm over (B, N, D) takes the slot for the channel: moving a crop would change its embedding."""
    torch.manual_seed(0)
    head = ProjectionHead(16, 8).train()
    for module in head.modules():  # a trained head: unlike at the start, its scales and shifts differ
        if isinstance(module, nn.LayerNorm):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    features = torch.randn(3 * 5, 16)
    order = torch.randperm(15)
    torch.testing.assert_close(head(features)[order], head(features[order]))
    torch.testing.assert_close(head(features)[:4], head(features[:4]))


@pytest.mark.parametrize("backbone", ["mobilenetv3_small_050", "resnet10t", "convnext_atto"])
@pytest.mark.parametrize("size", [32, 48, 64])
def test_voco_net_takes_any_tile_size(backbone, size):
    """Features flattened at a fixed width fit one tile size only."""
    net = make_net(backbone)
    embeddings, features = net(draw_tiles(size=size))
    assert embeddings.shape == (2, 5, 32) and features.shape == (2, 5, encoder_width(net.encoder))


def test_voco_net_projects_the_mean_over_the_slices():
    net = make_net(dropout=0.0, channels=3).eval()
    tiles = draw_tiles(channels=3)
    images = (tiles[1, 2].permute(0, 3, 1, 2) / 255 - 0.5) / 0.25  # (T, C, H, W)
    expected = net.head(net.encoder(images).mean(0, keepdim=True))[0]
    torch.testing.assert_close(embed(net, tiles)[1, 2], expected, atol=1e-5, rtol=1e-4)


def test_volume_voco_net_encodes_crops_as_volumes():
    net = make_net("resnet10_3d", channels=2, dropout=0.0).eval()
    tiles = draw_tiles(channels=2, slices=40)  # (B, K, T, H, W, C)
    crop = ((tiles[1, 2] / 255 - 0.5) / 0.25).permute(3, 0, 1, 2)[None]  # (1, C, T, H, W)
    torch.testing.assert_close(embed(net, tiles)[1, 2], net.head(net.encoder(crop))[0], atol=1e-5, rtol=1e-4)


def test_voco_net_returns_features_before_dropout():
    net = make_net("convnext_atto", dropout=0.9)
    tiles = draw_tiles()
    torch.testing.assert_close(net(tiles)[1], net(tiles)[1], rtol=0, atol=0)
    assert not torch.allclose(net(tiles)[0], net(tiles)[0], atol=1e-2)


def test_make_teacher_copies_the_student_without_gradients():
    student = make_net()
    teacher = make_teacher(student, shared_backbone=False)
    for name, value in student.state_dict().items():
        torch.testing.assert_close(teacher.state_dict()[name], value, rtol=0, atol=0)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert {id(p) for p in teacher.parameters()}.isdisjoint(id(p) for p in student.parameters())


def test_teacher_update_averages_backbone_head_and_buffers():
    """Published: a random head that is never averaged, and buffers that stay behind."""
    student = make_net()
    teacher = make_teacher(student, shared_backbone=False)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    take_step(student, teacher, torch.optim.AdamW(student.parameters(), lr=1e-2), draw_tiles())
    TeacherUpdate(teacher, student)(0.9)
    moved = set()
    for name, value in student.state_dict().items():
        updated = teacher.state_dict()[name]
        expected = 0.9 * before[name] + 0.1 * value if value.is_floating_point() else value
        torch.testing.assert_close(updated, expected)
        if not torch.equal(updated, before[name]):
            moved.add(name)
    assert any(name.startswith("head.") for name in moved)
    assert any(name.endswith("running_mean") for name in moved)
    assert any(name.endswith("conv_stem.weight") for name in moved)
    assert 0 < teacher_distance(teacher, student) < 1


def test_teacher_normalises_by_the_batch_without_noise():
    student = make_net(dropout=0.9)
    teacher, tiles = make_teacher(student, shared_backbone=False), draw_tiles()
    before = {
        name: value.clone() for name, value in teacher.state_dict().items() if value.is_floating_point()
    }
    first = embed(teacher, tiles)
    torch.testing.assert_close(first, embed(teacher, tiles), rtol=0, atol=0)  # no dropout
    for name, value in before.items():
        torch.testing.assert_close(teacher.state_dict()[name], value, rtol=0, atol=0)
    student.dropout.p = 0.0
    torch.testing.assert_close(first, embed(student, tiles))  # the statistics of the batch, as the student's
    assert not torch.allclose(first, embed(student.eval(), tiles), atol=1e-2)


@pytest.mark.parametrize("shared_backbone", [False, True])
def test_embed_by_both_gives_the_teacher_no_graph(shared_backbone):
    student, tiles = make_net(), draw_tiles()
    embeddings, targets = embed_by_both(student, make_teacher(student, shared_backbone), tiles)
    assert embeddings.requires_grad and not targets.requires_grad


def test_make_teacher_on_a_shared_backbone_averages_the_head_alone():
    student = make_net(dropout=0.5)
    teacher, tiles = make_teacher(student, shared_backbone=True), draw_tiles()
    assert all(name.startswith("head.") for name in teacher.state_dict())
    features = student(tiles)[1]
    torch.testing.assert_close(teacher.embed(features), student.head(features))
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    take_step(student, teacher, torch.optim.AdamW(student.parameters(), lr=1e-2), tiles)
    TeacherUpdate(teacher, student)(0.75)
    for name, value in teacher.state_dict().items():
        torch.testing.assert_close(value, 0.75 * before[name] + 0.25 * student.state_dict()[name])
    assert 0 < teacher_distance(teacher, student) < 1


def test_voco_net_runs_channels_last():
    seen = []
    net = make_net(channels=3)
    net.encoder.conv_stem.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    net(draw_tiles(channels=3))
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
    assert net.encoder.conv_stem.weight.is_contiguous(memory_format=torch.channels_last)


def options(**changes):
    small = {"data": ("d",), "output": "o", "projection": 16, "tile": 32, "slices": 3}
    return VocoOptions(**(small | changes))


def test_build_network_chooses_2d_or_3d_by_the_backbone():
    assert type(build_network(options(backbone="resnet10t"))) is VocoNet
    assert type(build_network(options(backbone="resnet10_3d"))) is VolumeVocoNet


def test_build_network_follows_the_options():
    net = build_network(options(backbone="resnet10t", windows=("soft", "organ"), micro_batch=7, dropout=0.3))
    assert (net.micro_batch, net.dropout.p) == (7, 0.3)
    assert net(draw_tiles(channels=2))[0].shape == (2, 5, 16)


def test_load_start_prefers_the_encoder_to_first_weights(tmp_path):
    """A preset's ImageNet weights do not stand in the way of --encoder."""
    torch.manual_seed(1)
    first = make_net("resnet10t")
    first.mean.fill_(0.125)
    torch.save({"student": first.state_dict(), "teacher": first.state_dict()}, tmp_path / "last.pt")
    given = options(backbone="resnet10t", encoder=tmp_path / "last.pt", first_weights="imagenet")
    net = build_network(given)
    assert "tensors matched under teacher.encoder." in str(load_start(net, given))
    for name, value in net.encoder.state_dict().items():
        torch.testing.assert_close(value, first.encoder.state_dict()[name], rtol=0, atol=0)
    assert net.mean.tolist() == [0.125]


def test_load_start_loads_the_package_with_its_grey_levels():
    given = options(backbone="tf_efficientnet_lite0", first_weights="package", neighbours=3)
    net = build_network(given)
    load_start(net, given)
    assert net.mean.tolist() == pytest.approx([127 / 255]) and net.std.tolist() == pytest.approx([128 / 255])
    kernel = read_package(net.encoder)["conv_stem.weight"]  # a colour for each neighbour
    torch.testing.assert_close(net.encoder.conv_stem.weight, kernel, rtol=0, atol=0)


def test_load_start_refuses_imagenet_weights_in_3d():
    net = build_network(given := options(backbone="resnet10_3d", first_weights="imagenet"))
    with pytest.raises(UserError, match="no ImageNet weights of this 3D backbone: give --first-weights FILE"):
        load_start(net, given)


def test_build_network_builds_a_transformer_for_its_tiles():
    net = build_network(options(backbone="swin_tiny_patch4_window7_224"))  # of 224 px, on tiles of 32
    assert net(draw_tiles())[0].shape == (2, 5, 16)


def test_build_network_refuses_neighbours_in_3d():
    with pytest.raises(UserError, match="--neighbours: resnet10_3d takes crops as volumes"):
        build_network(options(backbone="resnet10_3d", neighbours=3))


def test_build_network_refuses_wrong_sides_in_3d():
    with pytest.raises(UserError, match=r"multiples of 32.*not 3 x 32 x 32: set --slices and --tile"):
        build_network(options(backbone="swin_unetr_b"))


def test_teacher_momentum_rises_by_half_a_cosine():
    options = VocoOptions(
        data=(Path("unused"),), output=Path("unused"), momentum=0.9, final_momentum=1.0, steps=100
    )
    assert teacher_momentum(0, options) == pytest.approx(0.9)
    assert teacher_momentum(50, options) == pytest.approx(0.95)
    assert teacher_momentum(100, options) == pytest.approx(1.0)
    assert teacher_momentum(50, replace(options, final_momentum=None)) == 0.9
