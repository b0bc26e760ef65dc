"""Faults: each is told once, with how it ended."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from pipeline.report import read_events, write_report
from pipeline.report.faults import faults
from tests.unit.pipeline.report_runs import make_run, time_line, write_times


def write_events(run, *events, rank=0):
    began = datetime(2026, 3, 1, tzinfo=UTC)
    with (run / f"events-rank{rank:05d}.jsonl").open("w") as file:
        for number, (name, step, details) in enumerate(events):
            time = (began + timedelta(seconds=10 * number)).isoformat(timespec="milliseconds")
            file.write(json.dumps({"time": time, "event": name, "step": step} | details) + "\n")


def told(run):
    return [(fault.step, fault.what, fault.ended, fault.survived) for fault in faults(read_events(run))]


RESUME = ("resume", 20, {"from_step": 20})


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([RESUME], (0, "the attempt ended without a word", "resumed from step 20", True)),
        ([("kill", 33, {}), RESUME], (33, "killed (SIGKILL)", "resumed from step 20", True)),
        ([("hang", 31, {"reason": "rank 3 is silent"})], (31, "hung: rank 3 is silent", "not resumed", False)),
        ([("oom", 31, {"reason": "79 GiB"}), RESUME], (31, "out of memory: 79 GiB", "resumed from step 20", True)),
        (
            [("oom", 31, {}), ("checkpoint", 40, {}), ("done", 60, {})],
            (31, "out of memory", "the run went on", True),
        ),
        (
            [("save_failed", 40, {"reason": "disk full"}), ("checkpoint", 60, {})],
            (40, "a checkpoint could not be written: disk full", "saved at step 60", True),
        ),
        (
            [("save_failed", 40, {"reason": "disk full"})],
            (40, "a checkpoint could not be written: disk full", "nothing was saved since", False),
        ),
        (
            [("samples_replaced", 30, {"total": 2})],
            (30, "2 damaged samples so far", "other samples took their places; the run went on", True),
        ),
        (
            [("skipped", 30, {"keys": ["a", "b"]})],
            (
                30,
                "gradients that are not finite; samples a, b",
                "the step changed no weights; the run went on",
                True,
            ),
        ),
        (
            [("not_finite", 30, {"keys": ["a"]})],
            (30, "a loss that is not finite; samples a", "not resumed", False),
        ),
        (
            [("spike", 30, {"loss": 9.0, "expected": 1.0, "limit": 1.5, "keys": ["a", "b"]})],
            (30, "loss spike (loss 9, expected 1, limit 1.5); samples a, b", "the run went on", True),
        ),
        ([("rollback", 40, {"to_step": 20})], (40, "rolled back to step 20", "trained on from step 20", True)),
        (
            [("stop", 40, {"outcome": "saved"}), ("resume", 40, {"from_step": 40})],
            (40, "told to stop by a signal; saved", "resumed from step 40", True),
        ),
    ],
)
def test_a_fault_is_told_with_its_end(tmp_path, events, expected):
    write_events(tmp_path, ("start", 0, {}), *events)
    assert told(tmp_path) == [expected]


@pytest.mark.parametrize("outcome", ["stopped", "interrupted"])
def test_what_a_person_asked_for_is_no_fault(tmp_path, outcome):
    write_events(tmp_path, ("start", 0, {}), ("stop", 40, {"outcome": outcome}), RESUME)
    assert told(tmp_path) == []


def test_a_run_without_a_fault_has_none(tmp_path):
    write_events(tmp_path, ("start", 0, {}), ("checkpoint", 40, {}), ("done", 60, {}))
    assert told(tmp_path) == []


def test_a_spike_is_told_with_the_rollback_that_it_led_to(tmp_path):
    write_events(
        tmp_path, ("start", 0, {}), ("spike", 30, {"loss": 9.5}), ("spike", 50, {}), ("rollback", 50, {"to_step": 40})
    )
    assert [(step, ended) for step, _, ended, _ in told(tmp_path)] == [
        (30, "the run went on"),
        (50, "rolled back to step 40"),
        (50, "trained on from step 40"),
    ]


def test_checkpoints_passed_over_on_resuming_are_told(tmp_path):
    rejected = {"from_step": 20, "rejected": ["step-00000040/state.json is missing"]}
    write_events(tmp_path, ("start", 0, {}), ("kill", 44, {}), ("resume", 20, rejected))
    assert told(tmp_path)[1] == (
        20,
        "checkpoint passed over: step-00000040/state.json is missing",
        "resumed from step 20",
        True,
    )


def test_many_keys_are_counted(tmp_path):
    write_events(tmp_path, ("start", 0, {}), ("skipped", 9, {"keys": [f"k{n}" for n in range(1006)]}))
    assert told(tmp_path)[0][1] == "gradients that are not finite; samples k0, k1, k2, k3 and 1,002 more"


def test_what_ranks_tell_of_the_same_step_is_put_together(tmp_path):
    write_events(tmp_path, ("start", 0, {}), ("skipped", 9, {"keys": ["a"]}), ("samples_replaced", 10, {"total": 2}))
    write_events(
        tmp_path, ("start", 0, {}), ("skipped", 9, {"keys": ["b", "a"]}), ("samples_replaced", 10, {"total": 1}), rank=1
    )
    assert [what for _, what, _, _ in told(tmp_path)] == [
        "gradients that are not finite; samples a, b",
        "3 damaged samples so far",
    ]


def test_the_same_step_skipped_again_after_a_resume_is_another_fault(tmp_path):
    skipped = ("skipped", 29, {"keys": ["a"]})
    write_events(tmp_path, ("start", 0, {}), skipped, ("kill", 33, {}), RESUME, skipped)
    assert [step for step, *_ in told(tmp_path)] == [29, 33, 29]


def test_a_line_of_events_cut_by_a_kill_does_not_hide_what_came_after(tmp_path):
    write_events(tmp_path, ("start", 0, {}), ("checkpoint", 20, {"seconds": 1.5}), RESUME, ("done", 60, {}))
    path = tmp_path / "events-rank00000.jsonl"
    first, cut, *rest = path.read_text().splitlines(keepends=True)
    path.write_text(first + cut[:30] + "".join(rest))
    assert [event["event"] for event in read_events(tmp_path)] == ["start", "lost", "resume", "done"]


def test_a_lost_attempt_is_known_up_to_the_last_line_of_its_times(tmp_path):
    run = make_run(tmp_path)
    write_times(
        run,
        time_line("first", 5, 60, 5.0),
        time_line("first", 12, 66, 12.0),
        time_line("second", 19.9, 60, 5.0),
        time_line("second", 40, 80, 25.1),
    )
    (lost,) = faults(read_events(run))
    assert (lost.time, lost.step) == ("2026-03-01T00:00:12.000+00:00", 66)
    html = write_report(run).read_text()
    assert "lost after 66" in html and "resumed from 60" in html


def test_the_page_has_a_row_for_each_fault_and_says_when_there_is_none(tmp_path):
    run = make_run(tmp_path)
    assert html_between(run).count("<tr>") == 2  # the head, and the attempt that ended without a word
    write_events(run, ("start", 0, {}), ("skipped", 9, {"keys": ["<b>"]}), ("done", 120, {}))
    assert "samples &lt;b&gt;" in html_between(run)
    write_events(run, ("start", 0, {}), ("done", 120, {}))
    assert "None is on record." in html_between(run)


def html_between(run):
    html = write_report(run).read_text()
    return html[html.index("<h2>Faults survived") : html.index("<h2>Events")]
