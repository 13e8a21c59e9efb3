"""The live handles of this process: one engine and one learner, each in processes of its own.

Made when first asked for, brought to the policy asked for, killed after any fault and at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from infra.store import STATE_FOLDER, CampaignStore, folder_path, weights_only
from opid_core.config import CampaignConfig
from opid_core.samples import Ragged
from tasks.context import Context, Policy
from tasks.engine import RemoteEngine
from tasks.learner import RemoteLearner

CANARY_PROMPTS = ("Now it's your turn.", "On the table you see nothing. What next?")
SMALLEST_MICRO_BATCH_TOKENS = 64

_engine: RemoteEngine | None = None
_engine_policy: Policy | None = None
_learner: RemoteLearner | None = None
_learner_policy: Policy | None = None
_tokenizers: dict[Path, Any] = {}
_halvings = 0


def tokenizer(store: CampaignStore, policy: Policy) -> Any:
    """The policy's tokenizer (transformers)."""
    return tokenizer_of(folder_path(store, policy.folder))


def tokenizer_of(folder: Path) -> Any:
    """The tokenizer of an HF folder."""
    from transformers import AutoTokenizer

    if folder not in _tokenizers:
        _tokenizers.clear()
        _tokenizers[folder] = AutoTokenizer.from_pretrained(folder)
    return _tokenizers[folder]


def engine(context: Context) -> RemoteEngine:
    """The engine with the weights of `context.policy`, checked against the learner. Raises NumericsError on a gap."""
    global _engine, _engine_policy
    from opid_core.rollout.engines.vllm import canary_gap

    if _engine is not None and _engine_policy == context.policy:
        return _engine
    folder = folder_path(context.store, context.policy.folder)
    if _engine is None:
        _engine = RemoteEngine(context.config, folder)
    else:
        _engine_policy = None
        _engine.load_policy(folder)
    live = learner(context)  # starts while the engine does
    encode = tokenizer(context.store, context.policy).encode
    prompts = [encode(text, add_special_tokens=False) for text in CANARY_PROMPTS]
    canary_gap(_engine, live.score, prompts, context.config.engine.canary_tolerance)
    _engine_policy = context.policy
    return _engine


def learner(context: Context) -> RemoteLearner:
    """The learner with the weights and optimizer state of `context.policy`."""
    global _learner, _learner_policy
    if _learner is not None and _learner_policy == context.policy:
        return _learner
    close_learner()
    folder = folder_path(context.store, context.policy.folder)
    state = folder / STATE_FOLDER
    tokens = micro_batch_tokens(context.config)
    _learner = RemoteLearner(context.config, folder, state if state.is_dir() else None, tokens)
    _learner_policy = context.policy
    return _learner


@contextmanager
def updating(context: Context) -> Iterator[RemoteLearner]:
    """The learner for an update: its weights belong to no stored policy until `updated` names one."""
    global _learner_policy
    live = learner(context)
    _learner_policy = None
    yield live


def updated(policy: Policy) -> None:
    """The learner's weights are now stored as `policy`."""
    global _learner_policy
    _learner_policy = policy


def reference_score(context: Context) -> Callable[[Ragged, Ragged], Ragged]:
    """The reference policy's scoring function (frozen weights of the start)."""
    folder = folder_path(context.store, weights_only(context.reference.folder))
    return partial(learner(context).score, reference=folder)


def micro_batch_tokens(config: CampaignConfig) -> int:
    """The configured size, halved for every time that memory was too small for it."""
    return max(SMALLEST_MICRO_BATCH_TOKENS, config.learner.micro_batch_tokens >> _halvings)


def shrink_micro_batches() -> None:
    """Halve the micro-batches of the learners made from now on."""
    global _halvings
    _halvings += 1


def close_learner() -> None:
    global _learner, _learner_policy
    if _learner is not None:
        _learner.kill()
    _learner = _learner_policy = None


def close() -> None:
    """Kill every process."""
    global _engine, _engine_policy
    close_learner()
    if _engine is not None:
        _engine.kill()
    _engine = _engine_policy = None
    _tokenizers.clear()
