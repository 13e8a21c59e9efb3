"""Chat completions of an OpenAI-compatible endpoint, as the episode loop sees them: a user message in, text out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from opid_core.config import LlmConfig
from opid_core.endpoint import Endpoint, NoCompletion, Unanswered, Usage
from opid_core.errors import DataError, InfrastructureError
from opid_core.rollout.engines.protocols import TextCompletion

MOMENT_S = 0.02


@dataclass
class Answered:
    """What an endpoint has answered so far. `requests` counts those sent again too; `uncounted` are responses whose
    tokens the endpoint did not name, `cut` those that the token limit ended, `empty` those without any text."""

    requests: int = 0
    responses: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    uncounted: int = 0
    cut: int = 0
    empty: int = 0


class EndpointEngine:
    """The model of `config` behind its endpoint, with at most `config.concurrency` requests in flight; `on_note` is
    told, once, of each option that the endpoint does not know and is asked without.

    A turn without an answer is never taken for an empty one: it ends the evaluation.
    """

    def __init__(self, config: LlmConfig, on_note: Callable[[str], None] | None = None) -> None:
        """Raises ConfigError for a missing key and an unusable address. Asks nothing yet."""
        self.answered = Answered()
        self._config = config
        self._endpoint = Endpoint(config, on_note=on_note)
        self._slots = asyncio.Semaphore(config.concurrency)
        self._runner = asyncio.Runner()
        self._asked: list[asyncio.Task[TextCompletion]] = []
        self._wait_s: float | None = None

    def submit_text(self, request_id: str, message: str, *, max_tokens: int, temperature: float, seed: int) -> None:
        """Queue one response; it is asked for while `step` waits."""
        response = self._respond(request_id, message, max_tokens=max_tokens, temperature=temperature, seed=seed)
        self._asked.append(self._runner.get_loop().create_task(response))

    def begin(self) -> None:
        """Let the next `step` wait for a moment at most: its caller also waits for something else."""
        if self._asked:
            self._wait_s = MOMENT_S

    def step(self) -> list[TextCompletion]:
        """Wait until at least one response is there, or a moment after `begin`; returns those that are.

        Raises InfrastructureError when transient errors outlast the retries, DataError for a prompt that the endpoint
        refuses or whose reply it keeps back, ConfigError for what it refuses whatever the prompt.
        """
        wait_s, self._wait_s = self._wait_s, None
        done, _ = self._runner.run(asyncio.wait(self._asked, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED))
        completions = [task.result() for task in self._asked if task in done]
        self._asked = [task for task in self._asked if task not in done]
        return completions

    def close(self) -> None:
        """Give up what is still asked for."""

        async def end() -> None:
            for task in self._asked:
                task.cancel()
            await asyncio.gather(*self._asked, return_exceptions=True)
            await self._endpoint.aclose()

        self._runner.run(end())
        self._runner.close()

    async def _respond(self, request_id: str, message: str, **options) -> TextCompletion:
        usage, url = Usage(), self._config.base_url
        try:
            async with self._slots:
                completion = await self._endpoint.complete([{"role": "user", "content": message}], usage, **options)
        except Unanswered as fault:
            raise InfrastructureError(f"endpoint {url}: {fault}") from None
        except NoCompletion as fault:
            raise DataError(
                f"endpoint {url}: no answer to a prompt of task {request_id!r}: {fault}. An episode that is not played "
                "to its end is neither won nor lost, so nothing is evaluated"
            ) from None
        tokens, answered = usage.completion_tokens, self.answered
        answered.requests += usage.requests
        answered.responses += 1
        answered.prompt_tokens += usage.prompt_tokens or 0
        answered.completion_tokens += tokens or 0
        answered.uncounted += tokens is None
        answered.cut += not completion.finished
        answered.empty += not completion.text.strip()
        return TextCompletion(request_id, completion.text, tokens or 0)
