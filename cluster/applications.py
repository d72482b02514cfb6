"""The Serve applications of an engine: which of them run, and whether they can answer."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

import httpx

from cluster.plan import Plan

if TYPE_CHECKING:
    from deployments.serving import Spec


def specs(plan: Plan) -> list[Spec]:
    """What is deployed, as far as the settings want it."""
    # These read the environment when imported, which `RayNode.join` has set.
    from cluster.identity_wiring import identity_spec  # noqa: PLC0415
    from cluster.score_wiring import score_spec  # noqa: PLC0415
    from cluster.trace_wiring import trace_spec  # noqa: PLC0415
    from cluster.vault_wiring import vault_spec  # noqa: PLC0415
    from cluster.wiring import payments_spec  # noqa: PLC0415

    tiers = {"vault": vault_spec, "score": score_spec, "trace": trace_spec}
    return [make(plan) for make in (payments_spec, identity_spec, *(tiers[one] for one in plan.settings.active_tiers))]


class Check(NamedTuple):
    """Where an application says whether it can answer."""

    application: str
    url: str
    headers: Mapping[str, str]


def checks(plan: Plan) -> list[Check]:
    """One for each application, at the public door.

    The vault is asked behind its own, which opens for those networks and certificates alone that an operator named.
    """
    gateway, settings = plan.gateway_url, plan.settings
    found = [Check("payments", f"{gateway}/healthz", {}), Check("identity", f"{gateway}/auth/healthz", {})]
    found += [Check(tier, f"{gateway}/{tier}/v1/healthz", {}) for tier in settings.active_tiers if tier != "vault"]
    if "vault" in settings.active_tiers:
        url = f"http://127.0.0.1:{plan.vault_port}/vault/v1/healthz"
        found.append(Check("vault", url, {"Razao-Gateway": plan.secrets.gateway_secret}))
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
