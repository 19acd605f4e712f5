"""The common training loop: steps, accumulation, resuming, and every way in which it ends in one line."""

import pytest
import torch
from torch import nn

from src.core.errors import UserError
from src.core.runtime import Runtime
from src.nn.schedule import LoopSettings, warmup_cosine
from src.nn.training import (
    CHECK_EVERY,
    MAX_SKIPPED,
    LossAndMetrics,
    Method,
    TrainingLoop,
    load_checkpoint,
)
from tests.helpers.training_runs import assert_same_training, interrupted_after_saves, read_metrics


class Regression(Method):
    """A linear network with dropout on batches drawn from their numbers."""

    name, memory_advice, failure_advice = "fold0", "lower --batch", "lower --lr"

    def __init__(self, settings):
        self.settings, self.steps, self.reports = settings, [], []
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 1))
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=0.1, momentum=0.9)

    def read(self, first_batch):
        for number in range(first_batch, self.settings.batches):
            yield self.draw(number)

    def draw(self, number):
        return torch.rand(8, 4, generator=torch.Generator().manual_seed(number))

    def compute_loss(self, batch, number, step):
        loss = (self.network(batch).squeeze(1) - batch.sum(1)).square().mean()
        return LossAndMetrics(loss, {"loss": loss.detach()})

    def after_step(self, step):
        self.steps.append(step)

    def report(self, at, means):
        self.reports.append(at)
        return {**means, "lr": at.lr}

    def tensors(self):
        return {"network": self.network.state_dict()}

    def restore(self, saved):
        self.network.load_state_dict(saved["network"])

    def name_series(self, number):
        return f"10/{number}"


def make_loop(folder, method=Regression, **changes):
    given = {"steps": 6, "warmup_steps": 2, "lr": 0.1, "clip_norm": 1.0, "seed": 1, "log_every": 2}
    settings = LoopSettings(**(given | {"save_every": 2} | changes))
    identity = {"options": {"lr": settings.lr}, "series": "a"}
    return TrainingLoop(method(settings), settings, Runtime.create("fp32"), folder, identity)


def test_run_logs_and_saves_at_its_intervals(tmp_path):
    loop = make_loop(tmp_path, steps=5)
    loop.run()
    assert read_metrics(tmp_path)["step"].tolist() == ["2", "4", "5"]
    assert [(at.step, at.batches, at.is_last) for at in loop.method.reports] == [
        (2, 2, False),
        (4, 2, False),
        (5, 1, True),
    ]
    assert load_checkpoint(tmp_path / "last.pt")["step"] == 5


def test_resume_gives_the_result_of_an_uninterrupted_run(tmp_path):
    make_loop(tmp_path / "whole").run()
    with interrupted_after_saves():
        make_loop(tmp_path / "broken").run()
    again = make_loop(tmp_path / "broken")
    again.resume(tmp_path / "broken" / "last.pt", "train_it.py")
    assert again.step == 2
    again.run()
    assert_same_training(tmp_path / "whole", tmp_path / "broken")
    again.resume(tmp_path / "broken" / "last.pt", "train_it.py")
    again.run()  # of a finished run no step is left
    assert again.method.steps == [3, 4, 5, 6]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read .*: delete it, or start a new run"),
        (b"no checkpoint", "cannot be read"),
        (b"hello\n", r"cannot be read \(KeyError\)"),
        ({"step": 1}, "is not a checkpoint of this version of train_it.py"),
        (
            {"options": {"lr": 0.2}},
            "was made with --lr 0.2, not 0.1: start from scratch with --resume never",
        ),
        ({"series": "b"}, "was made with other series"),
    ],
)
def test_resume_refuses_damaged_checkpoints_and_those_of_other_runs(tmp_path, content, message):
    loop = make_loop(tmp_path)
    loop.run()
    if isinstance(content, bytes):
        (tmp_path / "last.pt").write_bytes(content)
    else:
        saved = content if "step" in content else load_checkpoint(tmp_path / "last.pt") | content
        torch.save(saved, tmp_path / "last.pt")
    with pytest.raises(UserError, match=message):
        make_loop(tmp_path).resume(tmp_path / "last.pt", "train_it.py")


def test_run_steps_once_per_group_and_at_the_end_of_an_epoch(tmp_path):
    """Two epochs of five batches: groups of 2, 2 and 1."""
    settings = {"steps": 6, "accumulation": 2, "epoch_batches": 5, "log_every": 5, "save_every": 5}
    loop = make_loop(tmp_path, **settings)
    assert loop.settings.batches == 10
    groups = [loop.settings.group(number) for number in range(5)]
    assert [size for size, *_ in groups] == [2, 2, 2, 2, 1]
    assert [is_last for *_, is_last in groups] == [False, True, False, True, True]
    loop.run()
    assert loop.method.steps == [1, 2, 3, 4, 5, 6]


class Halves(Regression):
    """The batches of `Regression`, each in two parts."""

    def draw(self, number):
        return super().draw(number // 2)[number % 2 :: 2]


def test_run_accumulates_the_gradient_of_a_whole_batch(tmp_path):
    halves = {"accumulation": 2, "epoch_batches": 12, "log_every": 4, "save_every": 4}
    loops = [
        make_loop(tmp_path / "whole", clip_norm=100.0),
        make_loop(tmp_path / "halves", Halves, clip_norm=100.0, **halves),
    ]
    for loop in loops:
        loop.method.network[0].p = 0.0  # dropout draws other noise for other batches
        loop.run()
    whole, halves = (loop.method.network.state_dict() for loop in loops)
    for name in whole:
        torch.testing.assert_close(halves[name], whole[name], rtol=1e-5, atol=1e-6)


def test_run_ends_in_one_line_when_memory_is_too_small(tmp_path):
    class Hungry(Regression):
        def compute_loss(self, batch, number, step):
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(UserError, match="memory is too small for a step: lower --batch"):
        make_loop(tmp_path, Hungry).run()


def lost_at(*numbers, by="loss"):
    """A method whose loss, or gradient alone, is not finite in some batches."""

    class Lost(Regression):
        def compute_loss(self, batch, number, step):
            loss, metrics = super().compute_loss(batch, number, step)
            if number in numbers:
                loss = loss * float("nan") if by == "loss" else (loss - loss.detach()).sqrt()
            return LossAndMetrics(loss, metrics)

    return Lost


@pytest.mark.parametrize("by", ["loss", "gradient"])
def test_run_names_step_and_series_of_a_loss_that_is_not_finite(tmp_path, by):
    with pytest.raises(UserError, match=r"fold0, step 4: loss or gradient is not finite .* 10/3: lower --lr"):
        make_loop(tmp_path, lost_at(3, by=by)).run()
    assert load_checkpoint(tmp_path / "last.pt")["step"] == 2  # finite


def test_run_names_the_first_lost_batch_of_a_check(tmp_path):
    """All later ones are lost as well; nothing of them is logged or saved."""
    loop = make_loop(tmp_path, lost_at(9), steps=12, log_every=6, save_every=6)
    with pytest.raises(UserError, match=r"step 10: .* for series 10/9"):
        loop.run()
    assert loop.step == 12
    assert read_metrics(tmp_path)["step"].tolist() == ["6"]
    saved = load_checkpoint(tmp_path / "last.pt")
    assert saved["step"] == 6 and all(value.isfinite().all() for value in saved["network"].values())


def test_run_checks_long_intervals_in_parts(tmp_path):
    steps = 3 * CHECK_EVERY
    loop = make_loop(tmp_path, lost_at(CHECK_EVERY + 1), steps=steps, log_every=steps, save_every=steps)
    with pytest.raises(UserError, match=f"step {CHECK_EVERY + 2}: "):
        loop.run()
    assert loop.step == 2 * CHECK_EVERY


def test_run_names_the_step_of_an_accumulated_batch(tmp_path):
    """Two epochs of five batches, of 2, 2 and 1 per step: batch 7 is the first epoch's third step and two."""
    settings = {"steps": 6, "accumulation": 2, "epoch_batches": 5, "log_every": 5, "save_every": 5}
    with pytest.raises(UserError, match=r"step 5: .* 10/7"):
        make_loop(tmp_path, lost_at(7), **settings).run()


def in_fp16(monkeypatch, loop):
    """The rules of fp16 on a CPU, where its scaler would skip the optimiser's step."""
    monkeypatch.setattr(Runtime, "precision", "fp16")
    step = loop.method.optimizer.step

    def skip_lost():
        if all(value.grad.isfinite().all() for value in loop.method.network.parameters()):
            step()

    monkeypatch.setattr(loop.method.optimizer, "step", skip_lost)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_run_ends_when_the_scale_of_fp16_never_settles(tmp_path, monkeypatch, accumulation):
    """fp16's scaler takes a gradient that is not finite for an overflow, and would skip steps for ever."""
    accumulated = {"accumulation": accumulation, "epoch_batches": 40 * accumulation}
    method = lost_at(*range(80), by="gradient")
    loop = make_loop(tmp_path, method, steps=40, log_every=40 * accumulation, **accumulated)
    in_fp16(monkeypatch, loop)
    with pytest.raises(UserError, match=f"step {MAX_SKIPPED}: "):
        loop.run()


def test_run_goes_on_after_fewer_skipped_steps_of_fp16(tmp_path, monkeypatch):
    skipped = [*range(MAX_SKIPPED - 1), *range(MAX_SKIPPED, 2 * MAX_SKIPPED - 1)]
    loop = make_loop(tmp_path, lost_at(*skipped, by="gradient"), steps=2 * MAX_SKIPPED)
    in_fp16(monkeypatch, loop)
    loop.run()
    assert all(value.isfinite().all() for value in loop.method.network.parameters())


def test_run_ends_in_fp16_when_the_loss_is_not_finite(tmp_path, monkeypatch):
    loop = make_loop(tmp_path, lost_at(3))
    in_fp16(monkeypatch, loop)
    with pytest.raises(UserError, match="step 4: "):
        loop.run()


def test_warmup_cosine_rises_linearly_and_falls_to_0():
    rates = [warmup_cosine(step, total_steps=10, warmup_steps=2, base_lr=1.0) for step in range(11)]
    assert rates[:3] == [0.5, 1.0, 1.0] and rates[6] == pytest.approx(0.5) and rates[10] == 0
    assert rates[2:] == sorted(rates[2:], reverse=True)
