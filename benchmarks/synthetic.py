"""The official index of reBEN with pixels that are made up: what a true size costs, without the archive."""

import hashlib

import numpy as np

from sharding.sources.base import Sample, Source, SourceFile, SourceOptions, StoredArray
from sharding.sources.labels import LABELS_19
from sharding.sources.listing import Listing, Pair
from sharding.sources.names import PATCH_PIXELS, parse_s1, parse_s2_v2, patch_corner
from sharding.sources.reben_listing import listing_of_metadata
from sharding.sources.reben_metadata import read_metadata
from sharding.sources.tree import Tree

_ARRAYS = {
    "s1": (("VV", "VH"), 120, 10, "dB", np.float32, -15.0, 5.0),
    "s2_10m": (("B02", "B03", "B04", "B08"), 120, 10, "DN", np.uint16, 1000.0, 400.0),
    "s2_20m": (("B05", "B06", "B07", "B8A", "B11", "B12"), 60, 20, "DN", np.uint16, 1500.0, 500.0),
    "s2_60m": (("B01", "B09"), 20, 60, "DN", np.uint16, 1200.0, 300.0),
}


class SyntheticReBEN(Source):
    """`root` is a folder with the official metadata.parquet and its table of snow and clouds; no pixel is read."""

    name = "reben"
    version = "2.0"
    arrays = tuple(_ARRAYS)
    vocabulary = LABELS_19

    def __init__(self, root: str, options: SourceOptions | None = None) -> None:
        super().__init__(root, options)
        rng = np.random.default_rng(0)
        self._fields = {name: _field(rng, *form[1:2], len(form[0]), form[5], form[6]) for name, form in _ARRAYS.items()}

    def list(self) -> Listing:
        rows = read_metadata(Tree(self.root), "")
        assert rows is not None, f"{self.root} has no metadata.parquet"
        return listing_of_metadata(rows)

    def files(self, pair: Pair) -> tuple[SourceFile, ...]:
        return ()

    def read(self, pair: Pair) -> Sample:
        """A scene of smooth fields and noise, shifted by the key, so that no two are alike and all compress as one."""
        shift = int.from_bytes(hashlib.blake2b(pair.key.encode(), digest_size=4).digest(), "little")
        s1, s2 = parse_s1(pair.s1), parse_s2_v2(pair.key)
        assert s1 is not None and s2 is not None
        crs, left, top = patch_corner(s2)
        arrays = {}
        for name, (bands, side, gsd, units, dtype, _, _) in _ARRAYS.items():
            data = np.roll(self._fields[name], (shift % side, shift // side % side), (1, 2)).astype(dtype)
            place = (float(gsd), 0.0, float(left), 0.0, -float(gsd), float(top))
            arrays[name] = StoredArray(data=data, bands=bands, units=units, gsd_m=gsd, transform=place)
        assert arrays["s1"].data.shape[1] == PATCH_PIXELS
        return Sample(
            key=pair.key,
            source=self.name,
            arrays=arrays,
            crs=crs,
            level="L2A",
            dates={"s1": s1.date, "s2": s2.date},
            labels=pair.labels,
            split=pair.split,
            attributes=dict(pair.attributes),
        )


def _field(rng: np.random.Generator, side: int, bands: int, mean: float, spread: float) -> np.ndarray:
    coarse = rng.normal(0, 1, (bands, 6, 6))
    at = np.linspace(0, 5, side)
    rows = np.stack([[np.interp(at, range(6), plane[:, i]) for i in range(6)] for plane in coarse]).swapaxes(1, 2)
    smooth = np.stack([[np.interp(at, range(6), row) for row in plane] for plane in rows])
    return mean + spread * (smooth + 0.15 * rng.normal(0, 1, smooth.shape))
