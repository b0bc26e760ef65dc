"""What a build tells at its end: the same figures as a table and as JSON."""

from collections import Counter
from typing import Any

from sharding.manifest import Manifest
from sharding.plan import Plan
from sharding.sources.listing import Refusal


def build_figures(plan: Plan, manifest: Manifest | None, refused: list[Refusal], seconds: float) -> dict[str, Any]:
    """Pairs in, samples out, and what they cost."""
    built = sum(manifest.splits.values()) if manifest else 0
    num_bytes = sum(size for shard in manifest.shards for _, size, _ in shard.files) if manifest else 0
    return {
        "pairs_found": plan.num_found,
        "duplicates": plan.num_duplicates,
        "samples_built": built,
        "refused": len(refused),
        "refused_by_reason": dict(sorted(Counter(refusal.reason for refusal in refused).items())),
        "splits": {}
        if manifest is None
        else {
            split: {"samples": samples, "shards": len(manifest.shards_of(split))}
            for split, samples in manifest.splits.items()
        },
        "mib": round(num_bytes / 2**20, 3),
        "kb_per_pair": round(num_bytes / 1000 / built, 2) if built else None,
        "s1_error_db": manifest.s1_error_db if manifest else 0.0,
        "version": manifest.version if manifest else None,
        "seconds": round(seconds, 2),
        "notes": list(plan.notes),
        "fingerprint": manifest.fingerprint if manifest else None,
    }


def build_table(figures: dict[str, Any]) -> str:
    """The figures as aligned lines."""
    rows = [("pairs found", str(figures["pairs_found"]))]
    if figures["duplicates"]:
        rows.append(("kept once", str(figures["duplicates"])))
    rows.append(("samples built", str(figures["samples_built"])))
    rows.append(("refused", str(figures["refused"])))
    rows += [(f"  {reason}", str(count)) for reason, count in figures["refused_by_reason"].items()]
    for split, counts in figures["splits"].items():
        rows.append((split, f"{counts['samples']} samples in {counts['shards']} shards"))
    rows.append(("size", f"{figures['mib']:.1f} MiB"))
    if figures["kb_per_pair"] is not None:
        rows.append(("a pair", f"{figures['kb_per_pair']:.1f} kB"))
    if figures["s1_error_db"]:
        rows.append(("S1 error", f"{figures['s1_error_db']:.3g} dB at worst"))
    rows.append(("time", f"{figures['seconds']:.1f} s"))
    lines = [f"note: {note}" for note in figures["notes"]] + align(rows)
    return "\n".join(lines)


def align(rows: list[tuple[str, str]]) -> list[str]:
    """Two columns."""
    width = max((len(name) for name, _ in rows), default=0)
    return [f"{name:<{width}}  {value}" for name, value in rows]
