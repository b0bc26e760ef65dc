"""Running the ranks in a container: what slurm/container.sh does, for the batch files of submitit."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import ConfigError

KINDS = ("pyxis", "apptainer")


@dataclass(frozen=True, kw_only=True)
class Container:
    """An image, and what it sees of the machine."""

    kind: str
    """One of `KINDS`."""
    image: str
    mounts: tuple[str, ...]
    """Folders that are the same inside and outside."""
    more_mounts: str = ""
    """SOURCE[:TARGET[:FLAGS]] with commas."""
    workdir: str
    """Where the ranks start."""

    @property
    def _binds(self) -> str:
        return ",".join([*(f"{path}:{path}" for path in self.mounts), *filter(None, [self.more_mounts])])

    def srun_args(self) -> list[str]:
        """Options of the step that runs in it."""
        if self.kind != "pyxis":
            return []
        return [
            f"--container-image={self.image}",
            f"--container-mounts={self._binds}",
            f"--container-workdir={self.workdir}",
        ]

    def python(self, code: Path) -> str:
        """The image's Python with the job's code, as a command for the shell."""
        words = ["env", f"PYTHONPATH={code}", "PYTHONSAFEPATH=1", "python3"]
        if self.kind == "apptainer":
            words = ["apptainer", "exec", "--nv", "--pwd", self.workdir, "--bind", self._binds, self.image, *words]
        return shlex.join(words)


def container(text: str, mounts: Sequence[str | Path], more_mounts: str) -> Container:
    """The container of `pyxis:IMAGE` or `apptainer:IMAGE`.

    Of the mounts, one within another is left out.

    Raises:
        ConfigError: the text is none of both.
    """
    kind, _, image = text.partition(":")
    if kind not in KINDS or not image:
        raise ConfigError(f"--container is '{text}'; write pyxis:IMAGE or apptainer:IMAGE")
    kept: list[Path] = []
    for path in map(Path, mounts):
        if not any(path.is_relative_to(other) for other in kept):
            kept.append(path)
    return Container(
        kind=kind,
        image=image,
        mounts=tuple(map(str, kept)),
        more_mounts=more_mounts,
        workdir=str(Path.cwd()),
    )
