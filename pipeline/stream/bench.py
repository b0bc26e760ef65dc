"""Measures a stream on anybody's data set for some seconds, and the raw read limit of the same store beside it."""

import os
import random
import resource
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pipeline.stream.byte_range import ByteRange
from pipeline.stream.instruments import Instruments
from sharding.errors import ConfigError, StorageError

if TYPE_CHECKING:
    from pipeline.stream.exact import StreamConfig

RAW_BYTES: Final = 8_000_000
"""Of one raw read: what a store gives at its best in one request."""
_RAW_SHARE: Final = 0.3
"""Of the stream's seconds."""


@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """What to stream, for how long, and as which part of a job."""

    stream: "StreamConfig"
    """Its global batch is that of all ranks."""
    ranks: int = 1
    """Ranks of the job, of which this process is the first: runs are as long and windows as wide as in the job."""
    seconds: float = 10.0
    """How long to take batches, after the first one."""
    device: str = "cpu"
    """Where batches are copied to: `cpu` leaves them where they are, `cuda` or `cuda:1` copies and waits."""

    def __post_init__(self) -> None:
        if not self.seconds > 0:
            raise ConfigError(f"seconds is {self.seconds}; it must be above 0")


@dataclass(frozen=True, kw_only=True)
class RawRead:
    """Plain reads of the data set's files at random places, nothing checked or decoded."""

    num_bytes: int
    seconds: float
    in_flight: int
    """Reads at a time."""

    @property
    def bytes_per_s(self) -> float:
        """The limit."""
        return self.num_bytes / self.seconds


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A stream's figures behind its first batch, and what surrounds them."""

    settings: BenchSettings
    is_remote: bool
    num_samples: int
    """Of the split."""
    sample_bytes: float
    """Of a sample in its shard, on average."""
    codec: str
    first_batch_s: float
    """From opening the stream, manifest and index included."""
    seconds: float
    steps: int
    sums: Instruments
    """Differences over the measured time."""
    longest_wait_s: float
    copy_s: float
    """The consumer's time in copies to the device."""
    cpu_s: float
    """Of the whole process, all threads."""
    idle_s: float
    """Of the cores that this process may use, added up: nobody used them."""
    disk_bytes: int | None
    """That came from a disk and not from the page cache; None when the system does not tell."""
    raw: RawRead
    cores: int
    """That this process may use."""

    @property
    def samples_per_s(self) -> float:
        """Taken by the consumer."""
        return self.sums.samples / self.seconds

    @property
    def read_per_s(self) -> float:
        """Stored bytes of payloads, from wherever they lay."""
        return self.sums.bytes_read / self.seconds

    @property
    def fetched_per_s(self) -> float:
        """Bytes that came from the object store."""
        return self.sums.bytes_fetched / self.seconds


def measure(settings: BenchSettings) -> Measured:
    """Stream, then read raw. ConfigError, DataError or StorageError when the data cannot be streamed."""
    from pipeline.stream.exact import Stream

    copy = _copy_to(settings.device)
    config = settings.stream
    began = time.perf_counter()
    with Stream(config, 0, settings.ranks) as stream:
        batches = iter(stream)
        next(batches)
        first_batch_s = time.perf_counter() - began
        before, cpu_before, idle_before, disk_before = stream.instruments(), _cpu_s(), _idle_s(), _disk_bytes()
        copy_s, longest_wait_s, steps = 0.0, 0.0, 0
        began = time.perf_counter()
        while steps == 0 or time.perf_counter() - began < settings.seconds:
            batch = next(batches)
            longest_wait_s = max(longest_wait_s, batch.wait_s)
            copy_s += copy(batch)
            steps += 1
        seconds = time.perf_counter() - began
        cpu_s, idle_s, disk = _cpu_s() - cpu_before, _idle_s() - idle_before, _disk_bytes()
        sums = difference(stream.instruments(), before)
        manifest, num_samples = stream.manifest, stream.num_samples
    raw, is_remote = read_raw(config, settings.seconds * _RAW_SHARE)
    return Measured(
        settings=settings,
        is_remote=is_remote,
        num_samples=num_samples,
        sample_bytes=manifest.sample_bytes(config.split),
        codec=manifest.codec,
        first_batch_s=first_batch_s,
        seconds=seconds,
        steps=steps,
        sums=sums,
        longest_wait_s=longest_wait_s,
        copy_s=copy_s,
        cpu_s=cpu_s,
        idle_s=idle_s,
        disk_bytes=None if disk is None or disk_before is None else disk - disk_before,
        raw=raw,
        cores=len(os.sched_getaffinity(0)),
    )


def difference(after: Instruments, before: Instruments) -> Instruments:
    """What was added to each sum."""
    return Instruments(**{f.name: getattr(after, f.name) - getattr(before, f.name) for f in fields(Instruments)})


def read_raw(config: "StreamConfig", seconds: float) -> tuple[RawRead, bool]:
    """Read 8 MB at random places of the split's files, and whether they are in an object store.

    Object stores are asked by the stream's own client, as many ranges at a time as the stream asks for; files are read
    by as many threads as the stream has, each into memory of its own.
    """
    from pipeline.stream.exact import read_image_manifest
    from pipeline.stream.fetching import Fetcher, open_store
    from pipeline.stream.instruments import Meter
    from pipeline.stream.run_cache import FETCHES_IN_FLIGHT
    from sharding.foreign_store import data_url

    manifest = read_image_manifest(config.url)
    store = open_store(config.url)
    if manifest.data_url:
        store = open_store(data_url(store.url, manifest))
    files = list({part.path: part for shard in manifest.shards_of(config.split) for part in shard.data_files}.values())
    draw = random.Random(time.time_ns())

    def a_range() -> ByteRange:
        file = draw.choice(files)
        start = draw.randrange(max(file.num_bytes - RAW_BYTES, 0) + 1)
        return ByteRange(file.path, start, min(start + RAW_BYTES, file.num_bytes), file.num_bytes)

    if not store.is_local:
        fetch = Fetcher(store, Meter(), config.client)
        in_flight = FETCHES_IN_FLIGHT
        return _read_for(seconds, in_flight, a_range, lambda wanted: len(fetch(wanted))), True
    memory = threading.local()

    def read(wanted: ByteRange) -> int:
        if not hasattr(memory, "buffer"):
            memory.buffer = bytearray(RAW_BYTES)  # fresh memory would cost a page fault each 4 KiB
        try:
            with open(store.full(wanted.path), "rb", buffering=0) as file:
                view = memoryview(memory.buffer)[: wanted.end - wanted.start]
                return os.preadv(file.fileno(), [view], wanted.start)
        except OSError as error:
            raise StorageError(f"cannot read {store.name(wanted.path)}: {error.strerror}") from error

    return _read_for(seconds, config.threads, a_range, read), False


def _read_for(
    seconds: float, in_flight: int, a_range: Callable[[], ByteRange], read: Callable[[ByteRange], int]
) -> RawRead:
    """Keep `in_flight` reads under way until the time is over; those still under way then are waited for."""
    began = time.perf_counter()
    lock = threading.Lock()

    def work(_: int) -> int:
        done = 0
        while not done or time.perf_counter() - began < seconds:
            with lock:
                wanted = a_range()
            done += read(wanted)
        return done

    with ThreadPoolExecutor(in_flight, thread_name_prefix="raw") as pool:
        num_bytes = sum(pool.map(work, range(in_flight)))
    return RawRead(num_bytes=num_bytes, seconds=time.perf_counter() - began, in_flight=in_flight)


def _copy_to(device: str) -> Callable[[Any], float]:
    """Copies a batch to the device and returns the seconds until it was there."""
    import torch

    try:
        target = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"there is no device '{device}'; write cpu or cuda") from error
    if target.type == "cpu":
        return lambda batch: 0.0
    if target.type != "cuda" or not torch.cuda.is_available():
        raise ConfigError(f"this machine has no device '{device}'; leave out --device to measure up to the copy")
    count = torch.cuda.device_count()
    if target.index is not None and target.index >= count:
        raise ConfigError(f"this machine has no device '{device}'; it has {count}, counted from cuda:0")
    torch.cuda.set_device(target)
    torch.cuda.init()  # type: ignore[no-untyped-call]

    def copy(batch: Any) -> float:
        began = time.perf_counter()
        batch.to(device, non_blocking=True)
        torch.cuda.synchronize(device)
        return time.perf_counter() - began

    return copy


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _idle_s() -> float:
    """Idle time of the cores that this process may use since the machine was started; 0 where nobody tells."""
    own = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    try:
        lines = [line.split() for line in Path("/proc/stat").read_text().splitlines()]
    except OSError:
        return 0.0
    ticks = sum(int(words[4]) + int(words[5]) for words in lines if words and words[0] in own)  # idle and iowait
    return ticks / os.sysconf("SC_CLK_TCK")


def _disk_bytes() -> int | None:
    """Bytes that this process has had read from disks; network file systems are not counted by every kernel."""
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("read_bytes:")), None)
