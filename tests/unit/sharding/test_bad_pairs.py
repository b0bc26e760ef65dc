"""Broken pairs: each refused for its own reason, with the file's name, counted, listed, and failing the build."""

import json

import numpy as np
import pytest

from sharding.sources import open_source
from sharding.sources.base import PairError
from tests.trees import write_tif
from tests.unit.sharding.conftest import contents, run_build


def rewrite(patch, band, change, **keywords):
    """Write one band of a patch again, changed."""
    folder, name = (patch.s1_path, patch.s1_name) if band in ("VV", "VH") else (patch.s2_path, patch.key)
    plane = change(patch.pixels[band].copy())
    gsd = keywords.pop("gsd", 1200 // patch.pixels[band].shape[0])
    corner = keywords.pop("corner", patch.corner)
    write_tif(folder / f"{name}_{band}.tif", plane, corner, gsd=gsd, **keywords)


def truncate(patch, band, share):
    folder, name = (patch.s1_path, patch.s1_name) if band in ("VV", "VH") else (patch.s2_path, patch.key)
    path = folder / f"{name}_{band}.tif"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def with_value(value):
    def change(plane):
        plane[3, 4] = value
        return plane

    return change


def doubled(plane):
    return plane.repeat(2, 0).repeat(2, 1)


def linear(plane):
    return 10 ** (plane / 10)


def same(plane):
    return plane


def remove(patch, band):
    folder, name = (patch.s1_path, patch.s1_name) if band in ("VV", "VH") else (patch.s2_path, patch.key)
    (folder / f"{name}_{band}.tif").unlink()


BREAKAGES = {
    "truncated S2": ("corrupt file", "_B03.tif", lambda p: truncate(p, "B03", 0.5)),
    "truncated S1 header": ("corrupt file", "_VV.tif", lambda p: truncate(p, "VV", 0.001)),
    "missing S2 band": ("missing band file", "_B05.tif", lambda p: remove(p, "B05")),
    "missing S1 band": ("missing band file", "_VH.tif", lambda p: remove(p, "VH")),
    "other CRS": ("grids disagree", ".tif", lambda p: rewrite(p, "VV", same, crs="EPSG:32634")),
    "shifted S1": ("grids disagree", ".tif", lambda p: rewrite(p, "VH", same, corner=(p.corner[0] + 10, p.corner[1]))),
    "shifted S2": ("grids disagree", ".tif", lambda p: rewrite(p, "B02", same, corner=(p.corner[0], p.corner[1] + 5))),
    "other pixel size": ("grids disagree", "_B11.tif", lambda p: rewrite(p, "B11", same, gsd=30)),
    "resampled band": ("wrong size", "_B05.tif", lambda p: rewrite(p, "B05", doubled, gsd=10)),
    "NaN": ("NaN in S1", "_VV.tif", lambda p: rewrite(p, "VV", with_value(np.nan))),
    "infinite": ("NaN in S1", "_VH.tif", lambda p: rewrite(p, "VH", with_value(-np.inf))),
    "constant S1": ("constant S1", "_VV.tif", lambda p: rewrite(p, "VV", lambda x: x * 0 - 20)),
    "nodata in S1": ("S1 outside physics", "_VH.tif", lambda p: rewrite(p, "VH", with_value(-9999))),
    "linear S1": ("S1 outside physics", "_VV.tif", lambda p: [rewrite(p, b, linear) for b in ("VV", "VH")]),
    "S1 as integers": ("wrong type", "_VV.tif", lambda p: rewrite(p, "VV", lambda x: x.astype(np.int32))),
    "S2 as floats": ("wrong type", "_B02.tif", lambda p: rewrite(p, "B02", lambda x: x.astype(np.float32))),
    "negative S2": ("wrong type", "_B02.tif", lambda p: rewrite(p, "B02", lambda x: x.astype(np.int16) - 5000)),
    "bands swapped": ("bands contradict", "_B02.tif", lambda p: rewrite(p, "B02", same, descriptions=("B04",))),
    "two bands in a file": ("bands contradict", "_B02.tif", lambda p: rewrite(p, "B02", lambda x: np.stack([x, x]))),
}  # fmt: skip


@pytest.mark.parametrize("archive", ["fresh_v1", "fresh_reben"])
@pytest.mark.parametrize("breakage", BREAKAGES)
def test_a_broken_pair_is_listed_and_refused_when_it_is_read(breakage, archive, request):
    archive = request.getfixturevalue(archive)
    reason, file, do = BREAKAGES[breakage]
    broken = archive.patches[1]
    do(broken)
    source = open_source(archive.source, str(archive.root))
    listing = source.list()
    assert (len(listing.pairs), listing.refused) == (4, [])
    for pair in listing.pairs:
        if pair.key != broken.key:
            source.files(pair)
            assert source.read(pair).key == pair.key
            continue
        with pytest.raises(PairError) as caught:
            source.files(pair)
            source.read(pair)
        assert caught.value.reason == reason
        assert caught.value.file.endswith(file)
        assert (archive.root / caught.value.file).parent.is_dir()


@pytest.mark.parametrize("archive", ["fresh_v1", "fresh_reben"])
@pytest.mark.parametrize("breakage", BREAKAGES)
def test_a_broken_pair_fails_the_build_with_its_reason(breakage, archive, request, tmp_path):
    archive = request.getfixturevalue(archive)
    reason, file, do = BREAKAGES[breakage]
    broken = archive.patches[1]
    do(broken)
    out = tmp_path / "out"
    ended = run_build(*archive.arguments, "--out", out)
    assert ended.code == 1
    assert ended.err.startswith(f"error: 1 of 4 pairs are refused (1 {reason}), --max-bad allows 0; the first: ")
    assert len(ended.err.splitlines()) == 1
    assert str(out / "bad.jsonl") in ended.err
    [line] = [json.loads(line) for line in (out / "bad.jsonl").read_text().splitlines()]
    assert line["key"] == broken.key
    assert line["reason"] == reason
    assert line["file"].endswith(file)
    assert line["message"] in ended.err
    assert not (out / "manifest.json").exists()


def test_the_same_archives_without_damage_are_built(fresh_v1, fresh_reben, tmp_path):
    ended = run_build(*fresh_v1.arguments, *fresh_reben.arguments, "--out", tmp_path / "out")
    assert ended.code == 0, ended.err
    assert (tmp_path / "out" / "bad.jsonl").read_text() == ""


def test_open_sea_is_no_defect(fresh_v1, tmp_path):
    for band in ("B02", "B03", "B04", "B08", "B11"):
        rewrite(fresh_v1.patches[0], band, lambda x: x * 0 + 1)
    assert run_build(*fresh_v1.arguments, "--out", tmp_path / "out").code == 0


@pytest.mark.parametrize("half", ["s1_path", "s2_path"])
@pytest.mark.parametrize("archive", ["fresh_v1", "fresh_reben"])
def test_a_missing_half_is_counted_once(archive, half, request, tmp_path):
    import shutil

    archive = request.getfixturevalue(archive)
    broken = archive.patches[2]
    shutil.rmtree(getattr(broken, half))
    ended = run_build(*archive.arguments, "--out", tmp_path / "out")
    assert ended.code == 1
    assert "1 of 4 pairs are refused" in ended.err
    line = json.loads((tmp_path / "out" / "bad.jsonl").read_text())
    assert (line["key"], line["reason"]) == (broken.key, "missing half")


def test_broken_metadata_of_v1_is_named(fresh_v1, tmp_path):
    first, second, third, _ = fresh_v1.patches
    (first.s1_path / f"{first.s1_name}_labels_metadata.json").write_text("{")
    record = second.s1_path / f"{second.s1_name}_labels_metadata.json"
    record.write_text(record.read_text().replace("Pastures", "Lava").replace("Coniferous forest", "Lava"))
    record = third.s1_path / f"{third.s1_name}_labels_metadata.json"
    record.write_text(record.read_text().replace(third.key, first.key))
    ended = run_build(*fresh_v1.arguments, "--out", tmp_path / "out", "--max-bad", 9, "--json")
    assert ended.figures["refused_by_reason"] == {"metadata missing or wrong": 3}
    lines = [json.loads(line) for line in (tmp_path / "out" / "bad.jsonl").read_text().splitlines()]
    messages = {line["key"]: line["message"] for line in lines}
    assert "cannot be read as JSON" in messages[first.key]
    assert "'Lava' is in no nomenclature" in messages[second.key]
    assert f"it names {first.key} as its S2 patch, the lists name {third.key}" in messages[third.key]


def test_a_reben_patch_without_a_row_or_with_a_row_of_another_place(fresh_reben, tmp_path):
    from tests.trees import write_metadata

    _, second, *rest = fresh_reben.patches
    second.s1_name = second.s1_name.replace("33UUP", "33UUQ")
    write_metadata(fresh_reben.root, [second, *rest])
    ended = run_build(*fresh_reben.arguments, "--out", tmp_path / "out", "--max-bad", 9, "--json")
    messages = (tmp_path / "out" / "bad.jsonl").read_text()
    assert "the metadata has no row for it, so its S1 half is unknown" in messages
    assert f"33UUQ_{second.column}_{second.row}', which is another place" in messages
    assert ended.figures["samples_built"] == 2


def test_max_bad_leaves_out_what_is_broken_and_builds_the_rest(fresh_v1, tmp_path):
    good, bad = tmp_path / "good", tmp_path / "bad"
    truncate(fresh_v1.patches[1], "B03", 0.5)
    rewrite(fresh_v1.patches[2], "VV", with_value(np.nan))
    assert run_build(*fresh_v1.arguments, "--out", bad, "--max-bad", 1).code == 1
    ended = run_build(*fresh_v1.arguments, "--out", good, "--max-bad", 2, "--json")
    assert ended.code == 0
    assert ended.figures["samples_built"] == 2
    assert ended.figures["refused_by_reason"] == {"NaN in S1": 1, "corrupt file": 1}
    assert len((good / "bad.jsonl").read_text().splitlines()) == 2


def test_a_mended_pair_costs_only_its_own_shard(fresh_v1, tmp_path):
    """After the failure the same command builds again only the shard whose files changed."""
    out = tmp_path / "out"
    broken = fresh_v1.patches[3]  # alone in the split val
    assert broken.split == "val"
    rewrite(broken, "VV", with_value(np.nan))
    assert run_build(*fresh_v1.arguments, "--out", out).code == 1
    train = (out / "shards" / "train-000000.tar").stat()
    rewrite(broken, "VV", same)
    ended = run_build(*fresh_v1.arguments, "--out", out)
    assert ended.code == 0
    assert "1 of 2 shards are built already" in ended.err
    assert (out / "shards" / "train-000000.tar").stat().st_mtime_ns == train.st_mtime_ns
    assert run_build(*fresh_v1.arguments, "--out", tmp_path / "again").code == 0
    assert contents(out) == contents(tmp_path / "again")


def test_nothing_but_broken_pairs_is_no_data_set(fresh_v1, tmp_path):
    for patch in fresh_v1.patches:
        rewrite(patch, "VV", with_value(np.nan))
    ended = run_build(*fresh_v1.arguments, "--out", tmp_path / "out", "--max-bad", 100)
    assert ended.code == 1
    assert "every pair is refused" in ended.err
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_nothing_but_halves_is_listed_too(fresh_v1, tmp_path):
    import shutil

    shutil.rmtree(fresh_v1.root / "BigEarthNet-v1.0")
    (fresh_v1.root / "BigEarthNet-v1.0").mkdir()
    ended = run_build(*fresh_v1.arguments, "--out", tmp_path / "out")
    assert ended.code == 1
    assert "4 of 4 pairs are refused" in ended.err
    assert len((tmp_path / "out" / "bad.jsonl").read_text().splitlines()) == 4


def test_pairs_that_the_users_own_limit_leaves_out_fail_no_build(fresh_v1, tmp_path):
    rows = [
        f'pair{i},{p.s1_path},{p.s2_path},"VV,VH","B02,B03",dB,L2A,2017-06-13,2017-06-{13 + 10 * (i == 2):02d}'
        for i, p in enumerate(fresh_v1.patches)
    ]
    header = "key,s1_path,s2_path,s1_bands,s2_bands,s1_units,s2_level,s1_date,s2_date\n"
    (tmp_path / "pairs.csv").write_text(header + "\n".join(rows) + "\n")
    arguments = ["--source", "folder", "--root", tmp_path / "pairs.csv", "--max-days", 5]
    ended = run_build(*arguments, "--out", tmp_path / "out", "--json")
    assert ended.code == 0, ended.err
    assert (ended.figures["samples_built"], ended.figures["refused_by_reason"]) == (3, {"days apart": 1})
    [line] = [json.loads(line) for line in (tmp_path / "out" / "bad.jsonl").read_text().splitlines()]
    assert (line["key"], line["reason"]) == ("pair2", "days apart")
