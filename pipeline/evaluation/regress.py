"""Regression: how much of a number that rides along is linear in frozen features, by ridge in closed form.

The number is the mean of a raster (elevation in metres, NDVI) or the share of a class in one (clouds, land cover).
Beside the encoder stand the untrained encoder, the mean and deviation of each band, and the training split's mean. The
paper has no such protocol; all of it is a choice of ours.

Shape legend: N training and M test samples, D width.
"""

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pipeline.errors import ConfigError, DataError
from pipeline.evaluation.inputs import modality_sets
from pipeline.evaluation.labelled import keys_sha256
from pipeline.evaluation.riders import UNCLASSIFIED, Rider, find_rider
from pipeline.evaluation.untrained import UNTRAINED, untrained_twin
from pipeline.features import COLOUR, collect_features, standardise
from pipeline.ridge import ridge_scores
from sharding.bands import are_classes

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.frozen import FrozenModel
    from sharding.manifest import ArraySpec

_MEASURES: Final = ("dem", "ndvi")
"""Arrays that are taken before any raster of classes where none is named."""


@dataclass(frozen=True, kw_only=True)
class RegressSettings:
    """Which number is predicted, and how."""

    raster: str = ""
    """Array that rides along; empty: dem, else ndvi, else the first whose numbers are classes."""
    band: str = ""
    """Its band; empty: the first."""
    code: int | None = None
    """Of a raster of classes, whose share is the number; by default the one with most pixels in training."""
    strengths: tuple[float, ...] = (0.001, 0.01, 0.1, 1.0, 10.0)
    """Of the ridge; the one is taken that does best on a fifth of the training samples when fitted to the others."""
    batch_size: int = 128
    """Samples of one forward pass."""
    train_split: str = "train"
    """Split to which the ridge is fitted."""
    test_split: str = "test"
    """Split that is scored."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"regress.batch_size = {self.batch_size} must be at least 1")
        if not self.strengths or any(not strength > 0 for strength in self.strengths):
            raise ConfigError(f"regress.strengths = {list(self.strengths)} must be numbers above 0, such as [0.1,1]")


@dataclass(frozen=True, kw_only=True)
class RegressionScores:
    """Over one whole test set."""

    r2: float
    """1 - squared error / squared deviation from the test set's own mean; below 0 is worse than that mean."""
    rmse: float
    """Root of the mean squared error, in the number's units."""


def regression_scores(predicted_M: "Tensor", true_M: "Tensor") -> RegressionScores:
    """The scores in float64; DataError when all true numbers are equal, for then there is nothing to explain."""
    predicted_M, true_M = predicted_M.double(), true_M.double()
    error, spread = ((predicted_M - true_M) ** 2).mean(), ((true_M - true_M.mean()) ** 2).mean()
    if not spread > 0:
        raise DataError(
            f"all {len(true_M)} test samples have the number {float(true_M[0]):g}: there is nothing to predict; choose "
            "another regress.raster or regress.code"
        )
    return RegressionScores(r2=float(1 - error / spread), rmse=float(error.sqrt()))


def regress(frozen: "FrozenModel", settings: RegressSettings, untrained_seed: int) -> dict[str, Any]:
    """The figures of each set of modalities, as they are printed and stored.

    Raises DataError when nothing that can be predicted rides along, or a split has no sample with it.
    """
    import torch

    rider = _find(frozen, settings)
    if settings.code is not None and not rider.is_class:
        raise ConfigError(f"regress.code = {settings.code}: the numbers of {rider.spec.name} are no classes")
    code = settings.code
    if code is None and rider.is_class:
        code = _most_frequent(frozen, rider, settings)
    models = {"encoder": frozen.model, UNTRAINED: untrained_twin(frozen.model, untrained_seed)}
    train, test = (
        _Numbers(frozen, rider, code, models, split, settings.batch_size)
        for split in (settings.train_split, settings.test_split)
    )
    inner = torch.tensor([hashlib.sha256(key.encode()).digest()[0] % 5 > 0 for key in train.keys])

    def scored(title: str, name: str) -> dict[str, Any]:
        features = standardise(train.features[title][name], test.features[title][name])
        strength = _best_strength(features[0], train.targets, inner, settings.strengths)
        predicted = ridge_scores(*features, train.targets[:, None], strength)[:, 0]
        return vars(regression_scores(predicted, test.targets)) | {"strength": strength}

    constant = train.targets.mean().expand(len(test.targets))
    return {
        "raster": rider.spec.name,
        "band": rider.band,
        "number": _say(rider, code),
        "units": "share" if rider.is_class else rider.spec.units,
        "splits": {"train": train.about, "test": test.about},
        "untrained_seed": untrained_seed,
        "constant": vars(regression_scores(constant, test.targets)),
        "results": [
            {"modalities": name} | {title: scored(title, name) for title in (*models, COLOUR)}
            for name in modality_sets(frozen.given)
        ],
    }


def _find(frozen: "FrozenModel", settings: RegressSettings) -> Rider:
    """Of what rides along, what is asked for; else what comes first of `_MEASURES` and then of rasters of classes."""
    ranks = {name: rank for rank, name in enumerate(_MEASURES)}

    def rank(spec: "ArraySpec") -> int | None:
        return ranks.get(spec.name, len(ranks) if are_classes(spec.bands, spec.units) else None)

    return find_rider(frozen, settings.raster, settings.band, "regress.raster", rank)


def _say(rider: Rider, code: int | None) -> str:
    return f"share of {rider.band} {code}" if code is not None else f"mean of {rider.band}"


def _most_frequent(frozen: "FrozenModel", rider: Rider, settings: RegressSettings) -> int:
    """The code with most pixels in the training split, but for those that are no class."""
    import torch

    pixels: dict[int, int] = {}
    frozen.manifest.shards_of(settings.train_split)
    for batch, _, _ in frozen.batches(settings.train_split, settings.batch_size, riders=[rider.spec.name]):
        stored, known = rider.stored(batch)
        for code, count in zip(*torch.unique(stored[known], return_counts=True), strict=True):
            if int(code) not in UNCLASSIFIED.get(rider.band, ()):
                pixels[int(code)] = pixels.get(int(code), 0) + int(count)
    if not pixels:
        raise DataError(f"no sample of '{settings.train_split}' of {frozen.data.url} has a class in {rider.spec.name}")
    return max(pixels, key=lambda code: (pixels[code], -code))


def _best_strength(train_ND: "Tensor", targets_N: "Tensor", inner_N: "Tensor", strengths: tuple[float, ...]) -> float:
    """The strength with the smallest squared error on the samples that are not `inner_N`, fitted to those that are."""
    if len(strengths) == 1 or inner_N.all() or not inner_N.any():
        return strengths[len(strengths) // 2]
    outer_N = ~inner_N

    def error(strength: float) -> float:
        predicted = ridge_scores(train_ND[inner_N], train_ND[outer_N], targets_N[inner_N, None], strength)[:, 0]
        return float(((predicted - targets_N[outer_N]) ** 2).mean())

    return min(strengths, key=error)


class _Numbers:
    """Features and the number of each sample of a split that has it and all modalities."""

    def __init__(
        self, frozen: "FrozenModel", rider: Rider, code: int | None, models: dict[str, Any], split: str, batch_size: int
    ) -> None:
        import torch

        frozen.manifest.shards_of(split)
        targets: list[Tensor] = []
        keys: list[str] = []

        def look(batch: Any, valid: dict[str, "Tensor"]) -> None:
            numbers_B = _number(rider, code, batch)
            for name in frozen.given:
                numbers_B = numbers_B.where(valid[name].any(dim=1), torch.nan)
            targets.append(numbers_B.cpu())
            keys.extend(batch.keys)

        found = collect_features(frozen, models, split, batch_size, riders=[rider.spec.name], look=look)
        numbers_N = torch.cat(targets)
        kept = numbers_N.isfinite()
        if not kept.any():
            raise DataError(
                f"no sample of the split '{split}' of {frozen.data.url} has {rider.spec.name} and all modalities; "
                "choose another split"
            )
        self.targets = numbers_N[kept]
        self.keys = [key for key, is_kept in zip(keys, kept.tolist(), strict=True) if is_kept]
        self.features = {title: {name: x[kept] for name, x in of.items()} for title, of in found.items()}
        self.about = {
            "split": split,
            "samples": len(self.keys),
            "without_the_number_or_a_modality": len(keys) - len(self.keys),
            "mean": float(self.targets.mean()),
            "std": float(self.targets.std(correction=0)),
            "keys_sha256": keys_sha256(self.keys),
        }


def _number(rider: Rider, code: int | None, batch: Any) -> "Tensor":
    """(B,) float64, NaN where nothing was measured: the mean, or the share of the class `code`, of what was."""
    values, known = rider.stored(batch) if code is not None else rider.values(batch)
    counted = (values == code).double() if code is not None else values
    total_B = counted.where(known, 0.0).flatten(1).sum(dim=1)
    return total_B / known.flatten(1).sum(dim=1)  # 0 / 0 is NaN
