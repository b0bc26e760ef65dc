"""Bands named in files and descriptions."""

import functools
import re
from typing import Final

from sharding.bands import ALL_BANDS

_BAND: Final = re.compile(r"(?:.*[^A-Za-z0-9])?(VV|VH|B(?:0?[1-9]|1[0-2]|8A))$", re.IGNORECASE)


@functools.lru_cache(maxsize=4096)
def band_name(text: str | None) -> str | None:
    """The band that a file's stem or a description names (`B2`, `b02`, `…_B02`, `vv`); None when it names none."""
    found = _BAND.match(text or "")
    if not found:
        return None
    name = found[1].upper()
    name = f"B0{name[1]}" if re.fullmatch(r"B\d", name) else name
    return name if name in ALL_BANDS else None
