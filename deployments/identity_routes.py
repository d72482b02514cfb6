"""The table of the identity application's calls: what each takes, answers and may end with."""

from __future__ import annotations

from typing import Final

from deployments import identity_accounts as accounts
from deployments import identity_authorize as authorize
from deployments import identity_discovery as discovery
from deployments import identity_proofs as proofs
from deployments import identity_tokens as tokens
from deployments.identity_roles import PROVE, SELF
from deployments.identity_schema import (
    AccessKeyRequest,
    AccessKeys,
    Claims,
    LoginRequest,
    NewAccessKey,
    PasswordRequest,
    Proof,
    ProofRequest,
    ProofRevocation,
    Registered,
    RegisterRequest,
    Sessions,
    Tokens,
)
from deployments.openapi import Operation, Parameter
from deployments.problems import (
    FORBIDDEN,
    INVALID_TAX_ID,
    MALFORMED,
    PROOF_CONFLICT,
    TOO_LARGE,
    TOO_MANY_ATTEMPTS,
    TOO_MANY_KEYS,
    UNAUTHENTICATED,
    UNKNOWN_KEY,
    UNKNOWN_SESSION,
    UNKNOWN_USER,
    UNPROVEN,
    UNSUPPORTED_MEDIA_TYPE,
    USERNAME_TAKEN,
    WEAK_PASSWORD,
    WRONG_CREDENTIALS,
)

INTRODUCTION: Final = (
    "People and programs get their tokens here. A person registers and logs in, and has an ID token, an access token "
    "(a JWT by RFC 9068, some minutes) and a refresh token (for one use at `/oauth/token` with the client `razao`; a "
    "second use ends the login). The access token opens the ledger, or, when the login names another `audience`, the "
    "vault or the score: one token, one door. For these two, and for accounts under a tax id, an operator must have "
    "proven that the tax id is theirs: who registers only claims it. A program chooses the door by the scopes that it "
    "asks for; those for several doors at once are `invalid_scope`.\n\n"
    "Programs that act for people send them to `/oauth/authorize` with PKCE (S256) and a redirect URI that is "
    "registered character by character. Systems, and the access keys that people make, use client credentials. "
    "The calls under `/oauth` take forms and answer errors as their RFCs say (`error`, `error_description`); "
    "those under `/auth` are JSON with problems of the catalogue at `/problems`.\n\n"
    "Everything that OAuth 2.0 and OpenID Connect clients need to know is at `/.well-known/openid-configuration`."
)

_KEY: Final = Parameter("id", "path", "The access key's client id.", {"type": "string"})
_SESSION: Final = Parameter("id", "path", "Of the session.", {"type": "string"})
_CURSOR: Final = Parameter("cursor", "query", "`next_cursor` of the page before.", {"type": "string"})
_HTML: Final = ("text/html",)
_FORM_PROBLEMS: Final = (MALFORMED, UNAUTHENTICATED, UNSUPPORTED_MEDIA_TYPE, TOO_LARGE)
_FORM_IN: Final = (
    " Takes `application/x-www-form-urlencoded`; errors are JSON by RFC 6749, 5.2, with status 400 or 401."
)


def api_operations() -> tuple[Operation, ...]:
    """The calls of `/auth`, `/oauth` and `/.well-known`."""
    return (
        Operation(
            "POST", "/auth/register", "register", "Become somebody", "A person starts with `ledger:read ledger:write`. "
            "The tax id is kept as a keyed hash alone, and is a claim: what is somebody's own by it is theirs once an "
            "operator has proven it. Forbidden where `RAZAO_REGISTRATION` is `closed`, and where it is `invited` "
            "to whoever has no invitation.", accounts.register, request=RegisterRequest, response=Registered,
            status=201,
            problems=(MALFORMED, FORBIDDEN, USERNAME_TAKEN, WEAK_PASSWORD, INVALID_TAX_ID, TOO_MANY_ATTEMPTS),
        ),
        Operation(
            "POST", "/auth/login", "login", "Log in with a password",
            "For the vault and the score a person's tax id has to be proven.", accounts.login, request=LoginRequest,
            response=Tokens, problems=(MALFORMED, WRONG_CREDENTIALS, FORBIDDEN, UNPROVEN, TOO_MANY_ATTEMPTS),
        ),
        Operation(
            "POST", "/auth/proofs", "proveTaxId", "Say that a tax id is somebody's",
            "For operators, once they have made sure of it. Of all who claim a tax id one can have it proven. The "
            "person's next tokens speak for it.", proofs.prove, scope=PROVE, request=ProofRequest, response=Proof,
            problems=(UNKNOWN_USER, INVALID_TAX_ID, PROOF_CONFLICT),
        ),
        Operation(
            "POST", "/auth/proofs/revocations", "revokeProof", "Take a proof back",
            "For operators. Access tokens that speak for the tax id stop, and no new ones are given.", proofs.revoke,
            scope=PROVE, request=ProofRevocation, response=Proof, problems=(UNKNOWN_USER,),
        ),
        Operation(
            "POST", "/auth/logout", "logout", "End the login that the token came of",
            "Its refresh token and its access tokens stop, and with it ends the session at the login page that it came "
            "by, and the one of the browser that asks.", accounts.logout, scope="any", status=204,
        ),
        Operation(
            "GET", "/auth/sessions", "listSessions", "What one is logged in by",
            "Logins by password, programs that were let in, sessions at the login page; the newest first, "
            f"{accounts.SESSIONS_PAGE} to a page.",
            accounts.list_sessions, scope=SELF, response=Sessions, parameters=(_CURSOR,),
        ),
        Operation(
            "DELETE", "/auth/sessions/{id}", "endSession", "End one of them",
            "As a logout there would: its tokens stop.", accounts.end_session, scope=SELF, status=204,
            parameters=(_SESSION,), problems=(UNKNOWN_SESSION,),
        ),
        Operation(
            "POST", "/auth/password", "changePassword", "Change the password", "Ends every login, this one too, what "
            "programs were let in by, and every access key unless `revoke_access_keys` is false.",
            accounts.change_password, scope=SELF, request=PasswordRequest, status=204,
            problems=(WRONG_CREDENTIALS, WEAK_PASSWORD, TOO_MANY_ATTEMPTS),
        ),
        Operation(
            "POST", "/auth/access-keys", "makeAccessKey", "Make an access key",
            "An OAuth client for client credentials that acts for its maker, with no more than the maker may. The "
            "secret is shown this once.", accounts.make_key, scope=SELF, request=AccessKeyRequest,
            response=NewAccessKey, status=201, problems=(TOO_MANY_KEYS,),
        ),
        Operation(
            "GET", "/auth/access-keys", "listAccessKeys", "One's access keys", "", accounts.list_keys, scope=SELF,
            response=AccessKeys,
        ),
        Operation(
            "DELETE", "/auth/access-keys/{id}", "deleteAccessKey", "End an access key",
            "Its tokens stop too.", accounts.delete_key, scope=SELF, status=204, parameters=(_KEY,),
            problems=(UNKNOWN_KEY,),
        ),
        Operation(
            "GET", "/oauth/authorize", "authorize", "Ask a person for access (RFC 6749, 4.1)",
            "For browsers: log in, consent, and back to the redirect URI with a code. PKCE with S256 is needed.",
            authorize.authorize, status=200, media_types=_HTML, problems=(MALFORMED,), reads_query=True,
        ),
        Operation(
            "POST", "/oauth/authorize", "decide", "The forms of that page", "", authorize.decide, media_types=_HTML,
            problems=(*_FORM_PROBLEMS, FORBIDDEN, TOO_MANY_ATTEMPTS), reads_query=True,
        ),
        Operation(
            "POST", "/oauth/token", "token", "Get tokens (RFC 6749, 3.2)",
            "`authorization_code`, `refresh_token`, `client_credentials`." + _FORM_IN, tokens.token,
            problems=_FORM_PROBLEMS, reads_query=True,
        ),
        Operation(
            "POST", "/oauth/revoke", "revoke", "Revoke a token (RFC 7009)", "Of a refresh token the whole login ends."
            + _FORM_IN, tokens.revoke, problems=_FORM_PROBLEMS, reads_query=True,
        ),
        Operation(
            "POST", "/oauth/introspect", "introspect", "Ask what a token is worth (RFC 7662)",
            "A client's own tokens, or any with `identity:introspect`." + _FORM_IN, tokens.introspect,
            problems=_FORM_PROBLEMS, reads_query=True,
        ),
        Operation("GET", "/oauth/jwks", "jwks", "The keys that tokens are signed with (RFC 7517)", "",
                  discovery.get_keys),
        Operation("GET", "/oauth/userinfo", "userinfo", "Whom the token speaks for", "", discovery.get_userinfo,
                  scope="openid", response=Claims),
        Operation("POST", "/oauth/userinfo", "postUserinfo", "Whom the token speaks for", "", discovery.get_userinfo,
                  scope="openid", response=Claims),
        Operation("GET", "/.well-known/openid-configuration", "openidConfiguration",
                  "Metadata (OpenID Connect Discovery)", "", discovery.get_metadata),
        Operation("GET", "/.well-known/oauth-authorization-server", "authorizationServer", "Metadata (RFC 8414)", "",
                  discovery.get_metadata),
    )  # fmt: skip
