"""python -m pipeline.embed on one rank: the embeddings are those of evaluations, and the store says what it is of."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr

from pipeline.embed.command import main
from pipeline.embed.facts import seconds_of
from pipeline.embed.rows import Rows, choose_chunk_rows, choose_shard_rows
from pipeline.errors import CheckpointError, ConfigError, DataError
from pipeline.evaluate import resolve_settings
from pipeline.features import collect_features
from pipeline.frozen import FrozenModel, open_frozen
from tests.unit.pipeline.exported_runs import make_run
from tests.unit.pipeline.small_shards import LABELS, Made, damage, make

SMALL_SHARDS = ("--batch-size", "4", "--shard-samples", "8", "--device", "cpu")


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("data") / "pairs")


@pytest.fixture(scope="module")
def first_run(tmp_path_factory: pytest.TempPathFactory, made: Made) -> Path:
    return make_run(tmp_path_factory.mktemp("run"), made.url)


@pytest.fixture(scope="module")
def first_store(first_run: Path) -> Path:
    return embedded(first_run, "first.zarr")


@pytest.fixture
def run(tmp_path: Path, first_run: Path) -> Path:
    """A run of the test's own."""
    return Path(shutil.copytree(first_run, tmp_path / "run"))


@pytest.fixture
def store(run: Path, first_store: Path) -> Path:
    """A complete store of the run, the test's own."""
    return Path(shutil.copytree(first_store, run.parent / "a.zarr"))


def embedded(run: Path, name: str, *arguments: str) -> Path:
    out = run.parent / name
    assert main([str(run), "--out", str(out), *SMALL_SHARDS, *arguments]) == 0
    return out


def frozen_of(run: Path) -> FrozenModel:
    return open_frozen(str(run), resolve_settings(str(run), []).data, "cpu")


def opened(out: Path) -> Any:
    return zarr.open_group(str(out), mode="r")


def files_of(out: Path) -> dict[str, bytes]:
    """All but the root, whose attributes name the command."""
    found = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    del found["zarr.json"]
    return found


@pytest.mark.parametrize("modalities", ["s1", "s2", "s1+s2"])
def test_embeddings_are_the_features_of_evaluations(run: Path, modalities: str) -> None:
    out = embedded(run, "a.zarr", "--modalities", modalities)
    frozen = frozen_of(run)
    labels: list[torch.Tensor] = []
    features = collect_features(
        frozen, {"encoder": frozen.model}, "train", 4, look=lambda batch, _: labels.append(batch.labels.clone())
    )
    assert (opened(out)["embedding"][:] == features["encoder"][modalities].numpy()).all()
    assert (opened(out)["labels"][:] == torch.cat(labels).numpy()).all()


def test_the_negative_twin_other_weights_give_other_embeddings(run: Path, tmp_path: Path, made: Made) -> None:
    other = make_run(tmp_path / "other", made.url, {"mlp_ratio": 2.0})
    ours, theirs = (opened(embedded(one, "a.zarr"))["embedding"][:] for one in (run, other))
    assert ours.shape == theirs.shape and (ours != theirs).any()


def test_pooling_takes_the_global_token_or_every_patch_token(run: Path) -> None:
    cls = opened(embedded(run, "cls.zarr", "--pool", "cls"))
    tokens = opened(embedded(run, "tokens.zarr", "--pool", "tokens"))
    frozen, row = frozen_of(run), 0
    for _, images, _ in frozen.batches("train", 4):
        with torch.inference_mode():
            output = frozen.model.encode(images)
        end = row + len(output.global_token_BD)
        assert (cls["embedding"][row:end] == output.global_token_BD.numpy()).all()
        assert (tokens["embedding"][row:end] == torch.cat(list(output.tokens.values()), dim=1).numpy()).all()
        row = end
    assert tokens["embedding"].shape == (20, 2 * 9, 16) and row == 20
    assert tokens["embedding"].attrs["tokens_of"] == {"s1": 9, "s2": 9}


def test_float16_is_the_same_rounded(run: Path) -> None:
    whole, half = (opened(embedded(run, f"{name}.zarr", "--dtype", name)) for name in ("float32", "float16"))
    assert (half["embedding"][:] == whole["embedding"][:].astype("float16")).all()
    assert half["embedding"].dtype == "float16"


def test_store_is_sharded_and_tells_its_samples_and_where_it_came_from(store: Path, made: Made) -> None:
    group = opened(store)
    assert group["embedding"].shards == (8, 16) and group["embedding"].chunks == (8, 16)
    assert list(group["key"][:]) == list(made.samples) and set(group["split"][:]) == {"train"}
    assert list(group["label"][:]) == list(LABELS) and group["complete"][:].all()
    has = [tuple(np.array(LABELS)[row]) for row in group["labels"][:]]
    assert has == [sample.labels for sample in made.samples.values()]
    assert np.isnan(group["lon"][:]).all() and np.isnan(group["date_s1"][:]).all()
    about = dict(group.attrs)
    assert about["complete"] is True and about["samples"] == 20
    assert about["of"]["data_fingerprint"] == made.manifest.fingerprint and about["of"]["step"] == 7
    assert about["of"]["modalities"] == ["s1", "s2"] and about["of"]["pool"] == "mean"
    assert len(about["of"]["weights_sha256"]) == 64 and len(about["provenance"]["config_sha256"]) == 64
    assert about["provenance"]["packages"]["torch"] and about["provenance"]["command"]


def test_xarray_opens_it(store: Path) -> None:
    xarray = pytest.importorskip("xarray", reason="xarray of requirements-dev.txt is not installed")
    with xarray.open_zarr(str(store)) as data:
        assert data["embedding"].dims == ("sample", "feature")
        assert {"key", "split", "lon", "lat", "crs", "date_s1", "date_s2", "complete"} <= set(data["embedding"].coords)
        assert data["date_s2"].dtype.kind == "M" and np.isnat(data["date_s2"].values).all()
        assert (data["embedding"].values == opened(store)["embedding"][:]).all()
        assert list(data["labels"].sel(label="Pastures").values) == list(opened(store)["labels"][:, 0])


def test_sample_without_a_modality_has_no_embedding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr("tests.unit.pipeline.small_shards.FEW_BANDS", ("VV", "VH"))
    made = make(tmp_path / "pairs", subset_every=5)
    run = make_run(tmp_path, made.url)
    group = opened(embedded(run, "both.zarr"))
    assert "4 samples lack a modality" in capsys.readouterr().out
    lacking = [number for number in range(20) if number % 5 == 1]
    assert list(np.flatnonzero(~group["complete"][:])) == lacking
    assert list(np.flatnonzero(np.isnan(group["embedding"][:]).any(axis=1))) == lacking
    radar = opened(embedded(run, "s1.zarr", "--modalities", "s1"))
    assert radar["complete"][:].all() and np.isfinite(radar["embedding"][:]).all()


def test_same_command_again_does_nothing(run: Path, store: Path, capsys) -> None:
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*")}
    embedded(run, "a.zarr")
    assert "nothing to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in store.rglob("*")} == before


@pytest.mark.parametrize("left", ["no record", "half a record", "a record of other bytes", "a file less"])
def test_shard_without_a_whole_record_is_written_again(run: Path, store: Path, left: str) -> None:
    out = store
    whole = files_of(out)
    record = out / "commits" / "00000001.json"
    (out / "embedding" / "c" / "1" / "0").write_bytes(b"half")
    if left == "no record":
        record.unlink()
    elif left == "half a record":
        record.write_bytes(record.read_bytes()[:50])
    elif left == "a record of other bytes":
        damage(record, 30)
    else:
        (out / "embedding" / "c" / "1" / "0").unlink()
    kept = {path: (out / path).stat().st_mtime_ns for path in whole if "/c/0" in path or "/c/2" in path}
    del kept["label/c/0"]  # no shard's
    embedded(run, "a.zarr")
    assert files_of(out) == whole
    assert {path: (out / path).stat().st_mtime_ns for path in kept} == kept
    assert json.loads((out / "zarr.json").read_text())["attributes"]["complete"] is True


@pytest.mark.parametrize("path", ["embedding/c/1/0", "key/c/0", "label/c/0", "lon/zarr.json"])
def test_verify_finds_a_flipped_byte(run: Path, store: Path, path: str, capsys) -> None:
    out = store
    assert main(["--verify", "--out", str(out)]) == 0
    assert "every file is as it was written" in capsys.readouterr().out
    damage(out / path, 20)
    with pytest.raises(DataError, match=rf"a\.zarr/{path}: .* delete the file"):
        main(["--verify", "--out", str(out)])
    (out / path).unlink()
    embedded(run, "a.zarr")
    assert main(["--verify", "--out", str(out)]) == 0


def test_verify_finds_a_flipped_byte_in_a_record(store: Path) -> None:
    damage(store / "commits" / "00000002.json", 40)
    with pytest.raises(DataError, match=r"commits/00000002\.json: the record is missing or damaged"):
        main(["--verify", "--out", str(store)])


def test_verify_of_an_unfinished_store_says_so(run: Path) -> None:
    with pytest.raises(DataError, match="is not complete"):
        main(["--verify", "--out", str(run.parent / "none.zarr")])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--pool", "cls"), r"key 'pool', expected 'cls', found 'mean'"),
        (("--dtype", "float16"), r"key 'dtype', expected 'float16', found 'float32'"),
        (("--batch-size", "8"), r"key 'batch_size', expected 8, found 4"),
        (("--modalities", "s1"), r"key 'modalities', expected \['s1'\], found \['s1', 's2'\]"),
        (("data.upsample=bilinear",), r"key 'upsample', expected 'bilinear', found 'nearest'"),
    ],
)
def test_store_of_other_settings_is_refused(run: Path, store: Path, arguments: tuple[str, ...], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        embedded(run, store.name, *arguments)


def test_store_of_another_model_or_data_set_is_refused(run: Path, store: Path, tmp_path: Path) -> None:
    out = store
    before = files_of(out)
    other = Path(shutil.copytree(run, tmp_path / "other"))
    weights = other / "checkpoints" / "step-00000007" / "model.safetensors"
    _renew(weights, lambda tensors: {name: value + 1 for name, value in tensors.items()})
    with pytest.raises(ConfigError, match=r"key 'weights_sha256', expected '[0-9a-f]{64}', found '[0-9a-f]{64}'"):
        main([str(other), "--out", str(out), *SMALL_SHARDS])
    longer = make(tmp_path / "longer", (7, 5, 9))
    with pytest.raises(ConfigError, match=r"key 'data_fingerprint', expected"):
        embedded(run, "a.zarr", f"data.url={longer.url}")
    assert files_of(out) == before


def _renew(path: Path, change: Any) -> None:
    """Other weights in a checkpoint that is whole."""
    import google_crc32c
    from safetensors.torch import load_file, save_file

    save_file(change(load_file(path)), path)
    manifest = path.with_name("manifest.json")
    about = json.loads(manifest.read_text())
    about["files"][path.name] = [path.stat().st_size, google_crc32c.value(path.read_bytes())]
    manifest.write_text(json.dumps(about))


def test_weights_that_give_no_number_are_told_by_the_sample(run: Path) -> None:
    weights = run / "checkpoints" / "step-00000007" / "model.safetensors"
    _renew(weights, lambda tensors: {name: value * float("nan") for name, value in tensors.items()})
    with pytest.raises(DataError, match="the embedding of sample pair-0000 is no finite float32"):
        embedded(run, "a.zarr")


@pytest.mark.parametrize(
    ("arguments", "error", "told"),
    [
        (("--split", "validation"), DataError, "no split 'validation'; it has train"),
        (("--modalities", "s1+s3"), ConfigError, "there is no 's3' .* only s1, s2"),
        (("--shard-samples", "10"), ConfigError, "no multiple of --batch-size 4; write 8"),
        (("--batch-size", "0"), ConfigError, "must be at least 1"),
        (("--num-processes", "-1"), ConfigError, "must not be negative"),
        (("probe.epochs=3",), ConfigError, "'probe.epochs=3' sets nothing that embedding knows"),
        (("data.splits=x",), ConfigError, "data.splits"),
        (("data.url=/nowhere",), DataError, "holds no finished data set"),
    ],
)
def test_what_cannot_work_is_refused(run: Path, arguments: tuple[str, ...], error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        embedded(run, "a.zarr", *arguments)
    assert not (run.parent / "a.zarr").exists()


def test_run_and_output_that_are_something_else_are_refused(run: Path, made: Made) -> None:
    with pytest.raises(CheckpointError, match="there is no folder"):
        main([str(run / "none"), f"data.url={made.url}", "--out", str(run.parent / "a.zarr")])
    with pytest.raises(ConfigError, match="is not empty"):
        main([str(run), "--out", made.url])
    zarr.create_group(str(run.parent / "b.zarr"))
    with pytest.raises(ConfigError, match=r"holds another Zarr store: key 'format', expected .* found None"):
        main([str(run), "--out", str(run.parent / "b.zarr")])


def test_model_without_a_global_token_has_no_cls(tmp_path: Path, made: Made) -> None:
    run = make_run(tmp_path, made.url, {"global_token": False})
    with pytest.raises(ConfigError, match="no global token"):
        embedded(run, "a.zarr", "--pool", "cls")


@pytest.mark.parametrize("sizes", [(25, 2), (1, 1, 1), (8, 8), (3, 30, 7)])
def test_every_row_is_in_one_pass_and_no_pass_crosses_a_shard_or_a_split(sizes: tuple[int, ...]) -> None:
    splits = {f"split{i}": size for i, size in enumerate(sizes)}
    rows = Rows(splits=splits, batch_size=4, shard_rows=8)
    for world_size in (1, 2, 3, 20):
        shares = [rows.share(list(range(rows.num_shards)), rank, world_size) for rank in range(world_size)]
        passes = [one for share in shares for one in rows.passes(share)]
        assert [row for one in passes for row in range(one.row, one.row + one.last - one.first)] == list(
            range(rows.num_rows)
        )
        starts = dict(zip(splits, np.cumsum([0, *sizes]), strict=False))
        assert all(starts[one.split] + one.first == one.row and one.last <= splits[one.split] for one in passes)
        assert all(one.row // 8 == one.shard == (one.row + one.last - one.first - 1) // 8 for one in passes)
        assert [one.shard for one in passes if one.ends_shard] == list(range(rows.num_shards))
        assert max(one.last - one.first for one in passes) <= 4


def test_shards_and_chunks_are_bounded() -> None:
    assert choose_shard_rows(768 * 4, 64) == 4096
    assert choose_shard_rows(450 * 768 * 4, 64) == 64
    assert choose_shard_rows(1000, 5000) == 5000
    assert choose_chunk_rows(768 * 4, 4096) == 256
    assert choose_chunk_rows(450 * 768 * 4, 64) == 1


@pytest.mark.parametrize(
    ("date", "seconds"),
    [
        ("1970-01-02", 86400.0),
        ("1970-01-01T00:00:01", 1.0),
        ("1970-01-01T02:00:00+02:00", 0.0),
    ],
)
def test_dates_are_seconds_in_utc(date: str, seconds: float) -> None:
    assert seconds_of(date) == seconds


@pytest.mark.parametrize("date", [None, "", "June 2017"])
def test_what_is_no_date_is_not_a_number(date: str | None) -> None:
    assert np.isnan(seconds_of(date))


def test_passes_end_where_rows_do() -> None:
    rows = replace(Rows(splits={"train": 5}, batch_size=4, shard_rows=4), batch_size=2)
    assert [(one.first, one.last, one.ends_shard) for one in rows.passes([0, 1])] == [
        (0, 2, False),
        (2, 4, True),
        (4, 5, True),
    ]
