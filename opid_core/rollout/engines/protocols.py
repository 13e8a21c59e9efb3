"""What the episode loop asks of an inference engine, on tokens or on texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


class TokenCompletion(Protocol):
    """A finished response; `log_probs` are the sampled tokens' at temperature 1 over the full vocabulary."""

    @property
    def request_id(self) -> str: ...

    @property
    def token_ids(self) -> list[int]: ...

    @property
    def log_probs(self) -> list[float]: ...


class TokenEngine(Protocol):
    """An inference engine that works on the loop's tokens; what is trained on comes from one."""

    @property
    def tokens_generated(self) -> int: ...

    def submit(
        self, request_id: str, prompt_ids: Sequence[int], *, max_tokens: int, temperature: float, seed: int
    ) -> None: ...

    def step(self) -> Sequence[TokenCompletion]: ...


@dataclass(frozen=True)
class TextCompletion:
    """A finished response of a `TextEngine`, and how many tokens it took."""

    request_id: str
    text: str
    tokens: int


@runtime_checkable
class TextEngine(Protocol):
    """An engine with template and tokenizer on its own side, such as an endpoint: a user message in, text out."""

    def submit_text(self, request_id: str, message: str, *, max_tokens: int, temperature: float, seed: int) -> None: ...

    def step(self) -> Sequence[TextCompletion]: ...


@runtime_checkable
class WorksAhead(Protocol):
    """An engine that can sample while its caller does something else."""

    def begin(self) -> None:
        """Sample one more token for all that runs, without waiting for it: the next `step` returns what ended with it,
        if anything. Does nothing where nothing runs or this was begun before."""
        ...


@runtime_checkable
class DealsGroups(Protocol):
    """Several engines behind the interface of one."""

    def deal(self, groups: Sequence[tuple[str, str]]) -> None:
        """Choose the engines of the requests to come: each request's id with the id of its group."""
        ...


Engine = TokenEngine | TextEngine
"""What plays the episodes."""
