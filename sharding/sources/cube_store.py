"""Zarr stores (v2, v3; a folder or a ZIP) and netCDF-4/HDF5 files as groups of named variables, read in part.

Only what is asked for is read, chunk by chunk; every failure names the file.
"""

import base64
import contextlib
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from sharding.errors import StorageError
from sharding.sources.base import CORRUPT, MISSING_HALF, PairError, SourceFile
from sharding.sources.tree import Tree

HDF5_SUFFIXES: Final = (".nc", ".nc4", ".cdf", ".h5", ".hdf5", ".he5")
ZIP_SUFFIXES: Final = (".zarr.zip", ".zip")
ZARR_FILES: Final = frozenset(("zarr.json", ".zgroup", ".zmetadata"))
_BROKEN: Final = (OSError, EOFError, ValueError, RuntimeError, KeyError, IndexError, zlib.error, zipfile.BadZipFile)
"""What h5py, zarr, zipfile and the codecs raise of content that is not what it says it is."""
_HIDDEN: Final = ("CLASS", "NAME", "DIMENSION_LIST", "REFERENCE_LIST", "_Netcdf4Dimid", "_Netcdf4Coordinates")
_CLASSIC: Final = (b"CDF\x01", b"CDF\x02", b"CDF\x05")

Window = dict[str, slice | int]
"""What is read of a variable, by the names of its dimensions; the others whole."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Variable:
    """An array of a cube, not read yet."""

    path: str
    """Of the cube's file or store."""
    name: str
    dims: tuple[str, ...]
    attributes: dict[str, Any]
    array: Any
    """h5py.Dataset or zarr.Array."""
    remote: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the dimensions."""
        return tuple(self.array.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the numbers as stored."""
        dtype: np.dtype[Any] = np.dtype(self.array.dtype)
        return dtype

    @property
    def chunks(self) -> tuple[int, ...]:
        """Shape of what is stored as one piece: a Zarr shard or chunk; all of an array that is in one piece."""
        stored = getattr(self.array, "shards", None) or self.array.chunks
        return tuple(stored) if stored else self.shape

    def read(self, window: Window | None = None) -> npt.NDArray[Any]:
        """The numbers as stored; PairError when they cannot be read."""
        index = tuple((window or {}).get(dim, slice(None)) for dim in self.dims)
        with broken_as_pair_error(self.path, f"{self.name} cannot be read", remote=self.remote):
            return np.asarray(self.array[index])

    def chunk_names(self, window: Window) -> Iterator[str]:
        """Paths in a Zarr store of the pieces that `read` of the window takes."""
        spans = []
        for dim, length, step in zip(self.dims, self.shape, self.chunks, strict=True):
            chosen = window.get(dim, slice(None))
            start, stop, _ = (slice(chosen, chosen + 1) if isinstance(chosen, int) else chosen).indices(length)
            spans.append(range(start // step, -(-stop // step)))
        for place in np.ndindex(*map(len, spans)):
            key = self.array.metadata.encode_chunk_key(tuple(span[i] for span, i in zip(spans, place, strict=True)))
            yield f"{self.array.path}/{key}"


@dataclass(frozen=True, kw_only=True, eq=False)
class CubeGroup:
    """A group of a cube: its variables, and those of the groups above it, which its dimensions may refer to."""

    path: str
    name: str
    """In its file, `s2/10m`; empty for the root."""
    attributes: dict[str, Any]
    variables: dict[str, Variable] = field(default_factory=dict)
    parent: Self | None = None

    def find(self, name: str) -> Variable | None:
        """The variable of this name, here or in the groups above."""
        found = self.variables.get(name)
        return found if found or not self.parent else self.parent.find(name)

    def attribute(self, *names: str) -> Any:
        """The first of the attributes that there is, here or in the groups above; None without one."""
        for name in names:
            if self.attributes.get(name) not in (None, ""):
                return self.attributes[name]
        return self.parent.attribute(*names) if self.parent else None


def is_cube_file(name: str) -> bool:
    """Whether a file's name says that it is a cube."""
    return name.lower().endswith((*HDF5_SUFFIXES, *ZIP_SUFFIXES))


def is_zarr_folder(tree: Tree, path: str) -> bool:
    """Whether a folder is a Zarr store."""
    return path.lower().endswith(".zarr") or not ZARR_FILES.isdisjoint(tree.files(path))


def open_cube(tree: Tree, path: str) -> list[CubeGroup]:
    """All groups of the cube at `path` that hold variables; PairError when it cannot be opened.

    The files stay open as long as the groups are in use.
    """
    with broken_as_pair_error(path, "it cannot be opened", remote=not tree.store.is_local):
        if path.lower().endswith(HDF5_SUFFIXES):
            return _hdf5_groups(tree, path)
        return _zarr_groups(tree, path)


def cube_files(tree: Tree, path: str) -> list[SourceFile]:
    """The file of the cube at `path`, or the metadata of a Zarr store in a folder; PairError when there is none."""
    names = [path] if is_cube_file(path) else [_inside(path, name) for name in sorted(ZARR_FILES)]
    files = [file for name in names if (file := tree.file(name))]
    if not files:
        raise PairError(MISSING_HALF, path or ".", "the cube is missing; fetch it again")
    return files


def stored_files(tree: Tree, path: str, reads: list[tuple[Variable, Window]]) -> list[SourceFile]:
    """The files that hold what is to be read of the cube at `path`; PairError when the cube is not there.

    Of a Zarr store in a folder these are the pieces and the metadata; a piece that is not there was never written, it
    is the array's fill value.
    """
    files = cube_files(tree, path)
    if is_cube_file(path):
        return files
    for variable, window in reads:
        for name in ("zarr.json", ".zarray"):
            files += filter(None, [tree.file(_inside(path, f"{variable.array.path}/{name}"))])
        files += filter(None, (tree.file(_inside(path, name)) for name in variable.chunk_names(window)))
    return files


@contextlib.contextmanager
def broken_as_pair_error(path: str, message: str, *, remote: bool) -> Iterator[None]:
    """What a library says of broken content becomes a PairError; what a store says of itself, a StorageError."""
    try:
        with warnings.catch_warnings():
            # Strings and other things that we do not read have no settled form in Zarr v3 yet; zarr says so each time.
            warnings.simplefilter("ignore")
            yield
    except PairError:
        raise
    except FileNotFoundError as error:
        raise PairError(MISSING_HALF, path or ".", f"{message}: it is missing; fetch it again") from error
    except _BROKEN as error:
        if remote and isinstance(error, OSError):
            raise StorageError(f"{path or '.'}: {message} ({error or type(error).__name__})") from error
        told = " ".join(str(error).split()) or type(error).__name__
        raise PairError(CORRUPT, path or ".", f"{message} ({told[:200]}); fetch it again") from error


def _inside(path: str, name: str) -> str:
    return f"{path}/{name}" if path else name


def _hdf5_groups(tree: Tree, path: str) -> list[CubeGroup]:
    import h5py

    raw = tree.store.fs.open(tree.store.full(path), "rb")
    if raw.read(4) in _CLASSIC:
        message = "it is a classic netCDF file; make it netCDF-4 with: nccopy -k nc4 OLD.nc NEW.nc"
        raise PairError(CORRUPT, path, message)
    local = tree.local(path)
    if local:
        raw.close()
    # An archive is only read, and not every file system of a cluster has locks.
    file = h5py.File(local, "r", locking=False) if local else h5py.File(raw, "r")
    groups: list[CubeGroup] = []
    _walk_hdf5(file, CubeGroup(path=path, name="", attributes=_plain_all(file.attrs)), groups, remote=local is None)
    return groups


def _walk_hdf5(node: Any, group: CubeGroup, found: list[CubeGroup], *, remote: bool) -> None:
    import h5py

    below = []
    for name, item in node.items():
        if isinstance(item, h5py.Group):
            below.append((name, item))
        elif isinstance(item, h5py.Dataset):
            group.variables[name] = Variable(
                path=group.path,
                name=name,
                dims=_hdf5_dims(item),
                attributes=_plain_all(item.attrs),
                array=item,
                remote=remote,
            )
    if group.variables:
        found.append(group)
    for name, item in below:
        inner = CubeGroup(
            path=group.path, name=_inside(group.name, name), attributes=_plain_all(item.attrs), parent=group
        )
        _walk_hdf5(item, inner, found, remote=remote)


def _hdf5_dims(dataset: Any) -> tuple[str, ...]:
    """Names of the dimension scales; a scale is its own dimension."""
    if dataset.is_scale and dataset.ndim == 1:
        return (str(dataset.name).rpartition("/")[2],)
    names = []
    for i, dim in enumerate(dataset.dims):
        scale = str(dim[0].name).rpartition("/")[2] if len(dim) else dim.label
        names.append(scale or f"dim_{i}")
    return tuple(names)


def _zarr_groups(tree: Tree, path: str) -> list[CubeGroup]:
    import zarr

    root = zarr.open_group(_zarr_store(tree, path), mode="r")
    remote = not tree.store.is_local
    groups: dict[str, CubeGroup] = {"": CubeGroup(path=path, name="", attributes=_plain_all(root.attrs))}
    members = sorted(root.members(max_depth=None), key=lambda member: member[0])
    for name, member in members:
        above, _, last = name.rpartition("/")
        if isinstance(member, zarr.Group):
            groups[name] = CubeGroup(path=path, name=name, attributes=_plain_all(member.attrs), parent=groups[above])
            continue
        attributes = _plain_all(member.attrs)
        groups[above].variables[last] = Variable(
            path=path,
            name=name,
            dims=_zarr_dims(member, attributes),
            attributes={**_fill_value(member), **attributes},
            array=member,
            remote=remote,
        )
    return [group for group in groups.values() if group.variables]


def _zarr_store(tree: Tree, path: str) -> Any:
    from zarr.storage import FsspecStore, LocalStore, ZipStore

    full, fs = tree.store.full(path), tree.store.fs
    zipped = path.lower().endswith(ZIP_SUFFIXES)
    if tree.store.is_local:
        if not (zipped or tree.folders(path) or tree.files(path)):
            raise FileNotFoundError(full)
        return ZipStore(full, mode="r") if zipped else LocalStore(full, read_only=True)
    from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper
    from fsspec.implementations.zip import ZipFileSystem

    # zarr wants an asynchronous file system of its own; wrapped, ours serves, with the connections that it has.
    inner, root = (ZipFileSystem(fs.open(full, "rb")), "/") if zipped else (fs, full)
    return FsspecStore(AsyncFileSystemWrapper(inner, asynchronous=True), read_only=True, path=root)


def _zarr_dims(array: Any, attributes: dict[str, Any]) -> tuple[str, ...]:
    """Version 3 keeps them in the metadata, xarray's convention for version 2 in an attribute."""
    named = getattr(array.metadata, "dimension_names", None) or attributes.get("_ARRAY_DIMENSIONS")
    names = list(named) if named and len(named) == array.ndim else [None] * array.ndim
    return tuple(str(name) if name else f"dim_{i}" for i, name in enumerate(names))


def _fill_value(array: Any) -> dict[str, Any]:
    """In version 2 the fill value says what was not measured; of floating point 0 is only zarr's default."""
    value = array.fill_value
    if (
        array.metadata.zarr_format != 2
        or value is None
        or not np.isreal(value)
        or np.dtype(array.dtype).kind not in "iuf"
    ):
        return {}
    return {"_FillValue": value.item()} if np.dtype(array.dtype).kind in "iu" or value else {}


def _plain_all(attributes: Any) -> dict[str, Any]:
    return {name: _plain(attributes[name]) for name in attributes if name not in _HIDDEN}


def _plain(value: Any) -> Any:
    """An attribute as Python has it: text decoded, arrays of one number that number."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, np.ndarray) and value.dtype.kind in "OSU":
        value = [_plain(item) for item in value.ravel().tolist()]
        return value[0] if len(value) == 1 else value
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "iufb":
        plain = value.tolist()
        return plain[0] if isinstance(plain, list) and len(plain) == 1 else plain
    return value


def number_of(value: Any) -> float | None:
    """An attribute as a number: xarray keeps a floating-point fill value as base64 in Zarr v3; None if it is none."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            pass
        try:
            content = base64.b64decode(value, validate=True)
        except ValueError:
            return None
        return float(struct.unpack("<d", content)[0]) if len(content) == 8 else None
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    return None
