"""What our Prefect servers keep in their database: the newest rows of the tables that grow with every task.

Prefect's own vacuum goes by age (events: a week, finished top-level runs: an hour or more) and leaves alone what a run
that still goes on has written, which is all of a long campaign. Nothing of value is in that database.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from docket import Perpetual
from prefect.server.database import PrefectDBInterface, provide_database_interface
from prefect.server.schemas.states import TERMINAL_STATES
from prefect.server.services.perpetual_services import perpetual_service

KEPT_ROWS = {"EventResource": 20_000, "Event": 5_000, "Log": 20_000, "TaskRun": 5_000, "FlowRun": 1_000}
"""Newest rows that stay. Some 90 MB, the last 500 iterations with their logs; an iteration writes 60 events with 230
resources, 30 lines of log and 10 task runs."""
EVERY = timedelta(minutes=2)
AT_ONCE = 500
"""Rows that one transaction deletes: SQLite has one writer, and campaigns wait for it."""


@perpetual_service(enabled_getter=lambda: True, run_in_ephemeral=True)
async def forget_old_rows(perpetual: Perpetual = Perpetual(automatic=True, every=EVERY)) -> None:  # noqa: B008 - docket
    """Delete all but the newest rows of the tables of `KEPT_ROWS`; runs that have not ended stay, however old."""
    db = provide_database_interface()
    for table, kept in KEPT_ROWS.items():
        await forget(db, table, kept)


async def forget(db: PrefectDBInterface, table: str, kept: int) -> int:
    """Delete all but the `kept` newest rows of one table; how many there were. What belongs to a run goes with it but
    for its logs, which are rows of a table of their own."""
    model: Any = getattr(db, table)
    when, condition = _order(model, table)
    newest = sa.select(when).where(condition).order_by(when.desc()).limit(1).offset(kept)
    deleted = 0
    while True:
        async with db.session_context(begin_transaction=True) as session:
            last = await session.scalar(newest)
            if last is None:
                return deleted
            due = sa.select(model.id).where(condition, when <= last).order_by(when).limit(AT_ONCE)
            result: Any = await session.execute(sa.delete(model).where(model.id.in_(due.scalar_subquery())))
            deleted += result.rowcount


def _order(model: Any, table: str) -> tuple[Any, Any]:
    """The column by which rows of a table are old, and which rows may go."""
    if table in ("TaskRun", "FlowRun"):
        return model.end_time, sa.and_(model.state_type.in_(TERMINAL_STATES), model.end_time.is_not(None))
    return (model.timestamp if table == "Log" else model.occurred), sa.true()
