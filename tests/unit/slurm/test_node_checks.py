"""Space, clock, stores and packages of a node."""

import os
import threading
import time
from pathlib import Path

import pytest

from pipeline.store_speed import checkpoint_speed, data_set_speed
from slurm import node_checks
from slurm.check import Check, passed, run_checks
from slurm.node_checks import Space, check_clock, check_folder, check_imports, check_packages, check_store
from tests.unit.pipeline.small_shards import make

ENOUGH = Space(free_gib=0.0, free_inodes=0)


def look(folder: Path, space: Space = ENOUGH) -> Check:
    return check_folder("run.dir", folder, space, is_shared=True, owner="n1")


def test_a_folder_with_room_passes_and_nothing_is_left_in_it(tmp_path):
    check = look(tmp_path)
    assert check.state == "ok" and "GiB" in check.measured and not list(tmp_path.iterdir())


def test_a_full_disk_fails(tmp_path):
    check = look(tmp_path, Space(free_gib=1e9, free_inodes=0))
    assert check.state == "failed" and "1e+09 GiB are needed" in check.advice


def test_a_disk_without_inodes_fails(tmp_path):
    check = look(tmp_path, Space(free_gib=0.0, free_inodes=10**15))
    assert check.state == "failed" and "delete files" in check.advice


def test_inodes_that_a_file_system_does_not_count_are_not_missed(tmp_path, monkeypatch):
    real = os.statvfs(tmp_path)
    none = os.statvfs_result((*tuple(real)[:5], 0, 0, 0, *tuple(real)[8:]))
    monkeypatch.setattr(node_checks.os, "statvfs", lambda _path: none)
    check = look(tmp_path, Space(free_gib=0.0, free_inodes=10_000))
    assert check.state == "ok" and "inodes are not counted" in check.measured


def test_a_folder_that_is_not_there_yet_is_looked_at_where_it_would_be_made(tmp_path):
    assert look(tmp_path / "cache" / "of" / "ranges").state == "ok"
    assert not list(tmp_path.iterdir())


def test_a_disk_that_cannot_be_written_fails():
    check = look(Path("/proc/self"))
    assert check.state == "failed" and "cannot be written" in check.measured


def test_a_cache_that_cannot_grow_to_its_size_is_warned_of(tmp_path):
    assert look(tmp_path, Space(free_gib=0.0, free_inodes=0, wished_gib=1e9)).state == "warning"


def test_what_the_cache_holds_already_counts_as_room(tmp_path, monkeypatch):
    real = os.statvfs(tmp_path)
    full = os.statvfs_result((*tuple(real)[:4], 0, *tuple(real)[5:]))
    monkeypatch.setattr(node_checks.os, "statvfs", lambda _path: full)
    wished = Space(free_gib=0.0, free_inodes=0, wished_gib=0.001)
    assert look(tmp_path, wished).state == "warning"
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "a.range").write_bytes(bytes(2**21))
    assert look(tmp_path, wished).state == "ok"


@pytest.mark.parametrize(
    ("skew_s", "state", "word"), [(0.0, "ok", "agrees"), (5.0, "warning", "before"), (-40.0, "failed", "behind")]
)
def test_a_clock_that_differs_from_the_file_systems_is_told(tmp_path, skew_s, state, word):
    check = check_clock(tmp_path, "n1", now=lambda: time.time() + skew_s)
    assert check.state == state and word in check.measured
    assert check.figures["skew_s"] == pytest.approx(abs(skew_s), abs=0.5)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def data_set(tmp_path_factory) -> str:
    return make(tmp_path_factory.mktemp("made") / "pairs", (4, 4), codec="none").url


def test_the_speed_of_a_data_set_is_that_of_its_shards(data_set):
    speeds = [data_set_speed(data_set, nth) for nth in (0, 1, 2)]
    names = [Path(speed.name).name for speed in speeds]
    assert names[0] == names[2] != names[1]
    assert all(speed.num_bytes > 0 and speed.read_mb_s > 0 for speed in speeds)


def test_a_store_that_answers_passes_and_a_slow_one_is_warned_of(data_set):
    assert check_store("data.url", lambda: data_set_speed(data_set), 0.001).state == "ok"
    check = check_store("data.url", lambda: data_set_speed(data_set), 1e12)
    assert check.state == "warning" and "MB/s read" in check.measured


def test_a_data_set_without_a_manifest_fails(tmp_path):
    check = check_store("data.url", lambda: data_set_speed(str(tmp_path)), 1.0)
    assert check.state == "failed" and "there is no" in check.measured and "manifest.json" in check.measured


def test_where_checkpoints_go_is_written_read_and_cleaned(tmp_path):
    speed = checkpoint_speed(f"file://{tmp_path}", "n1")
    assert speed.write_mb_s is not None and speed.write_mb_s > 0 and speed.read_mb_s > 0
    assert not list(tmp_path.iterdir())


def test_where_checkpoints_cannot_go_fails():
    check = check_store("checkpoint.url", lambda: checkpoint_speed("file:///proc/none", "n1"), 1.0)
    assert check.state == "failed"


def test_versions_are_told_without_an_import():
    check = check_packages()
    assert check.state == "ok" and {"python", "torch", "deepspeed", "xformers"} <= check.figures.keys()


def test_a_package_that_is_not_installed_fails(monkeypatch):
    monkeypatch.setattr(node_checks, "PACKAGES", ("numpy", "no-such-package"))
    check = check_packages()
    assert check.state == "failed" and check.measured == "not installed: no-such-package"


def test_imports_are_timed_one_by_one():
    check = check_imports(("json", "fsspec"))
    assert check.state == "ok" and list(check.figures) == ["json", "fsspec"]


def test_an_import_that_fails_fails_in_its_own_words(tmp_path, monkeypatch):
    (tmp_path / "broken_here.py").write_text("print('hello')\nraise OSError('libcudart.so.12: cannot open')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    check = check_imports(("json", "broken_here"))
    assert check.state == "failed" and "libcudart.so.12: cannot open" in check.measured


def test_a_check_that_hangs_fails_and_holds_up_no_other():
    hangs = threading.Event()

    def hang() -> Check:
        hangs.wait(30)
        return Check(name="disk", state="ok", measured="")

    began = time.monotonic()
    checks = run_checks({"disk": hang, "quick": lambda: Check(name="quick", state="ok", measured="")}, 0.3)
    hangs.set()
    assert time.monotonic() - began < 10
    assert [(check.name, check.state) for check in checks] == [("disk", "failed"), ("quick", "ok")]
    assert "no answer in 0.3 s" in checks[0].measured


def test_a_check_that_raises_is_a_check_that_failed():
    def fall() -> Check:
        raise RuntimeError("no such luck")

    (check,) = run_checks({"luck": fall}, 10)
    assert check.state == "failed" and check.measured == "RuntimeError: no such luck" and not passed([check])


def test_when_the_job_is_to_stop_checks_under_way_are_left_out():
    stop = threading.Event()
    stop.set()
    assert run_checks({"disk": lambda: time.sleep(2) or []}, 10, stop) == []
