"""Claims of folds in a run folder, which other commands may fill with other folds at the same time."""

from contextlib import ExitStack

from src.cls.fold_models import fold_folders, is_finished
from src.cls.inputs import Fold, TrainingInputs
from src.cls.options import ClassifierOptions
from src.core.config import plain_options, save_options
from src.core.errors import UserError
from src.core.files import discard, write_json
from src.core.run_folder import ANOTHER_OUTPUT, is_in_use, only_writer, read_record, require_same

RECORD = "run.json"

FREE_TO_CHANGE = (
    *("data", "doubtful", "labels", "folds", "encoder", "image_labels", "output", "cache"),
    *("fold", "resume", "workers", "execution", "micro_batch", "track"),
)
"""Options that may change within a run: inputs are compared by content, others do not affect results. Parts
affect rounding (and batch statistics), but a run that runs out of memory must be able to change them."""


def claim_folds(
    options: ClassifierOptions, inputs: TrainingInputs, chosen: list[Fold], claims: ExitStack
) -> None:
    """Claim the `chosen` folds of `options.output` until `claims` is closed; start or join the run there.

    Raises:
        UserError: another command trains one of these folds, or a fold there is trained with other options or
            on other data.
    """
    output, record = options.output, options.output / RECORD
    identity = {"options": plain_options(options), "inputs": inputs.digest}
    to_repeat = {output / fold.name for fold in chosen} if options.resume == "never" else set()
    with only_writer(output, wait=True):  # several commands may start at once
        folders = fold_folders(output)
        begun = {folder for folder in folders if any(folder.rglob("last.pt")) or is_finished(folder)}
        in_training = {folder for folder in folders if is_in_use(folder)}
        saved = read_record(record, "a run of train_cls.py")
        if begun and saved is None:
            raise UserError(f"{output} holds a run of another program: {ANOTHER_OUTPUT}")
        if saved is not None and (begun - to_repeat) | in_training:
            named = {"inputs": "other data (series, --doubtful, labels, folds, encoder or first weights)"}
            require_same(output, saved, identity, free=FREE_TO_CHANGE, named=named, advice=ANOTHER_OUTPUT)
        for fold in chosen:
            claims.enter_context(only_writer(output / fold.name))
        # After all checks, so that a refused command deletes nothing. The claimed folders stay.
        for item in (item for folder in to_repeat for item in folder.iterdir()):
            discard(item)
        if not in_training:
            write_json(identity, record)
            save_options(options, output / "config.yaml")
