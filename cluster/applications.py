"""The Serve applications of an engine: which of them run, and whether they can answer."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final, NamedTuple

import httpx

from cluster.plan import Plan

if TYPE_CHECKING:
    from deployments.serving import Spec


def specs(plan: Plan) -> list[Spec]:
    """What is deployed, as far as the settings want it."""
    # They read the environment when imported, which `RayNode.join` has set.
    from cluster.identity_wiring import identity_spec  # noqa: PLC0415
    from cluster.wiring import payments_spec  # noqa: PLC0415

    tiers = [_tier_spec(tier) for tier in plan.settings.active_tiers if find_spec(f"cluster.{tier}_wiring")]
    return [make(plan) for make in (payments_spec, identity_spec, *tiers)]


def _tier_spec(tier: str) -> Callable[[Plan], Spec]:
    found: Callable[[Plan], Spec] = getattr(import_module(f"cluster.{tier}_wiring"), f"{tier}_spec")
    return found


class Check(NamedTuple):
    """Where an application says whether it can answer."""

    application: str
    url: str
    headers: Mapping[str, str]


def checks(plan: Plan) -> list[Check]:
    """One for each application, at the public door.

    The vault is asked behind its own, which opens for those networks and certificates alone that an operator named.
    """
    paths = {"payments": "/healthz", "identity": "/auth/healthz"}
    paths |= {tier: f"/{tier}/v1/healthz" for tier in plan.settings.active_tiers if find_spec(f"cluster.{tier}_wiring")}
    found = [Check(name, plan.gateway_url + path, {}) for name, path in paths.items() if name != "vault"]
    if "vault" in paths:
        somebody = ipaddress.ip_network(plan.settings.vault_networks[0]).network_address
        headers = {"Razao-Gateway": plan.secrets.gateway_secret, "Razao-Client-Address": str(somebody)}
        found.append(Check("vault", f"http://127.0.0.1:{plan.vault_port}{paths['vault']}", headers))
    return found


async def trouble(client: httpx.AsyncClient, check: Check) -> str | None:
    """Why an application cannot answer now; None when it can."""
    try:
        answer = await client.get(check.url, headers=dict(check.headers))
    except httpx.HTTPError as error:
        return f"{check.application}: {error!r}"
    return None if answer.status_code == httpx.codes.OK else f"{check.application}: {answer.text}"


_AGAIN_S: Final = 0.05


async def await_ready(plan: Plan, timeout_s: float) -> str | None:
    """Return when every application can answer, or, after `timeout_s`, what is in the way."""
    why = None
    try:
        async with asyncio.timeout(timeout_s), httpx.AsyncClient(timeout=5, trust_env=False) as client:
            for check in checks(plan):
                while (why := await trouble(client, check)) is not None:  # noqa: ASYNC110 - others make it so
                    await asyncio.sleep(_AGAIN_S)
    except TimeoutError:
        return why or "no answer"
    return None
