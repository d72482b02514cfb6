"""What the identity service costs: logins a second, what a storm of them does to transfers, tokens verified a second.

    python -m loadtests.bench_identity [--seconds 10]

Transfers are measured alone and under the storm in turns (A B A B …): a shared machine swings from minute to minute.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import multiprocessing
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Final

import httpx
import typer

from deployments.auth.issuers import Issuers
from deployments.auth.tokens import KeyFile, TokenVerifier
from loadtests import traffic
from loadtests.generator import Report, merge, run
from loadtests.stacks import Engine, engine

PASSWORD: Final = "um cavalo correto na pilha"
CLIENTS: Final = 16
STORM: Final = 8
RATES: Final = (250, 500)
"""Transfers a second below what two cores can do, where a storm finds room that is not a transfer's."""
TOKENS: Final = 2000


def join(stack: Engine, count: int) -> list[str]:
    """Register so many people; returns their usernames."""
    names = [f"bench{number}" for number in range(count)]
    with httpx.Client(base_url=f"http://{stack.host}", timeout=30, trust_env=False) as client:
        for name in names:
            body = {"username": name, "password": PASSWORD, "name": "Bench", "tax_id": "529.982.247-25"}
            client.post("/auth/register", json=body).raise_for_status()
    return names


def storm(host: str, names: list[str], stop: Any, took: Any) -> None:
    """Logins from several clients at once, as fast as they are answered; a process of its own, beside the generator."""
    found: list[tuple[int, float]] = []

    def one(name: str) -> None:
        connection = http.client.HTTPConnection(host, timeout=30)
        body = json.dumps({"username": name, "password": PASSWORD})
        while not stop.is_set():
            began = time.perf_counter()
            connection.request("POST", "/auth/login", body, {"content-type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            found.append((answer.status, time.perf_counter() - began))

    threads = [threading.Thread(target=one, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took.put(found)


@contextmanager
def blowing(stack: Engine, names: list[str]) -> Iterator[list[tuple[int, float]]]:
    """A storm for as long as the block runs; afterwards the list has statuses and seconds."""
    context = multiprocessing.get_context("spawn")
    stop, took = context.Event(), context.Queue()
    process = context.Process(target=storm, args=(stack.host, names, stop, took))
    process.start()
    found: list[tuple[int, float]] = []
    try:
        yield found
    finally:
        stop.set()
        found.extend(took.get(timeout=60))
        process.join()


def login_rates(stack: Engine, *, rounds: int, seconds: float) -> dict[str, Any]:
    """Logins a second alone, and transfers with and without them."""
    accounts = stack.open_accounts(200, seed=7)
    names = join(stack, STORM)
    with blowing(stack, names) as alone:
        time.sleep(seconds)
    statuses = [status for status, _ in alone]
    took = sorted(seconds for _, seconds in alone)
    source = traffic.transfers(stack.host, stack.token, traffic.random_pairs(accounts, seed=1))
    quiet, under, logins = _beside_a_storm(stack, source, names, rounds, seconds)
    statuses += logins
    at_rates = {}
    for rate in RATES:
        quiet_at, under_at, logins_at = _beside_a_storm(stack, source, names, rounds, seconds, rate)
        at_rates[f"at_{rate}_a_second"] = {
            "transfers": quiet_at,
            "under_storm": under_at,
            "logins_s": round(len(logins_at) / (rounds * seconds), 1),
        }
    return {
        "logins_s": round(STORM / (sum(took) / len(took)), 1),
        "logins_beside_transfers_s": round(len(logins) / (rounds * seconds), 1),
        "login_p50_ms": round(took[len(took) // 2] * 1000, 1),
        "login_p99_ms": round(took[int(len(took) * 0.99)] * 1000, 1),
        "login_failures": sum(status != 200 for status in statuses),
        "transfers": quiet,
        "transfers_under_storm": under,
        **at_rates,
    }


def _beside_a_storm(
    stack: Engine, source: Iterator[bytes], names: list[str], rounds: int, seconds: float, rate: float | None = None
) -> tuple[dict[str, Any], dict[str, Any], list[int]]:
    """Transfers without and with the storm, in turns, and its logins' statuses. `rate`: leaves the machine room."""
    quiet: list[Report] = []
    under: list[Report] = []
    statuses: list[int] = []
    for _ in range(rounds):
        quiet.append(_transfers(stack, source, seconds, rate))
        with blowing(stack, names) as beside:
            under.append(_transfers(stack, source, seconds, rate))
        statuses += [status for status, _ in beside]
    return _shown(merge(quiet)), _shown(merge(under)), statuses


def _transfers(stack: Engine, source: Iterator[bytes], seconds: float, rate: float | None = None) -> Report:
    return asyncio.run(run(source, host="127.0.0.1", port=stack.port, connections=CLIENTS, seconds=seconds, rate=rate))


def _shown(report: Report) -> dict[str, Any]:
    return {
        "a_second": round(report.rate),
        "p50_ms": round(report.percentile_ms(50), 1),
        "p99_ms": round(report.percentile_ms(99), 1),
        "failed": report.failures,
    }


def verification_rates(stack: Engine) -> dict[str, Any]:
    """Tokens verified a second by one process: each for the first time, and again."""
    with httpx.Client(base_url=f"http://{stack.host}", timeout=30, trust_env=False) as client:
        jwks = client.get("/oauth/jwks").content
        key = client.post("/auth/login", json={"username": "bench0", "password": PASSWORD}).json()
        headers = {"authorization": f"Bearer {key['access_token']}"}
        made = client.post(
            "/auth/access-keys", json={"name": "bench", "scopes": ["ledger:read"]}, headers=headers
        ).json()
        auth, form = (made["client_id"], made["client_secret"]), {"grant_type": "client_credentials"}
        began = time.perf_counter()
        tokens = [
            client.post("/oauth/token", data=form, auth=auth).json()["access_token"].encode() for _ in range(TOKENS)
        ]
        issued_s = time.perf_counter() - began
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "jwks.json")
        file.write_bytes(jwks)
        issuer = f"http://{stack.host}"
        verifier = Issuers({issuer: TokenVerifier(KeyFile(file), issuer=issuer)})
        cold_s = asyncio.run(_verify(verifier, tokens))
        began = time.perf_counter()
        for _ in range(10):
            for token in tokens:
                verifier.remembered(token)
        cached_s = (time.perf_counter() - began) / 10
    return {
        "tokens_issued_one_client_s": round(TOKENS / issued_s),
        "verified_cold_s": round(TOKENS / cold_s),
        "verified_cached_s": round(TOKENS / cached_s),
    }


async def _verify(verifier: Issuers, tokens: list[bytes]) -> float:
    await verifier.verify(tokens[0])  # the key set is fetched
    began = time.perf_counter()
    for token in tokens:
        await verifier.verify(token)
    return time.perf_counter() - began


def main(
    seconds: Annotated[float, typer.Option(help="Of each round.")] = 8.0,
    rounds: Annotated[int, typer.Option(help="Of transfers, with and without the storm.")] = 3,
) -> None:
    """Measure, and print JSON."""
    with tempfile.TemporaryDirectory(prefix="rz-") as directory, engine(Path(directory) / "var", shards=2) as stack:
        found = {**login_rates(stack, rounds=rounds, seconds=seconds), **verification_rates(stack)}
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    typer.run(main)
