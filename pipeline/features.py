"""What a frozen encoder makes of labelled samples, beside a floor, and how well that tells their labels.

The floor is the mean and standard deviation of each band: an encoder below it has learnt nothing beyond colour.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.errors import DataError
from pipeline.scores import as_dict, average_precision, constant_scores

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.frozen import FrozenModel

Scorer = Callable[["Tensor", "Tensor", "Tensor"], "Tensor"]
"""Standardised training features (samples, width), test features and training labels (samples, classes) to the test
samples' scores (samples, classes)."""


@dataclass(frozen=True, kw_only=True)
class Features:
    """What is known of the labelled samples of one split."""

    encoder: dict[str, "Tensor"]
    """By set of modalities (`s1`, `s2`, `s1+s2`): the encoder's mean-pooled features, (samples, width)."""
    colour: dict[str, "Tensor"]
    """The same sets' floor: mean and standard deviation of each band, (samples, 2 x bands)."""
    labels: "Tensor"
    """(samples, classes), bool."""
    num_unlabelled: int
    """Samples left out because they have no label."""
    num_incomplete: int
    """Samples left out because they have no band of a modality that others of the data set have."""


def score_inputs(
    frozen: "FrozenModel", scorer: Scorer, *, train_split: str, test_split: str, batch_size: int
) -> dict[str, Any]:
    """The scorer's figures for each set of modalities, as they are printed and stored.

    Raises DataError when the data set has no labels, lacks a split, or a split has no labelled sample.
    """
    vocabulary = frozen.manifest.labels
    if not vocabulary:
        raise DataError(
            f"the data set {frozen.data.url} has no labels, which this evaluation needs; build one from a labelled "
            "source such as BigEarthNet, and give it as data.url=..."
        )
    for split in (train_split, test_split):
        frozen.manifest.shards_of(split)
    train = collect_features(frozen, train_split, batch_size)
    test = collect_features(frozen, test_split, batch_size)

    def scored(train_features: "Tensor", test_features: "Tensor") -> dict[str, Any]:
        scores = scorer(*standardise(train_features, test_features), train.labels)
        return as_dict(average_precision(scores, test.labels), vocabulary)

    prevalence = constant_scores(test.labels)
    return {
        "splits": {
            name: {
                "split": split,
                "samples": len(features.labels),
                "without_labels": features.num_unlabelled,
                "without_a_modality": features.num_incomplete,
            }
            for name, split, features in (("train", train_split, train), ("test", test_split, test))
        },
        "classes": len(vocabulary),
        "classes_without_positives": [
            word for word, value in zip(vocabulary, prevalence.per_class, strict=True) if value is None
        ],
        "prevalence": as_dict(prevalence, vocabulary),
        "results": [
            {
                "modalities": name,
                "encoder": scored(train.encoder[name], test.encoder[name]),
                "colour_statistics": scored(train.colour[name], test.colour[name]),
            }
            for name in train.encoder
        ],
    }


def collect_features(frozen: "FrozenModel", split: str, batch_size: int) -> Features:
    """Features and labels of every labelled, complete sample of `split`; DataError when there is none.

    Complete: with a band of each modality that the data set has at all.
    """
    import torch

    modalities = frozen.given
    sets: dict[str, tuple[str, ...]] = {name: (name,) for name in modalities}
    if len(modalities) > 1:
        sets["+".join(modalities)] = modalities
    encoder: dict[str, list[Tensor]] = {name: [] for name in sets}
    colour: dict[str, list[Tensor]] = {name: [] for name in sets}
    labels: list[Tensor] = []
    num_unlabelled = num_incomplete = 0
    for batch, images, valid in frozen.batches(split, batch_size):
        labelled = batch.labels.bool().any(dim=1)
        complete = torch.stack([valid[name].any(dim=1) for name in modalities]).all(dim=0)
        num_unlabelled += int((~labelled).sum())
        num_incomplete += int((labelled & ~complete).sum())
        kept = labelled & complete
        if not kept.any():
            continue
        images = {name: image[kept] for name, image in images.items()}
        statistics = {name: colour_statistics(images[name], valid[name][kept]) for name in modalities}
        for name, members in sets.items():
            with torch.inference_mode():
                features = frozen.model.features({member: images[member] for member in members})
            encoder[name].append(features.float().cpu())
            colour[name].append(torch.cat([statistics[member] for member in members], dim=1).cpu())
        labels.append(batch.labels[kept].bool().cpu())
    if not labels:
        raise DataError(
            f"the split '{split}' of {frozen.data.url} has no sample with labels and all modalities "
            f"({num_unlabelled} without labels, {num_incomplete} without a modality); choose another split"
        )
    return Features(
        encoder={name: torch.cat(parts) for name, parts in encoder.items()},
        colour={name: torch.cat(parts) for name, parts in colour.items()},
        labels=torch.cat(labels),
        num_unlabelled=num_unlabelled,
        num_incomplete=num_incomplete,
    )


def colour_statistics(images: "Tensor", valid: "Tensor") -> "Tensor":
    """Mean and standard deviation of each band of (samples, bands, height, width), 0 where a band is absent."""
    import torch

    pixels = images.float().flatten(2)
    return torch.cat([pixels.mean(dim=2) * valid, pixels.std(dim=2, correction=0) * valid], dim=1)


def standardise(train: "Tensor", test: "Tensor") -> tuple["Tensor", "Tensor"]:
    """Both with the mean 0 and standard deviation 1 that make `train` so; constant features become 0."""
    mean = train.mean(dim=0)
    std = train.std(dim=0, correction=0)
    scale = (std > 1e-6).to(std.dtype) / std.clamp(min=1e-6)
    return (train - mean) * scale, (test - mean) * scale
