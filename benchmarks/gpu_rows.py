"""One row of `benchmarks.gpu`: a deadline that it must meet, a batch that fits, and what a step takes."""

import math
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from benchmarks.model_contenders import Contender, free_memory
from benchmarks.stream_report import Entry

RATE, STEP, BATCH, MEMORY, ONE = "samples/s", "step, ms", "batch", "peak, GiB", "one pair, ms"
MFU, MFU_MEASURED = "MFU, %", "of the measured matmul, %"
COPY, MATMUL = "GB/s", "TFLOP/s"

_DATASHEET = {
    r"NVIDIA H100 80GB HBM3": 989.0,
    r"NVIDIA H200": 989.0,
    r"(NVIDIA )?A100-(SXM4|PCIE)-[48]0GB|NVIDIA A100 80GB PCIe": 312.0,
    r"NVIDIA L40S": 362.0,
    r"NVIDIA L4": 121.0,
}
"""Dense bf16 TFLOP/s of whole cards, as their makers write them."""


def datasheet_tflops(device_name: str) -> float | None:
    """What the card's datasheet promises; None for a card that is not in the table, or a part of one."""
    return next((peak for name, peak in _DATASHEET.items() if re.fullmatch(name, device_name)), None)


class Clock:
    """How much time is left, and whether it will do for one more row of a kind."""

    def __init__(self, minutes: float, now: Callable[[], float] = time.monotonic) -> None:
        self._now, self._end = now, now() + 60 * minutes
        self._longest: dict[str, float] = {}

    def allows(self, kind: str) -> bool:
        """Whether the longest row of this kind so far would end in time."""
        return self._now() + self._longest.get(kind, 0.0) < self._end

    def run(self, kind: str, work: Callable[[], None]) -> None:
        """Do it, and remember how long it took."""
        began = self._now()
        try:
            work()
        finally:
            self._longest[kind] = max(self._longest.get(kind, 0.0), self._now() - began)


@dataclass(kw_only=True)
class Bench:
    """How rows are measured, and on what."""

    device: torch.device
    clock: Clock
    compiler: str
    """Backend of torch.compile."""
    repetitions: int = 5
    warm_up: int = 3
    """Steps that are not timed."""
    least_s: float = 0.3
    """Shortest time of a repetition; as many steps as it takes."""
    datasheet: float | None = None
    """TFLOP/s."""
    matmul: float | None = None
    """TFLOP/s that this card was measured to reach."""
    fitting: dict[str, int] = field(default_factory=dict)
    """Batches that were found to fit, by what they were for."""
    held: int = 0
    """Bytes on the device that are not the row's: DeepSpeed lets go of an engine late."""


def attempt(bench: Bench, entry: Entry, kind: str, measure: Callable[[], None]) -> None:
    """Measure a row, or write into it why there is nothing to see: one bad row must not cost the others."""
    if not bench.clock.allows(kind):
        entry.note = "not run (time)"
        return
    if bench.device.type == "cuda":
        bench.held = torch.cuda.memory_allocated(bench.device)
    try:
        bench.clock.run(kind, measure)
    except torch.OutOfMemoryError:
        entry.note = "out of memory"
    except Exception as error:  # whatever a compiler, a kernel or a package of this machine comes up with
        words = " ".join(str(error).split())
        entry.note = f"failed: {type(error).__name__}: {words[:160]}".replace("|", "/")
    free_memory(bench.device)


def with_fitting_batch(bench: Bench, key: str, batch: int, measure: Callable[[int], None]) -> None:
    """Measure with `batch`, or what was found to fit `key` before, halved until it fits."""
    batch = min(batch, bench.fitting.get(key, batch))
    while True:
        try:
            measure(batch)
            bench.fitting[key] = batch
            return
        except torch.OutOfMemoryError:
            if batch == 1:
                raise
        # Not in the handler: there the error still holds the tensors of the frames that it came through.
        batch //= 2
        free_memory(bench.device)


def measure_contender(bench: Bench, entry: Entry, contender: Contender, *, compiled: bool, latency: bool) -> None:
    """Forward, backward and AdamW step, in the dtype of the model's weights."""
    model, device = contender.model, bench.device
    call = model
    if compiled:
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        call = torch.compile(model, backend=bench.compiler, dynamic=False)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=device.type == "cuda")

    def step() -> None:
        contender.loss(call).backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    measure_step(bench, entry, step, contender.batch, contender.train_flops)
    if compiled and (breaks := sum(torch._dynamo.utils.counters["graph_break"].values())):
        entry.note = f"{breaks} graph breaks"
    if latency:
        entry.add(ONE, 1000 * _latency(bench, contender))


def measure_step(bench: Bench, entry: Entry, step: Callable[[], None], batch: int, train_flops: int) -> None:
    """Time `step` and write down all that follows from it."""
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(bench.device)
    for seconds in timed(bench, step):
        entry.add(RATE, batch / seconds)
        entry.add(STEP, 1000 * seconds)
        tflops = batch * train_flops / seconds / 1e12
        if bench.datasheet:
            entry.add(MFU, 100 * tflops / bench.datasheet)
        if bench.matmul:
            entry.add(MFU_MEASURED, 100 * tflops / bench.matmul)
    entry.add(BATCH, batch)
    if bench.device.type == "cuda":
        entry.add(MEMORY, (torch.cuda.max_memory_allocated(bench.device) - bench.held) / 2**30)


def timed(bench: Bench, step: Callable[[], object]) -> list[float]:
    """Seconds a step of each repetition."""
    for _ in range(bench.warm_up):
        step()
    number = max(1, math.ceil(bench.least_s / _seconds(bench, step, 1)))
    return [_seconds(bench, step, number) for _ in range(bench.repetitions)]


def measure_ceilings(bench: Bench, *, copy_bytes: int, matmul_size: int) -> list[Entry]:
    """What this very card does at best: a copy within its memory, and a product of bf16 matrices."""
    copy = Entry(name="copy on the device, read and written")
    for seconds in _copies(bench, copy_bytes):
        copy.add(COPY, 2 * copy_bytes / seconds / 1e9)
    matmul = Entry(name=f"bf16 matmul of {matmul_size} squared")
    for seconds in _matmuls(bench, matmul_size):
        matmul.add(MATMUL, 2 * matmul_size**3 / seconds / 1e12)
    bench.matmul = matmul.median(MATMUL)
    free_memory(bench.device)
    return [copy, matmul]


def _copies(bench: Bench, num_bytes: int) -> list[float]:
    source = torch.ones(num_bytes, dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    return timed(bench, lambda: target.copy_(source))


def _matmuls(bench: Bench, size: int) -> list[float]:
    left, right, out = (torch.randn(size, size, device=bench.device, dtype=torch.bfloat16) for _ in range(3))
    return timed(bench, lambda: torch.mm(left, right, out=out))


def _latency(bench: Bench, contender: Contender) -> float:
    contender.model.eval()
    with torch.inference_mode():
        times = [_seconds(bench, contender.features, 1) for _ in range(4 * bench.repetitions)]
    contender.model.train()
    return statistics.median(times[bench.repetitions :])


def _seconds(bench: Bench, step: Callable[[], object], number: int) -> float:
    _wait(bench.device)
    began = time.perf_counter()
    for _ in range(number):
        step()
    _wait(bench.device)
    return (time.perf_counter() - began) / number


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
