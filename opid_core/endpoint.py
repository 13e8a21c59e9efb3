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

import httpx

from opid_core.config import LlmConfig
from opid_core.errors import ConfigError, InfrastructureError, OpidError

Message = Mapping[str, str]

MAX_REPLY_CHARS = 200_000
"""Longer replies are no answer: no model is asked for so much."""
_SHOWN_CHARS = 300
_MIN_SECRET_CHARS = 8
"""A shorter key ("EMPTY", as local servers take it) is no secret, and may be a word of the text."""
_ABOUT_SCHEMA = re.compile(r"response_format|json_schema|structured|guided|grammar", re.IGNORECASE)
_ABOUT_SEED = re.compile(r"\bseed\b", re.IGNORECASE)


class NoCompletion(OpidError):
    """A call without a completion: the request was refused for its content, or the reply kept back or without end."""


class Unanswered(NoCompletion):
    """Transient errors outlasted the retries."""


class _Transient(Exception):
    """A fault that may pass. `wait_s` is the wait that the endpoint asks for."""

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


@dataclass
class Usage:
    """What calls have taken so far; tokens are null until the endpoint names them."""

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
        self._instead: dict[str, str | None] = {}
        """What the endpoint calls an option; None: it does not know it."""
        self._options: dict[str, Any] = {"model": config.model, "temperature": config.temperature}
        self._options["max_tokens"] = config.max_tokens
        if schema and config.structured_output != "off":
            named = {"name": "analysis", "schema": schema}
            self._options["response_format"] = {"type": "json_schema", "json_schema": named}

    async def complete(self, messages: Sequence[Message], usage: Usage, **options: Any) -> Completion:
        """The model's reply to `messages`; `usage` is added to. `options` of the request stand in for the config's.

        Raises Unanswered when transient errors outlast the retries, NoCompletion for a request that is refused for its
        content and for a reply that is kept back for its content or has no end, ConfigError for a refused key, an
        unknown model or address.
        """
        config = self._config
        delays_s = iter([config.retry_delay_s * 2**n * random.uniform(1, 1.5) for n in range(config.max_retries)])
        while True:
            known = {self._instead.get(name, name): value for name, value in {**self._options, **options}.items()}
            sent = {name: value for name, value in known.items() if name is not None}
            usage.requests += 1
            try:
                response = await self._post({**sent, "messages": list(messages)})
                if response.status_code not in (400, 422) or not self._learned(sent, self._detail(response)):
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

    def _learned(self, sent: Mapping[str, Any], detail: str) -> bool:
        """Whether a request was refused for an option that the next ones can do without."""
        if "max_tokens" in sent and "max_completion_tokens" in detail:
            self._replace("max_tokens", "max_completion_tokens", detail)
        elif "response_format" in sent and self._config.structured_output == "auto" and _ABOUT_SCHEMA.search(detail):
            self._replace("response_format", None, detail)
        elif "seed" in sent and _ABOUT_SEED.search(detail):
            self._replace("seed", None, detail)
        else:
            return False
        return True

    def _replace(self, option: str, instead: str | None, detail: str) -> None:
        if option in self._instead:
            return  # another call was faster
        self._instead[option] = instead
        if self._on_note:
            self._on_note(f"{self._config.base_url} is asked without {option} from now on: {detail}")

    def _read(self, response: httpx.Response, usage: Usage) -> Completion:
        status, config = response.status_code, self._config
        if status in (401, 403):
            raise ConfigError(f"endpoint {config.base_url} refused the key of {config.api_key_env} (HTTP {status})")
        if status == 404:
            raise ConfigError(
                f"endpoint {config.base_url} does not know the model {config.model!r}, or is no address of an "
                "endpoint (HTTP 404)"
            )
        if status in (408, 429) or status >= 500:
            raise _Transient(f"HTTP {status}: {self._detail(response)}", retry_after_s(response.headers))
        if status != 200:
            raise NoCompletion(f"the endpoint refused the request: HTTP {status}: {self._detail(response)}")
        completion = _json(response)
        choices = completion.get("choices") if isinstance(completion, dict) else None
        choice = choices[0] if isinstance(choices, list) and choices else None
        message = choice.get("message") if isinstance(choice, dict) else None
        if not isinstance(choice, dict) or not isinstance(message, dict):
            raise _Transient(f"HTTP 200 without a completion: {self._detail(response)}")
        _count(completion, usage)
        if choice.get("finish_reason") == "content_filter":
            raise NoCompletion("the endpoint kept the reply back for its content (content_filter)")
        text = next((t for t in (message.get("content"), message.get("refusal")) if isinstance(t, str)), "")
        if len(text) > MAX_REPLY_CHARS:
            raise NoCompletion(f"the reply has {len(text)} characters, more than {MAX_REPLY_CHARS}")
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

    Raises ConfigError where it is missing or cannot be sent, and for an unusable address.
    """
    local = _is_local(config.base_url)
    key = os.environ.get(config.api_key_env, "").strip()
    if not key and not local:
        raise ConfigError(
            f"endpoint {config.base_url}: the environment variable {config.api_key_env} is not set (it would hold the "
            "key), and this is no local address"
        )
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(f"endpoint {config.base_url}: {config.api_key_env} holds characters that no key has")
    return key


def check_endpoint(config: LlmConfig, **options: Any) -> None:
    """Ask the endpoint for one token, or with the `options` of a request, so that it refuses what it will refuse before
    any work is done.

    Raises ConfigError for a missing or refused key, an unknown model or a refused request, InfrastructureError where no
    completion comes after the retries.
    """
    wanted = "on" if config.structured_output == "on" else "off"
    asked = config.model_copy(update={"max_tokens": 1, "structured_output": wanted})

    async def ask() -> None:
        async with httpx.AsyncClient() as client:
            endpoint = Endpoint(asked, client, {"type": "object"})
            await endpoint.complete([{"role": "user", "content": "Answer with {}."}], Usage(), **options)

    try:
        asyncio.run(ask())
    except Unanswered as fault:
        raise InfrastructureError(f"endpoint {config.base_url}: {fault}") from None
    except NoCompletion as fault:
        raise ConfigError(f"endpoint {config.base_url}: {fault}") from None


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


def _is_local(url: str) -> bool:
    """Whether `url` is a loopback address. Raises ConfigError for one that no request can be sent to."""
    try:
        parsed = httpx.URL(url)
        parsed.host.encode("idna")
        if not parsed.host or (parsed.port or 0) > 65535:
            raise ValueError("no host, or no such port")
    except (httpx.InvalidURL, ValueError) as error:
        raise ConfigError(f"endpoint {url}: no address of an endpoint ({error})") from None
    try:
        return ipaddress.ip_address(parsed.host).is_loopback
    except ValueError:
        return parsed.host == "localhost"
