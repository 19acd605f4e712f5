"""infer.py on a tiny phantom: a valid row for every patient, whatever its files are."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import infer
import prepare_data
import score
import train_cls
from src.core.errors import UserError
from src.core.targets import COLUMNS, GROUPS, INJURIES
from src.infer import raw as raw_images
from src.infer.raw import RawSource
from src.score.postprocess import PatientRows, PostProcessing, write_post
from tests.helpers.dying_readers import DieOn
from tests.helpers.infer_runs import train_small

CHAOS = Path(__file__).resolve().parents[3] / "shared" / "data" / "ct" / "chaos" / "dicom"


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("models") / "run"
    given = f"--data {tiny.prepared} --labels {tiny.labels} --folds {tiny.folds} --output {output}"
    small = "--backbone test_efficientnet --slices 4 --crop 32 --hidden 8 --epochs 1 --tta none --workers 0"
    train_cls.main(f"{given} {small}".split())
    return output


def read(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype={"patient_id": str, "series_id": str}, keep_default_na=False)


def submit(raw: Path, run: Path, sample: Path, output: Path, *more: str) -> pd.DataFrame:
    arguments = f"--input {raw} --models {run} --sample {sample} --output {output}/submission.csv"
    infer.main([*arguments.split(), *more])
    return read(output / "submission.csv")


@pytest.fixture
def damaged(tiny, tmp_path) -> Path:
    """The phantom's test set with a file damaged in one series, and one patient's files all unreadable."""
    raw = tmp_path / "damaged"
    shutil.copytree(tiny.raw / "test_images", raw / "test_images")
    patients = sorted((raw / "test_images").iterdir())
    one_file = next(patients[0].glob("*/*.dcm"))
    one_file.write_bytes(one_file.read_bytes()[:200])
    for path in patients[1].glob("*/*.dcm"):
        path.write_bytes(b"not DICOM")
    shutil.rmtree(patients[2])
    return raw


def test_the_submission_is_valid_and_in_the_order_of_the_sample(tiny, run, tmp_path):
    sample = read(tiny.sample).iloc[::-1]
    sample.to_csv(tmp_path / "sample.csv", index=False)
    submission = submit(tiny.raw, run, tmp_path / "sample.csv", tmp_path)
    assert list(submission) == ["patient_id", *COLUMNS]
    assert list(submission.patient_id) == list(sample.patient_id)
    for columns in GROUPS.values():
        np.testing.assert_allclose(submission[list(columns)].astype(float).sum(axis=1), 1, atol=1e-6)
    assert set(read(tmp_path / "report.csv").status) == {"ok"}
    score.main(f"--submission {tmp_path}/submission.csv --labels {tiny.raw}/test_labels.csv".split())


def test_raw_files_and_the_prepared_set_give_the_same_probabilities(tiny, run, tmp_path):
    prepared = tmp_path / "prepared"
    prepare_data.main(f"--input {tiny.raw} --split test --output {prepared} --size 48 --jobs 1".split())
    (tmp_path / "a").mkdir()
    raw = submit(tiny.raw, run, tiny.sample, tmp_path)
    same = submit(prepared, run, tiny.sample, tmp_path / "a")
    np.testing.assert_allclose(same[list(COLUMNS)].astype(float), raw[list(COLUMNS)].astype(float), atol=1e-6)


@pytest.mark.parametrize("selection", ["--spacing-z-mm 40", "--count 6"])
@pytest.mark.parametrize("view", ["--neighbours 3", "--spacing-mm 30"])
def test_slices_are_selected_as_they_were_for_training(tiny, tmp_path, selection, view):
    """What was prepared with fewer slices, and with them the neighbours that a network was shown."""
    given = f"--size 48 --jobs 1 {selection}"
    prepare_data.main(f"--input {tiny.raw} --output {tmp_path}/train {given}".split())
    prepare_data.main(f"--input {tiny.raw} --split test --output {tmp_path}/test {given}".split())
    few = SimpleNamespace(**{**vars(tiny), "prepared": tmp_path / "train"})
    run = train_small(few, tmp_path / "run", f"{view} --fold 0")
    (tmp_path / "same").mkdir()
    raw = submit(tiny.raw, run, tiny.sample, tmp_path)
    same = submit(tmp_path / "test", run, tiny.sample, tmp_path / "same")
    np.testing.assert_allclose(same[list(COLUMNS)].astype(float), raw[list(COLUMNS)].astype(float), atol=1e-6)
    with pytest.raises(UserError, match="prepare it with the same --spacing-z-mm or --count"):
        submit(tiny.prepared, run, tiny.sample, tmp_path)


def test_one_folder_around_the_test_images_does_not_matter(tiny, tmp_path):
    (tmp_path / "around").mkdir()
    (tmp_path / "around" / "raw").symlink_to(tiny.raw.absolute())
    patient_id = sorted(path.name for path in (tiny.raw / "test_images").iterdir())[0]
    series = RawSource.open(tiny.raw, []).series_of(patient_id)
    assert series and RawSource.open(tmp_path / "around", []).series_of(patient_id) == series


@pytest.mark.skipif(not CHAOS.is_dir(), reason="no real CT in ../shared/data/ct/chaos")
def test_a_real_series_goes_from_dicom_to_a_valid_row(run, tmp_path):
    shutil.copytree(CHAOS, tmp_path / "raw" / "test_images" / "1" / "1")
    sample = pd.DataFrame({"patient_id": [1], **{column: [0.5] for column in COLUMNS}})
    sample.to_csv(tmp_path / "sample.csv", index=False)
    prepare_data.main(f"--input {tmp_path}/raw --output {tmp_path}/prepared --size 48 --jobs 1".split())
    (tmp_path / "from_prepared").mkdir()
    raw = submit(tmp_path / "raw", run, tmp_path / "sample.csv", tmp_path)
    prepared = submit(tmp_path / "prepared", run, tmp_path / "sample.csv", tmp_path / "from_prepared")
    assert read(tmp_path / "report.csv").status.tolist() == ["ok"]
    np.testing.assert_allclose(
        raw[list(COLUMNS)].astype(float), prepared[list(COLUMNS)].astype(float), atol=1e-6
    )


def test_patients_without_a_readable_series_get_the_prior_and_the_report_says_so(
    tiny, run, damaged, tmp_path
):
    submission = (
        submit(damaged, run, tiny.sample, tmp_path).set_index("patient_id")[list(COLUMNS)].astype(float)
    )
    report = read(tmp_path / "report.csv")
    by_status = {status: rows.patient_id.tolist() for status, rows in report.groupby("status")}
    assert len(submission) == 3 and len(set(by_status["prior"])) == 2
    reasons = report[report.status == "prior"].reason
    assert sorted(reasons) == ["no series could be read", "no series found"]
    first, second = (submission.loc[patient] for patient in by_status["prior"])
    pd.testing.assert_series_equal(first, second, check_names=False)
    assert 0 < first.bowel_injury < 1


def test_flips_and_a_second_run_change_the_prediction(tiny, run, tmp_path):
    folders = {name: tmp_path / name for name in ("plain", "flipped", "one_fold")}
    half = tmp_path / "half"
    shutil.copytree(run / "fold0", half / "fold0")
    for folder in folders.values():
        folder.mkdir()
    plain = submit(tiny.raw, run, tiny.sample, folders["plain"], "--tta", "none")
    flipped = submit(tiny.raw, run, tiny.sample, folders["flipped"], "--tta", "none", "h")
    one_fold = submit(tiny.raw, half, tiny.sample, folders["one_fold"], "--tta", "none")
    assert not plain.equals(flipped) and not plain.equals(one_fold)


def test_a_series_that_kills_every_reader_is_skipped(tiny, run, tmp_path, monkeypatch):
    broken = sorted((tiny.raw / "test_images").glob("*/*"))[0]
    monkeypatch.setattr(raw_images, "load_stack", DieOn(broken.name))
    submit(tiny.raw, run, tiny.sample, tmp_path)
    report = read(tmp_path / "report.csv").set_index("series_id")
    assert report.loc[broken.name, "reason"] == "every decoder crashes on it"
    assert (report.status == "skipped").sum() == 1


def test_where_no_patient_of_the_sample_has_series_everybody_gets_the_prior(tiny, run, tmp_path):
    sample = read(tiny.sample).assign(patient_id=["7", "8", "9"])
    sample.to_csv(tmp_path / "other.csv", index=False)
    with pytest.raises(UserError, match="everybody got the prior: no series found"):
        submit(tiny.raw, run, tmp_path / "other.csv", tmp_path)
    assert len(read(tmp_path / "submission.csv")) == 3


def test_where_nobody_has_a_series_everybody_gets_the_prior(tiny, run, tmp_path):
    for patient_id in read(tiny.sample).patient_id:
        (tmp_path / "raw" / "test_images" / patient_id).mkdir(parents=True)
    with pytest.raises(UserError, match="everybody got the prior: no series found"):
        submit(tmp_path / "raw", run, tiny.sample, tmp_path)
    assert len(read(tmp_path / "submission.csv")) == 3


def test_without_a_gpu_fp16_is_done_in_full(tiny, run, tmp_path, capsys):
    given = [tiny.raw, run, tiny.sample]
    for name in ("fp16", "fp32"):
        (tmp_path / name).mkdir()
    half = submit(*given, tmp_path / "fp16", "--precision", "fp16")
    assert "in fp32 instead of fp16" in capsys.readouterr().err
    pd.testing.assert_frame_equal(half, submit(*given, tmp_path / "fp32", "--precision", "fp32"))


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"output": "."}, "is a folder"),
        ({"input": "nowhere"}, "no folder or file nowhere"),
        ({"input": "."}, "neither test_images/ nor a prepared data set"),
        ({"models": "nowhere"}, "no run folder"),
        ({"models": "empty"}, "no finished fold"),
        ({"sample": "nothing.csv"}, "nothing.csv"),
        ({"tta": "z"}, "--tta: expected values"),
    ],
)
def test_refusals_are_one_line(tiny, run, tmp_path, monkeypatch, changes, part):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    given = {"input": tiny.raw, "models": run, "sample": tiny.sample, "output": "submission.csv"} | changes
    with pytest.raises(UserError, match=part) as caught:
        infer.main([part for name, value in given.items() for part in (f"--{name}", str(value))])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "submission.csv").exists()


def test_a_prepared_set_of_another_size_is_refused(tiny, run, tmp_path):
    prepare_data.main(f"--input {tiny.raw} --split test --output {tmp_path}/p --size 40 --jobs 1".split())
    with pytest.raises(UserError, match="the models want soft organ wide at 48 px"):
        submit(tmp_path / "p", run, tiny.sample, tmp_path)


def test_post_processing_is_applied_to_what_runs_say(tiny, run, tmp_path):
    plain = submit(tiny.raw, run, tiny.sample, tmp_path)
    multipliers = dict.fromkeys(INJURIES, 1.0) | {"liver_high": 3.0}
    post = PostProcessing((1.0,), multipliers=multipliers, any_injury=0.4)
    write_post(post, tmp_path / "post.json", ["run"])
    adjusted = submit(tiny.raw, run, tiny.sample, tmp_path, "--post", str(tmp_path / "post.json"))
    rows = PatientRows.read([plain.astype(dict.fromkeys(COLUMNS, float))], plain.patient_id)
    expected = rows.apply(post)
    np.testing.assert_allclose(adjusted[list(COLUMNS)].astype(float), expected[list(COLUMNS)], atol=1e-6)


def test_post_processing_of_another_number_of_runs_is_refused(tiny, run, tmp_path):
    write_post(PostProcessing.identity(2), tmp_path / "post.json", ["a", "b"])
    with pytest.raises(UserError, match="fitted on 2 tables or runs, there are 1"):
        submit(tiny.raw, run, tiny.sample, tmp_path, "--post", str(tmp_path / "post.json"))


def test_post_processing_fitted_on_the_runs_in_another_order_is_refused(tiny, run, tmp_path):
    other = tmp_path / "other"
    other.symlink_to(run, target_is_directory=True)
    write_post(PostProcessing((0.9, 0.1)), tmp_path / "post.json", ["a/run/oof.csv", "a/other/oof.csv"])
    given = f"--input {tiny.raw} --sample {tiny.sample} --output {tmp_path}/submission.csv".split()
    post = ["--post", str(tmp_path / "post.json")]
    with pytest.raises(UserError, match=rf"another order .*: give --models {run} {other}$"):
        infer.main([*given, *post, "--models", str(other), str(run)])
    assert not (tmp_path / "submission.csv").exists()
    infer.main([*given, *post, "--models", str(run), str(other)])
    assert set(read(tmp_path / "report.csv").status) == {"ok"}


def test_a_patient_without_series_gets_the_prior_as_it_is(damaged, run, tiny, tmp_path):
    write_post(PostProcessing((1.0,), any_injury=1.0), tmp_path / "post.json", ["run"])
    plain = submit(damaged, run, tiny.sample, tmp_path)
    adjusted = submit(damaged, run, tiny.sample, tmp_path, "--post", str(tmp_path / "post.json"))
    prior = set(read(tmp_path / "report.csv").query("status == 'prior'").patient_id)
    for frame in (plain, adjusted):
        frame["got_prior"] = frame.patient_id.isin(prior)
    assert prior
    pd.testing.assert_frame_equal(plain[plain.got_prior], adjusted[adjusted.got_prior])
    assert (plain[~plain.got_prior] != adjusted[~adjusted.got_prior]).any(axis=None)
