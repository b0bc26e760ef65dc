"""What the ranks' files tell together, and that no other attempt's are taken for them."""

from pathlib import Path

import pytest

from pipeline import hang
from pipeline.hang import Account, Phase, Roll

ROLL = Roll(attempt="now", owners=tuple(f"host node{rank}, pid {100 + rank}" for rank in range(4)))


def _account(phase: Phase = Phase.STEP, step: int = 41, is_held: bool = False) -> Account:
    return Account(step=step, phase=phase, idle_s=60.2, limit="watchdog.step_s=60", is_held=is_held)


def _write(run_dir: Path, rank: int, account: Account, roll: Roll = ROLL) -> None:
    path = hang.path_of(run_dir, rank)
    path.parent.mkdir(exist_ok=True)
    path.write_text(hang.header(run_dir, roll, rank, account) + "Current thread 0x1 (most recent call first):\n")


def _said(tmp_path: Path, accounts: dict[int, Account]) -> str:
    for rank, account in accounts.items():
        _write(tmp_path, rank, account)
    found = hang.read_accounts(tmp_path, ROLL, range(4))
    assert found == accounts
    return hang.summary(tmp_path, ROLL, found)


def test_rank_that_waits_for_data_is_named(tmp_path: Path) -> None:
    said = _said(tmp_path, {0: _account(), 1: _account(), 2: _account(Phase.DATA), 3: _account()})
    assert "no progress for 60 s (watchdog.step_s=60) in step 41: ranks 0-1, 3 are in 'step', rank 2 " in said
    assert "rank 2 (host node2, pid 102) is in 'waiting for data'; stacks in" in said
    assert "see whether the data can be read" in said


def test_rank_that_wrote_nothing_is_named(tmp_path: Path) -> None:
    said = _said(tmp_path, {0: _account(), 2: _account(), 3: _account()})
    assert "ranks 0, 2-3 are in 'step', rank 1 wrote nothing, so stopped, dead or cut off" in said
    assert "(rank 1: host node1, pid 101)" in said


def test_rank_of_an_earlier_step_is_named(tmp_path: Path) -> None:
    said = _said(tmp_path, {0: _account(), 1: _account(), 2: _account(), 3: _account(step=40)})
    assert "ranks 0-2 are in 'step', rank 3 (host node3, pid 103) is in 'step' of step 40" in said


@pytest.mark.parametrize("behind", [Phase.DATA, Phase.STEP])
def test_of_two_halves_those_behind_hold_up_the_others(tmp_path: Path, behind: Phase) -> None:
    ahead = {Phase.DATA: Phase.STEP, Phase.STEP: Phase.CHECKPOINT}[behind]
    said = _said(tmp_path, {0: _account(behind), 1: _account(ahead), 2: _account(behind), 3: _account(ahead)})
    assert f"ranks 1, 3 are in '{ahead}', rank 0 (host node0, pid 100) is in '{behind}', rank 2 (" in said


def test_rank_held_by_machine_code_is_named_in_the_same_place_too(tmp_path: Path) -> None:
    said = _said(tmp_path, {0: _account(), 1: _account(), 2: _account(), 3: _account(is_held=True)})
    assert "ranks 0-2 are in 'step', rank 3 (host node3, pid 103) is held by machine code in 'step'" in said


def test_all_in_one_place_are_told_so(tmp_path: Path) -> None:
    said = _said(tmp_path, {rank: _account(Phase.CHECKPOINT) for rank in range(4)})
    assert "ranks 0-3 are in 'checkpoint'; stacks in" in said and "see whether the run folder can be written" in said


def test_many_ranks_are_counted_and_few_named() -> None:
    roll = Roll(attempt="now", owners=("host x, pid 1",) * 30)
    accounts = {rank: _account(Phase.DATA if rank < 12 else Phase.STEP) for rank in range(20)}
    accounts |= {rank: _account() for rank in range(20, 25)}
    said = hang.summary(Path("run"), roll, accounts)
    assert "ranks 12-24 are in 'step'" in said and "rank 7 (" in said and "rank 8 (" not in said
    assert "and 4 more are elsewhere, ranks 25-29 wrote nothing" in said


def test_files_and_mark_of_another_attempt_do_not_count(tmp_path: Path) -> None:
    other = Roll(attempt="then", owners=ROLL.owners)
    _write(tmp_path, 0, _account())
    _write(tmp_path, 1, _account(), other)
    hang.mark(tmp_path, other)
    assert list(hang.read_accounts(tmp_path, ROLL, range(4))) == [0]
    assert not hang.is_marked(tmp_path, ROLL) and hang.is_marked(tmp_path, other)


def test_half_a_file_does_not_count(tmp_path: Path) -> None:
    _write(tmp_path, 0, _account())
    path = hang.path_of(tmp_path, 0)
    path.write_text(path.read_text()[:60])
    hang.path_of(tmp_path, 1).touch()
    assert hang.read_accounts(tmp_path, ROLL, range(4)) == {}


def test_stacks_of_an_earlier_attempt_are_kept_apart(tmp_path: Path) -> None:
    hang.keep_apart(tmp_path)  # a fresh run has none
    assert list(tmp_path.iterdir()) == []
    _write(tmp_path, 0, _account())
    hang.path_of(tmp_path, 1).touch()
    hang.mark(tmp_path, ROLL)
    before = hang.path_of(tmp_path, 0).read_text()
    hang.keep_apart(tmp_path)
    (earlier,) = (tmp_path / "stacks").iterdir()
    assert [path.name for path in earlier.iterdir()] == ["rank00000.txt"]
    assert (earlier / "rank00000.txt").read_text() == before
    hang.keep_apart(tmp_path)
    assert [path.name for path in (tmp_path / "stacks").iterdir()] == [earlier.name]
