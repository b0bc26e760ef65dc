"""python -m pipeline.search: exact, in bounded memory, with a picture from the data set."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from pipeline.embed.arrays import ShardEncoder, forms_of
from pipeline.embed.command import main as embed
from pipeline.embed.settings import FORMAT
from pipeline.embed.store import EmbeddingStore
from pipeline.errors import ConfigError, DataError
from pipeline.search import nearest as module
from pipeline.search.command import main
from pipeline.search.nearest import EmbeddingReader, nearest
from pipeline.search.picture import composite
from sharding.dataset import open_dataset
from sharding.read_sample import find_sample, read_sample
from tests.unit.pipeline.exported_runs import make_run
from tests.unit.pipeline.small_shards import Made, make

ROWS = 256


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("data") / "pairs")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, made: Made) -> str:
    folder = tmp_path_factory.mktemp("run")
    run, out = make_run(folder, made.url), folder / "a.zarr"
    assert embed([str(run), "--out", str(out), "--batch-size", "4", "--shard-samples", "8", "--device", "cpu"]) == 0
    return str(out)


def drawn(folder: Path, num_shards: int, width: int = 64) -> tuple[str, np.ndarray]:
    """A store of random embeddings, and these."""
    generator = np.random.default_rng(5)
    vectors = generator.normal(size=(num_shards * ROWS, width)).astype(np.float32)
    encoder = ShardEncoder(forms_of((width,), "float32", (), {}), (), len(vectors), ROWS, 32)
    attributes = {"format": FORMAT, "complete": True, "of": {}, "shards": num_shards}
    store = EmbeddingStore(str(folder))
    for shard in range(num_shards):
        rows = range(shard * ROWS, (shard + 1) * ROWS)
        names = np.array([f"sample-{row:06d}" for row in rows], object)
        numbers = {name: np.full(ROWS, np.nan) for name in ("lon", "lat", "date_s1", "date_s2")}
        words = {name: np.full(ROWS, "", object) for name in ("split", "crs")}
        embedding = vectors[rows.start : rows.stop]
        columns = {"key": names, "embedding": embedding, "complete": np.ones(ROWS, bool), **numbers, **words}
        store.write_shard(shard, encoder.shard(shard, columns), {}, {})
    for path, content in (encoder.fixed() | {"zarr.json": encoder.root(attributes, consolidated=True)}).items():
        store.store.write(path, content)
    return str(folder), vectors


def found(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main([*arguments, "--json"]) == 0
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_neighbours_are_those_of_a_search_in_memory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, metric: str
) -> None:
    url, vectors = drawn(tmp_path, 3)
    monkeypatch.setattr(module, "BLOCK_BYTES", 100 * 64 * 8)  # blocks of 96 rows
    exact = vectors.astype(np.float64)
    if metric == "cosine":
        exact /= np.linalg.norm(exact, axis=1, keepdims=True)
        values = exact @ exact[300]
    else:
        values = -np.linalg.norm(exact - exact[300], axis=1)
    values[300] = -np.inf
    expected = np.argsort(-values)[:7]
    answer = found(capsys, url, "--key", "sample-000300", "--neighbours", "7", "--metric", metric)
    assert answer["query"]["row"] == 300 and [hit["row"] for hit in answer["neighbours"]] == expected.tolist()
    assert [hit["value"] for hit in answer["neighbours"]] == pytest.approx(abs(values[expected]).tolist(), rel=1e-12)


def test_answer_does_not_depend_on_the_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url, _ = drawn(tmp_path, 2)
    answers = []
    for size in (1, 100 * 64 * 8, 1 << 30):
        monkeypatch.setattr(module, "BLOCK_BYTES", size)
        answers.append(nearest(EmbeddingReader(url), 5, 20, "cosine"))
    assert answers[0] == answers[1] == answers[2]


@pytest.mark.parametrize("lost", ["embedding/c/1/0", "commits/00000001.json"])
def test_a_lost_shard_is_told_and_its_samples_are_not_passed_over(tmp_path: Path, lost: str) -> None:
    url, _ = drawn(tmp_path, 3)
    (tmp_path / lost).unlink()
    with pytest.raises(DataError, match=r"lost 1 of its 3 shards: commits/00000001.json.*pipeline.embed that made it"):
        EmbeddingReader(url)


def test_memory_does_not_grow_with_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_BYTES", 64 * 64 * 8)

    def peak(num_shards: int) -> int:
        reader = EmbeddingReader(drawn(tmp_path / str(num_shards), num_shards)[0])
        nearest(reader, 0, 5, "cosine")  # what is imported and kept once
        tracemalloc.start()
        nearest(reader, 0, 5, "cosine")
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    small, large = peak(2), peak(12)
    assert large < small + 100_000 < 12 * ROWS * 64 * 4


def test_negative_twin_one_block_of_everything_does_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_BYTES", 1 << 30)
    reader = EmbeddingReader(drawn(tmp_path, 12)[0])
    tracemalloc.start()
    nearest(reader, 0, 5, "cosine")
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert used > 12 * ROWS * 64 * 8


def test_labels_and_split_are_told(store: str, made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    answer = found(capsys, store, "--key", "pair-0003", "--neighbours", "19")
    told = {hit["key"]: tuple(hit["labels"]) for hit in [answer["query"], *answer["neighbours"]]}
    assert told == {key: sample.labels for key, sample in made.samples.items()}
    assert {hit["split"] for hit in answer["neighbours"]} == {"train"}
    assert main([store, "--key", "pair-0003"]) == 0
    assert "cosine to pair-0003 (Pastures), of 20 samples" in capsys.readouterr().out


def test_tokens_are_averaged(store: str, made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path, made.url)
    out = str(tmp_path / "t.zarr")
    arguments = ["--pool", "tokens", "--batch-size", "4", "--shard-samples", "8", "--device", "cpu"]
    assert embed([str(run), "--out", out, *arguments]) == 0
    mean, tokens = (found(capsys, url, "--key", "pair-0003")["neighbours"] for url in (store, out))
    assert [hit["key"] for hit in mean] == [hit["key"] for hit in tokens]
    assert [hit["value"] for hit in mean] == pytest.approx([hit["value"] for hit in tokens], rel=1e-5)


def test_samples_without_an_embedding_are_no_neighbours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tests.unit.pipeline.small_shards.FEW_BANDS", ("VV", "VH"))
    made = make(tmp_path / "pairs", subset_every=5)
    run, out = make_run(tmp_path, made.url), str(tmp_path / "a.zarr")
    assert embed([str(run), "--out", out, "--device", "cpu"]) == 0
    hits = found(capsys, out, "--key", "pair-0000", "--neighbours", "15")["neighbours"]
    assert not {"pair-0001", "pair-0006", "pair-0011", "pair-0016"} & {hit["key"] for hit in hits}
    with pytest.raises(ConfigError, match="--neighbours 16 is more than the 15 other samples"):
        main([out, "--key", "pair-0000", "--neighbours", "16"])
    with pytest.raises(ConfigError, match="sample 'pair-0006' lacks a modality"):
        main([out, "--key", "pair-0006"])


def test_picture_shows_the_query_and_its_neighbours(store: str, tmp_path: Path) -> None:
    from PIL import Image

    few, many = tmp_path / "few.png", tmp_path / "many.png"
    assert main([store, "--key", "pair-0003", "--neighbours", "5", "--picture", str(few)]) == 0
    assert main([store, "--key", "pair-0003", "--neighbours", "8", "--picture", str(many)]) == 0
    with Image.open(few) as one, Image.open(many) as two:
        assert one.width == two.width and one.height < two.height
        assert len(np.unique(np.asarray(one)[..., :3].reshape(-1, 3), axis=0)) > 100


def test_radar_is_shown_as_vv_vh_and_their_difference(made: Made) -> None:
    data, manifest = open_dataset(made.url)
    arrays = read_sample(data, manifest, find_sample(data, manifest, "pair-0003"))
    rgb = composite(arrays)
    assert rgb is not None and rgb.shape == (12, 12, 3)
    stored = made.samples["pair-0003"].arrays["s1"].data
    for channel, plane in enumerate((stored[0], stored[1], stored[0] - stored[1])):
        brightest, darkest = np.argmax(plane), np.argmin(plane)
        assert (rgb[..., channel].flat[brightest], rgb[..., channel].flat[darkest]) == (255, 0)
    assert composite({"s2_10m": arrays["s2_10m"]}) is None


def test_picture_of_another_data_set_is_refused(store: str, tmp_path: Path) -> None:
    other = make(tmp_path / "pairs", (3, 3))
    with pytest.raises(ConfigError, match=r"has the fingerprint [0-9a-f]{12}, the embeddings are of [0-9a-f]{12}"):
        main([store, "--key", "pair-0003", "--picture", str(tmp_path / "p.png"), "--data", other.url])
    assert not (tmp_path / "p.png").exists()


def test_wrong_key_names_the_nearest(store: str) -> None:
    with pytest.raises(DataError, match=r"no sample 'pair-3'; the nearest keys are pair-\d{4}, pair-\d{4}, pair-\d{4}"):
        main([store, "--key", "pair-3"])


def test_what_is_no_complete_store_is_refused(tmp_path: Path, made: Made) -> None:
    with pytest.raises(DataError, match=r"there is no store of embeddings"):
        main([str(tmp_path / "none.zarr"), "--key", "x"])
    with pytest.raises(ConfigError, match="is not empty"):
        main([made.url, "--key", "x"])
    url, _ = drawn(tmp_path / "half.zarr", 1)
    zarr.open_group(url, mode="r+", use_consolidated=False).attrs.update({"complete": False})
    with pytest.raises(DataError, match="is not complete"):
        main([url, "--key", "sample-000000"])


def test_options_that_say_nothing_are_refused(store: str) -> None:
    with pytest.raises(ConfigError, match="--neighbours 0 must be at least 1"):
        main([store, "--key", "pair-0003", "--neighbours", "0"])
    with pytest.raises(ConfigError, match="--data is only for --picture"):
        main([store, "--key", "pair-0003", "--data", "x"])
