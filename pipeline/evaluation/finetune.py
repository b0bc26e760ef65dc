"""Fine-tuning: the whole encoder and a linear head are trained on labels, then scored once on the test split.

Protocol of Fus-MAE section 4 (linear classifier on top of the encoder, 10 epochs, multi-label soft margin loss, AdamW,
all labels; on S1, S2 and both). Beside it the same from random weights, which is what pretraining must beat, and the
floor of each band's mean and deviation. What the paper leaves open is a setting.
"""

import copy
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pipeline.errors import ConfigError
from pipeline.evaluation.inputs import chosen_sets
from pipeline.evaluation.labelled import LabelledSplit, read_labelled
from pipeline.evaluation.layer_decay import parameter_groups
from pipeline.evaluation.seeds import check_seeds, over_seeds
from pipeline.evaluation.task import Task, TaskName, task_of
from pipeline.evaluation.training import training_steps
from pipeline.evaluation.untrained import UNTRAINED, untrained_twin
from pipeline.features import COLOUR, collect_features, labels_about, standardise
from pipeline.linear import ProbeSettings, score_probe
from pipeline.optimiser import learning_rate
from pipeline.settings import OptimSettings

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.frozen import FrozenModel

TITLES: Final = {
    "encoder": "fine-tuned",
    UNTRAINED: "from random weights",
    COLOUR: "colour statistics (floor)",
}
"""Titles of the rows of its table."""


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings:
    """How the encoder is fine-tuned and scored."""

    epochs: int = 10
    """Passes over the training split; the paper's."""
    batch_size: int = 128
    """Samples of one step; the paper does not give one."""
    lr: float = 1e-4
    """AdamW's peak learning rate; the paper does not give one."""
    min_lr: float = 0.0
    """At the end of the half cosine; the paper does not give a schedule."""
    warmup_share: float = 0.05
    """Share of the steps with linear warm-up."""
    weight_decay: float = 0.05
    """Of matrices; biases, norms and tokens have none."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay rates."""
    layer_decay: float = 1.0
    """Factor of the learning rate from each layer to the one below; 1: none. MAE fine-tunes with 0.65 to 0.75."""
    clip: float = 0.0
    """Largest norm of the gradient; 0 does not clip."""
    label_smoothing: float = 0.1
    """Of the single-label loss."""
    flips: bool = False
    """Draw one of the eight flips and turns of the square for each sample; the paper names no augmentation."""
    bf16: bool = False
    """Forward passes under bfloat16 autocast; the weights stay float32."""
    seeds: tuple[int, ...] = (0,)
    """Each is a run of its own, with its own order and flips; figures are the mean, with the spread."""
    inputs: tuple[str, ...] = ()
    """Sets of modalities, such as [s1+s2]; empty: each modality alone, and all."""
    from_scratch: bool = True
    """Also train from random weights, which doubles the time."""
    task: TaskName = "auto"
    """auto: single-label for SEN12MS, multi-label for all others."""
    train_split: str = "train"
    """Split that is trained on."""
    val_split: str = ""
    """Split by which the best epoch is chosen; empty: the last epoch is scored."""
    test_split: str = "test"
    """Split that is scored, once."""

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1:
            raise ConfigError(
                f"finetune.epochs = {self.epochs} and finetune.batch_size = {self.batch_size} must be at least 1"
            )
        if not self.lr > 0 or self.min_lr < 0 or self.weight_decay < 0 or self.clip < 0:
            raise ConfigError(
                f"finetune.lr = {self.lr} must be above 0; finetune.min_lr = {self.min_lr}, finetune.weight_decay = "
                f"{self.weight_decay} and finetune.clip = {self.clip} at least 0"
            )
        if not (0 <= self.warmup_share < 1 and 0 < self.layer_decay <= 1 and 0 <= self.label_smoothing < 1):
            raise ConfigError(
                f"finetune.warmup_share = {self.warmup_share} and finetune.label_smoothing = {self.label_smoothing} "
                f"must be at least 0 and below 1, finetune.layer_decay = {self.layer_decay} above 0 and at most 1"
            )
        if self.val_split and self.val_split == self.test_split:
            raise ConfigError(
                f"finetune.val_split = {self.val_split} is the test split: an epoch chosen by it would be chosen by "
                "the figures that are reported; write another, or leave it empty"
            )
        check_seeds("finetune.seeds", self.seeds)


@dataclass(frozen=True, kw_only=True)
class _Splits:
    task: Task
    train: LabelledSplit
    val: LabelledSplit | None
    test: LabelledSplit


def finetune(frozen: "FrozenModel", settings: FinetuneSettings, untrained_seed: int) -> dict[str, Any]:
    """The figures of each set of modalities, as they are printed and stored.

    The given model stays as it is. Raises DataError when the data set has no labels, lacks a split, or a split has no
    labelled sample, and ConfigError for inputs that there are not.
    """
    import torch

    task = task_of(frozen.manifest, settings.task)
    is_single, vocabulary = task.name == "single-label", frozen.manifest.labels
    sets = chosen_sets(frozen.given, settings.inputs, "finetune.inputs")
    names = (settings.train_split, settings.val_split, settings.test_split)
    train, val, test = (read_labelled(frozen, name, is_single) if name else None for name in names)
    assert train is not None and test is not None
    splits = _Splits(task=task, train=train, val=val, test=test)
    train_labels, test_labels = torch.from_numpy(train.labels_NC), torch.from_numpy(test.labels_NC)
    floor = _floor(frozen, settings, splits, train_labels)
    rows = []
    for name, members in sets.items():
        row: dict[str, Any] = {"modalities": name, "training": {}}
        for title in ("encoder", UNTRAINED) if settings.from_scratch else ("encoder",):
            figures, training = {}, []
            for seed in settings.seeds:
                start = frozen.model if title == "encoder" else untrained_twin(frozen.model, untrained_seed)
                tuning = _Tuning(frozen, start, members, settings, splits, seed, f"{name}, {TITLES[title]}")
                training.append({"seed": seed} | tuning.run())
                figures[seed] = task.score(tuning.scores(test), test_labels, vocabulary, settings.batch_size)
            row[title] = over_seeds(figures)
            row["training"][title] = training
        row[COLOUR] = task.score(floor[name], test_labels, vocabulary, settings.batch_size)
        rows.append(row)
    by = f"the best {task.chosen_by} on '{val.split}'" if val is not None else "nothing: the last epoch is scored"
    return {
        **labels_about(task, vocabulary, train, test, train_labels, test_labels, settings.batch_size),
        "epoch_chosen_by": by,
        "untrained_seed": untrained_seed,
        "results": rows,
    }


def _floor(
    frozen: "FrozenModel", settings: FinetuneSettings, splits: _Splits, train_labels: "Tensor"
) -> dict[str, "Tensor"]:
    """By set of modalities: what a linear probe on each band's mean and deviation says of the test samples."""
    found = [
        collect_features(frozen, {}, split.split, settings.batch_size, split.numbers)[COLOUR]
        for split in (splits.train, splits.test)
    ]
    probing = ProbeSettings(epochs=settings.epochs, label_smoothing=settings.label_smoothing)
    return {
        name: score_probe(*standardise(found[0][name], found[1][name]), train_labels, 0, splits.task, probing)
        for name in found[0]
    }


class _Tuning:
    """One model that is fine-tuned on one set of modalities with one seed."""

    def __init__(
        self,
        frozen: "FrozenModel",
        start: Any,
        members: tuple[str, ...],
        settings: FinetuneSettings,
        splits: _Splits,
        seed: int,
        what: str,
    ) -> None:
        import torch

        self._frozen, self._members, self._settings, self._splits = frozen, members, settings, splits
        self._seed, self._what = seed, what
        self._model = copy.deepcopy(start).requires_grad_(True)
        # The head begins at 0, as the probe's: nothing is drawn for it.
        self._head = torch.nn.Linear(start.config.width, splits.train.labels_NC.shape[1]).to(frozen.device)
        torch.nn.init.zeros_(self._head.weight)
        torch.nn.init.zeros_(self._head.bias)
        self._rows = torch.full((frozen.manifest.splits[splits.train.split],), -1)
        self._rows[torch.from_numpy(splits.train.numbers)] = torch.arange(len(splits.train.keys))
        self._labels = torch.from_numpy(splits.train.labels_NC)

    def run(self) -> dict[str, Any]:
        """Train; afterwards the model is that of the chosen epoch. Returns each epoch's loss and validation figure."""
        import torch

        settings, task, val = self._settings, self._splits.task, self._splits.val
        groups = parameter_groups(
            self._model, self._head, weight_decay=settings.weight_decay, layer_decay=settings.layer_decay
        )
        optimiser = torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas)
        losses: list[float] = []
        figures: list[float] = []
        best: tuple[float, int, Any] | None = None
        total, counted = torch.zeros((), dtype=torch.float64, device=self._frozen.device), 0
        for step in training_steps(
            self._frozen,
            settings.train_split,
            batch_size=settings.batch_size,
            epochs=settings.epochs,
            seed=self._seed,
            flips=settings.flips,
        ):
            rows = self._rows[step.batch.sample_id.cpu()]
            kept = (rows >= 0) & step.counts.cpu()
            if kept.any():
                self._model.train()
                labels = self._labels[rows[kept]].to(self._frozen.device)
                loss = self._step(optimiser, step, kept.to(self._frozen.device), labels)
                total, counted = total + loss * int(kept.sum()), counted + int(kept.sum())
            if step.ended_epoch:
                losses.append(float(total) / max(counted, 1))
                total, counted = torch.zeros_like(total), 0
                said = f"epoch {step.ended_epoch} of {settings.epochs}: loss {losses[-1]:.4f}"
                if val is not None:
                    scores = task.score(
                        self.scores(val), torch.from_numpy(val.labels_NC), self._frozen.manifest.labels, 1
                    )
                    figures.append(scores[task.chosen_by])
                    said += f", {task.chosen_by} on '{val.split}' {figures[-1]:.3f}"
                    if best is None or figures[-1] > best[0]:
                        best = figures[-1], step.ended_epoch, copy.deepcopy(self._state())
                print(f"finetune {self._what}, seed {self._seed}: {said}", file=sys.stderr, flush=True)
        if best is not None:
            self._model.load_state_dict(best[2][0])
            self._head.load_state_dict(best[2][1])
        told: dict[str, Any] = {"loss": losses, "epoch": best[1] if best is not None else settings.epochs}
        return told | ({"validation": figures} if val is not None else {})

    def scores(self, split: LabelledSplit) -> "Tensor":
        """(samples, classes) of the split's labelled samples."""
        import torch

        self._model.eval()
        parts = []
        for _, images, _ in self._frozen.batches(split.split, self._settings.batch_size, split.numbers):
            with torch.inference_mode():
                parts.append(self._logits(images).float().cpu())
        return torch.cat(parts)

    def _step(self, optimiser: Any, step: Any, kept: "Tensor", labels: "Tensor") -> "Tensor":
        """One optimiser step; returns the loss."""
        import torch

        settings = self._settings
        schedule = OptimSettings(
            lr=settings.lr,
            min_lr=settings.min_lr,
            warmup_steps=int(settings.warmup_share * step.num_steps),
            warmup_lr=min(settings.lr, 1e-6),
        )
        rate = learning_rate(step.number, step.num_steps, schedule)
        for group in optimiser.param_groups:
            group["lr"] = rate * group["scale"]
        logits = self._logits({name: image[kept] for name, image in step.images.items()})
        loss = self._splits.task.loss(logits.float(), labels, settings.label_smoothing)
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        if settings.clip:
            parameters = [p for group in optimiser.param_groups for p in group["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, settings.clip)
        optimiser.step()
        return loss.detach().double()

    def _logits(self, images: dict[str, "Tensor"]) -> "Tensor":
        import torch

        with torch.autocast(self._frozen.device.type, torch.bfloat16, enabled=self._settings.bf16):
            features = self._model.features({name: images[name] for name in self._members})
            logits: Tensor = self._head(features)
        return logits

    def _state(self) -> tuple[Any, Any]:
        return self._model.state_dict(), self._head.state_dict()
