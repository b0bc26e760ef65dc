"""What a run will need, said before a GPU is touched: memory, data, time, disk. Starts nothing and writes nothing."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from pipeline.checkpoint_plan import CheckpointPlan, plan_checkpoints
from pipeline.config import cross_scale_config, micro_batches, model_config
from pipeline.dry_batch import largest_micro_batch
from pipeline.errors import ConfigError
from pipeline.memory_plan import (
    EngineKind,
    Gpu,
    ModelStates,
    checkpoint_bytes,
    find_gpu,
    kind_of,
    kinds,
    model_states,
)
from pipeline.settings import EngineSettings, Settings
from pipeline.stream.mixture_config import MixtureMember
from pipeline.stream.shares import Shares
from sharding.manifest import Manifest


@dataclass(frozen=True, kw_only=True)
class ModelPlan:
    """What is trained."""

    parameters: int
    flops_per_sample: int
    """Of forward and backward pass, as MFU counts them."""
    flops_per_step: int
    """Of all ranks."""
    modalities: tuple[str, ...]
    patches: int
    """Of each modality."""
    visible: int
    """Of each modality; the mean where the numbers vary."""


@dataclass(frozen=True, kw_only=True)
class MemoryRow:
    """One engine's bytes on each rank."""

    engine: str
    is_own: bool
    """Whether it is the run's own engine."""
    states: ModelStates
    needed: int | None
    """At the most; None where the activations are not known."""
    fits: bool | None
    """Into what is planned with of the GPU; None without a GPU."""
    largest_micro_batch: int | None
    """That divides a rank's samples and fits; 0: none does."""


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Bytes on each rank."""

    micro_batch: int
    accumulation: int
    activations: int | None
    """What autograd keeps of a micro-batch, and its images."""
    unknown: str
    """Why the activations are not known."""
    gpu: Gpu | None
    rows: tuple[MemoryRow, ...]


@dataclass(frozen=True, kw_only=True)
class DataSetPlan:
    """One data set of the run."""

    name: str
    split: str
    samples: int
    shards: int
    epoch_bytes: int
    """Of the shards, as far as they hold the split's samples."""
    share: float
    """Of all samples of the run."""
    steps_per_epoch: float
    epochs: float
    """Of the whole run."""


@dataclass(frozen=True, kw_only=True)
class TimePlan:
    """Hours at the assumed utilisation, saves left out."""

    mfu: float
    step_s: float
    samples_per_s: float
    read_bytes_per_s: float
    hours: float
    gpu_hours: float


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All of it."""

    world_size: int
    steps: int
    global_batch: int
    run_dir: str
    model: ModelPlan
    memory: MemoryPlan
    data: tuple[DataSetPlan, ...]
    time: TimePlan | None
    checkpoints: CheckpointPlan

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as JSON wants them."""
        return asdict(self)


def plan_run(settings: Settings, world_size: int, gpu_name: str, mfu: float, write_gbps: float) -> Plan:
    """The plan of a run on `world_size` ranks; without a `gpu_name` no time is told and nothing said to fit.

    ConfigError for what cannot work: model states larger than the GPU, checkpoints larger than the free disk, a data
    set without the model's bands. What a start refuses is `pipeline.pretrain.check_launch`'s.
    """
    if not 0 < mfu <= 1:
        raise ConfigError(f"--mfu {mfu:g} is a share of the GPU's peak: above 0 and at most 1; write 0.3")
    if write_gbps <= 0:
        raise ConfigError(f"--write-gbps {write_gbps:g} must be above 0; write 1")
    gpu = find_gpu(gpu_name) if gpu_name else None
    model = _plan_model(settings)
    memory = _plan_memory(settings, model.parameters, world_size, gpu)
    data, sample_bytes = _plan_data(settings)
    time = None if gpu is None else _plan_time(settings, model, sample_bytes, world_size, gpu, mfu)
    return Plan(
        world_size=world_size,
        steps=settings.train.steps,
        global_batch=settings.train.global_batch,
        run_dir=settings.run.dir,
        model=model,
        memory=memory,
        data=data,
        time=time,
        checkpoints=plan_checkpoints(
            settings,
            checkpoint_bytes(kind_of(settings.engine), model.parameters, world_size),
            None if time is None else time.step_s,
            write_gbps,
        ),
    )


def _plan_model(settings: Settings) -> ModelPlan:
    import torch

    from fusmae import CrossScaleFusMAE, FusMAE

    config, cross_scale = model_config(settings), cross_scale_config(settings)
    with torch.device("meta"):
        model = FusMAE(config) if cross_scale is None else CrossScaleFusMAE(config, cross_scale)
    return ModelPlan(
        parameters=sum(p.numel() for p in model.parameters()),
        flops_per_sample=model.train_flops(),
        flops_per_step=model.train_flops() * settings.train.global_batch,
        modalities=config.modality_names,
        patches=config.num_patches,
        visible=config.num_visible,
    )


def _plan_memory(settings: Settings, parameters: int, world_size: int, gpu: Gpu | None) -> MemoryPlan:
    own_samples = settings.train.global_batch // world_size
    accumulation = micro_batches(settings, world_size)
    activations = cache(_activations(settings))
    known, unknown = None, ""
    try:
        known = activations(own_samples // accumulation)
    except ValueError as error:  # fusmae's word for numbers of patches that vary
        unknown = str(error)

    def needed(kind: EngineKind, number: int) -> int:
        states = model_states(kind, parameters, world_size, number)
        return max(states.held + activations(own_samples // number), states.most)

    def row(kind: EngineKind) -> MemoryRow:
        most = needed(kind, accumulation) if known is not None else None
        fits = largest = None
        if gpu is not None and most is not None:
            fits = most <= gpu.usable_bytes
            usable = gpu.usable_bytes
            largest = largest_micro_batch(own_samples, lambda size: needed(kind, own_samples // size) <= usable)
        return MemoryRow(
            engine=kind.title,
            is_own=kind == kind_of(settings.engine),
            states=model_states(kind, parameters, world_size, accumulation),
            needed=most,
            fits=fits,
            largest_micro_batch=largest,
        )

    if gpu is not None:
        _refuse_large_states(settings.engine, parameters, world_size, accumulation, gpu)
    return MemoryPlan(
        micro_batch=own_samples // accumulation,
        accumulation=accumulation,
        activations=known,
        unknown=unknown,
        gpu=gpu,
        rows=tuple(row(kind) for kind in kinds(settings.engine)),
    )


def _activations(settings: Settings) -> Callable[[int], int]:
    """Bytes that a micro-batch of a size keeps, its float32 images included; ValueError where they vary."""
    import torch

    from fusmae.memory import activation_bytes

    config, cross_scale = model_config(settings), cross_scale_config(settings)
    dtype = torch.bfloat16 if settings.engine.precision == "bf16" else torch.float32
    image_bytes: int = 4 * sum(len(modality.bands) for modality in config.modalities) * config.image_size**2

    def count(micro_batch: int) -> int:
        return activation_bytes(config, micro_batch, dtype, cross_scale=cross_scale) + micro_batch * image_bytes

    return count


def _refuse_large_states(engine: EngineSettings, parameters: int, world_size: int, accumulation: int, gpu: Gpu) -> None:
    def most(kind: EngineKind) -> int:
        return model_states(kind, parameters, world_size, accumulation).most

    own = kind_of(engine)
    if most(own) <= gpu.memory_bytes:
        return
    smaller = next((kind for kind in kinds(engine)[1:] if most(kind) <= gpu.usable_bytes), None)
    advice = "take more ranks with engine.zero_stage=3, or a larger GPU"
    if smaller is not None:
        advice = f"write engine.name=deepspeed engine.zero_stage={smaller.zero_stage}, or take a larger GPU"
    raise ConfigError(
        f"the model states of {own.title} take {most(own) / 2**30:.1f} GiB on each of {world_size} ranks without any "
        f"activations, and {gpu.name} has {gpu.memory_bytes / 2**30:.1f} GiB; {advice}"
    )


def _plan_data(settings: Settings) -> tuple[tuple[DataSetPlan, ...], float]:
    """The data sets, and the mean bytes of a sample of the run."""
    from pipeline.stream.exact import read_image_manifest

    data, train = settings.data, settings.train
    members = data.mixture or (MixtureMember(url=data.url, split=data.split),)
    manifests = {member.title: read_image_manifest(member.url) for member in members}
    _check_bands(settings, manifests)
    splits = [manifests[member.title].shards_of(member.split) for member in members]
    sizes = [sum(shard.samples for shard in shards) for shards in splits]
    weights = [member.weight for member in members if member.weight is not None]
    shares = Shares.of_weights(weights) if weights else Shares.of_sizes(sizes, data.temperature)
    plans, mean_bytes = [], 0.0
    for member, shards, size, share in zip(members, splits, sizes, shares.fractions, strict=True):
        sample_bytes = manifests[member.title].sample_bytes(member.split)
        mean_bytes += share * sample_bytes
        plans.append(
            DataSetPlan(
                name=member.title,
                split=member.split,
                samples=size,
                shards=len(shards),
                epoch_bytes=round(sample_bytes * size),
                share=share,
                steps_per_epoch=size / (train.global_batch * share),
                epochs=train.steps * train.global_batch * share / size,
            )
        )
    return tuple(plans), mean_bytes


def _check_bands(settings: Settings, manifests: dict[str, Manifest]) -> None:
    """ConfigError, as the ranks would raise it, when the data cannot give the model's images."""
    from pipeline.transform import ImageTransform, MixtureTransform

    config = model_config(settings)
    modalities = [(modality.name, modality.bands) for modality in config.modalities]
    if settings.data.mixture:
        MixtureTransform(manifests, modalities, config.image_size)
    else:
        (manifest,) = manifests.values()
        ImageTransform(manifest, modalities, config.image_size)


def _plan_time(
    settings: Settings, model: ModelPlan, sample_bytes: float, world_size: int, gpu: Gpu, mfu: float
) -> TimePlan:
    step_s = model.flops_per_step / (mfu * gpu.peak_flops * world_size)
    hours = settings.train.steps * step_s / 3600
    samples_per_s = settings.train.global_batch / step_s
    return TimePlan(
        mfu=mfu,
        step_s=step_s,
        samples_per_s=samples_per_s,
        read_bytes_per_s=samples_per_s * sample_bytes,
        hours=hours,
        gpu_hours=hours * world_size,
    )
