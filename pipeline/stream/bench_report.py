"""What `python -m pipeline.stream bench` says: rates, waits by cause, what limits them, GPUs that can be fed."""

from dataclasses import asdict, dataclass
from typing import Any, Final

from pipeline.stream.bench import Measured
from sharding.errors import ConfigError
from sharding.manifest import Manifest

PRESETS: Final = ("vit_s", "vit_b", "vit_l", "vit_h")
TFLOPS: Final = 400.0
"""Sustained operations of a GPU, in 10**12 a second: about 40 % of an H100's peak in bf16 (990)."""
_NEAR: Final = 0.8
"""From this share on something is used up."""
_OTHERS: Final = 0.1
"""Cores that other programs use are worth a word from here on."""
_PATCH: Final = 8


@dataclass(frozen=True, kw_only=True)
class Model:
    """A Fus-MAE on the images of a data set, and what a GPU makes of it: an estimate from operations, not measured."""

    preset: str
    image_size: int
    """Pixels that a side is cropped to: a whole number of patches."""
    train_gflop: float
    """Of forward and backward pass of one sample."""
    samples_per_s: float
    """Of one GPU, at the sustained operations that were given."""


@dataclass(frozen=True, kw_only=True)
class BenchReport:
    """Figures and words of a run."""

    url: str
    measured: Measured
    limit: str
    tflops: float
    models: tuple[Model, ...]

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        measured = self.measured
        rates = {name: getattr(measured, name) for name in ("samples_per_s", "read_per_s", "fetched_per_s")}
        gpus = {model.preset: measured.samples_per_s / model.samples_per_s for model in self.models}
        raw = {"raw_bytes_per_s": measured.raw.bytes_per_s}
        return asdict(self) | {"rates": rates | raw, "waits_s": waits(measured), "gpus_fed": gpus}


def models_for(manifest: Manifest, presets: tuple[str, ...], tflops: float) -> tuple[Model, ...]:
    """The presets of Fus-MAE on a data set's S1 and S2, patches of 8 pixels."""
    from fusmae.config import FusMAEConfig, Modality
    from fusmae.flops import forward_flops
    from sharding.bands import S1_BANDS, S2_BANDS

    if not tflops > 0:
        raise ConfigError(f"tflops is {tflops}; it must be above 0, such as {TFLOPS:g}")
    known = {"s1": S1_BANDS, "s2": S2_BANDS}
    # By band: archives that were indexed as they lie call their arrays as they please.
    given = {name: tuple(band for band in manifest.bands if band in bands) for name, bands in known.items()}
    modalities = [Modality(name=name, bands=bands) for name, bands in given.items() if bands]
    specs = [spec for spec in manifest.arrays if {*S1_BANDS, *S2_BANDS} & set(spec.bands)]
    side = max((min(spec.height, spec.width) for spec in specs), default=0) // _PATCH * _PATCH
    if side < 2 * _PATCH:
        return ()  # too small for any model
    alone: dict[str, Any] = {"encoder_fusion": "none", "decoder_fusion": "none"} if len(modalities) == 1 else {}
    models = []
    for preset in presets:
        config = getattr(FusMAEConfig, preset)(image_size=side, modalities=tuple(modalities), **alone)
        flops = 3 * forward_flops(config)
        models.append(
            Model(preset=preset, image_size=side, train_gflop=flops / 1e9, samples_per_s=tflops * 1e12 / flops)
        )
    return tuple(models)


def waits(measured: Measured) -> dict[str, float]:
    """Seconds that the consumer waited, by cause."""
    sums = measured.sums
    return {
        "network": sums.wait_fetch_s,
        "disk": sums.wait_read_s,
        "decode": sums.wait_decode_s,
        "other": sums.wait_other_s,
        "copy": measured.copy_s,
    }


def what_limits(measured: Measured) -> str:
    """One sentence: what is used up, with the number that shows it, and what to do."""
    sums, config = measured.sums, measured.settings.stream
    causes = waits(measured)
    cause = max(causes, key=lambda name: causes[name])
    waited = sum(causes.values())
    busy = 1 - measured.idle_s / (measured.seconds * measured.cores)
    if waited < (1 - _NEAR) * measured.seconds:
        return (
            f"the consumer: batches were ready {100 * (1 - waited / measured.seconds):.0f} % of the time before they "
            "were asked for; the stream gives more than this loop takes"
        )
    if cause == "copy":
        size = measured.sums.samples / measured.steps
        return (
            f"the copy to the device: {100 * causes['copy'] / measured.seconds:.0f} % of the time goes into it, "
            f"{1e3 * causes['copy'] / measured.steps:.1f} ms for {size:.0f} samples"
        )
    if cause == "network":
        share = measured.fetched_per_s / measured.raw.bytes_per_s
        reached = (
            f"{_gb(measured.fetched_per_s)} fetched, {100 * share:.0f} % of the {_gb(measured.raw.bytes_per_s)} that "
            f"plain reads of 8 MB reach with the same client"
        )
        if share >= _NEAR:
            return f"network bandwidth: {reached}; a smaller codec, a cache_dir or a faster link gives more"
        if busy >= _NEAR:
            advice = "; --client obstore takes less of it" if config.client != "obstore" else ""
            return f"CPU, taken by the client and the readers: {_cores(measured)}; {reached}{advice}"
        mean = sums.bytes_fetched / max(sums.requests, 1) / 1e6
        return (
            f"the store's answers: a request of {mean:.1f} MB took {1e3 * sums.fetch_s / max(sums.requests, 1):.0f} ms "
            f"({reached}, {measured.raw.in_flight} at a time); longer runs or a cache_dir help"
        )
    if busy >= _NEAR:
        what = "decode CPU" if cause == "decode" else "CPU"
        return f"{what}: {_cores(measured)}, {_busy(measured)}; more cores give more"
    if cause == "disk":
        share = measured.read_per_s / measured.raw.bytes_per_s
        return (
            f"reads of files: {_gb(measured.read_per_s)}, {100 * share:.0f} % of the {_gb(measured.raw.bytes_per_s)} "
            f"that plain reads of 8 MB reach with {measured.raw.in_flight} threads"
            + ("" if share >= _NEAR else "; more threads may give more")
        )
    return (
        f"the reader threads: {_busy(measured)}, while only {_cores(measured)}; more than {config.threads} threads "
        "may give more"
    )


def bench_lines(report: BenchReport) -> list[str]:
    """The report for people."""
    measured = report.measured
    sums, config, settings = measured.sums, measured.settings.stream, measured.settings
    a_step = {name: 1e3 * seconds / measured.steps for name, seconds in waits(measured).items()}
    causes = ", ".join(f"{name} {ms:.1f}" for name, ms in a_step.items() if name != "copy")
    copied = f"; copy to {settings.device} {a_step['copy']:.1f}" if settings.device != "cpu" else ""
    cpu_per_gb = measured.cpu_s / max(sums.bytes_read, 1) * 1e9
    ranks = "1 rank" if settings.ranks == 1 else f"rank 0 of {settings.ranks}"
    lines = [
        f"{report.url}, split {config.split}: {measured.num_samples:,} samples of "
        f"{measured.sample_bytes / 1e3:,.0f} kB, codec {measured.codec}",
        f"{ranks}, batches of {config.global_batch // settings.ranks}, {config.threads} threads: {measured.steps:,} "
        f"{'step' if measured.steps == 1 else 'steps'} in {measured.seconds:.1f} s",
        "",
        f"samples/s         {measured.samples_per_s:,.0f}",
        f"payloads read     {_gb(measured.read_per_s)}{_from_disk(measured)}",
    ]
    if measured.is_remote:
        lines += [
            f"fetched           {_gb(measured.fetched_per_s)}: {sums.requests:,} requests of "
            f"{sums.bytes_fetched / max(sums.requests, 1) / 1e6:.1f} MB, {sums.retries} retries",
            f"cache on disk     {sums.cache_hits:,} hits, {sums.cache_misses:,} misses"
            if config.cache_dir
            else "cache on disk     none (--cache-dir)",
        ]
    lines += [
        f"raw read limit    {_gb(measured.raw.bytes_per_s)}: 8 MB at random places, {measured.raw.in_flight} at a time",
        f"first batch       {1e3 * measured.first_batch_s:,.0f} ms",
        f"wait per step     {1e3 * sums.wait_s / measured.steps:.1f} ms ({causes}{copied}); longest "
        f"{1e3 * measured.longest_wait_s:.0f} ms",
        f"reader threads    {_busy(measured)}",
        f"CPU               {_cores(measured)}, {cpu_per_gb:.2f} s a GB read",
        f"damaged           {sums.corrupt} samples, {sums.replaced} replaced",
        "",
        f"Limit: {report.limit}.",
    ]
    if report.models:
        lines += [
            f"GPUs that this process can feed, at {report.tflops:g} TFLOP/s sustained by each (--tflops) and "
            f"{report.models[0].image_size} pixels a side; an estimate from the models' operations:",
            *(
                f"  {model.preset}: {measured.samples_per_s / model.samples_per_s:8.2f}   "
                f"(a GPU takes {model.samples_per_s:,.0f} samples/s of {model.train_gflop:.1f} GFLOP)"
                for model in report.models
            ),
        ]
    return lines


def _gb(bytes_per_s: float) -> str:
    return f"{bytes_per_s / 1e9:.2f} GB/s" if bytes_per_s >= 1e8 else f"{bytes_per_s / 1e6:.1f} MB/s"


def _cores(measured: Measured) -> str:
    """Who uses the cores that this process may use."""
    own = measured.cpu_s / measured.seconds
    others = measured.cores - measured.idle_s / measured.seconds - own
    told = f"{own:.1f} of {measured.cores} cores are busy"
    return told if others < _OTHERS else f"{told}, {others:.1f} more with other programs"


def _busy(measured: Measured) -> str:
    """How the reader threads spend their time."""
    sums, whole = measured.sums, measured.seconds * measured.settings.stream.threads
    parts = {"decode": sums.decode_s, "checksums": sums.check_s, "reads": sums.read_s, "planning": sums.plan_s}
    told = ", ".join(f"{name} {100 * seconds / whole:.0f} %" for name, seconds in parts.items())
    return f"{told} of the threads' time"


def _from_disk(measured: Measured) -> str:
    if measured.is_remote or measured.disk_bytes is None:
        return ""
    share = min(measured.disk_bytes / max(measured.sums.bytes_read, 1), 1)
    return f", {100 * share:.0f} % of it from a disk, the rest from the page cache"
