"""How far features of an encoder change if a later stage shows it another input than it learnt from.

    python benchmarks/encoder_inputs.py --encoder runs/voco/plus/encoder.safetensors --data data/prepared

Cosine of pooled features of the same slices: the encoder on the input that it learnt from, and with its first
weights loaded into a network of another input, before any training. Inputs are those of the presets, then
every prepared window alone and all together, with 1 and with 3 adjacent slices. Mean, and the lowest slice.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import BenchOptions, read_preset, run_main

from src.cls.options import ClassifierOptions
from src.core.config import check_range
from src.core.log import format_table, say
from src.data.prepared import PreparedDataset, as_channels
from src.data.selection import Neighbours, even_indices
from src.nn.encoder import create_encoder, read_encoder_file
from src.nn.encoder_input import EncoderInput, choose_input
from src.nn.first_weights import load_first_weights
from src.seg.options import SegOptions


@dataclass(frozen=True, kw_only=True)
class InputOptions(BenchOptions):
    encoder: Path
    """encoder.safetensors of train_voco.py"""
    data: Path
    """prepared data set"""
    slices: int = 8
    """slices per series, evenly spread"""

    def __post_init__(self) -> None:
        check_range(self, "slices", at_least=1)


def main(options: InputOptions) -> dict[str, Any]:
    prepared = PreparedDataset.open(options.data)
    learnt = EncoderInput.of(read_encoder_file(options.encoder))
    say(f"{options.encoder} learnt from {learnt}; {len(prepared.series)} series of {options.data}")
    own = features(options, prepared, learnt)
    rows = []
    for name, shown in list_inputs(learnt, prepared.windows).items():
        found = torch.nn.functional.cosine_similarity(own, features(options, prepared, shown))
        rows.append(
            {"": name, "input": str(shown), "cosine": found.mean().item(), "lowest": found.min().item()}
        )
    say(f"\n{format_table(rows, digits=3)}")
    return {"learnt": str(learnt), "rows": rows}


def list_inputs(learnt: EncoderInput, prepared: tuple[str, ...]) -> dict[str, EncoderInput]:
    """Inputs of the presets with this encoder, and inputs that ignore what it learnt from."""
    tables = ("--data", "data", "--labels", "train.csv", "--folds", "folds.csv")
    inputs = {}
    for name in ("cls/cnn_lstm", "cls/organ_aware"):
        cls = read_preset(ClassifierOptions, name, *tables)
        inputs[name] = choose_input(learnt, prepared, cls.windows, cls.neighbours, cls.neighbour_mm)
    seg = read_preset(SegOptions, "seg/dual", "--data", "data")
    inputs["seg/dual"] = choose_input(learnt, prepared, seg.windows, seg.slices, 0.0)
    for windows in (*((window,) for window in prepared), prepared):
        for count in (1, 3):
            shown = EncoderInput(windows, Neighbours(count))
            inputs[f"{'all' if windows == prepared else windows[0]} x {count}"] = shown
    return inputs


@torch.inference_mode()
def features(options: InputOptions, prepared: PreparedDataset, shown: EncoderInput) -> torch.Tensor:
    """Pooled features (slices of all series, width) of an input."""
    encoder = create_encoder(read_encoder_file(options.encoder).name, shown.channels, prepared.size)
    count = shown.neighbours.count
    first = load_first_weights(encoder, options.encoder, shown.windows, count)
    encoder.eval()
    mean, std = (torch.tensor(each * count).view(-1, 1, 1) for each in (first.mean, first.std))
    channels, found = list(prepared.channels(shown.windows)), []
    for key, slices in prepared.slice_counts.items():
        indices = even_indices(slices, min(slices, options.slices))
        neighbours = shown.neighbours.find(indices, slices, lambda key=key: prepared.z_mm(*key))
        images = prepared.read_slices(*key, neighbours.ravel())[..., channels]
        joined = as_channels(images.reshape(*neighbours.shape, *images.shape[1:]))  # (T, H, W, C)
        pixels = torch.from_numpy(np.ascontiguousarray(joined.transpose(0, 3, 1, 2))).float() / 255
        found.append(encoder((pixels - mean) / std))
    return torch.cat(found)


if __name__ == "__main__":
    run_main(main, InputOptions)
