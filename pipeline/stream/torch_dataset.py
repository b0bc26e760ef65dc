"""The stream in the manners of `torch.utils.data`, for loops written in plain PyTorch, Lightning or Accelerate.

    dataset = StreamDataset(StreamConfig(url="s3://bucket/pairs", global_batch=512))
    for epoch in range(dataset.epoch, 10):
        for batch in dataset:
            ...
    torch.save(dataset.state_dict(), "state.pt")

The data set is its own loader: it yields this rank's share of each global batch, read ahead by threads of this
process. A `DataLoader(dataset, batch_size=None)` around it adds nothing and takes nothing away.
"""

import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final, NoReturn, Protocol, Self

import torch.distributed as dist
from torch.utils.data import IterableDataset, get_worker_info

from pipeline.stream.exact import Stream, StreamConfig
from sharding.errors import ConfigError

_ONE_PROCESS: Final = (
    "a StreamDataset reads in threads of the process that made it, and in worker processes each would yield every "
    "batch once more; write DataLoader(dataset, batch_size=None, num_workers=0), and set StreamConfig.threads"
)


class _Config(Protocol):
    @property
    def global_batch(self) -> int: ...


class AnyStream(Protocol):
    """What `Stream`, `MixtureStream` and `WebDatasetStream` have in common."""

    samples_seen: int
    num_samples: int

    @property
    def config(self) -> _Config: ...  # noqa: D102

    def __iter__(self) -> Iterator[Any]: ...

    def state_dict(self) -> dict[str, Any]: ...  # noqa: D102

    def load_state_dict(self, state: dict[str, Any]) -> None: ...  # noqa: D102

    def close(self) -> None: ...  # noqa: D102


OpenStream = Callable[[int, int], AnyStream]
"""Opens a stream for a rank of so many."""


class StreamDataset(IterableDataset[Any]):
    """This rank's batches, in epochs of equal length that follow each other without a gap.

    Epoch e holds the global batches [e * L, (e + 1) * L) of the endless stream, L = `len(dataset)`: each framework may
    count on the number, and no sample is dropped or repeated at an epoch's end, where the last batch goes on with the
    next samples. So an epoch of the data set's samples (`Batch.epoch`) ends up to a batch before one of these.

    An iteration yields what is left of the epoch, the whole of it or its rest after a resume or a `break`; the next
    one goes on behind it. There is one iteration at a time. The position, which `state_dict` tells, moves when a batch
    is handed out: where something else takes batches in advance, ask for `state_after` the batch that was used last.

    Rank and world size are those of `torch.distributed`, else of the variables RANK and WORLD_SIZE, as they are when an
    iteration begins. All ranks have the same state, and any number of ranks continues it.
    """

    def __init__(
        self,
        stream: StreamConfig | OpenStream,
        *,
        rank: int | None = None,
        world_size: int | None = None,
        epoch_batches: int | None = None,
        copy: bool = True,
    ) -> None:
        """Open the stream.

        Args:
            stream: what to stream, as `Batch`es; or a function of rank and world size that opens a stream of another
                kind, such as `partial(MixtureStream, config)`.
            rank: this process among those that share a global batch. None: as the launcher says.
            world_size: how many share it. None: as the launcher says.
            epoch_batches: L, the length of an epoch in global batches. None: as many as hold all samples once.
            copy: hand out batches in memory of their own, valid for ever. False saves the copy: a batch then lies in
                a slot that is filled anew when the next one is asked for, which suits loops that hold one at a time.
        """
        if (rank is None) != (world_size is None):
            raise ConfigError("rank and world_size belong together; give both, or neither to take the launcher's")
        if epoch_batches is not None and epoch_batches < 1:
            raise ConfigError(f"epoch_batches is {epoch_batches}; it must be at least 1")
        self._open: OpenStream = partial(Stream, stream) if isinstance(stream, StreamConfig) else stream
        self._ranks = None if rank is None or world_size is None else (rank, world_size)
        self.rank, self.world_size = self._ranks or _current_ranks() or (0, 1)
        self._stream = self._open(self.rank, self.world_size)
        self._epoch_batches = epoch_batches or -(-self._stream.num_samples // self._global_batch)
        self._copy = copy
        self._batches: Iterator[Any] | None = None
        """The stream's iterator; it reads on from one epoch to the next."""
        self._iteration = 0
        self._is_resumed = False
        """Whether a state was loaded and no batch yielded since."""

    def __iter__(self) -> Iterator[Any]:
        """The batches up to the end of the epoch; reading begins with the first one."""
        if get_worker_info() is not None:
            raise ConfigError(_ONE_PROCESS)
        self._follow_ranks()
        return self._rest_of_epoch()

    def __len__(self) -> int:
        """Global batches of an epoch, which is as many batches of this rank."""
        return self._epoch_batches

    @property
    def stream(self) -> Any:
        """The stream itself, for what it tells: manifest, order, instruments. Iterate the data set, not the stream."""
        return self._stream

    @property
    def epoch(self) -> int:
        """Epoch of the next batch."""
        return self._stream.samples_seen // self._epoch_samples

    def set_epoch(self, epoch: int) -> None:
        """Go to the first batch of `epoch`; within that epoch already, stay, so that a resumed one goes on.

        ConfigError on the way back from a state that was just loaded: a loop that counts its epochs from 0 after a
        resume would show all samples again.
        """
        if epoch < 0:
            raise ConfigError(f"epoch {epoch} does not exist; epochs count from 0")
        if epoch == self.epoch:
            return
        if self._is_resumed and epoch < self.epoch:
            raise ConfigError(
                f"the loaded state is in epoch {self.epoch}, and set_epoch({epoch}) would go back from it; "
                "begin the loop at dataset.epoch, or load the state of that epoch"
            )
        self._move({**self._stream.state_dict(), "samples_seen": epoch * self._epoch_samples})
        self._is_resumed = False

    def state_dict(self) -> dict[str, Any]:
        """All that continues behind the last batch handed out; the same on every rank.

        Below 300 bytes; of a mixture below 100 and 300 for each data set.
        """
        return self._stream.state_dict()

    def state_after(self, batch: Any) -> dict[str, Any]:
        """All that continues behind `batch`, however many were taken in advance since it was handed out."""
        seen = (batch.step + 1) * self._global_batch + self._stream.samples_seen % self._global_batch
        return {**self._stream.state_dict(), "samples_seen": seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken, on any number of ranks; an iteration that is under way ends.

        ConfigError naming what differs when the order would not be the same.
        """
        self._move(state)
        self._is_resumed = True

    def close(self) -> None:
        """End the threads and close the files; dropping the data set does so too."""
        self._iteration += 1
        self._batches = None
        self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise ConfigError(f"it cannot be copied or sent to another process: {_ONE_PROCESS}")

    @property
    def _global_batch(self) -> int:
        return self._stream.config.global_batch

    @property
    def _epoch_samples(self) -> int:
        return self._epoch_batches * self._global_batch

    def _rest_of_epoch(self) -> Iterator[Any]:
        self._iteration += 1
        mine = self._iteration
        end = (self.epoch + 1) * self._epoch_samples
        while self._stream.samples_seen < end:
            if self._batches is None:
                self._batches = iter(self._stream)
            try:
                batch = next(self._batches)
            except BaseException:
                self._batches = None  # it has ended; the next iteration reads this batch again
                raise
            self._is_resumed = False
            yield batch.copy() if self._copy else batch
            if mine != self._iteration:
                raise RuntimeError("this iteration was ended: the data set was moved, closed or iterated anew")

    def _move(self, state: dict[str, Any]) -> None:
        self._stream.load_state_dict(state)
        self._iteration += 1
        self._batches = None

    def _follow_ranks(self) -> None:
        """Open the stream again when the process group, or what described it, came only after the data set."""
        ranks = self._ranks or _current_ranks()
        if ranks is None:
            raise ConfigError(
                "the launcher set only one of RANK and WORLD_SIZE, which does not say which samples are this rank's; "
                "call torch.distributed.init_process_group before the first batch, or give rank and world_size"
            )
        if ranks == (self.rank, self.world_size):
            return
        state = self._stream.state_dict()
        self.close()
        self._stream = self._open(*ranks)
        self._stream.load_state_dict(state)
        self.rank, self.world_size = ranks


def _current_ranks() -> tuple[int, int] | None:
    """Rank and world size by the process group, else by the environment; None when that tells only a part."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    rank, world_size = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
    try:
        if rank is None and int(world_size or 1) == 1:
            return 0, 1
        return None if rank is None or world_size is None else (int(rank), int(world_size))
    except ValueError as error:
        raise ConfigError(f"RANK is {rank!r} and WORLD_SIZE {world_size!r}; both must be whole numbers") from error
