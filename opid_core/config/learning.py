"""Sections of the config about learning: the signal, the update, the warm start."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from opid_core.sections import Section


class MethodConfig(Section):
    """The learning signal (ALGORITHM, sections 2 to 8); docs/methods.md has every method's formula."""

    name: Literal[
        "grpo",
        "gigpo",
        "rloo",
        "dapo",
        "skill_grpo",
        "opsd",
        "grpo_opsd",
        "skill_sd",
        "rlsd",
        "sdar",
        "opid",
    ] = "opid"
    """What is learned from an iteration. Some methods set further keys, see the end of this page; the file's win."""
    baseline: Literal["step", "trajectory"] = "step"
    """Group statistics over all step samples (`released`) or one value a trajectory (`paper`)."""
    normalize: Literal["mean", "mean_std"] = "mean_std"
    """Subtract the group's mean, or also divide by its standard deviation."""
    tied_groups: Literal["keep", "zero"] = "keep"
    """What a group of equal outcomes contributes: the penalty's variance scaled to unit size (`keep`), or nothing."""
    lambda_episode: float = Field(default=0.001, ge=0)
    """Weight of the episode skill's advantage; 0 turns episode skills off."""
    lambda_step: float = Field(default=0.001, ge=0)
    """Weight of the step skill's advantage; 0 turns step skills off."""
    normalize_skill: bool = False
    """`opid`: standardise the skill signal over all tokens that carry it."""
    clip_skill: float | None = Field(default=None, gt=0)
    """`opid`: clip the skill signal to [-c, c]."""
    routing: Literal["critical_first", "episode_only", "step_only", "random", "additive"] = "critical_first"
    """Which skill a step is scored under: its own, else the episode's (`critical_first`); one kind alone; step skills
    at random steps (`random`); or, `opid` only, its own and the episode's (`additive`)."""
    gamma: float = Field(default=0.95, gt=0, le=1)
    """Discount of the step returns (step advantage, statistics selector)."""
    step_weight: float = Field(default=0.0, ge=0)
    """Weight of GiGPO's step advantage (`gigpo`, `opid`)."""
    state_similarity: float | None = Field(default=None, gt=0, le=1)
    """Step advantage: observations at least so similar count as one state; null: identical ones only."""
    resample_tied_rounds: int = Field(default=3, ge=0)
    """`dapo`: at most so many times are further tasks drawn for groups whose outcomes tie, which are not trained on."""
    distillation_coefficient: float = Field(default=0.01, ge=0)
    """Weight of the distillation loss (`opsd`, `grpo_opsd`, `skill_sd`, `sdar`)."""
    gate_beta: float = Field(default=5.0, ge=0)
    """Slope of the distillation loss's gate sigmoid(beta * delta) (`opsd`, `grpo_opsd`, `sdar`)."""
    skill_bank: str | None = None
    """`skill_grpo`: JSON file of static skills by task type, which stand in the policy's prompt while it trains."""
    keep_skill_at_test: bool = False
    """`skill_grpo`: evaluate with the skills of `skill_bank` in the prompt too."""

    @model_validator(mode="after")
    def _fits_method(self) -> MethodConfig:
        if self.routing == "additive" and self.name != "opid":
            raise ValueError("routing additive scores two skills a step, which only the method opid can use")
        if (self.skill_bank is not None) != (self.name == "skill_grpo"):
            raise ValueError("skill_bank must be given for the method skill_grpo, and for no other")
        if self.keep_skill_at_test and self.skill_bank is None:
            raise ValueError("keep_skill_at_test keeps the skills of skill_bank, which is not given")
        return self


class LearnerConfig(Section):
    """The update (ALGORITHM, section 7)."""

    learning_rate: float = Field(default=1e-6, gt=0)
    """AdamW's learning rate."""
    weight_decay: float = Field(default=0.01, ge=0)
    """AdamW's weight decay."""
    adam_betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's betas."""
    epochs: int = Field(default=1, ge=1)
    """Passes over the iteration's samples."""
    mini_batch_samples: int = Field(default=256, ge=1)
    """Step samples of one optimizer step (the last one of a pass may be smaller)."""
    micro_batch_tokens: int = Field(default=16384, ge=64)
    """Most tokens (prompt + response) of one forward and backward pass; changes memory, never the result."""
    clip_low: float = Field(default=0.2, gt=0, lt=1)
    """PPO clip below 1."""
    clip_high: float = Field(default=0.2, gt=0)
    """PPO clip above 1."""
    dual_clip: float | None = Field(default=3.0, gt=1)
    """Dual clip of negative advantages; null turns it off."""
    kl_coefficient: float = Field(default=0.01, ge=0)
    """Weight of the k3 KL to the reference policy; 0 skips its forward passes."""
    aggregation: Literal["token-mean", "seq-mean-token-sum", "seq-mean-token-mean"] = "token-mean"
    """How token losses become one number, over the whole mini-batch."""
    max_gradient_norm: float = Field(default=1.0, gt=0)
    """Gradient clipping."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """DeepSpeed ZeRO stage."""
    ranks: int = Field(default=1, ge=1)
    """Processes that share the update, started by torchrun: one a GPU; on a CPU `threads` is divided among them."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number type of the training weights."""
    gradient_checkpointing: bool = False
    """Trade compute for activation memory."""


class WarmStartConfig(Section):
    """Imitation of expert episodes: how a tiny policy is made. Not used when `policy` names a model folder."""

    episodes: int = Field(default=5000, ge=1)
    """Expert episodes."""
    skill_share: float = Field(default=0.4, ge=0, le=1)
    """Share of samples with a skill in the prompt, so that the policy can use skills in context."""
    detours: float = Field(default=0.1, ge=0, le=1)
    """Chance that a random or failing action is played instead of the expert's, which is still what is imitated:
    teaches recovery."""
    clumsiness: float = Field(default=0.0, ge=0, le=1)
    """Chance that the demonstrator itself acts at random, which is imitated too: leaves reinforcement learning room."""
    seconds: float | None = Field(default=None, gt=0)
    """Stop after this many seconds of training; null trains the given epochs."""
    epochs: int = Field(default=2, ge=1)
    """Passes over the demonstrations."""
    batch_size: int = Field(default=32, ge=1)
    """Samples a step."""
    learning_rate: float = Field(default=2e-3, gt=0)
    """Peak learning rate (linear warm-up, cosine decay)."""
    prompt_loss_weight: float = Field(default=0.1, ge=0)
    """Weight of the loss on prompt tokens."""
    hidden_size: int = Field(default=128, ge=16)
    """Width of the tiny policy."""
    layers: int = Field(default=2, ge=1)
    """Depth of the tiny policy."""
    heads: int = Field(default=4, ge=1)
    """Attention heads."""
