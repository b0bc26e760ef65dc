"""A save in the background holds what was there when it began, and only the newest attempt publishes."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import checkpoint
from pipeline.checkpoint.place import FolderPlace
from pipeline.errors import CheckpointError, StorageError
from pipeline.host_copy import HostCopies
from tests.unit.pipeline.one_tensor import SmallEngine, find, save, saver

ABOUT: dict[str, Any] = {"model": {}}


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Saves write nothing before it is set."""
    opened, begin = threading.Event(), FolderPlace.begin

    def wait(place: FolderPlace, step: int) -> None:
        assert opened.wait(30)
        begin(place, step)

    monkeypatch.setattr(FolderPlace, "begin", wait)
    return opened


def _saved_value(folder: Path, group: Any) -> float:
    found, engine = find(folder, group), SmallEngine()
    assert found is not None
    checkpoint.load(found, engine)
    return float(engine.value[0])


@pytest.mark.parametrize("is_background", [True, False])
def test_what_is_written_is_what_there_was_when_the_save_began(
    tmp_path: Path, group: Any, gate: threading.Event, is_background: bool
) -> None:
    folder, engine = tmp_path / "checkpoints", SmallEngine()
    saving = saver(folder, group, is_background=is_background)
    saving.begin(1, engine, {}, ABOUT)
    engine.value += 5.0
    gate.set()
    saving.finish()
    # Without a copy, the change is in the checkpoint: that is why training must wait then.
    assert _saved_value(folder, group) == (0.0 if is_background else 5.0)


def test_training_goes_on_while_it_is_written(tmp_path: Path, group: Any, gate: threading.Event) -> None:
    saving = saver(tmp_path / "checkpoints", group)
    saving.begin(1, SmallEngine(), {}, ABOUT)
    assert saving.poll() is None and not (tmp_path / "checkpoints").exists()
    gate.set()
    saved = saving.finish()
    assert saved is not None and saved.step == 1 and saved.name == str(tmp_path / "checkpoints" / "step-00000001")
    assert 0 < saved.stall_s <= saved.seconds
    assert saving.finish() is None and saving.poll() is None


def test_end_of_a_save_is_told_once_without_a_wait(tmp_path: Path, group: Any) -> None:
    saving = saver(tmp_path / "checkpoints", group)
    saving.begin(1, SmallEngine(), {}, ABOUT)
    saving.close()
    saved = saving.poll()
    assert saved is not None and saved.step == 1
    assert saving.poll() is None and saving.finish() is None


def test_failure_is_told_by_the_next_wait_and_the_next_save_succeeds(
    tmp_path: Path, group: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "checkpoints"
    saving = saver(folder, group)
    with monkeypatch.context() as patched:
        patched.setattr(FolderPlace, "commit", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        saving.begin(1, SmallEngine(), {}, ABOUT)
        saving.close()
        assert saving.poll() is None
    with pytest.raises(StorageError, match=r"step 1 could not be written .*No space left on device"):
        saving.finish()
    assert list(folder.iterdir()) == []
    saving.begin(2, SmallEngine(), {}, ABOUT)
    saving.finish()
    assert [path.name for path in folder.iterdir()] == ["step-00000002"]


def test_older_ones_that_cannot_be_deleted_are_told_and_the_save_counts(
    tmp_path: Path, group: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(FolderPlace, "retain", refuse)
    saved = save(tmp_path / "checkpoints", 1, SmallEngine(), {}, ABOUT, group)
    assert saved.remark == "older checkpoints could not be deleted: [Errno 13] Permission denied"


def test_attempt_that_was_followed_by_another_publishes_no_more(tmp_path: Path, group: Any) -> None:
    folder = tmp_path / "checkpoints"
    for token in ("one", "two"):
        _fence(tmp_path, token).take()
        save(folder, 1, SmallEngine(), {}, ABOUT, group, token=token)
    with pytest.raises(CheckpointError, match=r"another attempt of this run \(attempt two\) has begun"):
        save(folder, 2, SmallEngine(), {}, ABOUT, group, token="one")
    assert [path.name for path in folder.iterdir()] == ["step-00000001"]
    save(folder, 2, SmallEngine(), {}, ABOUT, group, token="two")


def test_attempt_that_is_followed_while_it_saves_does_not_commit(
    tmp_path: Path, group: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = FolderPlace.publish

    def followed(place: FolderPlace, step: int, names: list[str]) -> None:
        publish(place, step, names)
        _fence(tmp_path, "two").take()

    monkeypatch.setattr(FolderPlace, "publish", followed)
    with pytest.raises(CheckpointError, match="another attempt"):
        save(tmp_path / "checkpoints", 1, SmallEngine(), {}, ABOUT, group, token="one")
    assert list((tmp_path / "checkpoints").iterdir()) == []


def _fence(run: Path, token: str) -> checkpoint.Fence:
    from sharding.store import Store

    return checkpoint.Fence(store=Store(str(run)), token=token, owner=f"attempt {token}")


def test_copy_shares_nothing_and_keeps_the_form() -> None:
    shared = torch.arange(3.0)
    state = {"a": [shared, (shared[1:], 7)], "b": {"groups": [{"lr": 0.1}]}, "c": shared.to(torch.bfloat16)}
    copies = HostCopies()
    copies.begin()
    copied = copies(state)
    copies.wait()
    shared += 1
    state["b"]["groups"][0]["lr"] = 0.2  # type: ignore[index]
    assert copied["a"][0].tolist() == [0, 1, 2] and copied["a"][1][0].tolist() == [1, 2] and copied["a"][1][1] == 7
    assert copied["b"] == {"groups": [{"lr": 0.1}]} and copied["c"].dtype == torch.bfloat16


def test_memory_of_one_snapshot_serves_the_next() -> None:
    copies = HostCopies()
    for value in (1.0, 2.0):
        copies.begin()
        copied = copies([torch.full((5,), value), torch.full((5,), value + 0.5)])
        assert [tensor[0] for tensor in copied] == [value, value + 0.5]
    assert copies.nbytes == 2 * 5 * 4


def test_weights_are_copied_into_memory_that_is_kept_too(tmp_path: Path, group: Any) -> None:
    saving, engine = saver(tmp_path / "checkpoints", group), SmallEngine()
    for step in (1, 2):
        saving.begin(step, engine, {}, ABOUT)
        saving.finish()
    assert saving._copies is not None and saving._copies.nbytes == 2 * engine.value.nbytes  # the state, and the weights


@pytest.mark.parametrize("is_usual", [True, False])
def test_checksums_that_torch_writes_for_others_stay_as_they_are(tmp_path: Path, group: Any, is_usual: bool) -> None:
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(is_usual)
    try:
        save(tmp_path / "checkpoints", 1, SmallEngine(), {}, ABOUT, group)
        assert torch.serialization.get_crc32_options() is is_usual
    finally:
        torch.serialization.set_crc32_options(before)
    assert _saved_value(tmp_path / "checkpoints", group) == 0.0
