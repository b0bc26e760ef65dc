import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.command import exit_code
from pipeline.errors import ConfigError, DataError
from slurm import submit, watch
from slurm.allocation import minutes
from slurm.task import Rank

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A config file whose run folder is tmp_path/run; the trainer itself is not asked."""
    monkeypatch.setattr(submit, "resolved_run_dir", lambda argv: tmp_path / "run")
    path = tmp_path / "small.yaml"
    path.write_text("run: {}\n")
    return path


def lines_of(capsys) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_a_dry_run_prints_the_batch_file_and_writes_nothing(config, capsys):
    options = "--nodes 2 --gpus-per-node 4 --cpus-per-gpu 6 --partition gpu --account lab --mem 64G --qos high"
    more = "--time 2:30:00 --constraint h200 --exclude n3,n4 --max-restarts 7 --dry-run"
    code = submit.main([str(config), "model.width=192", *options.split(), *more.split()])
    lines = lines_of(capsys)
    run = config.parent / "run"
    assert code == 0
    assert lines[0] == "#!/bin/bash"
    for line in (
        "--nodes=2",
        "--ntasks-per-node=4",
        "--gpus-per-node=4",
        "--cpus-per-task=6",
        "--time=150",
        "--requeue",
        "--open-mode=append",
        "--signal=USR2@120",
        "--job-name=fusmae-small",
        "--partition=gpu",
        "--account=lab",
        "--mem=64G",
        "--qos=high",
        "--constraint=h200",
        "--exclude=n3,n4",
        f"--output={run}/submitit/%j/%j_0_log.out",
    ):
        assert f"#SBATCH {line}" in lines
    source, other = [line for line in lines if line.startswith("source ")]
    assert re.fullmatch(rf"source {run}/code/submitted-\d{{8}}T\d{{6}}/slurm/attempt.sh", source)
    assert other == source.replace("attempt.sh", "preflight.sh")
    assert f"in_rank=({sys.executable})" in lines
    assert f"preflight 4 6 {Path(source[7:]).parents[1]}/config.yaml model.width=192" in lines
    assert not [line for line in lines if "FUSMAE_PREFLIGHT" in line]
    assert f"export PYTHONPATH={Path(source[7:]).parents[1]}${{PYTHONPATH:+:$PYTHONPATH}}" in lines
    assert f"attempt_begin {run} 7" in lines
    (srun,) = [line for line in lines if line.startswith("srun ")]
    assert "--kill-on-bad-exit=1 --cpus-per-task=6 " in srun
    assert "-m submitit.core._submit" in srun
    assert lines[-1] == "attempt_end $?"
    assert not run.exists()


def test_the_jobs_preflight_is_asked_for_and_its_settings_are_quoted(config, capsys):
    arguments = [str(config), "log.wandb=my project", "--gpus-per-node", "0", "--preflight", "full", "--dry-run"]
    assert submit.main(arguments) == 0
    lines = lines_of(capsys)
    (preflight,) = [line for line in lines if line.startswith("preflight ")]
    assert lines.index("FUSMAE_PREFLIGHT=full") < lines.index(preflight)
    assert preflight.endswith("/config.yaml 'log.wandb=my project'") and " 1 1 " in preflight


def test_the_batch_file_is_one_that_bash_can_read(config, capsys, tmp_path):
    submit.main([str(config), "--nodes", "1", "--gpus-per-node", "0", "--dry-run"])
    script = tmp_path / "batch.sh"
    script.write_text(capsys.readouterr().out)
    subprocess.run(["bash", "-n", str(script)], check=True)


def test_without_gpus_none_are_asked_for(config, capsys):
    submit.main([str(config), "--gpus-per-node", "0", "--ranks-per-node", "2", "--dry-run"])
    lines = lines_of(capsys)
    assert "#SBATCH --ntasks-per-node=2" in lines
    assert not [line for line in lines if line.startswith("#SBATCH --gpus") or "--gres" in line]


def test_a_short_limit_leaves_time_to_train_before_the_warning(config, capsys):
    submit.main([str(config), "--gpus-per-node", "0", "--time", "2", "--dry-run"])
    assert "#SBATCH --signal=USR2@30" in lines_of(capsys)


def test_options_may_stand_between_the_settings(config, capsys):
    arguments = ["--cluster", "local", str(config), "a.b=1", "--nodes", "1", "c=2", "--gpus-per-node", "2"]
    submit.main([*arguments, "--dry-run"])
    (line,) = lines_of(capsys)
    assert line == f"2 ranks on this machine of: python -m pipeline.pretrain {config} a.b=1 c=2"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--nodes", "0"], "--nodes is 0; give at least 1"),
        (["--gpus-per-node", "-1"], "--gpus-per-node is -1; give at least 0"),
        (["--cpus-per-gpu", "0"], "--cpus-per-gpu is 0; give at least 1"),
        (["--max-restarts", "-1"], "--max-restarts is -1; give at least 0"),
        (
            ["--gpus-per-node", "2", "--ranks-per-node", "3"],
            "--ranks-per-node is 3, but --gpus-per-node is 2",
        ),
        (["--cluster", "local", "--nodes", "2"], "--cluster local is one machine, not 2 nodes"),
        (["--time", "soon"], "--time soon is no time limit"),
        (["--time", "0"], "--time 0 is no time at all"),
        (["word"], "'word' is no setting; write key.sub=value"),
    ],
)
def test_wrong_usage_is_one_sentence_and_exit_code_2(config, capsys, arguments, said):
    assert exit_code(submit.main, [str(config), "--gpus-per-node", "0", "--dry-run", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {said}")
    assert len(error.splitlines()) == 1


def test_a_missing_config_is_named(capsys):
    assert exit_code(submit.main, ["nowhere.yaml", "--gpus-per-node", "1", "--dry-run"]) == 2
    assert "no config file 'nowhere.yaml'" in capsys.readouterr().err


def test_missing_gpus_per_node_is_wrong_usage(config, capsys):
    assert exit_code(submit.main, [str(config)]) == 2
    assert "give --gpus-per-node G" in capsys.readouterr().err


def test_no_slurm_on_the_machine_is_said(config, capsys, monkeypatch):
    monkeypatch.setattr(submit.shutil, "which", lambda name: None)
    assert exit_code(submit.main, [str(config), "--gpus-per-node", "1"]) == 2
    assert "sbatch or srun not found" in capsys.readouterr().err
    assert not (config.parent / "run").exists()


@pytest.mark.parametrize(
    ("stdout", "stderr", "code", "error"),
    [
        ("", "error: unknown key 'modle'; did you mean 'model'?", 2, ConfigError),
        ("", "Traceback\nRuntimeError: broken", 1, DataError),
        ("s3://bucket/run\n", "", 0, ConfigError),
    ],
)
def test_what_the_trainer_refuses_is_refused_before_submission(monkeypatch, stdout, stderr, code, error):
    said = subprocess.CompletedProcess([], code, stdout, stderr)
    monkeypatch.setattr(submit.subprocess, "run", lambda *args, **kwargs: said)
    with pytest.raises(error, match=r"unknown key|broken|a folder that all nodes share"):
        submit.resolved_run_dir(["c.yaml"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90", 90),
        ("1:30", 2),
        ("2:30:00", 150),
        ("0:0:1", 1),
        ("1-0", 1440),
        ("1-2:3", 1563),
        ("2-00:00:30", 2881),
    ],
)
def test_time_limits_are_read_as_sbatch_reads_them(text, expected):
    assert minutes(text) == expected


def start_two_ranks(tmp_path, monkeypatch, main):
    """Two real processes through submitit's local executor; the stand-in travels by value."""
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    wanted = submit.Allocation(
        nodes=1,
        gpus_per_node=0,
        ranks_per_node=2,
        cpus_per_rank=None,
        time_min=2,
        max_restarts=0,
        preflight="",
        job_name="t",
        options={},
    )
    rank = Rank(argv=("c.yaml", str(tmp_path)), master_port=submit.free_port(), main=main)
    return submit.submit_local(rank, tmp_path / "logs", wanted)


def test_two_local_ranks_see_their_ranks_and_one_meeting_place(tmp_path, monkeypatch, capsys):
    def note_environment(argv):
        import json
        import os
        import signal
        from pathlib import Path

        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        said = {name: os.environ[name] for name in names}
        said["default"] = signal.getsignal(signal.SIGUSR2) == signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        Path(argv[1], f"rank{said['RANK']}.json").write_text(json.dumps(said))
        return 0

    job = start_two_ranks(tmp_path, monkeypatch, note_environment)
    assert watch.verdict(job, tmp_path, local=True) == 0
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert (first["RANK"], first["LOCAL_RANK"]) == ("0", "0")
    assert (second["RANK"], second["LOCAL_RANK"]) == ("1", "1")
    assert first["WORLD_SIZE"] == first["LOCAL_WORLD_SIZE"] == "2"
    assert (first["MASTER_ADDR"], first["MASTER_PORT"]) == (second["MASTER_ADDR"], second["MASTER_PORT"])
    assert first["default"] and second["default"]  # submitit's own handlers are off


def test_a_failed_rank_fails_the_wait_and_its_last_lines_are_shown(tmp_path, monkeypatch, capsys):
    def fail_on_rank_1(argv):
        import os

        from pipeline.errors import DataError

        if os.environ["RANK"] == "1":
            raise DataError("shard 7 is cut short")
        return 0

    job = start_two_ranks(tmp_path, monkeypatch, fail_on_rank_1)
    assert watch.verdict(job, tmp_path, local=True) == 1
    error = capsys.readouterr().err
    assert "error: shard 7 is cut short" in error
    assert "_1_log.err" in error
    assert error.splitlines()[-1].startswith(f"error: job {job.job_id} is over, the run left no outcome; logs in")
