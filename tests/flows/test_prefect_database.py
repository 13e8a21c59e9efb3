"""Old rows of a Prefect database that a server of ours keeps."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from prefect.server.database import PrefectDBInterface
from prefect.server.database.configurations import AioSqliteConfiguration
from prefect.server.database.orm_models import AioSqliteORMConfiguration, Base
from prefect.server.database.query_components import AioSqliteQueryComponents
from prefect.server.schemas.states import StateType
from sqlalchemy.schema import CreateTable

from flows import prefect_database
from flows.prefect_database import forget

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


def at(minute: int) -> Any:
    return BEGAN + timedelta(minutes=minute)


async def fill(db: PrefectDBInterface) -> None:
    """Seven lines of log, and six task runs of a run that goes on, of which one has not ended."""
    async with (await db.engine()).begin() as connection:
        for table in Base.metadata.sorted_tables:  # bare: some of Prefect's indexes are declared twice
            await connection.execute(CreateTable(table))
    async with db.session_context(begin_transaction=True) as session:
        session.add_all(db.Log(name="n", level=20, message=str(n), timestamp=at(n)) for n in range(7))
        flow = db.Flow(name="campaign")
        session.add(flow)
        await session.flush()
        run = db.FlowRun(flow_id=flow.id, state_type=StateType.RUNNING)
        session.add(run)
        await session.flush()
        for n in range(6):
            state, end = (StateType.COMPLETED, at(n)) if n else (StateType.RUNNING, None)
            key = {"task_key": "commit", "dynamic_key": str(n), "name": str(n)}
            session.add(db.TaskRun(flow_run_id=run.id, state_type=state, end_time=end, **key))


async def names(db: PrefectDBInterface, column: Any) -> list[str]:
    async with db.session_context() as session:
        return sorted(await session.scalars(sa.select(column)))


@pytest.mark.parametrize("at_once", [1, 2, 500])
def test_the_newest_rows_stay_and_so_does_what_has_not_ended(tmp_path, monkeypatch, at_once):
    monkeypatch.setattr(prefect_database, "AT_ONCE", at_once)

    async def drill() -> None:
        db = PrefectDBInterface(
            database_config=AioSqliteConfiguration(f"sqlite+aiosqlite:///{tmp_path}/prefect.db"),
            query_components=AioSqliteQueryComponents(),
            orm=AioSqliteORMConfiguration(),
        )
        await fill(db)
        assert await forget(db, "Log", 7) == 0
        assert await forget(db, "Log", 3) == 4
        assert await names(db, db.Log.message) == ["4", "5", "6"]
        assert await forget(db, "TaskRun", 2) == 3
        assert await names(db, db.TaskRun.name) == ["0", "4", "5"]
        assert await forget(db, "FlowRun", 0) == 0
        await (await db.engine()).dispose()

    asyncio.run(drill())
