"""One batch for the learner's tests, and what plain torch makes of it."""

import numpy as np
import pyarrow as pa
import torch
import torch.nn.utils.parametrize

from opid_core.config import LearnerConfig, LoraConfig
from opid_core.learning.methods import Sdar, SkillSd
from opid_core.learning.scoring import score
from opid_core.samples import Ragged, Samples
from tests.factories import random_tokens

CONFIG = LearnerConfig(
    learning_rate=1e-3,
    micro_batch_tokens=128,
    mini_batch_samples=8,
    epochs=2,
    kl_coefficient=0.05,
    max_gradient_norm=0.5,
)
LORA = LoraConfig(rank=4, alpha=8)
SAMPLES = 16
DISTILLATIONS = (
    Sdar(teacher="routed", distillation_coefficient=0.3),
    SkillSd(teacher="routed", distillation_coefficient=0.3),
)
"""With coefficients that make them as large as the other losses."""
DISTILLATION_AT = dict(zip((1, 3), DISTILLATIONS, strict=True))
"""What two ranks distil by, at the ZeRO stages at which they also train adapters and take one micro-batch. One rank
trains adapters at every stage (test_lora.py)."""
ENLARGED = 5e-5
"""Largest difference of a weight after an update with distillation or of a tied policy, whose outputs are sharper; both
move weights by more than 1e-3. AdamW divides gradients by their own size, and so enlarges rounding where they are
small."""


def make_samples(policy_folder) -> Samples:
    """Step samples whose old log-probs lie around the policy's own, so that some ratios are clipped; two of three have
    a skill."""
    from transformers import AutoModelForCausalLM

    generator, noise = np.random.default_rng(0), np.random.default_rng(1)
    lengths = generator.integers(2, 30, size=(SAMPLES, 2))
    tokens = [[random_tokens(generator, n) for n in pair] for pair in lengths]
    prompts, responses = (Ragged.from_rows(rows, np.int32) for rows in zip(*tokens, strict=True))
    scores = score(AutoModelForCausalLM.from_pretrained(policy_folder), prompts, responses, micro_batch_tokens=512)

    def around(generator: np.random.Generator, scale: float) -> Ragged:
        drawn = scores.values + generator.normal(scale=scale, size=len(scores.values))
        return Ragged(drawn.astype(np.float32), scores.offsets)

    skill = around(noise, 0.5)
    return Samples.from_columns(
        prompt_ids=prompts,
        response_ids=responses,
        old_log_probs=around(generator, 0.2),
        reference_log_probs=around(generator, 0.2),
        skill_log_probs=pa.array([row if i % 3 else None for i, row in enumerate(skill)], pa.list_(pa.float32())),
        outcome_advantage=np.zeros(SAMPLES, np.float32),
        step_advantage=np.zeros(SAMPLES, np.float32),
        skill_advantages=Ragged(generator.normal(size=len(scores.values)).astype(np.float32), scores.offsets),
    )


def sequences_of(samples: Samples) -> tuple[Ragged, Ragged]:
    """Prompts and responses, as scoring takes them."""
    return samples.prompt_ids, samples.response_ids


def weights(learner) -> dict[str, torch.Tensor]:
    return {name: tensor.clone().cpu() for name, tensor in learner.named_weights()}


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


class _LowRank(torch.nn.Module):
    """A weight with a low-rank matrix added, as torch's own parametrization differentiates it."""

    def __init__(self, a: torch.Tensor, b: torch.Tensor, scale: float) -> None:
        super().__init__()
        self.lora_A, self.lora_B = (torch.nn.Parameter(one.clone()) for one in (a, b))
        self.scale = scale

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + self.scale * self.lora_B @ self.lora_A


def plain_torch_update(
    policy_folder,
    samples,
    seed: int,
    distillation: Sdar | SkillSd | None = None,
    adapters: dict[str, torch.Tensor] | None = None,
) -> tuple[dict[str, torch.Tensor], float]:
    """ALGORITHM, sections 7 and 8, written out for one sample at a time with token-mean aggregation and torch's AdamW.

    `adapters`: those of `LORA` that are trained in place of all weights, as they begin. Returns the trained weights and
    the mean loss of the optimizer steps.
    """
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(policy_folder)
    if adapters is not None:
        model.requires_grad_(False)
        for name in {name.rsplit(".", 1)[0] for name in adapters}:
            added = _LowRank(adapters[f"{name}.lora_A"], adapters[f"{name}.lora_B"], LORA.alpha / LORA.rank)
            torch.nn.utils.parametrize.register_parametrization(model.get_submodule(name), "weight", added)
    trained = {
        name.replace(".parametrizations.weight.0", ""): parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-3, betas=(0.9, 0.999), weight_decay=0.01)
    losses = []
    for epoch in range(2):
        order = np.random.default_rng([seed, epoch]).permutation(len(samples))
        for start in range(0, len(order), 8):
            batch = samples.select(order[start : start + 8])
            optimizer.zero_grad()
            losses.append(0.0)
            has_skill, advantages_of = batch.has("skill_log_probs"), batch.tokens("skill_advantages")
            old_of, reference_of, skill_of = (
                batch.tokens(f"{name}_log_probs") for name in ("old", "reference", "skill")
            )
            for i, (prompt, response) in enumerate(zip(batch.prompt_ids, batch.response_ids, strict=True)):
                logits = model(torch.tensor([[*prompt, *response]])).logits[0]
                log_probs = logits[len(prompt) - 1 : -1].log_softmax(-1)[range(len(response)), response]
                advantages = torch.tensor(advantages_of[i])
                ratio = (log_probs - torch.tensor(old_of[i])).exp()
                loss = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(0.8, 1.2))
                loss = torch.where(advantages < 0, torch.minimum(loss, -3.0 * advantages), loss)
                x = torch.tensor(reference_of[i]) - log_probs
                loss = loss + 0.05 * (x.exp() - x - 1).clamp(-10, 10)
                if distillation is not None and has_skill[i]:
                    away = log_probs - torch.tensor(skill_of[i])
                    if isinstance(distillation, Sdar):
                        extra = torch.sigmoid(-distillation.gate_beta * away).detach() * -away
                    else:
                        extra = ratio * ((-away).exp() - 1 + away)
                    loss = loss + distillation.distillation_coefficient * extra
                loss = loss.sum() / len(batch.response_ids.values)
                loss.backward()
                losses[-1] += float(loss.detach())
            torch.nn.utils.clip_grad_norm_(trained.values(), 0.5)
            optimizer.step()
    return {name: parameter.detach() for name, parameter in trained.items()}, float(np.mean(losses))
