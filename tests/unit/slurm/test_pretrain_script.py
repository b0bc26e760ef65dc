"""slurm/pretrain.sh with stand-ins for srun, scontrol, scancel and the trainer."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sharding.lock import hold
from slurm import snapshot

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "slurm" / "pretrain.sh"

# The trainer as the script meets it: `--print run.dir`, a rank of srun, or a run without SLURM.
PYTHON = """#!/bin/bash
case "$*" in
    *"--print run.dir")
        [ -z "$PRINT_RC" ] || { echo "error: no such key" >&2; exit "$PRINT_RC"; }
        echo "$RUN_DIR" ;;
    "-m slurm.snapshot "*) exec "$REAL_PYTHON" "$@" ;;
    "-m pipeline.pretrain "*) echo "direct: $*" ;;
    "-u -m slurm.task "*)
        echo "${@:4}" >> "$LOGS/ranks"
        if [ -n "$WAIT_FOR_SIGNAL" ]; then
            trap 'OUTCOME=saved; caught=1' USR2
            echo $$ > "$LOGS/rank.pid"
            until [ -n "${caught:-}" ]; do sleep 0.05; done
        fi
        [ "$OUTCOME" = none ] || printf '{"outcome": "%s", "step": 7, "attempt": "%s"}\\n' "$OUTCOME" \
            "${OF_ATTEMPT:-$FUSMAE_ATTEMPT}" > "$RUN_DIR/outcome.json"
        exit "$RANK_RC" ;;
    *) echo "unexpected: $*" >&2; exit 99 ;;
esac
"""
SRUN = """#!/bin/bash
echo "$MASTER_ADDR $MASTER_PORT $*" >> "$LOGS/srun"
while [[ $1 == --* ]]; do shift; done
[ -z "$SRUN_SAYS" ] || printf "$SRUN_SAYS" >> "$LOGS/stderr"
exec "$@"
"""
SCONTROL = """#!/bin/bash
case "$*" in
    "show hostnames "*) printf 'unresolvable-1\\nunresolvable-2\\n' ;;
    "show node unresolvable-1") echo "NodeName=unresolvable-1 NodeAddr=10.0.0.7 NodeHostName=x" ;;
    "show job "*) echo "JobId=42 JobName=fusmae JobState=$STATE Reason=$REASON Command=$COMMAND WorkDir=/" \
        "ExcNodeList=$EXCLUDED StdErr=$LOGS/stderr StdIn=/dev/null" ;;
    "update "*) echo "$*" >> "$LOGS/update" ;;
    "requeue "*) echo "$*" >> "$LOGS/requeue"; exit "$REQUEUE_RC" ;;
esac
"""
SINFO = """#!/bin/bash
printf '%s\\n' $UP
"""
SCANCEL = """#!/bin/bash
echo "$*" >> "$LOGS/scancel"
kill -USR2 "$(cat "$LOGS/rank.pid")"
"""


class Cluster:
    """A folder of stand-ins on PATH, and what they noted."""

    def __init__(self, folder: Path):
        self.bin, self.logs, self.run_dir = folder / "bin", folder / "logs", folder / "run"
        self.config = folder / "config.yaml"
        self.config.write_text("run: {}\n")
        for made in (self.bin, self.logs):
            made.mkdir()
        for name, text in {
            "python": PYTHON,
            "srun": SRUN,
            "scontrol": SCONTROL,
            "scancel": SCANCEL,
            "sinfo": SINFO,
        }.items():
            (self.bin / name).write_text(text)
            (self.bin / name).chmod(0o755)
        self.environ = {
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "FUSMAE_PYTHON": str(self.bin / "python"),
            "LOGS": str(self.logs),
            "RUN_DIR": str(self.run_dir),
            "SLURM_JOB_ID": "42",
            "SLURM_JOB_NODELIST": "unresolvable-[1-2]",
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_JOB_CPUS_PER_NODE": "8(x2)",
            "SLURM_GPUS_ON_NODE": "4",
            "OUTCOME": "done",
            "RANK_RC": "0",
            "REQUEUE_RC": "0",
            "STATE": "RUNNING",
            "REASON": "None",
            "WAIT_FOR_SIGNAL": "",
            "PRINT_RC": "",
            "COMMAND": str(SCRIPT),
            "EXCLUDED": "(null)",
            "REAL_PYTHON": sys.executable,
            "XDG_STATE_HOME": str(folder / "state"),
            "UP": "unresolvable-1 unresolvable-2 unresolvable-3",
            "SLURM_JOB_PARTITION": "main",
            "SRUN_SAYS": "",
            "FUSMAE_PREFLIGHT": "0",  # tests/unit/slurm/test_preflight_script.py
        }

    def start(self, *arguments: str, script: Path = SCRIPT, **environ: str) -> subprocess.Popen[str]:
        command = ["bash", str(script), *(arguments or (str(self.config), "a.b=c d"))]
        return subprocess.Popen(
            command,
            env={**self.environ, **environ},
            cwd=self.config.parent,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *arguments: str, script: Path = SCRIPT, **environ: str) -> tuple[int, str]:
        process = self.start(*arguments, script=script, **environ)
        output, _ = process.communicate(timeout=60)
        return process.returncode, output

    def noted(self, name: str) -> list[str]:
        path = self.logs / name
        return path.read_text().splitlines() if path.exists() else []

    def ledger(self) -> list[list[str]]:
        return [line.split("\t") for line in (self.run_dir / "attempts.tsv").read_text().splitlines()]

    def attempts(self) -> list[list[str]]:
        """Restart, first step, last step and end of each attempt."""
        return [[row[1], row[5], row[6], row[7]] for row in self.ledger()]


@pytest.fixture
def cluster(tmp_path):
    return Cluster(tmp_path)


@pytest.mark.parametrize("script", sorted(path.name for path in (ROOT / "slurm").glob("*.sh")))
def test_bash_can_read_it(script):
    subprocess.run(["bash", "-n", str(ROOT / "slurm" / script)], check=True)


@pytest.mark.parametrize(
    "script", ["slurm/pretrain.sh", "slurm/attempt.sh", "slurm/preflight.sh", ".ci/run", ".ci/find-python"]
)
def test_shellcheck_finds_nothing(script):
    if shutil.which("shellcheck") is None:
        return  # not among what a user must have; `bash -n` above always runs
    subprocess.run(["shellcheck", "-x", script], cwd=ROOT, check=True)


def test_without_slurm_the_trainer_is_started_directly(cluster):
    del cluster.environ["SLURM_JOB_ID"]
    code, output = cluster.run()
    assert (code, output) == (0, f"direct: -m pipeline.pretrain {cluster.config} a.b=c d\n")
    assert cluster.noted("srun") == []


def test_a_finished_run_ends_the_job(cluster):
    code, output = cluster.run()
    assert code == 0, output
    assert "finished" in output
    assert cluster.noted("requeue") == []
    assert cluster.attempts() == [["0", "0", "0", "done"]]


def test_srun_starts_one_rank_a_gpu_with_its_share_of_cpus_and_where_to_meet(cluster):
    cluster.run()
    (line,) = cluster.noted("srun")
    address, port, *arguments = line.split()
    assert (address, port) == ("10.0.0.7", str(15000 + 42 * 7))
    for argument in ("--kill-on-bad-exit=1", "--ntasks=8", "--ntasks-per-node=4", "--cpus-per-task=2"):
        assert argument in arguments
    assert cluster.noted("ranks") == [f"{cluster.run_dir}/code/42/config.yaml a.b=c d"]


def test_a_name_that_resolves_is_used_as_it_is(cluster):
    (cluster.bin / "scontrol").write_text(SCONTROL.replace("unresolvable-1\\n", "localhost\\n", 1))
    cluster.run()
    assert cluster.noted("srun")[0].startswith("localhost ")


def test_ranks_asked_for_by_hand_go_before_the_gpus(cluster):
    cluster.run(SLURM_NTASKS_PER_NODE="2", SLURM_CPUS_PER_TASK="3")
    assert "--ntasks=4 --ntasks-per-node=2 --cpus-per-task=3" in cluster.noted("srun")[0]


def test_the_smallest_node_decides_the_share_of_cpus(cluster):
    cluster.run(SLURM_JOB_CPUS_PER_NODE="16,12")
    assert "--cpus-per-task=3" in cluster.noted("srun")[0]


def test_fewer_cpus_than_ranks_is_wrong_usage(cluster):
    code, output = cluster.run(SLURM_JOB_CPUS_PER_NODE="2(x2)")
    assert code == 2
    assert "error: 4 ranks a node but 2 CPUs; give sbatch --cpus-per-gpu=N or --exclusive" in output


def test_a_run_stopped_by_its_file_does_not_go_back(cluster):
    code, output = cluster.run(OUTCOME="stopped")
    assert code == 0 and "stopped by the file STOP" in output
    assert cluster.attempts() == [["0", "0", "0", "stopped"]]


def test_a_saved_run_goes_back_into_the_queue_once(cluster):
    code, output = cluster.run(OUTCOME="saved")
    assert code == 0, output
    assert cluster.noted("requeue") == ["requeue 42"]
    assert cluster.attempts() == [["0", "0", "0", "saved"]]


def test_the_outcome_goes_before_sruns_exit_code(cluster):
    code, _ = cluster.run(OUTCOME="saved", RANK_RC="143")
    assert code == 0
    assert cluster.noted("requeue") == ["requeue 42"]


@pytest.mark.parametrize("outcome", [{"OUTCOME": "fatal", "RANK_RC": "143"}, {"OUTCOME": "none", "RANK_RC": "2"}])
def test_what_cannot_work_is_not_tried_again(cluster, outcome):
    code, output = cluster.run(**outcome)
    assert code == 2, output
    assert cluster.noted("requeue") == []
    assert cluster.attempts()[-1][3] == "fatal"


def test_a_crash_without_an_outcome_is_tried_again(cluster):
    code, output = cluster.run(OUTCOME="none", RANK_RC="137")
    assert code == 0, output
    assert cluster.noted("requeue") == ["requeue 42"]
    assert cluster.attempts()[-1][3] == "failed"


def test_ranks_that_end_well_without_an_outcome_are_not_taken_as_finished(cluster):
    code, output = cluster.run(OUTCOME="none")
    assert code == 1
    assert "left no outcome" in output
    assert cluster.noted("requeue") == []


def test_the_outcome_of_another_attempt_is_not_taken(cluster):
    code, output = cluster.run(OUTCOME="done", OF_ATTEMPT="42.0", SLURM_RESTART_COUNT="1", RANK_RC="1")
    assert code == 0, output
    assert "the trainer said 'nothing'" in output
    assert cluster.noted("requeue") == ["requeue 42"]


def test_a_number_that_a_killed_controller_gives_again_names_another_attempt(cluster):
    for restart in ("0", "1", "1"):
        cluster.run(OUTCOME="saved", SLURM_RESTART_COUNT=restart)
    assert [line[:2] for line in cluster.ledger()] == [["42", "0"], ["42", "1"], ["42", "2"]]
    assert [line[7] for line in cluster.ledger()][:2] == ["saved", "saved"]


def test_the_restart_limit_ends_the_job(cluster):
    code, output = cluster.run(OUTCOME="saved", FUSMAE_MAX_RESTARTS="2", SLURM_RESTART_COUNT="2")
    assert code == 1
    assert "restarted 2 times, which is the limit" in output
    assert cluster.noted("requeue") == []
    cluster.run(OUTCOME="saved", FUSMAE_MAX_RESTARTS="2", SLURM_RESTART_COUNT="1")
    assert cluster.noted("requeue") == ["requeue 42"]


def test_three_failures_without_a_step_forward_end_the_job(cluster):
    for restart in ("0", "1"):
        assert cluster.run(OUTCOME="failed", RANK_RC="1", SLURM_RESTART_COUNT=restart)[0] == 0
    code, output = cluster.run(OUTCOME="failed", RANK_RC="1", SLURM_RESTART_COUNT="2")
    assert code == 1
    assert "no step forward in 3 attempts" in output
    assert len(cluster.noted("requeue")) == 2
    assert cluster.attempts() == [[str(n), "0", "0", "failed"] for n in range(3)]


@pytest.mark.parametrize("where", ["checkpoints/step-000120", "metrics.jsonl"])
def test_failures_that_step_forward_are_tried_again(cluster, where):
    (cluster.bin / "srun").write_text(
        SRUN.replace(
            'exec "$@"',
            f"""next=$((SLURM_RESTART_COUNT * 10 + 9))
            case {where} in
                *jsonl) echo '{{"samples": 640, "step": '$next', "loss": 1.5}}' >> "$RUN_DIR/metrics.jsonl" ;;
                *) mkdir -p "$RUN_DIR/checkpoints/step-0000$next" ;;
            esac
            exec "$@\"""",
        )
    )
    for restart in range(5):
        code, output = cluster.run(OUTCOME="failed", RANK_RC="1", SLURM_RESTART_COUNT=str(restart))
        assert code == 0, output
    assert cluster.attempts()[-1] == ["4", "39", "49", "failed"]


FIRST_ON_2 = "srun: error: unresolvable-2: task 1: Killed\\nsrun: error: unresolvable-1: task 0: Exited with code 1\\n"
CRASH = {"OUTCOME": "failed", "RANK_RC": "1"}


def test_a_node_that_failed_twice_is_kept_away_from(cluster):
    _, output = cluster.run(**CRASH, SRUN_SAYS=FIRST_ON_2)
    assert cluster.noted("update") == [] and "keeps away" not in output
    _, output = cluster.run(**CRASH, SRUN_SAYS=FIRST_ON_2, SLURM_RESTART_COUNT="1")
    assert cluster.noted("update") == ["update JobId=42 ExcNodeList=unresolvable-2"]
    assert "unresolvable-2 failed 2 times; the run keeps away from it" in output
    assert [row[8] for row in cluster.ledger()] == ["unresolvable-2"] * 2


def test_what_was_excluded_before_stays_so(cluster):
    for restart in ("0", "1"):
        cluster.run(**CRASH, SRUN_SAYS=FIRST_ON_2, SLURM_RESTART_COUNT=restart, EXCLUDED="n[7-9]")
    assert cluster.noted("update") == ["update JobId=42 ExcNodeList=n[7-9],unresolvable-2"]


def test_a_node_is_kept_where_too_few_others_are_left(cluster):
    for restart in ("0", "1"):
        said = cluster.run(
            **CRASH, SRUN_SAYS=FIRST_ON_2, SLURM_RESTART_COUNT=restart, UP="unresolvable-1 unresolvable-2"
        )
    assert cluster.noted("update") == []
    assert "unresolvable-2 failed 2 times, but without it too few nodes are left" in said[1]


def test_a_failure_of_all_at_once_blames_no_node(cluster):
    for restart in ("0", "1"):
        cluster.run(
            **CRASH, SRUN_SAYS="srun: error: unresolvable-[1-2]: tasks 0-1: Killed\\n", SLURM_RESTART_COUNT=restart
        )
    assert cluster.noted("update") == []
    assert [row[8] for row in cluster.ledger()] == ["-", "-"]


def test_what_srun_said_of_an_earlier_attempt_is_not_taken_again(cluster):
    cluster.run(**CRASH, SRUN_SAYS=FIRST_ON_2)
    cluster.run(**CRASH, SLURM_RESTART_COUNT="1")
    assert [row[8] for row in cluster.ledger()] == ["unresolvable-2", "-"]


def test_a_saved_attempt_blames_no_node(cluster):
    cluster.run(OUTCOME="saved", SRUN_SAYS=FIRST_ON_2)
    assert [row[8] for row in cluster.ledger()] == ["-"]


@pytest.mark.parametrize(
    ("reason", "node"),
    [
        ("rank 0 is in 'step', rank 1 wrote nothing (rank 1: host unresolvable-2, pid 7)", "unresolvable-2"),
        ("rank 0 (host unresolvable-1, pid 6) and rank 1 (host unresolvable-2, pid 7)", "-"),
        ("rank 1 (host elsewhere, pid 7)", "-"),
    ],
)
def test_the_watchdogs_word_goes_before_sruns(cluster, reason, node):
    event = json.dumps({"event": "hang", "step": 3, "reason": reason})
    (cluster.bin / "srun").write_text(
        SRUN.replace(
            'exec "$@"',
            f"""mkdir "$RUN_DIR/stacks"; sleep 0.02; touch "$RUN_DIR/stacks/HANG"
            cat > "$RUN_DIR/events-rank00000.jsonl" <<'END'\n{event}\nEND\nexec "$@\"""",
        )
    )
    cluster.run(**CRASH, SRUN_SAYS="srun: error: unresolvable-1: task 0: Exited with exit code 1\\n")
    assert [row[8] for row in cluster.ledger()] == [node]


def test_another_job_of_the_same_run_starts_with_a_clean_count(cluster):
    for restart in ("0", "1", "2"):
        cluster.run(OUTCOME="failed", RANK_RC="1", SLURM_RESTART_COUNT=restart)
    code, _ = cluster.run(OUTCOME="failed", RANK_RC="1", SLURM_JOB_ID="43")
    assert code == 0
    assert [row[3] for row in cluster.attempts()] == ["failed"] * 4


@pytest.mark.parametrize("state", ["COMPLETING", "CANCELLED"])
def test_a_job_that_is_ended_from_outside_is_not_requeued(cluster, state):
    code, output = cluster.run(OUTCOME="saved", STATE=state)
    assert code == 1
    assert "ended from outside" in output
    assert cluster.noted("requeue") == []
    assert cluster.attempts() == [["0", "0", "0", "saved"]]


def test_a_job_that_saved_only_after_its_time_limit_is_requeued(cluster):
    code, output = cluster.run(OUTCOME="saved", STATE="COMPLETING", REASON="TimeLimit")
    assert code == 0, output
    assert cluster.noted("requeue") == ["requeue 42"]


def test_a_job_that_the_controller_requeued_is_left_alone(cluster):
    code, _ = cluster.run(OUTCOME="saved", STATE="PENDING")
    assert code == 0
    assert cluster.noted("requeue") == []


def test_a_refused_requeue_is_said(cluster):
    code, output = cluster.run(OUTCOME="saved", REQUEUE_RC="1")
    assert code == 1
    assert "the requeue was refused; submit the same command to go on" in output


@pytest.mark.parametrize("warning", [signal.SIGUSR1, signal.SIGTERM])
def test_a_warning_reaches_the_ranks_as_usr2_and_the_saved_run_is_requeued(cluster, warning):
    process = cluster.start(WAIT_FOR_SIGNAL="1")
    deadline = time.monotonic() + 30
    while not cluster.noted("rank.pid"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert cluster.attempts() == [["0", "0", "0", "interrupted"]]  # true already, should the script be killed
    process.send_signal(warning)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert cluster.noted("scancel") == ["--signal=USR2 42"]
    assert json.loads((cluster.run_dir / "outcome.json").read_text())["outcome"] == "saved"
    assert cluster.noted("requeue") == ["requeue 42"]
    assert cluster.attempts() == [["0", "0", "0", "saved"]]


def test_an_attempt_waits_until_the_first_rank_of_the_one_before_has_left_the_folder(cluster):
    cluster.run_dir.mkdir()
    lock = hold(cluster.run_dir / "lock", "the process with rank 0 on n7")
    process = cluster.start()
    assert process.stdout is not None
    line = next(line for line in process.stdout if "waiting" in line)
    assert "waiting for the process with rank 0 on n7 to leave the run folder" in line
    assert process.poll() is None and cluster.noted("srun") == []
    lock.close()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert len(cluster.noted("srun")) == 1


def test_a_folder_that_nobody_holds_is_not_waited_for(cluster):
    cluster.run_dir.mkdir()
    hold(cluster.run_dir / "lock", "the process with rank 0 on n7").close()
    code, output = cluster.run()
    assert code == 0 and "waiting" not in output


def test_a_warning_ends_the_wait_for_the_folder(cluster):
    cluster.run_dir.mkdir()
    lock = hold(cluster.run_dir / "lock", "the process with rank 0 on n7")
    process = cluster.start()
    assert process.stdout is not None
    next(line for line in process.stdout if "waiting" in line)
    process.send_signal(signal.SIGUSR1)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert cluster.noted("srun") == [] and cluster.noted("requeue") == ["requeue 42"]
    lock.close()


def test_a_copy_in_the_spool_folder_finds_the_repository(cluster, tmp_path):
    copy = tmp_path / "spool" / "job00042" / "slurm_script"
    copy.parent.mkdir(parents=True)
    shutil.copy(SCRIPT, copy)
    code, output = cluster.run(script=copy)
    assert code == 0, output
    code, output = cluster.run(script=copy, COMMAND="", SLURM_SUBMIT_DIR=str(ROOT))
    assert code == 0, output
    code, output = cluster.run(script=copy, COMMAND="", SLURM_SUBMIT_DIR=str(tmp_path))
    assert code == 2
    assert "error: slurm/attempt.sh not found" in output


def test_a_requeued_job_runs_the_code_and_settings_that_it_began_with(cluster, tmp_path):
    tree = tmp_path / "tree"
    for package in snapshot.PACKAGES:
        shutil.copytree(ROOT / package, tree / package)
    script = tree / "slurm" / "pretrain.sh"
    assert cluster.run(script=script, OUTCOME="saved")[0] == 0
    shutil.rmtree(tree)
    cluster.config.unlink()
    code, output = cluster.run(script=shutil.copy(SCRIPT, tmp_path / "spooled"), SLURM_RESTART_COUNT="1", COMMAND="")
    assert code == 0, output
    assert cluster.noted("ranks") == [f"{cluster.run_dir}/code/42/config.yaml a.b=c d"] * 2
    assert (cluster.run_dir / "code/42/config.yaml").read_text() == "run: {}\n"
    assert not list((tmp_path / "state").rglob("*-42")), "a job that is over has no pin"


def test_without_its_pin_a_requeued_job_takes_the_tree_and_says_so(cluster, tmp_path):
    (tmp_path / "state").write_text("no folder")
    code, output = cluster.run(OUTCOME="saved")
    assert code == 0 and f"after a requeue the job runs the code of {ROOT}" in output
    assert cluster.run(SLURM_RESTART_COUNT="1")[0] == 0


def test_another_job_takes_a_copy_of_its_own(cluster):
    cluster.run()
    cluster.config.write_text("run: {threads: 1}\n")
    cluster.run(SLURM_JOB_ID="43")
    copies = sorted((cluster.run_dir / "code").glob("*/config.yaml"))
    assert [path.read_text() for path in copies] == ["run: {}\n", "run: {threads: 1}\n"]


def test_a_missing_config_is_wrong_usage(cluster):
    code, output = cluster.run("nowhere.yaml")
    assert code == 2
    assert output.startswith("error: no config file 'nowhere.yaml'")
    assert not cluster.run_dir.exists()


def test_no_config_is_wrong_usage(cluster):
    code, output = cluster.run("")
    assert (code, output) == (2, "usage: [sbatch] slurm/pretrain.sh [--local] CONFIG.yaml [key.sub=value ...]\n")


@pytest.mark.parametrize(("printed", "code"), [("2", 2), ("127", 1)])
def test_refused_settings_end_the_job_before_a_rank_starts(cluster, printed, code):
    assert cluster.run(PRINT_RC=printed) == (code, "error: no such key\n")
    assert cluster.noted("srun") == []
    assert not cluster.run_dir.exists()


def test_a_restart_limit_that_is_no_number_is_wrong_usage(cluster):
    code, output = cluster.run(FUSMAE_MAX_RESTARTS="many")
    assert (code, output) == (2, "error: FUSMAE_MAX_RESTARTS is 'many'; give a whole number\n")


def test_a_run_folder_on_an_object_store_is_refused(cluster):
    code, output = cluster.run(RUN_DIR="s3://bucket/run")
    assert code == 2
    assert "it must be a folder that all nodes share" in output
