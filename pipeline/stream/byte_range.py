"""A range of bytes of a data set's file: what is asked of a store and kept in a cache."""

from dataclasses import dataclass

from sharding.errors import DataError


@dataclass(frozen=True)
class ByteRange:
    """Bytes [start, end) of the file `path`, whose whole size is `file_bytes`."""

    path: str
    start: int
    end: int
    file_bytes: int

    @property
    def num_bytes(self) -> int:
        """Length of the range."""
        return self.end - self.start


def wrong_size(name: str, found: int, expected: int) -> DataError:
    """The error for a shard that is not as long as the manifest says."""
    return DataError(
        f"shard {name} holds {found} bytes, its manifest says {expected}; fetch or build it again, "
        "python -m sharding.verify tells whether others are damaged too"
    )
