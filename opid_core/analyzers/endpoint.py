"""Calls to an OpenAI-compatible endpoint: each gives a completion or says why there is none, whatever the other side
does. The key stays here: it is taken out of every text that comes back."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import math
import os
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import httpx

from opid_core.config import LlmConfig
from opid_core.errors import AnalyzerReplyError, ConfigError, InfrastructureError

Message = Mapping[str, str]

MAX_REPLY_CHARS = 200_000
"""Longer replies are no analysis."""
_SHOWN_CHARS = 300
_MIN_SECRET_CHARS = 8
"""A shorter key ("EMPTY", as local servers take it) is no secret, and may be a word of the text."""
_ABOUT_SCHEMA = re.compile(r"response_format|json_schema|structured|guided|grammar", re.IGNORECASE)


class Unanswered(AnalyzerReplyError):
    """Transient errors outlasted the retries."""


class _Transient(Exception):
    """A fault that may pass. `wait_s` is the wait that the endpoint asks for."""

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


@dataclass
class Usage:
    """What the calls of one analysis have taken so far; tokens are null until the endpoint names them."""

    requests: int = 0
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


@dataclass(frozen=True)
class Completion:
    """A model's reply; `finished` is false where `max_tokens` cut it."""

    text: str
    finished: bool


class Endpoint:
    """The endpoint of `config`, asked through `client`. `schema` is that of the replies; `on_note` is told, once, of
    what the endpoint does not know and is asked without from then on."""

    def __init__(
        self,
        config: LlmConfig,
        client: httpx.AsyncClient,
        schema: Mapping[str, Any] | None = None,
        on_note: Callable[[str], None] | None = None,
    ) -> None:
        self._config, self._client, self._on_note = config, client, on_note
        self._key = api_key(config)
        self._options: dict[str, Any] = {"model": config.model, "temperature": config.temperature}
        self._options["max_tokens"] = config.max_tokens
        if schema and config.structured_output != "off":
            named = {"name": "analysis", "schema": schema}
            self._options["response_format"] = {"type": "json_schema", "json_schema": named}

    async def complete(self, messages: Sequence[Message], usage: Usage) -> Completion:
        """The model's reply to `messages`; `usage` is added to.

        Raises Unanswered when transient errors outlast the retries, AnalyzerReplyError for a request that is refused
        for its content or a reply without end, ConfigError for a refused key, an unknown model or address.
        """
        config = self._config
        delays_s = iter([config.retry_delay_s * 2**n * random.uniform(1, 1.5) for n in range(config.max_retries)])
        while True:
            options = dict(self._options)
            usage.requests += 1
            try:
                response = await self._post({**options, "messages": list(messages)})
                if response.status_code not in (400, 422) or not self._learned(options, self._detail(response)):
                    return self._read(response, usage)
            except _Transient as fault:
                delay_s = next(delays_s, None)
                if delay_s is None:
                    raise Unanswered(f"{fault} ({config.max_retries} retries)") from None
                await asyncio.sleep(min(delay_s if fault.wait_s is None else fault.wait_s, config.timeout_s))

    async def _post(self, body: Mapping[str, Any]) -> httpx.Response:
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        url = f"{self._config.base_url.rstrip('/')}/chat/completions"
        try:
            async with asyncio.timeout(self._config.timeout_s):
                return await self._client.post(url, content=json.dumps(body), headers=headers, timeout=None)
        except TimeoutError:
            raise _Transient(f"no answer within {self._config.timeout_s:g} s") from None
        except (httpx.TransportError, httpx.DecodingError) as fault:
            raise _Transient(self._shown(f"no connection: {type(fault).__name__} {fault}")) from None

    def _learned(self, options: Mapping[str, Any], detail: str) -> bool:
        """Whether a request was refused for an option that the next ones can do without."""
        if "max_tokens" in options and "max_completion_tokens" in detail:
            self._replace("max_tokens", {"max_completion_tokens": self._config.max_tokens}, detail)
        elif "response_format" in options and self._config.structured_output == "auto" and _ABOUT_SCHEMA.search(detail):
            self._replace("response_format", {}, detail)
        else:
            return False
        return True

    def _replace(self, option: str, instead: Mapping[str, Any], detail: str) -> None:
        if self._options.pop(option, None) is None:
            return  # another call was faster
        self._options.update(instead)
        if self._on_note:
            self._on_note(f"{self._config.base_url} is asked without {option} from now on: {detail}")

    def _read(self, response: httpx.Response, usage: Usage) -> Completion:
        status, config = response.status_code, self._config
        if status in (401, 403):
            raise ConfigError(
                f"analyzer.llm: {config.base_url} refused the key of {config.api_key_env} (HTTP {status})"
            )
        if status == 404:
            raise ConfigError(
                f"analyzer.llm: {config.base_url} does not know the model {config.model!r}, or is no address of an "
                "endpoint (HTTP 404)"
            )
        if status in (408, 429) or status >= 500:
            raise _Transient(f"HTTP {status}: {self._detail(response)}", retry_after_s(response.headers))
        if status != 200:
            raise AnalyzerReplyError(f"the endpoint refused the request: HTTP {status}: {self._detail(response)}")
        completion = _json(response)
        choices = completion.get("choices") if isinstance(completion, dict) else None
        if not isinstance(choices, list):
            raise _Transient(f"HTTP 200 without a completion: {self._detail(response)}")
        _count(completion, usage)
        choice = choices[0] if choices and isinstance(choices[0], dict) else {}
        message = choice.get("message")
        message = message if isinstance(message, dict) else {}
        text = next((t for t in (message.get("content"), message.get("refusal")) if isinstance(t, str)), "")
        if len(text) > MAX_REPLY_CHARS:
            raise AnalyzerReplyError(f"the reply has {len(text)} characters, more than {MAX_REPLY_CHARS}")
        return Completion(self._clean(text), choice.get("finish_reason") != "length")

    def _detail(self, response: httpx.Response) -> str:
        """What an error's body says, in short."""
        body = _json(response)
        error = body.get("error", body) if isinstance(body, dict) else None
        message = (error.get("message") or error.get("detail")) if isinstance(error, dict) else error
        return self._shown(message if isinstance(message, str) else response.text)

    def _shown(self, text: str) -> str:
        text = " ".join(self._clean(text).split())
        return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]} ..."

    def _clean(self, text: str) -> str:
        """`text` as valid Unicode without the key."""
        if len(self._key) >= _MIN_SECRET_CHARS:
            text = text.replace(self._key, "[key]")
        return well_formed(text)


def api_key(config: LlmConfig) -> str:
    """The endpoint's key from the environment variable that the config names, "" where a local endpoint has none.

    Raises ConfigError where it is missing or cannot be sent.
    """
    key = os.environ.get(config.api_key_env, "").strip()
    if not key and not _is_loopback(config.base_url):
        raise ConfigError(
            f"analyzer.llm.api_key_env: the environment variable {config.api_key_env} is not set, "
            f"and {config.base_url} is no local address"
        )
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(f"analyzer.llm.api_key_env: {config.api_key_env} holds characters that no key has")
    return key


def check_endpoint(config: LlmConfig) -> None:
    """Ask the endpoint for one token, so that it refuses what it will refuse before any work is done.

    Raises ConfigError for a missing or refused key, an unknown model or a refused request, InfrastructureError where no
    completion comes after the retries.
    """
    wanted = "on" if config.structured_output == "on" else "off"
    asked = config.model_copy(update={"max_tokens": 1, "structured_output": wanted})

    async def ask() -> None:
        async with httpx.AsyncClient() as client:
            endpoint = Endpoint(asked, client, {"type": "object"})
            await endpoint.complete([{"role": "user", "content": "Answer with {}."}], Usage())

    try:
        asyncio.run(ask())
    except Unanswered as fault:
        raise InfrastructureError(f"analyzer endpoint {config.base_url}: {fault}") from None
    except AnalyzerReplyError as fault:
        raise ConfigError(f"analyzer.llm: {config.base_url}: {fault}") from None


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """The wait that `Retry-After` asks for (seconds or an HTTP date), None without a usable one."""
    value = headers.get("retry-after", "")
    try:
        wait_s = float(value)
    except ValueError:
        try:
            wait_s = (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return None
    return max(0.0, wait_s) if math.isfinite(wait_s) else None


def well_formed(text: str) -> str:
    """`text` with U+FFFD for each lone surrogate: JSON can spell them, UTF-8 and Parquet cannot."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _json(response: httpx.Response) -> Any:
    try:
        return json.loads(response.content)
    except (ValueError, RecursionError):
        return None


def _count(completion: Mapping[str, Any], usage: Usage) -> None:
    counts = completion.get("usage")
    for name in ("prompt_tokens", "completion_tokens"):
        count = counts.get(name) if isinstance(counts, dict) else None
        if isinstance(count, int) and 0 <= count < 2**24:
            setattr(usage, name, (getattr(usage, name) or 0) + count)


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
