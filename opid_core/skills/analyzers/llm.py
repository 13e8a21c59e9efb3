"""Skills by an LLM behind an OpenAI-compatible endpoint: one call a trajectory (ALGORITHM, section 3)."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Protocol

from opid_core.config import AnalyzerConfig
from opid_core.endpoint import ChatCompletion, Endpoint, NoCompletion, Usage, api_key
from opid_core.errors import AnalyzerReplyError, DataError
from opid_core.reading import parse_json
from opid_core.samples import Samples
from opid_core.skills.analyzers.messages import MAP, MESSAGE_COLUMNS, Prompt, ask_again, build_prompt, reply_schema
from opid_core.skills.replies import Analysis, Reply, clean_skill, parse_reply, select_step_skills


class ReplyCache(Protocol):
    """Where usable replies are kept, by the hash of what was asked: a text that is put under a key stays."""

    def get(self, key: str) -> str | None: ...

    def put(self, key: str, text: str) -> None: ...


def analyze(
    samples: Samples,
    config: AnalyzerConfig,
    *,
    cache: ReplyCache | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    on_note: Callable[[str], None] | None = None,
) -> list[Analysis]:
    """One analysis a trajectory that is `analyzed`, in the order of `samples`, which have the columns `analyzed`,
    `critical` (such steps of a long trajectory are cut last), `discounted_return` and, where the model is shown the
    group, `group_map`.

    A call without a usable skill is an Analysis with `error`, whether the endpoint failed for good, refused the
    request, or its model twice gave no usable reply. Usable replies are kept in `cache` and taken from there, and equal
    trajectories are asked about once. `on_progress` gets (done, total), `on_note` what people should know. Raises
    ConfigError for a missing or refused key or an unknown model, and what `cache` raises.
    """
    columns = [name for name in (*MESSAGE_COLUMNS, MAP) if name in samples.table.column_names]
    analyzed = Samples(samples.table.select(columns)).select(samples.numbers("analyzed"))
    trajectories = {name: analyzed.select(rows) for name, rows in analyzed.by_trajectory().items()}
    api_key(config.llm)
    return asyncio.run(_analyze_all(trajectories, config, cache, on_progress, on_note)) if trajectories else []


async def _analyze_all(
    trajectories: Mapping[str, Samples],
    config: AnalyzerConfig,
    cache: ReplyCache | None,
    on_progress: Callable[[int, int], None],
    on_note: Callable[[str], None] | None,
) -> list[Analysis]:
    analyses: dict[str, Analysis] = {}
    asked: dict[str, tuple[Prompt, list[str]]] = {}
    for name, trajectory in trajectories.items():
        try:
            prompt = build_prompt(trajectory, config.max_step_skills, max_chars=config.llm.max_prompt_chars)
        except AnalyzerReplyError as fault:
            analyses[name] = _failed(name, config, attempts=0, error=str(fault))
        else:
            asked.setdefault(cache_key(prompt, config), (prompt, []))[1].append(name)
    slots = asyncio.Semaphore(config.llm.concurrency)

    async def analyze_equal(endpoint: Endpoint, key: str, prompt: Prompt, equal: list[str]) -> None:
        async with slots:
            analysis = await _analyze_one(endpoint, key, prompt, config, cache)
        for number, name in enumerate(equal):
            analyses[name] = replace(analysis, trajectory_id=name, replayed=analysis.replayed or number > 0)
        on_progress(len(analyses), len(trajectories))

    async with aclosing(Endpoint(config.llm, reply_schema(config.max_step_skills), on_note)) as endpoint:
        tasks = [asyncio.create_task(analyze_equal(endpoint, key, *rest)) for key, rest in asked.items()]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:  # after a fault the others must not go on asking
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    return [analyses[name] for name in trajectories]


def cache_key(prompt: Prompt, config: AnalyzerConfig) -> str:
    """sha256 of all that a reply depends on: messages, model, sampling parameters, form of the reply."""
    llm = config.llm
    asked = [prompt.messages, llm.model, llm.temperature, llm.max_tokens, llm.structured_output]
    return _sha256([*asked, llm.request_options] if llm.request_options else asked)


async def _analyze_one(
    endpoint: Endpoint, key: str, prompt: Prompt, config: AnalyzerConfig, cache: ReplyCache | None
) -> Analysis:
    if cache is not None and (stored := await asyncio.to_thread(cache.get, key)) is not None:
        return _replayed(stored, key, prompt, config)
    usage, started_s = Usage(), time.monotonic()
    reply, completion, error = await _ask(endpoint, prompt, usage)
    taken = {
        "attempts": usage.requests,
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "seconds": time.monotonic() - started_s,
        "raw_reply": completion and completion.text,
        "reasoning": completion and completion.reasoning,
    }
    if reply is None:
        return _failed("", config, prompt, **taken, error=error)
    if cache is not None:
        await asyncio.to_thread(cache.put, key, json.dumps(taken))
    return _usable(reply, prompt, config, **taken)


async def _ask(
    endpoint: Endpoint, prompt: Prompt, usage: Usage
) -> tuple[Reply | None, ChatCompletion | None, str | None]:
    """The usable reply or None, the model's last completion, and why it cannot be used. A model that answers nonsense
    is shown its error and asked once more."""
    messages, completion, errors = prompt.messages, None, []
    for _ in range(2):
        try:
            completion = await endpoint.complete(messages, usage)
        except NoCompletion as fault:
            errors.append(str(fault))
            break
        try:
            return _read(completion), completion, None
        except AnalyzerReplyError as fault:
            errors.append(str(fault))
            messages = ask_again(prompt.messages, completion.text, str(fault))
    return None, completion, "; asked again: ".join(errors)


def _read(completion: ChatCompletion) -> Reply:
    try:
        reply = parse_reply(completion.text)
    except AnalyzerReplyError as fault:
        raise fault if completion.finished else AnalyzerReplyError(f"{fault} (it was cut at max_tokens)") from None
    if not clean_skill(reply.episode_skill):
        raise AnalyzerReplyError("episode_skill holds nothing but control tokens")
    return reply


def _replayed(stored: str, key: str, prompt: Prompt, config: AnalyzerConfig) -> Analysis:
    try:
        taken = parse_json(stored)
        return replace(_usable(parse_reply(str(taken["raw_reply"])), prompt, config, **taken), replayed=True)
    except (ValueError, TypeError, KeyError, AnalyzerReplyError) as error:
        raise DataError(f"kept analysis {key}: cannot be read ({error}); delete it") from None


def _usable(reply: Reply, prompt: Prompt, config: AnalyzerConfig, **taken) -> Analysis:
    step_skills = {step: clean_skill(text) for step, text in reply.step_skills.items()}
    return replace(
        _failed("", config, prompt, **taken),
        summary=clean_skill(reply.episode_summary),
        episode_skill=clean_skill(reply.episode_skill),
        step_skills=select_step_skills(step_skills, prompt.steps, config.max_step_skills),
    )


def _failed(trajectory_id: str, config: AnalyzerConfig, prompt: Prompt | None = None, **taken) -> Analysis:
    """An analysis without skills."""
    llm = config.llm
    cost = None
    if (
        (prompt_tokens := taken.get("prompt_tokens"))
        and llm.prompt_price is not None
        and llm.completion_price is not None
    ):
        cost = (prompt_tokens * llm.prompt_price + (taken["completion_tokens"] or 0) * llm.completion_price) / 1e6
    return Analysis(
        trajectory_id=trajectory_id,
        summary="",
        episode_skill="",
        step_skills={},
        analyzer="llm",
        model=llm.model,
        prompt_hash=_sha256(prompt.messages) if prompt else None,
        cut=prompt.cut if prompt else None,
        cost=cost,
        **taken,
    )


def _sha256(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
