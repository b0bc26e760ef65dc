"""What ranks without progress leave in the run folder, and what it tells.

stacks/rank00003.txt        place and stacks of a rank that noticed the hang; empty while all is well
stacks/HANG                 a rank has noticed: those that wait for it write theirs too, before their time is up
stacks/rank00003.claim      the last place in which a rank stood for long that has a longer limit than a step
stacks/20260102T030405Z/    those of an earlier attempt
"""

import os
import platform
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

FOLDER: Final = "stacks"
_MARK: Final = "HANG"
_CLAIM: Final = ".claim"
_HELD: Final = "cannot run, machine code holds its lock; step and phase may be a second old"
_MAX_NAMED: Final = 8
"""Ranks of which the place and the machine are told one by one."""


class Phase(StrEnum):
    """What a rank does; within a step, in this order."""

    START = "start"
    DATA = "waiting for data"
    STEP = "step"
    CHECKPOINT = "checkpoint"
    EVALUATE = "evaluation"
    END = "end"


_ORDER: Final = list(Phase)
_ADVICE: Final = {
    Phase.START: "see what its stacks wait for",
    Phase.DATA: "see whether the data can be read, such as with python -m pipeline.stream bench",
    Phase.STEP: "see what its stacks wait for",
    Phase.CHECKPOINT: "see whether the run folder can be written",
    Phase.EVALUATE: "see whether the data of the probe can be read",
    Phase.END: "see what its stacks wait for",
}


@dataclass(frozen=True, kw_only=True)
class Roll:
    """The processes of an attempt."""

    attempt: str
    """Tells this attempt from every other in the same folder."""
    owners: tuple[str, ...]
    """Host and process of each rank, in words."""


@dataclass(frozen=True, kw_only=True)
class Account:
    """Where a rank stands, as it says itself."""

    step: int
    phase: Phase
    idle_s: float
    """Seconds without progress."""
    limit: str
    """The setting that bounds them, and its value."""
    is_held: bool = False
    """Whether machine code held the interpreter's lock, so that no thread of Python could run."""


def call_roll(group: Any) -> Roll:
    """Who takes part. A collective."""
    import torch.distributed as dist

    own = (f"host {platform.node()}, pid {os.getpid()}", datetime.now(UTC).isoformat())
    all_ranks: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(all_ranks, own, group=group)
    return Roll(attempt=f"{all_ranks[0][1]} {all_ranks[0][0]}", owners=tuple(owner for owner, _ in all_ranks))


def keep_apart(run_dir: Path) -> None:
    """Move what earlier attempts left into a folder of its own; on one rank, before any rank opens its file."""
    folder = run_dir / FOLDER
    for path in (folder / _MARK, *folder.glob(f"rank*{_CLAIM}")):
        path.unlink(missing_ok=True)
    left = [path for path in folder.glob("rank*.txt") if path.stat().st_size]
    for path in folder.glob("rank*.txt"):
        if path not in left:
            path.unlink()
    if left:
        newest = datetime.fromtimestamp(max(path.stat().st_mtime for path in left), UTC)
        earlier = folder / newest.strftime("%Y%m%dT%H%M%SZ")
        earlier.mkdir(exist_ok=True)
        for path in left:
            path.rename(earlier / path.name)


def path_of(run_dir: Path, rank: int) -> Path:
    """The file of a rank."""
    return run_dir / FOLDER / f"rank{rank:05d}.txt"


def mark(run_dir: Path, roll: Roll) -> None:
    """Tell the other ranks that this attempt hangs."""
    (run_dir / FOLDER / _MARK).write_text(roll.attempt)


def is_marked(run_dir: Path, roll: Roll) -> bool:
    """Whether a rank of this attempt has noticed a hang."""
    try:
        return (run_dir / FOLDER / _MARK).read_text() == roll.attempt
    except OSError:
        return False


def claim(run_dir: Path, roll: Roll, rank: int, step: int, phase: Phase) -> None:
    """Tell the others where this rank stands for long, and may."""
    (run_dir / FOLDER / f"rank{rank:05d}{_CLAIM}").write_text(f"{roll.attempt}\n{step}\n{phase.value}\n")


def unclaim(run_dir: Path, rank: int) -> None:
    """Take this rank's claim back."""
    (run_dir / FOLDER / f"rank{rank:05d}{_CLAIM}").unlink(missing_ok=True)


def claims(run_dir: Path, roll: Roll, but: int) -> list[tuple[int, Phase]]:
    """Step and phase of the claims of this attempt, those of the rank `but` left out."""
    found = []
    for path in (run_dir / FOLDER).glob(f"rank*{_CLAIM}"):
        try:
            attempt, step, phase = path.read_text().splitlines()
            if attempt == roll.attempt and path.name != f"rank{but:05d}{_CLAIM}":
                found.append((int(step), Phase(phase)))
        except (OSError, ValueError):
            continue  # half written
    return found


def is_behind(step: int, phase: Phase, other_step: int, other_phase: Phase) -> bool:
    """Whether a place comes before another, so that a rank in the other may be waiting for one in it."""
    return (step, _ORDER.index(phase)) < (other_step, _ORDER.index(other_phase))


def header(run_dir: Path, roll: Roll, rank: int, account: Account) -> str:
    """The beginning of a rank's file."""
    lines = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "attempt": roll.attempt,
        "rank": f"{rank} of {len(roll.owners)}, {roll.owners[rank]}",
        "step": account.step,
        "phase": account.phase.value,
        "seconds without progress": f"{account.idle_s:.1f}",
        "limit": account.limit,
        "python": _HELD if account.is_held else "runs",
        "stacks": path_of(run_dir, rank),
    }
    return "".join(f"{name}: {value}\n" for name, value in lines.items()) + "\n"


def read_accounts(run_dir: Path, roll: Roll, ranks: Iterable[int]) -> dict[int, Account]:
    """What those of `ranks` wrote that noticed the hang of this attempt."""
    accounts = {}
    for rank in ranks:
        try:
            lines = path_of(run_dir, rank).read_text(errors="replace").splitlines()
        except OSError:
            continue
        said = dict(line.split(": ", 1) for line in lines if re.match(r"[a-z ]+: .", line))
        try:
            if said["attempt"] == roll.attempt:
                idle_s = float(said["seconds without progress"])
                step, phase = int(said["step"]), Phase(said["phase"])
                accounts[rank] = Account(
                    step=step, phase=phase, idle_s=idle_s, limit=said["limit"], is_held=said["python"] == _HELD
                )
        except (KeyError, ValueError):
            continue  # half written
    return accounts


def summary(run_dir: Path, roll: Roll, accounts: Mapping[int, Account]) -> str:
    """Which ranks hold up the others, and what to do, in one sentence."""
    counts = Counter((account.step, account.phase) for account in accounts.values())
    # Of two places with as many ranks, those further on wait for those behind.
    most = max(counts, key=lambda place: (counts[place], place[0], _ORDER.index(place[1])))
    waiting = [rank for rank, a in accounts.items() if (a.step, a.phase) == most and not a.is_held]
    others = [rank for rank in accounts if rank not in waiting]
    silent = [rank for rank in range(len(roll.owners)) if rank not in accounts]
    longest = max(accounts.values(), key=lambda account: account.idle_s)
    parts = [f"{_listed(waiting)} {_verb(waiting, 'is', 'are')} in '{most[1]}'"] if waiting else []
    advice = "" if others or silent else _ADVICE[most[1]]
    for rank in others[:_MAX_NAMED]:
        place = accounts[rank]
        where = f"'{place.phase}'" + (f" of step {place.step}" if place.step != most[0] else "")
        held = "held by machine code " if place.is_held else ""
        parts.append(f"rank {rank} ({roll.owners[rank]}) is {held}in {where}")
        advice = _ADVICE[place.phase]
    if len(others) > _MAX_NAMED:
        parts[-1] += f", and {len(others) - _MAX_NAMED} more are elsewhere"
    if silent:
        named = "; ".join(f"rank {rank}: {roll.owners[rank]}" for rank in silent[:_MAX_NAMED])
        parts.append(f"{_listed(silent)} wrote nothing, so stopped, dead or cut off ({named})")
        advice = "see how that machine is"
    return (
        f"no progress for {longest.idle_s:.0f} s ({longest.limit}) in step {most[0]}: {', '.join(parts)}; stacks in "
        f"{run_dir / FOLDER}; {advice}, and run the same command again, with a larger limit where it may take that long"
    )


def _verb(ranks: list[int], one: str, several: str) -> str:
    return one if len(ranks) == 1 else several


def _listed(ranks: list[int]) -> str:
    """`ranks 0-2, 7`."""
    runs: list[list[int]] = []
    for rank in sorted(ranks):
        if runs and rank == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], rank]
        else:
            runs.append([rank])
    words = ", ".join("-".join(map(str, run)) for run in runs)
    return f"{_verb(ranks, 'rank', 'ranks')} {words}"
