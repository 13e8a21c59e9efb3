import dataclasses
import os

import numpy as np
import pytest
import torch

from opid_core.config import LearnerConfig
from opid_core.errors import ConfigError, DataError, NumericsError
from opid_core.scoring import TokenSequence
from tests.tiny_policy import make_tiny_policy_folder, random_tokens

pytestmark = pytest.mark.integration

CONFIG = LearnerConfig(
    learning_rate=1e-3,
    micro_batch_tokens=128,
    mini_batch_samples=8,
    epochs=2,
    kl_coefficient=0.05,
    max_gradient_norm=0.5,
)
SAMPLES = 16


@pytest.fixture(scope="module")
def policy_folder(tmp_path_factory):
    return make_tiny_policy_folder(tmp_path_factory.mktemp("policy"))


@pytest.fixture
def make_learner(policy_folder):
    from opid_core.learner import Learner

    learners = []

    def make(**changes) -> Learner:
        learners.append(Learner(policy_folder, CONFIG.model_copy(update=changes), threads=1, seed=0))
        return learners[-1]

    yield make
    for learner in learners:
        learner.close()


@pytest.fixture(scope="module")
def samples(policy_folder):
    """Step samples whose old log-probs lie around the policy's own, so that some ratios are clipped."""
    from transformers import AutoModelForCausalLM

    from opid_core.learner import TrainingSample
    from opid_core.scoring import score

    generator = np.random.default_rng(0)
    lengths = generator.integers(2, 30, size=(SAMPLES, 2))
    sequences = [TokenSequence(random_tokens(generator, p), random_tokens(generator, r)) for p, r in lengths]
    scores = score(AutoModelForCausalLM.from_pretrained(policy_folder), sequences, micro_batch_tokens=512)
    return [
        TrainingSample(
            sequence.prompt_ids,
            sequence.response_ids,
            old_log_probs=scored + generator.normal(scale=0.2, size=len(scored)).astype(np.float32),
            reference_log_probs=scored + generator.normal(scale=0.2, size=len(scored)).astype(np.float32),
            advantages=generator.normal(size=len(scored)).astype(np.float32),
        )
        for sequence, scored in zip(sequences, scores, strict=True)
    ]


def weights(learner) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in learner.named_weights()}


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def plain_torch_update(policy_folder, samples, seed: int) -> dict[str, torch.Tensor]:
    """ALGORITHM, section 7, written out for one sample at a time with token-mean aggregation and torch's AdamW."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(policy_folder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.999), weight_decay=0.01)
    for epoch in range(2):
        order = np.random.default_rng([seed, epoch]).permutation(len(samples))
        for start in range(0, len(order), 8):
            batch = [samples[i] for i in order[start : start + 8]]
            tokens = sum(len(sample.response_ids) for sample in batch)
            optimizer.zero_grad()
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
                (loss.sum() / tokens).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def test_every_zero_stage_updates_as_plain_torch_does(make_learner, policy_folder, samples):
    expected = plain_torch_update(policy_folder, samples, seed=3)
    metrics = []
    for stage in (0, 1, 2, 3):
        learner = make_learner(zero_stage=stage)
        before = weights(learner)
        metrics.append(learner.update(samples, seed=3))
        assert largest_difference(before, expected) > 1e-3
        assert largest_difference(weights(learner), expected) < 1e-5
    for other in metrics[1:]:
        assert other == pytest.approx(metrics[0], rel=1e-4)


def test_metrics_of_one_step_by_hand(make_learner, samples):
    learner = make_learner(epochs=1, mini_batch_samples=SAMPLES)
    scores = learner.score([TokenSequence(s.prompt_ids, s.response_ids) for s in samples])
    log_probs = np.concatenate(scores)
    old, reference, advantages = (
        np.concatenate([getattr(s, name) for s in samples])
        for name in ("old_log_probs", "reference_log_probs", "advantages")
    )
    ratio = np.exp(log_probs - old)
    plain, clipped = -advantages * ratio, -advantages * np.clip(ratio, 0.8, 1.2)
    losses = np.maximum(plain, clipped)
    losses = np.where(advantages < 0, np.minimum(losses, -3 * advantages), losses)
    x = reference - log_probs
    reference_kl = float(np.mean(np.exp(x) - x - 1))
    metrics = learner.update(samples, seed=0)
    assert metrics["tokens"] == len(log_probs)
    assert metrics["optimizer_steps"] == 1
    assert metrics["policy_loss"] == pytest.approx(losses.mean(), rel=1e-4, abs=1e-6)
    assert metrics["reference_kl"] == pytest.approx(reference_kl, rel=1e-4)
    assert metrics["loss"] == pytest.approx(losses.mean() + 0.05 * reference_kl, rel=1e-4, abs=1e-6)
    assert metrics["clip_fraction"] == pytest.approx(np.mean(clipped > plain), abs=1e-9)
    assert metrics["kl_k1"] == pytest.approx(np.mean(old - log_probs), rel=1e-3, abs=1e-6)
    assert metrics["gradient_norm"] > 0.5  # before clipping
    assert metrics["entropy"] > 0


@pytest.mark.parametrize("aggregation", ["token-mean", "seq-mean-token-sum", "seq-mean-token-mean"])
def test_the_result_does_not_depend_on_the_micro_batches(make_learner, samples, aggregation):
    from deepspeed.utils import safe_get_full_optimizer_state

    results = []
    for budget in (64, 200, 100_000):
        learner = make_learner(aggregation=aggregation, micro_batch_tokens=budget, epochs=1, mini_batch_samples=SAMPLES)
        metrics = learner.update(samples, seed=1)
        # After one step AdamW's first moment is 0.1 x the clipped gradient. The weights would be a poorer measure:
        # the step divides a gradient of rounding errors by its own size.
        gradients = {}
        for name, parameter in learner._policy.named_parameters():
            moment = safe_get_full_optimizer_state(parameter, "exp_avg")
            assert moment is not None
            gradients[name] = moment / 0.1
        results.append((metrics, gradients))
    assert max(float(gradient.abs().max()) for gradient in results[0][1].values()) > 1e-2
    for metrics, gradients in results[1:]:
        assert metrics == pytest.approx(results[0][0], rel=1e-5, abs=1e-6)
        assert largest_difference(gradients, results[0][1]) < 1e-6


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_saved_and_loaded_it_continues_bit_for_bit(make_learner, samples, stage, tmp_path):
    learner = make_learner(zero_stage=stage)
    learner.update(samples, seed=1)
    learner.save(tmp_path)
    saved = weights(learner)
    learner.update(samples, seed=2)
    expected = weights(learner)
    fresh = make_learner(zero_stage=stage)
    fresh.load(tmp_path)
    assert largest_difference(weights(fresh), saved) == 0
    fresh.update(samples, seed=2)
    assert largest_difference(weights(fresh), expected) == 0
    assert largest_difference(saved, expected) > 0


def test_loading_from_an_empty_folder_is_refused(make_learner, tmp_path):
    with pytest.raises(DataError, match="holds no learner state"):
        make_learner().load(tmp_path)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_non_finite_gradient_stops_before_the_optimizer_step(make_learner, samples, stage):
    learner = make_learner(zero_stage=stage)
    before = weights(learner)
    # A finite loss with a gradient that is not: it is spoiled on its way back from one weight.
    parameter = next(
        parameter for name, parameter in learner._policy.named_parameters() if name.endswith("norm.weight")
    )
    parameter.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(NumericsError, match="a gradient is not finite"):
        learner.update(samples, seed=0)
    assert largest_difference(weights(learner), before) == 0


def test_a_non_finite_loss_stops_before_the_optimizer_step(make_learner, samples):
    learner = make_learner()
    before = weights(learner)
    spoiled = dataclasses.replace(samples[0], advantages=np.full(len(samples[0].response_ids), 3e38))
    with pytest.raises(NumericsError, match="the loss is"):
        learner.update([spoiled, *samples[1:]], seed=0)
    assert largest_difference(weights(learner), before) == 0


def test_samples_that_do_not_fit_are_refused_by_number_and_field(make_learner, samples):
    learner = make_learner()
    tokens = len(samples[1].response_ids)
    for changes, error, message in [
        ({"advantages": np.ones(tokens + 1)}, DataError, "sample 1: advantages has shape"),
        ({"old_log_probs": np.full(tokens, np.nan)}, NumericsError, "sample 1: old_log_probs is not finite"),
        ({"reference_log_probs": None}, DataError, "sample 1: either all samples"),
        ({"response_ids": []}, DataError, "sample 1 has an empty prompt or response"),
    ]:
        with pytest.raises(error, match=message):
            learner.update([samples[0], dataclasses.replace(samples[1], **changes)], seed=0)
    with pytest.raises(DataError, match="no reference log-probs"):
        learner.update([dataclasses.replace(samples[0], reference_log_probs=None)], seed=0)
    with pytest.raises(DataError, match="no sample"):
        learner.update([], seed=0)


@pytest.mark.parametrize("stage", [1, 3])
def test_the_export_is_a_complete_policy_folder_of_the_updated_weights(make_learner, samples, stage, tmp_path):
    from transformers import AutoModelForCausalLM

    from opid_core.models import check_policy_folder

    learner = make_learner(zero_stage=stage)
    learner.update(samples, seed=0)
    learner.export(tmp_path / "policy")
    check_policy_folder(tmp_path / "policy")
    exported = dict(AutoModelForCausalLM.from_pretrained(tmp_path / "policy").named_parameters())
    assert largest_difference({n: p.detach() for n, p in exported.items()}, weights(learner)) == 0


def test_bfloat16_trains_with_float32_master_weights(make_learner, samples, policy_folder):
    learner = make_learner(dtype="bfloat16", learning_rate=1e-5, epochs=1)
    before = weights(learner)
    for seed in range(3):
        metrics = learner.update(samples, seed=seed)
    assert np.isfinite(list(metrics.values())).all()
    assert before["lm_head.weight"].dtype == torch.bfloat16
    assert 0 < largest_difference(before, weights(learner)) < 0.05
    with pytest.raises(ConfigError, match=r"learner\.zero_stage: 0 keeps no float32 master weights"):
        make_learner(dtype="bfloat16", zero_stage=0)


def test_an_update_writes_nothing_into_the_working_directory(make_learner, samples, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_learner().update(samples, seed=0)
    assert os.listdir(tmp_path) == []
