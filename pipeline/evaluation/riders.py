"""What rides along with the images of a sample: label rasters, elevation, clouds, as targets of an evaluation.

Shape legend: B samples, H W pixels of a raster, S pixels of the side of the model's image.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pipeline.errors import ConfigError, DataError
from sharding.bands import S1_BANDS, S2_BANDS, are_classes

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.frozen import FrozenModel
    from sharding.manifest import ArraySpec

UNCLASSIFIED: Final[dict[str, tuple[int, ...]]] = {"CLC": (990, 995, 999)}
"""Codes that are no class, by band: CORINE's unclassified land, unclassified water and no data."""


@dataclass(frozen=True, kw_only=True)
class Rider:
    """One band of an array that rides along."""

    spec: "ArraySpec"
    plane: int
    offset_column: int
    """Of `Batch.radiometric_offset`."""

    @property
    def band(self) -> str:
        """Its name."""
        return self.spec.bands[self.plane]

    @property
    def is_class(self) -> bool:
        """Whether its numbers are classes."""
        return are_classes((self.band,), self.spec.units)

    def stored(self, batch: Any) -> tuple["Tensor", "Tensor"]:
        """Stored numbers (B, H, W), float64, and which of them were measured, (B, H, W) bool."""
        import torch

        stored = batch.arrays[self.spec.name][:, self.plane].to(torch.float64)
        measured = batch.present[self.spec.name][:, self.plane, None, None] & stored.isfinite()
        if self.spec.nodata is not None:
            measured = measured & (stored != self.spec.nodata)
        return stored, measured

    def values(self, batch: Any) -> tuple["Tensor", "Tensor"]:
        """Values in the raster's units (B, H, W), float64, and which of them were measured."""
        stored, measured = self.stored(batch)
        offset_B = batch.radiometric_offset[:, self.offset_column].double()
        return (stored + offset_B[:, None, None]) * self.spec.scale, measured


def find_rider(
    frozen: "FrozenModel", array: str, band: str, key: str, rank: Callable[["ArraySpec"], int | None]
) -> Rider:
    """The band of the named array, or where none is named of the one of lowest rank; None is not wanted.

    Raises DataError when nothing suitable rides along, ConfigError naming `key` for an array or band that there is not.
    """
    from sharding.dataset import read_manifest

    images = {*S1_BANDS, *S2_BANDS}
    along = {spec.name: spec for spec in read_manifest(frozen.data.url).arrays if images.isdisjoint(spec.bands)}
    if array and array not in along:
        raise ConfigError(f"{key} = {array}: along with {frozen.data.url} ride {', '.join(along) or 'no arrays'}")
    ranked = [(own, spec) for spec in along.values() if (own := rank(spec)) is not None]
    spec = along[array] if array else min(ranked, key=lambda pair: pair[0], default=(0, None))[1]
    if spec is None:
        there = f"only {', '.join(along)}" if along else "nothing at all"
        raise DataError(
            f"along with {frozen.data.url} rides nothing that this evaluation needs, {there}; build it from a source "
            "with such rasters (docs/sources.md), without --no-riders"
        )
    if band and band not in spec.bands:
        raise ConfigError(f"{key} = {spec.name} has no band {band}; it has {', '.join(spec.bands)}")
    plane = spec.bands.index(band) if band else 0
    return Rider(spec=spec, plane=plane, offset_column=len(frozen.manifest.arrays))


def central_window(frozen: "FrozenModel", rider: Rider) -> tuple[slice, slice]:
    """Rows and columns of a raster that the model sees, of those of the patch: S of each.

    Raises ConfigError when the raster does not lie on the grid of the patch's finest band.
    """
    pixels, size = max(spec.height for spec in frozen.manifest.arrays), frozen.model.config.image_size
    if (rider.spec.height, rider.spec.width) != (pixels, pixels):
        raise ConfigError(
            f"{rider.spec.name} has {rider.spec.height} x {rider.spec.width} pixels and the images {pixels} x "
            f"{pixels}; only a raster on the images' own grid can be compared pixel by pixel"
        )
    first = (pixels - size) // 2
    return slice(first, first + size), slice(first, first + size)
