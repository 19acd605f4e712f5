"""Micro-batches save memory and change nothing else."""

import pytest
import torch

from src.nn.encoder import create_encoder, encoder_width
from src.voco.model import ProjectionHead, VocoNet, make_teacher
from tests.helpers.voco_nets import draw_tiles, embed, make_net, place_loss


def gradients(net, tiles):
    loss = place_loss(embed(net, tiles))
    loss.backward()
    return loss.item(), {name: value.grad for name, value in net.named_parameters()}


@pytest.mark.parametrize(("backbone", "slices"), [("convnext_atto", 3), ("resnet10_3d", 32)])
def test_encode_in_parts_gives_the_gradient_of_the_whole(backbone, slices):
    """In double precision and without batch statistics, which couple the crops of a part."""
    tiles = draw_tiles(slices=slices, crops=3)
    nets = [make_net(backbone, dropout=0.0, micro_batch=size).double().eval() for size in (0, 4)]
    (whole, expected), (parts, found) = (gradients(net, tiles) for net in nets)
    assert parts == pytest.approx(whole, rel=1e-6)
    for name, value in expected.items():
        assert (found[name] - value).norm() <= 1e-6 * value.norm() + 1e-12, name


def test_encode_in_parts_makes_parts_of_even_size():
    sizes = []
    net = make_net(micro_batch=16)
    net.encoder.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    net(draw_tiles(crops=3))  # 18 images
    assert sizes == [9, 9]


def test_encode_in_parts_repeats_the_draws_of_stochastic_depth():
    torch.manual_seed(0)
    encoder = create_encoder("convnext_atto", 1, drop_path_rate=0.5)
    settings = {"dropout": 0.0, "mean": [0.5], "std": [0.25], "micro_batch": 5}
    net = VocoNet(encoder, ProjectionHead(encoder_width(encoder), 32), **settings).train()
    seen = []
    stage = net.encoder.stages[2]  # the second computation ends as soon as nothing more is needed
    stage.register_forward_hook(lambda module, inputs, output: seen.append(output.detach()))
    embed(net, draw_tiles(volumes=1)).sum().backward()
    first, second = seen[:3], seen[3:]
    assert len(second) == 3 and all(any(torch.equal(a, b) for b in second) for a in first)


def test_encode_in_parts_counts_every_image_once_in_running_statistics():
    tiles = draw_tiles()
    with_graph, without_graph = make_net(micro_batch=10), make_net(micro_batch=10)
    embed(with_graph, tiles).sum().backward()
    with torch.no_grad():
        without_graph(tiles)
    state = with_graph.state_dict()
    for name, value in without_graph.state_dict().items():
        torch.testing.assert_close(state[name], value, rtol=0, atol=0)
    assert state["encoder.bn1.num_batches_tracked"] == 3
    assert with_graph.encoder.bn1.momentum == make_net().encoder.bn1.momentum


def held_bytes(net, tiles):
    """Bytes that the graph of a forward pass holds, other than weights."""
    held = {}
    weights = {value.untyped_storage().data_ptr() for value in net.parameters()}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            held[storage.data_ptr()] = (storage.nbytes(), tensor)  # kept, so that no address comes twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        embed(net, tiles)
    return sum(size for size, _ in held.values())


def test_encode_in_parts_keeps_no_activations():
    tiles = draw_tiles(slices=8)
    assert held_bytes(make_net(micro_batch=8), tiles) < 0.1 * held_bytes(make_net(), tiles)


def test_encode_in_parts_serves_the_teacher():
    student = make_net("convnext_atto", dropout=0.0)
    tiles, sizes = draw_tiles(), []
    expected = make_teacher(student, shared_backbone=False).embed(tiles)
    student.micro_batch = 10
    teacher = make_teacher(student, shared_backbone=False)
    teacher.encoder.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    torch.testing.assert_close(teacher.embed(tiles), expected)
    assert sizes == [10, 10, 10]
