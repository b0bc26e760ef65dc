"""The sets of modalities that an evaluation gives a model: each alone, and all together."""

from collections.abc import Sequence

from pipeline.errors import ConfigError


def modality_sets(given: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """By name (`s1`, `s2`, `s1+s2`): its members."""
    sets: dict[str, tuple[str, ...]] = {name: (name,) for name in given}
    if len(given) > 1:
        sets["+".join(given)] = tuple(given)
    return sets


def chosen_sets(given: Sequence[str], wanted: Sequence[str], key: str) -> dict[str, tuple[str, ...]]:
    """Those of `modality_sets` that the setting `key` names, all when it names none; ConfigError for another."""
    sets = modality_sets(given)
    if unknown := [name for name in wanted if name not in sets]:
        raise ConfigError(f"{key} names '{unknown[0]}'; this model and data set have {', '.join(sets)}")
    return {name: members for name, members in sets.items() if not wanted or name in wanted}
