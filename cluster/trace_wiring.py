"""The trace's part of the composition root: its application, and what runs beside it."""

from __future__ import annotations

import asyncio
from importlib.metadata import version
from typing import Any, Final

import asyncpg

from actors.movements import Movements
from cluster.documents import open_documents
from cluster.farewell import Farewell
from cluster.plan import Plan
from deployments.auth.basic import BasicBackend
from deployments.identity_passwords import Passwords
from deployments.metrics import Figure
from deployments.serving import Application, Spec
from deployments.trace import create
from deployments.trace_answers import Answers
from deployments.trace_calls import Services
from deployments.trace_queries import LastQueries
from storage import trace_users, traces
from storage.documents import Database
from storage.feed import Feed
from storage.registry import Registry
from storage.trace_users import TraceUsers
from storage.traces import Traces, trace_key

COLLECTIONS: Final = (*traces.COLLECTIONS, *trace_users.COLLECTIONS)
_FEED_CONNECTIONS: Final = 3
REALM: Final = "trace"


def make_services(plan: Plan, database: Database) -> Services:
    """What the application stands on. `queries.run`, `backend.keep_looking` and `answers.keep_renewing` go with it."""
    settings = plan.settings
    store = Traces(database)
    queries = LastQueries(store)
    return Services(
        traces=store,
        backend=BasicBackend(TraceUsers(database), Passwords(threads=settings.password_threads), REALM),
        queries=queries,
        answers=Answers(store, queries),
        key=trace_key(plan.ledger_key),
        gateway_secret=plan.secrets.gateway_secret,
        deadline_s=settings.deadline_s,
        repeated_tax_ids=settings.repeated_tax_ids,
    )


async def trace_application(config: dict[str, Any]) -> Application:
    """The factory that a replica calls on its own loop. `config`: where the plan lies."""
    plan = await Plan.taken_up(config)
    database = await open_documents(plan.settings, plan.dsn, COLLECTIONS)
    services = make_services(plan, database)
    farewell = Farewell(plan.data.run)
    farewell.promise()
    writing = asyncio.create_task(services.queries.run(), name="last queries")
    beside = [
        asyncio.create_task(services.backend.keep_looking(), name="users"),
        asyncio.create_task(services.answers.keep_renewing(), name="answers"),
    ]

    async def finish() -> None:
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        try:
            await services.queries.stop()
        finally:
            farewell.finished()

    async def finish_when_asked() -> None:
        await farewell.asked()
        await finish()

    finishing = asyncio.create_task(finish_when_asked(), name="farewell")

    async def close() -> None:
        for task in (finishing, *beside):
            task.cancel()
        await asyncio.gather(finishing, *beside, return_exceptions=True)
        await finish()
        services.backend.close()
        await database.close()

    app, routes = create(services)
    return Application(app, close=close, figures=lambda: figures(services.queries), routes=routes)


async def trace_movements(plan: Plan) -> Movements:
    """What brings the trace the movements, for the process that projects."""
    pool = await asyncpg.create_pool(plan.dsn, min_size=0, max_size=_FEED_CONNECTIONS)
    database = await open_documents(plan.settings, plan.dsn, COLLECTIONS)
    return Movements(Feed(pool, plan.partitions), Registry(pool), database, trace_key(plan.ledger_key))


def figures(queries: LastQueries) -> list[Figure]:
    """What metrics show of the last queries, which are written behind."""
    return [
        Figure("razao_trace_queries_waiting", "People whose last query is not written yet.", queries.waiting),
        Figure("razao_trace_queries_dropped", "Last queries given up unwritten.", queries.dropped, counter=True),
    ]


def trace_spec(plan: Plan) -> Spec:
    """The trace application as it is deployed."""
    return Spec(
        name="trace",
        factory=trace_application,
        config=plan.handed_down(),
        port=plan.trace_port,
        route_prefix=None,
        version=version("razao"),
        replicas_min=1,
        replicas_max=plan.settings.trace_replicas_max,
        log_directory=str(plan.data.log),
        target_in_progress=16.0,  # a read takes a fraction of a millisecond: so many at once wait for a core
        max_in_progress=256,
        max_waiting=512,
    )
