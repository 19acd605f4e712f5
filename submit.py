"""From fold models to the leaderboard: a bundle, a notebook, and the kaggle program.

    python submit.py bundle --models runs/cls/plus --post runs/cls/post.json --output kaggle/bundle \\
        --id USER/voco-trauma --title "VoCo trauma bundle"
    python submit.py kernel --bundle kaggle/bundle --output kaggle/kernel --id USER/voco-trauma-predict
    python submit.py push --bundle kaggle/bundle --kernel kaggle/kernel --message "five folds"
    python submit.py submit --kernel kaggle/kernel --version 1 --message "five folds"

The competition runs notebooks without internet: the bundle is a Kaggle dataset with the source, the models
and the wheels of packages that Kaggle's machines lack; the notebook installs and runs them. push and submit
call the kaggle program, which must be logged in; --dry-run prints the commands instead. --help after a
command explains its options.
"""

import sys
from collections.abc import Sequence

from src.core.config import parse_options
from src.core.errors import UserError, exit_on_user_error
from src.core.log import format_table, say
from src.submit.options import BundleOptions, KernelOptions, PushOptions, SubmitOptions

# Each command imports its part late, so that --help and errors in options do not wait for torch.


def run_bundle(options: BundleOptions) -> None:
    from src.submit.bundle import make_bundle

    sizes = make_bundle(options)
    say(f"\n{format_table(sizes, digits=2)}\n\nbundle: {options.output}, to be the dataset {options.id}")


def run_kernel(options: KernelOptions) -> None:
    from src.submit.notebook import write_kernel

    write_kernel(options)
    say(f"notebook: {options.output}, to be {options.id}")


def run_push(options: PushOptions) -> None:
    from src.submit.push import push

    push(options)


def run_submit(options: SubmitOptions) -> None:
    from src.submit.competition import submit

    submit(options)


COMMANDS = {
    "bundle": (run_bundle, BundleOptions, "One folder with source, models and wheels, for a Kaggle dataset."),
    "kernel": (run_kernel, KernelOptions, "The notebook that installs a bundle on Kaggle and runs infer.py."),
    "push": (run_push, PushOptions, "Upload bundle and notebook, run the notebook, wait for it."),
    "submit": (run_submit, SubmitOptions, "Submit a version of the notebook, wait for the score."),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command and its options, and run it."""
    name, *given = [*(sys.argv[1:] if argv is None else argv)] or ["--help"]
    if name in ("-h", "--help"):
        lines = [f"    {command:8}{what}" for command, (_, _, what) in COMMANDS.items()]
        say("\n".join([__doc__, "commands:", *lines]))
        return
    if name not in COMMANDS:
        raise UserError(f"unknown command {name}: submit.py takes {', '.join(COMMANDS)} (and --help)")
    run, cls, what = COMMANDS[name]
    run(parse_options(cls, given, prog=f"submit.py {name}", description=what))


if __name__ == "__main__":
    with exit_on_user_error():
        main()
