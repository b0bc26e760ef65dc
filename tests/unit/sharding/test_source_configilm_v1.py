"""ConfigILM's LMDB of pickles, read without running them: made-up patches, and the 78 real ones in a wheel."""

import os
import pickle
import pickletools
import sys
import types
import warnings

import lmdb
import numpy as np
import pytest

from sharding.errors import ConfigError
from sharding.sources import open_source
from sharding.sources.base import (
    BANDS,
    CORRUPT,
    METADATA,
    MISSING_BAND,
    MISSING_HALF,
    WRONG_SIZE,
    PairError,
    SourceOptions,
)
from sharding.sources.patch_pickle import load_patch
from tests.unit.sharding.conftest import ROOT, SHARED

REAL = ROOT / "demo" / "data" / "configilm-v1"
TREE = SHARED / "bigearthnet_v1"
PARTNERS = SHARED.parent / "index" / "s1_s2_name_country_season.csv.bz2"
BANDS_12 = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
SIDES = {"B01": 20, "B09": 20, **dict.fromkeys(("B05", "B06", "B07", "B8A", "B11", "B12"), 60)}
KEYS = [f"S2A_MSIL2A_20170613T101031_{column}_57" for column in (26, 27, 28)]
S1_NAMES = [f"S1A_IW_GRDH_1SDV_20170613T165043_33UUP_{column}_57" for column in (26, 27, 28)]
HEADER = "s1_name,s2_name,country,season\n"


class Patch:
    """An object of the interface with plain attributes."""

    def __init__(self, **attributes):
        self.__dict__.update(attributes)


class Band(Patch):
    """One of pydantic's, which keeps its attributes one level down."""

    def __getstate__(self):
        return {"__dict__": dict(self.__dict__), "__fields_set__": {"name", "data"}, "__private_attribute_values__": {}}

    def __setstate__(self, state):
        self.__dict__.update(state["__dict__"])


@pytest.fixture
def interface(monkeypatch):
    """`bigearthnet_patch_interface` as far as pickles name it."""
    package = "bigearthnet_patch_interface"
    classes = {
        "merged_interface": {"BigEarthNet_S1_S2_Patch": Patch},
        "s1_interface": {"BigEarthNet_S1_Patch": Patch},
        "s2_interface": {"BigEarthNet_S2_Patch": Patch},
        "band_interface": dict.fromkeys(("BenS1_Band", "BenS2_10mBand", "BenS2_20mBand", "BenS2_60mBand"), Band),
    }
    monkeypatch.setitem(sys.modules, package, types.ModuleType(package))
    made = types.SimpleNamespace()
    for name, members in classes.items():
        module = types.ModuleType(f"{package}.{name}")
        monkeypatch.setitem(sys.modules, module.__name__, module)
        for cls, base in members.items():
            made_class = type(cls, (base,), {"__module__": module.__name__})
            setattr(module, cls, made_class)
            setattr(made, cls, made_class)
    return made


def make_planes(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    planes = {band: rng.normal(-14, 3, (120, 120)).astype(np.float32) for band in ("VV", "VH")}
    for band in BANDS_12:
        planes[band] = rng.integers(1, 9000, 2 * (SIDES.get(band, 120),)).astype(np.uint16)
    return planes


def make_patch(
    interface, planes, labels=("Pastures", "Water bodies"), new_labels=("Pastures", "Inland waters"), **more
):
    kinds = {120: interface.BenS2_10mBand, 60: interface.BenS2_20mBand, 20: interface.BenS2_60mBand}
    s1 = {f"band{b}": interface.BenS1_Band(name=b, data=planes[b]) for b in ("VV", "VH") if b in planes}
    s2 = {
        f"band{b[1:]}": kinds[SIDES.get(b, 120)](name=b, spatial_resolution=10, data=planes[b])
        for b in BANDS_12
        if b in planes
    }
    return interface.BigEarthNet_S1_S2_Patch(
        s1_patch=interface.BigEarthNet_S1_Patch(**s1, bands=list(s1.values())),
        s2_patch=interface.BigEarthNet_S2_Patch(**s2),
        labels=None if labels is None else list(labels),
        new_labels=None if new_labels is None else list(new_labels),
        **more,
    )


def write_lmdb(folder, values: dict[str, bytes]):
    folder.mkdir(parents=True)
    with lmdb.open(str(folder), map_size=1 << 26) as environment, environment.begin(write=True) as transaction:
        for key, value in values.items():
            transaction.put(key.encode(), value)


def source(root, **options):
    return open_source("configilm-v1", str(root), SourceOptions(**options))


def stored(sample) -> dict[str, np.ndarray]:
    return {
        band: plane for array in sample.arrays.values() for band, plane in zip(array.bands, array.data, strict=True)
    }


def assert_planes(sample, planes):
    found = stored(sample)
    assert set(found) == set(planes)
    for band, plane in planes.items():
        assert found[band].dtype == plane.dtype
        assert found[band].tobytes() == np.ascontiguousarray(plane).tobytes(), band


def refused(content: bytes) -> PairError:
    with pytest.raises(PairError) as caught:
        load_patch(content, "lmdb/patch")
    assert caught.value.file == "lmdb/patch"
    return caught.value


@pytest.fixture
def root(tmp_path, interface):
    write_lmdb(
        tmp_path / "BigEarthNetEncoded.lmdb",
        {key: pickle.dumps(make_patch(interface, make_planes(i))) for i, key in enumerate(KEYS)},
    )
    for split, key in zip(("train", "val"), KEYS, strict=False):
        (tmp_path / f"{split}.csv").write_text(f"{key}\n")
    return tmp_path


def test_both_halves_come_out_of_one_pickle_as_they_were(root):
    found = source(root)
    listing = found.list()
    assert [pair.key for pair in listing.pairs] == KEYS
    assert [pair.split for pair in listing.pairs] == ["train", "val", None]
    assert listing.has_splits
    assert listing.refused == []
    for i, pair in enumerate(listing.pairs):
        sample = found.read(pair)
        assert_planes(sample, make_planes(i))
        assert sample.labels == ("Pastures", "Inland waters")
        assert sample.attributes == {"labels_43": ["Pastures", "Water bodies"]}
        assert sample.dates == {"s2": "2017-06-13T10:10:31"}
        assert (sample.level, sample.crs, sample.centre) == ("L2A", "", None)
        assert {name: array.gsd_m for name, array in sample.arrays.items()} == {
            "s1": 10.0, "s2_10m": 10.0, "s2_20m": 20.0, "s2_60m": 60.0,
        }  # fmt: skip
        assert found.centre(pair) is None


def test_without_partners_it_is_said_what_is_missing(root):
    (note,) = source(root).list().notes
    assert note.startswith("3 of 3 patches have no coordinates and no date of S1")
    assert "s1_s2_name_country_season.csv beside the LMDB" in note


def test_the_list_of_partners_gives_place_grid_date_and_country(root):
    rows = [f"{s1},{s2},Austria,Summer\n" for s1, s2 in zip(S1_NAMES[:2], KEYS[:2], strict=True)]
    rows.append(f"{S1_NAMES[0]},{KEYS[2]},Austria,Summer\n")
    (root / "s1_s2_name_country_season.csv").write_text(HEADER + "".join(rows))
    found = source(root)
    listing = found.list()
    assert [pair.key for pair in listing.pairs] == KEYS[:2]
    assert listing.notes == []
    (wrong,) = listing.refused
    assert (wrong.key, wrong.reason) == (KEYS[2], METADATA)
    assert wrong.file == f"BigEarthNetEncoded.lmdb/{KEYS[2]}"
    pair = listing.pairs[0]
    sample = found.read(pair)
    assert sample.crs == "EPSG:32633"
    assert sample.arrays["s2_60m"].transform == (60.0, 0.0, 331_200.0, 0.0, -60.0, 5_331_600.0)
    assert sample.dates == {"s1": "2017-06-13T16:50:43", "s2": "2017-06-13T10:10:31"}
    assert sample.attributes["s1_name"] == S1_NAMES[0]
    assert sample.attributes["country"] == "Austria"
    assert (round(pair.lon, 1), round(pair.lat, 1)) == (12.7, 48.1)


def test_the_lmdb_may_be_the_root_itself(root):
    found = source(root / "BigEarthNetEncoded.lmdb")
    listing = found.list()
    assert not listing.has_splits
    assert found.files(listing.pairs[0])[0].path == "data.mdb"
    assert_planes(found.read(listing.pairs[0]), make_planes(0))


def test_the_files_of_a_pair_are_the_one_that_holds_all(root):
    found = source(root)
    pair = found.list().pairs[0]
    (file,) = found.files(pair)
    data = root / "BigEarthNetEncoded.lmdb" / "data.mdb"
    assert (file.path, file.size) == ("BigEarthNetEncoded.lmdb/data.mdb", data.stat().st_size)
    os.utime(data, ns=(1, 1))
    assert found.files(pair) != (file,)
    data.unlink()
    with pytest.raises(PairError) as caught:
        found.files(pair)
    assert caught.value.reason == MISSING_HALF


@pytest.mark.parametrize("protocol", [4, 5])
@pytest.mark.parametrize("order", ["C", "F"])
def test_every_way_in_which_numpy_pickles_an_array_is_read(interface, protocol, order):
    planes = {band: np.array(plane, order=order) for band, plane in make_planes(3).items()}
    planes["B02"] = planes["B02"].astype(">u2")
    patch = load_patch(pickle.dumps(make_patch(interface, planes), protocol=protocol), "patch")
    for band, plane in planes.items():
        assert patch.planes[band].flags.c_contiguous
        assert patch.planes[band].dtype.isnative
        assert np.array_equal(patch.planes[band], plane)


class Calls:
    """Pickled as the call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("function", "arguments", "name"),
    [
        (os.system, ("touch {}",), "posix.system"),
        (eval, ("open({!r}, 'w')",), "builtins.eval"),
        (os.mkdir, ("{}",), "posix.mkdir"),
        (getattr, (os, "system"), "builtins.getattr"),
        (np.fromfile, ("/etc/passwd",), "numpy"),
        (np.ndarray, ((1 << 60,),), None),
        (np.dtype, ("O",), None),
    ],
)
def test_what_a_pickle_asks_for_is_not_done(tmp_path, interface, function, arguments, name):
    target = tmp_path / "made-by-the-pickle"
    told = [text.format(str(target)) if isinstance(text, str) else text for text in arguments]
    told = ["os" if isinstance(item, types.ModuleType) else item for item in told]
    for content in (
        pickle.dumps(Calls(function, *told)),
        pickle.dumps(make_patch(interface, make_planes(0), extra=Calls(function, *told))),
    ):
        if name is None:
            patch_or_error(content)
        else:
            error = refused(content)
            assert error.reason == CORRUPT
            assert f"its pickle asks for {name}" in error.message
            assert "nothing was run" in error.message
        assert not target.exists()


def patch_or_error(content: bytes):
    """Harmless stand-ins: either they are of no use, or the patch is as it would be without them."""
    try:
        patch = load_patch(content, "patch")
    except PairError as error:
        assert error.reason == CORRUPT
    else:
        assert np.array_equal(patch.planes["VV"], make_planes(0)["VV"])


def test_the_same_pickle_would_have_run_in_pickle_itself(tmp_path):
    target = tmp_path / "made-by-the-pickle"
    pickle.loads(pickle.dumps(Calls(os.mkdir, str(target))))
    assert target.exists()


def test_a_pickle_cannot_change_what_the_next_one_meets(interface):
    good = pickle.dumps(make_patch(interface, make_planes(0)))
    merged = b"cbigearthnet_patch_interface.merged_interface\nBigEarthNet_S1_S2_Patch\n"
    reconstruct = b"cnumpy.core.multiarray\n_reconstruct\n"
    state = b"(N(dS'kind'\nS'changed'\nsS'fields'\nN" + b"stb."  # BUILD with (None, {...}): setattr on what lies below
    for named in (merged, reconstruct, b"cnumpy\nndarray\n", b"cnumpy\ndtype\n"):
        assert refused(named + state).reason == CORRUPT
        assert np.array_equal(load_patch(good, "patch").planes["VV"], make_planes(0)["VV"])


def test_a_dotted_name_does_not_lead_out_of_the_list():
    module, name = b"bigearthnet_patch_interface.merged_interface", b"BigEarthNet_S1_S2_Patch.__init__.__globals__"
    content = b"\x80\x04" + b"".join(b"\x8c" + bytes([len(text)]) + text for text in (module, name)) + b"\x93."
    assert "BigEarthNet_S1_S2_Patch.__init__.__globals__, which no patch needs" in refused(content).message


def test_a_malicious_value_is_refused_and_the_others_are_read(tmp_path, interface):
    target = tmp_path / "made-by-the-pickle"
    values = {key: pickle.dumps(make_patch(interface, make_planes(i))) for i, key in enumerate(KEYS)}
    values[KEYS[1]] = pickle.dumps(Calls(os.mkdir, str(target)))
    write_lmdb(tmp_path / "lmdb", values)
    found = source(tmp_path)
    pairs = found.list().pairs
    with pytest.raises(PairError, match=r"its pickle asks for posix\.mkdir") as caught:
        found.read(pairs[1])
    assert (caught.value.reason, caught.value.file) == (CORRUPT, f"lmdb/{KEYS[1]}")
    assert not target.exists()
    assert_planes(found.read(pairs[2]), make_planes(2))


def test_a_pickle_that_is_cut_short_is_refused(interface):
    content = pickle.dumps(make_patch(interface, make_planes(0)))
    for length in [0, 1, 2, *range(3, len(content), 9973), len(content) - 1]:
        assert refused(content[:length]).reason == CORRUPT


def test_bytes_that_were_flipped_are_refused_or_change_no_more_than_they_say(interface):
    content = pickletools.optimize(pickle.dumps(make_patch(interface, make_planes(0))))
    rng = np.random.default_rng(5)
    for at in rng.integers(0, len(content), 300):
        broken = bytearray(content)
        broken[at] ^= 1 << int(rng.integers(8))
        try:
            patch = load_patch(bytes(broken), "patch")
        except PairError:
            continue
        assert {band: plane.shape for band, plane in patch.planes.items()} == {
            band: plane.shape for band, plane in make_planes(0).items()
        }


def test_half_a_patch_is_no_pair(interface):
    error = refused(pickle.dumps(make_patch(interface, make_planes(0)).s2_patch))
    assert error.reason == MISSING_HALF
    assert "it is a BigEarthNet_S2_Patch" in error.message
    assert refused(pickle.dumps({"s1_patch": 1})).reason == CORRUPT


@pytest.mark.parametrize("band", ["VH", "B8A"])
def test_a_band_that_is_missing_is_named(interface, band):
    planes = make_planes(0)
    del planes[band]
    error = refused(pickle.dumps(make_patch(interface, planes)))
    assert (error.reason, f"it has no {band}" in error.message) == (MISSING_BAND, True)


def test_a_band_in_the_place_of_another_is_refused(interface):
    patch = make_patch(interface, make_planes(0))
    patch.s2_patch.band02.name = "B03"
    error = refused(pickle.dumps(patch))
    assert (error.reason, "B02 calls itself 'B03'" in error.message) == (BANDS, True)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (np.zeros((3, 20, 20), np.uint16), WRONG_SIZE),
        (np.zeros((20, 0), np.uint16), WRONG_SIZE),
        (np.array([[object()]]), CORRUPT),
        (np.zeros((20, 20), "U3"), CORRUPT),
        (np.zeros((20, 20), [("a", "u2")]), CORRUPT),
        ([[1, 2]], MISSING_BAND),
    ],
)
def test_what_is_no_image_is_refused(interface, data, reason):
    patch = make_patch(interface, make_planes(0))
    patch.s2_patch.band01.data = data
    assert refused(pickle.dumps(patch)).reason == reason


def test_a_band_of_another_size_is_refused(tmp_path, interface):
    planes = make_planes(0) | {"B01": np.ones((60, 60), np.uint16)}
    write_lmdb(tmp_path / "lmdb", {KEYS[0]: pickle.dumps(make_patch(interface, planes))})
    found = source(tmp_path)
    with pytest.raises(PairError, match="60x60 pixels where 20x20 belong") as caught:
        found.read(found.list().pairs[0])
    assert caught.value.reason == WRONG_SIZE


@pytest.mark.parametrize(
    ("labels", "new_labels", "expected"),
    [
        (("Bare rock",), (), ()),
        (("Bare rock", "Pastures"), None, ("Pastures",)),
        (None, ("Marine waters",), ("Marine waters",)),
        (None, None, ()),
        (("Pastures",), ("Marine waters",), "its labels are Pastures by the 43 classes, but Marine waters by the 19"),
        (("Tundra",), None, "the label 'Tundra' is in no nomenclature"),
    ],
)
def test_labels_are_mapped_to_19_and_may_not_contradict(tmp_path, interface, labels, new_labels, expected):
    patch = make_patch(interface, make_planes(0), labels, new_labels)
    write_lmdb(tmp_path / "lmdb", {KEYS[0]: pickle.dumps(patch)})
    found = source(tmp_path)
    (pair,) = found.list().pairs
    if isinstance(expected, str):
        with pytest.raises(PairError, match=expected) as caught:
            found.read(pair)
        assert caught.value.reason == METADATA
    else:
        sample = found.read(pair)
        assert sample.labels == expected
        assert sample.attributes.get("labels_43") == (None if labels is None else list(labels))


def test_labels_that_are_no_words_are_refused(interface):
    patch = make_patch(interface, make_planes(0))
    patch.labels = "Pastures"
    assert refused(pickle.dumps(patch)).reason == METADATA


def test_a_key_that_is_no_patch_is_refused(tmp_path, interface):
    value = pickle.dumps(make_patch(interface, make_planes(0)))
    write_lmdb(tmp_path / "lmdb", {KEYS[0]: value, "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_26_57": value})
    listing = source(tmp_path).list()
    assert [pair.key for pair in listing.pairs] == KEYS[:1]
    assert [refusal.reason for refusal in listing.refused] == [METADATA]


def test_where_no_lmdb_can_be_read_it_is_said(tmp_path, interface):
    with pytest.raises(ConfigError, match=r"no folder with data\.mdb"):
        source(tmp_path).list()
    for name in ("a", "b"):
        write_lmdb(tmp_path / name, {KEYS[0]: b""})
    with pytest.raises(ConfigError, match=r"2 LMDBs \(a, b\)"):
        source(tmp_path).list()
    with pytest.raises(ConfigError, match="L2A only, not as L1C"):
        source(tmp_path, s2_level="L1C")
    store = source("memory://nowhere-configilm")
    store.tree.store.fs.makedirs("/nowhere-configilm", exist_ok=True)
    with pytest.raises(ConfigError, match="from a disk only; copy it first"):
        store.list()


needs_wheel = pytest.mark.skipif(not REAL.exists(), reason=f"needs {REAL.relative_to(ROOT)}: make setup fetches it")


@needs_wheel
def test_the_78_real_patches_are_as_pickle_itself_reads_them(interface):
    found = source(REAL)
    listing = found.list()
    assert (len(listing.pairs), listing.refused) == (78, [])
    splits = [pair.split for pair in listing.pairs]
    assert [splits.count(split) for split in ("train", "val", "test", None)] == [25, 25, 25, 3]
    for pair in listing.pairs:
        value = found._value(pair.key, "")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # the pickles name numpy.core
            patch = pickle.loads(value)  # of a wheel whose SHA-256 is known
        planes = {"VV": patch.s1_patch.bandVV.data, "VH": patch.s1_patch.bandVH.data}
        planes |= {band: getattr(patch.s2_patch, f"band{band[1:]}").data for band in BANDS_12}
        sample = found.read(pair)
        assert_planes(sample, planes)
        assert set(sample.labels) == set(patch.new_labels or ())
        assert sample.attributes["labels_43"] == patch.labels


@needs_wheel
@pytest.mark.skipif(not TREE.exists() or not PARTNERS.exists(), reason="needs ../shared/data and ../shared/index")
def test_the_78_real_patches_are_those_of_the_tree_in_pixels_place_and_labels(tmp_path):
    for path in REAL.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / PARTNERS.name).symlink_to(PARTNERS)
    found, tree = source(tmp_path), open_source("bigearthnet-v1", str(TREE))
    in_tree = {pair.key: pair for pair in tree.list().pairs}
    pairs = [pair for pair in found.list().pairs if pair.key in in_tree]
    assert len(pairs) >= 50
    for pair in pairs:
        other = in_tree[pair.key]
        assert (pair.s1, pair.s1_date, pair.lon, pair.lat) == (other.s1, other.s1_date, other.lon, other.lat)
        ours, theirs = found.read(pair), tree.read(other)
        assert_planes(ours, stored(theirs))
        assert (ours.crs, ours.labels, ours.dates) == (theirs.crs, theirs.labels, theirs.dates)
        for name, array in ours.arrays.items():
            assert array.transform == theirs.arrays[name].transform
