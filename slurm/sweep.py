"""Several runs that differ in some settings, as one job array or beside each other on this machine."""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from pipeline.command import run_command
from pipeline.errors import ConfigError
from slurm import snapshot
from slurm.allocation import Allocation, add_options, allocation
from slurm.batch_file import warning_s
from slurm.sweep_elements import Element, check, elements, read_index, read_words, write_index
from slurm.sweep_local import run_beside_each_other
from slurm.sweep_status import as_json, describe, is_active, is_over, read_rows

_EPILOG = """\
  python -m slurm.sweep configs/demo.yaml data.url=... --runs runs/lr --set optim.lr=1e-4,3e-4 --set train.seed=0,1 ...
  python -m slurm.sweep sweep.yaml --runs runs/ablation --site my-site.yaml --parallel 4
  python -m slurm.sweep status runs/lr [--json]

Each run is RUNS/NAME, saved, requeued and resumed by itself. The same command again starts those that are neither over
nor in the queue. SWEEP.yaml: {configs: [a.yaml, ...], overrides: [key=value, ...], set: {key: [a, b]}, runs: {NAME:
[key=value, ...]}}."""


def build_parser() -> argparse.ArgumentParser:
    """The command line, but for `status`."""
    parser = argparse.ArgumentParser(
        prog="python -m slurm.sweep",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("words", metavar="SWEEP.yaml | CONFIG.yaml | key=value", nargs="+", help="what runs; settings of all of them")
    add("--set", dest="sets", action="append", default=[], metavar="key=a,b,c", help="one run of each value")
    add("--runs", type=Path, required=True, metavar="RUNS", help="folder of the run folders")
    add("--parallel", type=int, metavar="N", help="runs at a time (default: slurm all, local 1)")
    add("--cluster", choices=("slurm", "local"), default="slurm", help="slurm (default); local: on this machine")
    add_options(parser)
    add("--dry-run", action="store_true", help="print the runs and the command, write nothing")
    return parser


def status(argv: list[str]) -> int:
    """Where the runs stand."""
    parser = argparse.ArgumentParser(prog="python -m slurm.sweep status", description="Where each run stands.")
    parser.add_argument("runs", type=Path, metavar="RUNS", help="--runs of the sweep")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(argv)
    rows = read_rows(arguments.runs)
    print(as_json(rows) if arguments.json else describe(rows))
    return 0


def array_command(wanted: Allocation, script: Path, work: Path, count: int, parallel: int | None) -> list[str]:
    """The call of sbatch for `count` elements, whose arguments lie in `work` (slurm/pretrain.sh --elements)."""
    limit = f"%{parallel}" if parallel else ""
    words = ["sbatch", "--parsable", f"--array=0-{count - 1}{limit}", f"--job-name={wanted.job_name}"]
    words += [f"--nodes={wanted.nodes}", f"--ntasks-per-node={wanted.ranks_per_node}", f"--time={wanted.time_min}"]
    if wanted.gpus_per_node:
        words.append(f"--gpus-per-node={wanted.gpus_per_node}")
    if wanted.cpus_per_rank:
        words.append(f"--cpus-per-task={wanted.cpus_per_rank}")
    words += [f"--{name}={value}" for name, value in wanted.options.items()]
    words += ["--requeue" if wanted.chain == "requeue" else "--no-requeue", f"--signal=B:USR1@{warning_s(wanted)}"]
    return [*words, "--export=ALL", f"--output={work}/%a.log", str(script), "--elements", str(work)]


def job_environment(wanted: Allocation, work: Path) -> dict[str, str]:
    """What slurm/pretrain.sh reads of the environment."""
    given = {
        "FUSMAE_PYTHON": "" if wanted.container else sys.executable,
        "FUSMAE_CHAIN": wanted.chain,
        "FUSMAE_CHAIN_OPTIONS": wanted.chain_options,
        "FUSMAE_MAX_RESTARTS": str(wanted.max_restarts),
        "FUSMAE_PREFLIGHT": wanted.preflight or os.environ.get("FUSMAE_PREFLIGHT", ""),
        "FUSMAE_SETUP": str(work / "code" / snapshot.SETUP_NAME) if wanted.setup else "",
        "FUSMAE_CONTAINER": wanted.container,
        "FUSMAE_CONTAINER_MOUNTS": wanted.container_mounts,
    }
    return os.environ | wanted.environment | given


def prepare(work: Path, chosen: list[Element], runs: Path, wanted: Allocation) -> Path:
    """Write code, settings and arguments of the elements into `work`; the script that runs them."""
    snapshot.take(work / "code", Path(chosen[0].config), wanted.setup)
    for number, element in enumerate(chosen):
        config = shutil.copyfile(element.config, work / f"{number}.yaml")
        words = [str(config), *wanted.settings, *element.overrides, f"run.dir={runs / element.name}"]
        if any("\n" in word for word in words):
            raise ConfigError(f"{element.name}: a setting of a sweep must not have more than one line")
        (work / f"{number}.args").write_text("\n".join(words) + "\n")
    return work / "code" / "slurm" / "pretrain.sh"


def submit(command: list[str], environment: dict[str, str]) -> str:
    """The number of the job array.

    Raises:
        ConfigError: there is no sbatch, or it refuses.
    """
    if shutil.which("sbatch") is None:
        raise ConfigError("sbatch not found; submit from a login node, or give --cluster local")
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if said.returncode != 0:
        raise ConfigError(f"sbatch refused the job array: {' '.join(said.stderr.split())}")
    return said.stdout.strip().split(";")[0]


def main(argv: list[str] | None = None) -> int:
    """Start the runs that are not over, or say where they stand."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments[:1] == ["status"]:
        return status(arguments[1:])
    options = build_parser().parse_intermixed_args(arguments)
    if options.parallel is not None and options.parallel < 1:
        raise ConfigError(f"--parallel is {options.parallel}; give at least 1")
    if options.cluster == "local" and options.gpus_per_node is None and options.site is None:
        options.gpus_per_node = 0  # how many ranks a run has here, run.num_processes says
    runs = options.runs.absolute()
    wanted = allocation(options, f"fusmae-{runs.name}")
    jobs = {element.name: element.job for element in read_index(runs)}
    named = elements(read_words(options.words, options.sets))
    found = [replace(element, job=jobs.get(element.name, "")) for element in named]
    for element in found:
        check(element, runs)
    over = [element for element in found if is_over(element, runs)]
    active = [element for element in found if element not in over and is_active(element, runs)]
    chosen = [element for element in found if element not in over and element not in active]
    work = runs / ".sweep" / datetime.now().strftime("%Y%m%dT%H%M%S")
    script = work / "code" / "slurm" / "pretrain.sh"
    print(f"{len(found)} runs: {len(over)} over, {len(active)} in the queue, {len(chosen)} to start", flush=True)
    if not chosen:
        return 0
    command = array_command(wanted, script, work, len(chosen), options.parallel)
    if options.dry_run:
        print(*(f"{element.name}: {shlex.join(element.overrides)}" for element in chosen), sep="\n")
        if options.cluster == "slurm":
            print(shlex.join(command))
        return 0
    prepare(work, chosen, runs, wanted)
    write_index(runs, found)
    environment = job_environment(wanted, work)
    if options.cluster == "local":
        return run_beside_each_other(script, work, [element.name for element in chosen], options.parallel, environment)
    array = submit(command, environment)
    write_index(runs, [replace(element, job=f"{array}_{number}") for number, element in enumerate(chosen)])
    print(f"job array {array}, logs in {work}; python -m slurm.sweep status {runs}")
    return 0


if __name__ == "__main__":
    run_command(main)
