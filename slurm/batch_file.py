"""The batch file of a run that `slurm.submit` starts: submitit's, with slurm/attempt.sh around the ranks."""

import shlex
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import submitit

from slurm.allocation import Allocation
from slurm.container import Container, container
from slurm.snapshot import CONFIG_NAME, SETUP_NAME

WARNING_S = 120
"""How long before the time limit the ranks are asked to save; SLURM may ask up to a minute earlier."""
WARNING_SHARE = 4
"""The warning takes at most this part of a short limit, else a job would be stopped as it starts."""


class OfflineSlurmExecutor(submitit.SlurmExecutor):
    """Renders a batch file where SLURM is not installed."""

    @classmethod
    def affinity(cls) -> int:
        """As if srun were on PATH."""
        return 2


def warning_s(wanted: Allocation) -> int:
    """How long before the time limit the ranks are asked to save."""
    return min(WARNING_S, wanted.time_min * 60 // WARNING_SHARE)


def slurm_executor(
    logs: Path,
    run_dir: Path,
    wanted: Allocation,
    overrides: list[str],
    *,
    code: Path,
    folders: list[str],
    offline: bool,
) -> submitit.SlurmExecutor:
    """An executor whose batch file records, meets and requeues as slurm/pretrain.sh does.

    submitit's own signal goes to the ranks, not to the batch script: SIGUSR2, which the trainer takes as
    "save and stop". All attempts run the copy of the code in `code`. `folders` are those that a container must see.
    """
    srun_args = ["--kill-on-bad-exit=1"]
    additional: dict[str, Any] = {"requeue" if wanted.chain == "requeue" else "no-requeue": True, **wanted.options}
    parameters: dict[str, Any] = {}
    if wanted.gpus_per_node:
        parameters["gpus_per_node"] = wanted.gpus_per_node
    if wanted.cpus_per_rank:
        parameters["cpus_per_task"] = wanted.cpus_per_rank
        srun_args.append(f"--cpus-per-task={wanted.cpus_per_rank}")  # a step does not always inherit it
    python: str | None = None
    around: Container | None = None
    size = (str(wanted.ranks_per_node), str(wanted.cpus_per_rank or 1))
    if wanted.container:
        mounts: list[str | Path] = [Path.cwd(), run_dir, logs, code, *folders]
        around = container(wanted.container, mounts, wanted.container_mounts)
        srun_args += around.srun_args()
        python = around.python(code)
    executor = (OfflineSlurmExecutor if offline else submitit.SlurmExecutor)(logs / "%j", python=python)
    executor.update_parameters(
        job_name=wanted.job_name,
        nodes=wanted.nodes,
        ntasks_per_node=wanted.ranks_per_node,
        time=wanted.time_min,
        signal_delay_s=warning_s(wanted),
        srun_args=srun_args,
        additional_parameters=additional,
        setup=[
            *_before(logs, run_dir, wanted, code),
            f"srun_container=({shlex.join(around.srun_args() if around else [])})",
            f"in_rank=({python or shlex.quote(sys.executable)})",
            shlex.join(["preflight", *size, str(code / CONFIG_NAME), *overrides]),
        ],
        teardown=["attempt_end $?"],
        **parameters,
    )
    return executor


def code_folder(run_dir: Path) -> Path:
    """Where the job's copy of the code goes: another folder for each submission."""
    return run_dir / "code" / datetime.now().strftime("submitted-%Y%m%dT%H%M%S")


def batch_file(logs: Path, run_dir: Path, wanted: Allocation, overrides: list[str], folders: list[str]) -> str:
    """The text that sbatch would be given."""
    executor = slurm_executor(
        logs, run_dir, wanted, overrides, code=code_folder(run_dir), folders=folders, offline=True
    )
    return executor._make_submission_file_text(executor._submitit_command_str, uid="")


def _before(logs: Path, run_dir: Path, wanted: Allocation, code: Path) -> list[str]:
    """What the batch file does before srun."""
    root, run = shlex.quote(str(code)), shlex.quote(str(run_dir))
    lines = [f"export {name}={shlex.quote(value)}" for name, value in wanted.environment.items()]
    lines += _how_it_goes_on(logs, wanted)
    if wanted.setup is not None:
        lines += [f"source {root}/slurm/container.sh", f"source_setup {root}/{SETUP_NAME}"]
    return [
        *lines,
        f"export PYTHONPATH={root}${{PYTHONPATH:+:$PYTHONPATH}}",
        "export PYTHONSAFEPATH=1  # python -m would take the code of the folder of submission first",
        f"source {root}/slurm/attempt.sh",
        f"source {root}/slurm/preflight.sh",
        f"attempt_begin {run} {wanted.max_restarts}",
        "trap : TERM  # to outlive srun, and say how the attempt ended",
        *([f"FUSMAE_PREFLIGHT={wanted.preflight}"] if wanted.preflight else []),
    ]


def _how_it_goes_on(logs: Path, wanted: Allocation) -> list[str]:
    """What slurm/chain.sh reads. All jobs of a chain run one file, which submitit keeps under the first."""
    lines = [f"export FUSMAE_CHAIN={wanted.chain}"]
    if wanted.chain == "requeue":
        return lines
    first = "${FUSMAE_CHAIN_ID:-$SLURM_JOB_ID}"
    return [
        *lines,
        f"export FUSMAE_CHAIN_OPTIONS={shlex.quote(wanted.chain_options)}",
        "original_path=${PYTHONPATH:-}",
        f"submitit_logs={shlex.quote(str(logs))}",
        f'job_command=("$submitit_logs/{first}/{first}_submission.sh")',
    ]
