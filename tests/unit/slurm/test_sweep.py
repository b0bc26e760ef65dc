"""python -m slurm.sweep: which runs it makes, what it submits, runs beside each other on this machine, the table."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.command import exit_code
from slurm import sweep
from slurm.sweep_elements import elements, read_index, read_words, split_values
from tests.unit.slurm.test_local_run import PYTHON
from tests.unit.slurm.test_pretrain_script import ROOT

SETTINGS = "data: {url: /nowhere}\ntrain: {steps: 9}\nrun: {dir: /unused}\n"


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(SETTINGS)
    return path


def names(words: list[str], sets: list[str]) -> list[str]:
    return [element.name for element in elements(read_words(words, sets))]


def test_every_combination_is_a_run(config):
    found = elements(read_words([str(config), "log.every=1"], ["optim.lr=1e-3,3e-4", "train.seed=0,1"]))
    assert [element.name for element in found] == [
        "small-lr=1e-3-seed=0",
        "small-lr=1e-3-seed=1",
        "small-lr=3e-4-seed=0",
        "small-lr=3e-4-seed=1",
    ]
    assert found[1].differs == {"optim.lr": "1e-3", "train.seed": "1"}
    assert found[1].overrides == ("log.every=1", "optim.lr=1e-3", "train.seed=1")


def test_values_with_commas_stand_in_brackets():
    assert split_values("[0.9,0.95],[0.9,0.99]") == ["[0.9,0.95]", "[0.9,0.99]"]


def test_several_configs_are_told_apart_by_their_files(config, tmp_path):
    other = tmp_path / "large.yaml"
    other.write_text(SETTINGS)
    assert names([str(config), str(other)], ["train.seed=1,2"]) == [
        "small-seed=1",
        "small-seed=2",
        "large-seed=1",
        "large-seed=2",
    ]
    assert elements(read_words([str(config), str(other)], []))[1].differs == {"config": "large"}


def test_a_sweep_may_be_a_file(config, tmp_path):
    text = "configs: [small.yaml]\noverrides: [log.every=1]\nset: {optim.lr: [1.0e-3, 2.0e-3]}\n"
    (tmp_path / "sweep.yaml").write_text(text + "runs: {wide: [model.width=96], narrow: [model.width=48]}\n")
    found = elements(read_words([str(tmp_path / "sweep.yaml"), "train.seed=4"], []))
    assert [element.name for element in found][:2] == ["wide-lr=0.001", "wide-lr=0.002"] and len(found) == 4
    assert found[2].overrides == ("log.every=1", "train.seed=4", "model.width=48", "optim.lr=0.001")
    assert found[2].differs == {"model.width": "48", "optim.lr": "0.001"}
    assert found[0].config == str(config)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["CONFIG", "run.dir=/x"], "run.dir is each run's own in a sweep; give --runs FOLDER"),
        (["CONFIG", "--set", "train.seed=1,1"], "two runs of the sweep would be called 'small-seed=1'"),
        (["CONFIG", "--set", "train.seed"], "--set train.seed gives no values"),
        (["CONFIG", "--set", "train.sed=1"], "small-sed=1: "),
        (["CONFIG", "--set", "train.sed=1"], "did you mean 'train.seed'?"),
        (["nowhere.yaml"], "no file 'nowhere.yaml'"),
        (["a=b"], "give SWEEP.yaml, or the CONFIG.yaml of each run"),
        (["CONFIG", "--parallel", "0"], "--parallel is 0; give at least 1"),
    ],
)
def test_a_sweep_that_cannot_work_is_refused_before_anything_is_made(config, tmp_path, capsys, words, said):
    words = [str(config) if word == "CONFIG" else word for word in words]
    code = exit_code(sweep.main, [*words, "--runs", str(tmp_path / "runs"), "--gpus-per-node", "1"])
    assert code == 2 and said in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_one_array_is_submitted_with_what_each_run_needs(config, tmp_path, monkeypatch, capsys):
    (tmp_path / "sbatch").write_text(
        f'#!/bin/bash\nprintf "%s\\n" "$@" > {tmp_path}/said\nenv > {tmp_path}/env\necho 77\n'
    )
    (tmp_path / "sbatch").chmod(0o755)
    (tmp_path / "squeue").write_text("#!/bin/bash\necho PENDING\n")
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    runs = tmp_path / "runs"
    words = [str(config), "--set", "train.seed=1,2,3", "--runs", str(runs), "--parallel", "2"]
    job = ["--gpus-per-node", "4", "--cpus-per-gpu", "8", "--account", "lab", "--chain", "chain", "--max-restarts", "5"]
    job += ["--preflight", "full"]
    assert sweep.main([*words, *job]) == 0
    said = (tmp_path / "said").read_text().splitlines()
    assert said[:7] == [
        "--parsable",
        "--array=0-2%2",
        "--job-name=fusmae-runs",
        "--nodes=1",
        "--ntasks-per-node=4",
        "--time=1440",
        "--gpus-per-node=4",
    ]
    assert {"--cpus-per-task=8", "--account=lab", "--no-requeue", "--signal=B:USR1@120"} <= set(said)
    script, option, work = said[-3:]
    assert script == f"{work}/code/slurm/pretrain.sh" and option == "--elements"
    arguments = Path(work, "1.args").read_text().splitlines()
    assert arguments == [f"{work}/1.yaml", "train.seed=2", f"run.dir={runs}/small-seed=2"]
    environ = (tmp_path / "env").read_text().splitlines()
    given = {"FUSMAE_CHAIN=chain", "FUSMAE_MAX_RESTARTS=5", "FUSMAE_PREFLIGHT=full"}
    assert given | {f"FUSMAE_PYTHON={sys.executable}"} <= set(environ)
    assert [element.job for element in read_index(runs)] == ["77_0", "77_1", "77_2"]
    (tmp_path / "said").unlink()
    assert sweep.main([*words, *job]) == 0 and not (tmp_path / "said").exists()
    assert "3 runs: 0 over, 3 in the queue, 0 to start" in capsys.readouterr().out


def test_an_element_reads_its_arguments(tmp_path):
    (tmp_path / "2.args").write_text("nowhere.yaml\na=b c\n")
    command = ["bash", str(ROOT / "slurm" / "pretrain.sh"), "--elements", str(tmp_path)]
    environ = {"PATH": os.environ["PATH"], "SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2"}
    ran = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert ran.returncode == 2 and "no config file 'nowhere.yaml'" in ran.stderr
    del environ["SLURM_ARRAY_TASK_ID"]
    assert subprocess.run(command, env=environ, capture_output=True, text=True, check=False).returncode == 2


def local(config, tmp_path, plan: str, *words: str) -> subprocess.Popen[str]:
    """A sweep on this machine with a stand-in for the trainer."""
    trainer = tmp_path / "python"
    trainer.write_text(PYTHON.replace('echo "$RUN_DIR"', 'for w; do case $w in run.dir=*) echo "${w#*=}";; esac; done'))
    trainer.write_text(
        trainer.read_text().replace(
            "number=", "for w; do case $w in run.dir=*) RUN_DIR=${w#*=};; esac; done; LOGS=$RUN_DIR\n        number="
        )
    )
    trainer.chmod(0o755)
    for name in ("small-seed=1", "small-seed=2"):
        (tmp_path / "runs" / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "runs" / name / "tries").touch()
        (tmp_path / "runs" / name / "plan").write_text(plan)
    code = "import sys; from slurm import sweep; sys.executable = sys.argv.pop(1); sys.exit(sweep.main())"
    command = [sys.executable, "-c", code, str(trainer), str(config), "--set", "train.seed=1,2"]
    return subprocess.Popen(
        [*command, "--runs", str(tmp_path / "runs"), "--cluster", "local", *words],
        env=os.environ | {"REAL_PYTHON": sys.executable, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def test_runs_beside_each_other_come_back_from_failures(config, tmp_path):
    process = local(config, tmp_path, "failed 1\ndone 0\n", "--parallel", "2")
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    for seed in (1, 2):
        lines = (tmp_path / "runs" / f"small-seed={seed}" / "attempts.tsv").read_text().splitlines()
        assert [line.split("\t")[7] for line in lines] == ["failed", "done"]
        assert f"small-seed={seed}: ended with 0" in said


def test_an_interrupted_sweep_saves_what_runs_and_starts_nothing_more(config, tmp_path):
    process = local(config, tmp_path, "wait\n")
    first = tmp_path / "runs" / "small-seed=1"
    deadline = time.monotonic() + 30
    while not (first / "waiting").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 1, said
    assert (first / "caught").read_text().split() == ["INT"]
    assert "small-seed=2" not in said


def test_the_table_names_what_differs_and_where_each_run_stands(config, tmp_path, capsys):
    runs = tmp_path / "runs"
    process = local(config, tmp_path, "done 0\n")
    assert process.communicate(timeout=60)[0] and process.returncode == 0
    run = runs / "small-seed=1"
    (run / "config.yaml").write_text(SETTINGS)
    (run / "metrics.jsonl").write_text('{"step": 9, "loss": 0.5}\n')
    (run / "probe.jsonl").write_text('{"step": 9, "knn_map_macro": 0.25, "ridge_map_macro": 0.5}\n')
    assert sweep.main(["status", str(runs)]) == 0
    head, first, second = capsys.readouterr().out.splitlines()
    assert head.split() == [
        "run",
        "train.seed",
        "state",
        "steps",
        "attempts",
        "loss",
        "knn_map_macro",
        "ridge_map_macro",
    ]
    assert first.split() == ["small-seed=1", "1", "done", "9", "of", "9", "1", "0.5000", "0.2500", "0.5000"]
    assert second.split() == ["small-seed=2", "2", "not", "begun", "0", "0", "-", "-", "-"]
    assert sweep.main(["status", str(runs), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said[0]["probe"] == {"knn_map_macro": 0.25, "ridge_map_macro": 0.5}
    assert exit_code(sweep.main, ["status", str(tmp_path)]) == 2
    assert "no sweep in" in capsys.readouterr().err
