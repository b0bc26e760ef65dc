"""A corpus of broken archives: how each is broken, and what is made of it. docs/broken-inputs.md is its table.

`python -m tests.broken_inputs` writes the table anew.
"""

import contextlib
import io
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio

from sharding import build
from sharding.command import exit_code
from tests.trees import CRS, Patch, make_bigearthnet_v1, make_reben, make_reben_lmdb, write_tif

DOCUMENT = Path(__file__).parents[1] / "docs" / "broken-inputs.md"
HEAD = """\
# Broken inputs

What `python -m sharding.build` makes of broken archives. Each row is built in the tests (`tests/broken_inputs.py`),
and its message is the one that they see; `python -m tests.broken_inputs` writes the table. Where there is a reason,
the pair is refused and listed in `bad.jsonl` with that reason, and the others are built if `--max-bad` allows it;
where there is none, nothing is built.

| what is broken | reason | message |
|---|---|---|
"""


@dataclass(frozen=True)
class Broken:
    """One way to break an archive."""

    title: str
    spoil: Callable[[Path, list[Patch]], object]
    """Given the archive's root and its patches, of which the second is to be broken."""
    source: str = "reben"
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What came of it."""

    reason: str
    message: str
    built: int
    code: int


def tif(patch: Patch, band: str) -> Path:
    folder, name = (patch.s1_path, patch.s1_name) if band in ("VV", "VH") else (patch.s2_path, patch.key)
    return folder / f"{name}_{band}.tif"


def rewrite(patch: Patch, band: str, change: Callable[[np.ndarray], np.ndarray], **how: object) -> None:
    """Write the raster of a band again with other pixels, or in another place."""
    with rasterio.open(tif(patch, band)) as file:
        pixels = file.read(1)
    data = change(pixels)
    gsd = 1200 / data.shape[-1]
    arguments = {"corner": patch.corner, "crs": CRS, "gsd": gsd} | how
    write_tif(tif(patch, band), data, arguments.pop("corner"), **arguments)


def with_value(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(pixels: np.ndarray) -> np.ndarray:
        pixels = pixels.copy()
        pixels[3, 4] = value
        return pixels

    return change


def metadata(root: Path, change: Callable[[dict], object], *, drop: str = "") -> None:
    """Change each row of metadata.parquet, or drop a column."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for path in root.glob("metadata*.parquet"):
        rows = pq.read_table(path).to_pylist()
        rows = [row for row in rows if change(row) is not False]
        table = pa.Table.from_pylist(rows, schema=None if rows else pq.read_schema(path))
        pq.write_table(table.drop_columns([drop]) if drop else table, path)


def only(patch: Patch, **values: object) -> Callable[[dict], object]:
    return lambda row: row.update(values) if row["patch_id"] == patch.key else None


def edit_json(patch: Patch, change: Callable[[dict], dict]) -> None:
    path = patch.s1_path / f"{patch.s1_name}_labels_metadata.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def lmdb_value(root: Path, key: str, value: bytes) -> None:
    import lmdb

    with lmdb.open(str(root / "BigEarthNet-V2-LMDB"), map_size=2**27) as store, store.begin(write=True) as out:
        out.put(key.encode(), value)


def pairs_csv(root: Path, patches: list[Patch], edit: Callable[[list[str]], list[str]]) -> None:
    """A table for the folder source of the patches' own files; `edit` changes its lines."""
    lines = ["key,s1_path,s2_path,s1_bands,s2_bands,s1_units,s2_level"]
    for i, patch in enumerate(patches):
        s1, s2 = (path.relative_to(root) for path in (patch.s1_path, patch.s2_path))
        lines.append(f'pair{i},{s1},{s2},"VV,VH","B02,B03",dB,L2A')
    (root / "pairs.csv").write_text("\n".join(edit(lines)) + "\n")


CORPUS = [
    Broken("an empty file in place of VV", lambda _, p: tif(p[1], "VV").write_bytes(b"")),
    Broken("half of a GeoTIFF", lambda _, p: tif(p[1], "B02").write_bytes(tif(p[1], "B02").read_bytes()[:9000])),
    Broken("a web page in place of a GeoTIFF", lambda _, p: tif(p[1], "B11").write_text("<html>404</html>")),
    Broken("one band of a resolution missing", lambda _, p: tif(p[1], "B05").unlink()),
    Broken("VH missing", lambda _, p: tif(p[1], "VH").unlink()),
    Broken("the S1 patch missing", lambda _, p: shutil.rmtree(p[1].s1_path)),
    Broken("the S2 patch missing", lambda _, p: shutil.rmtree(p[1].s2_path)),
    Broken("VV in another CRS", lambda _, p: rewrite(p[1], "VV", lambda x: x, crs="EPSG:32632")),
    Broken(
        "VH half a pixel aside",
        lambda _, p: rewrite(p[1], "VH", lambda x: x, corner=(p[1].corner[0] + 5, p[1].corner[1])),
    ),
    Broken("a band at 10 m of 60 pixels", lambda _, p: rewrite(p[1], "B02", lambda x: x[::2, ::2].copy())),
    Broken("a band at 20 m of 120 pixels", lambda _, p: rewrite(p[1], "B05", lambda x: x.repeat(2, 0).repeat(2, 1))),
    Broken("S1 as integers", lambda _, p: rewrite(p[1], "VV", lambda x: x.astype(np.int32))),
    Broken("S2 as floating point", lambda _, p: rewrite(p[1], "B03", lambda x: (x / 1e4).astype(np.float32))),
    Broken("S2 below zero", lambda _, p: rewrite(p[1], "B04", lambda x: with_value(-7)(x.astype(np.int16)))),
    Broken("NaN in VV", lambda _, p: rewrite(p[1], "VV", with_value(np.nan))),
    Broken("infinity in VH", lambda _, p: rewrite(p[1], "VH", with_value(np.inf))),
    Broken("VV the same everywhere", lambda _, p: rewrite(p[1], "VV", lambda x: np.full_like(x, -12.5))),
    Broken(
        "S1 in linear power",
        lambda _, p: [rewrite(p[1], band, lambda x: (10 ** (x / 10)).astype(np.float32)) for band in ("VV", "VH")],
    ),
    Broken("S1 of 400 dB", lambda _, p: rewrite(p[1], "VV", with_value(400.0))),
    Broken("a band of zeros", lambda _, p: rewrite(p[1], "B08", np.zeros_like)),
    Broken("two bands in one file", lambda _, p: rewrite(p[1], "B02", lambda x: np.stack([x, x]))),
    Broken(
        "a file that says it is another band", lambda _, p: rewrite(p[1], "B02", lambda x: x, descriptions=("B03",))
    ),
    Broken(
        "a patch that the metadata does not list", lambda r, p: metadata(r, lambda row: row["patch_id"] != p[1].key)
    ),
    Broken("metadata that pair another place", lambda r, p: metadata(r, only(p[1], s1_name=p[2].s1_name))),
    Broken("a label of no nomenclature", lambda r, p: metadata(r, only(p[1], labels=["Lava"]))),
    Broken("a split of an unknown name", lambda r, p: metadata(r, only(p[1], split="dev-2"))),
    Broken("metadata.parquet cut in half", lambda r, _: (r / "metadata.parquet").write_bytes(b"PAR1" + b"\0" * 50)),
    Broken("no metadata.parquet", lambda r, _: [path.unlink() for path in r.glob("metadata*.parquet")]),
    Broken("a table of something else", lambda r, _: metadata(r, lambda row: None, drop="s1_name")),
    Broken("S1 and S2 more than --max-days apart", lambda _, p: None, options=("--max-days", "0.1")),
    Broken(
        "a JSON that is cut",
        lambda _, p: (p[1].s1_path / f"{p[1].s1_name}_labels_metadata.json").write_text('{"labels": ['),
        source="bigearthnet-v1",
    ),
    Broken(
        "a JSON that names no S2 patch",
        lambda _, p: edit_json(p[1], lambda j: {**j, "corresponding_s2_patch": "?"}),
        source="bigearthnet-v1",
    ),
    Broken(
        "two S1 patches that name one S2 patch",
        lambda _, p: edit_json(p[1], lambda j: {**j, "corresponding_s2_patch": p[0].key}),
        source="bigearthnet-v1",
    ),
    Broken("a damaged value in the LMDB", lambda r, p: lmdb_value(r, p[1].key, b"\xff" * 100), source="reben-lmdb"),
    Broken(
        "a CSV without a column",
        lambda r, p: pairs_csv(r, p, lambda lines: [line.rpartition(",")[0] for line in lines]),
        source="folder",
    ),
    Broken(
        "a key that comes twice",
        lambda r, p: pairs_csv(r, p, lambda lines: [*lines, lines[1]]),
        source="folder",
    ),
    Broken(
        "units that nobody knows",
        lambda r, p: pairs_csv(r, p, lambda lines: [line.replace(",dB,", ",decibel,") for line in lines]),
        source="folder",
    ),
    Broken(
        "a row whose S2 half is not there",
        lambda r, p: pairs_csv(r, p, lambda lines: [line.replace(p[1].key, "gone") for line in lines]),
        source="folder",
    ),
]


def outcome(broken: Broken, folder: Path) -> Outcome:
    """Make an archive of three pairs, break it, build it, and tell what is said."""
    root, out = folder / "archive", folder / "out"
    makers = {"bigearthnet-v1": make_bigearthnet_v1, "reben-lmdb": make_reben_lmdb}
    patches = makers.get(broken.source, make_reben)(root, 3)
    broken.spoil(root, patches)
    source = broken.source.removesuffix("-lmdb")
    table = root / "pairs.csv" if source == "folder" else root
    arguments = ["--source", source, "--root", str(table), "--out", str(out), "--workers", "1", *broken.options]
    errors, printed = io.StringIO(), io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(printed):
        code = exit_code(build.main, [*arguments, "--max-bad", "3", "--json"])
    names = {str(folder): "", patches[1].key: "PATCH", patches[1].s1_name: "S1PATCH"}
    listed = [json.loads(line) for line in (out / "bad.jsonl").read_text().splitlines()] if code == 0 else []
    if listed:
        reason, message = listed[0]["reason"], f"{listed[0]['file']}: {listed[0]['message']}"
    else:
        reason, message = "", errors.getvalue().strip()
        if listed == [] and (out / "bad.jsonl").exists() and (lines := (out / "bad.jsonl").read_text().splitlines()):
            first = json.loads(lines[0])
            reason, message = first["reason"], f"{first['file']}: {first['message']}"
    for text, name in names.items():
        message = message.replace(text, name)
    built = json.loads(printed.getvalue())["samples_built"] if code == 0 else 0
    return Outcome(reason, message, built, code)


def table() -> str:
    """The document."""
    rows = []
    for broken in CORPUS:
        with tempfile.TemporaryDirectory() as folder:
            found = outcome(broken, Path(folder))
        message = " ".join(found.message.split()).replace("|", "\\|")
        rows.append(f"| {broken.title} | {found.reason or 'none'} | {message} |")
    return HEAD + "\n".join(rows) + "\n"


if __name__ == "__main__":
    DOCUMENT.write_text(table())
