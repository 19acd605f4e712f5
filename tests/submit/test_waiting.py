"""Waiting for Kaggle: what passes, what does not, and what may be an old answer."""

import time
from collections.abc import Iterable

import pytest

from src.core.errors import UserError
from src.submit.failures import FAILURES, FINAL, KaggleError
from src.submit.waiting import PATIENCE, Doubt, wait_for


class Looks:
    """Answers, one after the other, the last for ever; a kind of failure in brackets is raised."""

    def __init__(self, answers: Iterable[str]) -> None:
        self.answers, self.count = list(answers), 0

    def __call__(self) -> str:
        answer = self.answers[min(self.count, len(self.answers) - 1)]
        self.count += 1
        if answer.startswith("["):
            raise KaggleError(answer.strip("[]"), f"it is {answer}")
        return answer


def wait(looks: Looks, poll_s: float = 0.0, limit_s: float = 60.0) -> str:
    return wait_for(
        "notebook",
        looks,
        lambda answer: answer in ("complete", "error"),
        poll_s=poll_s,
        limit_s=limit_s,
        later="kaggle kernels status a/b",
    )


def test_changes_are_shown_once(capsys):
    assert wait(Looks(["queued", "queued", "running", "running", "complete"])) == "complete"
    shown = [line.split("  ")[1] for line in capsys.readouterr().out.splitlines()]
    assert shown == ["notebook: queued", "notebook: running", "notebook: complete"]


@pytest.mark.parametrize("kind", [*sorted({failure.kind for failure in FAILURES} - FINAL), "other"])
def test_every_failure_that_may_pass_is_borne_for_some_looks(kind, capsys):
    looks = Looks([f"[{kind}]"] * PATIENCE + ["running"] + [f"[{kind}]"] * PATIENCE + ["complete"])
    assert wait(looks) == "complete"
    assert capsys.readouterr().err.count("; trying again") == 2 * PATIENCE


def test_a_failure_that_stays_ends_the_wait():
    looks = Looks(["[network]"])
    with pytest.raises(KaggleError, match=r"it is \[network\]"):
        wait(looks)
    assert looks.count == PATIENCE + 1


@pytest.mark.parametrize("kind", sorted(FINAL))
def test_what_only_the_user_can_mend_ends_it_at_once(kind):
    looks = Looks(["running", f"[{kind}]", "complete"])
    with pytest.raises(KaggleError):
        wait(looks)
    assert looks.count == 2


def test_a_wait_that_is_too_long_says_how_to_look_later():
    with pytest.raises(UserError, match=r"is still running after .*look later with: kaggle kernels status"):
        wait(Looks(["running"]), limit_s=-1.0)


def test_between_two_looks_time_passes_and_none_before_the_first():
    begin = time.monotonic()
    wait(Looks(["complete"]), poll_s=30.0)
    assert time.monotonic() - begin < 10.0
    begin = time.monotonic()
    wait(Looks(["running", "running", "complete"]), poll_s=0.05)
    assert time.monotonic() - begin >= 0.1


def test_an_old_answer_is_doubted_until_another_comes():
    doubt = Doubt(["complete"])
    assert doubt.covers("complete") and doubt.covers("complete")
    assert not doubt.covers("running")
    assert not doubt.covers("complete")


def test_an_answer_that_was_not_there_before_counts_at_once():
    assert not Doubt(["complete"]).covers("error")
    assert not Doubt([]).covers("complete")


def test_an_answer_that_stays_counts_in_the_end():
    doubt = Doubt(["complete", "error"])
    assert [doubt.covers("complete") for _ in range(PATIENCE + 2)] == [True] * PATIENCE + [False] * 2
