"""Where the wall time went: every second once, whatever became of the attempts and their clocks."""

import json

import pytest

from pipeline.report import write_report
from pipeline.report.command import main
from pipeline.report.wall_time import account
from tests.unit.pipeline.report_runs import add_times, make_run, time_line, write_times


def test_an_attempt_is_its_parts_and_what_they_leave(tmp_path):
    write_times(
        tmp_path,
        time_line("a", 10, 0, 10.0, start=9.0),
        time_line("a", 60, 50, 60.0, start=9.0, data=5.0, forward=20.0, backward=21.0, read_bytes=3_000_000),
    )
    time = account(tmp_path)
    assert time.total_s == 60.0
    assert time.parts == {
        "start": 9.0,
        "data": 5.0,
        "forward": 20.0,
        "backward": 21.0,
        "restart": 0.0,
        "repeated": 0.0,
        "unattributed": 5.0,
    }
    assert (time.read_bytes, time.read_bytes_per_s) == (3_000_000, 50_000.0)
    assert (time.clock_faults, time.broken_lines, time.overcounted_s) == (0, 0, 0.0)


def test_a_killed_attempt_leaves_a_restart_and_repeated_steps(tmp_path):
    """Killed after step 26, known up to 24; resumed from step 20, its process began at second 50."""
    write_times(
        tmp_path,
        time_line("a", 4, 0, 4.0, start=3.0),
        time_line("a", 16, 12, 16.0, start=3.0, forward=10.0),
        time_line("a", 28, 24, 28.0, start=3.0, forward=22.0),
        time_line("b", 55, 20, 5.0, start=5.0),
        time_line("b", 75, 40, 25.0, start=5.0, forward=20.0),
    )
    time = account(tmp_path)
    first, second = time.attempts
    assert (first.restart_s, second.restart_s) == (0.0, 22.0)
    # Steps 21 to 24 are a third of the line from 12 to 24: 4 of its 12 seconds, 4 of them forward.
    assert (first.repeated_s, first.repeated_steps) == (4.0, 4)
    assert first.parts == {"start": 3.0, "forward": 18.0}
    assert (second.repeated_s, second.repeated_steps) == (0.0, 0)
    assert time.parts == {"start": 8.0, "forward": 38.0, "restart": 22.0, "repeated": 4.0, "unattributed": 3.0}
    assert sum(time.parts.values()) == time.total_s == 75.0


def test_steps_that_the_attempt_after_the_next_did_again_are_repeated_too(tmp_path):
    write_times(
        tmp_path,
        time_line("a", 0, 0, 0.0),
        time_line("a", 30, 30, 30.0, forward=30.0),
        time_line("b", 30, 20, 0.0),
        time_line("b", 50, 40, 20.0, forward=20.0),
        time_line("c", 50, 10, 0.0),
        time_line("c", 100, 60, 50.0, forward=50.0),
    )
    assert [attempt.repeated_s for attempt in account(tmp_path).attempts] == [20.0, 20.0, 0.0]


def test_a_run_that_goes_back_by_itself_repeats_steps_without_a_restart(tmp_path):
    write_times(
        tmp_path,
        time_line("a", 0, 0, 0.0),
        time_line("a", 30, 30, 30.0, forward=30.0),
        time_line("a", 33, 20, 33.0, forward=30.0, rollback=3.0),
        time_line("a", 53, 40, 53.0, forward=50.0, rollback=3.0),
    )
    time = account(tmp_path)
    assert time.parts == {"forward": 40.0, "rollback": 3.0, "restart": 0.0, "repeated": 10.0, "unattributed": 0.0}
    assert time.clock_faults == 0


def test_the_slowest_rank_and_the_bytes_are_those_of_all_ranks(tmp_path):
    for rank, data in enumerate((1.0, 7.0, 2.0)):
        write_times(tmp_path, time_line("a", 20, 9, 20.0, data=data, read_bytes=10**9), rank=rank)
    time = account(tmp_path)
    assert (time.slowest.rank, time.slowest.data_s, time.slowest.wall_s) == (1, 7.0, 20.0)
    assert time.read_bytes == 3 * 10**9
    assert time.parts["data"] == 1.0


def test_a_line_cut_by_a_kill_does_not_hide_the_next_attempt(tmp_path):
    path = write_times(
        tmp_path,
        time_line("a", 10, 10, 10.0, forward=10.0),
        time_line("a", 20, 20, 20.0, forward=20.0),
        time_line("b", 30, 10, 5.0),
        time_line("b", 40, 20, 15.0, forward=10.0),
    )
    first, second, *rest = path.read_text().splitlines(keepends=True)
    path.write_text(first + second[:70] + "".join(rest))
    time = account(tmp_path)
    assert time.broken_lines == 1
    assert [(attempt.first_step, attempt.wall_s) for attempt in time.attempts] == [(10, 10.0), (10, 15.0)]
    assert time.attempts[1].restart_s == 15.0


def test_a_line_cut_at_the_end_is_left_out(tmp_path):
    path = write_times(tmp_path, time_line("a", 10, 10, 10.0), time_line("a", 20, 20, 20.0))
    path.write_text(path.read_text()[:-9])
    time = account(tmp_path)
    assert (time.total_s, time.broken_lines) == (10.0, 1)


@pytest.mark.parametrize("key", ["time", "wall_s", "parts", "step"])
def test_a_line_that_is_none_of_times_is_counted(tmp_path, key):
    write_times(tmp_path, time_line("a", 10, 10, 10.0), time_line("a", 20, 20, 20.0) | {key: "soon"})
    time = account(tmp_path)
    assert (time.total_s, time.broken_lines) == (10.0, 1)


def test_a_run_without_such_files_has_no_account(tmp_path):
    time = account(tmp_path)
    assert time.attempts == () and time.slowest is None
    assert time.total_s == time.read_bytes_per_s == 0.0


def test_a_clock_that_goes_backwards_is_told_and_gives_no_negative_time(tmp_path):
    write_times(
        tmp_path,
        time_line("a", 100, 0, 10.0, start=10.0),
        time_line("a", 60, 10, 30.0, start=10.0, forward=20.0),  # the day's clock was put back
        time_line("a", 80, 20, 25.0, start=10.0, forward=40.0),  # a sum fell
        time_line("b", 70, 20, 5.0, start=5.0),  # began before the other ended
        time_line("b", 90, 30, 25.0, start=5.0, forward=19.0),
    )
    time = account(tmp_path)
    assert time.clock_faults == 3
    assert all(seconds >= 0 for seconds in time.parts.values())
    assert time.attempts[1].restart_s == 0.0
    assert (time.total_s, time.overcounted_s) == (55.0, 20.0)


def test_parts_that_are_more_than_the_wall_time_are_told(tmp_path):
    write_times(tmp_path, time_line("a", 10, 10, 10.0, forward=8.0, backward=6.0))
    time = account(tmp_path)
    assert (time.total_s, time.overcounted_s, time.parts["unattributed"]) == (10.0, 4.0, 0.0)


def test_rounding_is_no_overcount(tmp_path):
    write_times(tmp_path, time_line("a", 0.3, 1, 0.3, data=0.1, forward=0.1, backward=0.1))
    assert account(tmp_path).overcounted_s == 0.0


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path)


def test_the_page_shows_each_part_and_each_attempt(run):
    assert "did not record where its time went" in write_report(run).read_text()
    add_times(run)
    html = write_report(run).read_text()
    assert "did not record" not in html
    for expected in ("waiting for data", "restart, between attempts", "repeated, steps done again", "not attributed"):
        assert expected in html, expected
    assert "Of 2 ranks, rank 1 waited" in html and "All ranks read 252 MB" in html
    assert "By attempt (2)" in html and "Wall time</dt><dd>145.0 s" in html


def test_parts_of_other_names_are_shown_and_are_no_markup(run):
    write_times(run, time_line("<b>host", 10, 10, 10.0, **{"<i>augment": 4.0, "forward": 5.0}))
    html = write_report(run).read_text()
    assert "&lt;i&gt;augment" in html and "var(--t-other1)" in html
    assert "<i>augment" not in html and "<b>host" not in html


def test_doubts_are_on_the_page(run):
    path = write_times(run, time_line("a", 10, 10, 10.0, forward=14.0), time_line("a", 5, 20, 12.0, forward=16.0))
    path.write_text(path.read_text() + "{")
    html = write_report(run).read_text()
    assert "4.0 s more than the wall time" in html
    assert "A clock went backwards 1 time;" in html
    assert "1 line of the ranks' times could not be read" in html


def test_the_account_is_printed_as_json(run, capsys):
    add_times(run)
    assert main([str(run), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert not (run / "report.html").exists()
    assert told["wall_time"]["total_s"] == 145.0
    assert sum(told["wall_time"]["parts"].values()) == pytest.approx(145.0)
    assert told["wall_time"]["slowest_rank"] == 1
    assert told["wall_time"]["attempts"][0]["repeated_steps"] == 6
    assert (told["step"], told["steps"]) == (120, 120)
    assert told["faults"] == {"all": 1, "survived": 1, "kinds": {"lost": 1}}


def test_a_run_without_times_or_metrics_has_json_too(run, capsys):
    (run / "metrics.jsonl").unlink()
    assert main([str(run), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["wall_time"] is None and told["loss"] is None and told["step"] == 0
