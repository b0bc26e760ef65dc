"""What a frozen encoder makes of labelled samples, beside two floors, and how well that tells their labels.

The floors are the mean and standard deviation of each band, and the same encoder untrained: an encoder below the first
has learnt nothing beyond colour, one below the second nothing at all.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from pipeline.errors import ConfigError
from pipeline.evaluation.inputs import modality_sets
from pipeline.evaluation.labelled import LabelledSplit, keys_sha256, read_labelled, subset
from pipeline.evaluation.seeds import over_seeds
from pipeline.evaluation.task import TaskName, task_of
from pipeline.evaluation.untrained import UNTRAINED, untrained_twin

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

    from pipeline.evaluation.task import Task
    from pipeline.frozen import FrozenModel

Scorer = Callable[["Tensor", "Tensor", "Tensor", int, "Task"], "Tensor"]
"""Standardised training features (samples, width), test features, training labels (samples, classes), a seed and the
kind of labels to the test samples' scores (samples, classes)."""


COLOUR: Final = "colour_statistics"
"""The floor's name in the results."""


def score_inputs(
    frozen: "FrozenModel",
    scorer: Scorer,
    *,
    train_split: str,
    test_split: str,
    batch_size: int,
    untrained_seed: int,
    task: TaskName = "auto",
    labels: float = 1.0,
    seeds: Sequence[int] = (),
) -> dict[str, Any]:
    """The scorer's figures for each set of modalities, as they are printed and stored.

    With `seeds`, for each of them, on a subset of `labels` of the training samples that is drawn by the seed. Features
    are standardised with the training samples that the scorer sees. Raises DataError when the data set has no labels,
    lacks a split, or a split has no labelled sample.
    """
    import torch

    kind = task_of(frozen.manifest, task)
    is_single = kind.name == "single-label"
    vocabulary = frozen.manifest.labels
    train, test = (read_labelled(frozen, split, is_single) for split in (train_split, test_split))
    chosen = {seed: subset(train.keys, labels, seed) for seed in seeds or (0,)}
    read = _union(list(chosen.values()))
    models = {"encoder": frozen.model, UNTRAINED: untrained_twin(frozen.model, untrained_seed)}
    train_features = collect_features(frozen, models, train_split, batch_size, train.numbers[read])
    test_features = collect_features(frozen, models, test_split, batch_size, test.numbers)
    train_labels, test_labels = (torch.from_numpy(split.labels_NC) for split in (train, test))

    def scored(train_all: "Tensor", test_all: "Tensor") -> dict[str, Any]:
        figures = {}
        for seed, places in chosen.items():
            rows = torch.from_numpy(_places_in(read, places))
            features = standardise(train_all[rows], test_all)
            scores = scorer(*features, train_labels[torch.from_numpy(places)], seed, kind)
            figures[seed] = kind.score(scores, test_labels, vocabulary, batch_size)
        return over_seeds(figures) if seeds else figures[0]

    return {
        **labels_about(kind, vocabulary, train, test, train_labels, test_labels, batch_size),
        "labels": labels,
        "subsets": _subsets_about(train, chosen, seeds),
        "untrained_seed": untrained_seed,
        "results": [
            {"modalities": name}
            | {title: scored(of_train[name], test_features[title][name]) for title, of_train in train_features.items()}
            for name in modality_sets(frozen.given)
        ],
    }


def labels_about(
    kind: "Task",
    vocabulary: tuple[str, ...],
    train: LabelledSplit,
    test: LabelledSplit,
    train_labels: "Tensor",
    test_labels: "Tensor",
    batch: int,
) -> dict[str, Any]:
    """What every result on labels says of its task, splits and classes, and the figures of a constant prediction."""
    has_positive = test_labels.any(dim=0).tolist()
    about: dict[str, Any] = {
        "task": kind.name,
        "columns": [list(column) for column in kind.columns],
        "splits": {"train": train.about, "test": test.about},
        "classes": len(vocabulary),
        "classes_without_positives": [word for word, has in zip(vocabulary, has_positive, strict=True) if not has],
        "prevalence": kind.constant(train_labels, test_labels, vocabulary),
    }
    if kind.name == "multi-label":
        about["micro_ap_per_batch"] = {
            "batch": batch,
            "meaning": "as published code counts it: the mean of the micro AP of each batch of the test split, in the "
            "order of the index, a short last batch dropped",
        }
    return about


def _subsets_about(
    train: LabelledSplit, chosen: Mapping[int, "npt.NDArray[np.int64]"], seeds: Sequence[int]
) -> list[dict[str, Any]]:
    """Size and hash of what each seed has drawn; empty where nothing is."""
    return [
        {
            "seed": seed,
            "samples": len(chosen[seed]),
            "keys_sha256": keys_sha256(train.keys[place] for place in chosen[seed].tolist()),
        }
        for seed in seeds
    ]


def _union(parts: "list[npt.NDArray[np.int64]]") -> "npt.NDArray[np.int64]":
    import numpy as np

    return np.unique(np.concatenate(parts))


def _places_in(read: "npt.NDArray[np.int64]", places: "npt.NDArray[np.int64]") -> "npt.NDArray[np.int64]":
    """Where among the rising `read` the `places` are, all of which are there."""
    import numpy as np

    return np.searchsorted(read, places)


def check_share(name: str, share: float) -> None:
    """ConfigError unless it is a share of something."""
    if not 0 < share <= 1:
        raise ConfigError(f"{name} = {share} must be above 0 and at most 1; 0.01 is 1 %")


def collect_features(
    frozen: "FrozenModel",
    models: Mapping[str, Any],
    split: str,
    batch_size: int,
    samples: "npt.NDArray[np.int64] | None" = None,
    riders: Collection[str] = (),
    look: Callable[[Any, dict[str, "Tensor"]], None] = lambda batch, valid: None,
) -> dict[str, dict[str, "Tensor"]]:
    """Features of the samples of `split` with these numbers, or of all, in their order.

    By model, and under `COLOUR` for the mean and standard deviation of each band (samples, 2 x bands), then by set of
    modalities (`s1`, `s2`, `s1+s2`): the mean-pooled features, (samples, width), float32. `look` is shown each batch,
    with the arrays of `riders`, and its valid bands.
    """
    import torch

    sets = modality_sets(frozen.given)
    found: dict[str, dict[str, list[Tensor]]] = {title: {name: [] for name in sets} for title in (*models, COLOUR)}
    for batch, images, valid in frozen.batches(split, batch_size, samples, riders):
        look(batch, valid)
        statistics = {name: colour_statistics(images[name], valid[name]) for name in frozen.given}
        for name, members in sets.items():
            for title, model in models.items():
                with torch.inference_mode():
                    features = model.features({member: images[member] for member in members})
                found[title][name].append(features.float().cpu())
            colour = torch.cat([statistics[member] for member in members], dim=1)
            found[COLOUR][name].append(colour.cpu())
    return {title: {name: torch.cat(parts) for name, parts in of.items()} for title, of in found.items()}


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
