"""What the demo checks of itself, and that nothing outlives it."""

import subprocess
import sys

import pytest

from pipeline.command import exit_code
from pipeline.demo import CONFIG, Demo, DemoError, check_learning, kill_session, main
from pipeline.report import LossFall

FORKING = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], process_group=0)
print(child.pid, flush=True)
time.sleep(600)
"""
MEASURED = {"model": {"total": 1.2}, "band_mean": {"total": 1.9}, "shuffled": {"total": 1.4}}


def is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_session_dies_with_the_groups_its_members_made():
    process = subprocess.Popen(
        [sys.executable, "-c", FORKING], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    with process:
        child = int(process.stdout.readline())
        assert is_alive(child)
        kill_session(process)
        assert process.returncode == -9
        assert not is_alive(child)


def test_what_has_learnt_passes():
    check_learning(LossFall(first=2.0, last=1.2), MEASURED)


@pytest.mark.parametrize(
    ("last", "measured", "message"),
    [
        (1.5, {}, r"by 25%; at least 30%"),
        (1.2, {"band_mean": {"total": 1.2}}, "each band's mean"),
        (1.2, {"shuffled": {"total": 1.1}}, "shuffled tokens"),
        (1.2, {"model": {"total": 1.95}}, r"1\.950 is not below"),
    ],
)
def test_what_has_not_learnt_fails_with_the_figures(last, measured, message):
    with pytest.raises(DemoError, match=message):
        check_learning(LossFall(first=2.0, last=last), MEASURED | measured)


def test_a_replayed_step_that_differs_is_found(tmp_path):
    demo = Demo(tmp_path, None)
    demo.run_dir.mkdir()
    line = '{"step": 2, "keys": ["a"], "masks": ["m"], "loss": ["0x1.8p+0"]}\n'
    (demo.run_dir / "trace-rank00000.jsonl").write_text(line)
    before = {"trace-rank00000.jsonl": [{"step": 2, "keys": ["a"], "masks": ["m"], "loss": ["0x1.8p+0"]}]}
    assert demo.compare_traces(before, resumed=1, killed=2) == 1
    before["trace-rank00000.jsonl"][0]["loss"] = ["0x1.8000000000001p+0"]
    with pytest.raises(DemoError, match=r"step 2 of trace-rank00000\.jsonl differs"):
        demo.compare_traces(before, resumed=1, killed=2)
    with pytest.raises(DemoError, match="no step was trained twice"):
        demo.compare_traces(before, resumed=2, killed=2)


def test_a_failing_stage_is_one_sentence_with_its_log(tmp_path, capsys):
    demo = Demo(tmp_path, None)
    with pytest.raises(DemoError, match=r"stage 'build' ended with code 2 \(.*\); see .*build\.log"):
        demo.build([tmp_path / "nothing"])
    assert CONFIG.exists()


@pytest.mark.parametrize("steps", ["0", "19", "many"])
def test_too_few_steps_are_wrong_usage(tmp_path, steps, capsys):
    with pytest.raises(SystemExit) as stop:
        exit_code(main, ["--dir", str(tmp_path), "--steps", steps])
    assert stop.value.code == 2
    assert "--steps" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("capability", "gpus", "precision"),
    [("AVX2", 0, "fp32"), ("DEFAULT", 0, "fp32"), ("AVX512", 0, "bf16"), ("AVX2", 1, "bf16")],
)
def test_bf16_is_left_to_hardware_that_has_it(tmp_path, monkeypatch, capability, gpus, precision):
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: capability)
    monkeypatch.setattr("pipeline.demo._count_gpus", lambda: gpus)
    assert Demo(tmp_path, None).settings.engine.precision == precision
