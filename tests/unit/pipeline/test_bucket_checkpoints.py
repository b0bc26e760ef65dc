"""In an object store too, a checkpoint is there whole or not at all, and one attempt publishes."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from pipeline import checkpoint
from pipeline.checkpoint.bucket import BucketPlace, BucketShelf
from pipeline.checkpoint.command import main
from pipeline.checkpoint.retention import retain
from pipeline.errors import CheckpointError, StorageError
from sharding.store import Store
from tests.unit.pipeline.one_tensor import SmallEngine

ABOUT: dict[str, Any] = {"model": {}, "engine": "ddp", "precision": "fp32"}
URL = "memory://bucket/runs/first"


@pytest.fixture
def store() -> Iterator[Store]:
    yield Store(URL)
    fsspec.filesystem("memory").store.clear()


def _place(store: Store, staging: Path, token: str = "one") -> BucketPlace:
    return BucketPlace(store, checkpoint.Fence(store=store, token=token, owner=f"attempt {token}"), staging)


def _save(store: Store, staging: Path, step: int, group: Any, token: str = "one", value: float = 0.0) -> Any:
    saving = checkpoint.Saver(_place(store, staging, token), group, checkpoint.Retention(keep=100))
    engine = SmallEngine()
    engine.value += value
    saving.begin(step, engine, {"step": step}, ABOUT)
    return saving.finish()


def _found(store: Store, into: Path, group: Any) -> tuple[checkpoint.Found, float]:
    found, engine = checkpoint.find(BucketShelf(store), group, into), SmallEngine()
    assert found is not None
    checkpoint.load(found, engine)
    return found, float(engine.value[0])


def test_what_was_saved_is_found_and_nothing_stays_on_the_machine(store: Store, tmp_path: Path, group: Any) -> None:
    saved = _save(store, tmp_path / "staging", 1, group, value=3.0)
    _save(store, tmp_path / "staging", 2, group, value=4.0)
    assert saved.name == f"{URL}/step-00000001"
    found, value = _found(store, tmp_path / "into", group)
    assert (found.step, found.state, found.rejected, value) == (2, {"step": 2}, (), 4.0)
    assert found.title == f"{URL}/step-00000002" and found.path == tmp_path / "into" / "step-00000002"
    assert [path for path in (tmp_path / "staging").rglob("*") if path.is_file()] == []


def test_fresh_run_has_none(store: Store, tmp_path: Path, group: Any) -> None:
    assert checkpoint.find(BucketShelf(store), group, tmp_path) is None


FILES = ["engine/value.pt", "model.safetensors", "state.json", "rank00000.pt", "manifest.json"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("harm", ["flipped", "cut", "deleted"])
def test_damaged_object_falls_back_says_so_and_is_replaced(
    store: Store, tmp_path: Path, group: Any, name: str, harm: str
) -> None:
    for step in (1, 2):
        _save(store, tmp_path / "staging", step, group, value=step)
    path = f"step-00000002/one/{name}"
    content = bytearray(store.read(path))
    content[len(content) // 2] ^= 4
    if harm == "deleted":
        store.remove(path)
    else:
        store.write(path, bytes(content) if harm == "flipped" else store.read(path)[:-1])
    found, value = _found(store, tmp_path / "into", group)
    assert (found.step, value, found.rejected_names) == (1, 1.0, ("step-00000002",))
    assert path in found.rejected[0]
    assert BucketShelf(store).defect("step-00000002") == found.rejected[0]

    saving = checkpoint.Saver(
        place := _place(store, tmp_path / "staging", "two"), group, checkpoint.Retention(keep=100)
    )
    place.replaceable = found.rejected_names
    saving.begin(2, SmallEngine(), {"step": 2}, ABOUT)
    saving.finish()
    assert _found(store, tmp_path / "into", group)[0].step == 2


def test_without_commit_a_step_does_not_exist(store: Store, tmp_path: Path, group: Any) -> None:
    for step in (1, 2):
        _save(store, tmp_path / "staging", step, group)
    store.remove("step-00000002/COMMIT")
    assert _found(store, tmp_path / "into", group)[0].step == 1


def test_run_whose_checkpoints_are_all_damaged_does_not_start_anew(store: Store, tmp_path: Path, group: Any) -> None:
    _save(store, tmp_path / "staging", 1, group)
    store.write("step-00000001/one/state.json", b"{}")
    with pytest.raises(CheckpointError, match="none of the 1 checkpoints in memory://bucket/runs/first is whole"):
        checkpoint.find(BucketShelf(store), group, tmp_path / "into")


def test_save_that_was_killed_is_swept_by_the_next_attempt(store: Store, tmp_path: Path, group: Any) -> None:
    _save(store, tmp_path / "staging", 1, group)
    store.write("step-00000002/one/engine/value.pt", b"half")
    store.write("step-00000001/older/engine/value.pt", b"half")
    assert BucketShelf(store).remains() == [
        f"{URL}/step-00000001/older/engine/value.pt",
        f"{URL}/step-00000002/one/engine/value.pt",
    ]
    _save(store, tmp_path / "staging", 3, group, token="two")
    assert BucketShelf(store).remains() == [] and BucketShelf(store).names() == ["step-00000003", "step-00000001"]


def test_attempt_that_was_followed_by_another_publishes_no_more(store: Store, tmp_path: Path, group: Any) -> None:
    checkpoint.Fence(store=store, token="two", owner="attempt two").take()
    with pytest.raises(CheckpointError, match=r"another attempt of this run \(attempt two\) has begun"):
        _save(store, tmp_path / "staging", 1, group)
    assert store.files() == ["attempt.json"]


def test_of_two_attempts_that_reach_a_step_one_commits(
    store: Store, tmp_path: Path, group: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint.Fence, "check", lambda _: None)  # the moment after it was asked
    _save(store, tmp_path / "staging", 1, group, value=1.0)
    with pytest.raises(CheckpointError, match=r"step-00000001/COMMIT was written by another attempt"):
        _save(store, tmp_path / "staging", 1, group, token="two", value=2.0)
    assert _found(store, tmp_path / "into", group)[1] == 1.0
    assert BucketShelf(store).remains() == [f"{URL}/step-00000001/two/manifest.json"]


def test_store_that_fails_costs_one_save(
    store: Store, tmp_path: Path, group: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise StorageError("cannot write it: 503 Slow Down")

    with monkeypatch.context() as patched:
        patched.setattr(Store, "put", fail)
        with pytest.raises(StorageError, match="503 Slow Down"):
            _save(store, tmp_path / "staging", 1, group)
    assert store.files() == []
    _save(store, tmp_path / "staging", 2, group)
    assert BucketShelf(store).names() == ["step-00000002"]


def test_retention_keeps_milestones_and_pinned_ones(store: Store, tmp_path: Path, group: Any) -> None:
    shelf = BucketShelf(store)
    for step in range(1, 7):
        _save(store, tmp_path / "staging", step, group)
    shelf.pin("step-00000001", True)
    retain(shelf, checkpoint.Retention(keep=2, keep_every=3))
    assert [int(name[-1]) for name in shelf.names()] == [6, 5, 3, 1]
    shelf.pin("step-00000001", False)
    retain(shelf, checkpoint.Retention(keep=1))
    assert shelf.names() == ["step-00000006"]
    assert all(path.startswith("step-00000006/") for path in store.files())


def test_set_aside_it_is_kept_and_no_step(store: Store, tmp_path: Path, group: Any) -> None:
    shelf = BucketShelf(store)
    for step in (1, 2):
        _save(store, tmp_path / "staging", step, group)
    files = {path: store.read(path) for path in store.files("step-00000002")}
    shelf.set_aside("step-00000002", "undone-1-step-00000002")
    assert shelf.names() == ["step-00000001"] and shelf.remains() == []
    assert {path.removeprefix("undone-1-"): store.read(path) for path in store.files("undone-1-step-00000002")} == files


def test_command_reads_a_url(store: Store, tmp_path: Path, group: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (1, 2):
        _save(store, tmp_path / "staging", step, group, value=step)
    assert main(["list", URL, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["step"], row["path"]) for row in rows] == [(s, f"{URL}/step-0000000{s}") for s in (1, 2)]
    assert main(["verify", URL]) == 0 and main(["show", f"{URL}/step-00000001"]) == 0
    assert main(["pin", f"{URL}/step-00000001"]) == 0 and BucketShelf(store).is_pinned("step-00000001")
    assert main(["convert", URL, "--to", "torch", "--out", str(tmp_path / "weights.pt")]) == 0
    import torch

    assert torch.load(tmp_path / "weights.pt", weights_only=True)["model"]["value"][0] == 2.0
    store.write("step-00000002/one/state.json", b"{}")
    with pytest.raises(CheckpointError, match="1 damaged"):
        main(["verify", URL])
    with pytest.raises(CheckpointError, match=r"there is no checkpoint .*step-00000009; .* has step-00000002"):
        main(["show", f"{URL}/step-00000009"])
