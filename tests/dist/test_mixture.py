"""A run on several data sets at once: killed, resumed on another number of ranks, and refused when they change."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.dist.conftest import Run
from tests.unit.pipeline.small_shards import make

pytestmark = [pytest.mark.dist, pytest.mark.chaos]

SAVED, KILLED, STEPS = 4, 6, 10


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> str:
    """13 pairs of random pixels, as many a side as the first data set's."""
    return make(tmp_path_factory.mktemp("other") / "random", (9, 4), pixels=120, subset_every=4).url


@pytest.fixture
def mixed(new_run: Callable[..., Run], dataset: str, other: str) -> Callable[..., Run]:
    mixture = f"data.mixture=[{{url: {dataset}, weight: 3}}, {{url: {other}, weight: 1}}]"
    return lambda name, *overrides: new_run(name, mixture, f"train.steps={STEPS}", *overrides)


def _keys(run: Run, ranks: int = 2, first: int = 0) -> list[list[str]]:
    """The samples of each step, of all ranks together, in the order of the slots."""
    steps = zip(*(run.trace(rank)[first:] for rank in range(ranks)), strict=True)
    return [[key for rank in step for key in rank["keys"]] for step in steps]


def test_a_killed_run_on_a_mixture_equals_an_uninterrupted_one(mixed: Callable[..., Run]) -> None:
    straight, killed = mixed("straight"), mixed("killed")
    straight.finish()
    killed.kill_at(KILLED)
    assert KILLED <= len(killed.trace()) < SAVED + 4, "the kill came after the next save; the test shows nothing"
    assert f"resumed at step {SAVED}" in killed.finish()
    for rank in (0, 1):
        assert killed.trace(rank) == straight.trace(rank)
    names = ("step", "loss", "loss_s1", "loss_s2", "epoch/set", "epoch/random")
    assert [[m[n] for n in names] for m in killed.metrics()] == [[m[n] for n in names] for m in straight.metrics()]
    assert killed.weights() == straight.weights()

    counts = Counter(key for step in _keys(straight) for key in step)
    assert all(Counter(key.split("/")[0] for key in step) == {"set": 6, "random": 2} for step in _keys(straight))
    of_set = [count for key, count in counts.items() if key.startswith("set/")]
    of_random = [count for key, count in counts.items() if key.startswith("random/")]
    assert len(of_set) == 25 and set(of_set) == {2, 3}  # 60 samples are 2 epochs of 25 and 10 more
    assert len(of_random) == 13 and set(of_random) == {1, 2}  # 20 are an epoch of 13 and 7 more
    last = straight.metrics()[-1]
    assert (last["epoch/set"], last["epoch/random"]) == (60 / 25, 20 / 13)
    told = json.loads((straight.dir / "environment.json").read_text())["mixture"]
    assert {name: (about["samples"], about["share"]) for name, about in told.items()} == {
        "set": (25, 0.75),
        "random": (13, 0.25),
    }


def test_a_run_on_a_mixture_goes_on_with_the_same_samples_on_one_rank(mixed: Callable[..., Run]) -> None:
    straight, resized = mixed("straight"), mixed("resized")
    straight.finish()
    resized.finish("train.steps=4")
    said = resized.finish("run.num_processes=1", "train.micro_batch=4")
    assert "resumed at step 4" in said
    assert _keys(resized, ranks=1, first=SAVED) == _keys(straight)[SAVED:]


def test_a_run_on_another_mixture_is_refused_by_name(mixed: Callable[..., Run], dataset: str, other: str) -> None:
    run = mixed("run")
    run.finish("train.steps=4")
    other_weights = f"data.mixture=[{{url: {dataset}, weight: 1}}, {{url: {other}, weight: 1}}]"
    assert "the share of data set 'set' was '3 of 4 parts' and is '1 of 2 parts'" in run.finish(other_weights, code=2)
    fewer = f"data.mixture=[{{url: {dataset}, weight: 3}}]"
    assert "data set 'random' is gone" in run.finish(fewer, code=2)


def test_an_evaluation_of_a_run_on_a_mixture_uses_its_first_data_set(
    new_run: Callable[..., Run], tmp_path: Path, dataset: str, other: str
) -> None:
    from pipeline.evaluate import main
    from pipeline.report import write_report

    mixture = f"data.mixture=[{{url: {dataset}}}, {{url: {other}}}]"
    run = new_run("run", mixture, "data.url=null", "data.temperature=5", "train.steps=4")
    run.finish()
    assert main(["reconstruction", str(run.dir), "reconstruction.pictures=1"]) == 0
    evaluated = json.loads((run.dir / "evaluation" / "reconstruction.json").read_text())
    assert evaluated["data_url"] == dataset
    assert dataset in write_report(run.dir).read_text()
