"""python -m slurm.status: what a run folder tells of its attempts, with and without SLURM."""

import json
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from pipeline.errors import ConfigError, DataError
from sharding.lock import hold
from slurm.ledger import read_attempts
from slurm.status import describe, main, read_status

BEGAN = datetime(2026, 3, 1, 12, 0, 0).astimezone()
CONFIG = "data: {url: /nowhere}\nrun: {dir: /nowhere}\ntrain: {steps: 100}\n"


def at(seconds: float) -> datetime:
    return BEGAN + timedelta(seconds=seconds)


def ledger(run: Path, *rows: tuple[str, int, str, float, float | None, int, int, str]) -> None:
    def local(seconds: float | None) -> str:
        return "-" if seconds is None else at(seconds).strftime("%Y-%m-%dT%H:%M:%S")

    lines = [
        "\t".join(
            [
                job,
                str(restart),
                nodes,
                local(began),
                local(ended),
                str(first),
                str(last),
                end,
                "n2" if end in ("failed", "preflight") else "-",
            ]
        )
        for job, restart, nodes, began, ended, first, last, end in rows
    ]
    (run / "attempts.tsv").write_text("\n".join(lines) + "\n")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose node died at step 37 and which goes on from step 30, at two steps a second."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(CONFIG)
    ledger(
        folder, ("7", 0, "n[1-2]", 0, None, 0, 0, "interrupted"), ("7", 1, "n[1,3]", 60, None, 30, 30, "interrupted")
    )
    times = [("a", second, step) for second, step in zip(range(10, 29), range(0, 38, 2), strict=True)]
    times += [("a", 28.5, 37)] + [("b", 70 + n, 30 + 2 * n) for n in range(6)]
    with (folder / "time-rank00000.jsonl").open("w") as file:
        for attempt, second, step in times:
            wall = second if attempt == "a" else second - 60
            line = {"time": at(second).isoformat(), "attempt": attempt, "step": step, "wall_s": wall, "parts": {}}
            file.write(json.dumps(line) + "\n")
    (folder / "metrics.jsonl").write_text('{"step": 40, "loss": 1.25}\n')
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return folder


def squeue(run: Path, state: str) -> None:
    path = run.parent / "bin" / "squeue"
    path.write_text(f"#!/bin/sh\necho {state}\n")
    path.chmod(0o755)


def test_a_killed_attempt_has_the_steps_that_the_runs_clock_saw_and_those_it_lost(run):
    first, second = read_attempts(run)
    assert (first.first_step, first.last_step, first.steps_lost, first.end) == (0, 37, 7, "interrupted")
    assert (second.first_step, second.last_step, second.steps_lost, second.end) == (30, 40, 0, "running")


def test_without_slurm_the_ledger_says_that_it_runs(run):
    status = read_status(run)
    assert (status.state, status.step, status.steps, status.loss) == ("running", 40, 100, 1.25)
    assert status.steps_per_s == pytest.approx(2.0)
    left = status.eta - datetime.now().astimezone()
    assert timedelta(seconds=25) < left <= timedelta(seconds=30)


def test_slurms_word_goes_before_the_ledgers_and_nothing_is_promised_of_a_run_that_waits(run):
    squeue(run, "PENDING")
    status = read_status(run)
    assert status.state == "PENDING" and status.eta is None
    squeue(run, "RUNNING")
    assert read_status(run).eta is not None


def test_a_person_reads_it(run, capsys):
    assert main([str(run)]) == 0
    head, _, names, *rows = capsys.readouterr().out.splitlines()
    assert head.startswith(f"{run}: running, step 40 of 100, loss 1.2500, 2 steps/s, done about ")
    assert names.split() == ["attempt", "nodes", "began", "ended", "steps", "lost", "end"]
    assert rows[0].split()[:2] == ["7.0", "n[1-2]"] and "0-37" in rows[0] and "its node or SLURM" in rows[0]
    assert rows[1].split()[0] == "7.1" and rows[1].endswith("running")


def test_a_program_reads_it(run, capsys):
    assert main([str(run), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [a["end"] for a in said["attempts"]] == ["interrupted", "running"]
    assert said["attempts"][0]["began"] == BEGAN.isoformat() and said["steps_per_s"] == pytest.approx(2.0)


def test_a_run_that_ended_promises_nothing(run):
    ledger(run, ("7", 0, "n1", 0, None, 0, 0, "interrupted"), ("7", 1, "n1", 60, 99, 30, 100, "done"))
    status = read_status(run)
    assert (status.state, status.step, status.eta) == ("done", 100, None)
    assert "done: finished" in describe(status)


def test_the_node_where_it_began_is_told(run):
    ledger(run, ("7", 0, "n[1-2]", 0, 50, 0, 37, "failed"))
    assert read_attempts(run)[0].suspect == "n2"
    assert describe(read_status(run)).endswith("failed: a rank failed or hung, first on n2")


def test_nodes_that_failed_the_preflight_are_told(run):
    ledger(run, ("7", 0, "n[1-2]", 0, 50, 0, 0, "preflight"))
    assert describe(read_status(run)).endswith("preflight: nodes failed the preflight; no rank was started: n2")


def test_a_job_of_a_new_cluster_with_a_lower_number_comes_after(run):
    ledger(run, ("3", 0, "n1", 60, 99, 30, 100, "done"), ("7", 0, "n1", 0, 9, 0, 30, "saved"))
    assert [(a.job, a.end) for a in read_attempts(run)] == [("7", "saved"), ("3", "done")]


def test_a_run_without_slurm_is_told_too(run):
    (run / "attempts.tsv").unlink()
    (run / "outcome.json").write_text('{"outcome": "saved", "step": 40, "attempt": "local.0"}')
    status = read_status(run)
    assert (status.state, status.step, status.attempts) == ("saved", 40, [])


def test_no_run_is_said(tmp_path):
    with pytest.raises(ConfigError, match=r"neither config.yaml nor attempts.tsv; give a run.dir"):
        read_status(tmp_path)


def test_attempts_that_never_trained_are_said(run):
    (run / "config.yaml").unlink()
    with pytest.raises(ConfigError, match="2 attempts, none of which came to train; see the job's output"):
        read_status(run)


def test_a_ledger_that_is_none_is_refused_by_its_line(run):
    (run / "attempts.tsv").write_text("what is this\n")
    with pytest.raises(DataError, match=r"attempts.tsv, line 1: 1 columns where 9 belong"):
        read_attempts(run)


def test_a_local_run_that_was_killed_does_not_seem_to_run(run):
    ledger(run, ("1772366400", 0, "laptop", 0, None, 0, 0, "interrupted"))
    squeue(run, "RUNNING")  # of whatever job it asks
    assert read_status(run).state == "interrupted"
    lock = hold(run / "lock", "rank 0")
    assert read_status(run).state == "running"
    lock.close()


def test_of_a_chain_the_job_that_goes_on_is_told(run):
    ledger(run, ("7", 0, "n1", 0, 50, 0, 37, "saved"))
    (run / "attempts").mkdir()
    (run / "attempts" / "7.chain").write_text("7\n8\n")
    path = run.parent / "bin" / "squeue"
    for of_7, of_8, said in (("COMPLETED", "PENDING", "PENDING"), ("RUNNING", "PENDING", "RUNNING")):
        path.write_text(f'#!/bin/sh\ncase "$*" in *"--jobs 7") echo {of_7} ;; *) echo {of_8} ;; esac\n')
        path.chmod(0o755)
        status = read_status(run)
        assert (status.state, status.next_job) == (said, "8")
    assert "RUNNING, step 40 of 100" in describe(status) and "job 8 goes on after it" in describe(status)
    path.write_text('#!/bin/sh\ncase "$*" in *"--jobs 7") echo COMPLETED ;; *) echo CANCELLED ;; esac\n')
    assert (read_status(run).state, read_status(run).next_job) == ("COMPLETED", None)
