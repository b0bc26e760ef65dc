"""A data set in the S3 server of the tests, what is streamed of it, and what is put in place of its objects."""

import contextlib
import hashlib

import numpy as np

from pipeline.stream import Batch, Stream, StreamConfig
from pipeline.stream.instruments import Instruments
from tests.s3server import S3Server
from tests.unit.pipeline.small_shards import Made, assert_equal, reader_threads, take

BUCKET, PREFIX = "stream", "pairs"
SHARDS = r"/shards/"
BATCHES, BATCH = 8, 12
"""Two epochs."""
IN_BODY = 20_000
"""A byte in the middle of a shard."""


@contextlib.contextmanager
def stored(server: S3Server, path: str, content: bytes | None):
    """Another object, or none, in place of a file of the data set."""
    client, key = server.client(), f"{PREFIX}/{path}"
    real = client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
    if content is None:
        client.delete_object(Bucket=BUCKET, Key=key)
    else:
        client.put_object(Bucket=BUCKET, Key=key, Body=content)
    try:
        yield
    finally:
        client.put_object(Bucket=BUCKET, Key=key, Body=real)


def opened(url: str, client: str = "fsspec", rank: int = 0, world_size: int = 1, **changes) -> Stream:
    return Stream(StreamConfig(url=url, global_batch=BATCH, client=client, **changes), rank, world_size)


def streamed(url: str, client: str, expected: list[Batch], **changes) -> Instruments:
    """Compare all batches with those of the local copy."""
    with opened(url, client, **changes) as stream:
        for mine, other in zip(take(stream, BATCHES), expected, strict=True):
            assert_equal(mine, other)
        told = stream.instruments()
    assert reader_threads() == []
    return told


def payload(made: Made, sample: int, array: int) -> tuple[str, int, str]:
    """Where a payload lies: shard, a byte in its middle, the sample's key."""
    with Stream(StreamConfig(url=made.url, global_batch=BATCH)) as stream:
        table = stream._reader.table
        record = table.records(np.array([sample]))[0]
        middle = int(record["offset"][array] + record["length"][array] // 2)
        return table.files[record["file"][array]].path, middle, record["key"].decode()


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def digest(batch: Batch) -> str:
    whole = hashlib.sha256(repr((batch.keys, batch.position.tolist(), batch.epoch.tolist())).encode())
    for name in sorted(batch.arrays):
        whole.update(batch.arrays[name].numpy().tobytes())
    return whole.hexdigest()
