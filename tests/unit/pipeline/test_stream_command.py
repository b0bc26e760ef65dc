"""`python -m pipeline.stream`: what its commands say, on real data sets."""

import inspect
import json
import shutil
from dataclasses import replace
from itertools import islice

import fsspec
import pytest
import torch

from pipeline.command import exit_code
from pipeline.stream.__main__ import main, parse_arguments
from pipeline.stream.bench import difference
from pipeline.stream.bench_report import PRESETS, TFLOPS, models_for
from pipeline.stream.exact import Stream, StreamConfig
from pipeline.stream.instruments import Instruments
from pipeline.stream.order import OrderSettings
from tests.unit.pipeline.small_shards import make, reader_threads, take


def run_json(capsys, *arguments):
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_shuffle_needs_the_manifest_alone(made, capsys):
    for folder in ("shards", "index", "metadata"):
        shutil.rmtree(made.root / folder)
    told = run_json(capsys, "shuffle", made.url, "--global-batch", "8", "--ranks", "2", "--batches", "10")
    assert told["split"]["samples"] == 20
    assert told["mixing"]["this stream"]["shards_in_64"] == 3
    assert main(["shuffle", made.url, "--global-batch", "8", "--ranks", "2", "--batches", "10"]) == 0
    assert "64 samples of a rank come from 3.0 shards" in capsys.readouterr().out


def test_shuffle_takes_eight_ranks_a_node_and_64_samples_a_rank(made, capsys):
    told = run_json(capsys, "shuffle", made.url, "--nodes", "2", "--batches", "1")
    assert (told["question"]["ranks"], told["question"]["global_batch"]) == (16, 1024)


def test_shuffle_measures_the_order_that_the_stream_has(made, capsys):
    told = run_json(
        capsys, "shuffle", made.url, "--global-batch", "8", "--ranks", "2", "--window-gib", "1e-5", "--batches", "2"
    )
    with Stream(StreamConfig(url=made.url, global_batch=8, window_gib=1e-5)) as stream:
        settings = stream.order.settings
    assert told["order"] == {name: getattr(settings, name) for name in told["order"]}


def test_order_names_the_samples_that_the_ranks_get(made, capsys):
    steps, ranks = 6, 2  # 48 samples: two ends of epochs
    for rank in range(ranks):
        with Stream(StreamConfig(url=made.url, global_batch=8, seed=3), rank, ranks) as stream:
            batches = take(stream, steps)
        for step, batch in enumerate(batches):
            arguments = ("--step", str(step), "--global-batch", "8", "--ranks", str(ranks), "--seed", "3")
            told = run_json(capsys, "order", made.url, *arguments, "--rank", str(rank))
            assert [sample["key"] for sample in told["samples"]] == batch.keys
            assert [sample["epoch"] for sample in told["samples"]] == batch.epoch.tolist()
            assert [sample["position"] for sample in told["samples"]] == batch.position.tolist()
            everybody = run_json(capsys, "order", made.url, *arguments)["samples"]
            assert [sample for sample in everybody if sample["rank"] == rank] == told["samples"]


def test_order_of_another_seed_is_another(made, capsys):
    arguments = ("order", made.url, "--step", "0", "--global-batch", "8", "--ranks", "1")
    keys = [[s["key"] for s in run_json(capsys, *arguments, "--seed", seed)["samples"]] for seed in ("0", "1")]
    assert keys[0] != keys[1]


def test_order_reads_no_pixel_and_finds_the_samples_in_their_shards(made, capsys):
    shutil.rmtree(made.root / "shards")
    arguments = ("order", made.url, "--step", "1", "--global-batch", "8", "--ranks", "4")
    sizes, numbers = [7, 5, 8], {key: number for number, key in enumerate(sorted(made.samples))}
    for sample in run_json(capsys, *arguments)["samples"]:
        shard = int(sample["shard"].removesuffix(".tar")[-5:])
        assert numbers[sample["key"]] == sum(sizes[:shard]) + sample["record"]
    assert main(list(arguments)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split("\t") == ["rank", "slot", "epoch", "position", "key", "shard", "record"]
    assert len(lines) == 2 + 8


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("order", "--step", "-1", "--global-batch", "8", "--ranks", "2"), 2, "steps count from 0"),
        (("order", "--step", "0", "--global-batch", "8", "--ranks", "2", "--rank", "2"), 2, "rank 2 is not one of"),
        (("order", "--step", "0", "--global-batch", "9", "--ranks", "2"), 2, "take 8 or 10"),
        (("shuffle", "--split", "dev"), 1, "it has train"),
        (("shuffle", "--groups", "-1"), 2, "groups is -1"),
        (("order", "--step", "0", "--global-batch", "8", "--ranks", "2", "--groups", "-1"), 2, "groups is -1"),
        (("bench", "--groups", "-1"), 2, "groups is -1"),
        (("shuffle", "--ranks", "6", "--nodes", "4"), 2, "do not fill 4 nodes"),
        (("bench", "--batch-size", "0"), 2, "--batch-size is 0"),
        (("bench", "--threads", "0"), 2, "threads is 0"),
        (("bench", "--seconds", "0"), 2, "seconds is 0"),
        (("bench", "--tflops", "0"), 2, "tflops is 0"),
        (("bench", "--device", "teapot"), 2, "there is no device 'teapot'"),
        (("bench", "--device", "meta"), 2, "has no device 'meta'"),
        (("bench", "--split", "dev"), 1, "it has train"),
    ],
)
def test_what_cannot_be_answered_ends_with_a_sentence(made, capsys, arguments, code, message):
    assert exit_code(main, [arguments[0], made.url, *arguments[1:]]) == code
    assert message in capsys.readouterr().err


def test_a_url_without_a_data_set_is_named(tmp_path, capsys):
    assert exit_code(main, ["shuffle", str(tmp_path)]) == 1
    assert "holds no finished data set" in capsys.readouterr().err


def test_bench_refuses_a_gpu_that_is_not_there(made, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert exit_code(main, ["bench", made.url, "--device", "cuda"]) == 2
    assert "leave out --device" in capsys.readouterr().err


def test_bench_measures_a_local_data_set(tmp_path, capsys):
    made = make(tmp_path / "pairs", (16, 16), pixels=24)
    told = run_json(capsys, "bench", made.url, "--batch-size", "8", "--seconds", "0.2")
    measured = told["measured"]
    assert measured["sums"]["samples"] == measured["steps"] * 8
    assert measured["is_remote"] is False
    assert told["rates"]["samples_per_s"] == pytest.approx(measured["sums"]["samples"] / measured["seconds"])
    assert measured["sums"]["bytes_fetched"] == 0
    assert told["rates"]["raw_bytes_per_s"] > 0
    assert sum(told["waits_s"].values()) == pytest.approx(measured["sums"]["wait_s"])
    assert set(told["gpus_fed"]) == set(PRESETS)
    assert told["limit"]
    assert reader_threads() == []


def test_bench_measures_a_store_with_a_cache_on_disk(tmp_path, capsys):
    made = make(tmp_path / "pairs", (16, 16), pixels=24)
    fsspec.filesystem("memory").put(str(made.root), "memory://bench", recursive=True)
    arguments = ["bench", "memory://bench", "--batch-size", "8", "--seconds", "0.2", "--cache-dir", f"{tmp_path}/c"]
    try:
        told = run_json(capsys, *arguments)
        assert main([*arguments, "--model", "vit_b"]) == 0
    finally:
        fsspec.filesystem("memory").rm("/bench", recursive=True)
    assert told["measured"]["is_remote"] is True
    assert told["measured"]["raw"]["in_flight"] == 16
    printed = capsys.readouterr().out
    for word in ("samples/s", "raw read limit", "wait per step", "network", "Limit: ", "vit_b", "hits"):
        assert word in printed
    assert "vit_l" not in printed


def test_bench_streams_as_the_first_rank_of_a_job(made, capsys):
    told = run_json(capsys, "bench", made.url, "--batch-size", "2", "--ranks", "4", "--seconds", "0.1")
    measured = told["measured"]
    assert measured["settings"]["stream"]["global_batch"] == 8
    assert measured["sums"]["samples"] == 2 * measured["steps"]


def test_sums_are_counted_from_the_first_batch_on(made):
    with Stream(StreamConfig(url=made.url, global_batch=4)) as stream:
        batches = iter(stream)
        list(islice(batches, 2))
        before = stream.instruments()
        list(islice(batches, 3))
        assert difference(stream.instruments(), before).samples == 12
    assert difference(before, before) == Instruments()


def test_defaults_are_those_of_the_stream():
    config = {f.name: f.default for f in StreamConfig.__dataclass_fields__.values()}
    bench = parse_arguments(["bench", "x"])
    for name in ("split", "seed", "threads", "window_gib", "groups", "cache_gib", "cache_dir", "client"):
        assert getattr(bench, name) == config[name]
    assert bench.tflops == TFLOPS
    shuffle = parse_arguments(["shuffle", "x"])
    assert shuffle.window_gib == inspect.signature(OrderSettings.choose).parameters["window_gib"].default


def test_models_are_those_of_the_data(tmp_path):
    from fusmae import FusMAEConfig
    from fusmae.flops import forward_flops

    made = make(tmp_path / "pairs", (2,), pixels=126)
    (model,) = models_for(made.manifest, ("vit_s",), 100.0)
    assert model.image_size == 120
    flops = 3 * forward_flops(FusMAEConfig.vit_s())
    assert model.train_gflop * 1e9 == flops
    assert model.samples_per_s == pytest.approx(100e12 / flops)
    tiny = make(tmp_path / "tiny", (2,), pixels=12)
    assert models_for(tiny.manifest, PRESETS, 100.0) == ()


def test_models_go_by_bands_whatever_arrays_are_called(tmp_path):
    made = make(tmp_path / "pairs", (2,), pixels=24)
    radar, *optical = made.manifest.arrays
    renamed = replace(
        made.manifest,
        arrays=(replace(radar, name="radar"), *(replace(a, name=f"optical{n}") for n, a in enumerate(optical))),
    )
    models = models_for(made.manifest, ("vit_s",), 100.0)
    assert models_for(renamed, ("vit_s",), 100.0) == models
    (alone,) = models_for(replace(renamed, arrays=renamed.arrays[:1]), ("vit_s",), 100.0)
    assert alone.train_gflop < 0.7 * models[0].train_gflop
    unknown = replace(radar, name="s1", bands=("elevation",))
    assert models_for(replace(renamed, arrays=(unknown,)), ("vit_s",), 100.0) == ()


def test_groups_are_those_of_the_stream_in_every_command(made, capsys):
    arguments = ("--groups", "3", "--window-gib", "1e-5")
    config = StreamConfig(url=made.url, global_batch=12, groups=3, window_gib=1e-5)
    with Stream(config, 1, 3) as stream:
        keys, settings = take(stream, 1)[0].keys, stream.order.settings
    told = run_json(capsys, "shuffle", made.url, "--global-batch", "12", "--ranks", "3", "--batches", "2", *arguments)
    assert told["order"] == {name: getattr(settings, name) for name in told["order"]}
    assert told["order"]["num_groups"] == 3
    step = ("order", made.url, "--step", "0", "--global-batch", "12", "--ranks", "3", "--rank", "1")
    assert [sample["key"] for sample in run_json(capsys, *step, *arguments)["samples"]] == keys
    assert [sample["key"] for sample in run_json(capsys, *step, "--window-gib", "1e-5")["samples"]] != keys
    told = run_json(capsys, "bench", made.url, "--batch-size", "4", "--ranks", "3", "--seconds", "0.1", *arguments)
    assert told["measured"]["settings"]["stream"]["groups"] == 3


def test_bench_refuses_a_gpu_beyond_those_there(made, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert exit_code(main, ["bench", made.url, "--device", "cuda:7"]) == 2
    assert "no device 'cuda:7'; it has 1, counted from cuda:0" in capsys.readouterr().err
