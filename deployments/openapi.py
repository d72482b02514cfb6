"""One table of calls, from which routing, the OpenAPI document and the human pages are made, so that they agree."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final, NamedTuple

import msgspec

from deployments.problems import (
    FORBIDDEN,
    INTERNAL_ERROR,
    MALFORMED,
    MEDIA_TYPE,
    OVERLOADED,
    TIMEOUT,
    TOO_LARGE,
    UNAUTHENTICATED,
    UNAVAILABLE,
    UNSUPPORTED_MEDIA_TYPE,
    Problem,
    html_page,
    prose,
)

_REF: Final = "#/components/schemas/{name}"


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter in the path, the query or a header."""

    name: str
    where: str
    description: str
    schema: dict[str, Any]
    required: bool = False  # one in the path always is

    def document(self) -> dict[str, Any]:
        """Its OpenAPI parameter object."""
        return {
            "name": self.name,
            "in": self.where,
            "required": self.required or self.where == "path",
            "description": self.description,
            "schema": self.schema,
        }


@dataclass(frozen=True, slots=True)
class Operation:
    """One call. `handler` takes what the application makes of a request."""

    method: str
    path: str
    name: str
    summary: str
    description: str
    handler: Callable[[Any], Awaitable[Any]]
    scope: str | None = None  # what the token must carry; empty: nothing in particular; None: public
    request: type | None = None
    response: type | None = None
    status: int = 200
    parameters: tuple[Parameter, ...] = ()
    problems: tuple[Problem, ...] = ()
    response_headers: tuple[tuple[str, str], ...] = ()
    media_types: tuple[str, ...] = ("application/json",)
    reads_query: bool = False  # by itself: OAuth has rules of its own for it (RFC 6749, 3.1 and 3.2)

    @property
    def query_names(self) -> list[str]:
        """The parameters that its query may have, each once."""
        return [parameter.name for parameter in self.parameters if parameter.where == "query"]

    def all_problems(self) -> list[Problem]:
        """Its own problems and those that any call of its sort can end with."""
        shared = [MALFORMED, OVERLOADED, TIMEOUT, UNAVAILABLE, INTERNAL_ERROR]
        if self.scope is not None:
            shared += [UNAUTHENTICATED, FORBIDDEN]
        if self.request is not None:
            shared += [TOO_LARGE, UNSUPPORTED_MEDIA_TYPE]
        return [*self.problems, *(problem for problem in shared if problem not in self.problems)]


class Security(NamedTuple):
    """How calls are entered: the name of the scheme, its OpenAPI object, and the header as curl is given it."""

    name: str
    scheme: Mapping[str, Any]
    curl: str


BEARER: Final = Security(
    "token",
    {"type": "http", "scheme": "bearer", "bearerFormat": "JWT", "description": "A signed JWT."},
    '-H "Authorization: Bearer $TOKEN"',
)
BASIC: Final = Security(
    "password", {"type": "http", "scheme": "basic", "description": "User and password."}, '-u "$USER_NAME:$PASSWORD"'
)


def document(
    title: str, version: str, description: str, operations: Sequence[Operation], security: Security = BEARER
) -> dict[str, Any]:
    """The OpenAPI 3.1 document of a table of calls."""
    types = sorted({t for o in operations for t in (o.request, o.response) if t is not None}, key=lambda t: t.__name__)
    _, components = msgspec.json.schema_components(types, ref_template=_REF)
    components["Problem"] = _PROBLEM
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation, security)
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version, "description": description, "license": {"name": "Apache-2.0"}},
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": dict(sorted(components.items())),
            "securitySchemes": {security.name: dict(security.scheme)},
        },
    }


_PROBLEM: Final[dict[str, Any]] = {
    "title": "Problem",
    "description": "RFC 9457. Members beside these say more, such as `field`, `id`, `left` or `limit`.",
    "type": "object",
    "required": ["type", "title", "status", "detail", "request_id"],
    "properties": {
        "type": {"type": "string", "format": "uri-reference", "examples": ["/problems/insufficient-funds"]},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "request_id": {"type": "string", "description": "The number of the request in our logs."},
        "field": {"type": "string", "description": "Which part of the request it is about."},
        "id": {"type": "string", "description": "Id of the event, with which the request can be sent again."},
        "left": {"type": "integer", "description": "Centavos that are left of a limit, a hold or an original."},
        "limit": {"type": "string", "enum": ["per_transfer", "daily", "night"]},
        "lacks": {
            "type": "object",
            "description": "What each field lacks to be shown: `scope`, `grant`.",
            "additionalProperties": {"type": "array", "items": {"type": "string"}},
        },
    },
}


def _operation(operation: Operation, security: Security) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "description": operation.description,
        "responses": _responses(operation),
        "security": [] if operation.scope is None else [{security.name: [operation.scope] if operation.scope else []}],
    }
    if operation.parameters:
        described["parameters"] = [parameter.document() for parameter in operation.parameters]
    if operation.request is not None:
        schema = {"$ref": _REF.format(name=operation.request.__name__)}
        described["requestBody"] = {"required": True, "content": _content(operation.media_types, schema)}
    return described


def _content(media_types: Iterable[str], schema: dict[str, Any]) -> dict[str, Any]:
    binary = {"type": "string", "format": "binary"}
    return {name: {"schema": schema if name == "application/json" else binary} for name in media_types}


def _responses(operation: Operation) -> dict[str, Any]:
    good: dict[str, Any] = {"description": "Done."}
    if operation.response is not None:
        good["content"] = _content(operation.media_types, {"$ref": _REF.format(name=operation.response.__name__)})
    elif operation.media_types != ("application/json",):
        good["content"] = {name: {"schema": {"type": "string"}} for name in operation.media_types}
    if operation.response_headers:
        good["headers"] = {
            name: {"description": text, "schema": {"type": "string"}} for name, text in operation.response_headers
        }
    responses: dict[str, Any] = {str(operation.status): good}
    by_status: dict[int, list[Problem]] = {}
    for problem in operation.all_problems():
        for status in problem.statuses:
            by_status.setdefault(status, []).append(problem)
    for status, problems in sorted(by_status.items()):
        bad: dict[str, Any] = {
            "description": "; ".join(f"`{problem.name}`: {problem.title}" for problem in problems),
            "content": {MEDIA_TYPE: {"schema": {"$ref": _REF.format(name="Problem")}}},
        }
        if any(problem.retry_after_s is not None for problem in problems):
            bad["headers"] = {"Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer"}}}
        responses[str(status)] = bad
    return responses


# -- for people -------------------------------------------------------------------------------------------------------


def razao_version() -> str:
    """The version that documents say they describe; "0" where the package is not installed."""
    try:
        return version("razao")
    except PackageNotFoundError:
        return "0"


def docs_page(title: str, introduction: str, operations: Sequence[Operation], security: Security = BEARER) -> bytes:
    """A readable page of all calls, with fields, examples and problems; it needs nothing from elsewhere."""
    described = document(title, "", "", operations, security)
    schemas = described["components"]["schemas"]
    index = "".join(
        f"<tr><td><a href='#{o.name}'><code>{o.method} {escape(o.path)}</code></a><td>{escape(o.summary)}"
        f"<td>{'public' if o.scope is None else f'<code>{o.scope or security.name}</code>'}"
        for o in operations
    )
    calls = "".join(_call_section(operation, schemas, security) for operation in operations)
    return html_page(
        title,
        f"<h1>{escape(title)}</h1>{introduction}<h2>Calls</h2><table><tr><th>call<th>what it "
        f"does<th>scope{index}</table>"
        f"{calls}",
    )


def _call_section(operation: Operation, schemas: dict[str, Any], security: Security) -> str:
    parts = [
        f"<h2 id='{operation.name}'><code>{operation.method} {escape(operation.path)}</code></h2>",
        f"<p><b>{escape(operation.summary)}.</b> {prose(operation.description)}</p>",
    ]
    if operation.parameters:
        rows = "".join(
            f"<tr><td><code>{escape(p.name)}</code><td>{p.where}<td>{prose(p.description)}"
            for p in operation.parameters
        )
        parts.append(f"<table><tr><th>parameter<th>in<th>meaning{rows}</table>")
    if operation.request is not None:
        fields = _fields(operation.request.__name__, schemas)
        parts.append(f"<h3>Body</h3>{fields}<pre><code>{escape(_curl(operation, schemas, security))}</code></pre>")
    if operation.response is not None:
        name = operation.response.__name__
        example = _pretty(_example({"$ref": _REF.format(name=name)}, schemas))
        parts.append(
            f"<h3>Answer {operation.status}</h3>{_fields(name, schemas)}<pre><code>{escape(example)}</code></pre>"
        )
    problems = ", ".join(
        f"<a href='{p.type}'><code>{p.name}</code></a> {'/'.join(map(str, p.statuses))}"
        for p in operation.all_problems()
    )
    parts.append(f"<p>Problems: {problems}</p>")
    return "".join(parts)


def _pretty(value: object) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()


def _curl(operation: Operation, schemas: dict[str, Any], security: Security) -> str:
    assert operation.request is not None  # noqa: S101
    schema = schemas[operation.request.__name__]
    required = schema.get("required", [])
    body = {name: _example(schema["properties"][name], schemas) for name in required}
    data = msgspec.json.encode(body).decode()
    return (
        f'curl -X {operation.method} "$RAZAO{operation.path}" \\\n  {security.curl} \\\n'
        f"  -H 'Content-Type: application/json' \\\n  -d '{data}'"
    )


def _fields(name: str, schemas: dict[str, Any]) -> str:
    rows: list[str] = []
    _add_fields(rows, "", schemas[name], schemas)
    return f"<table><tr><th>field<th>type<th>meaning{''.join(rows)}</table>" if rows else "<p>No fields.</p>"


def _add_fields(rows: list[str], prefix: str, schema: dict[str, Any], schemas: dict[str, Any]) -> None:
    required = schema.get("required", [])
    for name, given in schema.get("properties", {}).items():
        field = _resolved(given, schemas)
        optional = "" if name in required else "?"
        kind = " or ".join(map(str, field["enum"])) if "enum" in field else _type_name(field, schemas)
        described = prose(given.get("description", field.get("description", "")))
        rows.append(f"<tr><td><code>{escape(prefix + name)}{optional}</code><td>{escape(kind)}<td>{described}")
        inner = _resolved(field["items"], schemas) if "items" in field else field
        if inner.get("properties"):
            _add_fields(rows, f"{prefix}{name}{'[]' if 'items' in field else ''}.", inner, schemas)


def _resolved(schema: dict[str, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    if "$ref" in schema:
        target: dict[str, Any] = schemas[schema["$ref"].rsplit("/", 1)[1]]
        return target
    return schema


def _type_name(field: dict[str, Any], schemas: dict[str, Any]) -> str:
    if "anyOf" in field:
        return " or ".join(_type_name(_resolved(one, schemas), schemas) for one in field["anyOf"])
    if "const" in field:
        return repr(field["const"])
    return {"array": "list"}.get(field.get("type", ""), str(field.get("type", "any")))


def _example(given: dict[str, Any], schemas: dict[str, Any]) -> Any:
    schema = _resolved(given, schemas)
    if given.get("examples") or schema.get("examples"):
        return (given.get("examples") or schema["examples"])[0]
    if "enum" in schema:
        return schema["enum"][0]
    if "const" in schema:
        return schema["const"]
    if "anyOf" in schema:
        return _example(schema["anyOf"][0], schemas)
    match schema.get("type"):
        case "object":
            required = schema.get("required", [])
            return {name: _example(schema["properties"][name], schemas) for name in required}
        case "array":
            return [_example(schema["items"], schemas)]
        case "integer":
            return 12_345
        case "string":
            return "text"
        case "boolean":
            return True
        case _:
            return None
