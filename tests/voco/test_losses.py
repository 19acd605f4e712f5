"""Losses: formulas, finite values and gradients; objectives: which volumes and networks are compared."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from src.voco.comparisons import Comparisons, Embeddings, GlobalBases
from src.voco.losses import (
    EPSILON,
    OverlapObjective,
    PlacingObjective,
    base_regulariser,
    build_objective,
    contrast_loss,
    log_negatives,
    placing_loss,
    positive_loss,
    squared_negatives,
)
from src.voco.options import VocoOptions

CROPS, BASES = 2, 4
V1 = OverlapObjective(both_directions=True, negatives="square", inter_volume=False)
V2 = OverlapObjective(both_directions=False, negatives="square", inter_volume=True)
LARGE = OverlapObjective(both_directions=False, negatives="log", inter_volume=True)
PLUS = PlacingObjective(temperature=0.1, inter_volume=True, planes=1)
ALL = pytest.mark.parametrize("objective", [V1, V2, LARGE, PLUS], ids=["v1", "v2", "large", "plus"])


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def cosine_similarity(first, second):
    """The straightforward formula: (..., R, D) and (..., N, D) -> (..., R, N)."""
    return normalize(first, dim=-1) @ normalize(second, dim=-1).mT


def test_positive_loss_of_a_row_calculated_by_hand():
    label, cosine = torch.tensor([[0.75, 0.25, 0.0]]), torch.tensor([[0.5, 0.25, 0.9]])
    expected = -0.75 * math.log(0.75) / 1.0  # the second matches, the third is no positive
    assert positive_loss(label, cosine).item() == pytest.approx(expected, abs=1e-5)


def test_squared_negatives_are_the_mean_over_pairs_without_overlap():
    label, cosine = torch.tensor([[1.0, 0.0, 0.0, 0.0]]), torch.tensor([[0.1, 0.6, -0.8, 0.3]])
    assert squared_negatives(label, cosine).item() == pytest.approx((0.36 + 0 + 0.09) / 3, abs=1e-6)
    assert squared_negatives(torch.ones(1, 4), cosine).item() == 0


def test_positive_loss_and_its_gradient_are_always_finite():
    """With the bare cosine, `log(1 - |y - cos|)` is NaN wherever `y - cos > 1`."""
    label, cosine = torch.meshgrid(torch.linspace(0, 1, 21), torch.linspace(-1, 1, 41), indexing="ij")
    cosine = cosine.clone().requires_grad_()
    loss = positive_loss(label, cosine)
    loss.backward()
    assert loss.isfinite() and loss > 0
    assert cosine.grad.isfinite().all()
    assert torch.log(1 - (label - cosine.detach()).abs() + 1e-6).isnan().any()  # the form that is avoided


def test_positive_loss_pulls_up_negative_cosines():
    """A clamp to 0..1 alone gives such a pair no gradient: it would stay lost."""
    label = torch.tensor([[0.6, 0.4, 0.0]])
    cosine = torch.tensor([[-0.5, 0.3, -0.5]], requires_grad=True)
    positive_loss(label, cosine).backward()
    assert cosine.grad[0, 0].item() == pytest.approx(-0.6, abs=1e-5)  # -y / sum(y)
    assert cosine.grad[0, 1] < 0  # below its label: pulled up
    assert cosine.grad[0, 2] == 0  # a negative that is already apart


def test_positive_loss_is_continuous_where_the_cosine_changes_sign():
    label = torch.tensor([[0.5]])
    below, above = (positive_loss(label, torch.tensor([[value]])) for value in (-1e-6, 1e-6))
    assert below.item() == pytest.approx(above.item(), abs=1e-5)


def test_base_regulariser_gives_every_base_a_gradient():
    """Summed over i < j with the second of a pair fixed, the last base has no gradient."""
    bases = draw(1, 5, 8).abs().requires_grad_()
    base_regulariser(normalize(bases, dim=-1)).sum().backward()
    assert (bases.grad.norm(dim=-1) > 1e-3).all()


def test_base_regulariser_is_the_mean_over_pairs():
    bases = draw(2, 4, 6)
    cosine = cosine_similarity(bases, bases)
    pairs = [cosine[:, i, j].relu() ** 2 for i in range(4) for j in range(i + 1, 4)]
    torch.testing.assert_close(base_regulariser(normalize(bases, dim=-1)), torch.stack(pairs).mean(0))
    assert base_regulariser(torch.eye(4)).item() == 0


def test_positive_loss_of_two_directions_predicts_by_their_mean():
    label = torch.tensor([[0.5, 0.5, 0.0]])
    first, second = torch.tensor([[0.8, 0.5, 0.4]]), torch.tensor([[0.4, 0.5, -0.9]])
    expected = -0.5 * math.log(1 - abs(0.5 - 0.6))
    assert positive_loss(label, first, second).item() == pytest.approx(expected, abs=1e-5)
    assert squared_negatives(label, first, second).item() == pytest.approx(0.2**2)


def test_positive_loss_of_two_directions_pulls_up_the_negative_one():
    label = torch.tensor([[1.0]])
    cosines = [torch.tensor([[value]], requires_grad=True) for value in (0.3, -0.3)]
    positive_loss(label, *cosines).backward()
    assert all(cosine.grad.item() < 0 for cosine in cosines)


def test_log_negatives_are_finite_at_one():
    label, cosine = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[0.2, 0.5, -0.5]])
    assert log_negatives(label, cosine).item() == pytest.approx(-math.log(0.5) / 2, abs=1e-5)
    assert log_negatives(torch.zeros(1, 1), torch.ones(1, 1)).item() == pytest.approx(
        -math.log(EPSILON), rel=0.02
    )


def test_placing_loss_is_a_cross_entropy():
    label, cosine = torch.tensor([[0.75, 0.25]]), torch.tensor([[0.6, 0.4]])
    odds = math.exp(0.2 / 0.1)
    expected = -0.75 * math.log(odds / (1 + odds)) - 0.25 * math.log(1 / (1 + odds))
    assert placing_loss(label, cosine, temperature=0.1).item() == pytest.approx(expected, abs=1e-5)


def test_placing_loss_is_least_if_the_softmax_equals_the_label():
    label = torch.rand(3, 5, generator=torch.Generator().manual_seed(0)).softmax(-1)
    best = placing_loss(label, 0.1 * label.log(), temperature=0.1)
    entropy = -(label * label.log()).sum(-1).mean()
    torch.testing.assert_close(best, entropy)
    assert placing_loss(label, 0.1 * label.log() + 0.02 * draw(3, 5), temperature=0.1) > best


def test_placing_loss_over_planes_ignores_the_height():
    """Probability may lie in either plane; in-plane it must lie right."""
    label = torch.tensor([[1.0, 0.0, 0.0, 0.0]])  # two planes of two bases
    right, wrong = torch.tensor([[-1.0, -1.0, 1.0, -1.0]]), torch.tensor([[-1.0, 1.0, -1.0, -1.0]])
    assert placing_loss(label, right, temperature=0.1, planes=2).item() == pytest.approx(0, abs=1e-6)
    assert placing_loss(label, right, temperature=0.1).item() > 10
    assert placing_loss(label, wrong, temperature=0.1, planes=2).item() > 10


def draw_volumes(volumes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(volumes, CROPS + BASES, 16, generator=generator) for _ in range(2))
    label = torch.randn(volumes, CROPS, BASES, generator=generator).relu() + 0.01
    label[..., -1] = 0
    return student, teacher, label / label.sum(-1, keepdim=True)


def evaluate(objective, student, teacher, label, share=slice(None)):
    """The terms of the process that holds the volumes `share`."""
    own = [Embeddings.split(each[share], CROPS) for each in (student, teacher)]
    everyone = (Embeddings.split(each, CROPS).bases for each in (student, teacher))
    pairs = Comparisons(*own, GlobalBases(*everyone, first=share.start or 0))
    return objective(pairs, label[share])


def test_overlap_objective_v2_compares_student_crops_with_teacher_bases():
    student, teacher, label = draw_volumes()
    terms = evaluate(V2, student, teacher, label)
    cosine = cosine_similarity(student[:, :CROPS], teacher[:, CROPS:])
    torch.testing.assert_close(terms["positive"], positive_loss(label, cosine))
    torch.testing.assert_close(terms["negative"], squared_negatives(label, cosine))


def test_overlap_objective_v1_averages_both_directions():
    student, teacher, label = draw_volumes()
    forth = cosine_similarity(student[:, :CROPS], teacher[:, CROPS:])
    back = cosine_similarity(teacher[:, :CROPS], student[:, CROPS:])
    terms = evaluate(V1, student, teacher, label)
    torch.testing.assert_close(terms["positive"], positive_loss(label, forth, back))
    assert terms.keys() == {"positive", "negative", "regulariser"}


def test_overlap_objective_compares_each_volume_with_the_next():
    student, teacher, label = draw_volumes()
    terms = evaluate(V2, student, teacher, label)
    for volume, following in ((0, 1), (1, 2), (2, 0)):
        target = cosine_similarity(teacher[volume, :CROPS], teacher[following, CROPS:]).relu()
        predicted = cosine_similarity(student[volume, :CROPS], student[following, CROPS:])
        torch.testing.assert_close(terms["inter_positive"][volume], positive_loss(target, predicted))
        torch.testing.assert_close(terms["inter_negative"][volume], squared_negatives(target, predicted))


def broadcast_placing(objective, student, teacher, label):
    """The terms of `PlacingObjective` by the formula, volume by volume and without shared products."""
    own, among_others = [], []
    for volume, target in enumerate(label):
        directions = (student[volume, :CROPS], teacher), (teacher[volume, :CROPS], student)
        losses = [
            [
                placing_loss(
                    target, cosine_similarity(crops, bases[other, CROPS:]), objective.temperature, planes
                )
                for crops, bases in directions
            ]
            for other in range(len(label))
            for planes in ([1] if other == volume else [objective.planes])
        ]
        means = torch.stack([torch.stack(pair).mean() for pair in losses])
        own.append(means[volume])
        among_others.append((means.sum() - means[volume]) / (len(label) - 1))
    return {"placing": torch.stack(own), "inter_placing": torch.stack(among_others)}


@pytest.mark.parametrize("planes", [1, 2])
def test_placing_objective_equals_the_formula_with_its_gradient(planes):
    """All other volumes, both directions; summed over planes among others only."""
    objective = PlacingObjective(temperature=0.1, inter_volume=True, planes=planes)
    student, teacher, label = draw_volumes(volumes=4)
    found = []
    for terms_of in (broadcast_placing, evaluate):
        leaf = student.clone().requires_grad_()
        terms = terms_of(objective, leaf, teacher, label)
        sum(terms.values()).mean().backward()
        found.append((terms, leaf.grad))
    (expected, gradient), (terms, shared) = found
    assert terms.keys() == expected.keys()
    for name, value in terms.items():
        torch.testing.assert_close(value, expected[name])
    torch.testing.assert_close(shared, gradient)


@ALL
def test_objectives_train_all_of_the_student_and_not_the_teacher(objective):
    student, teacher, label = draw_volumes()
    student.requires_grad_()
    sum(evaluate(objective, student, teacher, label).values()).mean().backward()
    assert (student.grad.norm(dim=-1) > 0).all()


@ALL
def test_objectives_do_not_depend_on_the_process_of_a_volume(objective):
    student, teacher, label = draw_volumes(volumes=4)
    whole = evaluate(objective, student, teacher, label)
    for share in (slice(0, 2), slice(2, 4)):
        for name, values in evaluate(objective, student, teacher, label, share).items():
            torch.testing.assert_close(values, whole[name][share])


@ALL
def test_objectives_have_one_float32_value_per_volume(objective):
    student, teacher, label = draw_volumes()
    for term in evaluate(objective, student.bfloat16(), teacher.bfloat16(), label).values():
        assert term.shape == (3,) and term.dtype == torch.float32 and term.isfinite().all()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, V2),
        ({"directions": "both", "inter_volume": False}, V1),
        ({"negatives": "log"}, LARGE),
        ({"objective": "softmax"}, PLUS),
        ({"objective": "softmax", "grid_z": 2}, PlacingObjective(0.1, True, planes=2)),
    ],
    ids=["v2", "v1", "large", "plus", "z-aware"],
)
def test_build_objective_follows_the_options(changes, expected):
    assert build_objective(VocoOptions(data=("set",), output="run", **changes)) == expected


def test_contrast_loss_is_the_formula():
    views = normalize(draw(3, 8, 16), dim=-1)  # three volumes, four crops
    losses = []
    for volume in range(3):
        for view in range(8):
            cosines = (views @ views[volume, view]).flatten() / 0.2  # (24,)
            is_other = torch.arange(24) != 8 * volume + view
            other = 8 * volume + (view + 4) % 8
            losses.append(torch.logsumexp(cosines[is_other], 0) - cosines[other])
    expected = torch.stack(losses).view(3, 8).mean(1)
    torch.testing.assert_close(contrast_loss(views, views, 0, 0.2), expected)


def test_contrast_loss_equals_that_of_lightly():
    lightly = pytest.importorskip("lightly.loss", reason="no requirement of the kit")
    views = normalize(draw(3, 8, 16), dim=-1)
    first, second = (half.flatten(0, 1) for half in views.chunk(2, dim=1))
    expected = lightly.NTXentLoss(temperature=0.2)(first, second)
    torch.testing.assert_close(contrast_loss(views, views, 0, 0.2).mean(), expected)


def test_contrast_loss_does_not_depend_on_how_a_batch_is_split():
    views = normalize(draw(4, 6, 16), dim=-1)
    whole = contrast_loss(views, views, 0, 0.1)
    parts = [contrast_loss(views[start : start + 2], views, start, 0.1) for start in (0, 2)]
    torch.testing.assert_close(torch.cat(parts), whole)
