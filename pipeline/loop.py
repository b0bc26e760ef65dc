"""The training loop. It reads from top to bottom."""

import time
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import Any

from pipeline.checkpoint import Saved
from pipeline.distributed import Ranks
from pipeline.errors import DataError, StorageError
from pipeline.hang import Phase
from pipeline.loss_watch import Finding
from pipeline.online_evaluation import pictures_path, say_probe
from pipeline.optimiser import learning_rate
from pipeline.out_of_memory import told
from pipeline.run_folder import say_outcome
from pipeline.run_identity import describe
from pipeline.session import Session, TrainState, open_session
from pipeline.settings import Settings
from pipeline.stop import Reason, StopRequest
from pipeline.stream.exact import Stream
from pipeline.stream.mixture import MixtureStream

_OUTCOMES = {Reason.SIGNAL: "saved", Reason.STOP_FILE: "stopped", Reason.INTERRUPT: "interrupted"}
MAX_FAILED_SAVES = 3
"""Saves in a row that could not be written at which the run stops; those before are told, and the run goes on."""
MAX_SKIPPED = 3
"""Steps skipped for a non-finite gradient, since a log line without any, at which the run stops."""


def train(settings: Settings, ranks: Ranks, stop: StopRequest) -> str:
    """Train as `settings` say, from the newest good checkpoint in `run.dir` if there is one.

    Returns the outcome, the same on every rank: `done`, `saved` after a stop signal, `stopped` after the file STOP, or
    `interrupted` after Ctrl-C.
    """
    with open_session(settings, ranks, stop) as session, _memory_told(session):
        num_steps, every = settings.train.steps, settings.checkpoint.every
        state, reason, is_stopping = session.state, None, False
        batches, clock = session.rollbacks.batches(session.stream, state.step), session.clock
        _write_time(session, state.step)
        if session.evaluation.is_owed:
            _evaluate(session, state.step)  # of the start, as the watchdog sees it
        while state.step < num_steps and not is_stopping:
            session.profile.begin(state.step + 1)
            session.watchdog.enter(Phase.DATA, state.step + 1)
            waited = time.perf_counter()
            with clock.part("data"):
                batch = next(batches)
            session.progress.count(time.perf_counter() - waited)

            lr = learning_rate(state.step, num_steps, settings.optim)
            parts, outputs = batch.split(session.accumulation), []
            for number, part in enumerate(parts, start=1):
                session.watchdog.enter(Phase.STEP, state.step + 1)
                with clock.part("prepare"):
                    images, valid, draws = session.prepare(part)
                with clock.part("forward"):
                    output = session.engine(images, draws, valid, **session.model_options)
                with clock.part("backward"):
                    session.engine.backward(output.loss, is_last=number == session.accumulation)
                outputs.append(_without_graph(output))
            with clock.part("optimiser"):
                session.engine.step(lr)
            skipped = session.rollbacks.before(state.step + 1)
            state = TrainState(step=state.step + 1, stream=session.stream.state_dict(), skipped=skipped)
            session.progress.done(state.step)
            session.losses.note(state.step, [part.keys for part in parts], [output.loss for output in outputs])

            is_logged = state.step % settings.log.every == 0 or state.step == num_steps
            undone = None
            with clock.part("log"):
                _tell_probe(session, *session.evaluation.poll())
                if (profile := session.profile.end(state.step)) is not None:
                    session.progress.say(f"profile: {profile}")
                session.log.trace_step(state.step, batch, outputs)
                if is_logged:
                    undone = _report(session, state.step, outputs, lr)
            with clock.part("agree"):
                reason = stop.agreed()
            is_stopping = reason is not None and reason.stops
            if undone is not None:  # a checkpoint: there is nothing to save
                state = TrainState(**undone)
                batches = session.rollbacks.batches(session.stream, state.step)
            elif state.step % every == 0 or state.step == num_steps or reason:
                with clock.part("checkpoint"):
                    _save(session, state, must_succeed=is_stopping or state.step == num_steps, waits=bool(reason))
            elif (saved := session.saver.poll()) is not None:
                _tell_saved(session, saved)
            if session.evaluation.is_due(state.step) and not is_stopping:
                session.watchdog.enter(Phase.EVALUATE, state.step)
                _evaluate(session, state.step)
            with clock.part("collect"):
                session.collector.done(state.step)
            if is_logged:
                _write_time(session, state.step)
            if reason:
                stop.honoured(reason)

        outcome = "done" if state.step >= num_steps or reason is None else _OUTCOMES[reason]
        session.watchdog.enter(Phase.END, state.step + 1)
        with clock.part("end"):
            _tell_probe(session, *session.evaluation.close())
            _say_end(session, state, outcome)
        _write_time(session, state.step)
    return outcome


def _memory_told(session: Session) -> AbstractContextManager[None]:
    own_samples = session.settings.train.global_batch // session.ranks.world_size
    micro_batch = own_samples // session.accumulation
    watchdog, device = session.watchdog, session.engine.device
    return told(session.log, session.ranks.rank, device, own_samples, micro_batch, lambda: watchdog.step)


def _without_graph(output: Any) -> Any:
    """What is logged of a micro-batch; the memory of predictions and targets is free for the next one."""
    losses = {name: loss.detach() for name, loss in output.losses.items()}
    return output._replace(loss=output.loss.detach(), losses=losses, predictions={}, targets={}, valid={})


def _write_time(session: Session, step: int) -> None:
    stream = session.stream
    read = stream.instruments().bytes_read if isinstance(stream, Stream | MixtureStream) else None
    session.clock.write(step, read, session.engine.skipped_steps)


def _report(session: Session, step: int, outputs: list[Any], lr: float) -> dict[str, Any] | None:
    """Log `step`; the state to go on from, when the run went back."""
    skipped, problem = session.engine.skipped_steps, None
    findings = session.losses.check()
    for found in findings:
        _tell(session, found, "skipped" if skipped > session.progress.skipped else "not_finite")
    norm, busy_s = session.engine.grad_norm(), session.clock.busy_s
    try:
        session.progress.report(step, outputs, lr, norm, skipped, busy_s)
    except DataError as error:
        problem = error
    skipped_lately = session.progress.skipped_lately
    if skipped_lately >= MAX_SKIPPED:
        problem = DataError(
            f"{skipped_lately} steps up to {step} had gradients that are not finite and were skipped; lower optim.lr, "
            "set optim.clip=1, or look at the samples that events-rank*.jsonl name"
        )
    session.rollbacks.note(step, findings, skipped_lately)
    if problem is None and not any(found.is_finite for found in findings):
        return None
    if session.rollbacks.limit:  # a save that is under way may be of what is undone
        session.watchdog.enter(Phase.CHECKPOINT, step)
        _finish_save(session, must_succeed=False)
    return session.rollbacks.go_back(session, step, problem)


def _tell(session: Session, found: Finding, name: str) -> None:
    keys = list(found.keys)
    if not found.is_finite:
        session.log.event(name, found.step, keys=keys)
        session.progress.say(
            f"warning: the loss of step {found.step} is not finite; events-rank*.jsonl name its samples"
        )
        return
    figures = {"loss": found.loss, "expected": found.expected, "limit": found.limit}
    session.log.event("spike", found.step, **figures, keys=keys)
    session.progress.say(
        f"warning: the loss of step {found.step} leapt to {found.loss:.4f}, the median before is {found.expected:.4f}; "
        "events-rank*.jsonl name its samples"
    )


def _save(session: Session, state: TrainState, must_succeed: bool, waits: bool) -> None:
    session.watchdog.enter(Phase.CHECKPOINT, state.step)
    _finish_save(session, must_succeed=False)
    about = describe(session.settings, session.stream)
    session.saver.begin(state.step, session.engine, asdict(state), about)
    session.progress.exclude(session.saver.stall_s)
    session.begun_save = state.step
    if must_succeed or waits or not session.settings.checkpoint.background:
        _finish_save(session, must_succeed)


def _finish_save(session: Session, must_succeed: bool) -> None:
    """Wait until the save that was begun is committed, and say so, or that it failed."""
    began = time.perf_counter()
    try:
        saved = session.saver.finish()
    except StorageError as error:
        session.failed_saves += 1
        session.log.event("save_failed", session.begun_save, reason=str(error))
        if must_succeed or session.failed_saves >= MAX_FAILED_SAVES:
            raise StorageError(f"{error} and run the same command again") from error
        session.progress.say(
            f"warning: {error}; the run goes on without, failed save {session.failed_saves} of {MAX_FAILED_SAVES}"
        )
        return
    finally:
        session.progress.exclude(time.perf_counter() - began)
    if saved is not None:
        _tell_saved(session, saved)


def _tell_saved(session: Session, saved: Saved) -> None:
    session.failed_saves = 0
    seconds, stall_s = round(saved.seconds, 3), round(saved.stall_s, 3)
    session.log.event("checkpoint", saved.step, seconds=seconds, stall_s=stall_s)
    stood = "" if saved.seconds - saved.stall_s < 0.05 else f", of which training stood still for {saved.stall_s:.2f} s"
    session.progress.say(f"saved {saved.name} in {saved.seconds:.1f} s{stood}")
    if saved.remark:
        session.progress.say(f"warning: {saved.remark}")


def _evaluate(session: Session, step: int) -> None:
    began = time.perf_counter()
    path = pictures_path(session.run_dir, step)
    with session.clock.part("probe"):
        _tell_probe(session, *session.evaluation.wait())
        session.evaluation.run(step, session.model, session.engine)
        if session.ranks.is_first and session.evaluation.draws(step) and path.exists():
            session.log.pictures(step, path)
    session.progress.exclude(time.perf_counter() - began)


def _tell_probe(session: Session, line: dict[str, Any] | None, problem: Exception | None) -> None:
    if line is not None:
        session.progress.say(say_probe(line))
        figures = {f"probe/{name}": value for name, value in line.items() if "_map_" in name}
        session.log.figures(line["step"], figures)
    if problem is not None:
        session.log.event("probe_failed", session.state.step, reason=str(problem))
        session.progress.say(f"warning: the probe failed: {problem}; the run goes on")


def _say_end(session: Session, state: TrainState, outcome: str) -> None:
    session.log.event("done" if outcome == "done" else "stop", state.step, outcome=outcome)
    if session.ranks.is_first:
        said = outcome if outcome in ("done", "stopped") else "saved"
        say_outcome(session.run_dir, said, state.step)
    words = {
        "done": "done",
        "saved": "stopped as asked, saved",
        "stopped": "stopped by the file STOP, saved",
        "interrupted": "interrupted, saved",
    }[outcome]
    session.progress.say(f"{words} at step {state.step} of {session.settings.train.steps}")
