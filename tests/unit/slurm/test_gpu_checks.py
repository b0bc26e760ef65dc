"""The GPUs of a node, as an `nvidia-smi` on PATH tells of them, in the words of real ones."""

import os
import stat

import pytest

from slurm.check import Check
from slurm.gpu_checks import NvidiaSmiError, check_gpus, gpus_given, query, visible

UUIDS = ("GPU-6f3a1c52-0e0b-4d7e-9c3f-2b7c51d0a001", "GPU-6f3a1c52-0e0b-4d7e-9c3f-2b7c51d0a002")
# index, uuid, memory.used, memory.total, utilization, temperature, uncorrected ECC, retired pages pending, MIG
H100 = "\n".join(f"{i}, {uuid}, 4, 81559, 0, 3{i}, 0, [N/A], Disabled" for i, uuid in enumerate(UUIDS))
V100 = "\n".join(f"{i}, {uuid}, 0, 32510, 0, 40, 0, No, [N/A]" for i, uuid in enumerate(UUIDS))
NO_DRIVER = (
    "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that the latest NVIDIA "
    "driver is installed and running."
)
SCRIPT = """#!/bin/sh
case "$*" in
    -L) printf '%s\\n' "$GPU_LIST" ;;
    *--query-remapped-rows*) printf '%s\\n' "$REMAPPED"; exit "${REMAPPED_RC:-0}" ;;
    *ecc.errors*) [ -z "$REFUSED" ] || { echo "Field \\"$REFUSED\\" is not a valid field to query."; exit 2; }
        printf '%s\\n' "$TABLE"; exit "${TABLE_RC:-0}" ;;
    *) printf '%s\\n' "$CORE"; exit 0 ;;
esac
"""


@pytest.fixture
def node(tmp_path):
    """Makes the environment of a node whose nvidia-smi says so."""

    def make(table: str = H100, **environ: str) -> dict[str, str]:
        path = tmp_path / "nvidia-smi"
        path.write_text(SCRIPT)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return {"PATH": f"{tmp_path}:{os.environ['PATH']}", "TABLE": table, **environ}

    return make


def found(environ: dict[str, str], expected: int = 2) -> dict[str, Check]:
    return {check.name: check for check in check_gpus(expected, environ, max_used=0.05)}


@pytest.mark.parametrize("table", [H100, V100])
def test_idle_and_healthy_gpus_pass(node, table):
    checks = found(node(table))
    assert [check.state for check in checks.values()] == ["ok"] * 4, checks
    assert checks["gpus"].figures == {"visible": 2, "expected": 2}


def test_a_gpu_that_has_gone_is_missed(node):
    check = found(node(H100.splitlines()[0]))["gpus"]
    assert check.state == "failed" and check.measured == "1 visible, 2 given by SLURM"


def test_uncorrected_ecc_errors_are_told_with_their_gpu(node):
    check = found(node(H100.replace("31, 0, [N/A]", "31, 3, [N/A]")))["gpu ecc"]
    assert check.state == "failed" and check.measured == "GPU 1: 3 uncorrected ECC errors"


def test_pages_that_wait_to_be_retired_fail(node):
    check = found(node(V100.replace("0, No", "0, Yes", 1)))["gpu ecc"]
    assert check.state == "failed" and check.measured == "GPU 0: pages to be retired"


@pytest.mark.parametrize(
    ("cells", "words"), [("Yes, No", "a memory row to be remapped"), ("0, 1", "no spare rows left in its memory")]
)
def test_memory_rows_that_wait_to_be_remapped_fail(node, cells, words):
    remapped = f"{UUIDS[0]}, 0, 0\n{UUIDS[1]}, {cells}"
    check = found(node(REMAPPED=remapped))["gpu ecc"]
    assert check.state == "failed" and check.measured == f"GPU 1: {words}"
    assert found(node(REMAPPED=f"{UUIDS[0]}, 0, 0\n{UUIDS[1]}, No, No"))["gpu ecc"].state == "ok"
    assert found(node(REMAPPED=remapped, REMAPPED_RC="2"))["gpu ecc"].state == "ok", "a driver that does not know it"


def test_memory_that_another_process_holds_fails(node):
    check = found(node(H100.replace(" 4, 81559", " 8000, 81559", 1)))["gpu memory"]
    assert check.state == "failed" and "GPU 0: 9.8% in use" in check.measured
    assert found(node(H100.replace(" 4, 81559", " 4000, 81559", 1)))["gpu memory"].state == "ok"


@pytest.mark.parametrize(("old", "new"), [("0, 30, 0", "0, 91, 0"), ("0, 30, 0", "97, 30, 0")])
def test_a_hot_or_busy_gpu_is_warned_of(node, old, new):
    checks = found(node(H100.replace(old, new)))
    assert checks["gpu heat"].state == "warning" and checks["gpus"].state == "ok"


def test_what_a_gpu_does_not_know_is_skipped(node):
    line = f"0, {UUIDS[0]}, [N/A], [N/A], [Not Supported], N/A, [N/A], [N/A], [N/A]"
    checks = found(node(line), expected=1)
    assert [check.state for check in checks.values()] == ["ok", "skipped", "skipped", "skipped"]


def test_mig_devices_are_counted_and_their_gpus_users_left_alone(node):
    line = f"0, {UUIDS[0]}, 40213, 81559, [N/A], 41, 0, [N/A], Enabled"
    listed = f"GPU 0: NVIDIA H100 80GB HBM3 (UUID: {UUIDS[0]})\n" + "\n".join(
        f"  MIG 3g.40gb     Device  {i}: (UUID: MIG-5b8ae3a1-7f1c-5d2e-8f4b-9d7f1b4f000{i})" for i in range(2)
    )
    checks = found(node(line, GPU_LIST=listed, CUDA_VISIBLE_DEVICES="MIG-5b8ae3a1-7f1c-5d2e-8f4b-9d7f1b4f0000"))
    assert checks["gpus"].state == "ok" and checks["gpus"].figures["visible"] == 2
    assert checks["gpu memory"].state == "skipped" and "MIG" in checks["gpu memory"].measured
    assert found(node(line, GPU_LIST=listed), expected=3)["gpus"].state == "failed"


@pytest.mark.parametrize("cell", ["[Unknown Error]", "ERR!", "[GPU requires reset]"])
def test_a_gpu_that_does_not_answer_is_named(node, cell):
    check = found(node(H100.replace("0, 31, 0", f"{cell}, {cell}, {cell}")))["gpus"]
    assert check.state == "failed" and check.measured == "GPU 1 does not answer"


@pytest.mark.parametrize(
    ("said", "code", "words"),
    [
        ("No devices were found", "6", "No devices were found"),
        ("No devices were found", "0", "No devices were found"),
        (NO_DRIVER, "9", "couldn't communicate with the NVIDIA driver"),
        ("Failed to initialize NVML: Driver/library version mismatch", "18", "Driver/library version mismatch"),
        (
            f"Unable to determine the device handle for GPU0000:3B:00.0: Unknown Error\n{H100.splitlines()[0]}",
            "255",
            "GPU0000:3B:00.0: Unknown Error",
        ),
        ("", "0", "nvidia-smi"),
    ],
)
def test_a_driver_that_fails_fails_in_its_own_words(node, said, code, words):
    (check,) = found(node(said, TABLE_RC=code)).values()
    assert check.name == "gpus" and check.state == "failed" and words in check.measured


def test_a_driver_that_refuses_a_field_is_asked_for_less(node):
    core = "\n".join(f"{i}, {uuid}, 4, 81559, 0, 30" for i, uuid in enumerate(UUIDS))
    checks = found(node(REFUSED="mig.mode.current", CORE=core))
    assert checks["gpus"].state == checks["gpu memory"].state == "ok"
    assert checks["gpu ecc"].state == "skipped"


def test_without_nvidia_smi_asked_for_gpus_are_missed(tmp_path):
    (check,) = check_gpus(1, {"PATH": str(tmp_path)}, max_used=0.05)
    assert check.state == "failed" and check.measured == "there is no nvidia-smi"


def test_where_no_gpus_were_asked_for_none_is_looked_at(tmp_path):
    (check,) = check_gpus(0, {"PATH": str(tmp_path)}, max_used=0.05)
    assert check.state == "skipped" and check.measured == "none were asked for"


@pytest.mark.parametrize(
    ("devices", "indices"),
    [("1", ["1"]), (UUIDS[0][:12], ["0", "1"]), (UUIDS[1], ["1"]), ("", ["0", "1"]), ("4,5", ["0", "1"])],
)
def test_only_the_steps_own_gpus_are_looked_at(node, devices, indices):
    assert [gpu.index for gpu in visible(query(node()), devices)] == indices


def test_another_jobs_gpu_may_be_in_use(node):
    table = H100.replace(" 4, 81559", " 70000, 81559", 1)
    assert found(node(table, CUDA_VISIBLE_DEVICES="1"), expected=1)["gpu memory"].state == "ok"
    assert found(node(table, CUDA_VISIBLE_DEVICES="0"), expected=1)["gpu memory"].state == "failed"


def test_an_answer_that_is_no_table_is_no_gpu(node):
    with pytest.raises(NvidiaSmiError, match="what is this"):
        query(node("what is this"))


@pytest.mark.parametrize(("said", "number"), [("4", 4), ("", 0), ("(null)", 0)])
def test_the_gpus_given_are_slurms_word(said, number):
    assert gpus_given({"SLURM_GPUS_ON_NODE": said}) == number
