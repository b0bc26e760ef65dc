"""Builds that are killed, interrupted or run out of disk leave nothing that looks finished, and go on."""

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sharding.commit import building
from sharding.lock import hold
from sharding.store import Store
from tests.trees import make_bigearthnet_v1, make_reben
from tests.unit.sharding.conftest import ROOT, Archive, contents, run_build


def command(archive: Archive, out, *more) -> list[str]:
    return [sys.executable, "-m", "sharding.build", *archive.arguments, "--out", str(out), *map(str, more)]


def heed_ctrl_c() -> None:
    """What a shell starts in the background, and all that it starts, ignores Ctrl-C; these processes must not."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_for(condition, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture(scope="module")
def larger(tmp_path_factory) -> Archive:
    root = tmp_path_factory.mktemp("larger")
    return Archive("reben", root, make_reben(root, 60))


@pytest.mark.chaos
@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_build_goes_on_and_redoes_only_unfinished_shards(larger, workers, tmp_path):
    options = ["--workers", workers, "--shard-mib", 1, "--codec", "none"]
    out, whole = tmp_path / "out", tmp_path / "whole"
    process = subprocess.Popen(command(larger, out, *options), cwd=ROOT, start_new_session=True)
    wait_for(lambda: len(list(out.glob(".build/*.json"))) >= 3 or process.poll() is not None)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (out / "manifest.json").exists()
    # Workers of a killed parent end by themselves.
    wait_for(lambda: not list_group(process.pid))
    finished = {marker.stem: (out / "shards" / f"{marker.stem}.tar").stat() for marker in out.glob(".build/*.json")}
    ended = run_build(*larger.arguments, "--out", out, *options[2:], workers=workers)
    assert ended.code == 0
    assert f"{len(finished)} of 15 shards are built already" in ended.err
    for name, stat in finished.items():
        assert (out / "shards" / f"{name}.tar").stat().st_mtime_ns == stat.st_mtime_ns
    assert run_build(*larger.arguments, "--out", whole, *options[2:]).code == 0
    assert contents(out) == contents(whole)
    assert not (out / ".build").exists()


def list_group(group: int) -> list[int]:
    """Living processes of a process group."""
    found = []
    for stat in os.listdir("/proc"):
        if stat.isdigit():
            try:
                fields = Path(f"/proc/{stat}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[2]) == group and fields[0] != "Z":
                found.append(int(stat))
    return found


@pytest.mark.chaos
@pytest.mark.parametrize(("workers", "after"), [(1, "*.json"), (2, "*.json"), (2, "lock")])
def test_ctrl_c_is_one_sentence_and_leaves_nothing_half_written(larger, workers, after, tmp_path):
    out = tmp_path / "out"
    options = ["--workers", workers, "--shard-mib", 1, "--codec", "none"]
    process = subprocess.Popen(
        command(larger, out, *options),
        cwd=ROOT,
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_ctrl_c,
    )
    wait_for(lambda: list(out.glob(f".build/{after}")) or process.poll() is not None)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 1
    assert said.strip() == ("error: interrupted; nothing half-written counts as finished, the same command goes on")
    assert not (out / "manifest.json").exists()
    assert not list(out.rglob("*.partial")) + list(out.glob(".build/scratch-*"))
    for tar in out.glob("shards/*.tar"):
        assert tar.stat().st_size % 10240 == 0


def can_mount() -> bool:
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/tmp"]
    return shutil.which("unshare") is not None and subprocess.run(command, capture_output=True).returncode == 0


BUILD_ON_600_KB = """
import errno, os
from sharding import build, writer
from sharding.command import run_command

left, write = 600_000, writer._Sink.write

def limited(sink, content):
    global left
    left -= len(content)
    if left < 0:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return write(sink, content)

writer._Sink.write = limited
run_command(build.main)
"""


@pytest.mark.chaos
@pytest.mark.parametrize("disk", ["writes that fail", *(["a file system of 600 kB"] if can_mount() else [])])
def test_a_full_disk_is_one_sentence_and_leaves_nothing_half_written(larger, disk, tmp_path):
    """On a real file system in a namespace of its own where that is allowed; by refused writes everywhere."""
    out = tmp_path / "out"
    out.mkdir()
    program, *arguments = command(larger, out, "--workers", 1)
    if disk == "writes that fail":
        program, arguments = f"{program} -c '{BUILD_ON_600_KB}'", arguments[2:]
    script = (
        f"{program} {' '.join(arguments)}; code=$?; find {out} -name '*.partial'; "
        f"ls {out}/shards 2>&1 | wc -l; exit $code"
    )
    if disk == "writes that fail":
        run_in = ["bash", "-c", script]
    else:
        run_in = ["unshare", "-rm", "bash", "-c", f"mount -t tmpfs -o size=600k none {out} && {script}"]
    ended = subprocess.run(run_in, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: No space left on device: ")
    assert len(ended.stderr.splitlines()) == 1
    assert ".partial\n" not in ended.stdout


def test_a_disk_that_fills_up_while_a_shard_is_synced(v1, tmp_path, monkeypatch):
    """The last bytes of a shard find no space, when all writes before seemed to have been done."""

    fsync = os.fsync

    def full(descriptor):
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith(".tar.partial"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        ended = run_build(*v1.arguments, "--out", tmp_path / "out")
    assert ended.code == 1
    assert ended.err.startswith("error: No space left on device: ")
    assert "train-000000.tar.partial" in ended.err
    assert not list((tmp_path / "out").rglob("*.partial"))
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert run_build(*v1.arguments, "--out", tmp_path / "out").code == 0


def test_two_builds_into_one_folder_do_not_mix(v1, tmp_path):
    with building(Store(str(tmp_path / "out"))):
        ended = run_build(*v1.arguments, "--out", tmp_path / "out")
    assert ended.code == 1
    assert f"another build (process {os.getpid()} on " in ended.err
    assert f"is writing to {tmp_path / 'out'}" in ended.err


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP])
def test_a_file_system_without_locks_is_told_and_built_on(v1, tmp_path, monkeypatch, code):
    def no_locks(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    ended = run_build(*v1.arguments, "--out", tmp_path / "out")
    assert ended.code == 0
    [warning] = ended.err.splitlines()
    assert warning.startswith(f"warning: {tmp_path / 'out' / '.build'} is on a file system without locks (")
    assert (tmp_path / "out" / "manifest.json").exists()


def test_a_lock_that_fails_otherwise_is_no_file_system_without_locks(tmp_path, monkeypatch):
    def broken(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", broken)
    with pytest.raises(OSError, match="Input/output error"):
        hold(tmp_path / "lock", "me")


def test_a_lock_names_its_holder_and_ends_with_its_file(tmp_path):
    first = hold(tmp_path / "lock", "the first owner, with a long name")
    with pytest.raises(BlockingIOError) as told:
        hold(tmp_path / "lock", "the second")
    assert told.value.strerror == "the first owner, with a long name"
    first.close()
    with hold(tmp_path / "lock", "the second"):
        assert (tmp_path / "lock").read_text() == "the second\n"


def test_what_an_interrupted_build_left_is_removed(fresh_v1, tmp_path):
    out = tmp_path / "out"
    lonely = fresh_v1.patches[3]
    tif = next(lonely.s1_path.glob("*_VV.tif"))
    content = tif.read_bytes()
    tif.write_bytes(b"")
    assert run_build(*fresh_v1.arguments, "--out", out, "--splits", "official").code == 1
    partial = f"{'0123456789abcdef' * 2}.partial"
    (out / "shards" / "val-000009.tar").write_bytes(b"stale")
    (out / "index" / f".train-000000.idx.{partial}").write_bytes(b"half")
    (out / f".manifest.json.{partial}").write_bytes(b"half")
    tif.write_bytes(content)
    assert run_build(*fresh_v1.arguments, "--out", out).code == 0
    assert run_build(*fresh_v1.arguments, "--out", tmp_path / "whole").code == 0
    assert contents(out) == contents(tmp_path / "whole")


def test_a_tampered_marker_is_not_believed(tmp_path):
    patches = make_bigearthnet_v1(tmp_path / "a", 5)
    archive = Archive("bigearthnet-v1", tmp_path / "a", patches)
    tif = next(patches[4].s1_path.glob("*_VV.tif"))
    content = tif.read_bytes()
    tif.write_bytes(b"")
    out = tmp_path / "out"
    assert run_build(*archive.arguments, "--out", out).code == 1
    (out / ".build" / "train-000000.json").write_text("{}")
    (out / "shards" / "val-000000.tar").write_bytes(b"cut")
    tif.write_bytes(content)
    assert run_build(*archive.arguments, "--out", out).code == 0
    assert run_build(*archive.arguments, "--out", tmp_path / "whole").code == 0
    assert contents(out) == contents(tmp_path / "whole")


def test_a_build_killed_after_its_manifest_is_finished(v1, tmp_path):
    out = tmp_path / "out"
    assert run_build(*v1.arguments, "--out", out).code == 0
    (out / ".build").mkdir()
    (out / ".build" / "train-000000.json").write_text("{}")
    assert "nothing to do" in run_build(*v1.arguments, "--out", out).out
    assert not (out / ".build").exists()
