"""A trained model and a data set, split by split and batch by batch: what every evaluation starts from."""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.data_settings import DataSettings
from pipeline.weights import load_model
from sharding.manifest import ALL_SPLITS, Manifest

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@dataclass(frozen=True, kw_only=True)
class FrozenModel:
    """A run's model in evaluation mode and the data set on which it is evaluated.

    What evaluations ask of a model, a `torch.nn.Module` that need not be FusMAE:

    - `config.modalities` (name and bands of each), `config.image_size`, `config.width`;
    - `features({name: image}) -> (B, width)` of any subset of the modalities, differentiable: all but reconstruction;
    - `encode({name: image}).tokens`, by modality (B, N, width), the patches of a square grid row by row: `segment`;
    - `untrained(seed)`, a model of the same form with random weights: the row "random encoder" of every table (of a
      FusMAE it is made from the config);
    - `layers()`, names of parameters by layer from the input up: `finetune.layer_decay` below 1 (of a FusMAE known).
    """

    model: Any
    """`fusmae.FusMAE`, fp32, or what offers the same."""
    step: int
    title: str = ""
    """The checkpoint's path or URL; empty for a model that is being trained."""
    run_dir: Path
    data: DataSettings
    """Of the run, unless overridden."""
    manifest: Manifest
    transform: Any
    """`pipeline.transform.ImageTransform` without flips."""
    device: Any

    @property
    def given(self) -> tuple[str, ...]:
        """Names of those of the model's modalities of which the data set has a band, in its order."""
        bands = set(self.manifest.bands)
        return tuple(modality.name for modality in self.model.config.modalities if bands & set(modality.bands))

    @property
    def absent_bands(self) -> tuple[str, ...]:
        """Bands of the model that the data set lacks: 0 and not valid."""
        asked = (band for modality in self.model.config.modalities for band in modality.bands)
        return tuple(band for band in asked if band not in self.manifest.bands)

    @property
    def normalised_over(self) -> str:
        """What the statistics that images are normalised with are of: the data set's split `train`, or `all`."""
        return "train" if self.manifest.statistics.get("train") else ALL_SPLITS

    def batches(
        self,
        split: str,
        batch_size: int,
        samples: "npt.NDArray[np.int64] | None" = None,
        riders: Collection[str] = (),
        batches: Iterable[Any] | None = None,
    ) -> Iterator[tuple[Any, dict[str, Any], dict[str, Any]]]:
        """Each sample of `split` once, in the order of the index: the batch, its images and its valid bands.

        With `samples`, only those of these numbers; with `batches`, the numbers of each batch's samples in the split:
        just these. With `riders`, the batch has these arrays that ride along, too.

        Images are float32 (b, bands, size, size), normalised with the statistics of this data set, which need not be
        the one trained on: those of its split train, or of everything where there is none. All lies on the device.
        """
        from pipeline.stream.exact import evaluation_batches

        reader = evaluation_batches(
            self.data.url,
            split,
            batch_size,
            **self.data.reading(),
            samples=samples,
            riders=riders,
            batches=batches,
        )
        with reader:
            for batch in reader:
                moved = batch.to(self.device)
                images, valid = self.transform(moved, None)
                yield moved, images, valid


def open_frozen(run_dir_or_checkpoint: str, data: DataSettings, device: str, local_rank: int = 0) -> FrozenModel:
    """The newest model of a run (or the given checkpoint) on `device`, before the data set of `data`.

    On a machine with several GPUs it takes that of `local_rank`.

    A model that was trained on a mixture takes a data set that lacks some of its bands, as those of the mixture may;
    another model does not. Raises CheckpointError or DataError when one of the two is not there or not whole, and
    ConfigError when they do not fit.
    """
    from pipeline.distributed import choose_device

    target = choose_device(device, local_rank)
    loaded = load_model(run_dir_or_checkpoint, target)
    return before_data(loaded.model, data, target, step=loaded.step, run_dir=loaded.run_dir, title=loaded.title)


def before_data(
    model: Any, data: DataSettings, device: Any, *, step: int, run_dir: Path, title: str = ""
) -> FrozenModel:
    """A `fusmae.FusMAE` that is on `device`, before the data set of `data`; see `open_frozen`."""
    from pipeline.stream.exact import read_image_manifest
    from pipeline.transform import ImageTransform

    manifest = read_image_manifest(data.url)
    config = model.config
    transform = ImageTransform(
        manifest,
        [(modality.name, modality.bands) for modality in config.modalities],
        config.image_size,
        flips=False,
        upsample=data.upsample,
        absent_bands=bool(data.mixture),
    )
    return FrozenModel(
        model=model,
        step=step,
        run_dir=run_dir,
        title=title,
        data=data,
        manifest=manifest,
        transform=transform,
        device=device,
    )
