"""Bodies of the identity application's JSON calls; OAuth's own calls take forms, as their RFCs say."""

from __future__ import annotations

from typing import Annotated

from msgspec import UNSET, Meta, Struct, UnsetType

NAME_MAX = 100
USERNAME_MAX = 64
SCOPES_MAX = 16


class RegisterRequest(Struct, forbid_unknown_fields=True):
    """Somebody new."""

    username: Annotated[str, Meta(description="1 to 64 characters; case does not count.", examples=["ana.souza"])]
    password: Annotated[str, Meta(description="15 to 256 characters.", examples=["um cavalo correto na pilha"])]
    name: Annotated[str, Meta(description="1 to 100 characters.", examples=["Ana Souza"])]
    tax_id: Annotated[
        str,
        Meta(
            description="CPF or CNPJ, a claim until an operator has proven it. Kept as a keyed hash alone.",
            examples=["529.982.247-25"],
        ),
    ]
    invitation: Annotated[
        str | UnsetType,
        Meta(description="An operator's, where `RAZAO_REGISTRATION` is `invited`; good for one person."),
    ] = UNSET


class Registered(Struct):
    """Who it is from now on."""

    sub: Annotated[str, Meta(description="The `sub` of all tokens.")]


class LoginRequest(Struct, forbid_unknown_fields=True):
    """Somebody known."""

    username: Annotated[str, Meta(examples=["ana.souza"])]
    password: Annotated[str, Meta(examples=["um cavalo correto na pilha"])]
    audience: Annotated[
        str | UnsetType,
        Meta(description="Whom the access token is for: payments (when left out), vault or score.", examples=["score"]),
    ] = UNSET


class Tokens(Struct):
    """What a login gives."""

    id_token: Annotated[str, Meta(description="Who has logged in (OpenID Connect); opens nothing.")]
    access_token: Annotated[str, Meta(description="A JWT by RFC 9068; for `Authorization: Bearer`.")]
    refresh_token: Annotated[str, Meta(description="Good for one use at `/oauth/token`, with client_id `razao`.")]
    token_type: Annotated[str, Meta(examples=["Bearer"])]
    expires_in: Annotated[int, Meta(description="Seconds that the access token lives.", examples=[600])]
    scope: Annotated[str, Meta(examples=["identity:self ledger:read ledger:write openid profile"])]


class ProofRequest(Struct, forbid_unknown_fields=True):
    """Somebody has shown that a tax id is theirs."""

    username: Annotated[str, Meta(examples=["ana.souza"])]
    tax_id: Annotated[
        str, Meta(description="The one seen; it must be the one that they have claimed.", examples=["529.982.247-25"])
    ]
    method: Annotated[
        str, Meta(description="By what; small letters and hyphens, for the audit table.", examples=["identity-card"])
    ]


class ProofRevocation(Struct, forbid_unknown_fields=True):
    """A proof that is none any more."""

    username: Annotated[str, Meta(examples=["ana.souza"])]
    reason: Annotated[
        str, Meta(description="Why; small letters and hyphens, for the audit table.", examples=["forged-document"])
    ]


class Proof(Struct):
    """How it stands with somebody."""

    sub: str
    username: str
    proven: Annotated[bool, Meta(description="Whether the tax id that they claim is proven to be theirs.")]


class PasswordRequest(Struct, forbid_unknown_fields=True):
    """A new password."""

    current_password: str
    new_password: Annotated[str, Meta(description="15 to 256 characters.")]
    revoke_access_keys: Annotated[
        bool | UnsetType, Meta(description="Whether one's access keys end as well; true when left out.")
    ] = UNSET


class AccessKeyRequest(Struct, forbid_unknown_fields=True):
    """An access key to make."""

    name: Annotated[str, Meta(description="1 to 100 characters.", examples=["billing"])]
    scopes: Annotated[list[str], Meta(description="No more than the maker may pass on.", examples=[["ledger:read"]])]
    expires_in: Annotated[
        int | UnsetType, Meta(description="Seconds that it lives, at most a year; a year when left out.")
    ] = UNSET


class AccessKey(Struct):
    """An access key as its maker sees it."""

    client_id: str
    name: str
    scopes: list[str]
    created_at: str
    expires_at: str | None
    last_used_at: Annotated[str | None, Meta(description="To the minute.")]


class NewAccessKey(Struct):
    """An access key with its secret, which is shown this once."""

    client_id: str
    client_secret: str
    name: str
    scopes: list[str]
    created_at: str
    expires_at: str | None


class AccessKeys(Struct):
    """A person's access keys, the newest first."""

    items: list[AccessKey]
    next_cursor: None


class Session(Struct):
    """Something that somebody is logged in by. No secret is in it."""

    id: str
    client_id: Annotated[str | None, Meta(description="The program; `razao`: by password; null: the login page.")]
    client_name: str | None
    scope: str | None
    logged_in_at: str
    last_used_at: Annotated[str | None, Meta(description="When it last got new tokens; null when it never did.")]
    expires_at: str
    current: Annotated[bool, Meta(description="Whether the token that asks belongs to it.")]


class Sessions(Struct):
    """What somebody is logged in by, the newest first."""

    items: list[Session]
    next_cursor: str | None


class Claims(Struct):
    """Of the person whom the token speaks for."""

    sub: str
    name: str | UnsetType = UNSET
    preferred_username: str | UnsetType = UNSET
