"""The live handles of this process: one engine, one learner, one reference policy.

Made when first asked for, brought to the policy asked for, closed at the end; after a fault the next call makes a new
one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from infra.store import CampaignStore, folder_path
from opid_core.config import CampaignConfig
from opid_core.errors import OpidError
from tasks.stage import Context, Policy

if TYPE_CHECKING:
    from opid_core.engines.vllm import VllmEngine
    from opid_core.learner import Learner
    from opid_core.scoring import TokenSequence

OPTIMIZER_FOLDER = "optimizer"
"""Inside a policy's folder: the learner's own state, for an exact resume."""
CANARY_PROMPTS = ("Now it's your turn.", "On the table you see nothing. What next?")

_engine: VllmEngine | None = None
_engine_policy: Policy | None = None
_learner: Learner | None = None
_learner_policy: Policy | None = None
_reference: Callable[[Sequence[TokenSequence]], list[np.ndarray]] | None = None
_tokenizers: dict[Path, Any] = {}


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


def make_engine(config: CampaignConfig, folder: Path) -> VllmEngine:
    """A new engine on an HF folder."""
    from opid_core.engines.vllm import VllmEngine

    length = config.rollout.max_prompt_tokens + config.rollout.max_response_tokens
    return VllmEngine(folder, config.engine, max_model_len=length, threads=config.threads, seed=config.seed)


def engine(context: Context) -> VllmEngine:
    """The engine with the weights of `context.policy`, checked against the learner. Raises NumericsError on a gap."""
    global _engine, _engine_policy
    from opid_core.engines.vllm import canary_gap

    if _engine is not None and _engine_policy == context.policy:
        return _engine
    config, store = context.config, context.store
    if _engine is None:
        _engine = make_engine(config, folder_path(store, context.policy.folder))
    live = learner(context)
    encode = tokenizer(store, context.policy).encode
    prompts = [encode(text, add_special_tokens=False) for text in CANARY_PROMPTS]
    try:
        _engine.load_weights(live.named_weights())
        canary_gap(_engine, live.score, prompts)
    except OpidError:
        close_engine()
        raise
    _engine_policy = context.policy
    return _engine


def learner(context: Context) -> Learner:
    """The learner with the weights and optimizer state of `context.policy`."""
    global _learner, _learner_policy
    from opid_core.learner import Learner

    if _learner is not None and _learner_policy == context.policy:
        return _learner
    close_learner()
    folder = folder_path(context.store, context.policy.folder)
    _learner = Learner(folder, context.config.learner, threads=context.config.threads, seed=context.config.seed)
    if (folder / OPTIMIZER_FOLDER).is_dir():
        _learner.load(folder / OPTIMIZER_FOLDER)
    _learner_policy = context.policy
    return _learner


@contextmanager
def updating(context: Context) -> Iterator[Learner]:
    """The learner for an update: its weights belong to no stored policy until `updated` names one, and a fault
    inside the block closes it, so that the next try starts from the stored policy."""
    global _learner_policy
    live = learner(context)
    _learner_policy = None
    try:
        yield live
    except BaseException:
        close_learner()
        raise


def updated(policy: Policy) -> None:
    """The learner's weights are now stored as `policy`."""
    global _learner_policy
    _learner_policy = policy


def reference(context: Context) -> Callable[[Sequence[TokenSequence]], list[np.ndarray]]:
    """The reference policy's scoring function (frozen weights of the start)."""
    global _reference
    if _reference is None:
        from opid_core.scoring import frozen_scorer

        folder = folder_path(context.store, context.reference.folder)
        _reference = frozen_scorer(folder, context.config.learner)
    return _reference


def close_learner() -> None:
    global _learner, _learner_policy
    if _learner is not None:
        _learner.close()
    _learner = _learner_policy = None


def close_engine() -> None:
    """Forget the engine; the next `engine` call makes a new one."""
    global _engine, _engine_policy
    if _engine is not None:
        _engine.close()
    _engine = _engine_policy = None


def close() -> None:
    """Close every handle."""
    global _reference
    close_engine()
    close_learner()
    _reference = None
    _tokenizers.clear()
