"""A profile of some steps by one setting: what each kernel and each operator took, for chrome://tracing or Perfetto."""

from pathlib import Path
from typing import Any, Final

WARM_UP: Final = 3
"""Steps of an attempt before the profile begins: the first ones compile and fill caches."""
_ROWS: Final = 40


class StepProfile:
    """Profiles `num_steps` steps of an attempt that resumed at `resumed_step`; with 0 nothing is done.

    RUN/profile/step-00000004-00000006.json is the trace of this rank, and the .txt beside it a table by operator.
    """

    def __init__(self, run_dir: Path, num_steps: int, resumed_step: int) -> None:
        self._folder = run_dir / "profile"
        self._first = resumed_step + WARM_UP + 1
        self._last = self._first + num_steps - 1
        self._profiler: Any = None

    def begin(self, step: int) -> None:
        """`step` begins."""
        if step != self._first or self._last < self._first:
            return
        import torch
        from torch.profiler import ProfilerActivity, profile

        kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
        self._profiler = profile(activities=kinds, profile_memory=True)
        self._profiler.start()

    def end(self, step: int) -> Path | None:
        """`step` is done; where the trace was written, if it was the last one to profile."""
        if self._profiler is None or step < self._last:
            return None
        profiler, self._profiler = self._profiler, None
        profiler.stop()
        self._folder.mkdir(exist_ok=True)
        path = self._folder / f"step-{self._first:08d}-{self._last:08d}.json"
        profiler.export_chrome_trace(str(path))
        by = "self_cuda_time_total" if "CUDA" in str(profiler.activities) else "self_cpu_time_total"
        path.with_suffix(".txt").write_text(profiler.key_averages().table(sort_by=by, row_limit=_ROWS))
        return path
