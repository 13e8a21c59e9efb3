"""`learner.shared_prefixes: auto`: whether computing common prefixes once is faster, where nothing is decided yet
(`flows.auto`)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from flows.cost import CARDS, known_card
from opid_core.architectures import why_no_sharing
from opid_core.config import CampaignConfig
from opid_core.errors import ConfigError
from opid_core.hub import policy_folder
from opid_core.policy_check import check_policy_folder
from opid_core.policy_shape import policy_config
from opid_core.samples import Ragged

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

FASTER = 1.05
"""How many times as fast re-scoring and update must be together. Measurements differ by some hundredths, and a real
iteration of SmolLM2's shape gained more than is measured here (docs/measurements/shared_prefixes.md)."""
SHARED = {"score": 0.3, "update": 0.2}
"""What sharing leaves out of the tokens of a pair of sequences. Of stored iterations it left out 26% and 14% (the
quickstart), and 39% and 33% (SmolLM2) (docs/measurements/shared_prefixes.md)."""
SCORED = 2
"""Sequences that are re-scored for each that is trained on: with and without its skill."""
_PAIRS, _PROMPT, _RESPONSE = 2, 300, 30
_SPREAD = 0.25
"""Of the prompts' lengths: the longest of such a micro-batch is 1.25 times the mean in a stored iteration. Without
sharing, where sequences of like length are together, it is 1.01 to 1.04 times."""
_LAYERS, _PASSES = 3, 3
LARGEST = 100_000_000
"""Parameters of the few layers. Counted, not timed: some 6e12 operations, and as many gradients in memory."""


class Seconds(NamedTuple):
    """Of re-scoring and update in the proportion that an iteration has."""

    alone: float
    """Each sequence by itself."""
    shared: float
    """Common prefixes once."""

    @property
    def faster(self) -> float:
        """How many times as fast sharing is."""
        return self.alone / self.shared


def chosen(config: CampaignConfig, card: str | None) -> tuple[bool, str]:
    """Whether to share on this machine or on the `card` of a data sheet, and why."""
    import torch

    is_gpu = torch.cuda.is_available() if card is None else not CARDS[known_card(card)].is_cpu
    if is_gpu:
        return False, "on a GPU it has not been measured; set it to true to have it"
    folder = None
    if config.policy is not None:
        folder = policy_folder(config.policy, weights=False)
        check_policy_folder(folder, weights=False)
    model = policy_config(folder, config.warm_start)
    if reason := why_no_sharing(model) or why_unmeasured(model):
        return False, reason
    faster = measured(model, config.learner.dtype).faster
    return faster >= FASTER, (
        f"a CPU thread computes layers as the policy's {faster:.2f} times as fast with common prefixes once "
        f"(true from {FASTER:g} on)"
    )


def why_unmeasured(config: PreTrainedConfig) -> str | None:
    """Why a policy of this config is not measured on a CPU; None where it can be. Raises ConfigError for one that
    cannot be made."""
    import torch

    with torch.device("meta"):
        parameters = _small_model(config, torch.float32).num_parameters()
    if parameters <= LARGEST:
        return None
    return (
        f"{_LAYERS} layers of the policy have {parameters / 1e6:,.0f}M parameters, and on a CPU at most "
        f"{LARGEST / 1e6:,.0f}M are measured; set it to true to have it"
    )


def measured(
    config: PreTrainedConfig, dtype: str = "float32", clock: Callable[[], float] = time.thread_time
) -> Seconds:
    """CPU seconds (`clock`) of one thread for micro-batches as an iteration has them, in a random model of `config`
    with few of its layers and that part of its vocabulary.

    Pairs of sequences have the beginning in common that `SHARED` says, and are of unlike length; each alone as many of
    one length. Both ways take turns, and the fastest pass of each counts. Some seconds for a policy of 135M parameters.
    """
    import torch

    from opid_core.learning.scoring import ResponseScorer
    from opid_core.learning.shared_prefixes import share_prefixes

    generator = np.random.default_rng(0)
    alone = _sequences(generator, 0.0, 0.0)
    shared = {name: _sequences(generator, share, _SPREAD) for name, share in SHARED.items()}
    best = dict.fromkeys(((name, shares) for name in SHARED for shares in (True, False)), float("inf"))
    with _one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        policy = _small_model(config, getattr(torch, dtype))
        scorer, own_attention = ResponseScorer(policy).train(), policy.config._attn_implementation
        for _ in range(_PASSES):
            for name, shares in best:  # sharing first: what the first pass takes longer counts against it
                if shares:
                    share_prefixes(policy)
                else:
                    policy.set_attn_implementation(own_attention)
                prompts, responses = shared[name] if shares else alone
                since_s = clock()
                with torch.set_grad_enabled(name == "update"):
                    log_probs, _ = scorer(prompts, responses, entropy=name == "update")
                    if name == "update":
                        log_probs.mean().backward()
                spent_s = clock() - since_s
                policy.zero_grad()
                tokens = len(prompts.values) + len(responses.values)
                best[name, shares] = min(best[name, shares], spent_s / tokens)
    return Seconds(*(SCORED * best["score", shares] + best["update", shares] for shares in (False, True)))


def _sequences(generator: np.random.Generator, share: float, spread: float) -> tuple[Ragged, Ragged]:
    """Prompts and responses, in pairs that have this share of the tokens of both in common."""
    common = round(2 * share * (_PROMPT + _RESPONSE))
    prompts, responses = [], []
    for _ in range(_PAIRS):
        beginning = generator.integers(3, 200, common)
        for factor in (1 - spread, 1 + spread):
            prompts.append([*beginning, *generator.integers(3, 200, round(factor * _PROMPT) - common)])
            responses.append(generator.integers(3, 200, _RESPONSE))
    return Ragged.from_rows(prompts, np.int32), Ragged.from_rows(responses, np.int32)


def _small_model(config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """A random model of `_few_layers`. Raises ConfigError where none can be made."""
    from transformers import AutoModelForCausalLM

    try:
        return AutoModelForCausalLM.from_config(_few_layers(config), dtype=dtype)
    except Exception as error:  # whatever the architecture's own code raises for a value
        raise ConfigError(
            f"learner.shared_prefixes: auto: no small {config.model_type} can be made to measure with; set it to "
            f"true or false ({type(error).__name__}: {error})"
        ) from None


def _few_layers(config: PreTrainedConfig) -> PreTrainedConfig:
    """`config` with a few of its layers, and that part of its vocabulary: the output layer shares nothing, and would
    count for more than it does."""
    values: dict[str, Any] = config.to_dict()
    layers, vocabulary = config.num_hidden_layers, config.vocab_size
    few = min(_LAYERS, layers)
    of_layers = {name: one[:few] for name, one in values.items() if isinstance(one, list) and len(one) == layers}
    changed: dict[str, Any] = {"num_hidden_layers": few, "vocab_size": max(256, vocabulary * few // layers)}
    if (positions := getattr(config, "max_position_embeddings", None)) is not None:  # some look them up in a table
        changed["max_position_embeddings"] = max(positions, round((1 + _SPREAD) * _PROMPT) + _RESPONSE)
    changed |= dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"))  # they may be of the part left out
    own_names = {config.attribute_map.get(name, name): value for name, value in changed.items()}
    return type(config).from_dict({**values, **of_layers, **own_names})


@contextmanager
def _one_thread() -> Iterator[None]:
    """As the learner computes on a CPU, by one thread: several wait for each other on a busy machine."""
    import torch

    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    fills = torch.utils.deterministic.fill_uninitialized_memory  # pyright: ignore[reportAttributeAccessIssue]
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
        torch.utils.deterministic.fill_uninitialized_memory = fills  # pyright: ignore[reportAttributeAccessIssue]
