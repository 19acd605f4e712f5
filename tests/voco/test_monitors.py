"""The monitors tell a network that knows places from one that does not, and from one that has collapsed."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from src.voco.crops import CropGrid, overlap_labels
from src.voco.losses import Embeddings
from src.voco.monitors import COLLAPSE_STD, Monitors, wilson_interval

BASES = 9


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
    monitors = Monitors()
    update(monitors, student, teacher, label, patient)
    return monitors.read()


def update(monitors, student, teacher, label, patient):
    student, teacher = (Embeddings.split(each, label.shape[1]) for each in (student, teacher))
    monitors.update(student, teacher, label, patient, teacher.bases, patient)


def test_monitors_of_perfect_embeddings():
    label, patient = draw_batch()
    known = embed_places(label)
    figures = read(known, known, label, patient)
    assert figures["cross_placing"] == figures["intra_placing"] == 1
    assert figures["cross_trials"] == 8 * 7 * 2 and figures["intra_trials"] == 8 * 2
    assert figures["cross_low"] > 0.9
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
    monitors = Monitors()
    update(monitors, known, known, label, patient)
    update(monitors, wrong, wrong, label, patient)
    figures = monitors.read()
    assert figures["intra_placing"] == 0.5 and figures["intra_trials"] == 32
    update(monitors, known, known, label, patient)
    assert monitors.read()["intra_placing"] == 1


def test_wilson_interval_agrees_with_the_published_example():
    """Newcombe 1998, table I: 81 of 263 gives 0.2553 to 0.3662."""
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)


def test_cross_placing_of_single_volumes_uses_the_step_before():
    label, patient = draw_batch(volumes=3)
    known = embed_places(label)
    monitors = Monitors()
    for volume in range(3):
        each = slice(volume, volume + 1)
        update(monitors, known[each], known[each], label[each], patient[each])
    figures = monitors.read()
    assert figures["cross_trials"] == 2 * 2  # the first step has none before it
    assert figures["cross_placing"] == 1


def test_read_adds_up_several_processes():
    label, patient = draw_batch()
    known, wrong = embed_places(label), embed_places(1 - label)
    monitors = Monitors()
    update(monitors, known, known, label, patient)
    other = Monitors()
    update(other, wrong, wrong, label, patient)
    figures = monitors.read(lambda sums: sums + torch.stack(list(other.sums.values())))
    assert figures["intra_placing"] == 0.5 and figures["intra_trials"] == 32
