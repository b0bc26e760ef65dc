"""The state of a mixture: what its order depends on, and how far it is."""

from typing import Any, Final

from sharding.errors import ConfigError

_MUST_AGREE: Final = {
    "seed": "set the seed back",
    "global_batch": "set the global batch back; ranks and micro-batches may change, their product may not",
}
_MUST_AGREE_OF_EACH: Final = {
    "fingerprint": "this is another data set, or one built again with other samples",
    "split": "set its split back",
}


def refuse_other_order(state: dict[str, Any], mine: dict[str, Any]) -> None:
    """ConfigError naming what makes the order of `state` another than that of the mixture whose state is `mine`.

    Groups, streams, runs and windows may differ from those that would be chosen now: the state's go on.
    """
    if "datasets" not in state and "fingerprint" in state:
        raise ConfigError(
            "cannot continue the mixture: the state is of a stream of one data set; stream that, or start a new run"
        )
    missing = mine.keys() - state.keys()
    if missing:
        raise ConfigError(f"the state of the mixture lacks {', '.join(sorted(missing))}; it is of another program")
    for key, advice in _MUST_AGREE.items():
        _require_equal(key, state[key], mine[key], advice)
    theirs = {member["name"]: member for member in state["datasets"]}
    ours = {member["name"]: member for member in mine["datasets"]}
    gone, new = [name for name in theirs if name not in ours], [name for name in ours if name not in theirs]
    if gone or new:
        changes = [f"'{name}' is gone" for name in gone] + [f"'{name}' is new" for name in new]
        raise ConfigError(
            f"cannot continue the mixture: data set {', '.join(changes)}; set the data sets back, or, where only what "
            "one is called has changed, set its `name` to what it was, or start a new run"
        )
    _require_equal("the order of the data sets", list(theirs), list(ours), "set it back")
    for name in ours:
        for key, advice in _MUST_AGREE_OF_EACH.items():
            _require_equal(f"{key} of data set '{name}'", theirs[name][key], ours[name][key], advice)
    for name in ours:
        there, here = (
            f"{member['part']} of {sum(each['part'] for each in members.values())} parts"
            for member, members in ((theirs[name], theirs), (ours[name], ours))
        )
        _require_equal(f"the share of data set '{name}'", there, here, "set the weights or the temperature back")


def _require_equal(what: str, there: Any, here: Any, advice: str) -> None:
    if there != here:
        raise ConfigError(
            f"cannot continue the mixture: {what} was {there!r} and is {here!r}; {advice}, or start a new run"
        )
