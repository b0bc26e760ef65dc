"""`python -m benchmarks.engine`: what is made of the measurements, and a quick run of all of it."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from benchmarks import engine
from benchmarks.engine_meter import Meter, is_on, thread_cpu_ns
from benchmarks.engine_report import Report, add_instruments, add_steps, paired_overhead, together


class Ticks:
    """A clock that goes on by hand."""

    def __init__(self):
        self.now = 0

    def __call__(self):
        return self.now


def test_time_of_a_call_inside_another_counts_once():
    ticks = Ticks()
    meter = Meter(cpu_ns=ticks, wall_ns=ticks)

    def spend(ns):
        ticks.now += ns

    inner = meter.wrap("inner", spend)

    def both():
        spend(3)
        inner(5)
        inner(7)

    meter.wrap("outer", both)()
    assert meter.cpu == {"inner": 12, "outer": 3} == meter.wall


def test_time_inside_a_block_is_not_the_block_s():
    ticks = Ticks()
    meter = Meter(cpu_ns=ticks, wall_ns=ticks)

    class Part:
        def __init__(self, name):
            self.name = name

        def __enter__(self):
            ticks.now += 2

        def __exit__(self, *_):
            ticks.now += 3

    with meter.wrap_block("clock", Part)("forward"):
        ticks.now += 100
    assert meter.cpu == {"clock": 5}


def test_what_is_off_is_not_called_and_what_fails_is_timed():
    meter, calls = Meter(), []
    call = meter.wrap("call", calls.append, off="nothing")
    meter.is_on = False
    assert call(1) == "nothing" and not calls and not meter.cpu
    with meter.wrap_block("clock", calls.append)("forward"):
        assert not calls
    meter.is_on = True
    with pytest.raises(ZeroDivisionError):
        meter.wrap("fails", lambda: 1 // 0)()
    assert meter.wall["fails"] > 0
    assert call(1) is None and calls == [1]


def test_processor_time_of_another_thread_is_read():
    told, go_on = threading.Event(), threading.Event()

    def work():
        end = time.thread_time_ns() + 20_000_000
        while time.thread_time_ns() < end:
            pass
        told.set()
        go_on.wait(60)

    thread = threading.Thread(target=work)
    thread.start()
    assert told.wait(60)
    used = thread_cpu_ns(thread.native_id)
    go_on.set()
    thread.join()
    assert 20_000_000 <= used < 200_000_000


def test_blocks_take_turns_so_that_each_half_of_four_leads_once():
    assert [is_on(block) for block in range(8)] == [True, False, False, True] * 2


def _steps(num_pairs, overhead, drift=0.0, noise=0.0):
    import numpy as np

    draws = np.random.default_rng(1)
    steps = []
    for block in range(2 * num_pairs):
        for _ in range(5):
            taken = 1.0 + drift * len(steps) + noise * draws.standard_normal()
            steps.append((block, taken * (1 + overhead * is_on(block))))
    return steps


def test_overhead_of_blocks_is_found_through_drift_and_noise():
    overhead, bounds = paired_overhead(_steps(200, 0.05, drift=0.0005, noise=0.05))
    assert bounds.low < 0.05 < bounds.high and bounds.low > 0.02
    assert overhead == pytest.approx(0.05, abs=0.02)
    _, bounds = paired_overhead(_steps(200, 0.0, drift=0.0005, noise=0.05))
    assert bounds.low < 0 < bounds.high
    assert paired_overhead(_steps(4, 0.1))[0] == pytest.approx(0.1)


def test_instruments_are_a_share_of_the_steps_that_had_them():
    steps = [(block, 100_000_000, 90_000_000) for block in range(4) for _ in range(10)]
    calls = {
        "clock": [(1_000_000, 2_000_000), (3_000_000, 4_000_000)],
        "threads of the watchdog": [(0, 0), (0, 0)],
        "empty": [(9_000_000, 9_000_000)] * 2,
    }
    report = Report()
    add_instruments(report, {"steps": steps, "calls": calls, "block": 10}, "empty")
    assert report.ratios["instruments_overhead"] == pytest.approx(0.002)  # 200 us of 100 ms, without the empty calls
    rows = {row.name: row for row in report.rows}
    assert (rows["CPU: clock"].low, rows["CPU: clock"].value, rows["CPU: clock"].high) == (100, 200, 300)
    assert rows["CPU: all instruments and their threads"].value == 200
    assert report.ratios["instruments_overhead_blocks_time"] == 0


def test_steps_are_compared_with_the_twin_of_their_precision():
    def launch(wall, host):
        return {
            "model": {"wall_s": [wall, wall, 9.0], "cpu_s": [wall] * 3},
            "host": {"wall_s": [host] * 3, "cpu_s": [host] * 3},
        }

    report = Report()
    measured = {"DDP bf16": [launch(0.2, 0.01)] * 3, "ZeRO 1 bf16": [launch(0.3, 0.02), launch(0.1, 0.04)] * 2}
    add_steps(report, measured, {"ZeRO 1 bf16": "DDP bf16"})
    assert report.ratios == {"vs_ddp_zero1_bf16": pytest.approx(1.0), "vs_ddp_zero1_bf16_host": pytest.approx(3.0)}
    spread = next(row for row in report.rows if row.name == "ZeRO 1 bf16, model: step")
    assert (spread.low, spread.high, spread.unit) == (pytest.approx(100), pytest.approx(300), "ms")
    assert set(engine.TWIN.values()) == {"DDP fp32", "DDP bf16"} and len(engine.TWIN) == 7


def test_reports_are_one_as_json_and_tables_apart():
    first, second = Report(ratios={"a": 0.00123}), Report(ratios={"b": 2.0}, about={"ranks": "2"})
    first.add("x", [1.0, 3.0, 2.0], "s")
    result = json.loads(together([first, second]).render(as_json=True))
    assert result["rows"] == [{"name": "x", "value": 2.0, "unit": "s", "low": 1.0, "high": 3.0}]
    assert result["ratios"] == {"a": 0.00123, "b": 2.0}
    assert result["machine"]["ranks"] == "2" and "load" in result["machine"]
    assert first.render(as_json=False).endswith("| x | 2.00 | 1.00 to 3.00 | s |\n\na: 0.00123")


def test_help_needs_no_torch():
    absent = "sys.modules['torch'] = None; sys.argv = ['program', '--help']"
    program = f"import runpy, sys; {absent}; runpy.run_module('benchmarks.engine', run_name='__main__')"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.slow
@pytest.mark.dist
def test_a_quick_run_measures_all_and_writes_its_sections(tmp_path):
    page = tmp_path / "page.md"
    parts = [f"<!-- engine-{part}: begin -->\n<!-- engine-{part}: end -->\n" for part in engine.PARTS]
    page.write_text("".join(parts))
    command = [sys.executable, "-m", "benchmarks.engine", "--quick", "--json", "--into", str(page)]
    ran = subprocess.run([*command, "--folder", str(tmp_path)], capture_output=True, text=True, timeout=280)
    assert ran.returncode == 0, ran.stderr
    result = json.loads(ran.stdout)
    assert all(row["low"] <= row["value"] <= row["high"] for row in result["rows"])
    ratios = {"instruments_overhead", "instruments_overhead_blocks_time", "stall_vs_blocking", "vs_ddp_zero1_bf16"}
    assert ratios <= set(result["ratios"])
    assert page.read_text().count("| what | median |") == 3
    assert os.listdir(tmp_path) == ["page.md"]  # run folders and checkpoints are gone
