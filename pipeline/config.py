"""Reading the settings of a run: one YAML file, dotted overrides with the same keys, every key typed and explained.

An unknown key is refused with the nearest known one, a value that cannot work before anything starts.
"""

import difflib
import re
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from pipeline.errors import ConfigError
from pipeline.memory_plan import can_overlap
from pipeline.settings import Settings
from pipeline.stream.mixture_config import check_mixture, with_first_of_mixture
from pipeline.stream.shares import MIN_TEMPERATURE

_CROSS_SCALE = "cross_scale"
Typed = TypeVar("Typed")


def load_settings(path: str | Path, overrides: list[str]) -> Settings:
    """The settings in the YAML file at `path`, changed by `key.sub=value` overrides (values are YAML too).

    Raises ConfigError that names the file and the key for whatever cannot be understood or cannot work.
    """
    source = Path(path)
    try:
        text = source.read_text()
    except OSError as error:
        raise ConfigError(
            f"cannot read the settings {source}: {error.strerror}; give the path of a YAML file"
        ) from error
    return settings_of_text(text, str(source), overrides)


def settings_of_text(text: str, name: str, overrides: list[str]) -> Settings:
    """The settings in a YAML text, which messages call `name`; see `load_settings`."""
    try:
        raw = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{name} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{name} holds no settings; start with data:, train: and run:, see configs/")
    for override in overrides:
        _apply(raw, override)
    return parse_settings(raw, name)


def load_typed(path: Path, cls: type[Typed]) -> Typed:
    """The YAML file at `path` as `cls`, a dataclass whose fields are its keys; ConfigError as of `load_settings`."""
    try:
        raw = yaml.load(path.read_text(), _Loader)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}; give the path of a YAML file") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    found: Typed = _validated(raw or {}, cls, "", [], name=str(path))
    return found


def parse_settings(raw: dict[str, Any], name: str) -> Settings:
    """The settings in `raw`; `name` is what messages call it."""
    from pydantic import TypeAdapter, ValidationError

    _refuse_unknown(raw, Settings, name, "", _known_keys(Settings))
    try:
        settings = TypeAdapter(Settings).validate_python(with_first_of_mixture(raw))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "missing":
            raise ConfigError(f"{name} lacks the key '{key}'; add it to the file or write {key}=...") from error
        raise ConfigError(f"{name}: key '{key}' = {first['input']!r}: {first['msg']}") from error
    _refuse_unworkable(settings, name)
    return settings


def model_config(settings: Settings) -> Any:
    """The `fusmae.FusMAEConfig` of a run; ConfigError naming the key that cannot work."""
    from fusmae import FusMAEConfig

    plain = {key: value for key, value in settings.model.items() if key != _CROSS_SCALE}
    config = _validated(plain, FusMAEConfig, "model.", [f"model.{_CROSS_SCALE}"])
    if settings.engine.compile and config.varies:
        raise ConfigError(
            f"engine.compile needs the same number of visible patches in all samples, not masking '{config.masking}' "
            f"with modality_dropout {config.modality_dropout}; write engine.compile=false"
        )
    if (cross_scale := cross_scale_config(settings)) is not None:
        try:
            cross_scale.check(config)
        except ValueError as error:
            raise ConfigError(f"key 'model.{_CROSS_SCALE}': {error}") from error
    return config


def cross_scale_config(settings: Settings) -> Any:
    """The `fusmae.CrossScaleConfig` of a run that trains at two scales, else None; ConfigError as `model_config`."""
    from fusmae import CrossScaleConfig

    given = settings.model.get(_CROSS_SCALE)
    return None if given is None else _validated(given, CrossScaleConfig, f"model.{_CROSS_SCALE}.", [])


def micro_batches(settings: Settings, world_size: int) -> int:
    """Micro-batches of a step on each rank; ConfigError with sizes that work when they do not come out even."""
    own = settings.train.global_batch // world_size
    micro = settings.train.micro_batch or own
    if own % micro:
        works = [size for size in range(1, own + 1) if own % size == 0]
        nearest = sorted(sorted(works, key=lambda size: abs(size - micro))[:2])
        raise ConfigError(
            f"train.micro_batch={micro} does not divide a rank's {own} samples of train.global_batch="
            f"{settings.train.global_batch} on {world_size} ranks; write {' or '.join(map(str, nearest))}"
        )
    return own // micro


def to_dict(settings: Any) -> Any:
    """Plain dicts, lists and numbers of any of our settings, as YAML and JSON want them."""
    if is_dataclass(settings) and not isinstance(settings, type):
        return {f.name: to_dict(getattr(settings, f.name)) for f in fields(settings)}
    if isinstance(settings, dict):
        return {key: to_dict(value) for key, value in settings.items()}
    if isinstance(settings, list | tuple):
        return [to_dict(value) for value in settings]
    return settings


def lookup(settings: Settings, key: str) -> Any:
    """The value of a dotted key, such as `run.dir`."""
    value = to_dict(settings)
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            raise ConfigError(f"there is no key '{key}'{_nearest(key, _known_keys(Settings))}")
        value = value[part]
    return value


def dump_settings(settings: Settings) -> str:
    """The resolved settings as YAML."""
    return str(yaml.safe_dump(to_dict(settings), sort_keys=False))


def with_model(settings: Settings, model: Any) -> Settings:
    """The settings with every field of the model spelled out, as they go into the run folder."""
    spelled = to_dict(model)
    if (cross_scale := cross_scale_config(settings)) is not None:
        spelled[_CROSS_SCALE] = to_dict(cross_scale)
    return replace(settings, model=spelled)


def _validated(raw: Any, cls: type, prefix: str, also_known: list[str], name: str = "the settings") -> Any:
    from pydantic import TypeAdapter, ValidationError

    _refuse_unknown(raw, cls, name, prefix, [*also_known, *_known_keys(cls, prefix)])
    try:
        return TypeAdapter(cls).validate_python(raw)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join([prefix.rstrip("."), *(str(part) for part in first["loc"])]).lstrip(".")
        where = "" if prefix else f"{name}: "
        raise ConfigError(f"{where}key '{key}': {first['msg'].removeprefix('Value error, ')}") from error


class _Loader(yaml.SafeLoader):
    """YAML 1.2's floats (PyYAML takes `1e-4` for text); a key given twice is an error instead of a silent choice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key '{key}' stands twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def _apply(raw: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"'{override}' is no override; write key.sub=value, such as train.steps=100")
    target = raw
    *parents, last = key.split(".")
    for parent in parents:
        if target.get(parent) is None:
            target[parent] = {}
        target = target[parent]
        if not isinstance(target, dict):
            raise ConfigError(f"'{override}': '{parent}' is a value, not a group of keys")
    try:
        target[last] = yaml.load(value, _Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"'{override}': the value is not YAML") from error


def _dataclass_of(hint: Any) -> type | None:
    candidates = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return next((c for c in candidates if isinstance(c, type) and is_dataclass(c)), None)


def _known_keys(cls: type, prefix: str = "") -> list[str]:
    hints = get_type_hints(cls)
    keys = []
    for f in fields(cls):
        inner = _dataclass_of(hints[f.name])
        keys += _known_keys(inner, f"{prefix}{f.name}.") if inner else [f"{prefix}{f.name}"]
    return keys


def _nearest(key: str, known: list[str]) -> str:
    last = key.rsplit(".", 1)[-1]
    same_name = [k for k in known if k.rsplit(".", 1)[-1] == last]
    close = same_name or difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else f"; known are {', '.join(known[:30])}"


def _refuse_unknown(raw: Any, cls: type, name: str, prefix: str, known: list[str]) -> None:
    if not isinstance(raw, dict):
        raise ConfigError(f"{name}: '{prefix.rstrip('.')}' must be a group of keys, not {raw!r}")
    hints = get_type_hints(cls)
    names = {f.name for f in fields(cls)}
    for key, value in raw.items():
        if key not in names:
            raise ConfigError(f"{name} has the unknown key '{prefix}{key}'{_nearest(f'{prefix}{key}', known)}")
        inner = _dataclass_of(hints[key])
        if inner is not None and value is not None:
            _refuse_unknown(value, inner, name, f"{prefix}{key}.", known)
        if get_origin(hints[key]) is tuple and (each := _dataclass_of(get_args(hints[key])[0])):
            for number, item in enumerate(value if isinstance(value, list) else ()):
                place = f"{prefix}{key}.{number}."
                _refuse_unknown(item, each, name, place, _known_keys(each, place))


def _refuse_unworkable(settings: Settings, name: str) -> None:
    train, engine = settings.train, settings.engine
    if train.steps < 1:
        raise ConfigError(f"{name}: train.steps = {train.steps}; a run needs at least 1")
    if train.global_batch < 1 or train.micro_batch < 0:
        raise ConfigError(f"{name}: train.global_batch must be at least 1 and train.micro_batch at least 0")
    if settings.checkpoint.keep < 2 or settings.checkpoint.every < 1:
        raise ConfigError(f"{name}: checkpoint.keep must be at least 2 and checkpoint.every at least 1")
    if settings.log.every < 1:
        raise ConfigError(f"{name}: log.every = {settings.log.every}; write 1 or more")
    if not 0 <= settings.optim.warmup_steps < train.steps:
        raise ConfigError(
            f"{name}: optim.warmup_steps = {settings.optim.warmup_steps} must be below train.steps = {train.steps}"
        )
    if engine.name == "deepspeed" and engine.zero_stage == 0 and engine.precision == "bf16":
        raise ConfigError(
            f"{name}: engine.zero_stage=0 with bf16 trains differently in DeepSpeed (its Adam starts at step 1); "
            "write engine.zero_stage=1, or engine.precision=fp32"
        )
    if engine.compile and engine.name == "deepspeed" and engine.zero_stage == 3:
        raise ConfigError(f"{name}: engine.compile does not go with engine.zero_stage=3, whose hooks break the graph")
    if settings.checkpoint.keep_best > 0:
        _refuse_unscored(settings, name)
    check_mixture(settings.data.mixture, settings.data.temperature, f"{name}: data.mixture: ")
    ranges: dict[str, tuple[bool, str]] = {
        "run.num_processes": (settings.run.num_processes >= 0, "0 (choose for me) or more"),
        "run.threads": (settings.run.threads >= 0, "0 (choose for me) or more"),
        "run.timeout_s": (settings.run.timeout_s > 0, "above 0"),
        "log.profile_steps": (settings.log.profile_steps >= 0, "0 (no profile) or more"),
        "log.reconstructions": (settings.log.reconstructions >= 0, "0 (never) or more"),
        "probe.every": (settings.probe.every >= 0, "0 (never) or more"),
        "probe.samples": (settings.probe.samples >= 1, "1 or more"),
        "probe.neighbours": (settings.probe.neighbours >= 1, "1 or more"),
        "probe.batch_size": (settings.probe.batch_size >= 1, "1 or more"),
        "probe.ridge": (settings.probe.ridge > 0, "above 0"),
        "watchdog.probe_s": (settings.watchdog.probe_s >= 0, "0 (no limit) or more"),
        "engine.bucket_mib": (engine.bucket_mib >= 1, "1 or more"),
        "engine.overlap": (
            not engine.overlap or can_overlap(engine),
            "false: DDP overlaps by itself, and DeepSpeed's ZeRO 0 and 1 in bf16 cannot",
        ),
        "engine.gc_every": (engine.gc_every >= 0, "0 (whenever Python likes) or more"),
        "guard.spike": (settings.guard.spike >= 0, "0 (never) or more"),
        "guard.rollback": (settings.guard.rollback >= 0, "0 (never) or more"),
        "guard.window": (settings.guard.window >= 20, "20 or more"),
        "watchdog.start_s": (settings.watchdog.start_s >= 0, "0 (no limit) or more"),
        "watchdog.data_s": (settings.watchdog.data_s >= 0, "0 (no limit) or more"),
        "watchdog.step_s": (settings.watchdog.step_s >= 0, "0 (no limit) or more"),
        "watchdog.checkpoint_s": (settings.watchdog.checkpoint_s >= 0, "0 (no limit) or more"),
        "train.seed": (0 <= train.seed < 2**63, "0 or more and below 2^63"),
        "data.temperature": (settings.data.temperature >= MIN_TEMPERATURE, f"{MIN_TEMPERATURE} or more"),
        "data.reader": (not settings.data.mixture or settings.data.reader == "exact", "exact to read a mixture"),
        "data.threads": (settings.data.threads >= 1, "1 or more"),
        "data.prefetch": (settings.data.prefetch >= 1, "1 or more"),
        "data.window_gib": (settings.data.window_gib > 0, "above 0"),
        "data.groups": (settings.data.groups >= 0, "0 (choose for me) or more"),
        "data.cache_gib": (settings.data.cache_gib > 0, "above 0"),
        "data.cache_dir_gib": (settings.data.cache_dir_gib > 0, "above 0"),
        "checkpoint.keep_every": (settings.checkpoint.keep_every >= 0, "0 (none) or more"),
        "checkpoint.keep_best": (settings.checkpoint.keep_best >= 0, "0 (none) or more"),
        "optim.lr": (settings.optim.lr > 0, "above 0"),
        "optim.min_lr": (settings.optim.min_lr >= 0, "0 or more"),
        "optim.warmup_lr": (settings.optim.warmup_lr >= 0, "0 or more"),
        "optim.betas": (all(0 <= beta < 1 for beta in settings.optim.betas), "two numbers from 0 to below 1"),
        "optim.eps": (settings.optim.eps > 0, "above 0"),
        "optim.weight_decay": (settings.optim.weight_decay >= 0, "0 or more"),
        "optim.clip": (settings.optim.clip >= 0, "0 (no clipping) or more"),
    }
    for key, (is_fine, wanted) in ranges.items():
        if not is_fine:
            raise ConfigError(f"{name}: {key} = {lookup(settings, key)}; it must be {wanted}")


def _refuse_unscored(settings: Settings, name: str) -> None:
    """The best checkpoints are to be kept: each must have a score."""
    by, every = settings.checkpoint.best_by, settings.checkpoint.every
    key, scored_every = ("log.every", settings.log.every) if by == "loss" else ("probe.every", settings.probe.every)
    if scored_every == 0 or (every < scored_every if by == "loss" else every % scored_every):
        wanted = "at most checkpoint.every" if by == "loss" else "a divisor of checkpoint.every, such as that itself,"
        raise ConfigError(
            f"{name}: checkpoint.keep_best = {settings.checkpoint.keep_best} by {by}, but with {key} = {scored_every} "
            f"and checkpoint.every = {every} not each checkpoint has one; {key} must be {wanted} for that"
        )
