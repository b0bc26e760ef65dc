"""Every check of one sample in a shard: index against tar against ZIP against Zarr metadata against manifest."""

import io
import json
import zipfile
import zlib
from typing import Any

import google_crc32c
import numpy as np

from sharding.bands import present_bands
from sharding.codec import CODECS, decode_into, zarr_codecs
from sharding.errors import DataError
from sharding.manifest import ArraySpec, Manifest
from sharding.sample import chunk_name, pack_entries


def sample_defects(
    content: memoryview,
    member: tuple[int, int] | None,
    record: np.void,
    arrays: tuple[str, ...],
    manifest: Manifest,
) -> tuple[int, list[str]]:
    """How many arrays were decoded, and what is wrong with the sample of `record`.

    `member` is the offset and length that the tar itself gives; None when the tar has no such member.
    """
    start, length = int(record["member_offset"]), int(record["member_length"])
    if start + length > len(content):
        return 0, [f"it ends at byte {start + length}, the shard at {len(content)}"]
    defects = []
    if member is not None and member != (start, length):
        defects.append(f"the tar has it at {member[0]}, {member[1]} bytes; the index at {start}, {length} bytes")
    specs = {spec.name: spec for spec in manifest.arrays}
    entries, broken = _open_zip(bytes(content[start : start + length]))
    defects += broken
    num_arrays, present = 0, 0
    for name, payload in zip(arrays, record["arrays"], strict=True):
        bands = present_bands(int(record["presence"]), name)
        if bool(payload["length"]) != bool(bands):
            defects.append(f"{name} has {int(payload['length'])} bytes and {len(bands)} bands")
        if not payload["length"]:
            continue
        present += 1
        if name not in specs:
            defects.append(f"{name} is not in the manifest")
            continue
        defects += _payload_defects(content, payload, name, bands, specs[name])
        if not broken:
            defects += _entry_defects(entries, payload, start, name, bands, specs[name])
        num_arrays += 1
    if not present:
        defects.append("it has no array")
    if not broken:
        defects += _group_defects(entries, record)
    return num_arrays, defects


def _open_zip(content: bytes) -> tuple[dict[str, tuple[int, bytes]], list[str]]:
    """Offset and bytes of each entry, by Python's zipfile, which checks the CRC-32 of each."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            read = [(info.filename, archive.read(info)) for info in archive.infolist()]
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, OSError, zlib.error) as error:
        return {}, [f"its ZIP is broken: {error}"]
    # zipfile leaves out much of the headers; packing the entries again says whether those are as they were written.
    again, offsets = pack_entries(read)
    if again != content:
        return {}, ["the headers of its ZIP are not as they were written"]
    return {name: (offsets[name], entry) for name, entry in read}, []


def _payload_defects(
    content: memoryview, payload: np.void, name: str, bands: tuple[str, ...], spec: ArraySpec
) -> list[str]:
    start, length = int(payload["offset"]), int(payload["length"])
    if start + length > len(content):
        return [f"{name} ends at byte {start + length}, the shard at {len(content)}"]
    if payload["codec"] >= len(CODECS):
        return [f"{name} has the unknown codec {int(payload['codec'])}"]
    stored = bytes(content[start : start + length])
    if google_crc32c.value(stored) != payload["crc32c"]:
        return [f"the CRC-32C of {name} does not match"]
    out = np.empty((len(bands), spec.height, spec.width), spec.dtype)
    try:
        decode_into(stored, out, CODECS[payload["codec"]])
    except DataError as error:
        return [f"{name} cannot be decoded: {error}"]
    return []


def _entry_defects(
    entries: dict[str, tuple[int, bytes]],
    payload: np.void,
    member_start: int,
    name: str,
    bands: tuple[str, ...],
    spec: ArraySpec,
) -> list[str]:
    if chunk_name(name) not in entries or f"{name}/zarr.json" not in entries:
        return [f"the ZIP lacks {chunk_name(name)} or {name}/zarr.json"]
    defects = []
    offset, chunk = entries[chunk_name(name)]
    if (member_start + offset, len(chunk)) != (int(payload["offset"]), int(payload["length"])):
        defects.append(f"the ZIP has {name} at {member_start + offset}, the index at {int(payload['offset'])}")
    metadata = _json(entries[f"{name}/zarr.json"][1])
    expected = {
        "shape": [len(bands), spec.height, spec.width],
        "data_type": spec.dtype,
        "codecs": zarr_codecs(CODECS[payload["codec"]], np.dtype(spec.dtype)),
    }
    defects += [
        f"{name}/zarr.json says {field} {metadata.get(field)}, expected is {value}"
        for field, value in expected.items()
        if metadata.get(field) != value
    ]
    attributes = metadata.get("attributes") or {}
    told = {
        "bands": list(bands),
        "units": spec.units,
        "scale": spec.scale,
        "offset": float(payload["radiometric_offset"]),
        "gsd_m": spec.gsd_m,
        "nodata": spec.nodata,
    }
    defects += [
        f"{name} says {field} {attributes.get(field)}, expected is {value}"
        for field, value in told.items()
        if attributes.get(field) != value
    ]
    return defects


def _group_defects(entries: dict[str, tuple[int, bytes]], record: np.void) -> list[str]:
    if "zarr.json" not in entries:
        return ["the ZIP lacks zarr.json"]
    key = record["key"].decode()
    told = (_json(entries["zarr.json"][1]).get("attributes") or {}).get("key")
    return [] if told == key else [f"its attributes say that its key is {told}"]


def _json(content: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(content)
    except ValueError:
        return {}
    return parsed if isinstance(parsed, dict) else {}
