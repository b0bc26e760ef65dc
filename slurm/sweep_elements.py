"""The runs of a sweep: which settings differ, what each is called, and the index of them in the sweep's folder."""

import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from pipeline.config import load_settings, load_typed
from pipeline.errors import ConfigError, DataError
from pipeline.metrics import write_whole

INDEX_NAME = "sweep.json"


@dataclass(frozen=True, kw_only=True)
class SweepFile:
    """A sweep as a YAML file, which `configs:` tells from the settings of a run."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    configs: tuple[str, ...]
    """Settings of runs, each a YAML file; a path counts from the sweep's file."""
    overrides: tuple[str, ...] = ()
    """key.sub=value for all of them."""
    set: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    """key.sub: [value, ...]; every combination is a run of each config."""
    runs: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """NAME: [key.sub=value, ...]; with it each of these is a run of each config and each combination."""


@dataclass(frozen=True, kw_only=True)
class Element:
    """One run of a sweep."""

    name: str
    """Of its folder in the sweep's."""
    config: str
    differs: dict[str, str]
    """What tells it from the others: keys of the settings, and `config`."""
    overrides: tuple[str, ...]
    """All that it changes in its config, without run.dir."""
    job: str = ""
    """The job or array element that it was submitted as last."""


def split_values(text: str) -> list[str]:
    """`a,b` or `[1,2],[3,4]` at the commas that stand in no brackets."""
    values, depth = [""], 0
    for letter in text:
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and not depth:
            values.append("")
        else:
            values[-1] += letter
    return values


def read_words(words: Sequence[str], sets: Sequence[str]) -> SweepFile:
    """The sweep that the command line describes: SWEEP.yaml or CONFIG.yaml..., key.sub=value..., and each `--set`.

    Raises:
        ConfigError: it cannot be understood.
    """
    files = [Path(word) for word in words if "=" not in word]
    overrides = tuple(word for word in words if "=" in word)
    if not files:
        raise ConfigError("give SWEEP.yaml, or the CONFIG.yaml of each run")
    for path in files:
        if not path.is_file():
            raise ConfigError(f"no file '{path}'; give a sweep or the settings of a run, such as configs/NAME.yaml")
    given: dict[str, tuple[Any, ...]] = {}
    for text in sets:
        key, equals, values = text.partition("=")
        if not equals or not values:
            raise ConfigError(f"--set {text} gives no values; write --set key.sub=a,b,c")
        given[key] = tuple(split_values(values))
    if len(files) == 1 and re.search(r"^configs:", files[0].read_text(), re.MULTILINE):
        sweep: SweepFile = load_typed(files[0], SweepFile)
        return SweepFile(
            configs=tuple(str(files[0].parent / config) for config in sweep.configs),
            overrides=(*sweep.overrides, *overrides),
            set=sweep.set | given,
            runs=sweep.runs,
        )
    return SweepFile(configs=tuple(map(str, files)), overrides=overrides, set=given)


def elements(sweep: SweepFile) -> list[Element]:
    """The runs, each with a name of its own.

    Raises:
        ConfigError: two would have one name, or a run's settings cannot work.
    """
    runs = sweep.runs.items() or [("", ())]
    combinations = list(itertools.product(*([(key, _text(v)) for v in values] for key, values in sweep.set.items())))
    found = []
    for config, (name, own), chosen in itertools.product(sweep.configs, runs, combinations):
        parts = [Path(config).stem] if not name or len(sweep.configs) > 1 else []
        parts += [name] if name else []
        parts += [f"{key.split('.')[-1]}={value}" for key, value in chosen]
        differs = {"config": Path(config).stem} if len(sweep.configs) > 1 else {}
        differs |= dict(override.partition("=")[::2] for override in own) | dict(chosen)
        overrides = (*sweep.overrides, *own, *(f"{key}={value}" for key, value in chosen))
        called = re.sub(r"[^A-Za-z0-9=._+-]+", "-", "-".join(parts)).strip("-.")
        found.append(Element(name=called, config=str(Path(config).absolute()), differs=differs, overrides=overrides))
    names = [element.name for element in found]
    for element in found:
        if names.count(element.name) > 1:
            raise ConfigError(f"two runs of the sweep would be called '{element.name}'; name them under runs:")
        if any(override.startswith("run.dir=") for override in element.overrides):
            raise ConfigError("run.dir is each run's own in a sweep; give --runs FOLDER")
    return found


def check(element: Element, runs: Path) -> None:
    """Raises ConfigError, with the element's name, when its settings cannot work."""
    try:
        load_settings(element.config, [*element.overrides, f"run.dir={runs / element.name}"])
    except ConfigError as error:
        raise ConfigError(f"{element.name}: {error}") from error


def read_index(runs: Path) -> list[Element]:
    """The elements of the sweep in a folder; empty where none began.

    Raises:
        DataError: the index is damaged.
    """
    path = runs / INDEX_NAME
    if not path.exists():
        return []
    try:
        said = json.loads(path.read_text())["elements"]
        return [Element(**one | {"overrides": tuple(one["overrides"])}) for one in said]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged: {error}; remove it and start the sweep again, its runs go on") from error


def write_index(runs: Path, changed: Sequence[Element]) -> None:
    """Put elements into the index; those of another name stay."""
    kept = {element.name: element for element in read_index(runs)} | {element.name: element for element in changed}
    write_whole(runs / INDEX_NAME, json.dumps({"elements": [asdict(one) for one in kept.values()]}, indent=1) + "\n")


def _text(value: Any) -> str:
    """A value as an override has it; strings as they are, the rest as JSON, which YAML reads."""
    return value if isinstance(value, str) else json.dumps(value)
