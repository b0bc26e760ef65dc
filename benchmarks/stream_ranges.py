"""What one process can pull from an S3 server with a client library: 8 MB ranges, 16 at a time, and nothing else."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final

from benchmarks.stream_readers import Part, Reader, Task

RANGE_BYTES: Final = 8 << 20
IN_FLIGHT: Final = 16


class Ranges(Reader):
    """All tars of ours, through s3fs or obstore; a part is so many samples as its bytes would be."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        from sharding.dataset import open_dataset

        _, manifest = open_dataset(str(self.root / task.codec))
        self.ranges: list[tuple[str, int, int]] = []
        for shard in manifest.shards_of("train"):
            for start in range(0, shard.num_bytes, RANGE_BYTES):
                end = min(start + RANGE_BYTES, shard.num_bytes)
                self.ranges.append((f"{task.codec}/{shard.path}", start, end))
        self.num_samples = sum(shard.samples for shard in manifest.shards_of("train"))
        self.pull = _open_obstore(task.remote) if task.client == "obstore" else _open_s3fs(task.remote)
        self.pull([(f"{task.codec}/manifest.json", 0, 100)])  # the client is ready then, as that of a stream is

    def epoch(self) -> Iterator[Part]:
        pulled = self.pull(self.ranges)
        assert pulled == sum(end - start for _, start, end in self.ranges)
        yield Part(self.num_samples)


Range = tuple[str, int, int]
Pull = Callable[[list[Range]], int]


def _open_s3fs(url: str) -> Pull:
    import s3fs

    fs = s3fs.S3FileSystem(
        anon=True,
        client_kwargs={"endpoint_url": url},
        config_kwargs={"max_pool_connections": 4 * IN_FLIGHT},
    )

    def pull(ranges: list[Range]) -> int:
        todo = iter(ranges)

        async def work() -> int:
            pulled = 0
            for path, start, end in todo:
                pulled += len(await fs._cat_file(f"bench/{path}", start=start, end=end))
            return pulled

        async def all_work() -> int:
            return sum(await asyncio.gather(*(work() for _ in range(IN_FLIGHT))))

        return asyncio.run_coroutine_threadsafe(all_work(), fs.loop).result()

    return pull


def _open_obstore(url: str) -> Pull:
    import obstore
    from obstore.store import S3Store

    store: Any = S3Store(
        "bench", endpoint=url, skip_signature=True, region="us-east-1", client_options={"allow_http": True}
    )

    def pull(ranges: list[Range]) -> int:
        todo, lock, pulled = iter(ranges), threading.Lock(), []

        def work() -> None:
            while True:
                with lock:
                    path, start, end = next(todo, ("", 0, 0))
                if not path:
                    return
                pulled.append(len(obstore.get_range(store, path, start=start, end=end)))

        threads = [threading.Thread(target=work) for _ in range(IN_FLIGHT)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(pulled)

    return pull
