"""S1 stored in fewer bytes: what is rounded, by how much at worst, and what is never lost."""

import io
import tarfile

import numpy as np
import pytest
import zarr

from sharding import verify
from sharding.dataset import read_manifest
from sharding.errors import DataError
from sharding.s1_storage import store_s1
from sharding.sources.base import PairError, Sample, StoredArray
from tests.unit.sharding.conftest import run, run_build
from tests.unit.sharding.members import open_members


def sample_of(data, units="dB", **extra):
    array = StoredArray(data=np.asarray(data), bands=("VV", "VH")[: len(data)], units=units, gsd_m=10, **extra)
    return Sample(key="k", source="x", arrays={"s1": array}, crs="", level="L2A", dates={})


def decibels(rng=None):
    rng = rng or np.random.default_rng(0)
    return rng.normal(-14, 5, (2, 32, 32)).astype(np.float32)


def test_float32_is_as_it_came():
    sample = sample_of(decibels())
    assert store_s1(sample, "float32") == (sample, 0.0)


def test_float16_is_rounded_and_its_worst_error_told():
    data = decibels()
    stored, error = store_s1(sample_of(data), "float16")
    array = stored.arrays["s1"]
    assert array.data.dtype == np.float16
    assert np.array_equal(array.data, data.astype(np.float16))
    assert error == np.abs(array.data.astype(np.float64) - data).max()
    assert 0 < error < 0.02


def test_int16_has_steps_of_5_thousandths():
    data = decibels()
    array, error = (lambda pair: (pair[0].arrays["s1"], pair[1]))(store_s1(sample_of(data), "int16"))
    assert (array.data.dtype, array.scale, array.nodata) == (np.int16, 0.005, None)
    assert error == np.abs(array.data.astype(np.float64) * 0.005 - data).max()
    assert error <= 0.0025 + 1e-9


@pytest.mark.parametrize("kind", ["float16", "int16"])
def test_pixels_without_data_stay_so(kind):
    data = decibels()
    data[0, :5] = -9999
    stored, error = store_s1(sample_of(data, nodata=-9999.0), kind)
    array = stored.arrays["s1"]
    assert np.array_equal(array.data == array.nodata, data == -9999)
    assert error < 0.02


def test_linear_power_in_float16_is_told_in_decibels():
    data = (10 ** (decibels() / 10)).astype(np.float32)
    stored, error = store_s1(sample_of(data, units="linear"), "float16")
    decoded = stored.arrays["s1"].data.astype(np.float64)
    assert np.isclose(error, np.abs(10 * np.log10(decoded / data.astype(np.float64))).max())
    with pytest.raises(DataError, match="int16 has steps of one size, which suit dB alone"):
        store_s1(sample_of(data, units="linear"), "int16")


@pytest.mark.parametrize(
    ("value", "units", "kind", "message"),
    [
        (1e6, "linear", "float16", "values that float16 cannot hold"),
        (1e-12, "linear", "float16", "values that float16 cannot hold"),
        (170.0, "dB", "int16", "values that int16 cannot hold"),
        (np.nan, "dB", "int16", "NaN or infinite"),
    ],
)
def test_values_that_do_not_fit_are_refused(value, units, kind, message):
    data = np.abs(decibels())
    data[1, 2, 3] = value
    with pytest.raises(PairError, match=message):
        store_s1(sample_of(data, units=units), kind)


@pytest.mark.parametrize("dtype", [np.float16, np.int16])
def test_what_takes_no_more_bytes_stays_as_it_came(dtype):
    sample = sample_of(decibels().astype(dtype), scale=0.01 if dtype == np.int16 else 1.0)
    assert store_s1(sample, "float16") == (sample, 0.0)


@pytest.mark.parametrize(("kind", "dtype"), [("float16", "float16"), ("int16", "int16")])
def test_the_manifest_tells_the_worst_error_of_all(v1, tmp_path, kind, dtype):
    out = tmp_path / "out"
    ended = run_build(*v1.arguments, "--s1", kind, "--out", out, "--json")
    assert ended.code == 0, ended.err
    assert run(verify.main, out).code == 0
    manifest = read_manifest(str(out))
    [spec] = [spec for spec in manifest.arrays if spec.name == "s1"]
    assert spec.dtype == dtype
    worst = 0.0
    groups = open_members(out, tmp_path)
    for patch in v1.patches:
        decoded = groups[patch.key].arrays["s1"].astype(np.float64) * spec.scale
        original = np.stack([patch.pixels["VV"], patch.pixels["VH"]]).astype(np.float64)
        worst = max(worst, float(np.abs(decoded - original).max()))
        assert np.array_equal(groups[patch.key].bands["B02"], patch.pixels["B02"])
    assert manifest.s1_error_db == float(f"{worst:.6g}")
    assert ended.figures["s1_error_db"] == manifest.s1_error_db


def test_a_smaller_type_says_its_scale_to_every_reader_of_zarr(v1, tmp_path):
    out = tmp_path / "out"
    assert run_build(*v1.arguments, "--s1", "int16", "--out", out).code == 0
    with tarfile.open(out / "shards" / "train-000000.tar") as tar:
        content = tar.extractfile(tar.next()).read()
    path = tmp_path / "one.zarr.zip"
    path.write_bytes(io.BytesIO(content).getvalue())
    with zarr.storage.ZipStore(path, mode="r") as store:
        attributes = zarr.open_group(store, mode="r")["s1"].attrs
        assert (attributes["scale"], attributes["units"]) == (0.005, "dB")
