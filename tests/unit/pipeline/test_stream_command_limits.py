"""What `python -m pipeline.stream bench` says limits a stream: one cause for each set of figures."""

from dataclasses import replace

import pytest

from pipeline.stream.bench import BenchSettings, Measured, RawRead
from pipeline.stream.bench_report import BenchReport, Model, bench_lines, waits, what_limits
from pipeline.stream.exact import StreamConfig
from pipeline.stream.instruments import Instruments

IDLE = Instruments(samples=6400, bytes_read=2_000_000_000, wait_s=10.0, wait_other_s=10.0)


def measured(sums=IDLE, raw=1e9, **changes) -> Measured:
    values = {
        "settings": BenchSettings(stream=StreamConfig(url="s3://b/x", global_batch=64, threads=2)),
        "is_remote": True,
        "num_samples": 10_000,
        "sample_bytes": 300_000.0,
        "codec": "lz4",
        "first_batch_s": 0.1,
        "seconds": 10.0,
        "steps": 100,
        "sums": sums,
        "longest_wait_s": 0.2,
        "copy_s": 0.0,
        "cpu_s": 2.0,
        "idle_s": 38.0,
        "disk_bytes": 0,
        "raw": RawRead(num_bytes=int(raw), seconds=1.0, in_flight=16),
        "cores": 4,
    }
    return Measured(**(values | changes))


def waiting(**seconds) -> Instruments:
    whole = {"wait_s": sum(seconds.values()), "wait_other_s": 0.0}
    fetched = {"bytes_fetched": 2_000_000_000, "requests": 200, "fetch_s": 100.0}
    return replace(IDLE, **(whole | fetched | seconds))


CASES = {
    "network bandwidth: 0.20 GB/s fetched, 91 % of the 0.22 GB/s": measured(waiting(wait_fetch_s=9.0), raw=0.22e9),
    "the store's answers: a request of 10.0 MB took 500 ms": measured(waiting(wait_fetch_s=9.0), raw=1e9),
    "CPU, taken by the client and the readers: 3.9 of 4": measured(
        waiting(wait_fetch_s=9.0), raw=1e9, cpu_s=39.0, idle_s=1.0
    ),
    "decode CPU: 3.5 of 4 cores are busy, 0.3 more with other programs": measured(
        waiting(wait_decode_s=9.0), cpu_s=35.0, idle_s=2.0
    ),
    "the reader threads: decode 90 %": measured(replace(waiting(wait_decode_s=9.0), decode_s=18.0)),
    "reads of files: 0.20 GB/s, 91 % of the 0.22 GB/s": measured(waiting(wait_read_s=9.0), raw=0.22e9),
    "more threads may give more": measured(waiting(wait_read_s=9.0), raw=1e9),
    "the copy to the device: 60 % of the time goes into it, 60.0 ms for 64 samples": measured(
        waiting(wait_read_s=2.0), copy_s=6.0
    ),
    "the consumer: batches were ready 95 % of the time": measured(waiting(wait_read_s=0.5)),
}


@pytest.mark.parametrize("words", CASES)
def test_what_is_used_up_is_named_with_its_number(words):
    assert words in what_limits(CASES[words])


def test_no_two_cases_are_told_alike():
    assert len({what_limits(case).partition(":")[0] for case in CASES.values()}) >= 7


def test_waits_add_up_to_the_consumers_wait_and_the_copies():
    case = measured(waiting(wait_fetch_s=3.0, wait_decode_s=2.0), copy_s=1.0)
    assert sum(waits(case).values()) == case.sums.wait_s + 1.0


def test_the_report_says_how_many_gpus_are_fed():
    model = Model(preset="vit_b", image_size=120, train_gflop=64.0, samples_per_s=320.0)
    report = BenchReport(url="s3://b/x", measured=measured(), limit="x", tflops=400.0, models=(model,))
    lines = "\n".join(bench_lines(report))
    assert "vit_b:     2.00   (a GPU takes 320 samples/s of 64.0 GFLOP)" in lines
    assert "samples/s         640" in lines
    assert report.as_dict()["gpus_fed"] == {"vit_b": 2.0}


@pytest.mark.parametrize(("disk_bytes", "words"), [(500_000_000, "25 % of it from a disk"), (None, "0.20 GB/s\n")])
def test_the_share_of_the_disk_is_told_where_it_is_known(disk_bytes, words):
    report = BenchReport(
        url="/x", measured=measured(is_remote=False, disk_bytes=disk_bytes), limit="x", tflops=400.0, models=()
    )
    assert words in "\n".join(bench_lines(report))
