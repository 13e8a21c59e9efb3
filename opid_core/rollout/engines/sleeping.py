"""vLLM's sleep mode, by which an engine and the learner have a GPU in turns (`engine.share_gpus`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opid_core.errors import DataError, InfrastructureError

if TYPE_CHECKING:
    from vllm import LLMEngine

LEVEL = 1
"""The weights wait in the machine's memory. At level 2 vLLM drops them, which would do after an update alone, when new
ones are pushed anyway: after the canary the engine goes on with those that it had. What else of a model is no buffer of
it is lost at level 2 too."""


def sleep(engine: LLMEngine) -> None:
    """Free the memory of weights and cache on all GPUs of `engine`, and forget the cache of prefixes. Nothing where it
    sleeps already. Raises InfrastructureError where vLLM fails: make a new engine."""
    if engine.is_sleeping():
        return
    try:
        engine.sleep(LEVEL)
    except (AssertionError, RuntimeError) as error:
        raise InfrastructureError(f"the engine could not leave its GPU: {error}") from error


def wake(engine: LLMEngine) -> None:
    """Undo `sleep`. Nothing where it is awake. Raises InfrastructureError where vLLM fails, as when another process has
    the memory: make a new engine."""
    if not engine.is_sleeping():
        return
    try:
        is_awake = engine.wake_up()
    except RuntimeError as error:
        raise InfrastructureError(f"the engine could not take its GPU back: {error}") from error
    if not is_awake:
        raise InfrastructureError("the engine did not take all of its GPU's memory back")


def check_awake(engine: LLMEngine, call: str) -> None:
    """Raise DataError for a `call` of an engine that sleeps: vLLM would wait without end, or read what it gave away."""
    if engine.is_sleeping():
        raise DataError(f"{call}: the engine sleeps; wake it first")
