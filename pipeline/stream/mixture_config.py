"""What to mix: the data sets and their weights. Settings files use it too, so it imports nothing that is slow."""

import math
import re
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from sharding.errors import ConfigError

_BESIDE: Final = re.compile(r"/fusmae-index(?=@[^/]*$|$)")
"""The folder of an index in its archive (`sharding.foreign_store.BESIDE`, which is slow to import)."""


@dataclass(frozen=True, kw_only=True)
class MixtureMember:
    """One data set of a mixture."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    url: str
    """Data set made by sharding.build or indexed by sharding.index: a folder, s3://..., or another store of fsspec."""
    split: str = "train"
    """Split to read."""
    weight: float | None = None
    """Its share of the samples, relative to the others' weights; all have one, or none."""
    name: str = ""
    """What it is called in states, keys and metrics; empty: the last part of the URL, of an index in
    `fusmae-index` that of its archive."""

    def __post_init__(self) -> None:
        if self.weight is not None and not 0 < self.weight < math.inf:
            raise ConfigError(
                f"the weight of {self.url} is {self.weight}; it must be above 0, leave the data set out instead"
            )
        if "/" in self.title or not self.title:
            raise ConfigError(f"data set '{self.url}' of a mixture cannot be called '{self.title}'; set name")

    @property
    def title(self) -> str:
        """Its name."""
        return self.name or _BESIDE.sub("", self.url.rstrip("/")).rpartition("/")[2]


def check_mixture(members: tuple[MixtureMember, ...], temperature: float, where: str = "") -> None:
    """ConfigError for what cannot work: a name given twice, weights for some, a temperature that changes nothing.

    `where` is what messages begin with.
    """
    titles = [member.title for member in members]
    twice = next((title for title in titles if titles.count(title) > 1), None)
    if twice is not None:
        raise ConfigError(f"{where}two data sets of the mixture are called '{twice}'; set the name of one of them")
    without = [member.title for member in members if member.weight is None]
    if 0 < len(without) < len(titles):
        raise ConfigError(
            f"{where}of the mixture, {', '.join(without)} have no weight and the others have; give all one, or none"
        )
    if temperature != 1.0 and not without:
        reason = "the data sets of the mixture have weights" if members else "there is no data set to mix"
        raise ConfigError(f"{where}a temperature of {temperature} would change nothing: {reason}; leave it out")


def with_first_of_mixture(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as they were read, in which the first data set of `data.mixture` is `data.url` too, unless that is set.

    It stands for the mixture where a single data set is asked for. What is malformed is left as it is.
    """
    data = settings.get("data")
    mixture = data.get("mixture") if isinstance(data, dict) else None
    first = mixture[0] if isinstance(mixture, list) and mixture else None
    if not isinstance(data, dict) or not isinstance(first, dict) or data.get("url") or "url" not in first:
        return settings
    own = {key: first[key] for key in ("url", "split") if key in first}
    return settings | {"data": own | {key: value for key, value in data.items() if value is not None}}
