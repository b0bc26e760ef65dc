"""`python -m sharding.index` on plain WebDataset tars of .npy: joined by key, bit for bit what numpy reads."""

import io
import json
import random

import numpy as np
import pytest
import webdataset

from sharding import inspect, verify
from sharding.dataset import open_dataset
from sharding.pictures import rider_pictures
from sharding.read_sample import find_sample, read_sample
from tests.unit.sharding.conftest import run as run_command
from tests.unit.sharding.foreign_reading import assert_planes, decode_all, lines_of, manifest_of
from tests.unit.sharding.terramesh_archive import write_tar
from tests.unit.sharding.test_index_command import run_index

S2 = ("B02", "B03", "B04", "B08")
ARRAYS = ("--array", "s1=VV,VH:dB", "--array", f"s2={','.join(S2)}:DN:offset=-1000")
KEYS = [f"{number:06d}" for number in range(6)]


def run(root, out, *arguments, arrays=ARRAYS, **options):
    return run_index(root, out, *arrays, *arguments, source="webdataset", **options)


def sample(key, seed=0):
    rng = np.random.default_rng([seed, int(key)])
    return {
        "s1": rng.normal(-12, 3, (2, 24, 24)).astype(np.float32),
        "s2": rng.integers(1, 9000, (4, 24, 24)).astype(np.uint16),
    }


def npy(array, **options):
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, **options)
    return buffer.getvalue()


def members(keys=KEYS, fields=("s1", "s2"), seed=0):
    return [(f"{key}.{field}.npy", npy(sample(key, seed)[field])) for key in keys for field in fields]


def assert_samples(out, keys=KEYS, seed=0):
    found = decode_all(out)
    assert list(found) == list(keys)
    for key, planes in found.items():
        pixels = sample(key[-6:], seed)
        assert_planes(planes, dict(zip(("VV", "VH", *S2), [*pixels["s1"], *pixels["s2"]], strict=True)))
        assert planes["offset"] == -1000
    return found


@pytest.fixture
def root(tmp_path):
    """One tar with all."""
    write_tar(tmp_path / "root" / "train" / "000.tar", members())
    return tmp_path / "root"


def test_arrays_are_what_numpy_reads_with_the_bands_and_units_that_were_named(root, tmp_path):
    ended = run(root, tmp_path / "out", "--json", "--level", "L2A")
    assert ended.code == 0, ended.err
    assert_samples(tmp_path / "out")
    manifest = manifest_of(tmp_path / "out")
    assert [(a.name, a.bands, a.dtype, a.units) for a in manifest.arrays] == [
        ("s1", ("VV", "VH"), "float32", "dB"), ("s2", S2, "uint16", "DN"),
    ]  # fmt: skip
    assert manifest.sources[0].levels == ("L2A",)
    expected = np.concatenate([sample(key)["s2"][1].ravel() - 1000.0 for key in KEYS])
    assert manifest.statistics["train"]["B03"].mean == pytest.approx(expected.mean())


def test_tars_that_webdataset_wrote_are_read(tmp_path):
    (tmp_path / "root" / "val").mkdir(parents=True)
    with webdataset.TarWriter(str(tmp_path / "root" / "val" / "a.tar")) as writer:
        for key in KEYS:
            writer.write({"__key__": key, **{f"{name}.npy": array for name, array in sample(key).items()}})
    assert run(tmp_path / "root", tmp_path / "out").code == 0
    assert_samples(tmp_path / "out")
    assert manifest_of(tmp_path / "out").splits == {"val": 6}


@pytest.mark.parametrize(
    ("s1", "s2"),
    [("s1/000.tar", "s2/000.tar"), ("s1-000.tar", "s2-000.tar"), ("S1GRD/x_000.tar", "S2L2A/x_000.tar")],
    ids=["folders", "names", "modalities"],
)
def test_tars_of_several_arrays_are_joined_by_key_in_the_order_of_the_first(tmp_path, s1, s2):
    order = random.Random(0)
    mixed = order.sample(KEYS, len(KEYS))
    write_tar(tmp_path / "root" / "train" / s1, members(mixed, ("s1",)))
    write_tar(tmp_path / "root" / "train" / s2, members(KEYS, ("s2",)))
    ended = run(tmp_path / "root", tmp_path / "out", "--json")
    assert ended.code == 0, ended.err
    assert_samples(tmp_path / "out", mixed)
    assert [part.path for part in manifest_of(tmp_path / "out").shards[0].parts] == [f"train/{s1}", f"train/{s2}"]


def test_keys_that_lack_an_array_are_counted_and_left_out(tmp_path):
    write_tar(tmp_path / "root" / "train" / "s1-0.tar", members(KEYS[1:], ("s1",)))
    write_tar(tmp_path / "root" / "train" / "s2-0.tar", members(KEYS[:-1], ("s2",)))
    ended = run(tmp_path / "root", tmp_path / "out", "--json")
    assert ended.code == 0, ended.err
    assert ended.figures["refused_by_reason"] == {"missing half": 2}
    assert_samples(tmp_path / "out", KEYS[1:-1])
    messages = [json.loads(line)["message"] for line in (tmp_path / "out" / "bad.jsonl").read_text().splitlines()]
    assert any("there is no 000000.s1.npy in train/s1-0.tar, train/s2-0.tar" in message for message in messages)


def test_members_of_no_named_array_are_counted(tmp_path):
    write_tar(tmp_path / "root" / "train" / "0.tar", [*members(), ("000000.json", b"{}"), ("000001.dem.npy", b"x")])
    ended = run(tmp_path / "root", tmp_path / "out", "--json")
    assert ended.figures["notes"] == ["2 members of the tars are of no --array and are left out"]
    assert_samples(tmp_path / "out")


def test_headers_only_has_no_checksums(root, tmp_path):
    ended = run(root, tmp_path / "out", "--headers-only", "--statistics-from", "2", "--json")
    assert ended.code == 0, ended.err
    assert ended.figures["statistics_from"] == 2
    assert any(note.startswith("no payload has a checksum") for note in ended.figures["notes"])
    assert_samples(tmp_path / "out")
    read = run(root, tmp_path / "read", "--json")
    assert read.figures["notes"] == []


def test_an_array_of_one_band_may_have_two_axes(tmp_path):
    heights = np.arange(24 * 24, dtype=np.float32).reshape(24, 24)
    extra = [(f"{key}.dem.npy", npy(heights)) for key in KEYS]
    write_tar(tmp_path / "root" / "train" / "0.tar", members() + extra)
    ended = run(tmp_path / "root", tmp_path / "out", "--array", "dem=DEM:m:nodata=-9999:gsd=30")
    assert ended.code == 0, ended.err
    for planes in assert_samples(tmp_path / "out").values():
        assert_planes(planes, {"DEM": heights})
    spec = manifest_of(tmp_path / "out").arrays[-1]
    assert (spec.nodata, spec.gsd_m) == (-9999, 30)


@pytest.mark.parametrize(
    ("dtype", "nodata", "stored"),
    [(np.float16, -9999, -10000.0), (np.float32, -9999.9, float(np.float32(-9999.9))), (np.int16, -1, -1.0)],
    ids=["float16", "float32", "int16"],
)
def test_nodata_is_what_the_type_makes_of_it(tmp_path, dtype, nodata, stored):
    heights = np.arange(24 * 24).reshape(24, 24).astype(dtype)
    heights[:2] = nodata
    extra = [(f"{key}.dem.npy", npy(heights)) for key in KEYS]
    write_tar(tmp_path / "root" / "train" / "0.tar", members() + extra)
    ended = run(tmp_path / "root", tmp_path / "out", "--array", f"dem=DEM:m:nodata={nodata}")
    assert ended.code == 0, ended.err
    manifest = manifest_of(tmp_path / "out")
    assert manifest.arrays[-1].nodata == stored
    assert manifest.statistics["train"]["DEM"].nodata == len(KEYS) * 48


@pytest.mark.parametrize(
    ("dtype", "nodata"),
    [(np.uint16, "-1"), (np.uint16, "65536"), (np.uint16, "0.5"), (np.float16, "1e9"), (np.float32, "1e39")],
)
def test_nodata_that_the_type_cannot_hold_is_refused(tmp_path, dtype, nodata):
    content = [(f"{key}.s2.npy", npy(sample(key)["s2"].astype(dtype))) for key in KEYS]
    write_tar(tmp_path / "root" / "train" / "0.tar", content)
    arrays = ("--array", f"s2={','.join(S2)}:DN:nodata={nodata}")
    ended = run(tmp_path / "root", tmp_path / "out", arrays=arrays)
    assert ended.code == 1
    assert f"--array s2 has nodata={float(nodata):g}, which its {np.dtype(dtype).name} cannot hold" in ended.err


def test_numbers_of_128_bits_are_refused(tmp_path):
    content = dict(members()) | {"000002.s1.npy": npy(sample("0")["s1"].astype(np.longdouble))}
    write_tar(tmp_path / "root" / "train" / "0.tar", content)
    ended = run(tmp_path / "root", tmp_path / "out")
    assert ended.code == 1
    assert "it is stored as <f16" in ended.err


@pytest.mark.parametrize(
    ("s1", "s2"),
    [
        ("S1-GRD/000.tar", "S2_L2A/000.tar"),
        ("part-s1-grd-000.tar", "part-s2_l2a-000.tar"),
        ("x.s1-grd.000.tar", "x.s2_l2a.000.tar"),
    ],
)
def test_names_of_arrays_with_dashes_join_too(tmp_path, s1, s2):
    renamed = {"s1": "s1-grd", "s2": "s2_l2a"}
    for path, field in ((s1, "s1"), (s2, "s2")):
        content = [(name.replace(f".{field}.", f".{renamed[field]}."), data) for name, data in members(KEYS, (field,))]
        write_tar(tmp_path / "root" / "train" / path, content)
    arrays = ("--array", "s1-grd=VV,VH:dB", "--array", f"s2_l2a={','.join(S2)}:DN:offset=-1000")
    ended = run(tmp_path / "root", tmp_path / "out", arrays=arrays)
    assert ended.code == 0, ended.err
    assert_samples(tmp_path / "out")
    assert len(manifest_of(tmp_path / "out").shards) == 1


def test_a_name_that_begins_with_another_joins_with_it(tmp_path):
    fields = {"s2": ("B02", "B03"), "s2_10m": ("B04", "B08")}
    for name, planes in (("s2", slice(0, 2)), ("s2_10m", slice(2, 4))):
        content = [(f"{key}.{name}.npy", npy(sample(key)["s2"][planes])) for key in KEYS]
        write_tar(tmp_path / "root" / "train" / f"{name}-0.tar", content)
    arrays = [option for name, bands in fields.items() for option in ("--array", f"{name}={','.join(bands)}:DN")]
    ended = run(tmp_path / "root", tmp_path / "out", arrays=arrays)
    assert ended.code == 0, ended.err
    assert [shard.samples for shard in manifest_of(tmp_path / "out").shards] == [6]


def test_words_that_only_contain_the_name_of_an_array_stay(tmp_path):
    for number, word in enumerate(("abs1", "abs2", "s10")):
        write_tar(tmp_path / "root" / "train" / f"{word}-0.tar", members([f"{number}{key[1:]}" for key in KEYS]))
    assert run(tmp_path / "root", tmp_path / "out").code == 0
    names = [shard.index_path for shard in manifest_of(tmp_path / "out").shards]
    assert names == ["index/train-abs1-0.idx", "index/train-abs2-0.idx", "index/train-s10-0.idx"]


def test_the_bands_and_not_the_name_say_what_an_array_holds(tmp_path):
    """Names of other things, to everything that opens a data set."""
    names = {"s1": "lulc", "s2": "dem"}
    content = [(f"{key}.{names[field]}.npy", npy(array)) for key in KEYS for field, array in sample(key).items()] + [
        (f"{key}.s1.npy", npy(np.full((24, 24), int(key), np.uint8))) for key in KEYS
    ]
    write_tar(tmp_path / "root" / "train" / "0.tar", content)
    arrays = ("--array", "lulc=VV,VH:dB", "--array", f"dem={','.join(S2)}:DN:offset=-1000", "--array", "s1=LULC:class")
    out = tmp_path / "out"
    ended = run(tmp_path / "root", out, arrays=arrays)
    assert ended.code == 0, ended.err
    assert_samples(out)
    statistics = manifest_of(out).statistics["train"]
    assert statistics["VV"].mean == pytest.approx(np.mean([sample(key)["s1"][0] for key in KEYS]), rel=1e-6)
    summary = run_command(inspect.main, "summary", out, "--json")
    assert summary.figures["classes"].keys() == {"LULC"}
    assert run_command(inspect.main, "sample", out, "000001", "--out", tmp_path / "a.png").code == 0
    assert run_command(inspect.main, "gallery", out, "--out", tmp_path / "a.html").code == 0
    assert run_command(verify.main, out).code == 0
    store, manifest = open_dataset(str(out))
    pictures = rider_pictures(read_sample(store, manifest, find_sample(store, manifest, "000001")))
    assert [(picture.name, list(picture.classes)) for picture in pictures] == [("LULC", [1])]


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_any_version_of_npy_is_read(tmp_path, version):
    pixels = {key: sample(key) for key in KEYS}
    content = [
        (f"{key}.{name}.npy", npy(array, version=version)) for key in KEYS for name, array in pixels[key].items()
    ]
    write_tar(tmp_path / "root" / "train" / "0.tar", content)
    assert run(tmp_path / "root", tmp_path / "out").code == 0
    assert_samples(tmp_path / "out")


@pytest.mark.parametrize(
    ("spoilt", "words"),
    [
        (npy(np.asfortranarray(sample("0")["s2"])), "column by column"),
        (npy(sample("0")["s2"].astype(">u2")), "stored as >u2"),
        (npy(sample("0")["s2"][:3]), "shape (3, 24, 24), (4, height, width) was expected"),
        (npy(sample("0")["s2"])[:-8], "its header says"),
        (b"no npy at all", "it is no .npy"),
        (npy(np.zeros((4, 24, 24), np.uint16)), "nodata"),
        (npy(np.full((4, 24, 24), np.nan, np.float32)), "B02 has no finite number anywhere"),
        (npy(sample("0")["s2"].astype(np.int32)), "s2 of 000002 is B02 B03 B04 B08 of 24x24 int32 DN"),
    ],
)
def test_an_array_that_is_not_as_it_should_be_is_refused_by_name(tmp_path, spoilt, words):
    content = [(name, spoilt if name == "000002.s2.npy" else data) for name, data in members()]
    write_tar(tmp_path / "root" / "train" / "0.tar", content)
    ended = run(tmp_path / "root", tmp_path / "out")
    assert ended.code == 1
    for word in (words, "train/0.tar", "000002"):
        assert word in ended.err
    assert run(tmp_path / "root", tmp_path / "out", "--max-bad", "1").code == 0
    assert_samples(tmp_path / "out", [key for key in KEYS if key != "000002"])


def test_s1_that_is_no_measurement_is_refused(tmp_path):
    content = dict(members())
    content["000003.s1.npy"] = npy(np.full((2, 24, 24), np.nan, np.float32))
    content["000004.s1.npy"] = npy(np.full((2, 24, 24), 7e5, np.float32))
    write_tar(tmp_path / "root" / "train" / "0.tar", content)
    ended = run(tmp_path / "root", tmp_path / "out", "--max-bad", "2", "--json")
    assert ended.figures["refused_by_reason"] == {"NaN in S1": 1, "constant S1": 1}


def test_a_key_that_comes_twice_is_refused(tmp_path):
    write_tar(tmp_path / "root" / "train" / "0.tar", [*members(), members(["000001"], seed=5)[1]])
    ended = run(tmp_path / "root", tmp_path / "out")
    assert ended.code == 1
    assert "an array of 000001 a second time" in ended.err


def test_keys_that_are_only_unique_in_their_tar_get_its_name(tmp_path):
    for number in range(2):
        write_tar(tmp_path / "root" / "train" / f"{number}.tar", members())
    ended = run(tmp_path / "root", tmp_path / "out")
    assert ended.code == 1
    assert "6 keys" in ended.err
    assert "--prefix-keys" in ended.err
    assert run(tmp_path / "root", tmp_path / "out", "--prefix-keys").code == 0
    assert_samples(tmp_path / "out", [f"train-{number}/{key}" for number in range(2) for key in KEYS])


def test_tars_in_no_split_need_one(tmp_path):
    write_tar(tmp_path / "root" / "0.tar", members())
    ended = run(tmp_path / "root", tmp_path / "out")
    assert ended.code == 2
    assert "root/0.tar is in none of the folders train, val, test; say by --split" in ended.err
    assert run(tmp_path / "root", tmp_path / "out", "--split", "test").code == 0
    assert_samples(tmp_path / "out")
    assert {line["split"] for line in lines_of(tmp_path / "out")} == {"test"}


def test_folders_of_no_split_are_told(tmp_path):
    write_tar(tmp_path / "root" / "training" / "0.tar", members())
    ended = run(tmp_path / "root", tmp_path / "out")
    assert ended.code == 2
    assert "holds no .tar in train, val, test" in ended.err
    write_tar(tmp_path / "root" / "train" / "0.tar", members())
    ended = run(tmp_path / "root", tmp_path / "out", "--json")
    assert ended.figures["notes"] == ["the folder training is none of train, val, test and is not looked into"]
    assert_samples(tmp_path / "out")


@pytest.mark.parametrize(
    ("array", "words"),
    [
        ("s1", "write NAME=BAND"),
        ("s1=VV,VH", "write NAME=BAND"),
        ("s1=VV,XX:dB", "has 'XX'"),
        ("s1=VV,VV:dB", "a band twice"),
        ("s1=VV,B02:dB", "mixes bands"),
        ("s1=VV,VH:decibel", "units are"),
        ("s1=VV,VH:dB:colour=3", "has 'colour=3'"),
        ("s1=VV,VH:dB:scale=0", "above 0"),
        ("s1=VV,VH:dB:nodata=nan", "finite"),
    ],
)
def test_an_array_that_cannot_be_meant_is_refused(root, tmp_path, array, words):
    ended = run(root, tmp_path / "out", arrays=("--array", array))
    assert ended.code == 2
    assert words in ended.err


def test_arrays_must_be_named_and_once(root, tmp_path):
    for arrays, words in (
        ((), "name each by --array"),
        ((*ARRAYS, "--array", "more=VV:dB"), "the band VV is in more than one"),
        ((*ARRAYS, "--array", "S1=DEM:m"), "the array s1 is in more than one"),
    ):
        ended = run(root, tmp_path / "out", arrays=arrays)
        assert ended.code == 2
        assert words in ended.err


def test_a_damaged_tar_is_named_and_the_others_stay(tmp_path):
    for number in range(2):
        keys = [f"{number}{key[1:]}" for key in KEYS]
        write_tar(tmp_path / "root" / "train" / f"{number}.tar", members(keys))
    path = tmp_path / "root" / "train" / "1.tar"
    content = bytearray(path.read_bytes())
    content[512 * 5 + 3] ^= 1  # in data or in a header: of no matter, a later header is spoilt too
    content[: len(content)] = content[: len(content) // 2]
    path.write_bytes(content)
    ended = run(tmp_path / "root", tmp_path / "out")
    assert ended.code == 1
    assert "train/1.tar" in ended.err
    ended = run(tmp_path / "root", tmp_path / "out", "--max-bad", "1", "--json")
    assert ended.code == 0, ended.err
    assert len(decode_all(tmp_path / "out")) == 6
