"""What became of an array's elements, by stand-ins for squeue and sacct."""

from pathlib import Path

import pytest

from sharding.array_watch import QueueWatcher

UNKNOWN = "slurm_load_jobs error: Invalid job id specified"


@pytest.fixture
def say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Sets what a command says, and how it ends."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    def say(command: str, text: str, code: int = 0, error: str = "") -> None:
        (tmp_path / command).write_text(f"#!/bin/sh\nprintf '{text}'\necho '{error}' >&2\nexit {code}\n")
        (tmp_path / command).chmod(0o755)

    say("sacct", "", 1)
    return say


def state(watcher: QueueWatcher, job: str) -> str:
    return watcher.get_state(job, mode="force")


def test_a_killed_element_is_done_without_accounting(say):
    watcher = QueueWatcher()
    say("squeue", "7_0|RUNNING|n1\\n7_1|FAILED|n2\\n")
    assert (state(watcher, "7_0"), state(watcher, "7_1")) == ("RUNNING", "FAILED")
    assert not watcher.is_done("7_0", mode="force") and watcher.is_done("7_1", mode="force")


def test_an_element_that_waits_in_a_range_is_found(say):
    watcher = QueueWatcher()
    say("squeue", "7_[2-5%%3]|PENDING|\\n")
    assert state(watcher, "7_4") == "PENDING"


def test_what_squeue_has_forgotten_is_asked_of_sacct(say):
    watcher = QueueWatcher()
    say("squeue", "", 1, UNKNOWN)
    say("sacct", "7_0|COMPLETED|n1\\n7_0.batch|COMPLETED|n1\\n")
    assert state(watcher, "7_0") == "COMPLETED"


def test_what_nobody_knows_of_has_ended_but_not_at_the_first_look(say):
    watcher = QueueWatcher()
    say("squeue", "", 1, UNKNOWN)
    watcher.register_job("7_0")
    watcher.clear()
    states = []
    for _ in range(4):
        watcher.update()
        states.append(watcher.is_done("7_0", mode="cache"))
    assert states == [False, False, True, True]
    assert watcher.get_state("7_0", mode="cache") == "FORGOTTEN"


def test_a_controller_that_does_not_answer_ends_nothing(say):
    watcher = QueueWatcher()
    say("squeue", "7_0|RUNNING|n1\\n")
    watcher.register_job("7_0")
    watcher.update()
    say("squeue", "", 1, "slurm_load_jobs error: Unable to contact slurm controller (connect failure)")
    for _ in range(5):
        watcher.update()
        assert not watcher.is_done("7_0", mode="cache")
