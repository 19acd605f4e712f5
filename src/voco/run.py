"""The pre-training run: its objective's training, and the files in its folder."""

from pathlib import Path

import pandas as pd

from src.core.config import plain_options, save_options
from src.core.files import write_table
from src.core.log import is_main_process, say
from src.core.run_folder import clear_training, digest_rows, find_checkpoint, only_writer
from src.core.runtime import Runtime
from src.data.doubtful import say_doubtful
from src.nn.schedule import LoopSettings
from src.nn.training import TrainingLoop
from src.voco.dataset import open_dataset
from src.voco.options import VocoOptions
from src.voco.position import PositionPretraining
from src.voco.pretraining import DrawPicture, Pretraining
from src.voco.simclr import SimClrPretraining

FREE_TO_CHANGE = (
    *("data", "doubtful", "output", "resume", "cache", "workers"),
    *("precision", "execution", "micro_batch", "track"),
    *("log_every", "save_every", "keep_every", "picture_every"),
)
"""Options that a resumed run may change: data are identified by their series, not path. Precision and parts
affect the rounding (and batch statistics), but a run that runs out of memory must be able to change them."""


def pretrain(
    options: VocoOptions,
    draw: DrawPicture | None = None,
    method: type[Pretraining] | None = None,
) -> Path:
    """Pre-train according to `options`, from the start or from a checkpoint, and export the encoder.

    Under torchrun every process calls this function; only rank 0 writes.

    Args:
        draw: draws the pictures of `--picture-every`; None draws none.
        method: trains by another method on the samples of `options`; by default by `--objective`.

    Returns:
        The path of `encoder.safetensors`.

    Raises:
        UserError: unusable data, a checkpoint of another run, or a loss that is no longer
            finite.
    """
    output = options.output
    encoder_path = output / "encoder.safetensors"
    dataset = open_dataset(options)
    say_doubtful(dataset.index.doubtful, options.doubtful)
    checkpoint = find_checkpoint(output, options.resume)
    with Runtime.create(options.precision) as runtime:
        kind = method or (SimClrPretraining if options.objective == "simclr" else PositionPretraining)
        training = kind(options, dataset, runtime, draw, with_first_weights=checkpoint is None)
        identity = {"options": plain_options(options), "series": digest_rows(dataset.index.table())}
        loop = TrainingLoop(training, LoopSettings.of(options), runtime, output, identity, FREE_TO_CHANGE)
        if checkpoint:
            loop.resume(checkpoint, kind.script)
        if not is_main_process():
            loop.run()
            return encoder_path
        # from here on the folder is written to: all errors in the options have been raised
        with only_writer(output):
            _open_folder(options, training, checkpoint, loop.step)
            loop.run()
            training.export(encoder_path, loop.step)
    say(f"wrote {encoder_path}")
    return encoder_path


def _open_folder(options: VocoOptions, method: Pretraining, checkpoint: Path | None, step: int) -> None:
    """Print a description of the run, and write its first files before the first step."""
    table, runtime, output = method.dataset.index.table(), method.runtime, options.output
    patients = set(table["patient_id"])
    say(f"{len(table)} series of {len(patients)} patients, {options.backbone} on {runtime.describe()}")
    if checkpoint:
        say(f"continuing {checkpoint} after step {step} of {options.steps}")
    else:
        clear_training(output, ("encoder*.safetensors", "pictures/step_*.png"), keep=[options.source])
    save_options(options, output / "config.yaml")
    before = pd.DataFrame({"patient_id": [each for each in method.patients_before if each not in patients]})
    write_table(pd.concat([table[["patient_id", "series_id"]], before]), output / "patients.csv")
