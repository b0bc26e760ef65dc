"""What the metadata of a sample says, in words."""

import datetime
from typing import Any, Final

_DAY_S: Final = 86_400


def days_apart(dates: dict[str, str]) -> float | None:
    """Days between S1 and S2, never negative; None where a date is unknown or no ISO 8601."""
    try:
        s1, s2 = (datetime.datetime.fromisoformat(dates[half]) for half in ("s1", "s2"))
    except (KeyError, ValueError):
        return None
    if "T" not in dates["s1"] or "T" not in dates["s2"]:
        return float(abs((s1.date() - s2.date()).days))  # one of them is known to the day only
    moments = [moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC) for moment in (s1, s2)]
    return abs((moments[0] - moments[1]).total_seconds()) / _DAY_S


def dates_text(line: dict[str, Any]) -> str:
    """When both halves were taken, and how long after each other."""
    dates = line["dates"]
    told = [f"{half.upper()} {dates[half].replace('T', ' ')}" for half in ("s1", "s2") if dates.get(half)]
    days = days_apart(dates)
    apart = [] if days is None else [f"{days:.1f} days apart" if days % 1 else f"{days:.0f} days apart"]
    return ", ".join([*told, *apart])


def place_text(line: dict[str, Any]) -> str:
    """The patch's centre in degrees; empty when unknown."""
    lon, lat = line["lon"], line["lat"]
    if lon is None or lat is None:
        return ""
    return f"{abs(lat):.4f}° {'N' if lat >= 0 else 'S'}, {abs(lon):.4f}° {'E' if lon >= 0 else 'W'}"
