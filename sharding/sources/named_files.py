"""Files as a user's table names them: relative to the table, by an absolute path, or by a URL in any store."""

import posixpath
from dataclasses import replace

from sharding.sources.base import SourceFile
from sharding.sources.tree import Tree


class NamedFiles:
    """Finds what a table in `tree` names; every other store, and this machine's disk, is one more tree."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self._others: dict[str, Tree] = {}

    def place(self, name: str) -> tuple[Tree, str]:
        """The tree that `name` lies in, and its path there."""
        scheme, separator, rest = name.partition("://")
        if separator and scheme != "file":
            host, _, inside = rest.partition("/")
            return self._other(f"{scheme}://{host}"), inside
        path = rest if separator else name
        if path.startswith("/"):
            return self._other("/"), path.lstrip("/")
        path = posixpath.normpath(path)
        return self.tree, "" if path == "." else path

    def file(self, name: str) -> SourceFile | None:
        """The file of this name, which its path keeps; None when it is not there."""
        tree, path = self.place(name)
        found = tree.file(path)
        return replace(found, path=name) if found else None

    def folder(self, name: str) -> dict[str, SourceFile]:
        """The files in the folder of this name, by their last names; empty when there is no such folder."""
        tree, path = self.place(name)
        return {last: replace(file, path=f"{name}/{last}") for last, file in tree.files(path).items()}

    def _other(self, root: str) -> Tree:
        if root not in self._others:
            self._others[root] = Tree(root)
        return self._others[root]
