"""The objectives compare the right volumes, train the student alone, and give each volume its own loss."""

import pytest
import torch

from src.voco.losses import cosine_similarity, placing_loss, positive_loss, squared_negatives
from src.voco.objectives import (
    Embeddings,
    GlobalBases,
    OverlapObjective,
    PlacingObjective,
    build_objective,
)
from src.voco.options import VocoOptions

CROPS, BASES = 2, 4
V1 = OverlapObjective(both_directions=True, negatives="square", inter_volume=False)
V2 = OverlapObjective(both_directions=False, negatives="square", inter_volume=True)
LARGE = OverlapObjective(both_directions=False, negatives="log", inter_volume=True)
PLUS = PlacingObjective(temperature=0.1, inter_volume=True, planes=1)
ALL = pytest.mark.parametrize("objective", [V1, V2, LARGE, PLUS], ids=["v1", "v2", "large", "plus"])


def draw(volumes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(volumes, CROPS + BASES, 16, generator=generator) for _ in range(2))
    label = torch.randn(volumes, CROPS, BASES, generator=generator).relu() + 0.01
    label[..., -1] = 0
    return student, teacher, label / label.sum(-1, keepdim=True)


def evaluate(objective, student, teacher, label, share=slice(None)):
    """The terms of the process that holds the volumes `share`."""
    own = [Embeddings.split(each[share], CROPS) for each in (student, teacher)]
    everyone = GlobalBases(student[:, CROPS:], teacher[:, CROPS:], first=share.start or 0)
    return objective(*own, label[share], everyone)


def test_v2_compares_the_students_crops_with_the_teachers_bases():
    student, teacher, label = draw()
    terms = evaluate(V2, student, teacher, label)
    cosine = cosine_similarity(student[:, :CROPS], teacher[:, CROPS:])
    torch.testing.assert_close(terms["positive"], positive_loss(label, cosine))
    torch.testing.assert_close(terms["negative"], squared_negatives(label, cosine))


def test_v1_takes_the_mean_of_both_directions():
    student, teacher, label = draw()
    forth = cosine_similarity(student[:, :CROPS], teacher[:, CROPS:])
    back = cosine_similarity(teacher[:, :CROPS], student[:, CROPS:])
    terms = evaluate(V1, student, teacher, label)
    torch.testing.assert_close(terms["positive"], positive_loss(label, forth, back))
    assert terms.keys() == {"positive", "negative", "regulariser"}


def test_each_volume_is_compared_with_the_bases_of_the_next():
    student, teacher, label = draw()
    terms = evaluate(V2, student, teacher, label)
    for volume, following in ((0, 1), (1, 2), (2, 0)):
        target = cosine_similarity(teacher[volume, :CROPS], teacher[following, CROPS:]).relu()
        predicted = cosine_similarity(student[volume, :CROPS], student[following, CROPS:])
        torch.testing.assert_close(terms["inter_positive"][volume], positive_loss(target, predicted))
        torch.testing.assert_close(terms["inter_negative"][volume], squared_negatives(target, predicted))


def test_inter_volume_targets_have_both_positives_and_negatives():
    """Without the relu no target is ever exactly 0, and the negative term is empty."""
    terms = evaluate(V2, *draw(volumes=8))
    assert (terms["inter_negative"] > 0).any() and (terms["inter_positive"] > 0).any()


def test_plus_places_crops_among_the_bases_of_all_other_volumes_and_not_its_own():
    student, teacher, label = draw()
    terms = evaluate(PLUS, student, teacher, label)
    expected = []
    for other in (1, 2):
        forth = cosine_similarity(student[0, :CROPS], teacher[other, CROPS:])
        back = cosine_similarity(teacher[0, :CROPS], student[other, CROPS:])
        expected += [placing_loss(label[0], cosine, 0.1) for cosine in (forth, back)]
    torch.testing.assert_close(terms["inter_placing"][0], torch.stack(expected).mean())


@ALL
def test_no_gradient_reaches_the_teacher_and_all_of_the_student_gets_one(objective):
    student, teacher, label = draw()
    student.requires_grad_()
    sum(evaluate(objective, student, teacher, label).values()).mean().backward()
    assert (student.grad.norm(dim=-1) > 0).all()


@ALL
def test_a_volume_has_the_same_loss_whichever_process_holds_it(objective):
    student, teacher, label = draw(volumes=4)
    whole = evaluate(objective, student, teacher, label)
    for share in (slice(0, 2), slice(2, 4)):
        for name, values in evaluate(objective, student, teacher, label, share).items():
            torch.testing.assert_close(values, whole[name][share])


@ALL
def test_every_term_has_one_float32_value_a_volume(objective):
    student, teacher, label = draw()
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
def test_options_choose_the_objective(changes, expected):
    assert build_objective(VocoOptions(data=("set",), output="run", **changes)) == expected
