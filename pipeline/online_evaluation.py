"""What is looked at while a run trains: a probe of the frozen features, and reconstructions of a few fixed samples.

Both use a plain copy of the model (`pipeline.model_copy`), so that the run itself is not touched. The ranks share the
forward passes; rank 0 scores in a thread while training goes on.
"""

import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pipeline.distributed import Ranks
from pipeline.engine import Engine
from pipeline.errors import ConfigError, DataError
from pipeline.features import standardise
from pipeline.frozen import FrozenModel
from pipeline.metrics import LineWriter, drop_after
from pipeline.model_copy import ModelCopy
from pipeline.neighbours import neighbour_scores
from pipeline.reconstruction import ReconstructionSettings, store_pictures
from pipeline.ridge import ridge_scores
from pipeline.scores import average_precision
from pipeline.settings import OnlineProbeSettings, Settings

if TYPE_CHECKING:
    from torch import Tensor

PROBE_NAME: Final = "probe.jsonl"
_FOLDER: Final = "reconstructions"
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
        self._kept: dict[str, list[Any]] = {}
        self._copy: ModelCopy | None = None
        self._frozen: FrozenModel | None = None
        self._thread: threading.Thread | None = None
        self._line: dict[str, Any] = {}
        self._problem: Exception | None = None
        self._file: LineWriter | None = None
        if settings.probe.every:
            check_probe(settings)
            if ranks.is_first:
                drop_after(self._run_dir / PROBE_NAME, resumed_step)
                self._file = LineWriter(self._run_dir / PROBE_NAME)

    def draws(self, step: int) -> bool:
        """Whether reconstructions of `step` are stored."""
        return _is_due(step, self._settings.log.reconstructions, self._settings.train.steps)

    def is_due(self, step: int) -> bool:
        """Whether `step` is evaluated."""
        return self._is_probed(step) or self.draws(step)

    def run(self, step: int, trained: Any, engine: Engine) -> None:
        """Evaluate the weights of `step` of the model `trained`; a collective. Raises DataError or StorageError."""
        if self._frozen is None or self._copy is None:
            self._copy = ModelCopy(trained, self._device)
            self._frozen = self._open(self._copy.model)
        self._copy.refresh(engine)
        if self.draws(step) and self._ranks.is_first:
            store_pictures(self._frozen, _PICTURES, pictures_path(self._run_dir, step))
        if self._is_probed(step):
            began = time.perf_counter()
            probe = self._settings.probe
            train, test = (self._gather(split) for split in (probe.train_split, probe.test_split))
            self._join()
            if train is not None and test is not None:
                about = {"step": step, "samples": step * self._settings.train.global_batch}
                self._thread = threading.Thread(
                    target=self._score, args=(train, test, about, began), name="probe", daemon=True
                )
                self._thread.start()

    def poll(self) -> tuple[dict[str, Any] | None, Exception | None]:
        """On rank 0, the line of a probe that has been scored since, or why it could not be; no wait."""
        if self._thread is None or self._thread.is_alive():
            return None, None
        return self._told()

    def close(self) -> tuple[dict[str, Any] | None, Exception | None]:
        """Wait for the probe that is under way, and tell it as `poll` does."""
        self._join()
        told = self._told() if self._thread is not None else (None, None)
        if self._file is not None:
            self._file.close()
            self._file = None
        return told

    def _is_probed(self, step: int) -> bool:
        return _is_due(step, self._settings.probe.every, self._settings.train.steps)

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()

    def _told(self) -> tuple[dict[str, Any] | None, Exception | None]:
        told = self._line or None, self._problem
        self._thread, self._line, self._problem = None, {}, None
        return told

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

    def _gather(self, split: str) -> Labelled | None:
        """All ranks' features of a split, on rank 0; a collective."""
        import torch
        import torch.distributed as dist

        own = self._features(split)
        gathered: list[Any] | None = [None] * self._ranks.world_size if self._ranks.is_first else None
        dist.gather_object(own, gathered, dst=0, group=self._group)
        if gathered is None:
            return None
        features, labels = (torch.cat(parts) for parts in zip(*gathered, strict=True))
        return Labelled(features=features, labels=labels)

    def _features(self, split: str) -> tuple["Tensor", "Tensor"]:
        """This rank's share: features and labels of samples with labels and a band of each modality."""
        import torch

        frozen = self._frozen
        assert frozen is not None
        num_labels = len(frozen.manifest.labels)
        features, labels = [torch.empty(0, frozen.model.config.width)], [torch.empty(0, num_labels, dtype=torch.bool)]
        for batch in self._batches(split):
            moved = batch.to(self._device)
            images, valid = frozen.transform(moved, None)
            given = {name: images[name] for name in frozen.given}
            with torch.inference_mode():
                found = frozen.model.features(given).float().cpu()
            complete = torch.stack([valid[name].any(dim=1) for name in frozen.given]).all(dim=0).cpu()
            kept = complete & batch.labels.bool().any(dim=1)
            features.append(found[kept])
            labels.append(batch.labels.bool()[kept])
        return torch.cat(features), torch.cat(labels)

    def _batches(self, split: str) -> list[Any]:
        """This rank's share of the subset, as it is stored; read once."""
        from pipeline.stream.exact import evaluation_batches

        if split not in self._kept:
            data, probe = self._settings.data, self._settings.probe
            reader = evaluation_batches(
                data.url,
                split,
                probe.batch_size,
                self._ranks.rank,
                self._ranks.world_size,
                threads=data.threads,
                client=data.client,
                verify_checksums=data.verify_checksums,
                limit=probe.samples,
            )
            with reader:
                self._kept[split] = [batch.copy() for batch in reader]
        return self._kept[split]

    def _score(self, train: Labelled, test: Labelled, about: dict[str, Any], began: float) -> None:
        try:
            scores = probe_scores(train, test, self._settings.probe)
            seconds = round(time.perf_counter() - began, 3)
            counts = {"train": len(train.labels), "test": len(test.labels)}
            self._line = about | scores | {"seconds": seconds} | counts
            if self._file is not None:
                self._file.write(self._line)
        except (DataError, ConfigError, OSError, RuntimeError) as error:  # told on the thread that trains
            self._problem = error


def probe_scores(train: Labelled, test: Labelled, settings: OnlineProbeSettings) -> dict[str, float]:
    """Mean average precision of both probes; DataError when a split has too few labelled samples."""
    if len(train.labels) < settings.neighbours or not len(test.labels):
        raise DataError(
            f"of the first {settings.samples} samples, {len(train.labels)} of '{settings.train_split}' and "
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


def check_probe(settings: Settings) -> None:
    """ConfigError or DataError for a probe that the run's data set does not allow."""
    from pipeline.stream.exact import read_image_manifest

    manifest, probe = read_image_manifest(settings.data.url), settings.probe
    if not manifest.labels:
        raise ConfigError(
            f"probe.every={probe.every}, but the data set {settings.data.url} has no labels; write probe.every=0"
        )
    for split in (probe.train_split, probe.test_split):
        manifest.shards_of(split)


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
