"""Everything that a training loop needs, opened in the right order and resumed from the newest good checkpoint."""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from typing_extensions import override

from pipeline import checkpoint, hang, run_folder, universal
from pipeline.checkpoint.best import retention_of
from pipeline.clock import RunClock, event_maker
from pipeline.collector import Collector
from pipeline.config import cross_scale_config, dump_settings, micro_batches, model_config, with_model
from pipeline.distributed import Ranks, all_agree, choose_device, cpu_group, join, leave
from pipeline.dry_batch import check_dry_batch
from pipeline.engine import Engine, build_engine, import_deepspeed
from pipeline.errors import ConfigError
from pipeline.loss_watch import LossWatch
from pipeline.metrics import RunLog
from pipeline.online_evaluation import OnlineEvaluation
from pipeline.pretrained import start_all_from
from pipeline.progress import Progress
from pipeline.rollback import Rollbacks
from pipeline.run_identity import check_not_moved, check_same_run, describe
from pipeline.settings import Settings
from pipeline.step_profile import StepProfile
from pipeline.stop import StopRequest
from pipeline.stream.exact import ExactStream, Stream, StreamConfig
from pipeline.stream.mixture import MixtureConfig, MixtureStream
from pipeline.trackers import check_trackers, open_trackers
from pipeline.watchdog import Watchdog


@dataclass
class TrainState:
    """All that must survive a kill, beside the engine's weights and each rank's random number generators."""

    step: int
    """Optimiser steps done."""
    stream: dict[str, Any]
    """Position in the data, the same on every rank (`Stream.state_dict`)."""
    skipped: list[dict[str, int]] = field(default_factory=list)
    """Samples that rollbacks left out on the way here (`Rollbacks.before`)."""


@dataclass(kw_only=True)
class Session:
    """One process's share of a run."""

    settings: Settings
    ranks: Ranks
    group: Any
    """CPU-side process group for flags and objects."""
    stream: ExactStream | MixtureStream
    prepare: Callable[[Any], tuple[Any, Any, Any]]
    """A micro-batch to images, valid bands and the samples' random draws, on the device."""
    engine: Engine
    model_options: dict[str, Any]
    """What the model takes beside a micro-batch."""
    accumulation: int
    """Micro-batches of a step."""
    state: TrainState
    """Where to start."""
    watchdog: Watchdog
    clock: RunClock
    losses: LossWatch
    rollbacks: Rollbacks
    collector: Collector
    profile: StepProfile
    log: RunLog
    progress: Progress
    saver: checkpoint.Saver
    model: Any
    """What trains, as it was built."""
    evaluation: OnlineEvaluation
    failed_saves: int = 0
    """Saves in a row that could not be written."""
    begun_save: int = 0
    """Step of the save that was begun last."""

    @property
    def run_dir(self) -> Path:
        """The run's folder."""
        return Path(self.settings.run.dir)


@contextlib.contextmanager
def open_session(settings: Settings, ranks: Ranks, stop: StopRequest) -> Iterator[Session]:
    """Open the run of `settings` on this rank; a collective. Closes everything, in reverse, at the end."""
    with contextlib.ExitStack() as stack:
        check_trackers(settings.log)
        config = model_config(settings)
        settings = with_model(settings, config)
        device = choose_device(settings.engine.device, ranks.local_rank)
        _prepare_torch(settings, device)
        group = join(device, settings.run.timeout_s)
        # After an error the others may be in a collective, and unwinding the group would wait for them.
        stack.push(lambda kind, _error, _trace: None if kind else leave())
        stop.connect(group)
        if ranks.is_first:
            stop.watch(Path(settings.run.dir))
        stack.push(lambda kind, _error, _trace: None if kind else stop.finish())

        run_dir = Path(settings.run.dir)
        changed = run_folder.check_resumable(settings)
        if ranks.is_first:
            stack.callback(run_folder.own(run_dir))
            stack.push(_say_failure(run_dir))
            hang.keep_apart(run_dir)
        all_agree(True, group)  # nobody reads the folder before rank 0 owns it
        roll = hang.call_roll(group)
        checkpoints, kept = _open_checkpoints(settings, ranks, roll), settings.checkpoint
        save_group = cpu_group(settings.run.timeout_s)
        saver = checkpoint.Saver(checkpoints.place, save_group, retention_of(kept, run_dir), kept.background)
        stack.callback(saver.close)
        watchdog = Watchdog(run_dir, ranks.rank, roll, settings.watchdog)
        stack.enter_context(watchdog)
        clock = RunClock(run_dir, ranks.rank, roll.attempt, event_maker(device))
        stack.callback(clock.close)
        opening = contextlib.ExitStack()
        opening.enter_context(clock.part("start"))

        stream = _open_stream(settings, ranks)
        stack.callback(stream.close)
        accumulation = micro_batches(settings, ranks.world_size)
        model, flops = _build_model(config, settings, device)
        prepare = _preparation(settings, config, stream, device)
        if ranks.is_first:
            about = {"world_size": ranks.world_size, "device": _device_name(device)}
            about |= {
                "parameters": sum(p.numel() for p in model.parameters()),
                "train_flops_per_sample": flops,
            }
            if isinstance(stream, MixtureStream):
                about["mixture"] = stream.describe()
            fingerprint = stream.fingerprint if isinstance(stream, MixtureStream) else stream.manifest.fingerprint
            run_folder.record(settings, fingerprint, about)
            checkpoints.write_config(dump_settings(settings))

        rollbacks = Rollbacks(run_dir, checkpoints, settings.guard.rollback, ranks, group)
        found = checkpoint.find(checkpoints.shelf, group, checkpoints.fetched, ranks.local_rank)
        if found is None:
            check_not_moved(changed, checkpoints.shelf.url)
        else:
            checkpoints.place.replaceable = found.rejected_names
            check_same_run(found, describe(settings, stream))
        initial = None
        if found is None and settings.train.init_weights:
            initial = start_all_from(
                getattr(model, "fusmae", model), settings.train.init_weights, ranks.is_first, group
            )
        if settings.engine.compile:
            model.compile(dynamic=False)
        engine = _build_and_load(model, settings, device, accumulation, found, ranks, group, checkpoints.is_shared)
        if ranks.local_rank == 0:
            checkpoints.forget_fetched()
        state = TrainState(step=0, stream=stream.state_dict())
        if found is not None:
            state = TrainState(**found.state)
            stream.load_state_dict(state.stream)
        rollbacks.begin(state.step)

        told = run_folder.flatten(asdict(settings))
        trackers = open_trackers(settings.log, run_dir, state.step, told) if ranks.is_first else []
        log = _StreamLog(stream, run_dir, ranks.rank, state.step, settings.log.trace, trackers)
        stack.callback(log.close)
        progress = Progress(settings, ranks, device, flops, group, log, engine.skipped_steps)
        stack.callback(progress.close)
        _say_start(log, progress, found, state, changed, ranks, _device_name(device))
        if initial is not None:
            log.event("init_weights", 0, file=settings.train.init_weights, **asdict(initial))
        evaluation = OnlineEvaluation(settings, ranks, group, device, state.step)
        check_dry_batch(settings, config, engine, lambda: _build_model(config, settings, device)[0], ranks, group)
        progress.begin(state.step)
        collector = stack.enter_context(Collector(settings.engine.gc_every))
        opening.close()
        yield Session(
            settings=settings,
            ranks=ranks,
            group=group,
            stream=stream,
            prepare=prepare,
            engine=engine,
            model_options=_model_options(settings, ranks),
            accumulation=accumulation,
            state=state,
            watchdog=watchdog,
            clock=clock,
            losses=LossWatch(settings.guard, ranks.world_size, group),
            rollbacks=rollbacks,
            collector=collector,
            profile=StepProfile(run_dir, settings.log.profile_steps if ranks.is_first else 0, state.step),
            log=log,
            progress=progress,
            saver=saver,
            model=model,
            evaluation=evaluation,
        )


def _open_checkpoints(settings: Settings, ranks: Ranks, roll: hang.Roll) -> checkpoint.Checkpoints:
    """The run's checkpoints, with this attempt as the only one that may publish."""
    owner = f"{roll.owners[0]}, {roll.attempt[:19]} UTC"
    own = (ranks.rank - ranks.local_rank, ranks.local_rank == 0)
    found = checkpoint.open_checkpoints(Path(settings.run.dir), settings.checkpoint, roll.attempt, owner, *own)
    if ranks.is_first:
        found.fence.take()
    return found


class _StreamLog(RunLog):
    """Says at each logged step what became of the data: epochs of a mixture's sets, damaged samples of this rank."""

    def __init__(self, stream: ExactStream | MixtureStream, *run: Any) -> None:
        super().__init__(*run)
        self._stream = stream
        self._replaced = 0

    @override
    def metrics(self, line: dict[str, Any]) -> None:
        if isinstance(self._stream, MixtureStream):
            line = line | {f"epoch/{name}": passed for name, passed in self._stream.epochs.items()}
        if isinstance(self._stream, Stream | MixtureStream):
            found = self._stream.instruments()
            if found.replaced > self._replaced:
                self._replaced = found.replaced
                self.event("samples_replaced", step=line["step"], total=found.replaced)
        super().metrics(line)


def _say_failure(run_dir: Path) -> Callable[..., bool]:
    """On leaving with an error, leave word in the run folder whether another try is worthwhile."""

    def leave_word(_kind: Any, error: BaseException | None, _trace: Any) -> bool:
        if error is not None:
            run_folder.say_outcome(run_dir, "fatal" if isinstance(error, ConfigError) else "failed", None)
        return False

    return leave_word


def _prepare_torch(settings: Settings, device: Any) -> None:
    import torch

    if settings.run.threads:
        torch.set_num_threads(settings.run.threads)
    torch.manual_seed(settings.train.seed)
    if settings.engine.deterministic:
        # Not "warn only": torch's attention backward takes its deterministic path only when others are refused.
        if settings.engine.compile:
            torch.use_deterministic_algorithms(True)
        else:  # the same, but for torch's compiler, whose import takes a second
            torch.set_deterministic_debug_mode("error")
        # We read no uninitialised memory, and filling it costs each tensor.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = False


def _open_stream(settings: Settings, ranks: Ranks) -> ExactStream | MixtureStream:
    data = settings.data
    reading: dict[str, Any] = dict(
        global_batch=settings.train.global_batch,
        seed=settings.train.seed,
        slots=data.prefetch,
        window_gib=data.window_gib,
        groups=data.groups,
        on_corrupt=data.on_corrupt,
        **data.reading(),
    )
    if data.mixture:
        mixture = MixtureConfig(datasets=data.mixture, temperature=data.temperature, **reading)
        return MixtureStream(mixture, ranks.rank, ranks.world_size)
    config = StreamConfig(url=data.url, split=data.split, **reading)
    if data.reader == "webdataset":
        from pipeline.stream.webdataset_reader import WebDatasetStream

        return WebDatasetStream(config, ranks.rank, ranks.world_size)
    return Stream(config, ranks.rank, ranks.world_size)


def _build_model(config: Any, settings: Settings, device: Any) -> tuple[Any, int]:
    import torch

    from fusmae import CrossScaleFusMAE, FusMAE

    torch.manual_seed(settings.train.seed)
    cross_scale = cross_scale_config(settings)
    model = FusMAE(config) if cross_scale is None else CrossScaleFusMAE(config, cross_scale)
    return model.to(device), model.train_flops()


def _model_options(settings: Settings, ranks: Ranks) -> dict[str, Any]:
    """Of a cross-scale model: its contrastive loss sees the samples of all ranks."""
    if cross_scale_config(settings) is None or ranks.world_size == 1:
        return {}
    from pipeline.gather import gather_ranks

    return {"gather": gather_ranks, "rank": ranks.rank}


def _preparation(
    settings: Settings, config: Any, stream: ExactStream | MixtureStream, device: Any
) -> Callable[[Any], tuple[Any, Any, Any]]:
    from fusmae.random import CounterRandom
    from pipeline.transform import ImageTransform, MixtureTransform

    modalities = [(modality.name, modality.bands) for modality in config.modalities]
    options: dict[str, Any] = {"flips": settings.data.flips, "upsample": settings.data.upsample}
    transform: Callable[[Any, Any], tuple[Any, Any]]
    if isinstance(stream, MixtureStream):
        transform = MixtureTransform(stream.manifests, modalities, config.image_size, **options)
    else:
        transform = ImageTransform(stream.manifest, modalities, config.image_size, **options)

    def prepare(batch: Any) -> tuple[Any, Any, Any]:
        moved = batch.to(device, non_blocking=True)
        draws = CounterRandom(settings.train.seed, batch.epoch, batch.position).to(device, non_blocking=True)
        images, valid = transform(moved, draws)
        return images, valid, draws

    return prepare


def _build_and_load(
    model: Any,
    settings: Settings,
    device: Any,
    accumulation: int,
    found: checkpoint.Found | None,
    ranks: Ranks,
    group: Any,
    is_shared: bool,
) -> Engine:
    is_deepspeed = settings.engine.name == "deepspeed"
    if is_deepspeed:
        import_deepspeed(device)
    if found is None:
        return build_engine(model, settings, device, accumulation, universal=False)
    if not is_deepspeed or found.world_size == ranks.world_size:
        engine = build_engine(model, settings, device, accumulation, universal=False)
        checkpoint.load(found, engine)
        all_agree(True, group)
        return engine
    converts = ranks.is_first if is_shared else ranks.local_rank == 0
    if converts:
        universal.convert(found)
    all_agree(True, group)
    engine = build_engine(model, settings, device, accumulation, universal=True)
    checkpoint.load(universal.converted(found), engine)
    all_agree(True, group)
    if converts:
        universal.forget(found)
    return engine


def _device_name(device: Any) -> str:
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _say_start(
    log: RunLog,
    progress: Progress,
    found: checkpoint.Found | None,
    state: TrainState,
    changed: list[str],
    ranks: Ranks,
    device_name: str,
) -> None:
    if found is None:
        log.event("start", 0, world_size=ranks.world_size)
        progress.say(f"start of a new run on {ranks.world_size} x {device_name}")
        return
    for problem in found.rejected:
        progress.say(f"warning: checkpoint passed over: {problem}")
    if changed:
        progress.say(f"settings changed since the run began: {', '.join(changed)}")
    if "train.init_weights" in changed:
        progress.say("warning: the run goes on from its checkpoint; train.init_weights is read at the start only")
    details = {"rejected": list(found.rejected), "changed": changed}
    log.event("resume", state.step, from_step=state.step, world_size=ranks.world_size, **details)
    progress.say(
        f"resumed at step {state.step} from {found.title} on {ranks.world_size} x {device_name}"
        + (f", saved by {found.world_size} ranks" if found.world_size != ranks.world_size else "")
    )
