"""What an index points to, read as a stream reads it: by `preadv` from the files, with no reader of the package."""

import json
import os
import zlib
from pathlib import Path

import google_crc32c
import numpy as np

from sharding.bands import ALL_BANDS
from sharding.foreign_codec import decode_foreign
from sharding.manifest import Manifest, parse_manifest
from sharding.shard_index import parse_index

CHECKSUMS = {"crc32c": google_crc32c.value, "crc32": zlib.crc32, "none": lambda stored: 0}


def manifest_of(out: Path) -> Manifest:
    return parse_manifest((out / "manifest.json").read_bytes(), str(out))


def archive_of(out: Path) -> Path:
    """Where the files lie that the index at `out` points into."""
    return Path(os.path.normpath(out / manifest_of(out).data_url))


def decode_all(out: Path) -> dict[str, dict[str, np.ndarray]]:
    """By key, in the order of the index: every plane by band, and `offset`, the radiometric one of S2."""
    manifest, archive = manifest_of(out), archive_of(out)
    specs = {spec.name: spec for spec in manifest.arrays}
    samples: dict[str, dict[str, np.ndarray]] = {}
    for shard in manifest.shards:
        index = parse_index((out / shard.index_path).read_bytes(), shard.index_path)
        assert (index.version, shard.path, shard.sha256) == (2, shard.parts[0].path, "")
        assert shard.num_bytes == sum(part.num_bytes for part in shard.parts)
        files = [os.open(archive / part.path, os.O_RDONLY) for part in shard.parts]
        assert [os.fstat(file).st_size for file in files] == [part.num_bytes for part in shard.parts]
        for record in index.records:
            planes = samples[record["key"].decode()] = {}
            for name, payload in zip(index.arrays, record["arrays"], strict=True):
                if not payload["length"]:
                    continue
                stored = np.empty(payload["length"], np.uint8)
                assert os.preadv(files[payload["file"]], [stored], payload["offset"]) == len(stored)
                assert CHECKSUMS[index.checksum](stored.tobytes()) == payload["crc32c"]
                spec = specs[name]
                data = np.empty((len(spec.bands), spec.height, spec.width), spec.dtype)
                decode_foreign(stored, data, int(payload["codec"]), int(payload["skip"]))
                planes |= dict(zip(spec.bands, data, strict=True))
                if spec.units == "DN":
                    planes["offset"] = payload["radiometric_offset"]
            present = {band for bit, band in enumerate(ALL_BANDS) if int(record["presence"]) >> bit & 1}
            assert present == planes.keys() - {"offset"}
        for file in files:
            os.close(file)
    return samples


def lines_of(out: Path) -> list[dict]:
    """The metadata of all samples."""
    paths = [out / shard.metadata_path for shard in manifest_of(out).shards]
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def assert_planes(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Bit for bit, in the type in which they are stored."""
    for band, plane in expected.items():
        assert found[band].dtype == plane.dtype, band
        assert found[band].tobytes() == np.ascontiguousarray(plane).tobytes(), band
