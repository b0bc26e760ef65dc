"""Segmentation: a linear head over frozen patch tokens, upsampled to pixels, against a raster of classes.

Each token's features, normalised over their width, go through one linear layer; its scores are interpolated bilinearly
to the pixels. Beside it the same on the untrained encoder's tokens, and the floor: a linear layer on each pixel's band
values. The paper has no such protocol; all of it is a choice of ours.

Shape legend: B samples, C classes, D width, G patches along a side, S pixels along a side.
"""

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.errors import ConfigError, DataError
from pipeline.evaluation.inputs import chosen_sets
from pipeline.evaluation.labelled import keys_sha256
from pipeline.evaluation.riders import UNCLASSIFIED, Rider, central_window, find_rider
from pipeline.evaluation.seeds import check_seeds, over_seeds
from pipeline.evaluation.training import training_steps
from pipeline.evaluation.untrained import UNTRAINED, untrained_twin
from pipeline.features import COLOUR
from pipeline.pixel_scores import confusion, pixel_scores
from sharding.bands import are_classes

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.frozen import FrozenModel
    from sharding.manifest import ArraySpec


@dataclass(frozen=True, kw_only=True)
class SegmentSettings:
    """On which raster the head is trained, and how."""

    raster: str = ""
    """Array that rides along, such as reference_map or lulc; empty: the first whose numbers are classes."""
    band: str = ""
    """Its band; empty: the first."""
    ignore: tuple[int, ...] = ()
    """Codes that are no class, besides nodata and CORINE's 990, 995 and 999."""
    epochs: int = 10
    """Passes over the training split."""
    batch_size: int = 32
    """Samples of one step."""
    lr: float = 1e-3
    """AdamW's learning rate, constant."""
    weight_decay: float = 0.01
    """AdamW's decay of the heads' weights."""
    seeds: tuple[int, ...] = (0,)
    """Of the order of the samples."""
    inputs: tuple[str, ...] = ()
    """Sets of modalities, such as [s1+s2]; empty: each modality alone, and all."""
    train_split: str = "train"
    """Split on which the heads are trained."""
    test_split: str = "test"
    """Split that is scored."""

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1:
            raise ConfigError(
                f"segment.epochs = {self.epochs} and segment.batch_size = {self.batch_size} must be at least 1"
            )
        if not self.lr > 0 or self.weight_decay < 0:
            raise ConfigError(
                f"segment.lr = {self.lr} must be above 0 and segment.weight_decay = {self.weight_decay} at least 0"
            )
        check_seeds("segment.seeds", self.seeds)


def segment(frozen: "FrozenModel", settings: SegmentSettings, untrained_seed: int) -> dict[str, Any]:
    """The figures of each set of modalities, as they are printed and stored.

    A class that only the test split has cannot be predicted and counts with 0. Raises DataError when no raster of
    classes rides along or a split has none, ConfigError when the model has no patch tokens.
    """
    import torch

    if not hasattr(frozen.model, "encode"):
        raise ConfigError(f"{type(frozen.model).__name__} gives no patch tokens, which segmentation needs")
    rider = find_rider(frozen, settings.raster, settings.band, "segment.raster", _rank)
    sets = chosen_sets(frozen.given, settings.inputs, "segment.inputs")
    targets = _Targets(frozen, rider, {*settings.ignore, *UNCLASSIFIED.get(rider.band, ())})
    found = {name: targets.scan(split, settings.batch_size) for name, split in _splits(settings).items()}
    codes = sorted(found["train"].pixels)
    codes += sorted(found["test"].pixels.keys() - found["train"].pixels.keys())
    num_trained = len(found["train"].pixels)
    targets.codes = torch.tensor(codes, dtype=torch.float64, device=frozen.device)
    models = {"encoder": frozen.model, UNTRAINED: untrained_twin(frozen.model, untrained_seed)}
    figures: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for seed in settings.seeds:
        heads = _Heads(frozen, models, sets, num_trained)
        heads.train(targets, settings, seed)
        for head, counts in heads.confusions(targets, settings, len(codes)).items():
            figures.setdefault(head, {})[seed] = _figures(counts, codes)
    most = found["train"].pixels.most_common(1)[0][0]
    constant = torch.zeros(len(codes), len(codes), dtype=torch.int64)
    constant[:, codes.index(most)] = torch.tensor([found["test"].pixels[code] for code in codes])
    return {
        "raster": rider.spec.name,
        "band": rider.band,
        "classes": codes,
        "classes_without_training": codes[num_trained:],
        "splits": {
            name: {
                "split": split,
                "samples": len(found[name].keys),
                "without_a_raster_or_modality": found[name].num_left_out,
                "pixels": sum(found[name].pixels.values()),
                "keys_sha256": keys_sha256(found[name].keys),
            }
            for name, split in _splits(settings).items()
        },
        "untrained_seed": untrained_seed,
        "constant": _figures(constant, codes),
        "results": [
            {"modalities": name} | {title: over_seeds(figures[name, title]) for title in (*models, COLOUR)}
            for name in sets
        ],
    }


def _rank(spec: "ArraySpec") -> int | None:
    """Any raster of classes; clouds, which are no land cover, last."""
    if not are_classes(spec.bands, spec.units):
        return None
    return int(spec.name == "cloud_mask")


def _splits(settings: SegmentSettings) -> dict[str, str]:
    return {"train": settings.train_split, "test": settings.test_split}


def _figures(counts_CC: "Tensor", codes: list[int]) -> dict[str, Any]:
    scores = pixel_scores(counts_CC)
    per_class = {str(code): value for code, value in zip(codes, scores.per_class, strict=True)}
    return {"miou": scores.miou, "pixel_accuracy": scores.pixel_accuracy, "per_class": per_class}


@dataclass(frozen=True, kw_only=True)
class _Scan:
    """What the rasters of a split hold."""

    pixels: Counter[int]
    """Pixels by code."""
    keys: list[str]
    """Samples with at least one pixel of a class."""
    num_left_out: int


class _Targets:
    """The rasters as class numbers."""

    def __init__(self, frozen: "FrozenModel", rider: Rider, ignored: set[int]) -> None:
        self._frozen, self.rider, self._ignored = frozen, rider, sorted(ignored)
        self._window = central_window(frozen, rider)
        self.codes: Any = None
        """(C,) float64: the code of each class."""

    def scan(self, split: str, batch_size: int) -> _Scan:
        """Codes and samples of `split`; DataError when no sample has a raster."""
        import torch

        self._frozen.manifest.shards_of(split)
        pixels, keys, num_left_out = Counter[int](), list[str](), 0
        for batch, _, valid in self._frozen.batches(split, batch_size, riders=[self.rider.spec.name]):
            stored, known = self._known(batch, valid)
            for code, count in zip(*torch.unique(stored[known], return_counts=True), strict=True):
                pixels[int(code)] += int(count)
            kept = known.flatten(1).any(dim=1).tolist()
            keys += [key for key, is_kept in zip(batch.keys, kept, strict=True) if is_kept]
            num_left_out += len(kept) - sum(kept)
        if not keys:
            raise DataError(
                f"no sample of the split '{split}' of {self._frozen.data.url} has a class in {self.rider.spec.name} "
                "and all modalities; choose another split"
            )
        return _Scan(pixels=pixels, keys=keys, num_left_out=num_left_out)

    def of(self, batch: Any, valid: dict[str, "Tensor"]) -> "Tensor":
        """(B, S, S) int64: the class of each pixel by its place in `codes`, -1 where it has none."""
        import torch

        stored, known = self._known(batch, valid)
        order = torch.argsort(self.codes)
        places = order[torch.searchsorted(self.codes[order], stored.contiguous()).clamp(max=len(order) - 1)]
        return places.where(known, -1)

    def _known(self, batch: Any, valid: dict[str, "Tensor"]) -> tuple["Tensor", "Tensor"]:
        """The window's codes, and which of them are of a class and in a sample with all modalities."""
        stored, measured = self.rider.stored(batch)
        rows, columns = self._window
        stored, known = stored[:, rows, columns], measured[:, rows, columns]
        for code in self._ignored:
            known = known & (stored != code)
        for name in self._frozen.given:
            known = known & valid[name].any(dim=1)[:, None, None]
        return stored, known


class _Heads:
    """A linear head for each set of modalities and each kind of features, all trained in one pass over the data."""

    def __init__(
        self, frozen: "FrozenModel", models: dict[str, Any], sets: dict[str, tuple[str, ...]], num_classes: int
    ) -> None:
        import torch

        self._frozen, self._models, self._sets = frozen, models, sets
        config = frozen.model.config
        bands = {modality.name: len(modality.bands) for modality in config.modalities}
        self._heads: dict[tuple[str, str], Any] = {}
        for name, members in sets.items():
            for title in (*models, COLOUR):
                width = sum(bands[m] for m in members) if title == COLOUR else len(members) * config.width
                head = torch.nn.Conv2d(width, num_classes, 1).to(frozen.device)
                torch.nn.init.zeros_(head.weight)  # begun at 0: nothing is drawn
                torch.nn.init.zeros_(head.bias)  # type: ignore[arg-type]
                self._heads[name, title] = head

    def train(self, targets: _Targets, settings: SegmentSettings, seed: int) -> None:
        """Pixels without a class do not count, nor do classes of the test split alone."""
        import torch
        from torch.nn.functional import cross_entropy

        parameters = [parameter for head in self._heads.values() for parameter in head.parameters()]
        optimiser = torch.optim.AdamW(parameters, lr=settings.lr, weight_decay=settings.weight_decay)
        for step in training_steps(
            self._frozen,
            settings.train_split,
            batch_size=settings.batch_size,
            epochs=settings.epochs,
            seed=seed,
            riders=[targets.rider.spec.name],
        ):
            target_BSS = targets.of(step.batch, step.valid).where(step.counts[:, None, None], -1)
            kept = (target_BSS >= 0).flatten(1).any(dim=1)
            if not kept.any():
                continue
            optimiser.zero_grad(set_to_none=True)
            for _, logits_BCSS in self._logits({name: image[kept] for name, image in step.images.items()}):
                torch.autograd.backward(cross_entropy(logits_BCSS, target_BSS[kept], ignore_index=-1))
            optimiser.step()

    def confusions(
        self, targets: _Targets, settings: SegmentSettings, num_classes: int
    ) -> dict[tuple[str, str], "Tensor"]:
        """(C, C) of the test split, by set of modalities and kind of features."""
        import torch

        found = {head: torch.zeros(num_classes, num_classes, dtype=torch.int64) for head in self._heads}
        riders = [targets.rider.spec.name]
        for batch, images, valid in self._frozen.batches(settings.test_split, settings.batch_size, riders=riders):
            target_BSS = targets.of(batch, valid).flatten()
            with torch.no_grad():
                for head, logits_BCSS in self._logits(images):
                    counted = confusion(logits_BCSS.argmax(dim=1).flatten(), target_BSS, num_classes)
                    found[head] += counted.cpu()
        return found

    def _logits(self, images: dict[str, "Tensor"]) -> Any:
        """Head and scores (B, C, S, S), one after the other: all at once would not fit into memory."""
        import torch
        from torch.nn.functional import interpolate

        for name, members in self._sets.items():
            own = {member: images[member] for member in members}
            for title, model in self._models.items():
                with torch.no_grad():
                    maps_BDGG = token_map(model, own)
                logits = self._heads[name, title](maps_BDGG)
                size = self._frozen.model.config.image_size
                yield (name, title), interpolate(logits, size=(size, size), mode="bilinear", align_corners=False)
            yield (name, COLOUR), self._heads[name, COLOUR](torch.cat([own[member] for member in members], dim=1))


def token_map(model: Any, images: dict[str, "Tensor"]) -> "Tensor":
    """(B, D, G, G) float32: patch tokens normalised over their width; D is that of all given modalities joined."""
    import torch
    from torch.nn.functional import layer_norm

    maps = []
    for tokens_BND in model.encode(images).tokens.values():
        num_samples, num_patches, width = tokens_BND.shape
        side = round(num_patches**0.5)
        tokens_BND = layer_norm(tokens_BND.float(), (width,))
        maps.append(tokens_BND.transpose(1, 2).reshape(num_samples, width, side, side))
    return torch.cat(maps, dim=1)
