"""Reading samples out of built shards the slow way: tarfile, and the real zarr."""

import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr


@dataclass
class Member:
    """A sample as zarr reads it."""

    attrs: dict[str, Any]
    arrays: dict[str, np.ndarray]
    bands: dict[str, np.ndarray]
    """Each band by the name that its array's attributes give it."""


def open_members(dataset: Path, scratch: Path) -> dict[str, Member]:
    """Every sample of a data set by key, read by zarr's own ZipStore."""
    members = {}
    for shard in sorted((dataset / "shards").glob("*.tar")):
        with tarfile.open(shard) as tar:
            for entry in tar:
                path = scratch / "member.zarr.zip"
                path.write_bytes(tar.extractfile(entry).read())
                members[entry.name.removesuffix(".zarr.zip")] = read_member(path)
    return members


def read_member(path: Path) -> Member:
    with zarr.storage.ZipStore(path, mode="r") as store:
        group = zarr.open_group(store, mode="r")
        arrays = {name: array[:] for name, array in group.arrays()}
        bands = {
            band: plane
            for name, array in group.arrays()
            for band, plane in zip(array.attrs["bands"], arrays[name], strict=True)
        }
        return Member(attrs=dict(group.attrs), arrays=arrays, bands=bands)


def assert_pixels(member: Member, pixels: dict[str, np.ndarray]) -> None:
    """The sample has exactly these bands, with these pixels, in these types."""
    assert set(member.bands) == set(pixels)
    for band, plane in pixels.items():
        assert member.bands[band].dtype == plane.dtype
        assert np.array_equal(member.bands[band], plane), band
