"""Pages of the settings: every key with its type, its default and the docstring line under its field."""

import ast
import inspect
import textwrap
from dataclasses import MISSING, Field, fields, is_dataclass
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from tables import code, prose, table

_HEAD = ["key", "value", "default", "what it does"]
_NAMES = {bool: "true or false", int: "whole number", float: "number", str: "text"}


def settings_pages() -> dict[str, str]:
    """The three pages of settings by their path in the site."""
    from fusmae.config import FusMAEConfig
    from fusmae.cross_scale_config import CrossScaleConfig
    from pipeline.evaluate import EvaluationSettings
    from pipeline.restore.settings import RestoreSettings
    from pipeline.settings import Settings

    return {
        "reference/settings.md": _page(
            "Settings of a run",
            "A run has one YAML file; `key.sub=value` on the command line wins over it. What stands under `model` is "
            "on [a page of its own](model-settings.md). An unknown key is answered with the nearest that exists.",
            [(Settings, "", ("model",))],
        ),
        "reference/model-settings.md": _page(
            "Settings of the model",
            "All of it stands under `model` in the settings of a run: [what the variants are](../model.md).",
            [(FusMAEConfig, "model.", ()), (CrossScaleConfig, "model.cross_scale.", ())],
        ),
        "reference/evaluation-settings.md": _page(
            "Settings of evaluations",
            "`key.sub=value` of `python -m pipeline.evaluate`, and of `python -m pipeline.restore` what stands under "
            "`clouds` and `speckle`. Of `data`, which is the run's own, only what says where the samples lie and how "
            "they are read: [its keys](settings.md).",
            [(EvaluationSettings, "", ("data",)), (RestoreSettings, "", ("data", "device"))],
        ),
    }


def field_docs(cls: type) -> dict[str, str]:
    """The docstring line under each field of a dataclass, as it stands in its source."""
    (defined,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(defined, ast.ClassDef)
    found = {}
    for field, below in zip(defined.body, defined.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
            if isinstance(below.value, ast.Constant) and isinstance(below.value.value, str):
                found[field.target.id] = below.value.value
    return found


def _page(title: str, says: str, roots: list[tuple[type, str, tuple[str, ...]]]) -> str:
    lines = [f"# {title}", "", says, ""]
    for cls, prefix, leave_out in roots:
        lines += _group(cls, prefix, leave_out)
    return "\n".join(lines)


def _group(cls: type, prefix: str, leave_out: tuple[str, ...]) -> list[str]:
    """A table of the keys of a class, then those of the classes in it."""
    hints, docs = get_type_hints(cls), field_docs(cls)
    rows, inner, listed = [], [], []
    for field in fields(cls):
        hint = hints[field.name]
        if field.name in leave_out:
            continue
        if (group := _dataclass_in(hint)) is not None:
            inner.append((group, f"{prefix}{field.name}."))
            continue
        if (item := _item_of(hint)) is not None:
            listed.append((item, f"{prefix}{field.name}"))
        rows.append(
            [code(prefix + field.name), _type_name(hint), _default(field), prose(docs.get(field.name, ""))],
        )
    lines = []
    if rows:
        head = [f"## {prefix.rstrip('.') or 'Without a group'}", "", prose(inspect.getdoc(cls) or ""), ""]
        lines += [*head, *table(_HEAD, rows), ""]
    for item, name in listed:
        keys = get_type_hints(item)
        said = field_docs(item)
        of_item = [
            [code(f.name), _type_name(keys[f.name]), _default(f), prose(said.get(f.name, ""))] for f in fields(item)
        ]
        lines += [f"### Each of {name}", "", prose(inspect.getdoc(item) or ""), ""]
        lines += [*table(_HEAD, of_item), ""]
    for group, name in inner:
        lines += _group(group, name, ())
    return lines


def _dataclass_in(hint: Any) -> type | None:
    candidates = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return next((each for each in candidates if isinstance(each, type) and is_dataclass(each)), None)


def _item_of(hint: Any) -> type | None:
    return _dataclass_in(get_args(hint)[0]) if get_origin(hint) is tuple and get_args(hint) else None


def _type_name(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return ", ".join(code(str(value)) for value in arguments)
    if origin in (Union, UnionType):
        return " or ".join("nothing" if each is type(None) else _type_name(each) for each in arguments)
    if origin is tuple and arguments[-1] is Ellipsis:
        return f"list: {_type_name(arguments[0])}"
    if origin is tuple:
        return f"list of {len(arguments)}: {_type_name(arguments[0])}"
    if origin is dict:
        return "group of keys"
    if isinstance(hint, type) and is_dataclass(hint):
        return "group, see below"
    return _NAMES.get(hint, code(getattr(hint, "__name__", str(hint))))


def _default(field: "Field[Any]") -> str:
    if field.default is MISSING and field.default_factory is MISSING:
        return "required"
    value = field.default if field.default is not MISSING else field.default_factory()  # type: ignore[misc]
    return _written(value)


def _written(value: Any) -> str:
    """As YAML has it."""
    if isinstance(value, bool):
        return code(str(value).lower())
    if value is None or value == "" or value == ():
        return "none"
    if isinstance(value, tuple) and all(is_dataclass(each) for each in value):
        return ", ".join(code(str(getattr(each, "name", each))) for each in value)
    return code(str(list(value)) if isinstance(value, tuple) else str(value))
