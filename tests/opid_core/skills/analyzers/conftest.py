from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chat_server import KEY, Answer, ChatServer, chat_server
from tests.opid_core.skills.analyzers.asked import GOOD


@pytest.fixture
def server(monkeypatch) -> Iterator[ChatServer]:
    monkeypatch.setenv("TEST_LLM_KEY", KEY)
    with chat_server() as state:
        state.answers = [Answer(content=GOOD)]
        yield state
