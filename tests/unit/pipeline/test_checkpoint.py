"""A checkpoint appears whole or not at all, and nothing damaged is ever loaded."""

import json
import random
import resource
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline import checkpoint
from pipeline.checkpoint import FolderShelf, Retention, files
from pipeline.errors import CheckpointError, StorageError
from tests.unit.pipeline.one_tensor import SmallEngine, find, save


@pytest.fixture
def folder(tmp_path: Path, group: Any) -> Path:
    """Checkpoints of steps 1 and 2; the value of step 2 is 2 more than at the start."""
    folder = tmp_path / "checkpoints"
    engine = SmallEngine()
    for step in (1, 2):
        engine.step(1.0)
        save(folder, step, engine, {"step": step}, {"model": {}}, group)
    return folder


def _found(folder: Path, group: Any) -> tuple[checkpoint.Found, torch.Tensor]:
    found, engine = find(folder, group), SmallEngine()
    assert found is not None
    checkpoint.load(found, engine)
    return found, engine.value


def test_newest_is_found_and_holds_what_was_saved(folder: Path, group: Any) -> None:
    found, value = _found(folder, group)
    assert (found.step, found.state, found.world_size, found.rejected) == (2, {"step": 2}, 1, ())
    assert torch.equal(value, torch.arange(1000, dtype=torch.float32) + 2)


def test_fresh_run_has_none(tmp_path: Path, group: Any) -> None:
    assert find(tmp_path / "checkpoints", group) is None


def test_random_numbers_continue(tmp_path: Path, group: Any) -> None:
    save(tmp_path / "c", 1, SmallEngine(), {}, {"model": {}}, group)
    expected = random.random(), np.random.rand(), torch.rand(3)
    assert random.random() != expected[0]
    _found(tmp_path / "c", group)
    again = random.random(), np.random.rand(), torch.rand(3)
    assert again[:2] == expected[:2] and torch.equal(again[2], expected[2])


FILES = ["engine/value.pt", "model.safetensors", "state.json", "rank00000.pt"]


@pytest.mark.parametrize("name", FILES)
def test_flipped_bit_anywhere_falls_back_and_says_so(folder: Path, group: Any, name: str) -> None:
    file = folder / "step-00000002" / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(bytes(content))
    found, value = _found(folder, group)
    assert found.step == 1 and value[0] == 1
    assert found.rejected == (f"{file} is damaged: its CRC-32C does not match",)


@pytest.mark.parametrize("name", FILES)
def test_cut_or_missing_file_falls_back(folder: Path, group: Any, name: str) -> None:
    file = folder / "step-00000002" / name
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    found, _ = _found(folder, group)
    assert found.step == 1 and f"{len(whole) - 1} bytes instead of {len(whole)}" in found.rejected[0]
    file.unlink()
    found, _ = _found(folder, group)
    assert found.step == 1 and "is missing" in found.rejected[0]


def test_folder_without_manifest_does_not_exist(folder: Path, group: Any) -> None:
    (folder / "step-00000002" / "manifest.json").unlink()
    assert _found(folder, group)[0].step == 1


def test_cut_manifest_falls_back(folder: Path, group: Any) -> None:
    manifest = folder / "step-00000002" / "manifest.json"
    manifest.write_text(manifest.read_text()[:50])
    found, _ = _found(folder, group)
    assert found.step == 1 and "manifest.json" in found.rejected[0]


def test_run_whose_checkpoints_are_all_damaged_does_not_start_anew(folder: Path, group: Any) -> None:
    for path in checkpoint.committed(folder):
        (path / "state.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"none of the 2 checkpoints .* is whole"):
        find(folder, group)


def test_leftover_of_a_killed_save_is_ignored_and_removed(folder: Path, group: Any) -> None:
    leftover = folder / ".tmp-00000003"
    leftover.mkdir()
    (leftover / "half").write_text("x")
    assert _found(folder, group)[0].step == 2
    save(folder, 4, SmallEngine(), {}, {"model": {}}, group)
    assert not leftover.exists()


def test_damaged_step_is_replaced_when_it_is_saved_again(folder: Path, group: Any) -> None:
    (folder / "step-00000002" / "state.json").write_text("{}")
    save(folder, 2, SmallEngine(), {"step": 2}, {"model": {}}, group)
    found, value = _found(folder, group)
    assert found.step == 2 and value[0] == 0


def test_oldest_are_deleted_beyond_what_is_kept(folder: Path, group: Any) -> None:
    save(folder, 3, SmallEngine(), {}, {"model": {}}, group)
    checkpoint.retain(FolderShelf(folder), Retention(keep=2))
    assert [path.name for path in checkpoint.committed(folder)] == ["step-00000003", "step-00000002"]
    assert len(list(folder.iterdir())) == 2


def test_milestones_and_pinned_ones_are_kept(folder: Path, group: Any) -> None:
    FolderShelf(folder).pin("step-00000001", True)
    for step in range(3, 8):
        save(folder, step, SmallEngine(), {}, {"model": {}}, group)
        checkpoint.retain(FolderShelf(folder), Retention(keep=2, keep_every=3))
    assert [int(path.name[-1]) for path in checkpoint.committed(folder)] == [7, 6, 3, 1]
    FolderShelf(folder).pin("step-00000001", False)
    checkpoint.retain(FolderShelf(folder), Retention(keep=1))
    assert [int(path.name[-1]) for path in checkpoint.committed(folder)] == [7]


def test_the_best_are_kept_as_their_scores_come_to_be_known(folder: Path, group: Any) -> None:
    scores = {1: 0.5, 2: 0.9}
    wanted = Retention(keep=2, keep_best=1, scores=lambda: scores)
    seen = []
    for step, score in ((3, 0.7), (4, 0.9), (5, None), (6, 0.1)):
        save(folder, step, SmallEngine(), {}, {"model": {}}, group)
        checkpoint.retain(FolderShelf(folder), wanted)
        if score is not None:  # a probe is known after its save
            scores[step] = score
        seen.append([int(path.name[-1]) for path in checkpoint.committed(folder)])
    assert seen == [[3, 2], [4, 3, 2], [5, 4], [6, 5, 4]]  # of equal ones the newer


def test_a_pin_is_no_damage(folder: Path, group: Any) -> None:
    FolderShelf(folder).pin("step-00000002", True)
    assert checkpoint.defect(folder / "step-00000002") is None and _found(folder, group)[0].step == 2


def test_space_is_looked_for_before_anything_is_written(
    folder: Path, group: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Any] = []
    monkeypatch.setattr(torch, "save", lambda *arguments: written.append(arguments))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - 5000, 5000))
    with pytest.raises(StorageError, match=r"step 3 needs about 0 MiB, and .* has 0 MiB free; free space"):
        save(folder, 3, SmallEngine(), {}, {"model": {}}, group)
    assert not written
    assert [path.name for path in sorted(folder.iterdir())] == ["step-00000001", "step-00000002"]


def test_disk_that_fills_up_leaves_the_previous_and_names_the_place(folder: Path, group: Any) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
    try:
        with pytest.raises(StorageError, match=r"step 3 could not be written to .*checkpoints .*MiB free"):
            save(folder, 3, SmallEngine(100_000), {}, {"model": {}}, group)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert [path.name for path in sorted(folder.iterdir())] == ["step-00000001", "step-00000002"]
    assert _found(folder, group)[0].step == 2


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_weights_that_are_not_finite_are_not_saved(folder: Path, group: Any, value: str) -> None:
    engine = SmallEngine()
    engine.value[3] = float(value)
    with pytest.raises(CheckpointError, match="diverged: 1 of 1 weights are not finite, such as value"):
        save(folder, 3, engine, {}, {"model": {}}, group)
    assert [path.name for path in sorted(folder.iterdir())] == ["step-00000001", "step-00000002"]


def test_disk_that_is_full_for_the_weights_alone_is_told_like_any_other(
    folder: Path, group: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import safetensors.torch

    def full(*_: Any, **__: Any) -> None:
        raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(StorageError, match=r"step 3 could not be written .*No space left on device"):
        save(folder, 3, SmallEngine(), {}, {"model": {}}, group)
    assert [path.name for path in sorted(folder.iterdir())] == ["step-00000001", "step-00000002"]


def test_file_that_cannot_be_read_is_passed_over(folder: Path, group: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    checksum = files.checksum

    def bad_sector(path: Path, sync: bool) -> tuple[int, int]:
        if path.parent.name == "step-00000002":
            raise OSError(5, "Input/output error")
        return checksum(path, sync)

    monkeypatch.setattr(files, "checksum", bad_sector)
    found, _ = _found(folder, group)
    assert found.step == 1 and "cannot be read: Input/output error" in found.rejected[0]


def test_manifest_names_every_file(folder: Path) -> None:
    path = folder / "step-00000002"
    manifest = json.loads((path / "manifest.json").read_text())
    there = {str(p.relative_to(path)) for p in path.rglob("*") if p.is_file()} - {"manifest.json"}
    assert set(manifest["files"]) == there == set(FILES)
    assert checkpoint.defect(path) is None
