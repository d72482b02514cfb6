"""Lets only requests from known networks in, by the source address that the gateway saw.

The gateway has decided by the same list already; this is the second lock on the same door. It stands behind the
gateway's secret, since only the gateway may say where a request came from: what clients claim (`X-Forwarded-For`,
`Forwarded`) is looked at by nobody, and a request without an address is from nowhere.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Sequence

from starlette.types import ASGIApp, Receive, Scope, Send

from deployments.problems import FORBIDDEN, ProblemError


class NetworkMiddleware:
    """Refuses with 403 whoever is in none of `networks` (CIDR). `exempt`: paths that tell nothing, such as health."""

    def __init__(self, app: ASGIApp, networks: Sequence[str], *, exempt: Collection[str] = ()) -> None:
        self._app = app
        self._networks = [ipaddress.ip_network(network) for network in networks]
        self._exempt = frozenset(exempt)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "http" and scope["path"] not in self._exempt:
            given = scope["razao.headers"].get(b"razao-client-address", b"").decode("latin-1")
            if not self._lets_in(given):
                raise ProblemError(FORBIDDEN, "This address is not let in here")
        await self._app(scope, receive, send)

    def _lets_in(self, given: str) -> bool:
        try:
            address = ipaddress.ip_address(given)
        except ValueError:
            return False
        if isinstance(address, ipaddress.IPv6Address):
            if address.scope_id is not None:
                return False
            address = address.ipv4_mapped or address
        return any(address in network for network in self._networks)
