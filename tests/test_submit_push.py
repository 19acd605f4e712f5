"""push: exact arguments of the kaggle program, its answers in order, and each failure in plain words."""

import re
import shlex
import subprocess

import pytest
from kaggle_files import COMPETITION, DATASET, KERNEL, RecordingKaggle, write_bundle

import submit
from src.core.errors import UserError
from src.submit import push as pushing
from src.submit import waiting
from src.submit.failures import KaggleError

NO_DATASET = (f"403 Client Error: Forbidden for url: https://www.kaggle.com/api/v1/{DATASET}\n", 1)
CREATED = "Starting upload for file infer.py\nYour private Dataset is being created.\n"
VERSIONED = "Dataset version is being created. Please check progress at x\n"
PUSHED = "Kernel version 3 successfully pushed.  Please check progress at https://www.kaggle.com/code/x\n"
COMPLETE = f'{KERNEL} has status "KernelWorkerStatus.COMPLETE"\n'

AUTH_HELP = "Authentication required to call the Kaggle API.\n\nRecommended:\n    kaggle auth login\n"
NO_FILE = "OSError: Could not find kaggle.json. Make sure it's located in ~/.kaggle. Or use the method\n"
NO_NETWORK = (
    "HTTPSConnectionPool(host='www.kaggle.com', port=443): Max retries exceeded with url: /v1/x (Caused by "
    "NameResolutionError(\"Failed to resolve 'www.kaggle.com'\"))\n"
)


@pytest.fixture
def kaggle(tmp_path, monkeypatch) -> RecordingKaggle:
    return RecordingKaggle(tmp_path / "program", monkeypatch)


@pytest.fixture
def pushed(tmp_path):
    """Run `push` on a bundle and a notebook made here."""
    bundle, kernel = write_bundle(tmp_path / "bundle"), tmp_path / "kernel"
    submit.main(["kernel", "--bundle", str(bundle), "--id", KERNEL, "--output", str(kernel)])

    def run(*more: str) -> None:
        folders = ["--bundle", str(bundle), "--kernel", str(kernel), "--poll-seconds", "0.01"]
        submit.main(["push", *folders, *more])

    run.bundle, run.kernel = str(bundle), str(kernel)
    return run


def test_the_first_time_the_dataset_is_created(kaggle, pushed, capsys):
    kaggle.answer(
        {
            "datasets status": [NO_DATASET, "blobs_received", "blobs_decompressed", "ready"],
            "datasets create": [CREATED],
            "kernels push": [PUSHED],
            "kernels status": [f'{KERNEL} has status "KernelWorkerStatus.RUNNING"\n', COMPLETE],
        }
    )
    pushed()
    status = ["datasets", "status", DATASET]
    assert kaggle.calls == [
        status,
        ["datasets", "create", "-p", pushed.bundle, "--dir-mode", "zip"],
        *([status] * 3),
        ["kernels", "push", "-p", pushed.kernel],
        *([["kernels", "status", KERNEL]] * 2),
    ]
    shown = capsys.readouterr()
    assert re.findall(rf"dataset {DATASET}: (\w+)", shown.out) == [
        "blobs_received",
        "blobs_decompressed",
        "ready",
    ]
    assert re.findall(rf"notebook {KERNEL}: (\w+)", shown.out) == ["running", "complete"]
    assert f"submit.py submit --kernel {pushed.kernel} --version 3" in shown.out
    assert "Starting upload for file infer.py" in shown.err  # progress of an upload is passed on


def test_afterwards_a_version_is_made_and_the_old_one_is_not_taken_for_it(kaggle, pushed):
    number = '{{"status": "ready", "current_version_number": {}}}\n'.format
    kaggle.answer(
        {
            f"datasets status {DATASET} --format json": [number(4), number(4), number(5)],
            "datasets status": ["ready"],
            "datasets version": [VERSIONED],
            "kernels push": [PUSHED],
            "kernels status": [COMPLETE],
        }
    )
    pushed("--message", "five folds")
    status = ["datasets", "status", DATASET]
    told = [*status, "--format", "json"]
    assert kaggle.calls[:7] == [
        *(status, told),
        ["datasets", "version", "-p", pushed.bundle, "-m", "five folds", "--dir-mode", "zip"],
        *(status, told, status, told),
    ]


def test_an_older_kaggle_program_does_as_well(kaggle, pushed, capsys):
    """1.7 knows no --format, answers 404 and writes the status in small letters."""
    kaggle.answer(
        {
            f"datasets status {DATASET} --format": [
                ("kaggle: error: unrecognized arguments: --format json\n", 2)
            ],
            "datasets status": ["Warning: Looks like you're using an outdated API Version\nready"],
            "datasets version": [VERSIONED],
            "kernels push": [PUSHED],
            "kernels status": [f'{KERNEL} has status "queued"\n', f'{KERNEL} has status "complete"\n'],
        }
    )
    pushed()
    assert re.findall(rf"notebook {KERNEL}: (\w+)", capsys.readouterr().out) == ["queued", "complete"]


def test_a_version_that_never_shows_is_told_and_does_not_stop_the_push(kaggle, pushed, capsys):
    kaggle.answer(
        {
            f"datasets status {DATASET} --format": ['{"status": "ready", "current_version_number": 4}\n'],
            "datasets status": ["ready"],
            "datasets version": [VERSIONED],
            "kernels push": [PUSHED],
            "kernels status": [COMPLETE],
        }
    )
    pushed()
    assert "still shows version 4" in capsys.readouterr().err
    assert kaggle.calls[-1] == ["kernels", "status", KERNEL]


def good(**changes: list) -> dict[str, list]:
    answers = {
        "datasets_status": [NO_DATASET, "ready"],
        "datasets_create": [CREATED],
        "kernels_push": [PUSHED],
        "kernels_status": [COMPLETE],
    } | changes
    return {name.replace("_", " "): texts for name, texts in answers.items()}


FAILED_KERNEL = f'{KERNEL} has status "KernelWorkerStatus.ERROR"\nFailure message: "Your notebook ran out"\n'
TAKEN = (
    'Dataset creation error: The requested title "A bundle" is already in use by a dataset. Please choose\n'
)
CONFLICT = "409 Client Error: Conflict for url: https://www.kaggle.com/api/v1/kernels/push\n"
SESSIONS = "Kernel push error: Maximum batch GPU session count of 2 reached.\n"
QUOTA = "Kernel push error: Maximum weekly GPU quota of 30.00 hours reached.\n"
SOURCES = "The following are not valid dataset sources and could not be added to the kernel: ['a/b']\n"
RULES = "Kernel push error: You must accept the competition rules before attaching it\n"


@pytest.mark.parametrize(
    ("answers", "part"),
    [
        (
            {"datasets_status": [(AUTH_HELP, 1)]},
            "no credentials or they are no longer valid: run `kaggle auth",
        ),
        ({"datasets_status": [(NO_FILE, 1)]}, "there are no credentials"),
        (
            {"datasets_status": [("401 Client Error: Unauthorized for url: x\n", 1)]},
            "refuses the credentials",
        ),
        ({"datasets_status": [(NO_NETWORK, 1)]}, "cannot be reached, is there a network"),
        ({"datasets_status": [("ModuleNotFoundError: No module named 'six'\n", 1)]}, "install kaggle six"),
        ({"datasets_create": [TAKEN]}, "choose another --title and --id"),
        ({"datasets_create": [("The dataset title must be between 6 and 50\n", 1)]}, "another --title"),
        ({"datasets_create": ["Upload unsuccessful: infer.py\n"]}, "Upload unsuccessful: infer.py"),
        ({"datasets_status": [NO_DATASET, "failed"]}, "could not make the dataset .failed."),
        ({"kernels_push": [(CONFLICT, 1)]}, "choose another --title and --id"),
        ({"kernels_push": [SESSIONS]}, "too many notebooks of yours are running .*count of 2"),
        ({"kernels_push": [QUOTA]}, "GPU hours of this week are used up .*30.00 hours.*--gpu false"),
        (
            {"kernels_push": ["Kernel push error: Phone verification is required\n"]},
            "a verified phone number",
        ),
        ({"kernels_push": [RULES]}, f"competitions/{COMPETITION}/rules"),
        ({"kernels_push": [SOURCES + PUSHED]}, "is the dataset ready and yours"),
        ({"kernels_push": ["Kernel push error: something new\n"]}, "something new"),
        ({"kernels_push": [("Surprise\n", 1)]}, "the kaggle program says: Surprise .exit status 1."),
        ({"kernels_status": [("404 Client Error: Not Found for url: x\n", 1)]}, "are the id and the version"),
        (
            {"kernels_status": [FAILED_KERNEL]},
            f"with error .Your notebook ran out.; fetch its log with: kaggle kernels output {KERNEL} -p",
        ),
        (
            {"kernels_status": [f'{KERNEL} has status "cancelAcknowledged"\n']},
            "ended with cancelacknowledged",
        ),
    ],
)
def test_a_failure_is_one_line_that_says_what_to_do(kaggle, pushed, answers, part):
    kaggle.answer(good(**answers))
    with pytest.raises(UserError, match=part) as caught:
        pushed()
    assert "\n" not in str(caught.value)


def test_a_fault_that_passes_does_not_end_the_wait(kaggle, pushed, capsys):
    faults = [(NO_NETWORK, 1), ("502 Server Error: Bad Gateway for url: x\n", 1), ("429 Client Error\n", 1)]
    kaggle.answer(good(kernels_status=[*faults, COMPLETE]))
    pushed()
    assert capsys.readouterr().err.count("; trying again") == 3


def test_a_fault_that_does_not_pass_ends_it(kaggle, pushed, monkeypatch):
    monkeypatch.setattr(waiting, "PATIENCE", 2)
    kaggle.answer(good(kernels_status=[(NO_NETWORK, 1)]))
    with pytest.raises(KaggleError, match="is there a network"):
        pushed()
    assert kaggle.calls.count(["kernels", "status", KERNEL]) == 3


def test_a_wait_that_is_too_long_says_how_to_look_later(kaggle, pushed):
    kaggle.answer(good(kernels_status=[f'{KERNEL} has status "running"\n']))
    with pytest.raises(
        UserError, match=rf"is still running after .* later with: kaggle kernels status {KERNEL}"
    ):
        pushed("--kernel-hours", "0.00002")


def test_a_dry_run_shows_commands_that_can_be_copied_and_runs_nothing(kaggle, pushed, capsys):
    capsys.readouterr()
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
        ["kaggle", "kernels", "push", "-p", pushed.kernel],
        ["kaggle", "kernels", "status", KERNEL],
    ]
    assert all(subprocess.run(["sh", "-n", "-c", line], check=False).returncode == 0 for line in lines)


def test_a_notebook_of_another_bundle_is_refused(kaggle, pushed, tmp_path):
    other = write_bundle(tmp_path / "other", dataset="someone/other-bundle")
    with pytest.raises(UserError, match="the bundle is someone/other-bundle: make it again"):
        pushed("--bundle", str(other))
    assert kaggle.calls == []


def test_a_missing_program_is_named(pushed, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    with pytest.raises(UserError, match="no kaggle program: python -m pip install kaggle six"):
        pushed()


def test_a_program_that_cannot_be_executed_is_named(pushed, monkeypatch, tmp_path):
    (tmp_path / "kaggle").write_text("#!/nowhere/python\n")
    (tmp_path / "kaggle").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="kaggle does not start: No such file"):
        pushed()


def test_the_real_program_without_credentials_is_explained(pushed, monkeypatch, tmp_path):
    """Nothing is sent: without credentials the program ends before it calls anyone."""
    for name in ("KAGGLE_API_TOKEN", "KAGGLE_USERNAME", "KAGGLE_KEY", "KAGGLE_CONFIG_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(
        KaggleError, match="could not look for the dataset: Kaggle does not know you"
    ) as caught:
        pushed()
    assert caught.value.kind == "no credentials"


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ('a/b has status "KernelWorkerStatus.CANCEL_ACKNOWLEDGED"', "cancelacknowledged"),
        ('a/b has status "complete"', "complete"),
        ("something else", "something else"),
    ],
)
def test_the_status_of_old_and_new_programs_is_read(text, status):
    assert pushing.plain_status(text) == status
