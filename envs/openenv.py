"""An environment behind a server of OpenEnv, as an environment of a campaign.

An adapter of one file. It speaks the server's own protocol, a WebSocket session for each episode (`/ws`), and needs no
package of OpenEnv. What the server says is data, in no more than `max_reply_bytes` a message.
"""

from __future__ import annotations

import asyncio
import functools
import json
import math
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import Field, field_validator
from tenacity import AsyncRetrying, retry_if_exception_type, wait_exponential

from envs.base import ActionWords, StepResult, Task, in_background, register
from envs.seeded_world import NOT_OFFERED, ROLE, SeededOptions, SeededWorld, seeded_prompt_parts
from opid_core import proxies
from opid_core.errors import ConfigError, DataError, EnvironmentFault, InfrastructureError
from opid_core.reading import parse_json

FULL = "CAPACITY_REACHED"
"""The server's code for a session too many."""


class OpenEnvOptions(SeededOptions):
    """Which server, and how its observations and actions are told."""

    url: Annotated[str, Field(pattern=r"^(https?|wss?)://[^/\s]")]
    """The server's address, `http://HOST:PORT` or with a path to it; `/ws` is added."""
    task: str = "reach the goal"
    """The prompt's task line, where `task_field` names none."""
    task_field: str | None = None
    """The field of the first observation that states the task."""
    observation_field: str | None = None
    """The field of an observation that is seen, a text; `null`: the whole observation as JSON."""
    action_field: str = "message"
    """The field of an action that takes what the policy wrote, where there are no `actions`."""
    actions: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """By name the fields of each action, `{left: {direction: 0}}`; empty: any text, in `action_field`."""
    success: Annotated[str, Field(pattern=r"^(reward|return|done|observation\..+)$")] = "reward"
    """What decides about a win after each step: the step's reward, the sum of all rewards, the end itself, or
    `observation.FIELD` (a number or a truth value)."""
    success_from: float = 1.0
    """From this value of reward, return or field on the episode is won."""
    timeout_s: float = Field(default=60.0, gt=0)
    """The limit on each answer of the server."""
    wait_s: float = Field(default=600.0, ge=0)
    """So long an episode waits for a session where the server has no more of them."""
    max_reply_bytes: int = Field(default=1_048_576, ge=1024)
    """A longer message of the server is refused."""

    @field_validator("url")
    @classmethod
    def _host(cls, url: str) -> str:
        if not urlsplit(url).hostname or "@" in urlsplit(url).netloc:
            raise ValueError("must name a host, and no credentials")
        return url.rstrip("/")


class OpenEnvEnvironment(SeededWorld):
    """One running episode in a session of its own; its task is the seed of the reset. Raises ConfigError for a proxy
    that cannot be used."""

    prompt_parts = staticmethod(functools.partial(seeded_prompt_parts, ROLE))
    options: OpenEnvOptions
    action_words = ActionWords(failed_observations=(NOT_OFFERED,))
    task_type = "openenv"

    def __init__(self, options: OpenEnvOptions) -> None:
        proxies.check(options.url.replace("ws", "http", 1) if options.url.startswith("ws") else options.url)
        self.options = options
        self.admissible_actions: Sequence[str] = tuple(options.actions)
        self.task_text = ""
        self._end = weakref.finalize(self, lambda: None)

    async def reset(self, task: Task) -> str:
        """Start the episode of the task's seed in a new session. Raises InfrastructureError where the server cannot be
        reached or has no session in time, EnvironmentFault where its environment fails."""
        self._end()
        self._session = ServerSession(self.options)
        # There is no call when an episode ends: its session ends with this object, or with the next reset.
        self._end = weakref.finalize(self, _end, self._session)
        self._end.atexit = False  # the server sees that the process is gone
        self._return = 0.0
        observation, _, _ = await self._session.start(task.payload)
        stated = _text(observation, self.options.task_field) if self.options.task_field else self.options.task
        self.task_text = f"Your task is to: {stated}"
        return _text(observation, self.options.observation_field)

    async def step(self, action: str) -> StepResult:
        """Do `action`. Raises ConfigError for an action that the server cannot read, and what `reset` raises."""
        fields = self.options.actions.get(action) if self.options.actions else {self.options.action_field: action}
        if fields is None:
            return StepResult(NOT_OFFERED, reward=0.0, done=False, won=False)
        observation, reward, done = await self._session.ask("step", fields)
        self._return += reward
        won = self._won(observation, reward, done)
        if won or done:
            self._end()
        return StepResult(_text(observation, self.options.observation_field), float(won), done or won, won)

    def _won(self, observation: Mapping[str, Any], reward: float, done: bool) -> bool:
        rule = self.options.success
        if rule == "done":
            return done
        field = rule.removeprefix("observation.")
        value = observation.get(field)  # absent or null while there is nothing to say
        reached = {"reward": reward, "return": self._return}.get(rule, 0.0 if value is None else value)
        if not isinstance(reached, int | float):
            raise DataError(f"openenv, {self.options.url}: observation.{field} is {reached!r}, no number")
        return reached >= self.options.success_from


class ServerSession:
    """A session at the server. Raises InfrastructureError for what is the network's or the server's fault, DataError
    for an answer of another form, EnvironmentFault where the environment behind the server failed."""

    def __init__(self, options: OpenEnvOptions) -> None:
        self._options = options
        self._connection: Any = None

    async def start(self, seed: int) -> tuple[Mapping[str, Any], float, bool]:
        """Observation, reward and end after a reset with `seed`; waits for a session where there is none left."""
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(_NoSession),
            wait=wait_exponential(0.1, max=5.0),  # not longer: an episode that ends frees a session
            stop=lambda state: state.idle_for >= self._options.wait_s,
            reraise=True,
        )
        try:
            return await retrying(self._start_once, seed)
        except _NoSession as full:
            raise InfrastructureError(
                f"openenv, {self._options.url}: no session within {self._options.wait_s:g} s ({full}); let the "
                "server have as many as episodes run at once (max_concurrent_envs)"
            ) from None

    async def _start_once(self, seed: int) -> tuple[Mapping[str, Any], float, bool]:
        await self._connect()
        try:
            return await self.ask("reset", {"seed": seed})
        except _NoSession:
            await self.close()
            raise

    async def ask(self, kind: str, data: Mapping[str, Any]) -> tuple[Mapping[str, Any], float, bool]:
        """Observation, reward (0 where there is none) and end after a message of `kind`."""
        from websockets.exceptions import ConnectionClosed, WebSocketException

        url = self._options.url
        if self._connection is None:
            raise InfrastructureError(f"openenv, {url}: the session has ended")
        try:
            async with asyncio.timeout(self._options.timeout_s):
                with suppress(ConnectionClosed):  # what it said last may still be read
                    await self._connection.send(json.dumps({"type": kind, "data": data}))
                answer = await self._connection.recv()
        except TimeoutError:
            raise InfrastructureError(f"openenv, {url}: no answer within {self._options.timeout_s:g} s") from None
        except ConnectionClosed as closed:
            if closed.sent is not None and closed.sent.code == 1009:  # "message too big" (RFC 6455)
                raise DataError(
                    f"openenv, {url}: an answer of more than {self._options.max_reply_bytes} bytes "
                    "(environment.options.max_reply_bytes)"
                ) from None
            raise InfrastructureError(f"openenv, {url}: the session ended: {closed}") from None
        except (WebSocketException, OSError) as error:
            raise InfrastructureError(f"openenv, {url}: {type(error).__name__}: {error}") from None
        return self._read(kind, answer)

    async def close(self) -> None:
        """End the session, if there is one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def _connect(self) -> None:
        from websockets.asyncio.client import connect
        from websockets.exceptions import WebSocketException

        address = (
            self._options.url.replace("http", "ws", 1) if self._options.url.startswith("http") else self._options.url
        )
        try:
            self._connection = await connect(
                f"{address}/ws",
                open_timeout=self._options.timeout_s,
                max_size=self._options.max_reply_bytes,
                proxy=None if urlsplit(address).hostname in proxies.LOOPBACK else True,
            )
        except (OSError, WebSocketException, TimeoutError) as error:
            raise InfrastructureError(
                f"openenv, {proxies.masked(address)}{proxies.through(self._options.url)} cannot be reached: "
                f"{type(error).__name__}: {error}"
            ) from None

    def _read(self, kind: str, answer: str | bytes) -> tuple[Mapping[str, Any], float, bool]:
        url = self._options.url
        try:
            message = parse_json(answer if isinstance(answer, str) else answer.decode("utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise DataError(f"openenv, {url}: the answer to {kind} is no JSON: {error}") from None
        data = message.get("data") if isinstance(message, dict) else None
        if isinstance(data, dict) and message.get("type") == "error":
            code, detail = data.get("code"), str(data.get("message", ""))[:500]
            if code == FULL:
                raise _NoSession(detail)
            if code == "VALIDATION_ERROR":
                errors = str(data.get("errors", ""))[:500]
                raise ConfigError(
                    f"environment.options.action_field, actions: {url} refuses a {kind}: {detail} {errors}"
                )
            raise EnvironmentFault(f"openenv, {url}: {code}: {detail}")
        if not isinstance(data, dict) or message.get("type") != "observation":
            raise DataError(f"openenv, {url}: the answer to {kind} is no observation: {str(answer)[:200]}")
        observation, reward = data.get("observation"), data.get("reward") or 0.0
        if not isinstance(observation, dict) or not isinstance(reward, int | float) or not math.isfinite(reward):
            raise DataError(f"openenv, {url}: observation or reward of another form: {str(answer)[:200]}")
        return observation, float(reward), bool(data.get("done"))


class _NoSession(Exception):
    """The server has no session left."""


def _end(session: ServerSession) -> None:
    in_background(session.close())


def _text(observation: Mapping[str, Any], field: str | None) -> str:
    """A field of an observation, or all of it as JSON. Raises ConfigError for a field that is not there."""
    if field is None:
        return json.dumps(observation, ensure_ascii=False)
    if field not in observation:
        raise ConfigError(
            f"environment.options: observations have no field {field!r}; they have: {', '.join(observation)}"
        )
    value = observation[field]
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


register("openenv", OpenEnvOptions, OpenEnvEnvironment)
