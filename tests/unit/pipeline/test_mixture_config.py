import subprocess
import sys

import pytest
import yaml

from pipeline.config import dump_settings, load_settings
from pipeline.errors import ConfigError
from pipeline.stream.mixture_config import MixtureMember
from sharding.foreign_store import BESIDE

RUN = {"train": {"steps": 10}, "run": {"dir": "run"}}
TWO = [{"url": "s3://bucket/ben", "weight": 3}, {"url": "sets/ssl", "split": "val", "weight": 1, "name": "other"}]

MEMBERS = [{"url": "x/ben"}, {"url": "x/ssl"}]


@pytest.fixture
def load(tmp_path):
    def load(data, *overrides):
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(RUN | {"data": data}))
        return load_settings(path, list(overrides))

    return load


def test_a_mixture_is_read_from_the_settings(load):
    data = load({"mixture": TWO}).data
    assert data.mixture == (
        MixtureMember(url="s3://bucket/ben", weight=3),
        MixtureMember(url="sets/ssl", split="val", weight=1, name="other"),
    )


def test_evaluations_use_the_first_data_set_unless_another_is_named(load):
    assert load({"mixture": TWO}).data.url == "s3://bucket/ben"
    swapped = load({"mixture": TWO[::-1]}).data
    assert (swapped.url, swapped.split) == ("sets/ssl", "val")
    named = load({"mixture": TWO[::-1], "url": "sets/test"}).data
    assert (named.url, named.split) == ("sets/test", "train")


def test_a_mixture_can_be_given_on_the_command_line(load):
    data = load({"url": "a"}, "data.mixture=[{url: x/ben}, {url: x/ssl}]", "data.temperature=.inf").data
    assert [member.title for member in data.mixture] == ["ben", "ssl"]
    assert data.temperature == float("inf") and data.url == "a"


def test_settings_written_down_are_read_back_as_they_were(load, tmp_path):
    settings = load({"mixture": [{"url": "x/ben"}, {"url": "x/ssl"}], "temperature": float("inf")})
    (tmp_path / "again.yaml").write_text(dump_settings(settings))
    assert load_settings(tmp_path / "again.yaml", []) == settings


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (
            {"mixture": [{"url": "a", "wieght": 1}]},
            r"unknown key 'data.mixture.0.wieght'; did you mean 'data.mixture.0.weight'",
        ),
        ({"mixture": ["a"], "url": "a"}, "'data.mixture.0' must be a group of keys, not 'a'"),
        ({"mixture": [{"weight": 1}], "url": "a"}, r"lacks the key 'data.mixture.0.url'"),
        ({"mixture": []}, "lacks the key 'data.url'"),
        ({"mixture": [{"url": "a", "weight": "much"}]}, r"'data.mixture.0.weight' = 'much'"),
        ({"mixture": [{"url": "a", "weight": -1}]}, "the weight of a is -1"),
        ({"mixture": [{"url": "a", "weight": 1}, {"url": "b"}]}, "data.mixture: of the mixture, b have no weight"),
        ({"mixture": [{"url": "x/a"}, {"url": "y/a"}]}, "data.mixture: two data sets .* 'a'"),
        ({"mixture": TWO, "temperature": 2}, "data.mixture: a temperature of 2.0 .* have weights"),
        ({"url": "a", "temperature": 2}, "a temperature of 2.0 .* no data set to mix"),
        ({"mixture": MEMBERS, "temperature": 0}, "data.temperature = 0.0; it must be 0.1 or more"),
        ({"mixture": MEMBERS, "temperature": -2}, "data.temperature = -2.0; it must be 0.1 or more"),
        ({"mixture": MEMBERS, "temperature": float("nan")}, "data.temperature = nan; it must be 0.1 or more"),
        ({"mixture": TWO, "reader": "webdataset"}, "data.reader = webdataset; it must be exact to read a mixture"),
    ],
)
def test_a_mixture_that_cannot_work_is_refused_with_its_key(load, data, said):
    with pytest.raises(ConfigError, match=said):
        load(data)


def test_settings_of_a_mixture_need_neither_numpy_nor_torch():
    code = "import pipeline.config, sys; sys.exit(any(name in sys.modules for name in ('numpy', 'torch')))"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


@pytest.mark.parametrize(
    ("url", "title"),
    [
        ("s3://bucket/ben", "ben"),
        ("s3://bucket/ben@2", "ben@2"),
        (f"s3://bucket/terramesh/{BESIDE}", "terramesh"),
        (f"/data/terramesh/{BESIDE}/", "terramesh"),
        (f"/data/terramesh/{BESIDE}@clear", "terramesh@clear"),
        (f"s3://bucket/{BESIDE}", "bucket"),
        (f"/data/my-{BESIDE}", f"my-{BESIDE}"),
    ],
)
def test_a_data_set_is_called_by_its_folder_and_an_index_by_that_of_its_archive(url, title):
    assert MixtureMember(url=url).title == title


def test_two_indexes_in_their_archives_can_be_mixed(load):
    data = load({"mixture": [{"url": f"a/ben/{BESIDE}"}, {"url": f"a/ssl/{BESIDE}"}]}).data
    assert [member.title for member in data.mixture] == ["ben", "ssl"]
