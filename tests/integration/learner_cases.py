"""One batch for the learner's tests, and what plain torch makes of it."""

import numpy as np
import torch

from opid_core.config import LearnerConfig
from opid_core.learning.learner import TrainingSample
from opid_core.learning.methods import Distillation
from opid_core.learning.scoring import TokenSequence, score
from tests.tiny_policy import random_tokens

CONFIG = LearnerConfig(
    learning_rate=1e-3,
    micro_batch_tokens=128,
    mini_batch_samples=8,
    epochs=2,
    kl_coefficient=0.05,
    max_gradient_norm=0.5,
)
SAMPLES = 16
DISTILLATIONS = (Distillation("gated", 0.3, gate_beta=5.0), Distillation("ratio_k3", 0.3))
"""With coefficients that make them as large as the other losses."""
DISTILLED_ALIKE = 5e-5
"""Largest difference of a weight after an update with distillation, which moves weights by more than 1e-3; AdamW
divides gradients by their own size, and so enlarges rounding where they are small."""


def make_samples(policy_folder) -> list[TrainingSample]:
    """Step samples whose old log-probs lie around the policy's own, so that some ratios are clipped; two of three have
    a skill."""
    from transformers import AutoModelForCausalLM

    generator, noise = np.random.default_rng(0), np.random.default_rng(1)
    lengths = generator.integers(2, 30, size=(SAMPLES, 2))
    sequences = [TokenSequence(random_tokens(generator, p), random_tokens(generator, r)) for p, r in lengths]
    scores = score(AutoModelForCausalLM.from_pretrained(policy_folder), sequences, micro_batch_tokens=512)
    skill = [scored + noise.normal(scale=0.5, size=len(scored)).astype(np.float32) for scored in scores]
    return [
        TrainingSample(
            sequence.prompt_ids,
            sequence.response_ids,
            old_log_probs=scored + generator.normal(scale=0.2, size=len(scored)).astype(np.float32),
            reference_log_probs=scored + generator.normal(scale=0.2, size=len(scored)).astype(np.float32),
            advantages=generator.normal(size=len(scored)).astype(np.float32),
            skill_log_probs=skill[index] if index % 3 else None,
        )
        for index, (sequence, scored) in enumerate(zip(sequences, scores, strict=True))
    ]


def sequences_of(samples) -> list[TokenSequence]:
    return [TokenSequence(sample.prompt_ids, sample.response_ids) for sample in samples]


def weights(learner) -> dict[str, torch.Tensor]:
    return {name: tensor.clone().cpu() for name, tensor in learner.named_weights()}


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def plain_torch_update(
    policy_folder, samples, seed: int, distillation: Distillation | None = None
) -> tuple[dict[str, torch.Tensor], float]:
    """ALGORITHM, sections 7 and 8, written out for one sample at a time with token-mean aggregation and torch's AdamW.

    Returns the weights and the mean loss of the optimizer steps.
    """
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(policy_folder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.999), weight_decay=0.01)
    losses = []
    for epoch in range(2):
        order = np.random.default_rng([seed, epoch]).permutation(len(samples))
        for start in range(0, len(order), 8):
            batch = [samples[i] for i in order[start : start + 8]]
            tokens = sum(len(sample.response_ids) for sample in batch)
            optimizer.zero_grad()
            losses.append(0.0)
            for sample in batch:
                logits = model(torch.tensor([[*sample.prompt_ids, *sample.response_ids]])).logits[0]
                predicted = logits[len(sample.prompt_ids) - 1 : -1].log_softmax(-1)
                log_probs = predicted[range(len(sample.response_ids)), sample.response_ids]
                advantages = torch.tensor(sample.advantages)
                ratio = (log_probs - torch.tensor(sample.old_log_probs)).exp()
                loss = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(0.8, 1.2))
                loss = torch.where(advantages < 0, torch.minimum(loss, -3.0 * advantages), loss)
                x = torch.tensor(sample.reference_log_probs) - log_probs
                loss = loss + 0.05 * (x.exp() - x - 1).clamp(-10, 10)
                if distillation is not None and sample.skill_log_probs is not None:
                    away = log_probs - torch.tensor(sample.skill_log_probs)
                    if distillation.kind == "gated":
                        extra = torch.sigmoid(-distillation.gate_beta * away).detach() * -away
                    else:
                        extra = ratio * ((-away).exp() - 1 + away)
                    loss = loss + distillation.coefficient * extra
                loss = loss.sum() / tokens
                loss.backward()
                losses[-1] += float(loss.detach())
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
    return {name: parameter.detach() for name, parameter in model.named_parameters()}, float(np.mean(losses))
