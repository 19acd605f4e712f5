"""Whether two states of the code give the same results, to the last digit.

    python benchmarks/same_results.py --repo . --work /tmp/before --json before.json
    python benchmarks/same_results.py --repo . --work /tmp/after --json after.json --only seg cls
    python benchmarks/same_results.py --compare before.json after.json

A record holds what the public commands of a checkout write and print: the steps of `make demo`, the first
steps of the presets for a CPU, and the line from organ masks to a submission on small scans. Each training,
save those of the demo, is also killed and resumed. Nothing of the checkout is imported, so that modules may
move. Seconds, speeds and paths are left out. Floats depend on processor and packages: make both records on
one machine, which may be busy, for every command computes on one thread. `--only` records items together with
those that they rest on.

The status is 1 where something differs: two records, or a resumed run from the uninterrupted one.
"""

import argparse
import csv
import hashlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from itertools import takewhile, zip_longest
from pathlib import Path

from safetensors.numpy import load_file

Texts = dict[str, str]
"""What is compared, by name: a column of a table, the figures of a line, or the digest of files."""

SECOND_LEVEL = (
    *("src/cls/second_level.py", "src/cls/second_level/__main__.py", "src/cls/second/__main__.py"),
    *("src/second_level/__main__.py", "src/second/__main__.py", "train_second.py"),
)
"""Where the program of the second level may lie: the first that exists is run."""
SHORTER = {"train_cls.py": ("--epochs", "2")}
"""What makes a step of the demo shorter."""
VOCO = "--steps 20 --log-every 1 --save-every 10 --keep-every 10 --picture-every 10 --workers 0"
LABELS = "--data data/small/prepared --labels data/small/phantom/train.csv --folds data/small/folds.csv"
ITEMS: dict[str, tuple[str, ...]] = {
    "data": (),  # of make demo, as is the next
    "demo": (),
    **{
        f"voco-{name}": (
            f"train_voco.py --config configs/voco/{name}_small.yaml --data data/prepared {VOCO} "
            f"--output runs/{name}",
        )
        for name in ("v1", "v2", "plus", "3d", "large")
    },
    "small": (  # scans with enough of every injury for a post-processing
        "PHANTOM --output data/small/phantom --patients 60 --test-patients 6 --seed 1 --matrix 96 "
        "--spacing-z-mm 12 --segmentation-rate 0.5 --bowel-rate 0.5 --extravasation-rate 0.5 "
        "--kidney-rates 0.4 0.4 --liver-rates 0.4 0.4 --spleen-rates 0.4 0.4",
        "PREPARE --input data/small/phantom --output data/small/prepared --size 64",
        "FOLDS --labels data/small/phantom/train.csv --series data/small/phantom/train_series_meta.csv "
        "--output data/small/folds.csv --n-folds 2 --seed 1",
    ),
    "seg": (
        "train_seg.py --config configs/seg/dual_small.yaml --data data/small/prepared --steps 80 "
        "--log-every 1 --save-every 40 --score-every 40 --ema-decay 0.8 --workers 0 --output runs/small/seg",
        "segment.py --model runs/small/seg --data data/small/prepared --workers 0 "
        "--output data/small/prepared/predicted_masks",
    ),
    "cls": (
        f"train_cls.py --config configs/cls/organ_aware.yaml {LABELS} --encoder runs/v2/encoder.safetensors "
        "--image-labels data/small/phantom/image_level_labels.csv --slices 8 --crop 48 --hidden 16 "
        "--epochs 3 --lr 2e-3 --accumulation 2 --mixup 0.25 --class-balance 0.3 --workers 0 "
        "--output runs/small/cls",
    ),
    "second": (f"SECOND --runs runs/small/cls {LABELS} --output runs/small/second --workers 0",),
    "score": (
        "score.py --oof runs/small/cls/oof_series.csv runs/small/second/oof_series.csv "
        "--labels data/small/phantom/train.csv --folds data/small/folds.csv --fit runs/small/post.json",
    ),
    "infer": (
        "infer.py --input data/small/phantom --models runs/small/cls runs/small/second "
        "--segmenter runs/small/seg --post runs/small/post.json "
        "--sample data/small/phantom/sample_submission.csv --output runs/small/infer/submission.csv",
    ),
}
"""The commands of each item; data/ and runs/ lie in --work, names in capitals are programs that may move."""
NEEDS = {"seg": ["small"], "cls": ["seg", "voco-v2"], "second": ["cls"], "score": ["second"]}
NEEDS |= {"infer": ["score"], **{name: ["data"] for name in ITEMS if name.startswith(("demo", "voco"))}}
KILLED = {"train_voco.py": ("", 12), "train_seg.py": ("", 45), "train_cls.py": ("fold0", 2)}
"""When a run is killed, between two checkpoints: by the rows of the metrics.csv in a folder of it."""
FIGURE = re.compile(r"[-+]?\d+\.\d+(?:e[-+]?\d+)?%?|\bnan\b")
TIME = re.compile(r"[\d.]+ (?:s|min|h|seconds|minutes|hours|\w+/s)\b")
TIME_COLUMN = re.compile(r"seconds|_per_s$")
RESUMED, SAME = "killed and resumed", "as the uninterrupted run"


class Recorder:
    """Runs the commands of a checkout, with all that they write in one folder."""

    def __init__(self, repo: Path, work: Path) -> None:
        self.repo, self.work = repo.absolute(), work.absolute()
        own = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONDONTWRITEBYTECODE": "1"}
        own["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.started = {"cwd": self.repo, "env": os.environ | own, "text": True}
        shown = subprocess.check_output(["make", "-n", "demo"], **self.started).splitlines()
        lines = [line for line in shown if re.match(r"python (-m (?!pip |venv )|\w+\.py )", line)]
        demo = [shlex.split(line)[1:] for line in lines]
        self.items = {name: [shlex.split(line) for line in lines] for name, lines in ITEMS.items()}
        self.items["data"] = demo[:3]
        self.items["demo"] = [[*words, *SHORTER.get(words[0], ())] for words in demo[3:]]
        self.programs = dict(zip(("PHANTOM", "PREPARE", "FOLDS"), map(program, demo), strict=False))
        place = next((place for place in SECOND_LEVEL if (repo / place).is_file()), "none of SECOND_LEVEL")
        module = place.removesuffix(".py").removesuffix("/__main__").replace("/", ".")
        self.programs["SECOND"] = ["-m", module] if "/" in place else [place]

    def record(self, item: str) -> Texts:
        """Run the commands of an item; what they print and leave."""
        results = {}
        for number, words in enumerate(self.items[item], 1):
            words = [*self.programs.get(words[0], words[:1]), *words[1:]]
            words = [self._under_work(word) for word in words]
            found = self._run(words)
            if item != "demo" and words[0] in KILLED:
                found = {RESUMED: self._resume(words, found), **found}
            results |= {f"{number}: {name}": text for name, text in found.items()}
        return results

    def _under_work(self, word: str) -> str:
        word = re.sub(r"^submission\.csv$", "runs/submission/submission.csv", word)
        return str(self.work / word) if word.startswith(("data/", "runs/")) else word

    def _run(self, words: list[str]) -> Texts:
        command, started, used = [sys.executable, *words], time.monotonic(), sum(os.times()[2:4])
        ended = subprocess.run(command, capture_output=True, **self.started)
        if ended.returncode:
            reason = f"ended with status {ended.returncode}: {ended.stderr[-2000:]}"
            raise SystemExit(f"{shlex.join(command)}\n{reason}")
        seconds, of_core = time.monotonic() - started, sum(os.times()[2:4]) - used
        print(f"  {seconds:5.1f} s, {of_core:5.1f} of a core: {' '.join(program(words))}", flush=True)
        wrote = output_of(words)
        if wrote is not None and wrote.is_relative_to(self.work / "data"):
            return digests_of(wrote, self.work)
        lines = ended.stdout.replace(str(self.work), "").splitlines()
        figures = filter(None, (" ".join(FIGURE.findall(TIME.sub("", line))) for line in lines))
        printed = {f"printed line {number}": texts for number, texts in enumerate(figures, 1)}
        return (results_of(wrote, self.work) if wrote else {}) | printed

    def _resume(self, words: list[str], expected: Texts) -> str:
        """Kill a run in another folder, resume it with a process that reads; `SAME`, or the difference."""
        whole = output_of(words)
        resumed = whole.with_name(f"{whole.name}-resumed")
        words = [*words, "--output", str(resumed)]
        folder, rows = KILLED[words[0]]
        table = resumed / folder / "metrics.csv"
        quiet = dict.fromkeys(("stdout", "stderr"), subprocess.DEVNULL) | self.started
        with subprocess.Popen([sys.executable, *words], start_new_session=True, **quiet) as process:
            try:
                while process.poll() is None and count_rows(table) < rows:
                    time.sleep(0.02)
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # the processes that read for it, too
        is_whole = count_rows(table) >= count_rows(whole / folder / "metrics.csv")
        if process.returncode != -signal.SIGKILL or is_whole:
            raise SystemExit(f"{resumed} ended before it was killed: an error, or the machine is too busy")
        self._run([*words, "--workers", "1"])
        printed = {name: text for name, text in expected.items() if name.startswith("printed")}
        return describe_difference(expected, printed | results_of(resumed, self.work)) or SAME


def program(words: list[str]) -> list[str]:
    """A command without its options."""
    return list(takewhile(lambda word: not word.startswith("--"), words))


def output_of(words: list[str]) -> Path | None:
    """The folder or file that a command is told to write: the last, where it is told twice."""
    places = [place for place, word in enumerate(words) if word in ("--output", "--fit")]
    return Path(words[places[-1] + 1]) if places else None


def count_rows(table: Path) -> int:
    """Rows of a table below its header; 0 where there is none yet."""
    return max(0, table.read_text(encoding="utf-8").count("\n") - 1) if table.exists() else 0


def digests_of(wrote: Path, work: Path) -> Texts:
    """Of a file, or of each file and folder in a folder: names and bytes, in which `work` is left out."""
    digests, files = {}, [wrote] if wrote.is_file() else sorted(filter(Path.is_file, wrote.rglob("*")))
    for path in files:
        if path.name == "segmentation.json":  # with the digest of a file that names paths
            continue
        name = path.relative_to(wrote.parent)
        digest = digests.setdefault("/".join(name.parts[:2]), hashlib.sha256())
        digest.update(name.as_posix().encode() + path.read_bytes().replace(str(work).encode(), b""))
    return {name: digest.hexdigest() for name, digest in digests.items()}


def results_of(wrote: Path, work: Path) -> Texts:
    """What a run leaves: tables column by column, tensors of its networks, masks and pictures."""
    if wrote.suffix == ".json":
        content = json.loads(wrote.read_text(encoding="utf-8").replace(str(work), ""), parse_float=str)
        return {f"{wrote.name} {key}": json.dumps(value) for key, value in content.items()}
    results, images = {}, hashlib.sha256()
    folder = wrote if wrote.is_dir() else wrote.parent  # beside a submission lies its report
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".csv":
            results |= {f"{name} {column}": text for column, text in columns_of(path).items()}
        elif path.suffix == ".safetensors":
            digest = hashlib.sha256()
            for key, tensor in sorted(load_file(path).items()):
                digest.update(f"{key} {tensor.dtype} {tensor.shape}".encode() + tensor.tobytes())
            results[name] = digest.hexdigest()
        elif path.suffix == ".png" and path.name != "curves.png":
            images.update(name.encode() + path.read_bytes())
    return results | {"images": images.hexdigest()}


def columns_of(path: Path) -> Texts:
    """The columns of a table, each as the texts of its rows; without those of seconds and speeds."""
    with path.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    columns = {name: " ".join(row[place] or "-" for row in rows) for place, name in enumerate(header)}
    return {name: text for name, text in columns.items() if not TIME_COLUMN.search(name)}


def describe_difference(first: Texts, second: Texts) -> str:
    """How many texts differ, and the first place where one does; empty where none does."""
    differing = [name for name in first | second if first.get(name) != second.get(name)]
    if not differing:
        return ""
    words = [each.get(differing[0], "").split() for each in (first, second)]
    pairs = enumerate(zip_longest(*words, fillvalue="nothing"), 1)
    place, (left, right) = next((place, pair) for place, pair in pairs if pair[0] != pair[1])
    return f"{len(differing)} differ, the first is {differing[0]}, value {place}: {left} / {right}"


def compare(paths: list[Path]) -> bool:
    """Print a line for each item of two records; whether those that both have are equal."""
    first, second = (json.loads(path.read_text(encoding="utf-8")) for path in paths)
    is_same = bool(first.keys() & second.keys())
    for item in first | second:
        if item not in first or item not in second:
            verdict = f"only in {paths[item not in first]}"
        else:
            verdict = describe_difference(first[item], second[item]) or "equal"
            is_same &= verdict == "equal"
        print(f"{item:10} {len(first.get(item, second.get(item))):4} texts  {verdict}")
    return is_same


def record(repo: Path, work: Path, path: Path, only: list[str]) -> bool:
    """Record items of a checkout, written after each; whether all resumed runs ended as they should."""
    if work.exists() and any(work.iterdir()):
        raise SystemExit(f"{work} is not empty: what lies there would be continued")
    work.mkdir(parents=True, exist_ok=True)
    for item in reversed(ITEMS):
        only = [*only, *NEEDS.get(item, ())] if item in only else only
    recorder, items, began, is_same = Recorder(repo, work), {}, time.monotonic(), True
    for item in (item for item in ITEMS if item in only):
        print(f"{item}, after {time.monotonic() - began:.0f} s", flush=True)
        items[item] = recorder.record(item)
        for name, text in items[item].items():
            if name.endswith(RESUMED):
                print(f"  {RESUMED}: {text}", flush=True)
                is_same &= text == SAME
        path.write_text(json.dumps(items, indent=1), encoding="utf-8")
    print(f"{path}: {len(items)} items in {time.monotonic() - began:.0f} s")
    return is_same


def main() -> None:
    """Record a checkout, or compare two records."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--repo", type=Path, default=Path(), help="checkout to record (default: this folder)")
    parser.add_argument("--work", type=Path, help="new or empty folder for all that the commands write")
    parser.add_argument("--json", type=Path, help="record to write")
    parser.add_argument("--only", nargs="+", choices=ITEMS, default=list(ITEMS), help="items to record")
    parser.add_argument("--compare", type=Path, nargs=2, metavar="RECORD", help="two records to compare")
    given = parser.parse_args()
    if not given.compare and not (given.work and given.json):
        parser.error("give --work and --json to record, or --compare")
    if given.compare:
        sys.exit(not compare(given.compare))
    sys.exit(not record(given.repo, given.work, given.json, given.only))


if __name__ == "__main__":
    main()
