"""`python -m benchmarks.stream_rivals install`: the rivals of `benchmarks.stream`, in an environment of their own.

`.rivals-env` sees our packages (torch, numpy, webdataset, h5py, rasterio ...) behind its own, so that nothing is
installed twice and all contenders run on the same torch. Packages that ask for other versions of what we pin, or for
torchvision, are installed without their dependencies; what they need of these is listed here.
"""

import argparse
import json
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.absent_modules import AbsentModules
from pipeline.command import run_command
from pipeline.errors import ConfigError

ENVIRONMENT = Path(".rivals-env")
_PINNED = ("torch", "numpy", "webdataset", "h5py", "rasterio", "fsspec", "s3fs", "botocore", "aiobotocore")
_ABSENT = ("torchvision", "transformers")


@dataclass(frozen=True, kw_only=True)
class Package:
    """What pip is asked for, and what else it needs when its own list of dependencies is not followed."""

    requirement: str
    needs: tuple[str, ...] | None = None


PACKAGES = {
    "mds": Package(
        requirement="mosaicml-streaming==0.13.0",
        needs=("xxhash<4", "zstd<2", "Brotli", "python-snappy<1", "cramjam", "catalogue<3", "boto3"),
    ),
    "litdata": Package(
        requirement="litdata==0.2.76",
        needs=("lightning-utilities==0.15.3", "tifffile", "filelock", "requests", "boto3", "obstore==0.12.1"),
    ),
    "energon": Package(requirement="megatron-energon==7.4.1"),
    "terramesh": Package(requirement="zarr==2.18.7"),  # reads a zarr.zip seven times as fast as zarr 3
    "obstore": Package(requirement="obstore==0.12.1"),
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stream_rivals", description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=("install", "list"))
    arguments = parser.parse_args(argv)
    if arguments.action == "install":
        install()
    why = missing()
    for name, package in PACKAGES.items():
        print(f"{package.requirement}: {why.get(name, 'installed')}")
    return 0


def python() -> Path:
    return ENVIRONMENT / "bin" / "python"


def install() -> None:
    """Make the environment and what is not in it yet; of a package that cannot be had, the reason is kept."""
    site = ENVIRONMENT / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    if not site.is_dir():
        command = [sys.executable, "-m", "venv", "--without-pip", "--clear", str(ENVIRONMENT)]
        if subprocess.run(command, check=False).returncode:
            raise ConfigError(f"{ENVIRONMENT} cannot be made; on Debian: apt install python3-venv")
    (ENVIRONMENT / ".gitignore").write_text("*\n")
    (site / "shared.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    constraints = ENVIRONMENT / "constraints.txt"
    constraints.write_text("".join(f"{name}=={version(name)}\n" for name in _PINNED if _has(name)))
    failures = {name: why for name, package in PACKAGES.items() if (why := _install(package, constraints))}
    _outcome().write_text(json.dumps({"wanted": _wanted(), "failures": failures}))


def is_complete() -> bool:
    """Whether what is wanted today has been installed, or tried in vain."""
    return _outcome().exists() and json.loads(_outcome().read_text())["wanted"] == _wanted()


def missing() -> dict[str, str]:
    """Rivals that are not installed, and why."""
    if not is_complete():
        return dict.fromkeys(PACKAGES, "not installed: run python -m benchmarks.stream_rivals install")
    failures: dict[str, str] = json.loads(_outcome().read_text())["failures"]
    return {name: f"not installed: {why}" for name, why in failures.items()}


def hide_unused_imports() -> None:
    """Let `import torchvision` and `import transformers` succeed in this process; nothing of them is ever called."""
    sys.meta_path.append(AbsentModules(_ABSENT))


def _outcome() -> Path:
    return ENVIRONMENT / "outcome.json"


def _wanted() -> list[str]:
    return [" ".join((package.requirement, *(package.needs or ()))) for package in PACKAGES.values()]


def _has(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def _install(package: Package, constraints: Path) -> str:
    """Empty, or pip's last word on why it could not."""
    pip = [str(python()), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-warn-script-location"]
    pip += ["--constraint", str(constraints)]
    steps = [[package.requirement]]
    if package.needs is not None:
        steps = [["--no-deps", package.requirement], list(package.needs)]
    for step in steps:
        done = subprocess.run([*pip, *step], check=False, capture_output=True, text=True)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            return (lines or done.stderr.splitlines() or ["pip failed"])[-1].removeprefix("ERROR: ")
    return ""


if __name__ == "__main__":
    run_command(main)
