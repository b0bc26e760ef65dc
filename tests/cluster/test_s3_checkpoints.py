"""Checkpoints in a real S3 server: killed in an upload, under faults, on other ranks, a run loses nothing."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.checkpoint.bucket import BucketShelf
from pipeline.weights import load_weights
from sharding.store import Store
from tests.dist.conftest import Run, dataset, new_run, undisturbed
from tests.s3server import Fault

pytestmark = [pytest.mark.s3, pytest.mark.dist, pytest.mark.chaos]
__all__ = ["dataset", "new_run", "undisturbed"]
STEPS = 14


@pytest.fixture(scope="module")
def straight(undisturbed: Callable[..., Run]) -> Run:
    """The run that nothing disturbed, with checkpoints on its disk."""
    return undisturbed()


@pytest.fixture
def remote(new_run: Callable[..., Run], s3: Any, request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Run, str]:
    """A run whose checkpoints lie in a bucket of its own, and their URL."""
    url = f"{s3.bucket(request.node.name.replace('_', '-')[:50])}/run"
    return new_run("run", f"checkpoint.url={url}", f"checkpoint.staging={tmp_path / 'staging'}"), url


def _weights(url: str, folder: Path) -> bytes:
    shelf = BucketShelf(Store(url))
    newest = shelf.names()[0]
    assert newest == f"step-{STEPS:08d}"
    return (shelf.fetch(newest, folder) / "model.safetensors").read_bytes()


def test_killed_in_an_upload_it_goes_on_from_the_commit_before(
    remote: tuple[Run, str], straight: Run, s3: Any, tmp_path: Path
) -> None:
    run, url = remote
    s3.faults.set([Fault(do="hang", method="PUT", path="step-00000008", amount=600)])
    process = run.start()
    deadline = time.monotonic() + 120
    while not s3.faults.seen() or not BucketShelf(Store(url)).names():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.communicate(timeout=60)
    s3.faults.set([])
    assert BucketShelf(Store(url)).names() == ["step-00000004"] and BucketShelf(Store(url)).remains()

    assert f"resumed at step 4 from {url}/step-00000004" in run.finish()
    assert run.trace(0) == straight.trace(0) and run.trace(1) == straight.trace(1)
    assert _weights(url, tmp_path / "fetched") == straight.weights()
    assert BucketShelf(Store(url)).remains() == []
    assert not any(path.is_file() for path in (tmp_path / "staging").rglob("*"))
    # What comes after training needs nothing but the URL.
    loaded = load_weights(url)
    assert loaded.step == STEPS and loaded.settings.train.steps == STEPS
    assert (tmp_path / "run" / "checkpoints").exists() is False


def test_storm_of_503_in_a_save_costs_nothing(remote: tuple[Run, str], straight: Run, s3: Any, tmp_path: Path) -> None:
    run, url = remote
    s3.faults.set([Fault(do="503", method="PUT", path="step-00000004", times=12)])
    said = run.finish()
    assert len(s3.faults.seen()) == 12 and "warning" not in said
    assert [event["event"] for event in run.events() if "save" in event["event"]] == []
    assert _weights(url, tmp_path / "fetched") == straight.weights()


def test_store_that_refuses_for_a_while_costs_one_checkpoint(
    remote: tuple[Run, str], straight: Run, s3: Any, tmp_path: Path
) -> None:
    run, url = remote
    s3.faults.set([Fault(do="denied", method="PUT", path="step-00000004", times=1000)])
    said = run.finish("checkpoint.keep=9")
    assert "warning: cannot write s3://" in said and "the run goes on without, failed save 1 of 3" in said
    assert [event["step"] for event in run.events() if event["event"] == "save_failed"] == [4]
    assert BucketShelf(Store(url)).names() == [f"step-{step:08d}" for step in (14, 12, 8)]
    assert _weights(url, tmp_path / "fetched") == straight.weights()


def test_other_number_of_ranks_goes_on_from_a_bucket(remote: tuple[Run, str], straight: Run, s3: Any) -> None:
    run, url = remote
    run.finish("train.steps=8")
    said = run.finish("run.num_processes=1")
    assert f"resumed at step 8 from {url}/step-00000008 on 1 x cpu, saved by 2 ranks" in said
    assert [m["step"] for m in run.metrics()] == list(range(1, STEPS + 1))
    for ours, theirs in zip(run.metrics(), straight.metrics(), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=2e-2)
    both = zip(straight.trace(0), straight.trace(1), strict=True)
    keys = [sorted(key for rank in ranks for key in rank["keys"]) for ranks in both]
    assert [sorted(line["keys"]) for line in run.trace(0)][8:] == keys[8:]


def test_the_server_lets_one_of_two_create_an_object(s3: Any) -> None:
    store = Store(f"{s3.bucket('created-once')}/x")
    assert store.write_new("COMMIT", b"one")
    with pytest.raises(OSError, match="preconditions") as refused:
        store.fs.pipe_file(store.full("COMMIT"), b"two", mode="create")
    assert refused.value.__cause__.response["Error"]["Code"] == "PreconditionFailed"  # type: ignore[union-attr]
    # The moment between the look and the write: the store's answer decides.
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(store.fs, "exists", lambda _: False)
        assert not store.write_new("COMMIT", b"two")
    assert not store.write_new("COMMIT", b"two") and store.write_new("COMMIT", b"one")
    assert store.read("COMMIT") == b"one"
