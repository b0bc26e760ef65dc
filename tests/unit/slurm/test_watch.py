import json
from types import SimpleNamespace

import pytest

from slurm import watch


def tools(folder, monkeypatch, **scripts):
    for name, text in scripts.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_squeue_is_asked_first(tmp_path, monkeypatch):
    tools(tmp_path, monkeypatch, squeue="echo PENDING", sacct="echo REQUEUED")
    assert watch.slurm_state("42") == "PENDING"


def test_sacct_knows_what_squeue_has_forgotten(tmp_path, monkeypatch):
    tools(tmp_path, monkeypatch, squeue="echo Invalid job id >&2; exit 1", sacct="echo 'CANCELLED by 0'")
    assert watch.slurm_state("42") == "CANCELLED"


def test_nobody_knows(tmp_path, monkeypatch):
    tools(tmp_path, monkeypatch, squeue="exit 1", sacct="echo disabled >&2; exit 1")
    assert watch.slurm_state("42") == ""
    assert watch.wait_for_slurm("42", poll_s=0, forgotten_after=3) == ""


def test_a_requeued_job_is_waited_for(monkeypatch):
    states = iter(["PENDING", "RUNNING", "COMPLETING", "", "PENDING", "RUNNING", "COMPLETED"])
    monkeypatch.setattr(watch, "slurm_state", lambda job_id: next(states))
    assert watch.wait_for_slurm("42", poll_s=0) == "COMPLETED"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"outcome": "done"}'])
def test_a_broken_or_missing_outcome_is_none(tmp_path, text):
    assert watch.outcome(tmp_path) == ("", 0)
    (tmp_path / "outcome.json").write_text(text)
    assert watch.outcome(tmp_path) == ("", 0)


def test_only_the_outcome_of_this_job_counts(tmp_path):
    (tmp_path / "outcome.json").write_text(json.dumps({"outcome": "done", "step": 9, "attempt": "41.2"}))
    assert watch.outcome(tmp_path) == ("done", 9)
    assert watch.outcome(tmp_path, ["41"]) == ("done", 9)
    assert watch.outcome(tmp_path, ["42"]) == ("", 0)
    (tmp_path / "outcome.json").write_text(json.dumps({"outcome": "fatal", "step": None, "attempt": "41.2"}))
    assert watch.outcome(tmp_path) == ("fatal", 0)


def test_the_log_that_names_the_cause_goes_before_those_of_the_consequence(tmp_path):
    lost = "Traceback (most recent call last):\nRuntimeError: Connection closed by peer\n"
    for rank, text in enumerate(["", lost, "error: shard 7 is cut short\n", lost]):
        (tmp_path / f"{rank}.err").write_text(text)
    job = SimpleNamespace(
        num_tasks=4,
        task=lambda rank: SimpleNamespace(paths=SimpleNamespace(stderr=tmp_path / f"{rank}.err")),
    )
    assert watch.failing_rank(job) == 2
    (tmp_path / "2.err").unlink()
    assert watch.failing_rank(job) == 1


def test_the_end_of_each_log_is_shown_under_its_path(tmp_path):
    log, empty = tmp_path / "a.out", tmp_path / "b.err"
    log.write_text("\n".join(f"line {n}" for n in range(30)))
    empty.write_text("")
    assert watch.last_lines([log, empty, tmp_path / "none"], 2).splitlines() == [
        f"--- {log}",
        "line 28",
        "line 29",
    ]


def test_a_chain_is_waited_for_to_its_end(tmp_path, monkeypatch):
    (tmp_path / "attempts").mkdir()
    (tmp_path / "attempts" / "41.chain").write_text("41\n42\n43\n")
    states = {"41": ["COMPLETED"], "42": ["PENDING", "RUNNING", "COMPLETED"], "43": ["CANCELLED"]}
    said = lambda job: states[job].pop(0) if len(states[job]) > 1 else states[job][0]  # noqa: E731
    monkeypatch.setattr(watch, "slurm_state", said)
    assert watch.wait_for_chain(tmp_path, "41", poll_s=0) == ("42", "COMPLETED")
    assert watch.chain_of(tmp_path, "42") == ["41", "42", "43"] and watch.chain_of(tmp_path, "9") == ["9"]
