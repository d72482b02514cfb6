"""Finds the call that a method and a path mean, in the table of an application's operations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final

from deployments.openapi import Operation
from deployments.problems import unserved

_NONE: Final[Mapping[str, str]] = MappingProxyType({})


class Routes:
    """The operations by their paths. A path has at most one parameter, which is a whole segment of it."""

    def __init__(self, operations: Iterable[Operation]) -> None:
        self._exact: dict[str, dict[str, Operation]] = {}
        self._with_parameter: dict[tuple[str, str, str], dict[str, Operation]] = {}
        for operation in operations:
            before, opening, rest = operation.path.partition("{")
            name, _, after = rest.partition("}")
            by_method = (
                self._with_parameter.setdefault((before, name, after), {})
                if opening
                else self._exact.setdefault(operation.path, {})
            )
            by_method[operation.method] = operation

    def find(self, method: str, path: str) -> tuple[Operation, Mapping[str, str]]:
        """The operation and the path's parameter by its name. HEAD is served by GET.

        Raises:
            ProblemError: 404 when nothing has this path, 405 when nothing of it has this method.
        """
        if method == "HEAD":
            method = "GET"
        by_method = self._exact.get(path)
        if by_method is not None:
            found = by_method.get(method)
            if found is None:
                raise unserved(set(by_method))
            return found, _NONE
        allowed: set[str] = set()
        for (before, name, after), candidates in self._with_parameter.items():
            if path.startswith(before) and path.endswith(after):
                value = path[len(before) : len(path) - len(after)]
                if value and "/" not in value:
                    if method in candidates:
                        return candidates[method], {name: value}
                    allowed.update(candidates)
        raise unserved(allowed)
