"""Templates to pages, and numbers to words."""

from datetime import timedelta
from pathlib import Path
from typing import Any

from pipeline.metrics import write_whole


def render(template: str, path: Path, **context: Any) -> Path:
    """Write what `template` makes of `context` to `path`; returns the path."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": _count,
        "figures": _figures,
        "percent": _percent,
        "duration": _duration,
        "bytes": _bytes,
    }
    html = environment.get_template(template).render(**context)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, html)
    return path


def _count(value: float) -> str:
    """A number for people: 1,234 or 12.3 M."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:,.0f}"


def _figures(value: float | None, digits: int = 3) -> str:
    """A number with so many decimals, a dash for none."""
    return "–" if value is None else f"{value:.{digits}f}"  # noqa: RUF001 - a dash in a table


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"  # noqa: RUF001 - a dash in a table


def _duration(seconds: float | None) -> str:
    """Seconds below a quarter of an hour, hours, minutes and seconds above."""
    if seconds is None:
        return "–"  # noqa: RUF001 - a dash in a table
    if seconds < 900:
        return f"{seconds:,.1f} s"
    whole = timedelta(seconds=round(seconds))
    hours, rest = divmod(whole.seconds, 3600)
    return f"{whole.days * 24 + hours:,} h {rest // 60:02d} min {rest % 60:02d} s"


def _bytes(value: float | None) -> str:
    """Bytes in GB or MB, with three figures."""
    if value is None:
        return "–"  # noqa: RUF001 - a dash in a table
    return f"{value / 1e9:,.3g} GB" if value >= 1e9 else f"{value / 1e6:,.3g} MB"
