"""Filling a network from a file: every key has a place or a reason, every shape fits, or nothing is loaded."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError

_LISTED = 5
"""Keys that a message names before it only counts."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where one tensor of a file goes."""

    name: str
    """Of our parameter."""
    rows: tuple[int, int] | None = None
    """First row and the row after the last that it fills; None: all."""
    shape: tuple[int, ...] | None = None
    """In the file, where `convert` changes it."""
    convert: Callable[[Tensor], Tensor] | None = None
    """From the file's layout to ours."""


@dataclass(frozen=True, kw_only=True)
class KeyMap:
    """What is expected of a file's encoder."""

    places: Mapping[str, Place]
    """By the file's key."""
    ignored: tuple[str, ...] = ()
    """Regular expressions at the start of keys that belong to something else: a decoder, a classifier."""
    constant: tuple[str, ...] = field(default=())
    """Our parameters that no file holds: they stay as the network was made and are not trained."""


def block_places(theirs: str, ours: str, layers: Mapping[str, str], without: tuple[str, ...] = ()) -> dict[str, Place]:
    """Weights and biases of one block: the layers' names there and here, without those keys that the file lacks."""
    keys = {f"{old}.{part}": f"{new}.{part}" for old, new in layers.items() for part in ("weight", "bias")}
    return {f"{theirs}{old}": Place(name=f"{ours}{new}") for old, new in keys.items() if old not in without}


def load_into(network: nn.Module, tensors: Mapping[str, Tensor], key_map: KeyMap, path: str) -> None:
    """Copy the tensors of the file `path` to their places.

    Raises ConfigError that names keys which are missing, unexpected or of another shape, and values that are not
    finite; the network is as it was then.
    """
    state = network.state_dict(keep_vars=True)
    covered = {place.name for place in key_map.places.values()}
    assert covered | set(key_map.constant) == set(state), covered.symmetric_difference(state)
    used = {key: value for key, value in tensors.items() if key in key_map.places}
    problems = _problems(state, tensors, used, key_map)
    if problems:
        raise ConfigError(f"{path} does not fit this baseline: {'; '.join(problems)}")
    with torch.no_grad():
        for key, value in used.items():
            place = key_map.places[key]
            target = state[place.name] if place.rows is None else state[place.name][slice(*place.rows)]
            target.copy_(value if place.convert is None else place.convert(value))


def _problems(
    state: Mapping[str, Tensor], tensors: Mapping[str, Tensor], used: Mapping[str, Tensor], key_map: KeyMap
) -> list[str]:
    found = []
    if missing := [key for key in key_map.places if key not in tensors]:
        found.append(f"missing are {_listed(missing)}")
    ignored = re.compile("|".join(key_map.ignored) or "(?!)")
    if unexpected := [key for key in tensors if key not in used and not ignored.match(key)]:
        found.append(f"unexpected are {_listed(unexpected)}")
    misshaped = []
    for key, value in used.items():
        expected = _expected_shape(state, key_map.places[key])
        if tuple(value.shape) != expected:
            misshaped.append(f"'{key}' has shape {tuple(value.shape)}, expected {expected}")
    found += misshaped[:_LISTED]
    if odd := [key for key, value in used.items() if not value.is_floating_point() or not value.isfinite().all()]:
        found.append(f"no finite floating-point numbers in {_listed(odd)}")
    return found


def _expected_shape(state: Mapping[str, Tensor], place: Place) -> tuple[int, ...]:
    if place.shape is not None:
        return place.shape
    shape = tuple(state[place.name].shape)
    return shape if place.rows is None else (place.rows[1] - place.rows[0], *shape[1:])


def _listed(keys: list[str]) -> str:
    rest = f" and {len(keys) - _LISTED} more" if len(keys) > _LISTED else ""
    return ", ".join(f"'{key}'" for key in keys[:_LISTED]) + rest
