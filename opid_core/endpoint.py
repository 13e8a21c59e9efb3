"""Calls to an OpenAI-compatible endpoint: each gives a completion or says why there is none, whatever the other side
does. The OpenAI SDK sends requests, waits (`Retry-After`, or longer and longer) and tries again. Ours is what it lacks:
a limit on a try's whole time, learning which options the endpoint does not know, and that the key stays here: it is
taken out of every text that comes back."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import httpx2

from opid_core import proxies
from opid_core.config import LlmConfig
from opid_core.errors import ConfigError, InfrastructureError, OpidError
from opid_core.reading import ACCEPTED, body_of, parse_json, well_formed

Message = Mapping[str, str]

MAX_REPLY_CHARS = 200_000
"""Longer replies are no answer: no model is asked for so much."""
_SHOWN_CHARS = 300
_MIN_SECRET_CHARS = 8
"""A shorter key ("EMPTY", as local servers take it) is no secret, and may be a word of the text."""
_MASK = r"(?:\*{2,}|\.{3,}|…|•+)"
_OF_THE_BODY = ("content-encoding", "content-length", "transfer-encoding")
"""Headers of the body as it was sent."""
_ABOUT_SCHEMA = re.compile(r"response_format|json_schema|structured|guided|grammar", re.IGNORECASE)
_ABOUT_SEED = re.compile(r"\bseed\b", re.IGNORECASE)


class NoCompletion(OpidError):
    """A call without a completion: the request was refused for its content, or the reply kept back or without end."""


class Unanswered(NoCompletion):
    """Transient errors outlasted the retries."""


@dataclass
class Usage:
    """What calls have taken so far; tokens are null until the endpoint names them."""

    requests: int = 0
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


@dataclass(frozen=True)
class ChatCompletion:
    """A model's reply; `finished` is false where `max_tokens` cut it. `reasoning` is what the endpoint kept apart of it
    (`reasoning_content`), None where it names none."""

    text: str
    finished: bool
    reasoning: str | None = None


class Endpoint:
    """The endpoint of `config`. `schema` is that of the replies; `on_note` is told, once, of what the endpoint does not
    know and is asked without from then on. Raises ConfigError for a missing key and an unusable address."""

    def __init__(
        self, config: LlmConfig, schema: Mapping[str, Any] | None = None, on_note: Callable[[str], None] | None = None
    ) -> None:
        from openai import AsyncOpenAI, Omit

        self._config, self._on_note = config, on_note
        self._key = api_key(config)
        proxies.check(config.base_url)
        self._sdk = AsyncOpenAI(
            base_url=config.base_url,
            api_key=self._key or "none",
            timeout=None,  # the limit of `_Client` is on the whole of a try; the SDK's would be on each silence
            max_retries=config.max_retries,
            http_client=_Client(config.timeout_s),
        )
        self._headers = {} if self._key else {"Authorization": Omit()}
        self._instead: dict[str, str | None] = {}
        """What the endpoint calls an option; None: it does not know it."""
        self._options: dict[str, Any] = {"model": config.model, "temperature": config.temperature}
        self._options["max_tokens"] = config.max_tokens
        if config.request_options:
            self._options["extra_body"] = config.request_options
        if schema and config.structured_output != "off":
            named = {"name": "analysis", "schema": schema}
            self._options["response_format"] = {"type": "json_schema", "json_schema": named}

    async def aclose(self) -> None:
        """Close the connections."""
        await self._sdk.close()

    async def complete(self, messages: Sequence[Message], usage: Usage, **options: Any) -> ChatCompletion:
        """The model's reply to `messages`; `usage` is added to. `options` of the request stand in for the config's.

        Raises Unanswered when transient errors outlast the retries, NoCompletion for a request that is refused for its
        content and for a reply that is kept back for its content or has no end, ConfigError for a refused key, an
        unknown model or address.
        """
        from openai import APIConnectionError, APIStatusError

        # the SDK sends UTF-8, which knows no lone surrogates
        said: Any = [{name: well_formed(text) for name, text in message.items()} for message in messages]
        while True:
            known = {self._instead.get(name, name): value for name, value in {**self._options, **options}.items()}
            sent = {name: value for name, value in known.items() if name is not None}
            try:
                ask = self._sdk.chat.completions.with_raw_response.create
                response = await ask(messages=said, extra_headers=self._headers, **sent)
            except APIStatusError as fault:
                retries = _retries(fault.request)
                usage.requests += retries + 1
                if fault.status_code in (400, 422) and self._learned(sent, self._detail(fault.response)):
                    continue
                raise self._refusal(fault.response, retries) from None
            except APIConnectionError as fault:
                retries, cause = _retries(fault.request), fault.__cause__
                usage.requests += retries + 1
                reason = f"no connection{proxies.through(self._config.base_url)}: {type(cause).__name__} {cause}"
                if isinstance(cause, httpx2.TimeoutException):
                    reason = f"no answer within {self._config.timeout_s:g} s"
                raise Unanswered(f"{self._shown(reason)} ({retries} retries)") from None
            usage.requests += response.retries_taken + 1
            return self._read(_completion(response.http_response.content) or {}, usage)

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

    def _refusal(self, response: httpx2.Response, retries: int) -> OpidError:
        """What an answer without a completion means."""
        status, config = response.status_code, self._config
        if status in (401, 403):
            return ConfigError(f"endpoint {config.base_url} refused the key of {config.api_key_env} (HTTP {status})")
        if status == 404:
            return ConfigError(
                f"endpoint {config.base_url} does not know the model {config.model!r}, or is no address of an "
                "endpoint (HTTP 404)"
            )
        if status in (408, 409, 429) or status >= 500:
            answer = "HTTP 200 without a completion" if "in_place_of" in response.extensions else f"HTTP {status}"
            return Unanswered(f"{answer}: {self._detail(response)} ({retries} retries)")
        return NoCompletion(f"the endpoint refused the request: HTTP {status}: {self._detail(response)}")

    def _read(self, completion: Mapping[str, Any], usage: Usage) -> ChatCompletion:
        _count(completion, usage)
        choice = completion["choices"][0]
        if choice.get("finish_reason") == "content_filter":
            raise NoCompletion("the endpoint kept the reply back for its content (content_filter)")
        message = choice["message"]
        text = next((t for t in (message.get("content"), message.get("refusal")) if isinstance(t, str)), "")
        if len(text) > MAX_REPLY_CHARS:
            raise NoCompletion(f"the reply has {len(text)} characters, more than {MAX_REPLY_CHARS}")
        apart = (message.get(name) for name in ("reasoning_content", "reasoning"))
        reasoning = next((self._clean(t[:MAX_REPLY_CHARS]) for t in apart if isinstance(t, str) and t), None)
        return ChatCompletion(self._clean(text), choice.get("finish_reason") != "length", reasoning)

    def _detail(self, response: httpx2.Response) -> str:
        """What an error's body says, in short."""
        body = _json(response.content)
        error = body.get("error", body) if isinstance(body, dict) else None
        message = (error.get("message") or error.get("detail")) if isinstance(error, dict) else error
        return self._shown(message if isinstance(message, str) else response.text)

    def _shown(self, text: str) -> str:
        text = " ".join(without_masked_key(self._clean(text)[: 4 * _SHOWN_CHARS], self._key).split())
        return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]} ..."

    def _clean(self, text: str) -> str:
        """`text` as valid Unicode without the key."""
        return well_formed(without_key(text, self._key))


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
        async with aclosing(Endpoint(asked, {"type": "object"})) as endpoint:
            await endpoint.complete([{"role": "user", "content": "Answer with {}."}], Usage(), **options)

    try:
        asyncio.run(ask())
    except Unanswered as fault:
        raise InfrastructureError(f"endpoint {config.base_url}: {fault}") from None
    except NoCompletion as fault:
        raise ConfigError(f"endpoint {config.base_url}: {fault}") from None


def without_key(text: str, key: str) -> str:
    """`text` with `[key]` for the key and for every part of it of 8 characters or more."""
    if len(key) < _MIN_SECRET_CHARS:
        return text
    parts = {key[start : start + _MIN_SECRET_CHARS] for start in range(len(key) - _MIN_SECRET_CHARS + 1)}
    shown, start = [], 0
    while start < len(text):
        end = start
        while text[end : end + _MIN_SECRET_CHARS] in parts:
            end += 1
        if end > start:
            end += _MIN_SECRET_CHARS - 1
        shown.append("[key]" if end > start else text[start])
        start = max(end, start + 1)
    return "".join(shown)


def without_masked_key(text: str, key: str) -> str:
    """`text` with `[key]` for words with the key's first or last 4 characters and a mask ("sk-a***wxyz"), as endpoints
    name a key that they refuse. Takes time with the square of the text's length."""
    if len(key) < _MIN_SECRET_CHARS:
        return text
    begun, ended = re.escape(key[:4]), re.escape(key[-4:])
    return re.sub(rf"{begun}[^\s\"']*{_MASK}[^\s\"']*|{_MASK}[^\s\"']*{ended}", "[key]", text)


class _Client(httpx2.AsyncClient):
    """The SDK's connections: the whole of a try takes at most `limit_s`, and a page in place of a completion, as
    gateways send it with status 200, counts as a bad gateway, so that the SDK tries again."""

    def __init__(self, limit_s: float) -> None:
        super().__init__(limits=httpx2.Limits(max_connections=None), timeout=None)
        self._limit_s = limit_s

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        request.headers.update(ACCEPTED)
        try:
            async with asyncio.timeout(self._limit_s):
                response = await super().send(request, **{**options, "stream": True})
                content = await _content(response)
        except TimeoutError:
            raise httpx2.ReadTimeout("out of time", request=request) from None
        fields: dict[str, Any] = {"content": content, "request": request}
        if response.status_code == 200 and _completion(content) is None:
            return httpx2.Response(502, extensions={"in_place_of": 200}, **fields)
        headers = [(name, value) for name, value in response.headers.items() if name.lower() not in _OF_THE_BODY]
        return httpx2.Response(response.status_code, headers=headers, **fields)


async def _content(response: httpx2.Response) -> bytes:
    """The body of an answer, or in its place why that is not read."""
    try:
        return await body_of(response)
    except OSError as error:
        return f"a reply that cannot be used: {error.strerror}".encode()


def _completion(content: bytes) -> dict[str, Any] | None:
    """The completion in the body of an answer, None where it holds none."""
    completion = _json(content)
    choices = completion.get("choices") if isinstance(completion, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    return completion if isinstance(choice, dict) and isinstance(choice.get("message"), dict) else None


def _json(content: bytes) -> Any:
    try:
        return parse_json(content)
    except json.JSONDecodeError:
        return None


def _retries(request: httpx2.Request) -> int:
    """How many tries came before `request`, as the SDK says in it."""
    return int(request.headers.get("x-stainless-retry-count", 0))


def _count(completion: Mapping[str, Any], usage: Usage) -> None:
    counts = completion.get("usage")
    for name in ("prompt_tokens", "completion_tokens"):
        count = counts.get(name) if isinstance(counts, dict) else None
        if isinstance(count, int) and 0 <= count < 2**24:
            setattr(usage, name, (getattr(usage, name) or 0) + count)


def _is_local(url: str) -> bool:
    """Whether `url` is a loopback address. Raises ConfigError for one that no request can be sent to."""
    try:
        parsed = httpx2.URL(url)
        parsed.host.encode("idna")
        if not parsed.host or (parsed.port or 0) > 65535:
            raise ValueError("no host, or no such port")
    except (httpx2.InvalidURL, ValueError) as error:
        raise ConfigError(f"endpoint {url}: no address of an endpoint ({error})") from None
    try:
        return ipaddress.ip_address(parsed.host).is_loopback
    except ValueError:
        return parsed.host == "localhost"
