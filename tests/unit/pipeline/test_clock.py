"""A rank's time is told part by part, on the host's clock or by events of a device that is behind the host."""

import itertools
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.clock import RunClock, process_age_s
from pipeline.metrics import read_lines


def _lines(run_dir: Path) -> list[dict[str, Any]]:
    return read_lines(run_dir / "time-rank00003.jsonl")


def test_parts_and_wall_time_are_told_apart(tmp_path: Path) -> None:
    clock = RunClock(tmp_path, 3, "now here")
    for _ in range(2):
        with clock.part("forward"):
            time.sleep(0.05)
        time.sleep(0.1)
    clock.write(7, 1234, 1)
    clock.close()
    (line,) = _lines(tmp_path)
    assert (line["attempt"], line["step"], line["read_bytes"], line["skipped"]) == ("now here", 7, 1234, 1)
    assert 0.1 <= line["parts"]["forward"] < 0.2
    assert 0.2 <= line["wall_s"] - sum(line["parts"].values()) < 0.4, "what no part holds is not hidden"
    assert line["device"] == "host"


def test_part_that_fails_is_counted(tmp_path: Path) -> None:
    clock = RunClock(tmp_path, 3, "now here")
    with pytest.raises(ValueError, match="wrong"), clock.part("data"):
        time.sleep(0.05)
        raise ValueError("wrong")
    clock.write(0, None, 0)
    clock.close()
    assert _lines(tmp_path)[0]["parts"]["data"] >= 0.05


def test_time_before_the_clock_was_made_belongs_to_the_start(tmp_path: Path) -> None:
    age_s = process_age_s()
    clock = RunClock(tmp_path, 3, "now here")
    clock.write(0, 0, 0)
    clock.close()
    (line,) = _lines(tmp_path)
    assert age_s > 0 and age_s <= line["parts"]["start"] < age_s + 1
    assert abs(line["wall_s"] - line["parts"]["start"]) < 0.1


class _Device:
    """A stream whose events come to pass when the test says so, one every 100 ms of its own time."""

    def __init__(self) -> None:
        self.done = 0
        self.numbers = itertools.count(1)
        self.made = 0

    def event(self) -> Any:
        self.made += 1
        device = self

        class Event:
            number = 0

            def record(self) -> None:
                self.number = next(device.numbers)

            def query(self) -> bool:
                return self.number <= device.done

            def elapsed_time(self, other: Any) -> float:
                return 100.0 * (other.number - self.number)

        return Event()


def test_what_the_device_has_not_done_waits_for_a_later_line_and_nothing_waits_for_the_device(tmp_path: Path) -> None:
    device = _Device()
    clock = RunClock(tmp_path, 3, "now here", device.event)
    for name in ("data", "forward", "backward"):
        with clock.part(name):
            pass
    device.done = 3  # the end of the forward pass is the fourth
    clock.write(1, 0, 0)
    device.done = 6
    clock.write(2, 0, 0)
    with clock.part("forward"):
        pass
    device.done = 8
    clock.write(3, 0, 0)
    clock.close()
    first, second, third = (line["parts"] for line in _lines(tmp_path))
    assert first.keys() == {"start", "data"} and second["forward"] == second["backward"] == 0.1
    assert third["forward"] == 0.2 and device.made == 6, "events are used again"
    assert _lines(tmp_path)[0]["device"] == "cuda"


def test_start_is_timed_by_the_host_whatever_the_device(tmp_path: Path) -> None:
    clock = RunClock(tmp_path, 3, "now here", _Device().event)
    with clock.part("start"):
        time.sleep(0.05)
    clock.write(0, 0, 0)
    clock.close()
    (line,) = _lines(tmp_path)
    assert line["parts"]["start"] >= 0.05
