"""The part `s3` of `benchmarks.stream`: a whole epoch from an S3 server on loopback, in a new process.

Nothing is cached before: MosaicML Streaming and LitData copy what they stream into an empty folder, webdataset reads
through curl, ours keeps runs in memory, and goes on for two more epochs. Client and server share two cores, so that the
client's CPU is what counts elsewhere. Bytes are those of each system's own files; of ours, which fetches ahead, those
that came in the time.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.stream_local import RIVALS
from benchmarks.stream_readers import Task
from benchmarks.stream_report import Entry, better, ratio, render_entries
from benchmarks.stream_runs import Bench, Failure, Options, warm
from benchmarks.stream_server import serve

BYTES, RATE, CPU, FIRST = "MB/s", "samples/s", "client CPU s/GB", "first batch, ms"
LATER = ", later epochs"
_CLIENTS = ("s3fs", "obstore")
_FILES = {"webdataset": ("npy", "*.tar"), "mds": ("mds", "*.mds"), "litdata": ("litdata", "*.bin")}
_SECRETS = {"AWS_ACCESS_KEY_ID": "anybody", "AWS_SECRET_ACCESS_KEY": "anything", "AWS_DEFAULT_REGION": "us-east-1"}
"""The server asks for none; boto3 does."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A row of the table, once for each server."""

    name: str
    task: Task
    files: str
    """Format whose files it pulls."""
    pattern: str


def measure(bench: Bench, options: Options) -> Callable[[bool], str]:
    """Run all contenders in turn against each server; returns what shows the result."""
    runs = [run for run in _runs() if run.task.reader in options.only]
    absent = bench.make_data({run.task.reader for run in runs})
    entries: list[Entry] = []
    pair_mb = _bytes_of(bench.folder / "none", "shards/*.tar") / bench.num_pairs / 1e6
    ratios: dict[str, float | None] = {}
    kinds = []
    for delay_ms in (0.0, options.delay_ms):
        with serve(bench.folder, "bench", delay_ms) as (url, kind):
            kinds.append(kind)
            suffix = f", {delay_ms:g} ms" if delay_ms else ""
            found = {run.name: Entry(name=run.name + suffix, note=absent.get(run.task.reader, "")) for run in runs}
            for run in runs:
                if run.task.reader == "ours" and run.files == "none":  # compressed, all of it stays in memory
                    found[run.name + LATER] = Entry(name=run.name + LATER + suffix)
            for number in range(options.rounds):
                for run in runs:
                    if found[run.name].note and not found[run.name].figures:
                        continue
                    print(f"{kind}, round {number + 1} of {options.rounds}: {run.name}", file=sys.stderr, flush=True)
                    _once(bench, run, url, found[run.name], found.get(run.name + LATER))
        entries += found.values()
        ratios |= _ratios(runs, found, f"_{delay_ms:g}_ms" if delay_ms else "", pair_mb)
    about = {"pairs": str(bench.num_pairs), "servers": " and ".join(kinds)}
    return lambda as_json: render_entries(entries, (BYTES, RATE, CPU, FIRST), ratios, as_json, about=about)


def _runs() -> list[Run]:
    runs = []
    for client in _CLIENTS:
        task = Task(reader="ranges", folder="", client=client)
        runs.append(Run(name=f"{client}, 8 MB ranges", task=task, files="none", pattern="shards/*.tar"))
        for codec, label in (("none", "ours"), ("lz4", "ours, lz4")):
            task = Task(reader="ours", folder="", workers=2, client=client, codec=codec)
            runs.append(Run(name=f"{label}, {client}", task=task, files=codec, pattern="shards/*.tar"))
    for reader, (files, pattern) in _FILES.items():
        for workers in (0, 2):
            name = f"{RIVALS[reader]}, {f'{workers} workers' if workers else 'in process'}"
            runs.append(
                Run(name=name, task=Task(reader=reader, folder="", workers=workers), files=files, pattern=pattern)
            )
    return runs


def _once(bench: Bench, run: Run, url: str, entry: Entry, later: Entry | None) -> None:
    folder = bench.folder / run.files
    warm(folder)
    env = {"FSSPEC_S3": f'{{"anon": true, "endpoint_url": "{url}"}}'} if run.task.reader == "ours" else _SECRETS
    batches = bench.num_pairs // run.task.batch
    told = bench.run(replace(run.task, remote=url), 2, "transfer", batches=batches, env=env)
    if isinstance(told, Failure):
        entry.note = told.why
        return
    pulled = told.get("fetched") or _bytes_of(folder, run.pattern) * told["samples"] / bench.num_pairs
    entry.add(BYTES, pulled / told["wall"] / 1e6)
    entry.add(RATE, told["samples"] / told["wall"])
    entry.add(CPU, told["cpu"] / (pulled / 1e9))
    if run.task.reader != "ranges":
        entry.add(FIRST, 1000 * told["first"])
    if later is not None:
        later.add(BYTES, told["later_fetched"] / told["later_wall"] / 1e6)
        later.add(RATE, told["later_samples"] / told["later_wall"])
        later.add(CPU, told["later_cpu"] / (told["later_fetched"] / 1e9))


def _bytes_of(folder: Path, pattern: str) -> int:
    return sum(path.stat().st_size for path in folder.glob(pattern))


def _ratios(runs: list[Run], entries: dict[str, Entry], suffix: str, pair_mb: float) -> dict[str, float | None]:
    def median(name: str, unit: str) -> float | None:
        return entries[name].median(unit) if name in entries else None

    ratios: dict[str, float | None] = {}
    for client in _CLIENTS:
        ours, limit = f"ours, {client}", median(f"{client}, 8 MB ranges", BYTES)
        ratios[f"s3_share_{client}{suffix}"] = ratio(median(ours + LATER, BYTES), limit)
        ratios[f"s3_share_first_epoch_{client}{suffix}"] = ratio(median(ours, BYTES), limit)
        ratios[f"s3_cpu_s_per_gb_{client}{suffix}"] = median(ours + LATER, CPU)
        ratios[f"s3_cpu_s_per_gb_first_epoch_{client}{suffix}"] = median(ours, CPU)
        for reader in _FILES:
            best = better([entries[run.name] for run in runs if run.task.reader == reader], RATE)
            theirs = best.median(RATE) if best else None
            ratios[f"s3_{client}_vs_{reader}{suffix}"] = ratio(median(ours, RATE), theirs)
            fetched = ratio(median(ours + LATER, BYTES), pair_mb)  # pairs a second, without those still in memory
            ratios[f"s3_{client}_later_vs_{reader}{suffix}"] = ratio(fetched, theirs)
    return ratios
