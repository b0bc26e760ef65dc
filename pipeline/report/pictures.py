"""Reconstructions as pictures, in physical units with a stretch taken from the input."""

import json
import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pipeline.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

MAX_PICTURES: Final = 4
"""Samples shown."""
MAX_MOMENTS: Final = 6
"""Steps shown of reconstructions over time."""
_STRIP_PIXELS: Final = 128
"""Largest side of a picture of reconstructions over time: there are many of them."""


@dataclass(frozen=True, kw_only=True)
class _Stored:
    """A file of reconstructions, as `pipeline.reconstruction.store_pictures` writes it."""

    keys: list[str]
    panels: list[dict[str, Any]]
    arrays: dict[str, "npt.NDArray[Any]"]

    def images(self, panel: str, number: int) -> tuple["npt.NDArray[Any]", "npt.NDArray[Any]", "npt.NDArray[np.bool_]"]:
        """Input, reconstruction and hidden patches of a sample."""
        names = (f"{panel}.input", f"{panel}.reconstruction", f"{panel}.hidden")
        before, after, hidden = (self.arrays[name][number] for name in names)
        return before, after, hidden


def describe_pictures(path: Path) -> list[dict[str, Any]] | None:
    """Input, visible patches and reconstruction of the samples of one evaluation; None when there are none."""
    if not path.exists():
        return None
    stored = _read(path)
    samples = []
    for number, key in enumerate(stored.keys[:MAX_PICTURES]):
        rows = []
        for panel in stored.panels:
            before, after, hidden = stored.images(panel["name"], number)
            rows.append(_shown(panel, before, hidden, 0) | _filled(before, after, hidden, 0))
        samples.append({"key": key, "rows": rows})
    return samples


def describe_strips(run_dir: Path) -> dict[str, Any] | None:
    """The same samples' reconstructions at some steps, evenly chosen; None when the run stored none.

    Files that cannot be read are left out and named.
    """
    found = {}
    for path in (run_dir / "reconstructions").glob("step-*.npz"):
        if named := re.fullmatch(r"step-(\d+)\.npz", path.name):
            found[int(named[1])] = path
    moments: dict[int, _Stored] = {}
    problems = []
    for step in evenly(sorted(found), MAX_MOMENTS):
        try:
            moments[step] = _read(found[step])
        except DataError as error:
            problems.append(str(error))
    if not moments:
        return {"problems": problems, "samples": [], "steps": []} if problems else None
    last = moments[max(moments)]
    samples = []
    for number, key in enumerate(last.keys[:MAX_PICTURES]):
        rows = []
        for panel in last.panels:
            before, _, hidden = last.images(panel["name"], number)
            filled = [_moment(step, stored, key, panel["name"]) for step, stored in moments.items()]
            rows.append(_shown(panel, before, hidden, _STRIP_PIXELS) | {"moments": filled})
        samples.append({"key": key, "rows": rows})
    return {"problems": problems, "samples": samples, "steps": list(moments), "stored": len(found)}


def triptychs(path: Path) -> Iterator[tuple[str, "npt.NDArray[np.uint8]"]]:
    """Of each panel and sample `PANEL/KEY`, and side by side its input, visible patches and reconstruction.

    Pixels are (height, 3 x width, 3), the stretch is that of the input.
    """
    import numpy as np

    stored = _read(path)
    for panel in stored.panels:
        for number, key in enumerate(stored.keys):
            before, after, hidden = stored.images(panel["name"], number)
            low, high = _stretch(before)
            scale = before.shape[1] // hidden.shape[0], before.shape[2] // hidden.shape[1]
            visible = before * ~np.kron(hidden, np.ones(scale)).astype(bool) + low * np.kron(hidden, np.ones(scale))
            wide = np.concatenate([before, visible, after], axis=2)
            scaled = np.clip((wide - low) / max(high - low, 1e-12), 0, 1) * 255
            pixels = np.moveaxis(np.broadcast_to(scaled, (3, *scaled.shape[1:])), 0, -1)
            yield f"{panel['name']}/{key}", pixels.round().astype(np.uint8)


def evenly(values: Sequence[int], most: int) -> list[int]:
    """At most so many of the values, the first and the last among them."""
    if len(values) <= most:
        return list(values)
    return [values[round(number * (len(values) - 1) / (most - 1))] for number in range(most)]


def _moment(step: int, stored: _Stored, key: str, panel: str) -> dict[str, Any]:
    """A sample's reconstruction at a step; no picture when that step's file has other samples or modalities."""
    if key not in stored.keys or f"{panel}.input" not in stored.arrays:
        return {"step": step, "reconstruction": None, "rmse": None}
    before, after, hidden = stored.images(panel, stored.keys.index(key))
    return {"step": step} | _filled(before, after, hidden, _STRIP_PIXELS)


def _shown(
    panel: dict[str, Any], before: "npt.NDArray[Any]", hidden: "npt.NDArray[np.bool_]", most: int
) -> dict[str, Any]:
    import numpy as np

    from pipeline.report.figures.pixels import picture

    low, high = _stretch(before)
    return panel | {
        "low": low,
        "high": high,
        "spread": float(np.mean(before.std(axis=(1, 2)))),
        "input": picture(before, None, low, high, most),
        "masked": picture(before, hidden, low, high, most),
    }


def _filled(
    before: "npt.NDArray[Any]", after: "npt.NDArray[Any]", hidden: "npt.NDArray[np.bool_]", most: int
) -> dict[str, Any]:
    import numpy as np

    from pipeline.report.figures.pixels import picture

    scale = before.shape[1] // hidden.shape[0], before.shape[2] // hidden.shape[1]
    error = (after - before)[:, np.kron(hidden, np.ones(scale)).astype(bool)]
    return {
        "rmse": float(np.sqrt(np.mean(np.square(error)))) if error.size else None,
        "reconstruction": picture(after, None, *_stretch(before), most),
    }


def _stretch(image: "npt.NDArray[Any]") -> tuple[float, float]:
    import numpy as np

    low, high = (float(value) for value in np.percentile(image, (2, 98)))
    return low, high


def _read(path: Path) -> _Stored:
    import numpy as np

    try:
        with path.open("rb") as file, np.load(file) as stored:  # np.load alone leaves a broken file open
            arrays = {name: stored[name] for name in stored.files}
        return _Stored(keys=arrays["keys"].tolist(), panels=json.loads(str(arrays["panels"])), arrays=arrays)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} holds no reconstructions ({error}); delete it and make it again") from error
