"""What is looked at while a run trains: a probe of the frozen features, and reconstructions of a few fixed samples.

Both use a plain copy of the model (`pipeline.model_copy`), so that the run itself is not touched. The ranks share the
forward passes; the samples are read in a thread from the start of the run on, and rank 0 scores in one while training
goes on. What fails is told, and the run goes on.
"""

import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pipeline.config import model_config
from pipeline.distributed import Ranks
from pipeline.engine import Engine
from pipeline.errors import ConfigError, DataError, FusMAEError
from pipeline.features import standardise
from pipeline.frozen import FrozenModel
from pipeline.metrics import LineWriter, drop_after, read_lines
from pipeline.model_copy import ModelCopy
from pipeline.neighbours import neighbour_scores
from pipeline.probe_samples import KeptSamples, choose
from pipeline.reconstruction import ReconstructionSettings, store_pictures
from pipeline.ridge import ridge_scores
from pipeline.scores import average_precision
from pipeline.settings import OnlineProbeSettings, Settings
from sharding.manifest import Manifest

if TYPE_CHECKING:
    from torch import Tensor

PROBE_NAME: Final = "probe.jsonl"
_FOLDER: Final = "reconstructions"
_FAILURES: Final = (FusMAEError, OSError, RuntimeError)
"""What ends an evaluation and no run: data, a full disk, too little memory."""
_PICTURES: Final = ReconstructionSettings(pictures=4)


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """Features of the labelled samples of a split, of all ranks in the order of the index."""

    features: "Tensor"
    """(samples, width) float32."""
    labels: "Tensor"
    """(samples, classes) bool."""


class OnlineEvaluation:
    """The evaluations of a run, made when they are due; every rank makes one and calls its methods alike."""

    def __init__(self, settings: Settings, ranks: Ranks, group: Any, device: Any, resumed_step: int) -> None:
        self._settings = settings
        self._ranks = ranks
        self._group = group
        self._device = device
        self._run_dir = Path(settings.run.dir)
        self._samples: KeptSamples | None = None
        self._copy: ModelCopy | None = None
        self._frozen: FrozenModel | None = None
        self._thread: threading.Thread | None = None
        self._line: dict[str, Any] = {}
        self._problem: Exception | None = None
        self._file: LineWriter | None = None
        if settings.probe.every:
            self._samples = self._choose()
            if ranks.is_first:
                drop_after(self._run_dir / PROBE_NAME, resumed_step)
                self._file = LineWriter(self._run_dir / PROBE_NAME)
        self.is_owed = self._find_owed(resumed_step)
        """Whether the step that the run was resumed from is due and was not evaluated before the run ended."""

    def draws(self, step: int) -> bool:
        """Whether reconstructions of `step` are stored."""
        return _is_due(step, self._settings.log.reconstructions, self._settings.train.steps)

    def is_due(self, step: int) -> bool:
        """Whether `step` is evaluated."""
        return self._is_probed(step) or self.draws(step)

    def run(self, step: int, trained: Any, engine: Engine) -> None:
        """Evaluate the weights of `step` of the model `trained`; a collective. What fails is told by `poll`."""
        if self._frozen is None or self._copy is None:
            self._copy = ModelCopy(trained, self._device)
            self._frozen = self._open(self._copy.model)
        self._copy.refresh(engine)
        if self.draws(step) and self._ranks.is_first:
            try:
                store_pictures(self._frozen, _PICTURES, pictures_path(self._run_dir, step))
            except _FAILURES as error:
                self._problem = error
        if self._is_probed(step):
            began = time.perf_counter()
            if (gathered := self._gather()) is not None:
                about = {"step": step, "samples": step * self._settings.train.global_batch}
                self._thread = threading.Thread(
                    target=self._score, args=(*gathered, about, began), name="probe", daemon=True
                )
                self._thread.start()

    def poll(self) -> tuple[dict[str, Any] | None, Exception | None]:
        """On rank 0, the line of a probe that has been scored since, or why it could not be; no wait."""
        if self._thread is not None and self._thread.is_alive():
            return None, None
        return self.wait()

    def wait(self) -> tuple[dict[str, Any] | None, Exception | None]:
        """Wait for the probe that is under way, and tell it as `poll` does."""
        if self._thread is not None:
            self._thread.join()
        told = self._line or None, self._problem
        self._thread, self._line, self._problem = None, {}, None
        return told

    def close(self) -> tuple[dict[str, Any] | None, Exception | None]:
        """End the threads, and tell the last probe as `poll` does."""
        told = self.wait()
        if self._samples is not None:
            self._samples.close()
        if self._file is not None:
            self._file.close()
            self._file = None
        return told

    def _find_owed(self, step: int) -> bool:
        """The same on every rank; a collective where something is evaluated at all."""
        import torch.distributed as dist

        if not step or not self.is_due(step):
            return False
        said = [False]
        if self._ranks.is_first:
            probed = {line["step"] for line in read_lines(self._run_dir / PROBE_NAME)}
            is_drawn = pictures_path(self._run_dir, step).exists()
            said = [(self._is_probed(step) and step not in probed) or (self.draws(step) and not is_drawn)]
        dist.broadcast_object_list(said, src=0, group=self._group)
        return said[0]

    def _choose(self) -> KeptSamples:
        """The samples of both splits, which a thread begins to read."""
        manifest, probe = check_probe(self._settings), self._settings.probe
        there = set(manifest.bands)
        bands = [there.intersection(modality.bands) for modality in model_config(self._settings).modalities]
        given = [sorted(own) for own in bands if own]
        data = self._settings.data
        splits = (probe.train_split, probe.test_split)
        chosen = [choose(data, manifest, split, given, probe.samples) for split in splits]
        return KeptSamples(data, chosen, probe.batch_size, self._ranks.rank, self._ranks.world_size)

    def _is_probed(self, step: int) -> bool:
        return _is_due(step, self._settings.probe.every, self._settings.train.steps)

    def _open(self, model: Any) -> FrozenModel:
        from pipeline.stream.exact import read_image_manifest
        from pipeline.transform import ImageTransform

        data = self._settings.data
        manifest = read_image_manifest(data.url)
        transform = ImageTransform(
            manifest,
            [(modality.name, modality.bands) for modality in model.config.modalities],
            model.config.image_size,
            flips=False,
            upsample=data.upsample,
            absent_bands=bool(data.mixture),
        )
        return FrozenModel(
            model=model,
            step=0,
            run_dir=self._run_dir,
            data=data,
            manifest=manifest,
            transform=transform,
            device=self._device,
        )

    def _gather(self) -> tuple[Labelled, Labelled] | None:
        """All ranks' features of both splits, on rank 0 unless one has none; a collective."""
        import torch
        import torch.distributed as dist

        own: Any
        try:
            assert self._samples is not None
            own = [self._features(batches) for batches in self._samples.batches()]
        except _FAILURES as error:  # the others are on their way to the gather: this rank must come there, too
            own = f"rank {self._ranks.rank}: {error}"
        gathered: list[Any] | None = [None] * self._ranks.world_size if self._ranks.is_first else None
        dist.gather_object(own, gathered, dst=0, group=self._group)
        if gathered is None:
            return None
        if failed := [said for said in gathered if isinstance(said, str)]:
            self._problem = DataError("; ".join(failed))
            return None
        train, test = (
            Labelled(features=torch.cat(features), labels=torch.cat(labels))
            for features, labels in (zip(*of_split, strict=True) for of_split in zip(*gathered, strict=True))
        )
        return train, test

    def _features(self, batches: list[Any]) -> tuple["Tensor", "Tensor"]:
        """Features and labels of this rank's share of a split."""
        import torch

        frozen = self._frozen
        assert frozen is not None
        num_labels = len(frozen.manifest.labels)
        features, labels = [torch.empty(0, frozen.model.config.width)], [torch.empty(0, num_labels, dtype=torch.bool)]
        for batch in batches:
            images, _ = frozen.transform(batch.to(self._device), None)
            with torch.inference_mode():
                found = frozen.model.features({name: images[name] for name in frozen.given}).float()
            features.append(found.cpu())
            labels.append(batch.labels.bool())
        return torch.cat(features), torch.cat(labels)

    def _score(self, train: Labelled, test: Labelled, about: dict[str, Any], began: float) -> None:
        try:
            scores = probe_scores(train, test, self._settings.probe)
            seconds = round(time.perf_counter() - began, 3)
            counts = {"train": len(train.labels), "test": len(test.labels)}
            self._line = about | scores | {"seconds": seconds} | counts
            if self._file is not None:
                self._file.write(self._line)
        except _FAILURES as error:  # told on the thread that trains
            self._problem = error


def probe_scores(train: Labelled, test: Labelled, settings: OnlineProbeSettings) -> dict[str, float]:
    """Mean average precision of both probes; DataError when a split has too few labelled samples."""
    if len(train.labels) < settings.neighbours or not len(test.labels):
        raise DataError(
            f"of at most {settings.samples} samples, {len(train.labels)} of '{settings.train_split}' and "
            f"{len(test.labels)} of '{settings.test_split}' have labels and all modalities, and {settings.neighbours} "
            "neighbours are asked; write a larger probe.samples or fewer probe.neighbours"
        )
    features = standardise(train.features, test.features)
    found = {
        "knn": neighbour_scores(*features, train.labels, settings.neighbours),
        "ridge": ridge_scores(*features, train.labels, settings.ridge),
    }
    line: dict[str, float] = {}
    for name, scores in found.items():
        precision = average_precision(scores, test.labels)
        line |= {f"{name}_map_macro": precision.macro, f"{name}_map_micro": precision.micro}
    return line


def check_probe(settings: Settings) -> Manifest:
    """The data set that is probed; ConfigError or DataError where it does not allow a probe."""
    from pipeline.stream.exact import read_image_manifest

    manifest, probe = read_image_manifest(settings.data.url), settings.probe
    if not manifest.labels:
        raise ConfigError(
            f"probe.every={probe.every}, but the data set {settings.data.url} has no labels; write probe.every=0"
        )
    for key, split in (("train_split", probe.train_split), ("test_split", probe.test_split)):
        try:
            manifest.shards_of(split)
        except DataError as error:
            raise DataError(f"probe.{key}={split}: {error}; write another, or probe.every=0") from error
    return manifest


def pictures_path(run_dir: Path, step: int) -> Path:
    """Where the reconstructions of a step lie."""
    return run_dir / _FOLDER / f"step-{step:08d}.npz"


def say_probe(line: dict[str, Any]) -> str:
    """A probe's line for the terminal."""
    return (
        f"probe of step {line['step']}: macro mAP kNN {line['knn_map_macro']:.3f}, ridge {line['ridge_map_macro']:.3f} "
        f"({line['train']} and {line['test']} samples, {line['seconds']:.1f} s)"
    )


def _is_due(step: int, every: int, last: int) -> bool:
    return every > 0 and (step % every == 0 or step == last)
