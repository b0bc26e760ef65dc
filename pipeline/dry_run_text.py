"""The plan of a run as text for a terminal."""

from pipeline.dry_run import MemoryPlan, MemoryRow, Plan
from pipeline.memory_plan import KEPT_FREE


def describe(plan: Plan) -> str:
    """Lines for people; GB are 10^9 bytes, GiB 2^30."""
    return "\n".join([*_model(plan), *_data(plan), *_memory(plan), *_time(plan), *_checkpoints(plan)])


def _model(plan: Plan) -> list[str]:
    model = plan.model
    names = " and ".join(model.modalities)
    return [
        f"model        {model.parameters / 1e6:,.2f} M parameters; of {model.patches} patches of each of {names} "
        f"{model.visible} are visible",
        f"             {model.flops_per_sample / 1e9:,.1f} GFLOP a sample forward and backward, "
        f"{model.flops_per_step / 1e12:,.1f} TFLOP a step of {plan.global_batch} samples",
    ]


def _data(plan: Plan) -> list[str]:
    lines = []
    for part in plan.data:
        share = f", {part.share:.1%} of the samples" if len(plan.data) > 1 else ""
        shards = "shard" if part.shards == 1 else "shards"
        lines.append(
            f"{part.name}, split {part.split}: {part.samples:,} samples in {part.shards:,} {shards}, "
            f"{_gb(part.epoch_bytes)} an epoch{share}"
        )
        lines.append(f"  {part.steps_per_epoch:,.1f} steps an epoch, {part.epochs:,.1f} epochs in {plan.steps:,} steps")
    return _block("data", lines)


def _memory(plan: Plan) -> list[str]:
    memory, gpu = plan.memory, plan.memory.gpu
    samples = f"{memory.micro_batch} samples at once"
    if memory.accumulation > 1:
        samples += f", {memory.accumulation} times a step"
    lines = [f"GiB on each of {plan.world_size} ranks, {samples}"]
    columns = ["weights", "gradients", "masters", "moments", "buffers", "activations", "needed"]
    head = "  " + f"{'':<8}" + "".join(f"{name:>{len(name) + 2}}" for name in columns)
    lines.append(head + (f"  {'fits':>4}  micro-batch up to" if gpu and not memory.unknown else ""))
    lines += [_row(memory, row, columns) for row in memory.rows]
    lines.append("* the run's own; needed is the most at one time, copies of gradients at the end of a step included")
    if memory.unknown:
        lines.append(f"activations are not known: {memory.unknown}")
    if gpu is None:
        lines.append("--gpu NAME says whether it fits")
    else:
        lines.append(
            f"{gpu.name}: {_gib(gpu.memory_bytes)} GiB, of which {_gib(gpu.usable_bytes)} are planned with "
            f"({KEPT_FREE:.0%} stay free for CUDA, NCCL and temporaries)"
        )
        lines += _advice(memory)
    return _block("memory", lines)


def _row(memory: MemoryPlan, row: MemoryRow, columns: list[str]) -> str:
    states = row.states
    parts = (states.weights, states.gradients, states.masters, states.moments, states.buffers)
    numbers = [*map(_gib, parts), *("?" if n is None else _gib(n) for n in (memory.activations, row.needed))]
    cells = "".join(f"{number:>{len(name) + 2}}" for name, number in zip(columns, numbers, strict=True))
    line = f"{'*' if row.is_own else ' '} {row.engine:<8}{cells}"
    if row.fits is None:
        return line
    return f"{line}  {'yes' if row.fits else 'NO':>4}  {row.largest_micro_batch or 'none':>17}"


def _advice(memory: MemoryPlan) -> list[str]:
    own = next(row for row in memory.rows if row.is_own)
    if own.fits is not False:
        return []
    if own.largest_micro_batch:
        return [f"it does not fit: write train.micro_batch={own.largest_micro_batch}"]
    return ["it does not fit with one sample at once: write model.checkpoint_activations=true, or take a larger GPU"]


def _time(plan: Plan) -> list[str]:
    time, gpu = plan.time, plan.memory.gpu
    if time is None or gpu is None:
        return _block("time", ["not told without --gpu NAME, which gives the speed"])
    return _block(
        "time",
        [
            f"{time.samples_per_s:,.0f} samples/s on {plan.world_size} x {gpu.name} at an assumed MFU of {time.mfu:g}, "
            f"{time.step_s:.3f} s a step, {time.read_bytes_per_s / 1e9:.3f} GB/s to be read",
            f"{time.hours:,.1f} hours, {time.gpu_hours:,.1f} GPU-hours, without saves",
        ],
    )


def _checkpoints(plan: Plan) -> list[str]:
    saves = plan.checkpoints
    share = "" if saves.time_share is None else f", {saves.time_share:.1%} of the time between two saves"
    present = f", {_gb(saves.present_bytes)} of them are there" if saves.present_bytes else ""
    return _block(
        "checkpoints",
        [
            f"{_gb(saves.each_bytes)} each, {saves.saves:,} saves, {saves.kept:,} kept",
            f"{_gb(saves.needed_bytes)} needed with the one being written{present}, at {saves.place}",
            f"{_gb(saves.free_bytes)} free at {saves.local}",
            f"{saves.save_s:.1f} s a save at an assumed {saves.write_gbps:g} GB/s{share}",
        ],
    )


def _block(title: str, lines: list[str]) -> list[str]:
    return [f"{title if number == 0 else '':<12} {line}" for number, line in enumerate(lines)]


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f}"


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:,.2f} GB" if num_bytes >= 1e7 else f"{num_bytes / 1e6:,.2f} MB"
