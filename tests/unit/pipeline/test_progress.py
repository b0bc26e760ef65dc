"""What is counted between two log lines, and when a run is beyond help."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist

from pipeline.data_settings import DataSettings
from pipeline.distributed import Ranks
from pipeline.errors import DataError
from pipeline.metrics import RunLog, read_lines
from pipeline.progress import Progress
from pipeline.settings import RunSettings, Settings, TrainSettings


class Output(NamedTuple):
    loss: torch.Tensor
    losses: dict[str, torch.Tensor]


def _output(s1: float, s2: float) -> Output:
    return Output(torch.tensor(s1 + s2), {"s1": torch.tensor(s1), "s2": torch.tensor(s2)})


@pytest.fixture
def group() -> Iterator[Any]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def _progress(tmp_path: Path, group: Any, skipped: int = 0) -> tuple[Progress, RunLog]:
    settings = Settings(
        data=DataSettings(url="x"),
        train=TrainSettings(steps=10, global_batch=8),
        run=RunSettings(dir=str(tmp_path)),
    )
    log = RunLog(tmp_path, 0, 0, trace=False)
    ranks = Ranks(rank=0, world_size=1, local_rank=0)
    return Progress(settings, ranks, torch.device("cpu"), 100, group, log, skipped), log


def test_losses_are_means_over_micro_batches(tmp_path: Path, group: Any) -> None:
    progress, log = _progress(tmp_path, group)
    progress.count(0.25)
    progress.report(1, [_output(1.0, 2.0), _output(3.0, 5.0)], 1e-3, 0.5, 0)
    log.close()
    (line,) = read_lines(tmp_path / "metrics.jsonl")
    assert (line["loss_s1"], line["loss_s2"], line["loss"]) == (2.0, 3.5, 5.5)
    assert (line["step"], line["samples"], line["data_wait_s"], line["mfu"]) == (1, 8, 0.25, None)
    assert line["samples_per_s"] == pytest.approx(8 / line["step_s"])


def test_steps_skipped_before_a_resume_are_not_new(tmp_path: Path, group: Any) -> None:
    progress, log = _progress(tmp_path, group, skipped=5)
    lately = []
    for step, skipped in ((1, 5), (2, 6), (3, 7), (4, 7), (5, 8)):
        progress.count(0.0)
        lately.append(progress.report(step, [_output(1.0, 1.0)], 1e-3, None, skipped))
    log.close()
    assert lately == [0, 1, 2, 0, 1]


def test_loss_that_is_not_finite_without_a_skip_ends_the_run(tmp_path: Path, group: Any) -> None:
    progress, log = _progress(tmp_path, group)
    progress.count(0.0)
    assert progress.report(1, [_output(float("nan"), 1.0)], 1e-3, None, 1) == 1
    progress.count(0.0)
    with pytest.raises(DataError, match="the loss of step 2 is not finite"):
        progress.report(2, [_output(float("nan"), 1.0)], 1e-3, None, 1)
    log.close()


def test_slowest_rank_is_named_with_the_time_since_the_last_line(
    tmp_path: Path, group: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    progress, log = _progress(tmp_path, group)
    for step, busy_s in ((1, 0.25), (2, 0.75)):
        progress.count(0.0)
        progress.report(step, [_output(1.0, 1.0)], 1e-3, None, 0, busy_s)
    log.close()
    lines = read_lines(tmp_path / "metrics.jsonl")
    assert [(line["slowest_rank"], line["slowest_lag_s"]) for line in lines] == [(0, 0.0), (0, 0.0)]
    assert "slowest" not in capsys.readouterr().out, "one rank has nobody to hold up"
