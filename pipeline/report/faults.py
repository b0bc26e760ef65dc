"""What went wrong in a run, and how it ended."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from pipeline.report.events import BEGINNINGS

Event = dict[str, Any]
_MOST_KEYS: Final = 4
"""Sample keys told of a fault; of more, their number."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One thing that went wrong."""

    time: str
    """ISO, UTC; empty when nobody knows."""
    step: int
    kind: str
    """The event's name."""
    what: str
    ended: str
    survived: bool
    """Whether the run went on; False while nobody has resumed it."""


def faults(events: list[Event]) -> list[Fault]:
    """The faults among the events of a run, which are in order of time."""
    found = []
    for number, event in enumerate(events):
        later = events[number + 1 :]
        if event["event"] == "resume":
            found += [_passed_over(event, str(problem)) for problem in event.get("rejected") or ()]
        if event["event"] not in _FAULTS:
            continue
        if event["event"] == "stop" and event.get("outcome") != "saved":
            continue
        say, end = _FAULTS[event["event"]]
        what = say(event)
        reason = event.get("reason") or event.get("error")
        ended, survived = end(event, later)
        found.append(
            Fault(
                time=event["time"],
                step=event["step"],
                kind=event["event"],
                what=f"{what}: {reason}" if reason else what,
                ended=ended,
                survived=survived,
            )
        )
    return found


def _passed_over(resume: Event, problem: str) -> Fault:
    return Fault(
        time=resume["time"],
        step=resume["step"],
        kind="checkpoint_rejected",
        what=f"checkpoint passed over: {problem}",
        ended=f"resumed from step {_resumed_from(resume):,}",
        survived=True,
    )


def _resumed_from(event: Event) -> int:
    return int(event["from_step"] if "from_step" in event else event["step"])


def _next(later: list[Event], *names: str) -> Event | None:
    return next((event for event in later if event["event"] in names), None)


def _by_resume(_event: Event, later: list[Event]) -> tuple[str, bool]:
    """The attempt is over; another one resumes the run, or nobody does."""
    begun = _next(later, *BEGINNINGS)
    if begun is None:
        return "not resumed", False
    if begun["event"] == "start":
        return "began anew, without a checkpoint", False
    return f"resumed from step {_resumed_from(begun):,}", True


def _by_going_on(event: Event, later: list[Event]) -> tuple[str, bool]:
    """The attempt need not be over."""
    following = _next(later, "checkpoint", "done", *BEGINNINGS)
    if following is not None and following["event"] not in BEGINNINGS:
        return "the run went on", True
    return _by_resume(event, later)


def _by_saving(_event: Event, later: list[Event]) -> tuple[str, bool]:
    following = _next(later, "checkpoint", *BEGINNINGS)
    if following is None:
        return "nothing was saved since", False
    if following["event"] == "checkpoint":
        return f"saved at step {following['step']:,}", True
    return _by_resume(_event, later)


def _by_skipping(_event: Event, _later: list[Event]) -> tuple[str, bool]:
    return "the step changed no weights; the run went on", True


def _by_replacing(_event: Event, _later: list[Event]) -> tuple[str, bool]:
    return "other samples took their places; the run went on", True


def _by_rollback(event: Event, later: list[Event]) -> tuple[str, bool]:
    following = _next(later, "rollback", "spike", *BEGINNINGS)
    if following is not None and following["event"] == "rollback":
        return f"rolled back to step {_rolled_to(following):,}", True
    return "the run went on", True


def _by_going_back(event: Event, _later: list[Event]) -> tuple[str, bool]:
    return f"trained on from step {_rolled_to(event):,}", True


def _rolled_to(event: Event) -> int:
    return int(event["to_step"] if "to_step" in event else event["step"])


def _skipped(event: Event) -> str:
    return f"gradients that are not finite{_named(event)}"


def _not_finite(event: Event) -> str:
    return f"a loss that is not finite{_named(event)}"


def _spike(event: Event) -> str:
    told = [f"{key} {event[key]:.4g}" for key in ("loss", "expected", "limit") if isinstance(event.get(key), float)]
    return "loss spike" + (f" ({', '.join(told)})" if told else "") + _named(event)


def _named(event: Event) -> str:
    """The samples that an event names."""
    keys = [str(key) for key in event.get("keys") or ()]
    more = f" and {len(keys) - _MOST_KEYS:,} more" if len(keys) > _MOST_KEYS else ""
    return f"; samples {', '.join(keys[:_MOST_KEYS])}{more}" if keys else ""


def _words(text: str) -> Callable[[Event], str]:
    return lambda _event: text


_FAULTS: Final[dict[str, tuple[Callable[[Event], str], Callable[[Event, list[Event]], tuple[str, bool]]]]] = {
    "lost": (_words("the attempt ended without a word"), _by_resume),
    "kill": (_words("killed (SIGKILL)"), _by_resume),
    "hang": (_words("hung"), _by_going_on),
    "oom": (_words("out of memory"), _by_going_on),
    "out_of_memory": (_words("out of memory"), _by_going_on),
    "stop": (_words("told to stop by a signal; saved"), _by_resume),
    "save_failed": (_words("a checkpoint could not be written"), _by_saving),
    "checkpoint_rejected": (_words("checkpoint passed over"), _by_resume),
    "samples_replaced": (
        lambda event: f"{event['total']:,} damaged samples so far" if "total" in event else "damaged samples",
        _by_replacing,
    ),
    "skipped": (_skipped, _by_skipping),
    "not_finite": (_not_finite, _by_resume),
    "spike": (_spike, _by_rollback),
    "rollback": (lambda event: f"rolled back to step {_rolled_to(event):,}", _by_going_back),
}
"""What is said of an event, and how it is told how it ended."""
