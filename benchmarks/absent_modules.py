"""Packages that a rival imports and does not use here: stood in for, so that they need not be installed."""

import importlib.abc
import importlib.machinery
import types
from collections.abc import Sequence
from typing import Any


class AbsentModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Put into `sys.meta_path`: whatever is asked of the named packages is an empty class."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = frozenset(names)

    def find_spec(self, name: str, path: Sequence[str] | None, target: Any = None) -> Any:
        if name.partition(".")[0] in self.names:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> types.ModuleType:
        module = types.ModuleType(spec.name)
        module.__getattr__ = _stand_in  # type: ignore[method-assign]
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def _stand_in(name: str) -> type:
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (), {})
