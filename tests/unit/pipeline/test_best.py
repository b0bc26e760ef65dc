"""How good a checkpoint was, read from a file that grows and is sometimes written anew."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from pipeline.checkpoint.best import run_scores
from pipeline.metrics import LineWriter
from pipeline.settings import CheckpointSettings


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def writer(run: Path) -> Iterator[Callable[[str], LineWriter]]:
    with ExitStack() as stack:
        yield lambda name: stack.enter_context(closing(LineWriter(run / name)))


def test_a_low_loss_is_a_high_score_over_the_steps_before(run: Path, writer: Callable[[str], LineWriter]) -> None:
    scores = run_scores(CheckpointSettings(every=3), run)
    assert dict(scores()) == {}
    log = writer("metrics.jsonl")
    for step, loss in enumerate((8.0, 4.0, 2.0, float("nan"), 1.0, None), start=1):
        log.write({"step": step, "loss": loss})
    found = scores()
    assert found[3] == -14 / 3 and found[2] == -6.0 and found[6] == -1.0
    assert 9 not in found and found[7] == -1.0


def test_what_is_new_is_seen_and_a_cut_line_waits(run: Path) -> None:
    scores = run_scores(CheckpointSettings(every=1), run)
    with (run / "metrics.jsonl").open("w", buffering=1) as file:
        file.write(json.dumps({"step": 1, "loss": 1.0}) + "\n" + '{"step": 2, "lo')
        assert dict(scores()) == {1: -1.0}
        file.write('ss": 2.0}\n')
        assert dict(scores()) == {1: -1.0, 2: -2.0}


def test_a_run_that_goes_back_is_read_anew(run: Path, writer: Callable[[str], LineWriter]) -> None:
    scores = run_scores(CheckpointSettings(every=1), run)
    log = writer("metrics.jsonl")
    for step in (1, 2, 3):
        log.write({"step": step, "loss": float(step)})
    assert scores()[3] == -3.0
    log.go_back(1)
    assert 3 not in scores()
    for step in (2, 3):
        log.write({"step": step, "loss": 0.5})
    assert dict(scores()) == {1: -1.0, 2: -0.5, 3: -0.5}


@pytest.mark.parametrize(("best_by", "wanted"), [("knn", {4: 0.3, 8: 0.2}), ("ridge", {4: 0.1, 8: 0.6})])
def test_a_probe_counts_for_its_own_step(
    run: Path, writer: Callable[[str], LineWriter], best_by: str, wanted: dict[int, float]
) -> None:
    log = writer("probe.jsonl")
    log.write({"step": 4, "knn_map_macro": 0.3, "ridge_map_macro": 0.1})
    log.write({"step": 8, "knn_map_macro": 0.2, "ridge_map_macro": 0.6})
    scores = run_scores(CheckpointSettings(every=8, best_by=best_by), run)
    assert dict(scores()) == wanted and 5 not in scores()
