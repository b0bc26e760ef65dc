"""The linear probe: how much of a scene's labels a frozen encoder's features hold.

Protocol of Fus-MAE section 4.2 (encoder and projection frozen, AdamW, multi-label soft margin loss, 20 epochs,
batch 128) for S1 alone, S2 alone and both. What the paper leaves open is a setting. Average precision is computed
once over the whole test set: the mean over batches, which much of the field reports, is another number.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.errors import ConfigError, DataError

if TYPE_CHECKING:
    import torch

    from pipeline.frozen import FrozenModel


@dataclass(frozen=True, kw_only=True)
class ProbeSettings:
    """How the linear probe is trained and scored."""

    epochs: int = 20
    """Passes over the training split."""
    lr: float = 0.01
    """AdamW's learning rate, constant, on standardised features; the paper does not give one."""
    weight_decay: float = 0.01
    """AdamW's decay of the probe's weights."""
    batch_size: int = 128
    """Samples of one step, of the probe and of the feature extraction."""
    seed: int = 0
    """Seed of the order of the samples."""
    train_split: str = "train"
    """Split on whose features the probe is trained."""
    test_split: str = "test"
    """Split on which it is scored."""

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1:
            raise ConfigError(
                f"probe.epochs = {self.epochs} and probe.batch_size = {self.batch_size} must be at least 1"
            )
        if not self.lr > 0 or self.weight_decay < 0:
            raise ConfigError(
                f"probe.lr = {self.lr} must be above 0 and probe.weight_decay = {self.weight_decay} at least 0"
            )


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Average precision over one whole test set."""

    micro: float
    """Over all decisions (samples x classes) at once."""
    macro: float
    """Mean over the classes that have a positive in the test set."""
    per_class: tuple[float | None, ...]
    """None for a class without a positive: its average precision is undefined."""


@dataclass(frozen=True, kw_only=True)
class Features:
    """What the probe sees of one split."""

    encoder: dict[str, "torch.Tensor"]
    """By set of modalities (`s1`, `s2`, `s1+s2`): the encoder's mean-pooled features, (samples, width)."""
    colour: dict[str, "torch.Tensor"]
    """The same sets' floor: mean and standard deviation of each band, (samples, 2 x bands)."""
    labels: "torch.Tensor"
    """(samples, classes), bool."""
    num_unlabelled: int
    """Samples left out because they have no label."""
    num_incomplete: int
    """Samples left out because they have no band of a modality that others of the data set have."""


def probe(frozen: "FrozenModel", settings: ProbeSettings) -> dict[str, Any]:
    """The probe's figures for each set of modalities, as they are printed and stored.

    Raises DataError when the data set has no labels, lacks a split, or a split has no labelled sample.
    """
    vocabulary = frozen.manifest.labels
    if not vocabulary:
        raise DataError(
            f"the data set {frozen.data.url} has no labels, which a linear probe needs; build one from a labelled "
            "source such as BigEarthNet, and give it as data.url=..."
        )
    for split in (settings.train_split, settings.test_split):
        frozen.manifest.shards_of(split)
    train = collect_features(frozen, settings.train_split, settings.batch_size)
    test = collect_features(frozen, settings.test_split, settings.batch_size)

    rows = []
    for name in train.encoder:
        pair = (train.labels, test.labels, settings)
        rows.append(
            {
                "modalities": name,
                "encoder": _as_dict(score_probe(train.encoder[name], test.encoder[name], *pair), vocabulary),
                "colour_statistics": _as_dict(score_probe(train.colour[name], test.colour[name], *pair), vocabulary),
            }
        )
    prevalence = constant_scores(test.labels)
    return {
        "splits": {
            name: {
                "split": split,
                "samples": len(features.labels),
                "without_labels": features.num_unlabelled,
                "without_a_modality": features.num_incomplete,
            }
            for name, split, features in (
                ("train", settings.train_split, train),
                ("test", settings.test_split, test),
            )
        },
        "classes": len(vocabulary),
        "classes_without_positives": [
            word for word, value in zip(vocabulary, prevalence.per_class, strict=True) if value is None
        ],
        "prevalence": _as_dict(prevalence, vocabulary),
        "results": rows,
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
    encoder: dict[str, list[torch.Tensor]] = {name: [] for name in sets}
    colour: dict[str, list[torch.Tensor]] = {name: [] for name in sets}
    labels: list[torch.Tensor] = []
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


def colour_statistics(images: "torch.Tensor", valid: "torch.Tensor") -> "torch.Tensor":
    """Mean and standard deviation of each band of (samples, bands, height, width), 0 where a band is absent."""
    import torch

    pixels = images.float().flatten(2)
    return torch.cat([pixels.mean(dim=2) * valid, pixels.std(dim=2, correction=0) * valid], dim=1)


def score_probe(
    train: "torch.Tensor",
    test: "torch.Tensor",
    train_labels: "torch.Tensor",
    test_labels: "torch.Tensor",
    settings: ProbeSettings,
) -> Scores:
    """Train a linear layer on `train` (samples, width), score it on `test`."""
    train, test = standardise(train, test)
    weight, bias = fit(train, train_labels, settings)
    return average_precision(test @ weight.T + bias, test_labels)


def standardise(train: "torch.Tensor", test: "torch.Tensor") -> tuple["torch.Tensor", "torch.Tensor"]:
    """Both with the mean 0 and standard deviation 1 that make `train` so; constant features become 0."""
    mean = train.mean(dim=0)
    std = train.std(dim=0, correction=0)
    scale = (std > 1e-6).to(std.dtype) / std.clamp(min=1e-6)
    return (train - mean) * scale, (test - mean) * scale


def fit(
    features: "torch.Tensor", labels: "torch.Tensor", settings: ProbeSettings
) -> tuple["torch.Tensor", "torch.Tensor"]:
    """Weight (classes, width) and bias (classes,) of the probe, begun at 0: the same call gives the same numbers."""
    import torch
    from torch.nn.functional import linear, multilabel_soft_margin_loss

    weight = torch.zeros(labels.shape[1], features.shape[1], requires_grad=True)
    bias = torch.zeros(labels.shape[1], requires_grad=True)
    optimiser = torch.optim.AdamW(
        [{"params": [weight], "weight_decay": settings.weight_decay}, {"params": [bias], "weight_decay": 0.0}],
        lr=settings.lr,
    )
    order = torch.Generator().manual_seed(settings.seed)
    targets = labels.float()
    for _ in range(settings.epochs):
        for chosen in torch.split(torch.randperm(len(features), generator=order), settings.batch_size):
            loss = multilabel_soft_margin_loss(linear(features[chosen], weight, bias), targets[chosen])
            optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimiser.step()
    return weight.detach(), bias.detach()


def average_precision(scores: "torch.Tensor", labels: "torch.Tensor") -> Scores:
    """Micro and macro average precision of (samples, classes) scores, over all samples at once."""
    import torch
    from torchmetrics.functional.classification import binary_average_precision

    # torchmetrics squashes scores outside [0, 1] with a sigmoid, which makes ties of large ones; ranks lie inside.
    values, ranks = torch.unique(scores.double(), return_inverse=True)
    scores = ranks.double() / max(1, len(values) - 1)
    labels = labels.long()
    per_class = tuple(
        float(binary_average_precision(scores[:, i], labels[:, i])) if labels[:, i].any() else None
        for i in range(labels.shape[1])
    )
    defined = [value for value in per_class if value is not None]
    if not defined:
        raise DataError("no class has a positive in the test split; choose another with probe.test_split=...")
    return Scores(
        micro=float(binary_average_precision(scores.flatten(), labels.flatten())),
        macro=sum(defined) / len(defined),
        per_class=per_class,
    )


def constant_scores(labels: "torch.Tensor") -> Scores:
    """The scores of a predictor that says the same for every sample and class: the share of positives."""
    share = labels.double().mean(dim=0)
    per_class = tuple(float(value) if value > 0 else None for value in share)
    defined = [value for value in per_class if value is not None]
    if not defined:
        raise DataError("no class has a positive in the test split; choose another with probe.test_split=...")
    return Scores(micro=float(share.mean()), macro=sum(defined) / len(defined), per_class=per_class)


def _as_dict(scores: Scores, vocabulary: tuple[str, ...]) -> dict[str, Any]:
    return {
        "micro": scores.micro,
        "macro": scores.macro,
        "per_class": dict(zip(vocabulary, scores.per_class, strict=True)),
    }
