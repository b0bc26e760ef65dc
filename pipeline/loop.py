"""The training loop. It reads from top to bottom."""

import time
from dataclasses import asdict
from typing import Any

from pipeline import checkpoint
from pipeline.config import Settings
from pipeline.distributed import Ranks
from pipeline.errors import DataError
from pipeline.optimiser import learning_rate
from pipeline.run_folder import say_outcome
from pipeline.session import Session, TrainState, describe, open_session
from pipeline.stop import StopRequest

MAX_SKIPPED = 3
"""Steps skipped for a non-finite gradient, since a log line without any, at which the run stops."""


def train(settings: Settings, ranks: Ranks, stop: StopRequest) -> str:
    """Train as `settings` say, from the newest good checkpoint in `run.dir` if there is one.

    Returns the outcome, the same on every rank: `done`, `saved` after a stop signal, or `interrupted` after Ctrl-C.
    """
    with open_session(settings, ranks, stop) as session:
        num_steps, every = settings.train.steps, settings.checkpoint.every
        state, reason = session.state, None
        batches = iter(session.stream)
        while state.step < num_steps and reason is None:
            waited = time.perf_counter()
            batch = next(batches)
            session.progress.count(time.perf_counter() - waited)

            lr = learning_rate(state.step, num_steps, settings.optim)
            outputs = []
            for number, part in enumerate(batch.split(session.accumulation), start=1):
                images, valid, draws = session.prepare(part)
                output = session.engine(images, draws, valid, **session.model_options)
                session.engine.backward(output.loss, is_last=number == session.accumulation)
                outputs.append(_without_graph(output))
            session.engine.step(lr)
            state = TrainState(step=state.step + 1, stream=session.stream.state_dict())

            session.log.trace_step(state.step, batch, outputs)
            if state.step % settings.log.every == 0 or state.step == num_steps:
                _report(session, state.step, outputs, lr)
            reason = stop.agreed()
            if state.step % every == 0 or state.step == num_steps or reason:
                _save(session, state)

        outcome = (
            "done" if state.step >= num_steps else {"stop signal": "saved", "interrupt": "interrupted"}[reason or ""]
        )
        _say_end(session, state, outcome)
    return outcome


def _without_graph(output: Any) -> Any:
    """What is logged of a micro-batch; the memory of predictions and targets is free for the next one."""
    losses = {name: loss.detach() for name, loss in output.losses.items()}
    return output._replace(loss=output.loss.detach(), losses=losses, predictions={}, targets={}, valid={})


def _report(session: Session, step: int, outputs: list[Any], lr: float) -> None:
    skipped = session.engine.skipped_steps
    skipped_lately = session.progress.report(step, outputs, lr, session.engine.grad_norm(), skipped)
    if skipped_lately >= MAX_SKIPPED:
        raise DataError(
            f"{skipped_lately} steps up to {step} had gradients that are not finite and were skipped; lower optim.lr, "
            "set optim.clip=1, or find the samples with log.trace=true"
        )


def _save(session: Session, state: TrainState) -> None:
    began = time.perf_counter()
    about = describe(session.settings, session.stream)
    path = checkpoint.save(session.checkpoints, state.step, session.engine, asdict(state), about, session.group)
    if session.ranks.is_first:
        checkpoint.retain(session.checkpoints, session.settings.checkpoint.keep)
    seconds = time.perf_counter() - began
    session.progress.exclude(seconds)
    session.log.event("checkpoint", state.step, seconds=round(seconds, 3))
    session.progress.say(f"saved {path} in {seconds:.1f} s")


def _say_end(session: Session, state: TrainState, outcome: str) -> None:
    session.log.event("done" if outcome == "done" else "stop", state.step, outcome=outcome)
    if session.ranks.is_first:
        say_outcome(session.checkpoints.parent, "done" if outcome == "done" else "saved", state.step)
    words = {"done": "done", "saved": "stopped as asked, saved", "interrupted": "interrupted, saved"}[outcome]
    session.progress.say(f"{words} at step {state.step} of {session.settings.train.steps}")
