"""One request on its way through the identity application: who asks, from where, by which browser."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Mapping
from hashlib import blake2b
from http.cookies import CookieError, SimpleCookie
from typing import Final

from starlette.types import Receive, Scope

from deployments.identity_services import Services
from deployments.problems import FORBIDDEN, ProblemError
from deployments.request import Header, Request, require
from storage.identity import By

BROWSER: Final = "razao-browser"
SESSION: Final = "razao-session"


class Call(Request):
    """One request."""

    __slots__ = ("services",)

    def __init__(self, services: Services, scope: Scope, receive: Receive, path: Mapping[str, str]) -> None:
        super().__init__(scope, receive, path)
        self.services = services

    @property
    def address(self) -> str:
        """The client's network address as the gateway saw it; of IPv6 the 64 bits that one customer gets."""
        given = super().address
        if ":" in given:
            return str(ipaddress.ip_network((given, 64), strict=False))
        return given

    def by(self, actor: str = "anonymous") -> By:
        """Who makes a change."""
        return By(actor, self.address, self.request_id)

    def person(self, scope: str) -> str:
        """The `sub` of whoever asks, if the token has the scope.

        Raises:
            ProblemError: no token, or it lacks the scope.
        """
        identity = self.identified()
        require(identity, scope)
        return identity.subject

    # -- browsers ---------------------------------------------------------------------------------------------------

    @property
    def _secure(self) -> bool:
        return self.headers.get(b"razao-client-scheme") == b"https"

    def cookie(self, name: str) -> str | None:
        """A cookie of ours."""
        try:
            cookies = SimpleCookie(self.headers.get(b"cookie", b"").decode("latin-1"))
        except CookieError:
            return None
        found = cookies.get(self._cookie_name(name))
        return None if found is None else found.value

    def set_cookie(self, name: str, value: str, life_s: int) -> Header:
        """A header that sets one: only for us, not for scripts, not with another site's requests."""
        parts = f"{self._cookie_name(name)}={value}; Path=/; Max-Age={life_s}; HttpOnly; SameSite=Lax"
        return (b"set-cookie", (parts + ("; Secure" if self._secure else "")).encode())

    def _cookie_name(self, name: str) -> str:
        return f"__Host-{name}" if self._secure else name  # the prefix is for cookies over TLS alone

    def refuse_other_sites(self) -> None:
        """Raises ProblemError for what another site's page made the browser send."""
        site = self.headers.get(b"sec-fetch-site")
        if site not in {None, b"same-origin", b"none"}:
            raise ProblemError(FORBIDDEN, "The form was sent by another site")
        origin, host = self.headers.get(b"origin"), self.headers.get(b"host", b"")
        if origin is not None and origin.partition(b"://")[2] != host:
            raise ProblemError(FORBIDDEN, "The form was sent by another site")

    def form_token(self, browser: str, session: str, step: str) -> str:
        """What a form of ours carries: bound to the browser, the login, the step, and the request that it answers."""
        parts = "\0".join((browser, session, step, self.scope["query_string"].decode("latin-1")))
        return blake2b(parts.encode(), digest_size=24, key=self.services.key, person=b"razao.form").hexdigest()

    def check_form_token(self, given: str, browser: str, session: str, step: str) -> None:
        """Raises ProblemError unless the form is the one that this browser was shown for this request."""
        expected = self.form_token(browser, session, step)
        if not browser or not hmac.compare_digest(given.encode(), expected.encode()):
            raise ProblemError(FORBIDDEN, "The form is not the one that this browser was shown; load the page again")
