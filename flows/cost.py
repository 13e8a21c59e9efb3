"""What a campaign costs, from its policy's shape, a card's data sheet and assumptions: docs/cost.md has them all.

Nothing here is measured unless `factors` says so: a campaign that has run puts its own seconds in place of the model's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

from flows.memory import BYTES, planned_shape, stored
from flows.reports.standing import LONGEST_S
from opid_core.config import CampaignConfig
from opid_core.errors import ConfigError
from opid_core.learning.methods.base import SkillMethod
from opid_core.policy_shape import PolicyShape
from tasks.commit import WORK
from tasks.results import evaluation_due

ASSUMED_CARD = "assumed"
"""In the name of a card that this machine does not have."""
PHASES = ("rollout", "extract_skills", "rescore", "update", "evaluate", "other")


@dataclass(frozen=True)
class Card:
    """A card's data sheet."""

    peak_flops: float
    """Dense bfloat16 FLOP/s with float32 sums."""
    bandwidth: float
    """Bytes/s of its memory."""
    driver_names: tuple[str, ...] = ()
    """What the driver calls it, after `NVIDIA`."""
    is_cpu: bool = False
    """Whether it is what a rank has of this machine's CPU: a replica more brings nothing then."""


CARDS = {
    "H100": Card(989e12, 3.35e12, ("H100 80GB HBM3",)),
    "H100-PCIe": Card(756e12, 2.0e12, ("H100 PCIe",)),
    "H100-NVL": Card(835e12, 3.9e12, ("H100 NVL",)),
    "H200": Card(989e12, 4.8e12, ("H200",)),
    "H200-NVL": Card(835e12, 4.8e12, ("H200 NVL",)),
    "A100": Card(312e12, 2.04e12, ("A100-SXM4-80GB",)),
    "A100-PCIe": Card(312e12, 1.94e12, ("A100 80GB PCIe",)),
    "A100-40GB": Card(312e12, 1.56e12, ("A100-SXM4-40GB", "A100-PCIE-40GB")),
    "L40S": Card(362e12, 0.864e12, ("L40S",)),
    "RTX4090": Card(165e12, 1.01e12, ("GeForce RTX 4090",)),
    "RTX3090": Card(71e12, 0.936e12, ("GeForce RTX 3090",)),
    "CPU": Card(0.1e12, 20e9, is_cpu=True),
}
"""By name; SXM where no other form is named. Of the CPU: one thread in float32, which is no data sheet's number."""


@dataclass(frozen=True)
class Play:
    """How episodes of an environment go, on average. Tokens of prompts are their characters over 4."""

    steps_share: float
    """Steps of an episode, as a share of `environment.max_steps`."""
    response_tokens: int
    first_prompt_tokens: int
    tokens_per_past_step: int
    """What each step of the history adds to a prompt, up to `environment.history_length` steps."""


PLAYS = {
    "alfworld": Play(0.83, 150, 300, 30),
    "webshop": Play(0.5, 150, 150, 240),
    "search_qa": Play(0.75, 150, 130, 450),
}
"""Prompts of ALFWorld and WebShop are measured, all else here is assumed (docs/cost.md)."""


@dataclass(frozen=True)
class Assumptions:
    """What share of a card's peak is reached, and what the rest takes."""

    score_share: float = 0.25
    """Of the peak, in the learner's forward passes."""
    update_share: float = 0.20
    """Of the peak, in its updates."""
    prefill_share: float = 0.40
    """Of the peak, when the engine reads prompts."""
    bandwidth_share: float = 0.77
    """Of the memory's bandwidth, when it samples."""
    token_overhead_s: float = 2.5e-3
    """Of the engine's host, each token of all running sequences."""
    cached_prompts: float = 0.3
    """Share of prompt tokens that the engine finds in its cache."""
    zero3_share: float = 0.5
    """Of the learner's speed, under ZeRO stage 3."""
    turn_s: float = 2e-3
    """Of the episode loop, each turn: environment, prompt, tokenizer."""
    analyzer_call_s: float = 30.0
    """Of a call to an LLM that writes skills."""
    storage_bytes_per_s: float = 1e9
    """Of the store and of a push of weights."""
    other_s: float = 5.0
    """Commit, gates, routing, starts."""


ASSUMED = Assumptions()


@dataclass(frozen=True)
class Cost:
    """What a campaign takes."""

    gpus: int
    samples: int
    """Step samples an iteration, on average."""
    tokens: float
    """Prompt and response tokens of these samples."""
    seconds: Mapping[str, float]
    """Seconds an iteration by phase; evaluations are spread over all iterations."""
    busy: float
    """Share of the GPUs' time in which they compute."""
    hours: float
    disk_mib: float

    @property
    def gpu_hours(self) -> float:
        return self.hours * self.gpus


def known_card(name: str) -> str:
    """The name of the card as `CARDS` has it, from one in any case. Raises ConfigError that lists those known."""
    card = next((known for known in CARDS if known.lower() == name.lower()), None)
    if card is None:
        raise ConfigError(f"--card: no data sheet of {name!r}; known: {', '.join(CARDS)}")
    return card


def cards(config: CampaignConfig, card: Card) -> int:
    """How many cards a campaign holds: those of the learner's ranks, or of the engine where that needs more."""
    ranks, engine = config.learner.ranks, config.engine
    return ranks if card.is_cpu else max(ranks, engine.replicas * engine.tensor_parallel)


def play_of(config: CampaignConfig) -> Play:
    """How the config's episodes go. Of an environment of one's own: whole episodes, prompts half as long as they may
    be."""
    unknown = Play(1.0, 150, config.rollout.max_prompt_tokens // 2, 0)
    return PLAYS.get(config.environment.name, unknown)


def analyzer_calls(config: CampaignConfig) -> int:
    """Calls to an LLM that writes skills, at most, in an iteration."""
    method = config.method
    wanted = method.uses_skills and method.bank_of_teacher is None and any(_kinds(config))
    return _episodes(config) if wanted and config.analyzer.asks_model else 0


def passes(config: CampaignConfig) -> float:
    """Forward passes of the learner over an iteration's samples, at most: plain, under skills and placebos, and of the
    reference. Under `routing: additive` not each step has a second skill, and yet counts."""
    method, count = config.method, 1 + (config.learner.kl_coefficient > 0)
    if isinstance(method, SkillMethod) and any(_kinds(config)):
        count += 1 + (method.routing == "additive") + bool(method.placebo_episode or method.placebo_step)
    return float(count)


def estimate(
    config: CampaignConfig,
    shape: PolicyShape,
    card: Card,
    assumed: Assumptions = ASSUMED,
    factors: Mapping[str, float] | None = None,
) -> Cost:
    """The cost of the campaign with the policy's `shape` on its `cards`: the first `learner.ranks` of them learn, the
    first `engine.replicas` x `engine.tensor_parallel` sample.

    `factors` (of `calibration`) multiply the seconds of a phase.
    """
    learner, gpus = config.learner, cards(config, card)
    steps, response = _steps(config), _response_tokens(config)
    prompts = [_prompt_tokens(config, step) for step in range(steps)]
    episodes = _episodes(config)
    samples = episodes * steps
    tokens = float(episodes * (sum(prompts) + steps * response))
    forward = flops_a_token(shape, tokens / samples)
    speed = card.peak_flops * learner.ranks * (assumed.zero3_share if learner.zero_stage == 3 else 1.0)
    # Forward, backward (twice that; with LoRA once, as frozen weights get no gradient), and forward again.
    layers = 3 + learner.gradient_checkpointing - (learner.lora is not None)
    store = stored(config, shape)
    rollout_s = play_seconds(config, shape, card, assumed, episodes)
    weights_s, state_s = (mib * 2**20 / assumed.storage_bytes_per_s for mib in (store.lasting_mib, store.state_mib))
    to_store_s = weights_s + (max(0.0, state_s - rollout_s) if config.storage.background else state_s)
    passes_of_push = 1 if learner.lora is None else 2  # adapters are merged into a folder first
    push_s = passes_of_push * shape.parameters * BYTES[learner.dtype] / assumed.storage_bytes_per_s
    updated_s = learner.epochs * layers * tokens * forward / (assumed.update_share * speed)
    evaluations = _evaluations(config)
    played_s = {
        tasks: play_seconds(config, shape, card, assumed, config.evaluation.passes * tasks) for tasks in evaluations
    }
    panels_s = sum(count * played_s[tasks] for tasks, count in evaluations.items())
    factors = factors or {}
    work_s = {
        "rollout": rollout_s,
        "extract_skills": analyzer_calls(config) * assumed.analyzer_call_s / config.analyzer.llm.concurrency,
        "rescore": passes(config) * tokens * forward / (assumed.score_share * speed),
        "update": updated_s,
        "evaluate": panels_s / max(1, config.iterations),
    }
    waiting_s = {
        "rollout": push_s,
        "update": to_store_s,
        "evaluate": push_s * evaluations.total() / max(1, config.iterations),
        "other": assumed.other_s,
    }
    seconds = {p: factors.get(p, 1.0) * (work_s.get(p, 0.0) + waiting_s.get(p, 0.0)) for p in PHASES}
    sampling = min(config.engine.replicas * config.engine.tensor_parallel, gpus)
    using = {"rollout": sampling, "evaluate": sampling, "rescore": learner.ranks, "update": learner.ranks}
    busy_s = sum(factors.get(p, 1.0) * work_s[p] * n for p, n in using.items())
    total_s = sum(seconds.values())
    return Cost(
        gpus=gpus,
        samples=samples,
        tokens=tokens,
        seconds=seconds,
        busy=busy_s / (gpus * total_s),
        hours=config.iterations * total_s / 3600,
        disk_mib=store.campaign_mib,
    )


def play_seconds(config: CampaignConfig, shape: PolicyShape, card: Card, assumed: Assumptions, episodes: int) -> float:
    """Seconds in which the engine plays `episodes`, step by step, each replica as many at once as
    `engine.max_concurrent`. Tensor parallelism makes none of them faster.

    A token of all running sequences takes as long as reading the weights and their caches, or as multiplying, whichever
    is longer; a prompt is multiplied only.
    """
    response = _response_tokens(config)
    of_replica = episodes / min(config.engine.replicas, cards(config, card))
    live = min(of_replica, config.engine.max_concurrent)
    size = BYTES[config.engine.dtype]
    cache_bytes = 2 * shape.layers * shape.key_value_size * size
    seconds = 0.0
    for step in range(_steps(config)):
        prompt = _prompt_tokens(config, step)
        read_s = ((shape.parameters + shape.tied_parameters) * size + live * (prompt + response / 2) * cache_bytes) / (
            assumed.bandwidth_share * card.bandwidth
        )
        flops = flops_a_token(shape, prompt + response)
        multiply_s = live * flops / (assumed.prefill_share * card.peak_flops)
        token_s = max(read_s, multiply_s) + assumed.token_overhead_s
        seconds += response * token_s + (1 - assumed.cached_prompts) * prompt * multiply_s
    of_loop = of_replica if config.rollout.loop == "replicas" else episodes
    return of_replica / live * seconds + of_loop * _steps(config) * assumed.turn_s


def calibration(runs: Sequence[tuple[Mapping[str, float], Mapping[str, float]]]) -> dict[str, float]:
    """Measured over estimated seconds of each phase, over campaigns that have run: pairs of both, an iteration.

    Evaluations take the rollout's factor: one engine plays both, and few iterations have one.
    """
    factors = {}
    for phase in set(PHASES) - {"evaluate"}:
        pairs = [(measured[phase], modelled[phase]) for measured, modelled in runs if phase in measured]
        if (estimated := sum(pair[1] for pair in pairs)) > 0:
            factors[phase] = sum(pair[0] for pair in pairs) / estimated
    return {**factors, "evaluate": factors["rollout"]} if "rollout" in factors else factors


def measured_seconds(metrics: Mapping[str, float]) -> dict[str, float]:
    """Seconds by phase of a campaign's metrics, means over its iterations; empty where it has not run."""
    if "seconds/overhead_s" not in metrics:
        return {}
    of = {name: metrics.get(f"seconds/{name}_s", 0.0) for name in (*WORK, "extract_skills", "store_policy", "overhead")}
    return {
        "rollout": of["push"] + of["rollout"],
        "extract_skills": of["extract_skills"],
        "rescore": of["rescore"],
        "update": of["update"] + of["store_policy"],
        "other": of["overhead"] - of["extract_skills"] - of["store_policy"],  # both are no work of engine or learner
    }


def describe(config: CampaignConfig, cost: Cost, card_name: str) -> str:
    """The estimate of a campaign in words, with what it assumes."""
    seconds = ", ".join(f"{phase} {value:.0f}" for phase, value in cost.seconds.items())
    return (
        f"{sum(cost.seconds.values()):.0f} s an iteration: {seconds}\n"
        f"{_hours(cost.hours)} hours on {cost.gpus} x {card_name} = {_hours(cost.gpu_hours)}, busy {cost.busy:.0%}\n"
        f"{cost.samples:,} samples and {cost.tokens / 1e6:.2f}M tokens an iteration\n{assumptions(config)}"
    )


def first_guess(config: CampaignConfig, *, by_auto: bool = False) -> str | None:
    """How long a campaign of which nothing was measured takes on this machine, in a line that says what it is. None
    where the policy or the card is unknown, or others do the work. `by_auto`: see `card_of`."""
    shape, (card_name, card) = planned_shape(config), card_of(config, None, by_auto=by_auto)
    if shape is None or ASSUMED_CARD in card_name or config.cluster.address is not None:
        return None
    expected = timedelta(seconds=round(min(3600 * estimate(config, shape, card).hours, LONGEST_S)))
    return (
        f"Expected: about {expected} on {cards(config, card)} x {card_name}, an estimate by assumptions "
        "(docs/cost.md) that may be a multiple off, until an iteration has been measured."
    )


def assumptions(config: CampaignConfig) -> str:
    """What an estimate assumes, in words."""
    steps, assumed = _steps(config), ASSUMED
    shortest, longest = _prompt_tokens(config, 0), _prompt_tokens(config, steps)
    prompts = f"{shortest} to {longest}" if shortest < longest else str(longest)
    return (
        f"assumed (docs/cost.md): {steps} steps an episode, {_response_tokens(config)} tokens a response, prompts of "
        f"{prompts} tokens; of the peak {assumed.score_share:.0%} scoring, {assumed.update_share:.0%} updating, "
        f"{assumed.prefill_share:.0%} reading prompts, of the bandwidth {assumed.bandwidth_share:.0%} sampling; "
        f"{assumed.cached_prompts:.0%} of prompts cached; {1e3 * assumed.token_overhead_s:g} ms a token and "
        f"{1e3 * assumed.turn_s:g} ms a turn on the host; {assumed.storage_bytes_per_s / 1e9:g} GB/s to the store"
    )


def card_of(config: CampaignConfig, name: str | None, *, by_auto: bool = False) -> tuple[str, Card]:
    """The card of an estimate and its name: the one asked for, else this machine's GPU where its data sheet is known,
    else an H100 for a policy in bfloat16 and the CPU for one in float32, or where this machine has no GPU and chose the
    type for itself (`by_auto`). Raises ConfigError for an unknown name."""
    import torch

    if not (name or _card_here() or config.learner.dtype == "float32" or (by_auto and not torch.cuda.is_available())):
        return f"H100 ({ASSUMED_CARD}: {_why_no_card_here()})", CARDS["H100"]
    name = known_card(name or _card_here() or "CPU")
    card = CARDS[name]
    if name != "CPU":
        return name, card
    peak_flops = card.peak_flops * config.threads / config.learner.ranks  # the ranks share the threads
    return f"CPU ({config.threads} threads)", replace(card, peak_flops=peak_flops)


def _card_here() -> str | None:
    """The known name of this machine's GPU."""
    import torch

    if not torch.cuda.is_available():
        return None
    return card_called(torch.cuda.get_device_name(0))


def _why_no_card_here() -> str:
    import torch

    if not torch.cuda.is_available():
        return "this machine has no GPU"
    is_slice = " MIG " in torch.cuda.get_device_name(0)
    return f"no data sheet of this machine's {'MIG slice' if is_slice else 'GPU'}"


def card_called(driver_name: str) -> str | None:
    """The name in `CARDS` of a GPU from the driver's, such as `NVIDIA A100-SXM4-40GB`. None for one without a data
    sheet, such as another form of the same chip, or a MIG slice of a card."""
    driver_name = driver_name.removeprefix("NVIDIA ")
    return next((name for name, card in CARDS.items() if driver_name in card.driver_names), None)


def _hours(number: float) -> str:
    return f"{number:,.1f}" if number >= 1 else f"{number:.2g}"


def _kinds(config: CampaignConfig) -> tuple[bool, bool]:
    method = config.method
    return method.uses_kinds(0) if isinstance(method, SkillMethod) and method.wants_skills(0) else (False, False)


def _episodes(config: CampaignConfig) -> int:
    return config.rollout.tasks_per_iteration * config.rollout.group_size


def _steps(config: CampaignConfig) -> int:
    return max(1, round(play_of(config).steps_share * config.environment.max_steps))


def _response_tokens(config: CampaignConfig) -> int:
    return min(play_of(config).response_tokens, config.rollout.max_response_tokens)


def _prompt_tokens(config: CampaignConfig, step: int) -> int:
    play = play_of(config)
    past = min(step, config.environment.history_length)
    return min(config.rollout.max_prompt_tokens, play.first_prompt_tokens + past * play.tokens_per_past_step)


def _evaluations(config: CampaignConfig) -> Counter[int]:
    """How many evaluations of the campaign have so many tasks: `evaluation_due` over all iterations, not walked."""
    last, evaluation = config.iterations, config.evaluation
    ends, between = min(last, 1) + 1, max(0, last - 1) // evaluation.every if evaluation.every else 0
    return Counter({evaluation_due(config, 0): ends}) + Counter({evaluation.tasks: between})


def flops_a_token(shape: PolicyShape, context: float) -> float:
    """Of a forward pass in a sequence of `context` tokens: two a weight that is multiplied (of experts a token's own
    ones), and attention to half of the sequence. Looking up an embedding is free."""
    looked_up = 0 if shape.tied_parameters else shape.vocab_size * shape.hidden_size
    return 2 * (shape.active_parameters - looked_up) + 4 * shape.layers * shape.hidden_size * context / 2
