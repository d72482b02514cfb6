"""The pages that a person sees: log in, consent, and what went wrong. No script, nothing from elsewhere, no frame."""

from __future__ import annotations

from base64 import b64encode
from hashlib import sha256
from html import escape
from typing import Final
from urllib.parse import urlsplit

from deployments.identity_roles import MEANING
from deployments.problems import PAGE_STYLE, html_page
from deployments.request import Answer, Header

_STYLE: Final = b64encode(sha256(PAGE_STYLE.encode()).digest()).decode()


def page(
    status: int, title: str, main: str, *, posts_to: str = "'self'", headers: list[Header] | None = None
) -> Answer:
    """A page with what keeps it to itself (CSP 3, RFC 9700, 4.16). `main` is HTML, `posts_to` where forms may lead."""
    policy = (
        f"default-src 'none'; style-src 'sha256-{_STYLE}'; form-action {posts_to}; frame-ancestors 'none'; "
        "base-uri 'none'"
    )
    return Answer(
        status,
        html_page(title, main),
        [
            (b"content-type", b"text/html; charset=utf-8"),
            (b"content-security-policy", policy.encode()),
            (b"x-frame-options", b"DENY"),
            (b"x-content-type-options", b"nosniff"),
            (b"referrer-policy", b"no-referrer"),
            (b"cross-origin-opener-policy", b"same-origin"),
            (b"cache-control", b"no-store"),
            *(headers or []),
        ],
    )


def error_page(status: int, message: str) -> Answer:
    """What went wrong where nobody may be sent on: the program that asked is not known, or its address is not its
    own."""
    return page(status, "This cannot go on", f"<h1>This cannot go on</h1><p>{escape(message)}</p>")


def login_page(status: int, action: str, token: str, client: str, *, wrong: str = "", headers: list[Header]) -> Answer:
    """Asks for username and password. `action`: the authorization request's own address."""
    complaint = f'<p role="alert"><b>{escape(wrong)}</b></p>' if wrong else ""
    return page(
        status,
        "Log in",
        f"<h1>Log in</h1><p><b>{escape(client)}</b> asks you to log in.</p>{complaint}"
        f'<form method="post" action="{escape(action)}">'
        f'<input type="hidden" name="step" value="login"><input type="hidden" name="token" value="{escape(token)}">'
        '<p><label>Username<br><input name="username" autocomplete="username" required maxlength="64"></label></p>'
        '<p><label>Password<br><input name="password" type="password" autocomplete="current-password" required '
        'maxlength="256"></label></p><p><button>Log in</button></p></form>',
        headers=headers,
    )


def consent_page(
    action: str, token: str, client: str, scopes: list[str], redirect_uri: str, person: str, *, headers: list[Header]
) -> Answer:
    """Asks whether a program may have what it asks for."""
    items = "".join(f"<li>{escape(MEANING.get(scope, scope))}" for scope in scopes)
    return page(
        200,
        "Allow access",
        f"<h1>Allow access?</h1><p>You are <b>{escape(person)}</b>. <b>{escape(client)}</b> wants to:</p>"
        f"<ul>{items}</ul>"
        f"<p>Afterwards you are sent to <code>{escape(origin(redirect_uri))}</code>.</p>"
        f'<form method="post" action="{escape(action)}">'
        f'<input type="hidden" name="step" value="consent"><input type="hidden" name="token" value="{escape(token)}">'
        '<p><button name="decision" value="allow">Allow</button> <button name="decision" value="deny">Do not allow'
        "</button></p></form>",
        # Browsers hold the redirect that follows a form to the same rule.
        posts_to=f"'self' {origin(redirect_uri)}",
        headers=headers,
    )


def origin(uri: str) -> str:
    """Scheme and host of an address of our clients'; of an app's own scheme, the scheme."""
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc}" if parts.scheme in {"http", "https"} else f"{parts.scheme}:"
