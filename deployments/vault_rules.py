"""The rules of the vault, without any store: who may see what, and what they lack otherwise.

A field is shown to a caller whose token has the field's scope and who has a live grant of the person for that field and
that purpose; and to the person themselves. All fields asked for, or none.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from typing import Final

from deployments.json_body import text
from deployments.problems import malformed
from storage.vault import FIELDS

SELF: Final = "vault:self"
WRITE: Final = "vault:write"
GRANT: Final = "vault:grant"
AUDIT: Final = "vault:audit"
READ: Final = {field: f"vault:read:{field}" for field in FIELDS}

GRANT_S_MAX: Final = 86_400
GRANTEE_MAX: Final = 255
PURPOSE: Final = "[a-z][a-z-]{1,63}"
_PURPOSE: Final = re.compile(PURPOSE)


def lacking(
    fields: Iterable[str], scopes: Collection[str], opened: Collection[str], *, own: bool
) -> dict[str, list[str]]:
    """What each field lacks to be shown; empty when all of them may be.

    Args:
        fields: that are asked for.
        scopes: of the token.
        opened: fields that live grants open to this caller for this purpose.
        own: the person asks for their own data.
    """
    if own:
        return {}
    found = {
        field: [
            *([] if READ[field] in scopes else ["scope"]),
            *([] if field in opened else ["grant"]),
        ]
        for field in fields
    }
    return {field: missing for field, missing in found.items() if missing}


def read_fields(given: Sequence[str], where: str) -> tuple[str, ...]:
    """Fields of a person, each once, in their own order.

    Raises:
        ProblemError: none, unknown ones, or one twice.
    """
    if not given or len(set(given)) != len(given) or not set(given) <= set(FIELDS):
        raise malformed(where, f"These are one or more of {', '.join(FIELDS)}, each once")
    return tuple(field for field in FIELDS if field in given)


def read_purpose(given: str, where: str) -> str:
    """A purpose: a word of small letters, so that nothing personal can be in it.

    Raises:
        ProblemError: it is not.
    """
    if not _PURPOSE.fullmatch(given):
        raise malformed(where, "A purpose has 2 to 64 small letters and hyphens")
    return given


def read_life(given: int) -> int:
    """Seconds that a grant lives.

    Raises:
        ProblemError: out of range.
    """
    if not 1 <= given <= GRANT_S_MAX:
        raise malformed("expires_in", f"A grant lives 1 to {GRANT_S_MAX} seconds")
    return given


def read_grantee(given: str) -> str:
    """Whom a grant is for: the `sub` of their tokens.

    Raises:
        ProblemError: it cannot be one.
    """
    return text(given, "grantee", GRANTEE_MAX)
