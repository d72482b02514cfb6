"""Finds the call that a method and a path mean, in the table of an application's operations, and reads its query.

The table says which parameters a call has: no other one is taken, in any call of any application, so none can be
meant by a client and passed over here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final

from starlette.types import Scope

from deployments.openapi import Operation
from deployments.problems import malformed, unserved
from deployments.request import fields

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

    def enter(self, scope: Scope) -> tuple[Operation, Mapping[str, str]]:
        """The operation that a request means, and the path's parameter by its name.

        Sets `razao.operation`, and `razao.query`, the query's parameters by their names.

        Raises:
            ProblemError: there is none, or the query is not one of its own.
        """
        operation, path = self.find(scope["method"], scope["path"])
        scope["razao.operation"] = operation
        scope["razao.query"] = _query(scope["query_string"], operation)
        return operation, path

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


def _query(raw: bytes, operation: Operation) -> Mapping[str, str]:
    if not raw or operation.reads_query:
        return _NONE
    parameters = fields(raw, "query")
    declared = operation.query_names
    for name in parameters:
        if name not in declared:
            known = f"known here: {', '.join(declared)}" if declared else "there is none here"
            raise malformed("query", f"Unknown query parameter; {known}")
    return parameters
