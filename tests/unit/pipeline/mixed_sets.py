"""Three small data sets that differ, streams of their mixture, and what is compared of it."""

from pathlib import Path

from pipeline.stream.mixture import MixedBatch, MixtureConfig, MixtureMember, MixtureStream
from tests.unit.pipeline.small_shards import Made, make


def make_sets(root: Path) -> dict[str, Made]:
    """Three data sets that differ in size, pixels, bands, types and codec; 20, 13 and 5 pairs."""
    return {
        "ben": make(root / "ben"),
        "ssl": make(root / "ssl", (9, 4), pixels=24, codec="none", subset_every=3, s1_dtype="float16"),
        "few": make(root / "few", (5,), codec="zstd", offset_every=2),
    }


WEIGHTS = {"ben": 3, "ssl": 2, "few": 1}


def config(sets: dict[str, Made], weights=WEIGHTS, **changes) -> MixtureConfig:
    members = tuple(MixtureMember(url=sets[name].url, weight=weight) for name, weight in weights.items())
    return MixtureConfig(**({"datasets": members, "global_batch": 12} | changes))


def open_stream(sets, rank=0, world_size=1, **changes) -> MixtureStream:
    return MixtureStream(config(sets, **changes), rank, world_size)


def slots(*batches: MixedBatch) -> list[tuple]:
    """What is in each slot, pixels included, of one batch or of the ranks' batches of a step."""
    found = []
    for batch in batches:
        own = {}
        for name, part, rows in zip(batch.names, batch.parts, batch.rows, strict=True):
            for number, (row, key) in enumerate(zip(rows.tolist(), part.keys, strict=True)):
                pixels = b"".join(array[number].numpy().tobytes() for array in part.arrays.values())
                own[row] = (name, key, int(part.epoch[number]), int(part.position[number]), pixels)
        assert sorted(own) == list(range(len(batch)))
        found += [own[row] for row in range(len(batch))]
    return found
