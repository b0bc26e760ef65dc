"""`python -m slurm.preflight` as a node runs it, and `slurm.preflight_report`, which judges all nodes' answers."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from slurm import preflight_report
from slurm.check import Check
from slurm.preflight import build_parser, looks
from tests.unit.pipeline.small_shards import make

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    """Settings of a run whose data set is there."""
    folder = tmp_path_factory.mktemp("preflight")
    url = make(folder / "pairs", (4,), codec="none").url
    path = folder / "config.yaml"
    path.write_text(f"data: {{url: {url}}}\ntrain: {{steps: 1}}\nrun: {{dir: {folder / 'run'}}}\n")
    (folder / "run").mkdir()
    return path


def start(*arguments: str, **environ: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "slurm.preflight", *arguments]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    return subprocess.Popen(
        command, cwd=ROOT, env={**clean, **environ}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def run(*arguments: str, **environ: str) -> tuple[int, str, str]:
    process = start(*arguments, **environ)
    output, errors = process.communicate(timeout=120)
    return process.returncode, output, errors


def test_a_fit_node_says_so_and_leaves_its_answer(config, tmp_path):
    file = tmp_path / "answers" / "%N.json"
    code, output, errors = run(str(config), "--quick", "--json-file", str(file), SLURMD_NODENAME="n7")
    assert code == 0, output + errors
    answer = json.loads((tmp_path / "answers" / "n7.json").read_text())
    assert answer["node"] == "n7" and answer["is_fit"] and not answer["is_stopped"]
    states = {check["name"]: check["state"] for check in answer["checks"]}
    good = dict.fromkeys(("TMPDIR", "packages", "run.dir", "clock", "data.url"), "ok")
    assert states == {"gpus": "skipped"} | good
    assert output.startswith("n7: fit, after ") and len(output.splitlines()) == 1


def test_an_unfit_node_says_what_is_wrong_and_what_to_do(config):
    code, output, _ = run(str(config), "--quick", "--min-free-gib", "1e9", "--json", SLURMD_NODENAME="n7")
    answer = json.loads(output)
    assert code == 1 and not answer["is_fit"]
    failed = {check["name"]: check["advice"] for check in answer["checks"] if check["state"] == "failed"}
    assert failed.keys() == {"TMPDIR", "run.dir"} and "--min-free-gib" in failed["run.dir"]


def test_a_person_is_told_all_that_was_found():
    code, output, errors = run("--quick", SLURMD_NODENAME="n7")
    assert code == 0 and output.startswith("n7: fit\n"), output + errors
    assert "none were asked for" in output and "GiB" in output and "torch " in output


def test_wrong_settings_are_wrong_usage(config):
    code, _, errors = run(str(config), "data.uri=x")
    assert code == 2 and "unknown key 'data.uri'" in errors
    code, _, errors = run("run.dir=x")
    assert code == 2 and "no config file" in errors


def test_a_node_that_is_asked_to_stop_is_not_called_unfit(config, tmp_path):
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\ntouch $0.asked\nsleep 30\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    file = tmp_path / "n7.json"
    path = f"{tmp_path}:{os.environ['PATH']}"
    process = start(str(config), "--quick", "--gpus=1", "--json-file", str(file), PATH=path)
    deadline = time.monotonic() + 60
    while not (tmp_path / "nvidia-smi.asked").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGUSR2)
    process.communicate(timeout=20)
    assert process.returncode == 1
    answer = json.loads(file.read_text())
    assert answer["is_stopped"] and "gpus" not in [check["name"] for check in answer["checks"]]


def names(*overrides: str, gpus: int | None = None) -> dict[str, Any]:
    from pipeline.config import settings_of_text

    text = "data: {url: /data}\ntrain: {steps: 1}\nrun: {dir: /runs/none}\n"
    options = build_parser().parse_args([] if gpus is None else [f"--gpus={gpus}"])
    return dict(looks(options, settings_of_text(text, "test", list(overrides)), {"SLURM_GPUS_ON_NODE": "2"}))


def test_what_the_settings_name_is_looked_at():
    assert {"run.dir", "data.url", "imports"} <= names().keys()
    assert "clock" not in names(), "of a folder that is not there no time can be asked"
    more = names("data.cache_dir=/cache", "checkpoint.url=s3://bucket/run", "checkpoint.staging=/scratch")
    assert {"data.cache_dir", "checkpoint.url", "checkpoint.staging"} <= more.keys()
    mixed = names("data.mixture=[{url: /a}, {url: /b}]", "data.url=")
    assert {"data.url", "data.mixture.1"} <= mixed.keys() and "data.mixture.2" not in mixed


def test_a_run_on_cpus_asks_for_no_gpus():
    assert names()["gpus"].args[0] == 2 and names(gpus=4)["gpus"].args[0] == 4
    assert names("engine.device=cpu")["gpus"].args[0] == 0


# --- the report


def answer(*checks: Check, took_s: float = 1.0, is_stopped: bool = False, torch: str = "2.13.0") -> dict[str, Any]:
    packages = Check(name="packages", state="ok", measured="", is_shared=True, figures={"torch": torch})
    found = [vars(check) for check in (packages, *checks)]
    return {"checks": found, "took_s": took_s, "is_stopped": is_stopped}


ECC = Check(name="gpu ecc", state="failed", measured="3 uncorrected ECC errors", advice="drain the node")
STORE = Check(name="data.url", state="failed", measured="refused", advice="try it", is_shared=True)


def judged(answers: dict[str, Any], *, nodes: tuple[str, ...] = ("n1", "n2", "n3"), late: bool = False) -> Any:
    return preflight_report.judge_nodes(nodes, answers, is_late=late)


def test_fit_nodes_are_fit():
    report = judged({"n1": answer(), "n2": answer(took_s=4.0), "n3": answer()})
    assert report.is_fit and report.lines == ["3 nodes are fit, after 4.0 s"]


def test_a_node_that_fails_a_check_is_named_with_it():
    report = judged({"n1": answer(), "n2": answer(ECC), "n3": answer()})
    assert not report.is_fit and report.suspects == ["n2"]
    assert report.lines == ["n2: gpu ecc: 3 uncorrected ECC errors; drain the node"]


def test_a_node_without_an_answer_is_to_blame_where_another_has_one():
    report = judged({"n1": answer(), "n3": answer()})
    assert report.suspects == ["n2"] and "n2 gave no answer" in report.lines[0]
    assert judged({}).suspects == [] and not judged({}).is_fit


def test_what_all_nodes_share_and_all_fail_is_no_nodes_fault():
    report = judged({node: answer(STORE) for node in ("n1", "n2", "n3")})
    assert not report.is_fit and report.suspects == []
    assert "data.url fails on every node, so none of them is to blame" in report.lines
    assert judged({"n1": answer(STORE), "n2": answer(STORE), "n3": answer()}).suspects == ["n1", "n2"]


def test_what_is_a_nodes_own_is_its_fault_even_if_all_fail():
    assert judged({node: answer(ECC) for node in ("n1", "n2", "n3")}).suspects == ["n1", "n2", "n3"]
    assert judged({"n1": answer(ECC)}, nodes=("n1",)).suspects == ["n1"]


def test_a_node_with_other_versions_than_most_is_named():
    report = judged({"n1": answer(torch="2.12.0"), "n2": answer(), "n3": answer()})
    assert report.suspects == ["n1"] and "torch 2.12.0 where others have 2.13.0" in report.lines[0]


def test_of_two_nodes_the_first_has_the_right_versions():
    report = judged({"n1": answer(), "n2": answer(torch="2.14.0")}, nodes=("n1", "n2"))
    assert report.suspects == ["n2"]


def test_a_warning_is_told_and_blames_nobody():
    slow = Check(name="data.url", state="warning", measured="3 MB/s read", advice="slower than 20")
    report = judged({"n1": answer(), "n2": answer(slow), "n3": answer()})
    assert report.is_fit and "warning: n2: data.url: 3 MB/s read; slower than 20" in report.lines


def test_a_job_that_was_asked_to_stop_blames_nobody():
    answers = {"n1": answer(), "n2": answer(is_stopped=True)}
    report = judged(answers)
    assert report.is_stopped and report.suspects == []
    assert judged(answers, late=True).suspects == ["n2", "n3"], "the batch script itself had ended them"


@pytest.fixture
def folder(tmp_path) -> Path:
    made = tmp_path / "preflight" / "42-0"
    made.mkdir(parents=True)
    return made


def report(folder: Path, *arguments: str) -> int:
    return preflight_report.main([str(folder), *arguments])


def test_the_unfit_are_kept_until_they_pass(folder, capsys):
    (folder.parent / "unfit").write_text("n8\nn1\n")
    (folder / "n1.json").write_text(json.dumps(answer()))
    (folder / "n2.json").write_text(json.dumps(answer(ECC)))
    assert report(folder, "n1", "n2") == 1
    assert (folder / "suspects").read_text() == "n2\n"
    assert (folder.parent / "unfit").read_text() == "n2\nn8\n"
    (folder / "n2.json").write_text(json.dumps(answer()))
    assert report(folder, "n1", "n2") == 0
    assert (folder.parent / "unfit").read_text() == "n8\n"
    assert "preflight: 2 nodes are fit" in capsys.readouterr().out


def test_a_stop_leaves_the_list_as_it_is(folder):
    (folder.parent / "unfit").write_text("n1\n")
    (folder / "n1.json").write_text(json.dumps(answer(is_stopped=True)))
    assert report(folder, "n1", "n2") == preflight_report.STOPPED
    assert (folder.parent / "unfit").read_text() == "n1\n" and not (folder / "suspects").exists()


def probe(folder: Path, **changed: Any) -> None:
    ranks = [{"rank": rank, "host": f"n{rank // 2 + 1}", "error": "", "is_victim": False} for rank in range(4)]
    came = {str(rank["rank"]): rank["host"] for rank in ranks}
    result = {"backend": "gloo", "world_size": 4, "num_bytes": 2**20, "busbw_gb_s": 1.5, "came": came, "ranks": ranks}
    result |= {"missing": [], "slow": [], "wrong": []}
    (folder / "probe.json").write_text(json.dumps(result | changed))


@pytest.mark.parametrize(
    ("changed", "suspects"),
    [
        ({}, ""),
        ({"came": {"0": "n1", "1": "n1", "2": "n2"}}, "n2"),
        ({"missing": [3]}, "n2"),
        ({"slow": [0]}, "n1"),
        ({"wrong": [2]}, "n2"),
        ({"wrong": [0, 1, 2, 3]}, ""),
        ({"ranks": [{"rank": 3, "host": "n2", "error": "CUDA error: ECC", "is_victim": False}]}, "n2"),
        ({"ranks": [{"rank": 3, "host": "n2", "error": "lost another rank", "is_victim": True}]}, ""),
    ],
)
def test_the_probe_names_the_node_of_the_rank_that_is_to_blame(folder, changed, suspects):
    probe(folder, **changed)
    assert report(folder, "n1", "n2", "--probe", "2") == (1 if changed else 0)
    assert (folder / "suspects").read_text().strip() == suspects


def test_a_probe_without_a_result_blames_the_nodes_that_left_no_word(folder):
    (folder / "alone-rank00002.json").write_text(json.dumps({"rank": 2, "host": "n2", "error": "rank 0 did not come"}))
    assert report(folder, "n1", "n2", "--probe", "2") == 1
    assert (folder / "suspects").read_text() == "n1\n"
