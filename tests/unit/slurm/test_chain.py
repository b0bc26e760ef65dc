"""How slurm/pretrain.sh goes on after an attempt: FUSMAE_CHAIN, with stand-ins for SLURM and the trainer."""

import shlex
import shutil
from pathlib import Path

import pytest

from sharding.lock import hold
from slurm import snapshot
from tests.unit.slurm.test_pretrain_script import CRASH, FIRST_ON_2, PYTHON, ROOT, Cluster

SCONTROL = """#!/bin/bash
case "$*" in
    "show hostnames "*) printf 'unresolvable-1\\nunresolvable-2\\n' ;;
    "show node unresolvable-1") echo "NodeName=unresolvable-1 NodeAddr=10.0.0.7 NodeHostName=x" ;;
    "show job --oneliner "*) echo "JobId=42 JobName=fusmae Account=lab QOS=high JobState=$STATE Reason=$REASON" \\
        "TimeLimit=1-00:00:00 PreemptTime=${PREEMPTED:-None} Partition=gpu ReqNodeList=(null) ExcNodeList=$EXCLUDED" \\
        "MinMemoryNode=64G Features=h200 OverSubscribe=NO Licenses=(null) Reservation=(null) Command=$COMMAND" \\
        "StdErr=$LOGS/stderr StdIn=/dev/null TresPerNode=gres:gpu:4,gres:nvme:1 CpusPerTres=gres:gpu:8" ;;
    "show job "*) printf '   %s\\n' "Comment=(null)" "WorkDir=/home/my work" "StdOut=/home/slurm-42.out" \\
        "StdErr=/home/slurm-42.out" ;;
    "update "*) echo "$*" >> "$LOGS/update" ;;
    "requeue "*) echo "$*" >> "$LOGS/requeue" ;;
esac
"""
SBATCH = """#!/bin/bash
[ ! -e "$LOGS/refuse" ] || { echo "sbatch: error: not now" >&2; exit 1; }
printf '%s ' "$@" | sed 's/ $//' >> "$LOGS/sbatch"; echo >> "$LOGS/sbatch"
env | sed 's/^/'"$SLURM_JOB_ID"' /' > "$LOGS/environ"
id=$((42 + $(grep -c . "$LOGS/sbatch")))
echo PENDING > "$LOGS/state-$id"
echo "$id;lab"
"""
SQUEUE = """#!/bin/bash
for word; do case $word in --jobs=*) cat "$LOGS/state-${word#*=}" ;; esac; done
"""
SCANCEL = """#!/bin/bash
echo "$*" >> "$LOGS/scancel"
[ $# -gt 1 ] || echo CANCELLED > "$LOGS/state-$1"
"""
# What slurm.snapshot does for these scripts, in a tenth of the time.
COPY = f'{{ mkdir -p "$3/slurm"; cp {ROOT}/slurm/*.sh "$3/slurm"; cp "$4" "$3/config.yaml"; }}'


@pytest.fixture
def cluster(tmp_path):
    made = Cluster(tmp_path)
    (made.bin / "python").write_text(PYTHON.replace('exec "$REAL_PYTHON" "$@"', COPY))
    stand_ins = {"scontrol": SCONTROL, "sbatch": SBATCH, "squeue": SQUEUE, "scancel": SCANCEL, "sacct": "#!/bin/sh\n"}
    for name, text in stand_ins.items():
        (made.bin / name).write_text(text)
        (made.bin / name).chmod(0o755)
    made.environ["FUSMAE_CHAIN"] = "chain"
    return made


def link(cluster: Cluster, job: int, **environ: str) -> tuple[int, str]:
    """A job of the chain that job 42 began, as SLURM starts it; what it did stays."""
    (cluster.logs / f"state-{job}").write_text("RUNNING\n")
    chain = {"FUSMAE_CHAIN_ID": "42"} if job != 42 else {}
    code, output = cluster.run(**{"SLURM_JOB_ID": str(job)} | chain | environ)
    (cluster.logs / f"state-{job}").write_text("COMPLETED\n")
    return code, output


def jobs(cluster: Cluster) -> list[list[str]]:
    """Job, restart and end of each attempt."""
    return [[row[0], row[1], row[7]] for row in cluster.ledger()]


def state(cluster: Cluster, job: int) -> str:
    return (cluster.logs / f"state-{job}").read_text().strip()


def test_the_next_job_waits_from_the_beginning_and_takes_over(cluster):
    code, output = link(cluster, 42, OUTCOME="saved")
    assert code == 0, output
    assert cluster.noted("requeue") == [] and cluster.noted("scancel") == []
    assert output.index("job 43 goes on when this one ends") < output.index("srun ended")
    assert state(cluster, 43) == "PENDING"
    code, output = link(cluster, 43, OUTCOME="done")
    assert code == 0, output
    assert jobs(cluster) == [["42", "0", "saved"], ["43", "1", "done"]]


def test_the_next_job_asks_for_what_this_one_has(cluster):
    link(cluster, 42, OUTCOME="saved", SLURM_NTASKS_PER_NODE="2", EXCLUDED="n[7-9]")
    (line,) = cluster.noted("sbatch")
    code = cluster.run_dir / "code" / "42"
    expected = [
        "--parsable --export=ALL --job-name=fusmae --account=lab --qos=high --partition=gpu --time=1-00:00:00",
        "--constraint=h200 --mem=64G --nodes=2 --ntasks-per-node=2 --gpus-per-node=4 --gres=nvme:1",
        "--cpus-per-gpu=8 --exclusive --exclude=n[7-9] --chdir=/home/my work --output=/home/slurm-42.out",
        f"--open-mode=append --no-requeue --dependency=afterany:42 {code}/slurm/pretrain.sh {code}/config.yaml a.b=c d",
    ]
    assert line == " ".join(expected)


def test_what_slurm_does_not_tell_can_be_added(cluster):
    link(cluster, 42, OUTCOME="saved", FUSMAE_CHAIN_OPTIONS="--signal=B:USR1@600 --hint=nomultithread")
    assert "--no-requeue --signal=B:USR1@600 --hint=nomultithread --dependency" in cluster.noted("sbatch")[0]


def test_the_next_job_gets_the_environment_without_what_is_this_jobs_own(cluster):
    link(cluster, 42, OUTCOME="saved", SLURM_RESTART_COUNT="0", PYTHONPATH="/mine", SLURM_CONF="/etc/slurm.conf")
    passed = dict(line.strip().split("=", 1) for line in cluster.noted("environ") if "=" in line)
    assert passed["FUSMAE_CHAIN_ID"] == "42" and passed["PYTHONPATH"] == "/mine"
    assert passed["FUSMAE_PYTHON"] == cluster.environ["FUSMAE_PYTHON"]
    assert [name for name in passed if name.startswith("SLURM_")] == ["SLURM_CONF"]
    assert "MASTER_ADDR" not in passed


def test_the_controller_is_told_not_to_requeue_a_job_that_another_takes_over_from(cluster):
    link(cluster, 42)
    assert cluster.noted("update") == ["update JobId=42 Requeue=0"]


@pytest.mark.parametrize(("outcome", "code"), [("done", 0), ("stopped", 0), ("fatal", 2)])
def test_nothing_follows_a_run_that_is_over(cluster, outcome, code):
    said, output = link(cluster, 42, OUTCOME=outcome)
    assert said == code, output
    assert cluster.noted("scancel") == ["43"] and state(cluster, 43) == "CANCELLED"
    assert not list(Path(cluster.environ["XDG_STATE_HOME"]).rglob("*-42"))


def test_the_restart_limit_holds_over_the_chain(cluster):
    for job in (42, 43, 44):
        code, output = link(cluster, job, OUTCOME="saved", FUSMAE_MAX_RESTARTS="2")
    assert code == 1 and "restarted 2 times, which is the limit" in output
    assert len(cluster.noted("sbatch")) == 2


def test_three_failures_without_a_step_forward_end_the_chain(cluster):
    codes = [link(cluster, job, **CRASH)[0] for job in (42, 43, 44)]
    assert codes == [0, 0, 1]
    assert jobs(cluster) == [["42", "0", "failed"], ["43", "1", "failed"], ["44", "2", "failed"]]
    assert cluster.noted("scancel") == ["45"]


def test_a_later_job_runs_the_code_and_settings_of_the_first(cluster, tmp_path):
    (cluster.bin / "python").write_text(PYTHON)
    tree = tmp_path / "tree"
    for package in snapshot.PACKAGES:
        shutil.copytree(ROOT / package, tree / package)
    assert cluster.run(script=tree / "slurm" / "pretrain.sh", OUTCOME="saved")[0] == 0
    shutil.rmtree(tree)
    cluster.config.unlink()
    spooled = shutil.copy(ROOT / "slurm" / "pretrain.sh", tmp_path / "spooled")
    code, output = cluster.run(script=spooled, SLURM_JOB_ID="43", FUSMAE_CHAIN_ID="42", COMMAND="")
    assert code == 0, output
    assert cluster.noted("ranks") == [f"{cluster.run_dir}/code/42/config.yaml a.b=c d"] * 2
    assert [path.name for path in (cluster.run_dir / "code").iterdir()] == ["42"]


def test_a_refused_submission_is_tried_again_at_the_end(cluster):
    (cluster.logs / "refuse").touch()
    (cluster.bin / "srun").write_text((cluster.bin / "srun").read_text().replace("exec", 'rm "$LOGS/refuse"; exec'))
    code, output = link(cluster, 42, OUTCOME="saved")
    assert code == 0, output
    assert "was refused: sbatch: error: not now" in output and "saved; job 43 goes on" in output


def test_a_submission_that_stays_refused_fails_the_job_and_says_so(cluster):
    (cluster.logs / "refuse").touch()
    code, output = link(cluster, 42, OUTCOME="saved")
    assert code == 1 and output.endswith("saved; submit the same command to go on\n")


def test_of_two_attempts_at_once_the_younger_leaves(cluster):
    link(cluster, 42, OUTCOME="saved")
    (cluster.logs / "state-42").write_text("RUNNING\n")  # the controller has put it back, too
    code, output = link(cluster, 43)
    assert code == 0 and "nothing to do: job 42 is at it" in output
    assert jobs(cluster) == [["42", "0", "saved"]] and len(cluster.noted("srun")) == 1
    (cluster.logs / "state-43").write_text("RUNNING\n")
    code, output = link(cluster, 42, SLURM_RESTART_COUNT="1")
    assert code == 0, output
    assert jobs(cluster) == [["42", "0", "saved"], ["42", "1", "done"]]


def test_of_two_attempts_at_once_the_one_that_holds_the_folder_goes_on(cluster):
    link(cluster, 42, OUTCOME="saved")
    lock = hold(cluster.run_dir / "lock", "the process with rank 0 on n7")
    (cluster.logs / "state-43").write_text("RUNNING\n")
    code, output = link(cluster, 42, SLURM_RESTART_COUNT="1")
    assert code == 0 and "nothing to do: job 43 is at it" in output
    lock.close()


def test_an_attempt_whose_successor_left_submits_another(cluster):
    link(cluster, 42, OUTCOME="saved")
    (cluster.logs / "state-43").write_text("COMPLETED\n")
    code, output = link(cluster, 42, SLURM_RESTART_COUNT="1", OUTCOME="saved")
    assert code == 0 and "saved; job 44 goes on" in output


@pytest.mark.parametrize("outcome", ["done", "stopped"])
def test_a_job_whose_run_is_over_does_nothing(cluster, outcome):
    link(cluster, 42, OUTCOME=outcome)
    code, output = link(cluster, 43)
    assert code == 0 and f"nothing to do: the run is {outcome} already" in output
    assert len(cluster.noted("srun")) == 1 and len(cluster.noted("sbatch")) == 1


def test_a_run_that_was_done_in_another_chain_goes_on(cluster):
    link(cluster, 42)
    code, output = cluster.run(SLURM_JOB_ID="50")  # with more steps, say
    assert code == 0, output
    assert jobs(cluster) == [["42", "0", "done"], ["50", "0", "done"]]


def test_a_job_after_a_cancelled_one_does_nothing(cluster):
    link(cluster, 42, OUTCOME="saved")
    (cluster.logs / "state-42").write_text("CANCELLED\n")
    code, output = link(cluster, 43)
    assert code == 0 and "nothing to do: job 42 was cancelled, which ends its chain" in output


def test_a_job_that_is_ended_from_outside_ends_its_chain(cluster):
    code, output = link(cluster, 42, OUTCOME="saved", STATE="COMPLETING")
    assert code == 1 and "ended from outside" in output
    assert cluster.noted("scancel") == ["43"]


@pytest.mark.parametrize("why", [{"PREEMPTED": "2026-03-01T12:00:00"}, {"REASON": "NodeDown"}])
def test_a_job_that_slurm_ended_does_not(cluster, why):
    code, _ = link(cluster, 42, OUTCOME="saved", STATE="COMPLETING", **why)
    assert code == 1
    assert cluster.noted("scancel") == [] and state(cluster, 43) == "PENDING"


def test_the_next_job_is_kept_away_from_a_node_that_failed_twice(cluster):
    link(cluster, 42, **CRASH, SRUN_SAYS=FIRST_ON_2)
    link(cluster, 43, **CRASH, SRUN_SAYS=FIRST_ON_2)
    assert cluster.noted("update")[-1] == "update JobId=44 ExcNodeList=unresolvable-2"
    link(cluster, 44)
    assert "--exclude=unresolvable-2" in cluster.noted("sbatch")[-1]


def test_without_a_chain_the_job_says_what_goes_on(cluster):
    code, output = link(cluster, 42, FUSMAE_CHAIN="none", OUTCOME="saved")
    assert code == 1
    assert cluster.noted("sbatch") == cluster.noted("requeue") == []
    words = shlex.split(output.splitlines()[-1].split("go on with: ")[1])
    copy = cluster.run_dir / "code" / "42"
    assert words[0] == "FUSMAE_CHAIN=none" and words[2] == "sbatch"
    assert words[-3:] == [f"{copy}/slurm/pretrain.sh", f"{copy}/config.yaml", "a.b=c d"]
    assert "--chdir=/home/my work" in words and "--gpus-per-node=4" in words


def test_an_unknown_way_to_go_on_is_wrong_usage(cluster):
    code, output = cluster.run(FUSMAE_CHAIN="daisy")
    assert (code, output) == (2, "error: FUSMAE_CHAIN is 'daisy'; write requeue, chain or none\n")


def test_an_element_of_an_array_speaks_of_itself_alone(cluster):
    array = {"SLURM_ARRAY_JOB_ID": "42", "SLURM_ARRAY_TASK_ID": "2"}
    code, output = link(cluster, 42, OUTCOME="saved", FUSMAE_CHAIN="requeue", **array)
    assert code == 0, output
    assert cluster.noted("requeue") == ["requeue 42_2"]
    link(cluster, 42, OUTCOME="saved", **array)
    assert "--dependency=afterany:42_2" in cluster.noted("sbatch")[-1]
