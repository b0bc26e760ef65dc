"""Whether an object holds what was sent: by the checksum that the store tells, else by reading it again."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

PART_BYTES: Final = 32 * 2**20
"""Of a multipart upload; a file of less than two parts goes in one request."""
_READ_BYTES: Final = 16 * 2**20


def is_stored(fs: Any, path: str, sent: Path | bytes) -> bool:
    """Whether the object `path` of the fsspec file system `fs` has the bytes of `sent`.

    S3's ETag is the MD5 of the object, or of the MD5s of its parts, unless the bucket is encrypted by a key of its
    own; where it says nothing, and in other stores, the object is read back.
    """
    info = fs.info(path)
    size = sent.stat().st_size if isinstance(sent, Path) else len(sent)
    if int(info["size"]) != size:
        return False
    told = str(info.get("ETag") or "").strip('"')
    if told and told in _etags(sent, size):
        return True
    return all(
        fs.cat_file(path, start=start, end=start + len(part)) == part for start, part in _parts(sent, _READ_BYTES)
    )


def _etags(sent: Path | bytes, size: int) -> tuple[str, ...]:
    """What S3 calls the object when it was uploaded in one request, or in parts."""
    if size < 2 * PART_BYTES:
        digest = hashlib.md5(usedforsecurity=False)
        for _, part in _parts(sent, _READ_BYTES):
            digest.update(part)
        return (digest.hexdigest(),)
    digests = [hashlib.md5(part, usedforsecurity=False).digest() for _, part in _parts(sent, PART_BYTES)]
    whole = hashlib.md5(b"".join(digests), usedforsecurity=False).hexdigest()
    return (f"{whole}-{len(digests)}",)


def _parts(sent: Path | bytes, size: int) -> Iterator[tuple[int, bytes]]:
    if isinstance(sent, bytes):
        for start in range(0, len(sent), size):
            yield start, sent[start : start + size]
        return
    with sent.open("rb") as file:
        start = 0
        while part := file.read(size):
            yield start, part
            start += len(part)
