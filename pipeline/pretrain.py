"""python -m pipeline.pretrain CONFIG.yaml [key.sub=value ...]: pretrain Fus-MAE; the same command again resumes."""

import argparse
import json
import os
import sys
import traceback
from dataclasses import replace

from pipeline.command import end_process, exit_code, run_rank_command
from pipeline.config import load_settings, lookup, micro_batches, model_config, with_model
from pipeline.distributed import Ranks, ranks_from, say_lost_ranks
from pipeline.errors import ConfigError
from pipeline.launch import count_processes, follow_launcher, start_ranks
from pipeline.run_folder import check_resumable
from pipeline.settings import Settings
from pipeline.stop import StopRequest
from pipeline.trackers import check_trackers

_EPILOG = """\
keys: see configs/*.yaml; a key given here wins over the file. Examples:
  python -m pipeline.pretrain configs/demo.yaml data.url=dataset run.dir=run
  torchrun --nproc-per-node 4 -m pipeline.pretrain configs/fusmae_xae_vitb.yaml data.url=s3://bucket/ben run.dir=run

Ctrl-C, SIGTERM and SIGUSR2 save and stop at the end of the step; a second Ctrl-C ends at once. Whatever ended a run,
the same command goes on from its newest checkpoint. Exit code: 0 done or stopped as asked, 1 failed or interrupted,
2 wrong usage.

--dry-run says what the run will need: memory on each GPU by engine, data, time, disk. It starts nothing, makes no
folder, and refuses what cannot work."""


def main(argv: list[str] | None = None) -> int:
    """Train, as the launcher of this machine's ranks or as one of them."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.pretrain",
        description="Pretrain Fus-MAE on a data set made by sharding.build. The same command again resumes.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", metavar="CONFIG.yaml", help="settings of the run")
    parser.add_argument("overrides", metavar="key.sub=value", nargs="*", help="settings that win over the file's")
    parser.add_argument("--print", dest="key", metavar="KEY", help="print one resolved setting and exit")
    planning = parser.add_argument_group("before a run")
    planning.add_argument("--dry-run", action="store_true", help="say what the run will need and exit")
    planning.add_argument(
        "--ranks", type=int, metavar="W", help="GPUs of the job (default: as a start here would take)"
    )
    planning.add_argument(
        "--gpu", default="", metavar="NAME", help="kind of the GPUs, such as H100: does it fit, how long"
    )
    planning.add_argument("--mfu", type=float, default=0.3, help="share of the GPU's peak assumed (default: 0.3)")
    planning.add_argument(
        "--write-gbps", type=float, default=1.0, metavar="GB/S", help="write speed assumed for saves (default: 1.0)"
    )
    planning.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_intermixed_args(argv)
    settings = load_settings(arguments.config, arguments.overrides)
    if arguments.key:
        print(lookup(settings, arguments.key))
        return 0
    if arguments.dry_run:
        return _dry_run(settings, arguments)
    ranks = ranks_from(os.environ)
    if ranks is None:
        return _launch(settings, [arguments.config, *arguments.overrides])
    follow_launcher()
    return _run_rank(settings, ranks)


def check_launch(settings: Settings, num_ranks: int | None) -> int:
    """Refuse what cannot work, before a process is started or a folder made; the ranks, counted here if not given.

    Raises ConfigError, or DataError where there is no data.
    """
    from pipeline.stream.order import check_world_size
    from sharding.dataset import read_manifest

    check_resumable(with_model(settings, model_config(settings)))
    check_trackers(settings.log)
    for member in settings.data.mixture or (settings.data,):
        read_manifest(member.url).shards_of(member.split)
    world_size = count_processes(settings.run.num_processes, settings.engine.device) if num_ranks is None else num_ranks
    check_world_size(settings.train.global_batch, 0, world_size)
    micro_batches(settings, world_size)
    return world_size


def _dry_run(settings: Settings, arguments: argparse.Namespace) -> int:
    if arguments.ranks is not None and arguments.ranks < 1:
        raise ConfigError(f"--ranks {arguments.ranks} must be at least 1; write the number of GPUs of the job")
    world_size = check_launch(settings, arguments.ranks)
    from pipeline.dry_run import plan_run
    from pipeline.dry_run_text import describe

    plan = plan_run(settings, world_size, arguments.gpu, arguments.mfu, arguments.write_gbps)
    print(json.dumps(plan.as_dict(), indent=1) if arguments.json else describe(plan))
    return 0


def _launch(settings: Settings, arguments: list[str]) -> int:
    num_processes = check_launch(settings, None)
    threads = settings.run.threads or max(1, len(os.sched_getaffinity(0)) // num_processes)
    overrides = [f"run.num_processes={num_processes}", f"run.threads={threads}"]
    return start_ranks("pipeline.pretrain", arguments + overrides, num_processes)


def _run_rank(settings: Settings, ranks: Ranks) -> int:
    """Train as one rank; does not return after an error (`end_process`)."""
    try:
        code = exit_code(lambda _: _train(settings, ranks))
    except Exception:
        traceback.print_exc()
        code = 1
    if code:
        end_process(code)
    return code


def _train(settings: Settings, ranks: Ranks) -> int:
    stop = StopRequest()
    stop.listen()
    if not settings.run.threads:
        # SLURM gives each task its own cores; without it, the ranks of a machine share them.
        sharing = 1 if "SLURM_PROCID" in os.environ else int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        threads = max(1, len(os.sched_getaffinity(0)) // sharing)
        settings = replace(settings, run=replace(settings.run, threads=threads))
    import torch

    from pipeline.loop import train

    try:
        with say_lost_ranks(ranks.rank):
            outcome = train(settings, ranks, stop)
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"rank {ranks.rank} has too little memory for the model and its optimiser ({str(error).splitlines()[0]}); "
            "python -m pipeline.pretrain CONFIG --dry-run --gpu NAME says which engine.zero_stage fits"
        ) from error
    if outcome == "interrupted":
        if ranks.is_first:
            print("error: interrupted; the run is saved, the same command goes on", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    run_rank_command(main)
