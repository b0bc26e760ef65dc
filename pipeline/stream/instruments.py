"""What the stream has read, fetched and waited for, so that a slow run can be explained."""

import threading
from dataclasses import dataclass, fields


@dataclass(frozen=True, kw_only=True)
class Instruments:
    """Sums since the stream was opened, of this rank. Times of threads add up; waits are the consumer's."""

    samples: int = 0
    """That were yielded."""
    bytes_read: int = 0
    """Of payloads as stored, from files, caches and memory."""
    bytes_fetched: int = 0
    """From an object store."""
    requests: int = 0
    """Ranges that were asked of an object store, without repeated tries."""
    retries: int = 0
    """Tries after the first one."""
    cache_hits: int = 0
    """Ranges that were on the node's disk, or on their way there."""
    cache_misses: int = 0
    """Ranges that this rank has fetched for the node."""
    fetch_s: float = 0.0
    """Of fetching threads, in requests."""
    read_s: float = 0.0
    """Of reader threads, in reads of files."""
    check_s: float = 0.0
    """Of reader threads, in checksums."""
    decode_s: float = 0.0
    """Of reader threads, in codecs."""
    plan_s: float = 0.0
    """Of reader threads, in the order and the index."""
    copy_s: float = 0.0
    """Of reader threads, until a copy to the device had left its slot."""
    wait_s: float = 0.0
    """Of the consumer, for batches; the sum of what follows."""
    wait_fetch_s: float = 0.0
    """Of that: because runs had not come from the store or the cache."""
    wait_read_s: float = 0.0
    """Because files were being read."""
    wait_decode_s: float = 0.0
    """Because checksums and codecs were at work."""
    wait_other_s: float = 0.0
    """Because order, index or a copy to the device were not done."""
    corrupt: int = 0
    """Samples that did not match their checksum or could not be decoded, at first."""
    replaced: int = 0
    """Of those, the ones that stayed damaged and in whose place another sample was given."""


class Meter:
    """Collects `Instruments` from many threads."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {field.name: 0 for field in fields(Instruments)}
        self._lock = threading.Lock()

    def add(self, **amounts: float) -> None:
        """Add to sums by name."""
        with self._lock:
            for name, amount in amounts.items():
                self._sums[name] += amount

    def read(self) -> Instruments:
        """The sums now."""
        with self._lock:
            kinds = {field.name: field.type for field in fields(Instruments)}
            return Instruments(**{n: v if kinds[n] in (float, "float") else int(v) for n, v in self._sums.items()})  # type: ignore[arg-type]
