"""The monitors tell a network that knows places from one that does not, and from one that has collapsed."""

import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from src.voco.comparisons import Comparisons, Embeddings, GlobalBases
from src.voco.crops import CropGrid, overlap_labels
from src.voco.monitors import COLLAPSE_STD, Monitors, placing_interval, wilson_interval

BASES = 9
PATIENTS = 64


def draw_batch(volumes=8, crops=2, seed=0):
    grid = CropGrid((48, 48), (3, 3))
    starts = grid.random_starts(np.random.default_rng(seed), volumes * crops)
    label = overlap_labels(starts, grid.base_starts(), grid.crop).reshape(volumes, crops, BASES)
    return torch.from_numpy(label), torch.arange(volumes)


def embed_places(label):
    """Embeddings of a network that knows where every crop lies, whosever it is."""
    bases = torch.eye(BASES).expand(len(label), BASES, BASES)
    return torch.cat([label @ torch.eye(BASES), bases], dim=1)


def read(student, teacher, label, patient):
    monitors = Monitors(PATIENTS)
    update(monitors, student, teacher, label, patient)
    return monitors.read()


def update(monitors, student, teacher, label, patient):
    student, teacher = (Embeddings.split(each, label.shape[1]) for each in (student, teacher))
    pairs = Comparisons(student, teacher, GlobalBases(student.bases, teacher.bases, first=0))
    monitors.update(pairs, label, patient, patient)


def test_monitors_of_perfect_embeddings():
    label, patient = draw_batch()
    known = embed_places(label)
    figures = read(known, known, label, patient)
    assert figures["cross_placing"] == figures["intra_placing"] == 1
    assert figures["cross_trials"] == 8 * 7 * 2 and figures["intra_trials"] == 8 * 2
    assert 0.6 < figures["cross_low"] < 0.8 and figures["cross_high"] == 1  # of 8 patients, not 112
    assert figures["positive_similarity"] > figures["negative_similarity"]


def test_monitors_of_random_embeddings_are_at_chance():
    label, patient = draw_batch(volumes=64)
    generator = torch.Generator().manual_seed(1)
    embeddings = torch.randn(64, 2 + BASES, 32, generator=generator)
    figures = read(embeddings, embeddings, label, patient)
    assert figures["cross_placing"] == pytest.approx(1 / BASES, abs=0.02)


def test_monitors_of_embeddings_private_to_each_patient():
    """What matching shared pixels achieves: right inside a patient, at chance across patients."""
    label, patient = draw_batch(volumes=16)
    known = embed_places(label)
    generator = torch.Generator().manual_seed(2)
    turns = torch.linalg.qr(torch.randn(16, 64, 64, generator=generator)).Q  # one code a patient
    private = F.pad(known, (0, 64 - BASES)) @ turns
    figures = read(private, private, label, patient)
    assert figures["intra_placing"] == 1
    assert figures["cross_placing"] < 0.25


def test_cross_placing_excludes_series_of_the_same_patient():
    label, _ = draw_batch(volumes=3)
    known = embed_places(label)
    assert read(known, known, label, torch.tensor([0, 0, 1]))["cross_trials"] == 4 * 2
    assert "cross_placing" not in read(known, known, label, torch.tensor([0, 0, 0]))


def test_embedding_std_is_zero_for_a_collapse_and_one_in_balance():
    label, patient = draw_batch()
    constant = torch.ones(8, 2 + BASES, 32) + 1e-4 * torch.randn(8, 2 + BASES, 32)
    assert read(constant, constant, label, patient)["embedding_std"] < COLLAPSE_STD
    balanced = torch.randn(8, 2 + BASES, 256, generator=torch.Generator().manual_seed(3))
    assert read(balanced, balanced, label, patient)["embedding_std"] == pytest.approx(1, abs=0.02)


def test_read_averages_over_batches_and_resets():
    label, patient = draw_batch()
    known, wrong = embed_places(label), embed_places(1 - label)
    monitors = Monitors(PATIENTS)
    update(monitors, known, known, label, patient)
    update(monitors, wrong, wrong, label, patient)
    figures = monitors.read()
    assert figures["intra_placing"] == 0.5 and figures["intra_trials"] == 32
    update(monitors, known, known, label, patient)
    assert monitors.read()["intra_placing"] == 1


def test_wilson_interval_agrees_with_the_published_example():
    """Newcombe 1998, table I: 81 of 263 gives 0.2553 to 0.3662."""
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)


def simulate_placing(rng, spread, patients=120, steps=15, volumes=16, crops=4):
    """Hits of each volume's crops with each volume's bases, (steps, volumes, volumes), and the patients.

    The chance of a hit depends on the crop, its patient and the patient of the bases.
    """
    effects = rng.normal(0, spread, (2, patients))  # as crops, as bases
    effects[1] = 0.6 * effects[1] + 0.4 * effects[0]
    patient = np.stack([rng.permutation(patients)[:volumes] for _ in range(steps)])
    of_crops = effects[0][patient][..., None] + rng.normal(0, spread, (steps, volumes, crops))
    odds = of_crops[:, :, None] + effects[1][patient][:, None, :, None]  # (steps, volumes, volumes, crops)
    hits = (rng.random(odds.shape) < 1 / (1 + np.exp(-odds))).sum(-1)
    hits[:, np.arange(volumes), np.arange(volumes)] = 0  # a patient's own bases
    return hits, patient


def count_placing(hits, patient, patients=120, crops=4):
    """The sums of `Monitors`, from all steps at once."""
    trials = np.broadcast_to(crops * (1 - np.eye(hits.shape[1])), hits.shape)
    by_patient = np.zeros((patients, 4))
    for column, (values, axis) in enumerate([(hits, 2), (trials, 2), (hits, 1), (trials, 1)]):
        np.add.at(by_patient[:, column], patient, values.sum(axis))
    return by_patient, np.array([(hits**2).sum(), (hits * trials).sum(), (trials**2).sum()])


def test_placing_interval_covers_the_share_of_clustered_trials():
    """In 95 of 100 experiments; the interval of independent trials does in less than half."""
    rng = np.random.default_rng(0)
    covered, covered_by_wilson = [], []
    for _ in range(300):
        by_patient, pairs = count_placing(*simulate_placing(rng, spread=0.8))
        low, high = placing_interval(by_patient, pairs)
        covered.append(low < 0.5 < high)  # the effects are symmetric
        low, high = wilson_interval(*by_patient[:, :2].sum(0))
        covered_by_wilson.append(low < 0.5 < high)
    assert 0.91 <= np.mean(covered) <= 0.98
    assert np.mean(covered_by_wilson) < 0.5


def test_placing_interval_of_independent_trials_is_wilsons():
    rng = np.random.default_rng(0)
    ratios = []
    for _ in range(50):
        by_patient, pairs = count_placing(*simulate_placing(rng, spread=0.0))
        ends = placing_interval(by_patient, pairs), wilson_interval(*by_patient[:, :2].sum(0))
        widths = [high - low for low, high in ends]
        ratios.append(widths[0] / widths[1])
    assert 0.98 < np.mean(ratios) < 1.15


def test_monitors_count_hits_by_patient_and_pair():
    """Against the formula, trial by trial; two volumes have the same patient."""
    label, _ = draw_batch(volumes=5)
    patient = torch.tensor([3, 0, 3, 1, 2])
    embeddings = torch.randn(5, 2 + BASES, 16, generator=torch.Generator().manual_seed(4))
    by_patient, squares = np.zeros((4, 4)), np.zeros(3)
    unit = F.normalize(embeddings, dim=-1)
    for crops, bases in itertools.product(range(5), repeat=2):
        one, other = int(patient[crops]), int(patient[bases])
        if one == other:
            continue
        placed = (unit[crops, :2] @ unit[bases, 2:].T).argmax(-1)
        is_right = label[crops] == label[crops].amax(-1, keepdim=True)
        hits = float(is_right.gather(1, placed[:, None]).sum())
        by_patient[one, :2] += hits, 2
        by_patient[other, 2:] += hits, 2
        squares += hits * hits, 2 * hits, 4
    monitors = Monitors(4)
    update(monitors, embeddings, embeddings, label, patient)
    figures = monitors.read()
    assert figures["cross_placing"] == by_patient[:, 0].sum() / by_patient[:, 1].sum()
    assert (figures["cross_low"], figures["cross_high"]) == placing_interval(by_patient, squares)


def test_cross_placing_of_single_volumes_uses_the_step_before():
    label, patient = draw_batch(volumes=3)
    known = embed_places(label)
    monitors = Monitors(PATIENTS)
    for volume in range(3):
        each = slice(volume, volume + 1)
        update(monitors, known[each], known[each], label[each], patient[each])
    figures = monitors.read()
    assert figures["cross_trials"] == 2 * 2  # the first step has none before it
    assert figures["cross_placing"] == 1


def test_read_adds_up_several_processes():
    label, patient = draw_batch()
    known, wrong = embed_places(label), embed_places(1 - label)
    monitors = Monitors(PATIENTS)
    update(monitors, known, known, label, patient)
    other = Monitors(PATIENTS)
    update(other, wrong, wrong, label, patient)
    figures = monitors.read(lambda sums: sums + other.sums)
    assert figures["intra_placing"] == 0.5 and figures["intra_trials"] == 32
