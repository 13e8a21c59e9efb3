"""Sections of the config about learning: the update, the warm start."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from opid_core.sections import Section


class LoraConfig(Section):
    """LoRA: the policy stays frozen, a low-rank adapter on each chosen linear layer is trained (docs/lora.md)."""

    rank: int = Field(default=8, ge=1)
    """Rank of each adapter."""
    alpha: float = Field(default=16.0, gt=0)
    """An adapter counts alpha / rank times."""
    targets: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Last parts of the names of the linear layers that are adapted, as in `[q_proj, v_proj]`; null: of all but the
    output layer."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Chance that an adapter does not see an input while it is updated. Above 0 an update does not begin with the
    policy that sampled, and micro-batches change the result."""


_Beta = Annotated[float, Field(ge=0, lt=1)]


class LearnerConfig(Section):
    """The update (docs/algorithm.md, section 7)."""

    learning_rate: float = Field(default=1e-6, gt=0)
    """AdamW's learning rate."""
    warmup_iterations: int = Field(default=0, ge=0)
    """The learning rate rises linearly over so many iterations: iteration i, from 1, has i / `warmup_iterations` of it
    (`released`: 15 for search_qa, a tenth of its 150, however many `iterations` are)."""
    weight_decay: float = Field(default=0.01, ge=0)
    """AdamW's weight decay."""
    adam_betas: tuple[_Beta, _Beta] = (0.9, 0.999)
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
    """Weight of the k3 KL to the reference policy (search_qa: `released` 0.001); 0 skips its forward passes."""
    entropy_coefficient: float = Field(default=0.0, ge=0)
    """Weight of the entropy bonus: the entropy of the policy at each response token, aggregated as the loss and taken
    off it (0.001 in the released ALFWorld and WebShop runs)."""
    aggregation: Literal["token-mean", "seq-mean-token-sum", "seq-mean-token-mean"] = "token-mean"
    """How token losses become one number, over the whole mini-batch."""
    max_gradient_norm: float = Field(default=1.0, gt=0)
    """Gradient clipping."""
    dtype: Literal["float32", "bfloat16", "auto"] = "float32"
    """Number type of the training weights; the optimizer's are float32. `auto`: the one that this machine's GPU or CPU
    is faster in, decided as the campaign begins and kept (docs/learner.md); `zero_stage` 1 to 3."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """DeepSpeed ZeRO stage."""
    ranks: int = Field(default=1, ge=1)
    """Processes that share the update, started by torchrun: one a GPU; on a CPU `threads` is divided among them."""
    gradient_checkpointing: bool = False
    """Trade compute for activation memory."""
    shared_prefixes: Literal[True, False, "auto"] = False
    """Compute once what sequences of a micro-batch begin with in common; equal up to rounding, and may be faster for
    larger policies (docs/learner.md). Attention then sees up to twice `micro_batch_tokens`. `auto`: where this
    machine's CPU measures it faster, decided as the campaign begins and kept; false on a GPU."""
    lora: LoraConfig | None = None
    """Train adapters in place of all weights; `{}` is LoRA with its defaults."""

    def learning_rate_in(self, iteration: int) -> float:
        """AdamW's learning rate in iteration `iteration`, from 1."""
        return self.learning_rate * min(1.0, iteration / max(1, self.warmup_iterations))

    @field_validator("zero_stage")
    @classmethod
    def _keeps_master_weights(cls, zero_stage: int, info: ValidationInfo) -> int:
        dtype = info.data.get("dtype", "float32")  # checked before; absent where it is itself wrong
        if zero_stage == 0 and dtype != "float32":
            raise ValueError(f"0 keeps no float32 master weights for dtype {dtype}; use 1, 2 or 3")
        return zero_stage


class WarmStartConfig(Section):
    """Imitation of expert episodes: how a tiny policy is made. Not used when `policy` names a model folder."""

    episodes: int = Field(default=5000, ge=1)
    """Expert episodes."""
    skill_share: float = Field(default=0.4, ge=0, le=1)
    """Chance that a decision is shown again under two step skills (the expert's action and a random one), and chance
    that it is under an episode skill, so that the policy follows what it is told."""
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
    """Decisions a step, each with what it is under the skills."""
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
    tied_embeddings: bool = False
    """Whether the output layer is the embeddings: a policy learns to copy names out of its prompt much sooner."""
