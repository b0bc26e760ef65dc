"""slurm/pretrain.sh --local with a stand-in for the trainer, and killed ranks of the real one."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sharding.lock import hold
from slurm.ledger import read_attempts
from tests.unit.slurm.test_pretrain_script import SCRIPT

# What it says and does is decided by one file a try: END CODE, or `wait` for a signal.
PYTHON = """#!/bin/bash
case "$*" in
    *"--print run.dir") echo "$RUN_DIR" ;;
    "-m slurm.snapshot "*) exec "$REAL_PYTHON" "$@" ;;
    "-m pipeline.pretrain "*)
        number=$(($(grep -c . "$LOGS/tries") + 1))
        echo "${*:3} ${SLURM_JOB_NODELIST:-outside} $FUSMAE_ATTEMPT" >> "$LOGS/tries"
        read -r end code < <(sed -n "${number}p" "$LOGS/plan")
        if [ "$end" = wait ]; then
            trap 'end=saved; code=1; caught="$caught INT"' INT
            trap 'end=saved; code=0; caught="$caught TERM"' TERM
            trap 'end=saved; code=0; caught="$caught USR2"' USR2
            touch "$LOGS/waiting"
            until [ "$end" = saved ]; do sleep 0.05; done
            rm "$LOGS/waiting"
            sleep 0.3 # for a signal too many
            echo "$caught" >> "$LOGS/caught"
        fi
        [ "$end" != forward ] || { mkdir -p "$RUN_DIR/checkpoints/step-000$number"; end=failed; }
        [ "$end" = none ] || printf '{"outcome": "%s", "step": 7, "attempt": "%s"}\\n' "$end" "$FUSMAE_ATTEMPT" \\
            > "$RUN_DIR/outcome.json"
        exit "$code" ;;
    *) echo "unexpected: $*" >&2; exit 99 ;;
esac
"""


class Machine:
    """A trainer that ends as planned."""

    def __init__(self, folder: Path):
        self.folder, self.run_dir, self.config = folder, folder / "run", folder / "config.yaml"
        self.config.write_text("run: {}\n")
        (folder / "python").write_text(PYTHON)
        (folder / "python").chmod(0o755)
        (folder / "tries").touch()
        self.environ = {
            "PATH": os.environ["PATH"],
            "FUSMAE_PYTHON": str(folder / "python"),
            "REAL_PYTHON": sys.executable,
            "RUN_DIR": str(self.run_dir),
            "LOGS": str(folder),
        }

    def start(self, *plan: str, **environ: str) -> subprocess.Popen[str]:
        (self.folder / "plan").write_text("\n".join(plan) + "\n")
        return subprocess.Popen(
            ["bash", str(SCRIPT), "--local", str(self.config), "a.b=c"],
            env=self.environ | environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, *plan: str, **environ: str) -> tuple[int, str]:
        process = self.start(*plan, **environ)
        output, _ = process.communicate(timeout=60)
        return process.returncode, output

    def tries(self) -> list[list[str]]:
        return [line.split() for line in (self.folder / "tries").read_text().splitlines()]

    def ends(self) -> list[tuple[int, str]]:
        return [(attempt.restart, attempt.end) for attempt in read_attempts(self.run_dir)]

    def wait_until_it_waits(self) -> None:
        deadline = time.monotonic() + 30
        while not (self.folder / "waiting").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def test_a_failure_is_tried_again_until_the_run_is_done(machine):
    code, output = machine.run("none 137", "forward 1", "done 0")
    assert code == 0, output
    assert machine.ends() == [(0, "failed"), (1, "failed"), (2, "done")]
    assert "launcher ended with 137, the trainer said 'nothing'" in output and output.endswith("] finished\n")


def test_every_try_runs_the_copy_that_the_first_one_made(machine):
    machine.run("saved 0", "done 0")
    (copy,) = (machine.run_dir / "code").iterdir()
    assert [words[:2] for words in machine.tries()] == [[f"{copy}/config.yaml", "a.b=c"]] * 2


def test_nothing_of_an_allocation_reaches_the_trainer(machine):
    inside = {"SLURM_JOB_ID": "42", "SLURM_JOB_NODELIST": "n1", "SLURM_RESTART_COUNT": "3", "FUSMAE_CHAIN": "chain"}
    code, output = machine.run("done 0", **inside)
    assert code == 0, output
    assert machine.tries()[0][2] == "outside"
    assert read_attempts(machine.run_dir)[0].job != "42"


@pytest.mark.parametrize(
    ("plan", "code", "said"),
    [
        (["stopped 0"], 0, "stopped by the file STOP"),
        (["fatal 2"], 2, "not tried again"),
        (["none 2"], 2, "not tried again"),
        (["none 0"], 1, "left no outcome"),
        (["failed 1"] * 3, 1, "no step forward in 3 attempts"),
    ],
)
def test_it_ends_as_the_batch_job_does(machine, plan, code, said):
    got, output = machine.run(*plan)
    assert got == code and said in output
    assert len(machine.tries()) == len(plan)


def test_the_restart_limit_holds(machine):
    code, output = machine.run(*["forward 1"] * 9, FUSMAE_MAX_RESTARTS="4")
    assert code == 1 and "restarted 4 times, which is the limit" in output
    assert len(machine.tries()) == 5


def test_failures_of_an_earlier_start_do_not_count(machine):
    assert machine.run("failed 1", "failed 1", "stopped 0")[0] == 0
    time.sleep(1.1)  # a start is told from another by its second
    (machine.folder / "tries").write_text("")
    assert machine.run("failed 1", "failed 1", "done 0")[0] == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 1), (signal.SIGTERM, 0)])
def test_whoever_asks_for_the_end_gets_a_save_and_no_restart(machine, number, code):
    process = machine.start("wait", "done 0")
    machine.wait_until_it_waits()
    os.killpg(process.pid, number)  # as a terminal does
    output, _ = process.communicate(timeout=60)
    assert process.returncode == code, output
    assert "saved; the same command goes on" in output
    assert machine.ends() == [(0, "saved")]
    assert (machine.folder / "caught").read_text().split() == [number.name[3:]], "passed on once"


def test_a_closed_terminal_saves_and_stops(machine):
    process = machine.start("wait", "done 0")
    machine.wait_until_it_waits()
    os.killpg(process.pid, signal.SIGHUP)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert machine.ends() == [(0, "saved")]


def test_usr2_saves_and_goes_on(machine):
    process = machine.start("wait", "done 0")
    machine.wait_until_it_waits()
    process.send_signal(signal.SIGUSR2)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert machine.ends() == [(0, "saved"), (1, "done")]


def test_a_folder_in_which_another_trains_is_left_alone(machine):
    machine.run_dir.mkdir()
    lock = hold(machine.run_dir / "lock", "the process with rank 0 on n7")
    code, output = machine.run("done 0")
    assert code == 1 and "is in use by the process with rank 0 on n7; end it first" in output
    assert machine.tries() == []
    lock.close()
