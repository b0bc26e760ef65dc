"""What a browser makes of the report: narrow and wide, light and dark."""

import html
import json
import re
import shutil
import subprocess

import pytest

from pipeline.report import write_comparison, write_report
from tests.unit.pipeline.report_runs import (
    add_evaluations,
    add_probes,
    add_reconstructions,
    add_times,
    make_events,
    make_run,
)

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.timeout(180),
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium"),
]
PAGES = ("run", "comparison")
WIDTHS = (380, 1600)

# Headless windows are at least 500 pixels wide, frames as narrow as they are told to be.
FRAME = """<!doctype html><meta name="color-scheme" content="light dark"><title>-</title>
<iframe src="{uri}" style="border:0; width:{width}px; height:2000px"></iframe>
<script>
onload = () => {{
    const page = document.querySelector("iframe").contentDocument, view = page.defaultView;
    page.querySelectorAll("details").forEach(details => details.open = true);
    document.title = JSON.stringify(({script})(page, view));
}};
</script>"""

SCROLLING = """page => [page.documentElement.scrollWidth, page.documentElement.clientWidth]"""

# The lowest contrast of any text with the page behind it (WCAG 2.2), and whether the page is dark.
CONTRAST = """(page, view) => {
    const parse = text => text.match(/[\\d.]+/g).slice(0, 3).map(Number);
    const luminance = ([r, g, b]) => [r, g, b].map(v => v / 255)
        .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const behind = luminance(parse(view.getComputedStyle(page.body).backgroundColor));
    let lowest = 21, texts = 0;
    for (const element of page.querySelectorAll("p, td, th, dd, dt, h2, caption, figcaption, summary, svg text")) {
        if (!element.textContent.trim() || element.closest(".cards, .missing")) continue;
        const style = view.getComputedStyle(element);
        const own = luminance(parse(element.closest("svg") ? style.fill : style.color));
        lowest = Math.min(lowest, (Math.max(own, behind) + 0.05) / (Math.min(own, behind) + 0.05));
        texts += 1;
    }
    return [lowest, texts, behind < 0.2];
}"""

# Of each bar: its width, that of all its segments, and whether each segment has a colour of its own.
BARS = """(page, view) => [...page.querySelectorAll(".stack")].map(bar => {
    const parts = [...bar.children], styles = parts.map(part => view.getComputedStyle(part));
    const paints = new Set(styles.map(style => style.backgroundColor + style.backgroundImage));
    const width = parts.reduce((sum, part) => sum + part.getBoundingClientRect().width, 0);
    const isBare = styles.some(s => s.backgroundColor == "rgba(0, 0, 0, 0)" && s.backgroundImage == "none");
    return [bar.getBoundingClientRect().width, width, paints.size == parts.length, isBare];
})"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A run with all that a report shows, and a comparison of two of them."""
    folder = tmp_path_factory.mktemp("pages")
    runs = []
    for name in ("first", "a-second-run-with-a-name-that-is-rather-long"):
        run = make_run(folder / name)
        add_evaluations(run)
        add_probes(run)
        add_times(run)
        add_reconstructions(run, range(10, 121, 10))
        long = "/a/path/without/a/single/space/" + "x" * 200
        make_events(run / "events-demo.jsonl", ("kill", 66), ("save_failed", 90), first_s=15)
        told = (run / "events-demo.jsonl").read_text().replace('"step": 90', f'"step": 90, "reason": "{long}"')
        (run / "events-demo.jsonl").write_text(told)
        runs.append(run)
    config = (runs[1] / "config.yaml").read_text()
    (runs[1] / "config.yaml").write_text(config.replace("decoder_fusion: xad", "decoder_fusion: none"))
    return {
        "run": write_report(runs[0], folder / "run.html"),
        "comparison": write_comparison(runs, folder / "comparison.html"),
    }


def measure(page, width, script, is_dark=False):
    frame = page.with_name("frame.html")
    frame.write_text(FRAME.format(uri=page.as_uri(), width=width, script=script))
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command += ["--disable-component-update", "--disable-sync", "--no-first-run", "--virtual-time-budget=8000"]
    command += [f"--user-data-dir={page.parent / 'profile'}", "--allow-file-access-from-files"]
    command += ["--window-size=1700,2000", *(["--force-dark-mode"] if is_dark else [])]
    shown = subprocess.run([*command, "--dump-dom", frame.as_uri()], capture_output=True, text=True, timeout=120)
    return json.loads(html.unescape(re.search("<title>(.*?)</title>", shown.stdout)[1]))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", PAGES)
def test_the_page_does_not_scroll_sideways(pages, name, width):
    content, window = measure(pages[name], width, SCROLLING)
    assert window > width - 30 and content <= window


def test_a_page_that_scrolls_sideways_is_noticed(pages, tmp_path):
    wide = tmp_path / "wide.html"
    wide.write_text(pages["run"].read_text().replace("overflow-x: auto", "overflow-x: visible"))
    content, window = measure(wide, 380, SCROLLING)
    assert content > window


@pytest.mark.parametrize("is_dark", [False, True])
@pytest.mark.parametrize("name", PAGES)
def test_text_can_be_read_in_light_and_dark(pages, name, is_dark):
    lowest, texts, dark = measure(pages[name], 1600, CONTRAST, is_dark)
    assert dark is is_dark
    assert texts > 100
    assert lowest >= 4.0


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(("name", "bars"), [("run", 3), ("comparison", 2)])
def test_the_bars_of_the_wall_time_are_full_and_their_parts_differ(pages, name, bars, width):
    found = measure(pages[name], width, BARS)
    assert len(found) == bars
    for outer, inner, are_different, is_bare in found:
        assert outer > 100 and inner == pytest.approx(outer, abs=1)
        assert are_different and not is_bare
