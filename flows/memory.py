"""How much memory and disk a campaign needs, from the policy's shape: estimates for `--dry-run`, to be read as such."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from opid_core.config import CampaignConfig
from opid_core.errors import OpidError
from opid_core.hub import policy_folder
from opid_core.policy_shape import PolicyShape, count_parameters, known_shape

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_MIB = 2**20
STEP_BYTES = {0: (4, 4), 1: (4, 6), 2: (4, 6), 3: (8, 8)}
"""By ZeRO stage, in float32 and in bfloat16: bytes of a parameter of the rank's share that the optimizer's step takes
for a moment, for gradients and roots of second moments (`python -m benchmarks.optimizer_step` measures them)."""
STAGE_3_AT_ONCE = 10**9
"""Parameters that a step works on at once at stage 3 (DeepSpeed's sub_group_size)."""

AWAY_MIB = 2048.0
"""What engine or learner keep on a GPU that they share while they are away from it: contexts, workspaces of libraries,
vLLM's CUDA graphs. Assumed; `benchmarks/gpu.sh` measures it."""

ACTIVATIONS = {False: 34, True: 2}
"""Values kept for the backward pass, a token and unit of width and layer: of a whole one, of a checkpointed one."""


@dataclass(frozen=True)
class Memory:
    """Estimates in MiB for a GPU that holds a rank of the learner and a replica of the engine (or its share of one); on
    a CPU for one rank and one replica."""

    parameters: int
    weights_mib: float
    gradients_mib: float
    optimizer_mib: float
    reference_mib: float
    activations_mib: float
    step_mib: float
    """What the optimizer's step takes for a moment, when the activations are gone."""
    adapter_mib: float
    """With LoRA: the adapters, and one layer's sum of weight and adapter as it is made."""
    engine_weights_mib: float
    one_sequence_mib: float
    """KV cache of one sequence of the greatest length."""

    @property
    def learner_mib(self) -> float:
        """What one rank of the learner holds at most."""
        parts = (self.weights_mib, self.gradients_mib, self.optimizer_mib, self.reference_mib, self.adapter_mib)
        return sum(parts) + max(self.activations_mib, self.step_mib)


def estimate(config: CampaignConfig, shape: PolicyShape | None = None) -> Memory:
    """Of the config's policy, whose `shape` is read from its folder where it is not given.

    ZeRO divides among the ranks: stage 1 the optimizer, 2 the gradients too, 3 the weights too. The frozen reference is
    whole on every rank; with LoRA it is the base, and trained are the adapters alone. The engine's output layer is its
    own, where the policy's is its embeddings; tensor parallelism divides a replica's weights, and its cache among the
    heads of the keys.
    """
    from opid_core.learning.last_layer import LOGITS_AT_ONCE

    shape = shape or policy_shape(config)
    learner, rollout = config.learner, config.rollout
    size, weights, trained = BYTES[learner.dtype], shape.parameters / _MIB, trained_parameters(config, shape) / _MIB

    def share(stage: int) -> float:
        return 1 / learner.ranks if learner.zero_stage >= stage else 1.0

    whole_layers = 1 if learner.gradient_checkpointing else shape.layers  # the last layer is never checkpointed
    values = ACTIVATIONS[False] * whole_layers + ACTIVATIONS[True] * (shape.layers - whole_layers)
    per_token = values * shape.hidden_size * size
    responses = rollout.max_response_tokens / max(1, rollout.max_prompt_tokens)
    read = learner.micro_batch_tokens * responses
    at_once = min(shape.vocab_size * read, 2 * LOGITS_AT_ONCE)
    logits = 4 * 4 * at_once  # in float32: logits, log-probs, and two more for the entropy
    parts = config.engine.tensor_parallel
    cached = (rollout.max_prompt_tokens + rollout.max_response_tokens) * 2 * shape.layers * shape.key_value_size
    return Memory(
        parameters=shape.parameters,
        weights_mib=weights * size * share(3),
        gradients_mib=trained * size * share(2),
        optimizer_mib=trained * (8 + _master(config)) * share(1),
        reference_mib=weights * size if learner.kl_coefficient > 0 and learner.lora is None else 0.0,
        activations_mib=(learner.micro_batch_tokens * per_token + logits) / _MIB,
        step_mib=_step_mib(config, trained * share(1)),
        adapter_mib=trained * size * share(3) + _largest_sum(shape) * (8 + size) / _MIB if learner.lora else 0.0,
        engine_weights_mib=(weights + shape.tied_parameters / _MIB) * BYTES[config.engine.dtype] / parts,
        one_sequence_mib=cached * BYTES[config.engine.dtype] / min(parts, max(1, shape.key_value_heads)) / _MIB,
    )


def smallest_gpu_mib(config: CampaignConfig, memory: Memory) -> float:
    """The least memory of a GPU on which a rank of the learner and the engine's share of it fit side by side, or in
    turns (`engine.share_gpus`)."""
    engine_share = config.engine.gpu_memory_fraction
    of_engine = (memory.engine_weights_mib + memory.one_sequence_mib) / engine_share
    if config.engine.share_gpus:
        return max(memory.learner_mib + AWAY_MIB, of_engine, AWAY_MIB / (1 - engine_share))
    return max(memory.learner_mib / (1 - engine_share), of_engine)


def misfits(config: CampaignConfig, memory: Memory, gpu_mib: float) -> list[str]:
    """What does not fit on a GPU of `gpu_mib`, and what would help; empty where all does."""
    for_engine = config.engine.gpu_memory_fraction * gpu_mib
    problems = []
    if memory.engine_weights_mib + memory.one_sequence_mib > for_engine:
        problems.append(
            f"the engine: {memory.engine_weights_mib:.0f} MiB of weights and {memory.one_sequence_mib:.0f} MiB for one "
            f"sequence do not fit in its {for_engine:.0f} MiB; raise engine.gpu_memory_fraction"
        )
    in_turns, left = config.engine.share_gpus, gpu_mib - for_engine
    if in_turns and left < AWAY_MIB:
        problems.append(
            f"beside the engine: the learner keeps about {AWAY_MIB:.0f} MiB while it is away, {left:.0f} MiB are left; "
            "lower engine.gpu_memory_fraction"
        )
    for_learner = gpu_mib - AWAY_MIB if in_turns else left
    if memory.learner_mib > for_learner:
        stages, last = (
            ("2", "") if in_turns else ("2 or 3", ", lower engine.gpu_memory_fraction, or turn on engine.share_gpus")
        )
        problems.append(
            f"the learner: {memory.learner_mib:.0f} MiB do not fit in {for_learner:.0f} MiB; lower "
            "learner.micro_batch_tokens, turn on learner.gradient_checkpointing, use more learner.ranks with "
            f"learner.zero_stage {stages}{last}"
        )
    return problems


def in_host_mib(config: CampaignConfig, memory: Memory) -> float:
    """What waits in the machine's memory where engine and learner share GPUs: both, as PyTorch keeps what it has locked
    there once for the next time."""
    parts = (memory.weights_mib, memory.optimizer_mib, memory.reference_mib, memory.adapter_mib)
    engine = config.engine
    return config.learner.ranks * sum(parts) + engine.replicas * engine.tensor_parallel * memory.engine_weights_mib


def on_cpu_mib(config: CampaignConfig, memory: Memory) -> float:
    """What all replicas of the engine take on a CPU, their caches included."""
    engine = config.engine
    return engine.replicas * (memory.engine_weights_mib + engine.kv_cache_mib)


def describe(config: CampaignConfig, memory: Memory) -> str:
    """The estimate in words, and whether this machine's GPU, if it has one, is large enough."""
    import torch

    lines = [
        f"learner {memory.learner_mib:.0f} MiB a rank: weights {memory.weights_mib:.0f}, gradients "
        f"{memory.gradients_mib:.0f}, optimizer {memory.optimizer_mib:.0f}, reference {memory.reference_mib:.0f}, "
        f"activations {memory.activations_mib:.0f} or, in the optimizer's step, {memory.step_mib:.0f}"
        + (f", adapters {memory.adapter_mib:.0f}" if config.learner.lora else ""),
        f"engine {memory.engine_weights_mib:.0f} MiB of weights, {memory.one_sequence_mib:.0f} MiB of cache a sequence",
    ]
    needed_gib, engine = smallest_gpu_mib(config, memory) / 1024, config.engine
    sampling, learning = engine.replicas * engine.tensor_parallel, config.learner.ranks
    lines.append(
        f"1 GPU of at least {needed_gib:.1f} GiB: it learns and samples"
        if sampling == learning == 1
        else f"{max(sampling, learning)} GPUs of at least {needed_gib:.1f} GiB each: {_first(learning, 'learn')}, "
        f"{_first(sampling, 'sample')}"
    )
    if engine.share_gpus:
        lines.append(
            f"in turns (engine.share_gpus): {in_host_mib(config, memory) / 1024:.1f} GiB of the machine's memory hold "
            "who waits; PyTorch may round its blocks up to twice that"
        )
    if torch.cuda.is_available():
        gpu_mib = torch.cuda.get_device_properties(0).total_memory / _MIB
        problems = misfits(config, memory, gpu_mib)
        lines += [f"does not fit this GPU ({gpu_mib / 1024:.0f} GiB): {problem}" for problem in problems]
        if not problems:
            lines.append(f"fits this GPU ({gpu_mib / 1024:.0f} GiB)")
    else:
        total = memory.learner_mib * learning + on_cpu_mib(config, memory)
        lines.append(
            f"on this machine, which has no GPU: {total:.0f} MiB with {engine.replicas} "
            f"{'cache' if engine.replicas == 1 else 'caches'} of {engine.kv_cache_mib} MiB, and about 3 GiB (more with "
            "replicas) that Python, PyTorch, vLLM and Prefect take in their processes"
        )
    return "\n".join(lines)


def _first(count: int, do: str) -> str:
    return f"the first {do}s" if count == 1 else f"the first {count} {do}"


@dataclass(frozen=True)
class Stored:
    """What the store takes at most, in MiB: of an iteration what stays and its optimizer state, and of the campaign."""

    lasting_mib: float
    state_mib: float
    campaign_mib: float
    temporary_mib: float
    """What the temporary folder holds at a time: a new policy until all of it is stored, and a merged one (LoRA)."""


def stored(config: CampaignConfig, shape: PolicyShape | None = None, done: int = 0) -> Stored:
    """Policies (with LoRA that of the start, and adapters), optimizer states (of all policies, or of the newest
    `storage.optimizer_states` and the one that comes next) and tables; of the campaign what is still to come after its
    first `done` commits."""
    shape = shape or policy_shape(config)
    size, trained = BYTES[config.learner.dtype], trained_parameters(config, shape) / _MIB
    episodes = config.rollout.tasks_per_iteration * config.rollout.group_size
    rows = episodes * config.environment.max_steps
    lasting = trained * size + rows * config.rollout.max_prompt_tokens * 2 / _MIB
    weights_bytes = 0 if config.learner.zero_stage == 3 else size  # at stage 3 a state has the optimizer's copy alone
    state = trained * (weights_bytes + 8 + _master(config))
    base = shape.parameters * size / _MIB if config.learner.lora else 0.0
    policies, states_kept = max(0, config.iterations + 1 - done), config.storage.optimizer_states
    states = policies if states_kept is None else min(policies, states_kept + 1 - min(done, states_kept))
    campaign = lasting * policies + state * states + (0.0 if done else base)
    return Stored(lasting, state, campaign, base + lasting + state if policies else 0.0)


def trained_parameters(config: CampaignConfig, shape: PolicyShape) -> int:
    """How many parameters the learner trains: all, or with LoRA those of its adapters."""
    lora = config.learner.lora
    if lora is None:
        return shape.parameters
    adapted = (one for one in shape.linear if lora.targets is None or one.name in lora.targets)
    return sum(one.count * lora.rank * (one.inputs + one.outputs) for one in adapted)


def _largest_sum(shape: PolicyShape) -> int:
    return max((one.inputs * one.outputs for one in shape.linear), default=0)


def policy_shape(config: CampaignConfig) -> PolicyShape:
    """The shape of the config's policy, or of the one that a warm start would make."""
    folder = None if config.policy is None else policy_folder(config.policy, weights=False)
    return count_parameters(folder, config.warm_start)


def published_shape(config: CampaignConfig) -> PolicyShape | None:
    """The shape of the published model that the policy's name tells, where this machine does not have the policy. None
    where it does, and for an unknown name."""
    policy = config.policy or ""
    is_here = not policy or Path(os.path.expandvars(os.path.expanduser(policy))).is_dir()
    return None if is_here else known_shape(policy)


WHY_UNKNOWN = "the policy is not on this machine, nor one of those known by name, or `dtype: auto` is not decided"
"""Where `planned_shape` is None."""


def planned_shape(config: CampaignConfig) -> PolicyShape | None:
    """`published_shape`, else `policy_shape`. None where neither is known, and before a `dtype: auto` is decided: no
    estimate is of less."""
    if "auto" in (config.learner.dtype, config.engine.dtype):
        return None
    if known := published_shape(config):
        return known
    try:
        return policy_shape(config)
    except OpidError:
        return None


def _step_mib(config: CampaignConfig, share_mib: float) -> float:
    """Of a rank whose share is so many (in 2**20) of the trained parameters."""
    learner = config.learner
    at_once = min(share_mib, STAGE_3_AT_ONCE / _MIB) if learner.zero_stage == 3 else share_mib
    return at_once * STEP_BYTES[learner.zero_stage][learner.dtype == "bfloat16"]


def _master(config: CampaignConfig) -> int:
    """Bytes of a parameter's float32 copy in the optimizer: ZeRO keeps one, even of weights in float32."""
    return 4 if config.learner.zero_stage else 0
