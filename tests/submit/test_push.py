"""push: exact arguments of the kaggle program, its answers in order, and each failure in plain words."""

import json
import re
import shlex
import subprocess

import pytest

import submit
from src.core.errors import UserError
from src.submit import dataset_upload, notebook_run, waiting
from src.submit.failures import KaggleError
from tests.helpers.kaggle_folders import COMPETITION, DATASET, KERNEL, write_bundle, write_kernel
from tests.helpers.recording_kaggle import RecordingKaggle

NO_DATASET = (f"403 Client Error: Forbidden for url: https://www.kaggle.com/api/v1/{DATASET}\n", 1)
NO_KERNEL = (f"Cannot access kernel '{KERNEL}' (Permission 'kernels.get' was denied).\n", 1)
CREATED = "Starting upload for file infer.py\nYour private Dataset is being created.\n"
VERSIONED = "Dataset version is being created. Please check progress at x\n"
PUSHED = "Kernel version 3 successfully pushed.  Please check progress at https://www.kaggle.com/code/x\n"
NO_NETWORK = ("HTTPSConnectionPool(host='www.kaggle.com', port=443): Max retries exceeded with url: /x\n", 1)

STATUS, NUMBER = f"datasets status {DATASET}", f"datasets status {DATASET} --format json"


def has_status(name: str) -> str:
    return f'{KERNEL} has status "KernelWorkerStatus.{name}"\n'


def numbered(version: int) -> str:
    return f'{{"status": "ready", "current_version_number": {version}}}\n'


@pytest.fixture
def kaggle(tmp_path, monkeypatch) -> RecordingKaggle:
    return RecordingKaggle(tmp_path / "program", monkeypatch)


@pytest.fixture
def pushed(tmp_path):
    """Run `push` on a bundle and a notebook made here."""
    bundle = write_bundle(tmp_path / "bundle")
    kernel = write_kernel(tmp_path / "my kernel", bundle)

    def run(*more: str) -> None:
        folders = ["--bundle", str(bundle), "--kernel", str(kernel), "--poll-seconds", "0.01"]
        submit.main(["push", *folders, *more])

    run.bundle, run.kernel = str(bundle), str(kernel)
    return run


def first_time(**changes: list) -> dict[str, list]:
    """Answers to a push that goes well, of what was never there before."""
    answers = {
        "datasets_status": [NO_DATASET, "ready"],
        "datasets_create": [CREATED],
        "kernels_push": [PUSHED],
        "kernels_status": [NO_KERNEL, has_status("COMPLETE")],
    } | changes
    return {name.replace("_", " "): texts for name, texts in answers.items()}


def again(**changes: list) -> dict[str, list]:
    """Answers to a push that goes well, of a dataset whose version 4 is there."""
    answers = {"number": [numbered(4), numbered(5)], "status": ["ready"]} | changes
    return {
        NUMBER: answers.pop("number"),
        STATUS: answers.pop("status"),
        "datasets version": [VERSIONED],
        "kernels push": [PUSHED],
        "kernels status": answers.pop("kernel", [has_status("ERROR"), has_status("COMPLETE")]),
        **answers,
    }


def test_the_first_time_the_dataset_is_created(kaggle, pushed, capsys):
    kaggle.answer(
        first_time(
            datasets_status=[NO_DATASET, "blobs_received", "blobs_decompressed", "ready"],
            kernels_status=[NO_KERNEL, has_status("RUNNING"), has_status("COMPLETE")],
        )
    )
    pushed()
    status, running = ["datasets", "status", DATASET], ["kernels", "status", KERNEL]
    assert kaggle.calls == [
        status,
        ["datasets", "create", "-p", pushed.bundle, "--dir-mode", "zip"],
        *([status] * 3),
        running,
        ["kernels", "push", "-p", pushed.kernel],
        *([running] * 2),
    ]
    shown = capsys.readouterr()
    assert re.findall(rf"dataset {DATASET}: (\w+)", shown.out) == [
        "blobs_received",
        "blobs_decompressed",
        "ready",
    ]
    assert re.findall(rf"notebook {KERNEL}: (\w+)", shown.out) == ["running", "complete"]
    last = shlex.split(shown.out.splitlines()[-1])
    assert last[:7] == ["python", "submit.py", "submit", "--kernel", pushed.kernel, "--version", "3"]
    assert "Starting upload for file infer.py" in shown.err  # progress of an upload is passed on


def test_a_new_dataset_and_a_new_notebook_may_take_some_looks_to_be_there(kaggle, pushed):
    unknown = ("404 Client Error: Not Found for url: x\n", 1)
    kaggle.answer(
        first_time(
            datasets_status=[NO_DATASET, NO_DATASET, unknown, "ready"],
            kernels_status=[NO_KERNEL, NO_KERNEL, unknown, has_status("COMPLETE")],
        )
    )
    pushed()
    assert kaggle.calls.count(["kernels", "push", "-p", pushed.kernel]) == 1


def test_afterwards_a_version_is_made_and_the_old_one_is_not_taken_for_it(kaggle, pushed):
    kaggle.answer(again(number=[numbered(4), numbered(4), numbered(5)]))
    pushed("--message", " five folds ")
    status = ["datasets", "status", DATASET]
    told = [*status, "--format", "json"]
    assert kaggle.calls[:8] == [
        *(status, status, told),
        ["datasets", "version", "-p", pushed.bundle, "-m", "five folds", "--dir-mode", "zip"],
        *(status, told, status, told),
    ]


def test_an_older_number_and_one_that_cannot_be_told_are_no_new_version(kaggle, pushed):
    broken = [("Internal error encountered.\n", 1), "{}", "no table", '{"current_version_number": null}']
    kaggle.answer(again(number=[*broken, numbered(4), *broken, numbered(3), numbered(5)]))
    pushed()
    asked = kaggle.calls.count(["datasets", "status", DATASET, "--format", "json"])
    assert asked == len([*broken, 4, *broken, 3, 5])


def test_a_version_that_never_shows_ends_the_push_before_the_notebook(kaggle, pushed):
    kaggle.answer(again(number=[numbered(4)]))
    with pytest.raises(UserError, match="is still at version 4 after 0:00:01") as caught:
        pushed("--dataset-minutes", "0.01")
    assert f"; when the new version is ready: kaggle kernels push -p '{pushed.kernel}'" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not [call for call in kaggle.calls if call[:2] == ["kernels", "push"]]


def test_a_dataset_that_is_still_being_made_is_waited_for_before_its_next_version(kaggle, pushed, capsys):
    kaggle.answer(again(status=["blobs_received", "blobs_received", "blobs_decompressed", "ready"]))
    pushed()
    names = [call[1] if call[0] == "datasets" else "" for call in kaggle.calls]
    assert names.index("version") == 5  # four times the status, once the number
    shown = capsys.readouterr().out
    assert re.findall(r"before the upload: (\w+)", shown) == ["blobs_received", "blobs_decompressed", "ready"]


def test_a_dataset_that_failed_gets_another_version(kaggle, pushed):
    kaggle.answer(
        again(status=["failed", "failed", "failed", "blobs_received", "ready"], number=[numbered(1)])
    )
    pushed()
    assert ["datasets", "version"] in [call[:2] for call in kaggle.calls]


def test_a_dataset_that_was_deleted_is_created(kaggle, pushed):
    kaggle.answer(first_time(datasets_status=["deleted", "ready"]))
    pushed()
    assert kaggle.calls[1][:2] == ["datasets", "create"]


def test_warnings_before_a_status_are_no_status(kaggle, pushed):
    warning = "Warning: Looks like you're using an outdated `kaggle` version\n"
    kaggle.answer(first_time(datasets_status=[NO_DATASET, f"{warning}blobs_received", f"{warning}ready"]))
    pushed()


@pytest.mark.parametrize("old", ["COMPLETE", "ERROR"])
def test_how_the_version_before_ended_is_not_taken_for_the_new_one(kaggle, pushed, capsys, old):
    names = [old, old, old, "RUNNING", "COMPLETE"]
    kaggle.answer(again(kernel=[has_status(name) for name in names]))
    pushed()
    shown = re.findall(rf"notebook {KERNEL}: (.*)", capsys.readouterr().out)
    assert shown == [f"{old.lower()}, perhaps of the version before", "running", "complete"]


@pytest.mark.parametrize("before", [has_status("RUNNING"), NO_NETWORK])
def test_where_the_version_before_may_end_any_way_no_end_is_believed_at_once(kaggle, pushed, before):
    names = ["ERROR", "QUEUED", "COMPLETE"]
    kaggle.answer(again(kernel=[before, *map(has_status, names)]))
    pushed()


def test_an_end_that_stays_is_believed_in_the_end(kaggle, pushed):
    kaggle.answer(again(kernel=[has_status("COMPLETE")]))
    pushed()
    looks = kaggle.calls.count(["kernels", "status", KERNEL])
    assert looks == 1 + waiting.PATIENCE + 1


def test_another_end_than_that_of_the_version_before_is_believed_at_once(kaggle, pushed):
    kaggle.answer(again(kernel=[has_status("ERROR"), has_status("COMPLETE")]))
    pushed()
    assert kaggle.calls.count(["kernels", "status", KERNEL]) == 2


FAILED_KERNEL = f'{has_status("ERROR")}Failure message: "Your notebook ran out"\n'
TITLE_TAKEN = 'Dataset creation error: The requested title "A bundle" is already in use by a dataset.\n'
SOURCES = "The following are not valid dataset sources and could not be added to the kernel: ['a/b']\n"
RULES = "Kernel push error: You must accept the competition rules before attaching it\n"
AUTH_HELP = "Authentication required to call the Kaggle API.\n\nRecommended:\n    kaggle auth login\n"


@pytest.mark.parametrize(
    ("answers", "part"),
    [
        (
            {"datasets_status": [(AUTH_HELP, 1)]},
            "no credentials or they are no longer valid: run `kaggle auth",
        ),
        ({"datasets_status": [NO_NETWORK]}, "cannot be reached, is there a network"),
        ({"datasets_create": [TITLE_TAKEN]}, "choose another --title and --id"),
        (
            {"datasets_create": [f"Upload unsuccessful: src.zip\n{CREATED}"]},
            "unsuccessful: src.zip.*push again",
        ),
        ({"datasets_status": [NO_DATASET, "failed"]}, "could not make the dataset .failed."),
        (
            {"kernels_status": [(AUTH_HELP, 1)]},
            "could not see the notebook's status: Kaggle does not know you",
        ),
        ({"kernels_push": [RULES]}, f"competitions/{COMPETITION}/rules"),
        ({"kernels_push": [SOURCES + PUSHED]}, "is the dataset ready and yours"),
        ({"kernels_push": ["Kernel push error: something new\n"]}, "something new"),
        ({"kernels_push": [("Surprise\n", 1)]}, "the kaggle program says: Surprise .exit status 1."),
        (
            {"kernels_status": [NO_KERNEL, ("404 Client Error: Not Found for url: x\n", 1)]},
            "are the id and the version",
        ),
        (
            {"kernels_status": [NO_KERNEL, FAILED_KERNEL]},
            f"with error .Your notebook ran out.; see its log with: kaggle kernels logs {KERNEL}",
        ),
        ({"kernels_status": [NO_KERNEL, has_status("CANCEL_ACKNOWLEDGED")]}, "ended with cancelacknowledged"),
    ],
)
def test_a_failure_is_one_line_that_says_what_to_do(kaggle, pushed, answers, part):
    kaggle.answer(first_time(**answers))
    with pytest.raises(UserError, match=part) as caught:
        pushed()
    assert "\n" not in str(caught.value)


def test_a_file_that_did_not_arrive_ends_the_push(kaggle, pushed):
    kaggle.answer(first_time(datasets_create=[f"Upload unsuccessful: src.zip\n{CREATED}"]))
    with pytest.raises(KaggleError):
        pushed()
    assert kaggle.calls[-1][:2] == ["datasets", "create"]


def test_a_look_that_hangs_is_ended_and_an_upload_takes_its_time(kaggle, pushed, monkeypatch, capsys):
    for module in (dataset_upload, notebook_run):
        monkeypatch.setattr(module, "LOOK_LIMIT_S", 1.5)
    kaggle.answer(
        first_time(
            datasets_create=[(CREATED, 0, 2.0)],
            datasets_status=[NO_DATASET, ("ready", 0, 60), "ready"],
            kernels_status=[NO_KERNEL, (has_status("COMPLETE"), 0, 60), has_status("COMPLETE")],
        )
    )
    pushed()
    assert capsys.readouterr().err.count("in 1.5 s, is there a network?; trying again") == 2


def test_a_wait_that_is_too_long_says_how_to_look_later(kaggle, pushed):
    kaggle.answer(first_time(kernels_status=[NO_KERNEL, has_status("RUNNING")]))
    late = rf"is still running after .* later with: kaggle kernels status {KERNEL}"
    with pytest.raises(UserError, match=late):
        pushed("--kernel-hours", "0.00002")


def test_a_dry_run_shows_commands_that_can_be_copied_and_runs_nothing(kaggle, pushed, capsys):
    pushed("--dry-run", "--message", "five folds; it's done")
    lines = capsys.readouterr().out.splitlines()
    assert kaggle.calls == []
    assert [shlex.split(line, comments=True) for line in lines] == [
        ["kaggle", "datasets", "status", DATASET],
        ["kaggle", "datasets", "create", "-p", pushed.bundle, "--dir-mode", "zip"],
        [
            *("kaggle", "datasets", "version", "-p", pushed.bundle),
            *("-m", "five folds; it's done", "--dir-mode", "zip"),
        ],
        ["kaggle", "datasets", "status", DATASET],
        ["kaggle", "kernels", "status", KERNEL],
        ["kaggle", "kernels", "push", "-p", pushed.kernel],
        ["kaggle", "kernels", "status", KERNEL],
    ]
    assert all(subprocess.run(["sh", "-n", "-c", line], check=False).returncode == 0 for line in lines)


def test_a_notebook_of_another_dataset_is_refused(kaggle, pushed, tmp_path):
    other = write_bundle(tmp_path / "other", dataset="someone/other-bundle")
    with pytest.raises(UserError, match="the bundle is someone/other-bundle: make it again"):
        pushed("--bundle", str(other))
    assert kaggle.calls == []


def test_a_notebook_of_another_state_of_the_bundle_is_refused(kaggle, pushed, tmp_path):
    other = write_bundle(tmp_path / "other", segmenter="segmenter")
    with pytest.raises(UserError, match="was made for another state of the bundle"):
        pushed("--bundle", str(other))
    assert kaggle.calls == []


def test_metadata_that_were_changed_are_refused(kaggle, pushed, tmp_path):
    path = tmp_path / "bundle" / "dataset-metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"id": "someone/else"}))
    with pytest.raises(UserError, match="was changed: make the bundle again"):
        pushed()
    assert kaggle.calls == []


def test_a_bundle_that_was_changed_is_not_uploaded(kaggle, pushed, tmp_path):
    (tmp_path / "bundle" / "notes.txt").write_text("an extra file does no harm")
    post = tmp_path / "bundle" / "post.json"
    post.write_text(post.read_text() + " ")
    with pytest.raises(UserError, match=r"post.json was changed or removed: make the bundle again"):
        pushed()
    post.unlink()
    with pytest.raises(UserError, match=r"post.json was changed or removed"):
        pushed()
    assert kaggle.calls == []


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ('a/b has status "KernelWorkerStatus.CANCEL_ACKNOWLEDGED"', "cancelacknowledged"),
        ('a/b has status "KernelWorkerStatus.COMPLETE"\nFailure message: "x"', "complete"),
        ("something else", "something else"),
    ],
)
def test_the_status_is_read_in_plain_words(text, status):
    assert notebook_run.plain_status(text) == status
