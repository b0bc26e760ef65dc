"""The gallery: one page, everything in it, and what it shows in a real browser."""

import html
import json
import re
import shutil
import subprocess

import pytest

from sharding import gallery, inspect, subset
from sharding.histogram import Histogram
from sharding.moments import CLASS, Moments
from tests.unit.sharding.conftest import run, run_build
from tests.unit.sharding.terramesh_archive import make_tile, write_archive

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)

ODD = "<!--<script>"


@pytest.fixture(scope="module")
def page(dataset, tmp_path_factory):
    path = tmp_path_factory.mktemp("gallery") / "gallery.html"
    ended = run(inspect.main, "gallery", dataset, "--out", path)
    assert (ended.code, ended.out) == (0, f"13 of 13 samples: {path}\n"), ended.err
    return path


def cards_of(path):
    return json.loads(re.search(r'id="data">(.*?)</script>', path.read_text(), re.DOTALL)[1])


def test_every_sample_is_a_card_with_two_pictures(page, v1, reben):
    cards = cards_of(page)
    assert {card["key"] for card in cards} == {patch.key for patch in (*v1.patches, *reben.patches)}
    items = re.findall(r'<li data-i="(\d+)">(.*?)</li>', page.read_text(), re.DOTALL)
    assert [int(number) for number, _ in items] == list(range(13))
    for (_, item), card in zip(items, cards, strict=True):
        assert card["key"] in item
        assert re.findall(r'<img src="(data:image/webp;base64,).*?" alt="(S\d)', item) == [
            ("data:image/webp;base64,", "S2"),
            ("data:image/webp;base64,", "S1"),
        ]


def test_no_picture_is_embedded_twice(page):
    pictures = re.findall(r"data:image/webp;base64,[^\"]+", page.read_text())
    assert len(pictures) == len(set(pictures)) == 26


def test_nothing_is_fetched_from_elsewhere(page):
    text = page.read_text()
    assert not re.findall(r'(?:src|href|url)\s*[=(]\s*["\']?(?:https?:)?//', text)
    assert "@import" not in text and "<link" not in text


def test_the_map_and_a_histogram_a_band_are_there(page):
    text = page.read_text()
    assert text.count("<circle ") == 13
    assert "13 centres, WGS 84." in text
    for band in ("VV", "VH", "B02", "B8A", "B09"):
        assert f'aria-label="Histogram of {band}"' in text


def test_the_choice_is_the_same_each_time_and_of_every_split(dataset, tmp_path):
    for name in ("a", "b"):
        assert run(inspect.main, "gallery", dataset, "--out", tmp_path / name, "--max-samples", 6).code == 0
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    cards = cards_of(tmp_path / "a")
    assert len(cards) == 6
    assert [card["split"] for card in cards] == ["train", "train", "val", "val", "test", "test"]


def test_one_split_alone(dataset, tmp_path):
    ended = run(inspect.main, "gallery", dataset, "--out", tmp_path / "val", "--split", "val")
    assert ended.out == f"2 of 2 samples: {tmp_path / 'val'}\n"
    ended = run(inspect.main, "gallery", dataset, "--out", tmp_path / "no", "--split", "dev")
    assert ended.code == 1
    assert "the data set has no split 'dev'; it has train, val, test" in ended.err
    assert not (tmp_path / "no").exists()


def test_a_subset_has_a_gallery_of_its_own(dataset, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(dataset, copy)
    assert run(subset.main, copy, "--name", "austria", "--where", "country=Austria").code == 0
    ended = run(inspect.main, "gallery", f"{copy}@austria", "--out", tmp_path / "page.html")
    assert ended.out.startswith("6 of 6 samples")
    assert "subset austria" in (tmp_path / "page.html").read_text()


def test_names_from_the_data_are_no_markup(dataset, tmp_path):
    """A URL with a tag in it, as a label or an attribute could have one."""
    odd = tmp_path / "<script>alert(1)<"
    shutil.copytree(dataset, odd)
    assert run(inspect.main, "gallery", odd, "--out", tmp_path / "page.html").code == 0
    text = (tmp_path / "page.html").read_text()
    assert "<script>alert" not in text
    assert html.escape("<script>alert(1)<") in text


@pytest.fixture(scope="module")
def page_without_labels(tmp_path_factory):
    """Of an archive that has classes of land cover beside its pixels, and neither labels nor countries."""
    root = tmp_path_factory.mktemp("archive")
    write_archive(root, [make_tile("10D_20L_1_2", 1), make_tile("10D_20L_1_3", 2)])
    out, path = root / "set", root / "gallery.html"
    assert run_build("--source", "terramesh", "--root", root, "--out", out).code == 0
    assert run(inspect.main, "gallery", out, "--out", path).code == 0
    return path


@pytest.fixture(scope="module")
def odd_page(dataset, tmp_path_factory):
    """Of a data set whose countries would begin a comment and a script within a script."""
    folder = tmp_path_factory.mktemp("odd")
    shutil.copytree(dataset, folder / "set")
    for path in (folder / "set" / "metadata").iterdir():
        path.write_text(path.read_text().replace("Austria", ODD))
    assert run(inspect.main, "gallery", folder / "set", "--out", folder / "page.html").code == 0
    return folder / "page.html"


def test_metadata_is_no_markup(odd_page):
    assert ODD not in odd_page.read_text()
    assert "<!--" not in odd_page.read_text()
    assert sum(card["country"] == ODD for card in cards_of(odd_page)) == 6


def test_metadata_that_lists_other_samples_is_refused(dataset, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(dataset, copy)
    path = copy / "metadata" / "train-000000.jsonl"
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    ended = run(inspect.main, "gallery", copy, "--out", tmp_path / "page.html")
    assert ended.code == 1
    assert "train-000000.jsonl and its index list other samples" in ended.err


def test_each_class_is_a_bar_and_none_is_left_out():
    histogram = Histogram.of_pairs([(0, 1), (111, 999_000), (211, 500_000), (311, 3), (312, 2), (523, 7)])
    moments = Moments(count=1_499_013, bin_width=1.0, histogram=histogram, bins_of=CLASS, minimum=0, maximum=523)
    assert gallery._bars(moments) == ([1, 100, 50, 1, 1, 1], 0, 523)
    assert gallery._class_shares(moments) == "111: 66.6 %, 211: 33.4 %, 523: 0.000467 %, 311: 0.0002 %, 2 more classes"


def dump(path, fragment=""):
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command += ["--disable-component-update", "--disable-sync", "--no-first-run", "--virtual-time-budget=4000"]
    command += [f"--user-data-dir={path.parent / 'profile'}", "--dump-dom", f"{path.as_uri()}{fragment}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def visible(dom):
    """Samples shown, as the page counts them, and the list items that are not hidden."""
    told = re.search(r'id="count"[^>]*>(\d+) of 13 shown', dom)
    items = re.findall(r"<li data-i=\"\d+\"( hidden=\"\")?>", dom)
    return int(told[1]), sum(not hidden for hidden in items)


@pytest.mark.browser
@pytest.mark.timeout(180)
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.parametrize(
    ("fragment", "chosen"),
    [
        ("", lambda patch, source: True),
        ("#split=train", lambda patch, source: patch.split == "train"),
        ("#label=Pastures", lambda patch, source: "Pastures" in patch.labels),
        ("#split=train&label=Inland+waters", lambda p, source: p.split == "train" and "Inland waters" in p.labels),
        ("#country=Austria", lambda patch, source: source == "reben"),
        ("#country=Austria&split=test", lambda patch, source: source == "reben" and patch.split == "test"),
    ],
)
def test_filters_in_the_address_leave_what_they_should(page, v1, reben, fragment, chosen):
    expected = sum(chosen(patch, archive.source) for archive in (v1, reben) for patch in archive.patches)
    assert visible(dump(page, fragment)) == (expected, expected)


@pytest.mark.browser
@pytest.mark.timeout(180)
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_odd_names_can_be_chosen(odd_page):
    assert visible(dump(odd_page, "#country=%3C!--%3Cscript%3E")) == (6, 6)


@pytest.mark.browser
@pytest.mark.timeout(180)
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_each_choice_tells_what_it_would_leave(page, v1, reben):
    dom = dump(page, "#split=val")
    patches = [patch for patch in (*v1.patches, *reben.patches) if patch.split == "val"]
    for label in {label for patch in patches for label in patch.labels}:
        assert f">{label} ({sum(label in patch.labels for patch in patches)})</option>" in dom


def measure(page, script):
    """What a function of the page, once it is shown, returns."""
    path = page.with_name("measured.html")
    probe = f"<script>document.title = JSON.stringify(({script})());</script></body>"
    path.write_text(page.read_text().replace("</body>", probe))
    return json.loads(html.unescape(re.search("<title>(.*?)</title>", dump(path))[1]))


@pytest.mark.browser
@pytest.mark.timeout(180)
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_filters_without_a_choice_are_not_shown(page_without_labels):
    script = "() => [...document.querySelectorAll('.filters label')].filter(l => l.offsetHeight).map(l => l.innerText)"
    shown = measure(page_without_labels, script)
    assert [text.split()[0] for text in shown] == ["Split"]


@pytest.mark.browser
@pytest.mark.timeout(180)
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_histograms_are_equally_high_however_few_their_bars(page_without_labels):
    script = (
        "() => [...document.querySelectorAll('.band svg')].map(svg => Math.round(svg.getBoundingClientRect().height))"
    )
    heights = measure(page_without_labels, script)
    assert len(heights) > 10
    assert len(set(heights)) == 1 and heights[0] < 80


def test_a_histogram_of_classes_ends_at_its_last_class(page_without_labels):
    ends = r'Histogram of LULC".*?<div class="ends"><span>(\d+)</span><span>(\d+)</span>'
    found = re.search(ends, page_without_labels.read_text(), re.DOTALL)
    assert found.groups() == ("0", "9")


@pytest.mark.browser
@pytest.mark.timeout(180)
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_a_card_opens_its_details(page):
    script = """() => {
        document.querySelector(".card").click();
        const dialog = document.querySelector("dialog");
        return [dialog.open, dialog.querySelector("h3").textContent, dialog.querySelectorAll("img").length];
    }"""
    assert measure(page, script) == [True, cards_of(page)[0]["key"], 2]
