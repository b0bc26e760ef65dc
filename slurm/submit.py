"""Starts a training run, on a cluster or on this machine, through submitit."""

import argparse
import os
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import submitit
from submitit.core.core import Job

from pipeline.command import run_command
from pipeline.config import load_settings
from pipeline.errors import ConfigError, DataError
from pipeline.local_folders import local_folders
from slurm import snapshot
from slurm.allocation import Allocation, add_options, allocation
from slurm.batch_file import batch_file, code_folder, slurm_executor, warning_s
from slurm.task import Rank
from slurm.watch import verdict

CLUSTER_HELP = "slurm (default); local: processes on this machine; debug: one rank in this process"
ROOT = Path(__file__).resolve().parents[1]


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m slurm.submit", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("config", metavar="CONFIG.yaml", help="settings of the run, as for pipeline.pretrain")
    add("overrides", metavar="key.sub=value", nargs="*", help="settings that go before those of the file")
    add("--cluster", choices=("slurm", "local", "debug"), default="slurm", help=CLUSTER_HELP)
    add_options(parser)
    add("--logs", type=Path, metavar="DIR", help="default: RUN_DIR/submitit")
    add("--dry-run", action="store_true", help="print what would be submitted, write nothing")
    add("--wait", action="store_true", help="wait for the end; fails when the run fails")
    return parser


def resolved_run_dir(argv: list[str]) -> Path:
    """The run folder, as the trainer resolves the settings; so settings that cannot work are refused here.

    Raises:
        ConfigError: the trainer refuses the settings, or the run folder is no folder.
        DataError: the trainer could not say.
    """
    command = [sys.executable, "-m", "pipeline.pretrain", *argv, "--print", "run.dir"]
    environ = {**os.environ, "PYTHONPATH": python_path()}
    said = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    if said.returncode != 0:
        reason = said.stderr.strip().splitlines() or ["no reason given"]
        error = ConfigError if said.returncode == 2 else DataError
        raise error(reason[-1].removeprefix("error: "))
    run_dir = said.stdout.strip().splitlines()[-1]
    if "://" in run_dir:
        raise ConfigError(f"run.dir is {run_dir}; on a cluster it must be a folder that all nodes share")
    return Path(run_dir).absolute()


def python_path() -> str:
    """PYTHONPATH with this repository in front."""
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


def submit_slurm(
    config: Path, overrides: list[str], logs: Path, run_dir: Path, wanted: Allocation, folders: list[str]
) -> Job[None]:
    """Submit with sbatch, with a copy of the code, the config file and the set-up file."""
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise ConfigError("sbatch or srun not found; submit from a login node, or give --cluster local or --dry-run")
    code = code_folder(run_dir)
    snapshot.take(code, config, wanted.setup)
    executor = slurm_executor(logs, run_dir, wanted, overrides, code=code, folders=folders, offline=False)
    try:
        return executor.submit(Rank(argv=(str(code / snapshot.CONFIG_NAME), *overrides)))
    except submitit.core.utils.FailedJobError as refusal:
        raise ConfigError(f"sbatch refused the job: {' '.join(str(refusal).split())}") from None


def submit_local(rank: Rank, logs: Path, wanted: Allocation) -> Job[None]:
    """Start the ranks on this machine."""
    os.environ["PYTHONPATH"] = python_path()
    executor = submitit.LocalExecutor(logs)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    parameters: dict[str, Any] = {}
    if wanted.gpus_per_node and all(index.isdecimal() for index in visible):
        parameters["visible_gpus"] = [int(index) for index in visible]  # else submitit takes 0, 1, ...
    executor.update_parameters(
        nodes=1,
        tasks_per_node=wanted.ranks_per_node,
        gpus_per_node=wanted.gpus_per_node,
        timeout_min=wanted.time_min,
        signal_delay_s=warning_s(wanted),
        **parameters,
    )
    return executor.submit(rank)


def free_port() -> int:
    """A port of this machine that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main(argv: list[str] | None = None) -> int:
    """Submit, and say where the logs go."""
    options = build_parser().parse_intermixed_args(argv)
    if not Path(options.config).is_file():
        raise ConfigError(f"no config file '{options.config}'; give the path of a YAML file, such as configs/NAME.yaml")
    for override in options.overrides:
        if "=" not in override:
            raise ConfigError(f"'{override}' is no setting; write key.sub=value")
    wanted = allocation(options, f"fusmae-{Path(options.config).stem}")
    overrides = [*wanted.settings, *options.overrides]
    arguments = [str(Path(options.config).absolute()), *overrides]
    run_dir = resolved_run_dir(arguments)
    folders = local_folders(load_settings(options.config, overrides)) if wanted.container else []
    logs = (options.logs or run_dir / "submitit").absolute()
    local_rank = Rank(argv=tuple(arguments), master_port=free_port())

    if options.dry_run:
        if options.cluster == "slurm":
            print(batch_file(logs, run_dir, wanted, overrides, folders))
        else:
            ranks = wanted.ranks_per_node if options.cluster == "local" else 1
            print(f"{ranks} ranks on this machine of: python -m pipeline.pretrain {shlex.join(arguments)}")
        return 0
    if options.cluster == "debug":
        print("one rank, in this process")
        submitit.DebugExecutor(logs / "%j").submit(local_rank).result()
        return 0
    if options.cluster == "slurm":
        job = submit_slurm(Path(options.config), overrides, logs, run_dir, wanted, folders)
    else:
        job = submit_local(local_rank, logs, wanted)
    print(f"job {job.job_id}, logs in {job.paths.folder}", flush=True)
    return verdict(job, run_dir, local=options.cluster == "local") if options.wait else 0


if __name__ == "__main__":
    run_command(main)
