"""The student embeds crops one by one; the teacher is its moving average, all of it and nothing else."""

import pytest
import torch
from torch import nn

from src.nn.encoder import create_encoder, encoder_width
from src.voco.losses import voco_losses
from src.voco.model import ProjectionHead, VocoNet, make_teacher, teacher_distance, update_teacher


def make_net(backbone="mobilenetv3_small_050", channels=1, dropout=0.2, projection=32):
    torch.manual_seed(0)
    encoder = create_encoder(backbone, channels)
    net = VocoNet(
        encoder,
        encoder_width(encoder),
        projection=projection,
        dropout=dropout,
        mean=[0.5] * channels,
        std=[0.25] * channels,
    )
    return net.train()


def draw_tiles(crops=5, size=32, channels=1, volumes=2, slices=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (volumes, crops, slices, size, size, channels)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def take_step(student, teacher, optimizer, tiles):
    with torch.no_grad():
        targets = teacher(tiles)
    label = torch.full((2, 1, 4), 0.25)
    voco_losses(student(tiles), targets, label).total.mean().backward()
    optimizer.step()


def test_the_head_treats_a_crop_alike_in_every_slot_and_every_company():
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
def test_any_backbone_takes_any_tile_size(backbone, size):
    """Features flattened at a fixed width fit one tile size only."""
    assert make_net(backbone)(draw_tiles(size=size)).shape == (2, 5, 32)


def test_an_embedding_is_the_projected_mean_over_the_slices():
    net = make_net(dropout=0.0, channels=3).eval()
    tiles = draw_tiles(channels=3)
    images = (tiles[1, 2].permute(0, 3, 1, 2) / 255 - 0.5) / 0.25  # (T, C, H, W)
    expected = net.head(net.encoder(images).mean(0, keepdim=True))[0]
    torch.testing.assert_close(net(tiles)[1, 2], expected, atol=1e-5, rtol=1e-4)


def test_the_teacher_begins_as_the_whole_student_and_no_gradient_trains_it():
    student = make_net()
    teacher = make_teacher(student)
    for name, value in student.state_dict().items():
        torch.testing.assert_close(teacher.state_dict()[name], value, rtol=0, atol=0)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert {id(p) for p in teacher.parameters()}.isdisjoint(id(p) for p in student.parameters())


def test_the_teacher_follows_the_student_backbone_head_and_buffers():
    """Published: a random head that is never averaged, and buffers that stay behind."""
    student = make_net()
    teacher = make_teacher(student)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    take_step(student, teacher, torch.optim.AdamW(student.parameters(), lr=1e-2), draw_tiles())
    update_teacher(teacher, student, momentum=0.9)
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


def test_the_teachers_forward_uses_batch_statistics_without_noise_and_changes_nothing():
    student = make_net(dropout=0.9)
    teacher, tiles = make_teacher(student), draw_tiles()
    before = {
        name: value.clone() for name, value in teacher.state_dict().items() if value.is_floating_point()
    }
    first = teacher(tiles)
    torch.testing.assert_close(first, teacher(tiles), rtol=0, atol=0)  # no dropout
    for name, value in before.items():
        torch.testing.assert_close(teacher.state_dict()[name], value, rtol=0, atol=0)
    student.dropout.p = 0.0
    torch.testing.assert_close(first, student(tiles))  # the statistics of the batch, as the student's
    assert not torch.allclose(first, student.eval()(tiles), atol=1e-2)


def test_the_teachers_forward_keeps_no_graph():
    student = make_net()
    assert student(draw_tiles()).requires_grad
    assert not make_teacher(student)(draw_tiles()).requires_grad


def test_convolutions_run_channels_last():
    seen = []
    net = make_net(channels=3)
    net.encoder.conv_stem.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    net(draw_tiles(channels=3))
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
    assert net.encoder.conv_stem.weight.is_contiguous(memory_format=torch.channels_last)
