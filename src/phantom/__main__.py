"""Create synthetic abdominal CT studies with injuries, in the layout of the competition's data.

python -m src.phantom --output data/phantom --patients 40 --test-patients 10 --seed 0 --jobs 2
"""

import time

from src.core.config import parse_options
from src.core.errors import exit_on_user_error
from src.core.log import format_table, say
from src.core.targets import LABEL_COLUMNS
from src.phantom.cohort import label_table
from src.phantom.generate import generate_dataset
from src.phantom.options import PhantomOptions


def main(argv: list[str] | None = None) -> None:
    options = parse_options(PhantomOptions, argv, prog="python -m src.phantom", description=__doc__)
    started = time.perf_counter()
    plans = generate_dataset(options)
    seconds = time.perf_counter() - started
    rows = []
    for split in ("train", "test"):
        labels = label_table(plans, split)
        series = sum(len(plan.series) for plan in plans if plan.split == split)
        injured = labels[[c for c in LABEL_COLUMNS if not c.endswith("_healthy")]].sum()
        rows.append({"split": split, "patients": len(labels), "series": series, **injured})
    say(format_table(rows))
    say(f"wrote {options.output} in {seconds:.0f} s")


if __name__ == "__main__":
    with exit_on_user_error():
        main()
