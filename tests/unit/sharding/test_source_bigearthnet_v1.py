"""BigEarthNet v1.0: who is whose partner, by which list; splits, flags, labels; what is refused."""

import bz2
import shutil
from pathlib import Path

import pytest

from sharding.errors import DataError
from sharding.sources import open_source
from sharding.sources.base import METADATA, MISSING_BAND, MISSING_HALF, PairError
from sharding.sources.tree import Tree
from tests.trees import Patch
from tests.unit.sharding.conftest import SHARED

LISTS = SHARED.parent / "index"


def source_at(archive):
    return open_source("bigearthnet-v1", str(archive.root))


def record_of(patch: Patch) -> Path:
    return patch.s1_path / f"{patch.s1_name}_labels_metadata.json"


def forget_partners(archive) -> None:
    """Leave only the S2 patches in the lists of splits, as bigearthnet-common has them."""
    for path in (archive.root / "splits").iterdir():
        lines = path.read_text().splitlines()
        path.write_text("".join(f"{line.partition(',')[0]}\n" for line in lines))


def write_map(archive, path: str, patches: list[Patch]) -> None:
    rows = [f"{patch.s1_name},{patch.key},Austria,Summer\n" for patch in patches]
    target = archive.root / path
    target.parent.mkdir(exist_ok=True)
    content = f"s1_name,s2_name,country,season\n{''.join(rows)}".encode()
    target.write_bytes(bz2.compress(content) if path.endswith(".bz2") else content)


def opened_jsons(monkeypatch) -> list[str]:
    """Grows with each JSON that is opened from now on."""
    opened = []
    read = Tree.read

    def spy(self, path):
        if path.endswith(".json"):
            opened.append(path)
        return read(self, path)

    monkeypatch.setattr(Tree, "read", spy)
    return opened


def told(listing) -> dict[str, str]:
    return {pair.key: pair.s1 for pair in listing.pairs}


def partners(archive) -> dict[str, str]:
    return {patch.key: patch.s1_name for patch in archive.patches}


def test_splits_with_two_columns_tell_the_partners_and_no_json_is_opened(fresh_v1, monkeypatch):
    opened = opened_jsons(monkeypatch)
    assert told(source_at(fresh_v1).list()) == partners(fresh_v1)
    assert opened == []


@pytest.mark.parametrize(
    "path",
    [
        "s1_s2_name_country_season.csv",
        "splits/s1_s2_name_country_season.csv.bz2",
        "lists/s1_s2_name_country_season.csv",
    ],
)
def test_the_map_tells_partner_country_and_season_and_no_json_is_opened(fresh_v1, monkeypatch, path):
    forget_partners(fresh_v1)
    write_map(fresh_v1, path, fresh_v1.patches)
    opened = opened_jsons(monkeypatch)
    listing = source_at(fresh_v1).list()
    assert told(listing) == partners(fresh_v1)
    assert opened == []
    assert all(pair.attributes == {"country": "Austria", "season": "Summer"} for pair in listing.pairs)


def test_without_a_list_of_partners_each_s1_patch_is_asked(fresh_v1, monkeypatch):
    forget_partners(fresh_v1)
    opened = opened_jsons(monkeypatch)
    assert told(source_at(fresh_v1).list()) == partners(fresh_v1)
    assert len(opened) == len(fresh_v1.patches)


def test_what_a_list_leaves_out_is_asked_of_its_json(fresh_v1, monkeypatch):
    forget_partners(fresh_v1)
    write_map(fresh_v1, "s1_s2_name_country_season.csv", fresh_v1.patches[:3])
    opened = opened_jsons(monkeypatch)
    listing = source_at(fresh_v1).list()
    assert told(listing) == partners(fresh_v1)
    last = fresh_v1.patches[3]
    assert opened == [str(record_of(last).relative_to(fresh_v1.root))]
    assert [pair.attributes for pair in listing.pairs if pair.key == last.key] == [{}]


def test_a_map_with_other_columns_is_refused(fresh_v1):
    (fresh_v1.root / "s1_s2_name_country_season.csv").write_text("s2,s1\na,b\n")
    with pytest.raises(DataError, match=r"season\.csv has no column s1_name, s2_name, country, season"):
        source_at(fresh_v1).list()


def test_a_list_that_is_cut_short_is_named(fresh_v1):
    content = bz2.compress(b"S2A_MSIL2A_20170613T101031_61_39\n" * 1000)
    (fresh_v1.root / "patches_with_seasonal_snow.csv.bz2").write_bytes(content[:20])
    with pytest.raises(DataError, match=r"patches_with_seasonal_snow\.csv\.bz2 cannot be read"):
        source_at(fresh_v1).list()


@pytest.mark.parametrize("form", ["splits/{}.csv", "bigearthnet-{}.csv", "{}.csv.bz2", "lists/{}.csv"])
def test_splits_wherever_they_lie(fresh_v1, form):
    for split in ("train", "val", "test"):
        old = fresh_v1.root / "splits" / f"{split}.csv"
        content = old.read_bytes()
        old.unlink()
        new = fresh_v1.root / form.format(split)
        new.parent.mkdir(exist_ok=True)
        new.write_bytes(bz2.compress(content) if new.suffix == ".bz2" else content)
    listing = source_at(fresh_v1).list()
    assert {pair.key: pair.split for pair in listing.pairs} == {patch.key: patch.split for patch in fresh_v1.patches}
    assert listing.has_splits


def test_without_split_files_there_are_no_splits(fresh_v1):
    shutil.rmtree(fresh_v1.root / "splits")
    listing = source_at(fresh_v1).list()
    assert not listing.has_splits
    assert {pair.split for pair in listing.pairs} == {None}


def test_patches_in_no_split_file_have_no_split(fresh_v1):
    (fresh_v1.root / "splits" / "val.csv").write_text("")
    listing = source_at(fresh_v1).list()
    assert listing.has_splits
    assert {pair.key for pair in listing.pairs if pair.split is None} == {fresh_v1.patches[3].key}


def test_notes_tell_what_is_odd_about_the_split_files(fresh_v1):
    with (fresh_v1.root / "splits" / "val.csv").open("a") as file:
        file.write("S2A_MSIL2A_20170613T101031_88_88\nlunch\n")
        file.write(f"{fresh_v1.patches[0].key}\n")
    listing = source_at(fresh_v1).list()
    assert listing.notes == [
        "1 lines of splits/val.csv name no patch of BigEarthNet v1.0 and are passed over",
        f"1 patches of the split files are not in {fresh_v1.root}",
        "1 patches are in two split files; train counts before val and test",
    ]
    assert {pair.key: pair.split for pair in listing.pairs}[fresh_v1.patches[0].key] == "train"


@pytest.mark.parametrize("form", ["patches_with_{}.csv", "splits/patches_with_{}.csv.bz2", "lists/patches_with_{}.csv"])
def test_lists_of_snow_and_clouds_become_flags(fresh_v1, form):
    first, second, *_ = (patch.key for patch in fresh_v1.patches)
    for name, key in (("seasonal_snow", first), ("cloud_and_shadow", second)):
        path = fresh_v1.root / form.format(name)
        path.parent.mkdir(exist_ok=True)
        content = f"{key}\n".encode()
        path.write_bytes(bz2.compress(content) if path.suffix == ".bz2" else content)
    source = source_at(fresh_v1)
    pairs = source.list().pairs
    flags = {pair.key: pair.attributes for pair in pairs}
    assert {key for key in flags if flags[key]["contains_seasonal_snow"]} == {first}
    assert {key for key in flags if flags[key]["contains_cloud_or_shadow"]} == {second}
    assert all("no_19_class_target" not in attributes for attributes in flags.values())
    [sample] = [source.read(pair) for pair in pairs if pair.key == first]
    assert sample.attributes["contains_seasonal_snow"] is True
    assert sample.attributes["contains_cloud_or_shadow"] is False


def test_without_lists_nothing_is_said_of_snow(v1):
    assert all(pair.attributes == {} for pair in source_at(v1).list().pairs)


@pytest.mark.parametrize(
    ("s1", "s2"),
    [
        ("BigEarthNet-S1-v1.0", "BigEarthNet-S2-v1.0"),
        ("BigEarthNet-S1-Example", "BigEarthNet-S2-Example"),
    ],
)
def test_the_folders_under_their_other_names(fresh_v1, s1, s2):
    (fresh_v1.root / "BigEarthNet-S1-v1.0").rename(fresh_v1.root / s1)
    (fresh_v1.root / "BigEarthNet-v1.0").rename(fresh_v1.root / s2)
    source = source_at(fresh_v1)
    assert len([source.read(pair) for pair in source.list().pairs]) == 4


def test_the_43_labels_are_kept_beside_the_19(v1):
    source = source_at(v1)
    sample = source.read(source.list().pairs[0])
    assert set(sample.attributes["labels_43"]) == {"Non-irrigated arable land", "Pastures"}
    assert sample.labels == ("Arable land", "Pastures")


def refused(listing) -> list[tuple[str, str, str]]:
    return sorted((refusal.key, refusal.reason, refusal.file) for refusal in listing.refused)


def test_halves_without_their_partner_are_refused(fresh_v1):
    first, second, *rest = fresh_v1.patches
    shutil.rmtree(first.s1_path)
    shutil.rmtree(second.s2_path)
    listing = source_at(fresh_v1).list()
    assert {pair.key for pair in listing.pairs} == {patch.key for patch in rest}
    assert refused(listing) == sorted(
        (patch.key, MISSING_HALF, f"BigEarthNet-v1.0/{patch.key}") for patch in (first, second)
    )


def test_jsons_that_name_no_partner_are_refused_when_nothing_else_does(fresh_v1):
    forget_partners(fresh_v1)
    first, second, third, fourth = fresh_v1.patches
    record_of(first).write_text("{")
    record_of(second).write_text("[]")
    record_of(third).write_text(record_of(third).read_text().replace(third.key, fourth.key))
    listing = source_at(fresh_v1).list()
    reasons = {(refusal.key, refusal.reason) for refusal in listing.refused}
    # The S2 halves of the first three stay alone.
    alone = {(patch.key, MISSING_HALF) for patch in (first, second, third)}
    broken = {(first.s1_name, METADATA), (second.s1_name, METADATA), (fourth.key, METADATA)}
    assert reasons == alone | broken
    messages = " ".join(refusal.message for refusal in listing.refused)
    assert "cannot be read as JSON" in messages
    assert "it is no JSON object" in messages
    assert f"its S2 patch is said to be {fourth.key}, which is another place" in messages
    assert [pair.key for pair in listing.pairs] == [fourth.key]


def test_two_s1_patches_with_one_s2_patch_are_one_pair(fresh_v1):
    first = fresh_v1.patches[0]
    twin = first.s1_name.replace("20170613T165043", "20170619T165043")
    shutil.copytree(first.s1_path, first.s1_path.parent / twin)
    (first.s1_path.parent / twin / record_of(first).name).rename(
        first.s1_path.parent / twin / f"{twin}_labels_metadata.json"
    )
    listing = source_at(fresh_v1).list()
    assert told(listing) == partners(fresh_v1)
    [refusal] = listing.refused
    assert (refusal.key, refusal.reason) == (first.key, METADATA)
    assert refusal.message.endswith("which another S1 patch has already")


def test_a_folder_that_is_no_patch_is_refused(fresh_v1):
    folder = fresh_v1.patches[0].s1_path.parent / "S1A_of_mine"
    folder.mkdir()
    listing = source_at(fresh_v1).list()
    assert refused(listing) == [
        ("S1A_of_mine", METADATA, "BigEarthNet-S1-v1.0/S1A_of_mine/S1A_of_mine_labels_metadata.json")
    ]


@pytest.mark.parametrize(
    ("reason", "message", "change"),
    [
        (METADATA, "cannot be read as JSON", lambda patch: record_of(patch).write_text("{")),
        (METADATA, "no list of labels", lambda patch: rewrite(patch, '"labels"', '"marks"')),
        (METADATA, "'Lava' is in no nomenclature", lambda patch: rewrite(patch, '"Pastures"', '"Lava"')),
        (METADATA, "it names S2A_x as its S2 patch, the lists name S2A_M", lambda p: rewrite(p, p.key, "S2A_x")),
    ],
)
def test_what_is_wrong_with_a_json_is_told_when_the_pair_is_read(fresh_v1, reason, message, change):
    patch = fresh_v1.patches[0]
    change(patch)
    source = source_at(fresh_v1)
    [pair] = [pair for pair in source.list().pairs if pair.key == patch.key]
    with pytest.raises(PairError, match=message) as caught:
        source.read(pair)
    assert caught.value.reason == reason
    assert caught.value.file == str(record_of(patch).relative_to(fresh_v1.root))


def rewrite(patch: Patch, old: str, new: str) -> None:
    text = record_of(patch).read_text()
    assert old in text
    record_of(patch).write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("reason", "file", "change"),
    [
        (MISSING_BAND, "_B05.tif", lambda patch: (patch.s2_path / f"{patch.key}_B05.tif").unlink()),
        (MISSING_BAND, "_VH.tif", lambda patch: (patch.s1_path / f"{patch.s1_name}_VH.tif").unlink()),
        (METADATA, ".json", lambda patch: record_of(patch).unlink()),
        (MISSING_HALF, "", lambda patch: shutil.rmtree(patch.s2_path)),
    ],
)
def test_a_missing_file_is_told_before_anything_is_read(fresh_v1, reason, file, change):
    source = source_at(fresh_v1)
    pair = source.list().pairs[0]
    [patch] = [patch for patch in fresh_v1.patches if patch.key == pair.key]
    change(patch)
    with pytest.raises(PairError) as caught:
        source.files(pair)
    assert caught.value.reason == reason
    assert caught.value.file.endswith(file)


@pytest.mark.slow
@pytest.mark.skipif(not LISTS.exists(), reason="needs ../shared/index, the official lists")
def test_the_official_lists_place_and_split_every_pair(tmp_path, monkeypatch):
    names = ("train", "val", "test", "s1_s2_name_country_season", "patches_with_seasonal_snow")
    names += ("patches_with_cloud_and_shadow", "patches_with_no_19_class_targets")
    for folder in ("BigEarthNet-v1.0", "BigEarthNet-S1-v1.0", "splits"):
        (tmp_path / folder).mkdir()
    for name in names:
        (tmp_path / "splits" / f"{name}.csv.bz2").symlink_to(LISTS / f"{name}.csv.bz2")
    rows = bz2.decompress((LISTS / "s1_s2_name_country_season.csv.bz2").read_bytes()).decode().splitlines()[1:]
    patches = {"BigEarthNet-S1-v1.0": 0, "BigEarthNet-v1.0": 1}
    folders = Tree.folders
    monkeypatch.setattr(
        Tree,
        "folders",
        lambda self, path="": (
            [row.split(",")[patches[path]] for row in rows] if path in patches else folders(self, path)
        ),
    )
    listing = open_source("bigearthnet-v1", str(tmp_path)).list()
    assert (len(listing.table), listing.refused, listing.notes) == (590_326, [], [])
    counts = listing.table["split"].value_counts().to_pylist()
    assert {count["values"]: count["counts"] for count in counts} == {
        "train": 269_695, "val": 123_723, "test": 125_866, None: 71_042,
    }  # fmt: skip
    flags = ("contains_seasonal_snow", "contains_cloud_or_shadow", "no_19_class_target")
    assert [sum(chunk.true_count for chunk in listing.table[flag].chunks) for flag in flags] == [61_707, 9_280, 57]
    lon, lat = listing.table["lon"].to_numpy(), listing.table["lat"].to_numpy()
    assert (lon.min() > -9.1, lon.max() < 31.6, lat.min() > 36.9, lat.max() < 68.1) == (True,) * 4
