"""Are injuries on real CT seen in an encoder's features? AUC per target, leaving patients out.

    python benchmarks/injury_probe.py --painted data/painted --first-weights package
    python benchmarks/injury_probe.py --painted data/painted --first-weights runs/plus/encoder.safetensors

`--painted` is what painted_injuries.py wrote. An injury is classified against the same tile untouched, and
against the same tile with a harmless edit, by a linear model of frozen features (`frozen`) and by the
fine-tuned encoder (`tuned`). A value is the mean over patients of the AUC inside a patient. By default only
the patients of development are measured.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import BenchOptions, run_main
from painted_injuries import KINDS, TARGETS, TEST_PATIENTS
from scipy.stats import rankdata
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from src.core.config import check_range
from src.core.errors import UserError
from src.core.log import progress, say
from src.core.runtime import torch_seed
from src.nn.encoder import encoder_width
from src.probe.estimates import (
    FEW,
    Estimate,
    format_estimates,
    percentile_interval,
    plain_estimates,
    resampled_counts,
)
from src.probe.frozen import GRID, FrozenNet, load_encoder
from src.probe.linear import CLASSIFIERS
from src.voco.canvas import resize_plane
from src.voco.model import VocoNet

NEGATIVES = {"untouched": ["untouched"], "harmless": ["cyst", "noise", "contrast"]}
"""Kinds of tiles that an injury is classified against."""
MARGIN = 8
"""Pixels around a tile, for random shifts in fine-tuning."""

Embed = Callable[[np.ndarray], np.ndarray]
"""Features (N, width) of tiles, uint8 (N, tile, tile)."""


@dataclass(frozen=True, kw_only=True)
class InjuryOptions(BenchOptions):
    painted: Path
    """folder of painted_injuries.py"""
    backbone: str = "tf_efficientnet_lite0"
    """timm backbone"""
    first_weights: str = "none"
    """package, none, or a file such as encoder.safetensors"""
    tuned: bool = False
    """fine-tune as well"""
    every_patient: bool = False
    """measure the test patients, too, once all choices are made"""
    tile: int = 64
    """side of a tile in pixels; three make an image"""
    seed: int = 0
    """of random weights, of fine-tuning and of intervals"""

    def __post_init__(self) -> None:
        check_range(self, "tile", at_least=16)


@dataclass(frozen=True)
class InjuryTiles:
    """Tiles of G examples, with `MARGIN` pixels around each."""

    images: np.ndarray
    """uint8 (G, KINDS, tile + 2 MARGIN, tile + 2 MARGIN)"""
    target: np.ndarray
    """(G,) one of TARGETS"""
    patient: np.ndarray
    """(G,)"""

    def take(self, chosen: np.ndarray) -> "InjuryTiles":
        """Select examples by a mask or by indices."""
        return InjuryTiles(*(value[chosen] for value in vars(self).values()))

    def centres(self) -> np.ndarray:
        """Return the tiles without what is around them: uint8 (G, KINDS, tile, tile)."""
        return self.images[:, :, MARGIN:-MARGIN, MARGIN:-MARGIN]


@dataclass(frozen=True)
class TuneSettings:
    """Fine-tuning of an encoder with one output per target."""

    folds: int = 4
    """groups of patients, each predicted by an encoder that was trained on the others"""
    steps: int = 150
    pairs: int = 32
    """per step: an injury and the same tile without it or with a harmless edit"""
    lr: float = 2e-3  # 1e-4 and 5e-4 learnt far less in so few steps (ImageNet, development patients)
    head_lr: float = 5e-3
    weight_decay: float = 0.01


def main(options: InjuryOptions) -> dict[str, Any]:
    tiles = read_tiles(options.painted, options.tile)
    if not options.every_patient:
        tiles = tiles.take(~np.isin(tiles.patient, TEST_PATIENTS))

    def build() -> FrozenNet:
        return load_encoder(options.first_weights, ("soft",), options.tile, options.backbone, options.seed)

    seconds = {}
    start = time.perf_counter()
    figures = measure_injuries(partial(embed_tiles, build()), tiles, options.seed)
    seconds["frozen"] = time.perf_counter() - start
    if options.tuned:
        settings = TuneSettings(steps=2, pairs=4) if options.quick else TuneSettings()
        figures |= measure_tuned(build, tiles, options.seed, settings)
        seconds["tuned"] = time.perf_counter() - start - seconds["frozen"]
    say(f"{format_estimates(figures)}\n\n" + ", ".join(f"{k}: {v:.0f} s" for k, v in seconds.items()))
    return {"seconds": seconds, "figures": plain_estimates(figures)}


def embed_tiles(net: FrozenNet, images: np.ndarray) -> np.ndarray:
    """Return features float32 (N, width) of tiles of one window, uint8 (N, tile, tile)."""
    return net.embed(images[:, None, ..., None])["features"]


def read_tiles(folder: Path, tile: int) -> InjuryTiles:
    """Cut a tile around the centre of every example of a folder, in images of 3 tiles a side.

    Raises:
        UserError: no examples in `folder`.
    """
    paths = sorted(folder.glob("*.npz"))
    if not paths:
        raise UserError(f"no examples in {folder}: run painted_injuries.py first")
    parts = [_read_patient(path, tile) for path in paths]
    columns = zip(*(vars(part).values() for part in parts), strict=True)
    return InjuryTiles(*(np.concatenate(values) for values in columns))


def _read_patient(path: Path, tile: int) -> InjuryTiles:
    side, wide = GRID * tile, tile + 2 * MARGIN
    with np.load(path) as file:
        images, centre, target = file["images"], file["centre"], file["target"]
    starts = np.floor(centre * side - wide / 2).astype(int) + wide
    cut = np.empty((*images.shape[:2], wide, wide), np.uint8)
    for place, (row, col) in enumerate(starts):
        for kind, image in enumerate(images[place]):
            resized = image if len(image) == side else resize_plane(image[..., None], side)[..., 0]
            cut[place, kind] = np.pad(resized, wide)[row : row + wide, col : col + wide]
    return InjuryTiles(cut, target, np.full(len(target), path.stem))


def measure_injuries(embed: Embed, tiles: InjuryTiles, seed: int) -> dict[str, Estimate]:
    """AUC of injuries by frozen features: `injury/frozen/<target>/<untouched or harmless>`.

    A logistic regression is fitted on all patients but one and scores the tiles of that one.
    """
    images = np.ascontiguousarray(tiles.centres())
    features = embed(images.reshape(-1, *images.shape[2:])).reshape(*images.shape[:2], -1)
    estimates = {}
    for target, negatives, columns in contrasts():
        of_target = tiles.target == target
        patient, chosen = tiles.patient[of_target], features[of_target][:, columns]
        if len(np.unique(patient)) < 2:
            continue
        score = np.empty(chosen.shape[:2])
        for name in progress(np.unique(patient), desc=f"{target} {negatives}"):
            tested = patient == name
            rows = chosen[~tested].reshape(-1, chosen.shape[-1])
            labels = np.tile(np.arange(len(columns)) == 0, np.count_nonzero(~tested))
            model = make_pipeline(StandardScaler(), CLASSIFIERS["logistic"](len(rows))).fit(rows, labels)
            score[tested] = model.decision_function(chosen[tested].reshape(-1, chosen.shape[-1])).reshape(
                -1, len(columns)
            )
        estimates[f"injury/frozen/{target}/{negatives}"] = auc_estimate(score, patient, seed)
    return estimates


def measure_tuned(
    build: Callable[[], FrozenNet], tiles: InjuryTiles, seed: int, settings: TuneSettings = TuneSettings()
) -> dict[str, Estimate]:
    """AUC of injuries by the fine-tuned encoder: `injury/tuned/<target>/<untouched or harmless>`.

    Args:
        build: returns the encoder with its first weights, once per fold; it is trained in place.
    """
    names = np.random.default_rng(seed).permutation(np.unique(tiles.patient))
    score = np.empty(tiles.images.shape[:2])
    for fold, left_out in enumerate(np.array_split(names, min(settings.folds, len(names)))):
        tested = np.isin(tiles.patient, left_out)
        net = build()
        head = fine_tune(net.network, tiles.take(~tested), seed, fold, settings)
        images = np.ascontiguousarray(tiles.centres()[tested])
        features = embed_tiles(net, images.reshape(-1, *images.shape[2:]))
        with torch.inference_mode():
            outputs = head(torch.from_numpy(features)).numpy().reshape(*images.shape[:2], len(TARGETS))
        own = [TARGETS.index(target) for target in tiles.target[tested]]
        score[tested] = outputs[np.arange(len(own)), :, own]
    estimates = {}
    for target, negatives, columns in contrasts():
        rows = tiles.target == target
        if rows.any():
            estimate = auc_estimate(score[rows][:, columns], tiles.patient[rows], seed)
            estimates[f"injury/tuned/{target}/{negatives}"] = estimate
    return estimates


def fine_tune(
    network: VocoNet, tiles: InjuryTiles, seed: int, fold: int, settings: TuneSettings
) -> nn.Linear:
    """Train an encoder, in place, and a head with an output per target; targets are drawn equally often.

    Returns:
        The head, on the CPU.
    """
    device = network.mean.device
    with torch_seed(seed, fold):
        head = nn.Linear(encoder_width(network.encoder), len(TARGETS))
    head.to(device)
    encoder = network.encoder.requires_grad_(True).train()
    groups = [{"params": encoder.parameters()}, {"params": head.parameters(), "lr": settings.head_lr}]
    optimizer = torch.optim.AdamW(groups, settings.lr, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / settings.steps)
    rng = np.random.default_rng([seed, fold])
    present = [target for target in TARGETS if (tiles.target == target).any()]
    for _ in progress(range(settings.steps), desc=f"fold {fold}"):
        images, output, label = _draw_pairs(tiles, present, settings.pairs, rng)
        images = torch.from_numpy(images)[:, None].to(device)
        logits = head(encoder(network.normalise(images))).cpu()  # (2 pairs, targets)
        chosen = logits[torch.arange(len(output)), torch.from_numpy(output)]
        loss = nn.functional.binary_cross_entropy_with_logits(chosen, torch.from_numpy(label))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    return head.cpu()


def _draw_pairs(
    tiles: InjuryTiles, present: list[str], pairs: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw injuries, and the same tiles without them: images uint8, output index and label (2 pairs,)."""
    images, outputs = [], []
    tile = tiles.images.shape[-1] - 2 * MARGIN
    harmless = [KINDS.index(kind) for kind in NEGATIVES["harmless"]]
    for target in rng.choice(present, pairs):
        example = rng.choice(np.flatnonzero(tiles.target == target))
        negative = KINDS.index("untouched") if rng.uniform() < 0.5 else rng.choice(harmless)
        row, col = rng.integers(0, 2 * MARGIN + 1, 2)
        images.append(tiles.images[example][[0, negative], row : row + tile, col : col + tile])
        outputs += [TARGETS.index(target)] * 2
    return np.concatenate(images), np.array(outputs), np.tile(np.float32([1, 0]), pairs)


def contrasts() -> Iterator[tuple[str, str, list[int]]]:
    """Each target with each kind of negatives, and the columns of KINDS, the injury first."""
    for target in TARGETS:
        for negatives, kinds in NEGATIVES.items():
            yield target, negatives, [KINDS.index("injury"), *map(KINDS.index, kinds)]


def auc_estimate(score: np.ndarray, patient: np.ndarray, seed: int) -> Estimate:
    """Mean over patients of the AUC of the first column against the others, with an interval over patients.

    Args:
        score: (G, 1 + negatives).
        patient: (G,) patient of each row.
    """
    names = np.unique(patient)
    values = np.array([auc(score[patient == name]) for name in names])
    low = high = None
    if len(names) >= FEW:
        low, high = percentile_interval(resampled_counts(len(names), seed) @ values / len(names))
    by_patient = dict(zip(names.tolist(), values.tolist(), strict=True))
    return Estimate(float(values.mean()), low, high, "patients", 0.5, score.size, len(names), by_patient)


def auc(score: np.ndarray) -> float:
    """AUC of the first column of (G, K) against all others; ties count half."""
    positives, negatives = len(score), score.size - len(score)
    ranks = rankdata(score).reshape(score.shape)[:, 0]
    return float((ranks.sum() - positives * (positives + 1) / 2) / (positives * negatives))


if __name__ == "__main__":
    run_main(main, InjuryOptions)
