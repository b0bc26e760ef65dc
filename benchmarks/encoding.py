"""`python -m benchmarks.encoding`: bytes a pair and decoding speed of our codecs, beside what others store.

Real 12-band BigEarthNet pairs (the demo's, which `make setup` fetches), one core, everything in memory or in the page
cache. A decode gives all bands of a pair as numpy arrays.
"""

import argparse
import io
import os
import tarfile
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.real_pairs import planes_of, read_pairs, write_archive
from benchmarks.table import Row, interleave, render, write_section
from pipeline.command import run_command
from sharding.sources.base import Sample

_SIDE = 120


@dataclass(frozen=True, kw_only=True)
class Form:
    """One way to store pairs: how many bytes each takes, and a function that decodes pair `i`."""

    kb: float
    decode: Callable[[int], object]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.encoding", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    parser.add_argument("--into", metavar="FILE", help="also write the table into this Markdown file")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args(argv)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    samples = read_pairs()
    with tempfile.TemporaryDirectory(prefix="encoding-") as folder:
        forms = _forms(samples, Path(folder))
        seconds = 0.1 if arguments.quick else 0.5
        contenders = {
            f"{name}, decoding": lambda form=form: _rate(form, len(samples), seconds) for name, form in forms.items()
        }
        speeds = interleave(contenders, 1 if arguments.quick else 5, "pairs/s")
    sizes = [Row(name=name, value=form.kb, unit="kB a pair", low=form.kb, high=form.kb) for name, form in forms.items()]
    ours, zstd = forms["ours, lz4"], forms["ours, zstd"]
    lossless = {name: form.kb for name, form in forms.items() if "float16" not in name and "int16 in" not in name}
    ratios = {
        "lz4_kb": ours.kb,
        "lz4_decodes_per_s": next(row.value for row in speeds if row.name.startswith("ours, lz4,")),
        "geotiff_vs_lz4": forms["GeoTIFF tree"].kb / ours.kb,
        "lmdb_vs_lz4": forms["safetensors in LMDB (rico-hdl)"].kb / ours.kb,
        "zstd_is_smallest": float(zstd.kb == min(lossless.values())),
    }
    rows = [*sizes, *speeds]
    print(render(rows, ratios, arguments.json))
    if arguments.into:
        write_section(Path(arguments.into), "encoding", render(rows, ratios, as_json=False))
    return 0


def _rate(form: Form, count: int, seconds: float) -> float:
    began, done = time.perf_counter(), 0
    while (taken := time.perf_counter() - began) < seconds:
        for i in range(count):
            form.decode(i)
        done += count
    return done / taken


def _forms(samples: list[Sample], folder: Path) -> dict[str, Form]:
    forms = {"GeoTIFF tree": _geotiff(len(samples), folder / "tree")}
    for codec in ("none", "lz4", "zstd"):
        forms[f"ours, {codec}"] = _ours(samples, folder, codec, "float32")
    forms["ours, lz4, S1 float16"] = _ours(samples, folder, "lz4", "float16")
    forms["ours, lz4, S1 int16 in steps of 0.005 dB"] = _ours(samples, folder, "lz4", "int16")
    forms[".npy in a tar, native resolution"] = _npy(samples, native=True)
    forms[".npy in a tar, all bands at 120 px"] = _npy(samples, native=False)
    forms["safetensors in LMDB (rico-hdl)"] = _lmdb(samples, folder / "lmdb")
    forms["zarr.zip v2 (TerraMesh's form), S1 float32"] = _terramesh(samples, np.float32)
    forms["zarr.zip v2 (TerraMesh's form), S1 float16"] = _terramesh(samples, np.float16)
    return forms


def _geotiff(count: int, root: Path) -> Form:
    import rasterio

    size = write_archive(root, count)
    paths: dict[int, list[Path]] = {}
    for path in sorted(root.rglob("*.tif")):
        column, row = (int(part) for part in path.parent.name.split("_")[-2:])
        paths.setdefault(row * 90 + column, []).append(path)

    def decode(i: int) -> list[np.ndarray]:
        planes = []
        for path in paths[i]:
            with rasterio.open(path) as file:
                planes.append(file.read(1))
        return planes

    return Form(kb=size / count / 1000, decode=decode)


def _ours(samples: list[Sample], folder: Path, codec: str, s1: str) -> Form:
    """Whole shards: the wrapping in ZIP and tar is counted; decoding is of the payloads that the index points to."""
    from sharding.codec import decode_into, encode
    from sharding.s1_storage import store_s1
    from sharding.writer import ShardWriter

    stored = [store_s1(sample, s1)[0] for sample in samples]
    names = ("s1", "s2_10m", "s2_20m", "s2_60m")
    stored = [_without_riders(sample, names) for sample in stored]
    labels = tuple(dict.fromkeys(label for sample in stored for label in sample.labels))
    with ShardWriter(folder / f"{codec}-{s1}.tar", arrays=names, codec=codec, vocabulary=labels) as writer:
        for sample in stored:
            writer.write(sample)
        size = writer.finish().num_bytes
    payloads = [[(encode(array.data, codec), np.empty_like(array.data)) for array in s.arrays.values()] for s in stored]

    def decode(i: int) -> None:
        for payload, out in payloads[i]:
            decode_into(payload, out, codec)

    return Form(kb=size / len(samples) / 1000, decode=decode)


def _without_riders(sample: Sample, names: tuple[str, ...]) -> Sample:
    from dataclasses import replace

    return replace(sample, arrays={name: array for name, array in sample.arrays.items() if name in names})


def _at_120(plane: np.ndarray) -> np.ndarray:
    times = _SIDE // plane.shape[0]
    return plane.repeat(times, 0).repeat(times, 1)


def _npy(samples: list[Sample], *, native: bool) -> Form:
    buffer = io.BytesIO()
    members: list[list[bytes]] = []
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for number, sample in enumerate(samples):
            if native:
                arrays = [array.data for array in sample.arrays.values() if array.units in ("dB", "DN")]
            else:
                planes = dict(planes_of(sample))
                arrays = [
                    np.stack([planes.pop("VV"), planes.pop("VH")]),
                    np.stack([_at_120(plane) for plane in planes.values()]),
                ]
            members.append([])
            for i, array in enumerate(arrays):
                content = io.BytesIO()
                np.save(content, array)
                entry = tarfile.TarInfo(f"{number:06d}.{i}.npy")
                entry.size = len(content.getvalue())
                tar.addfile(entry, io.BytesIO(content.getvalue()))
                members[-1].append(content.getvalue())
    size = len(buffer.getvalue())
    return Form(kb=size / len(samples) / 1000, decode=lambda i: [np.load(io.BytesIO(m)) for m in members[i]])


def _lmdb(samples: list[Sample], folder: Path) -> Form:
    import lmdb
    from safetensors.numpy import load, save

    folder.mkdir()
    environment = lmdb.open(str(folder), map_size=2**30)
    with environment.begin(write=True) as out:
        for number, sample in enumerate(samples):
            planes = dict(planes_of(sample))
            s1 = {band: planes.pop(band) for band in ("VV", "VH")}
            for half, content in (("s1", s1), ("s2", planes)):
                out.put(f"{half}-{number}".encode(), save({b: np.ascontiguousarray(p) for b, p in content.items()}))
    size = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    reader = environment.begin(buffers=False)
    return Form(
        kb=size / len(samples) / 1000,
        decode=lambda i: [load(reader.get(f"{half}-{i}".encode())) for half in ("s1", "s2")],
    )


def _terramesh(samples: list[Sample], s1_type: Any) -> Form:
    """A zarr.zip a modality, all bands at 10 m in one array of one time, as its published loader reads them."""
    import zarr

    stored: list[list[dict[str, bytes]]] = []
    size = 0
    for sample in samples:
        planes = dict(planes_of(sample))
        s1 = np.stack([planes.pop("VV"), planes.pop("VH")]).astype(s1_type)
        s2 = np.stack([_at_120(plane) for plane in planes.values()]).astype(np.int16)
        stored.append([])
        for bands in (s1, s2):
            content: dict[str, Any] = {}
            group = zarr.open_group(zarr.storage.MemoryStore(content), mode="w", zarr_format=2)
            array = group.create_array("bands", shape=(1, *bands.shape), chunks=(1, *bands.shape), dtype=bands.dtype)
            array[0] = bands
            entries = {name: value.to_bytes() for name, value in content.items()}
            size += _zip_size(entries)
            stored[-1].append(entries)

    def decode(i: int) -> list[Any]:
        from zarr.core.buffer import default_buffer_prototype

        buffers = default_buffer_prototype().buffer
        read = []
        for entries in stored[i]:
            store = zarr.storage.MemoryStore({name: buffers.from_bytes(value) for name, value in entries.items()})
            read.append(zarr.open_group(store, mode="r")["bands"][0])
        return read

    return Form(kb=size / len(samples) / 1000, decode=decode)


def _zip_size(entries: dict[str, bytes]) -> int:
    """Of the member in its tar: the ZIP, a header of 512 bytes, and what fills the last block."""
    import zipfile

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    size = len(buffer.getvalue())
    return 512 + size + -size % 512


if __name__ == "__main__":
    run_command(main)
