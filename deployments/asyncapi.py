"""The feed of events as an AsyncAPI 3.0 document: its types with their schemas, and where they can be had.

Made from the structs that the events are encoded from (`storage/feed_schema.py`), so that document and events agree.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from storage.feed_schema import MEDIA_TYPE, PREFIX, SOURCE, TYPES, AccountData, EventType, TransferData

TOPIC: Final = "razao.events"
_REF: Final = "#/components/schemas/{name}"


def document(title: str, version: str, stream_path: str) -> dict[str, Any]:
    """The AsyncAPI document of the topic and of the stream of server-sent events at `stream_path`."""
    _, schemas = msgspec.json.schema_components([AccountData, TransferData], ref_template=_REF)
    messages = {_name(kind): _message(kind) for kind in TYPES}
    schemas |= {_name(kind): event_schema(kind) for kind in TYPES}
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": f"{title}: events",
            "version": version,
            "description": (
                "What happens to accounts, as CloudEvents 1.0 in JSON, at least once and in order for each account. "
                "An event's `id` never changes, so repeats can be told; a payment is two events, one for each side. "
                "There is no personal data in them."
            ),
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": MEDIA_TYPE,
        "channels": {
            "topic": {
                "address": TOPIC,
                "description": "All accounts. The key of a message is the account's id.",
                "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in messages},
                "bindings": {"kafka": {"topic": TOPIC}},
            },
            "stream": {
                "address": stream_path,
                "description": (
                    "The caller's own accounts, as server-sent events: `data` is the message, `event` its type, and "
                    "`id` what to come back with as `Last-Event-ID`. A stream whose token opens it no more ends with "
                    "an event `problem`, without an id. The OpenAPI document has the call."
                ),
                "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in messages},
            },
        },
        "operations": {
            f"send{channel.capitalize()}": {
                "action": "send",
                "channel": {"$ref": f"#/channels/{channel}"},
                "messages": [{"$ref": f"#/channels/{channel}/messages/{name}"} for name in messages],
            }
            for channel in ("topic", "stream")
        },
        "components": {"messages": messages, "schemas": schemas},
    }


def event_schema(kind: EventType) -> dict[str, Any]:
    """JSON schema of one type of event; its data is a reference into the document's components."""
    text = {"type": "string", "minLength": 1}
    properties = {
        "specversion": {"const": "1.0"},
        "id": text | {"pattern": "^[0-9]+-[0-9]+-[01]$", "description": "The same whenever the feed is built again."},
        "source": text | {"format": "uri-reference", "examples": [SOURCE]},
        "type": {"const": PREFIX + kind.name},
        "subject": text | {"description": "The account."},
        "time": text | {"format": "date-time"},
        "datacontenttype": {"const": "application/json"},
        "data": {"$ref": _REF.format(name=kind.data.__name__)},
    }
    return {
        "title": kind.name,
        "description": kind.description,
        "type": "object",
        "required": list(properties),
        "properties": properties,
    }


def _name(kind: EventType) -> str:
    about, _, what = kind.name.partition(".")
    return f"{about.capitalize()}{what.capitalize()}"


def _message(kind: EventType) -> dict[str, Any]:
    return {
        "name": PREFIX + kind.name,
        "title": kind.name,
        "summary": kind.description,
        "contentType": MEDIA_TYPE,
        "payload": {"$ref": _REF.format(name=_name(kind))},
    }
