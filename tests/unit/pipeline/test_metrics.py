"""Metrics survive kills: a replayed step is written once, a line cut in half is dropped."""

import json
from pathlib import Path

from pipeline.metrics import LineWriter, RunLog, drop_after, read_lines, write_whole


def test_lines_after_the_checkpoint_and_a_cut_line_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in range(1, 8)) + '{"step": 8, "lo')
    drop_after(path, 5)
    writer = LineWriter(path)
    writer.write({"step": 6})
    writer.close()
    assert [line["step"] for line in read_lines(path)] == [1, 2, 3, 4, 5, 6]


def test_reading_stops_at_a_cut_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"st')
    assert read_lines(path) == [{"step": 1}]
    assert read_lines(tmp_path / "none.jsonl") == []


def test_resumed_log_keeps_events_and_cuts_metrics(tmp_path: Path) -> None:
    first = RunLog(tmp_path, 0, 0, trace=False)
    first.event("start", 0)
    for step in (1, 2, 3):
        first.metrics({"step": step})
    first.close()
    second = RunLog(tmp_path, 0, 2, trace=False)
    second.event("resume", 2, from_step=2)
    second.metrics({"step": 3})
    second.close()
    assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")] == [1, 2, 3]
    assert [line["event"] for line in read_lines(tmp_path / "events-rank00000.jsonl")] == ["start", "resume"]


def test_other_ranks_write_no_metrics(tmp_path: Path) -> None:
    log = RunLog(tmp_path, 1, 0, trace=False)
    log.metrics({"step": 1})
    log.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["events-rank00001.jsonl"]


def test_whole_file_replaces_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "outcome.json"
    write_whole(path, "a")
    write_whole(path, "b")
    assert path.read_text() == "b" and len(list(tmp_path.iterdir())) == 1
