import json
import os
import shutil
import weakref

import numpy as np
import pyarrow as pa
import pytest
import torch

from opid_core.config import LoraConfig
from opid_core.errors import ConfigError, DataError, NumericsError
from opid_core.samples import Ragged
from tests.factories import VOCABULARY, make_tiny_policy_folder
from tests.integration.learner_cases import (
    CONFIG,
    DISTILLATIONS,
    ENLARGED,
    SAMPLES,
    largest_difference,
    make_samples,
    plain_torch_update,
    sequences_of,
    weights,
)

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("frozen_libraries")]


@pytest.fixture(scope="module")
def policy_folder(tmp_path_factory):
    return make_tiny_policy_folder(tmp_path_factory.mktemp("policy"))


@pytest.fixture
def make_learner(policy_folder):
    from opid_core.learning.learner import Learner

    learners = []

    def make(state=None, **changes) -> Learner:
        config = CONFIG.model_copy(update=changes)
        learners.append(Learner(policy_folder, config, threads=1, seed=0, state=state))
        return learners[-1]

    yield make
    for learner in learners:
        learner.close()


@pytest.fixture(scope="module")
def samples(policy_folder):
    return make_samples(policy_folder)


def test_every_zero_stage_updates_as_plain_torch_does(make_learner, policy_folder, samples):
    """Tied policies: test_learner_ranks.py."""
    expected, loss = plain_torch_update(policy_folder, samples, seed=3)
    metrics = []
    for stage in (0, 1, 2, 3):
        learner = make_learner(zero_stage=stage)
        before = weights(learner)
        metrics.append(learner.update(samples, seed=3))
        assert largest_difference(before, expected) > 1e-3
        assert largest_difference(weights(learner), expected) < 1e-5
    assert metrics[0]["loss"] == pytest.approx(loss, abs=1e-6)
    for other in metrics[1:]:
        assert other == pytest.approx(metrics[0], rel=1e-4)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_shared_prefixes_change_no_score_and_no_update(make_learner, policy_folder, samples, stage, tmp_path):
    """Sequences that are there twice are the largest prefixes of all."""
    twice = samples.select(np.array([0, 5, 0, 7, 9, 1, 5, 2, 0, 7, 3, 4]))
    expected, loss = plain_torch_update(policy_folder, twice, seed=3)
    apart, *sharing = (make_learner(zero_stage=stage, shared_prefixes=shares) for shares in (False, True, True))
    for reference in (None, policy_folder):
        before = apart.score(*sequences_of(twice), reference)
        for learner in sharing:
            scores = learner.score(*sequences_of(twice), reference)
            np.testing.assert_allclose(scores.values, before.values, atol=1e-5, rtol=0)
    for learner in sharing:
        metrics = learner.update(twice, seed=3)
        assert metrics["loss"] == pytest.approx(loss, abs=1e-5)
        assert largest_difference(weights(learner), expected) < 1e-5
    assert largest_difference(*map(weights, sharing)) == 0
    sharing[0].export(tmp_path / "policy")
    exported, loaded = ((folder / "config.json").read_text() for folder in (tmp_path / "policy", policy_folder))
    assert json.loads(exported) == json.loads(loaded)


@pytest.mark.parametrize("distillation", DISTILLATIONS, ids=lambda one: one.name)
def test_a_distillation_loss_is_added_as_plain_torch_adds_it(make_learner, policy_folder, samples, distillation):
    expected, loss = plain_torch_update(policy_folder, samples, seed=3, distillation=distillation)
    for budget in (128, 100_000):
        learner = make_learner(micro_batch_tokens=budget)
        metrics = learner.update(samples, seed=3, extra_loss=distillation.loss)
        assert largest_difference(weights(learner), expected) < ENLARGED
        assert metrics["loss"] == pytest.approx(loss, abs=1e-5)
        reference = 0.05 * metrics["reference_kl"]
        parts = (
            metrics["policy_loss"] + distillation.distillation_coefficient * metrics["distillation_loss"] + reference
        )
        assert metrics["loss"] == pytest.approx(parts, abs=1e-3)  # mini-batches differ in their tokens
    without = plain_torch_update(policy_folder, samples, seed=3)[0]
    assert largest_difference(without, expected) > 1e-3


def test_distillation_without_any_skill_changes_nothing(make_learner, samples):
    bare = samples.with_columns(skill_log_probs=pa.nulls(len(samples), pa.list_(pa.float32())))
    learners = [make_learner(epochs=1), make_learner(epochs=1)]
    plain = learners[0].update(bare, seed=3)
    distilled = learners[1].update(bare, seed=3, extra_loss=DISTILLATIONS[0].loss)
    assert distilled == {**plain, "distillation_loss": 0.0}
    assert largest_difference(*map(weights, learners)) == 0


def test_the_entropy_bonus_is_taken_off_the_loss_whatever_the_micro_batches(make_learner, samples):
    plain = make_learner(epochs=1, mini_batch_samples=SAMPLES).update(samples, seed=3)
    learners = [
        make_learner(epochs=1, mini_batch_samples=SAMPLES, entropy_coefficient=0.5, micro_batch_tokens=budget)
        for budget in (128, 100_000)
    ]
    norms = []
    for metrics in [learner.update(samples, seed=3) for learner in learners]:
        assert metrics["entropy"] == pytest.approx(plain["entropy"], rel=1e-5)
        assert metrics["loss"] == pytest.approx(plain["loss"] - 0.5 * plain["entropy"], rel=1e-5)
        norms.append(metrics["gradient_norm"])
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    assert norms[0] != pytest.approx(plain["gradient_norm"], rel=1e-3)


def test_an_update_has_the_learning_rate_that_it_is_given(make_learner, samples, tmp_path):
    learner = make_learner(epochs=1, mini_batch_samples=SAMPLES, weight_decay=0.0)
    before = weights(learner)
    learner.update(samples, seed=3, learning_rate=1e-5)
    # AdamW's first step moves a weight by the rate, whatever its gradient is (but for an epsilon).
    assert largest_difference(before, weights(learner)) == pytest.approx(1e-5, rel=0.05)
    learner.save(tmp_path)
    continued = make_learner(state=tmp_path, epochs=1, mini_batch_samples=SAMPLES, weight_decay=0.0)
    continued.update(samples, seed=4, learning_rate=1e-4)
    learner.update(samples, seed=4, learning_rate=1e-4)
    assert largest_difference(weights(learner), weights(continued)) == 0


def test_metrics_of_one_step_by_hand(make_learner, samples):
    learner = make_learner(epochs=1, mini_batch_samples=SAMPLES)
    log_probs = learner.score(*sequences_of(samples)).values
    old, reference, advantages = (
        samples.tokens(name).values for name in ("old_log_probs", "reference_log_probs", "skill_advantages")
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
    fresh = make_learner(zero_stage=stage, state=tmp_path)
    assert largest_difference(weights(fresh), saved) == 0
    fresh.update(samples, seed=2)
    assert largest_difference(weights(fresh), expected) == 0
    assert largest_difference(saved, expected) > 0


def test_a_state_that_cannot_be_continued_from_is_refused_by_name(make_learner, samples, tmp_path):
    saved = tmp_path / "saved"
    learner = make_learner()
    learner.update(samples, seed=1)
    learner.save(saved)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: holds no learner state \(state\.json is missing\); `opid verify`"):
        make_learner(state=tmp_path / "empty")
    with pytest.raises(DataError, match=r"nowhere: holds no learner state"):
        make_learner(state=tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"learner\.dtype: bfloat16 cannot .*saved, saved as float32"):
        make_learner(state=saved, dtype="bfloat16")

    def damaged(name: str, spoil) -> None:
        folder = tmp_path / f"damaged-{len(os.listdir(tmp_path))}"
        shutil.copytree(saved, folder)
        spoil(folder / name)
        with pytest.raises(DataError, match=f"{folder}: {name} is (damaged|missing).*; `opid verify`"):
            make_learner(state=folder)

    damaged("state.json", lambda file: file.write_text("{"))
    damaged("state.json", lambda file: file.write_bytes(b"\xff"))
    damaged("state.json", lambda file: file.write_text(file.read_text().replace('"ranks": 1', '"ranks": 0')))
    for name in ("state/mp_rank_00_model_states.pt", "state/zero_pp_rank_0_mp_rank_00_optim_states.pt"):
        damaged(name, lambda file: file.unlink())
        damaged(name, lambda file: os.truncate(file, file.stat().st_size // 2))
        damaged(name, lambda file: os.truncate(file, 0))


def test_a_state_of_another_model_is_refused(make_learner, policy_folder, tmp_path):
    from opid_core.learning.learner import Learner
    from opid_core.policies import make_tiny_policy, save_policy

    make_learner().save(tmp_path / "saved")
    smaller = make_tiny_policy(vocab_size=len(VOCABULARY), hidden_size=64, layers=1, heads=2, max_positions=256, seed=0)
    save_policy(smaller, tmp_path / "smaller", files_from=policy_folder)
    with pytest.raises(DataError, match=r"saved: its learner state is of another model \(model\.layers\.1\."):
        Learner(tmp_path / "smaller", CONFIG, threads=1, seed=0, state=tmp_path / "saved")


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
    policy = weakref.ref(learner._policy)
    del parameter
    learner.close()
    assert (policy() is None) == (stage < 3)  # DeepSpeed itself holds on to the model of stage 3


def test_a_non_finite_loss_stops_before_the_optimizer_step(make_learner, samples):
    learner = make_learner()
    before = weights(learner)
    spoiled = samples.with_columns(outcome_advantage=np.array([3e38, *[0] * (SAMPLES - 1)], np.float32))
    with pytest.raises(NumericsError, match="the loss is"):
        learner.update(spoiled, seed=0)
    assert largest_difference(weights(learner), before) == 0


def test_samples_that_do_not_fit_are_refused_by_number_and_field(make_learner, samples):
    learner = make_learner()
    two = samples.select(np.arange(2))
    right, tokens = two.tokens("old_log_probs")[0].tolist(), len(two.response_ids[1])
    for name, value, error, message in [
        ("skill_advantages", [1.0] * (tokens + 1), DataError, f"sample 1: skill_advantages has {tokens + 1} values"),
        ("old_log_probs", [np.nan] * tokens, NumericsError, "sample 1: old_log_probs is not finite"),
        ("reference_log_probs", None, DataError, "sample 1: either all samples"),
        ("skill_log_probs", [1.0] * (tokens + 1), DataError, f"sample 1: skill_log_probs has {tokens + 1} values"),
    ]:
        with pytest.raises(error, match=message):
            learner.update(two.with_columns(**{name: pa.array([right, value], pa.list_(pa.float32()))}), seed=0)
    empty = Ragged.from_rows([two.response_ids[0], []], np.int32)
    with pytest.raises(DataError, match="sample 1 has an empty prompt or response"):
        learner.update(two.with_columns(response_ids=empty), seed=0)
    with pytest.raises(DataError, match="no reference log-probs"):
        learner.update(two.with_columns(reference_log_probs=pa.nulls(2, pa.list_(pa.float32()))), seed=0)
    with pytest.raises(DataError, match="no sample"):
        learner.update(samples.select(np.arange(0)), seed=0)
    with pytest.raises(DataError, match="row 1 has a prompt without tokens"):
        learner.score(Ragged.from_rows([[5], []], np.int32), Ragged.from_rows([[5], [5]], np.int32))
    assert len(learner.score(*sequences_of(samples.select(np.arange(0))))) == 0


@pytest.mark.parametrize("stage", [1, 3])
def test_the_export_is_a_complete_policy_folder_of_the_updated_weights(make_learner, samples, stage, tmp_path):
    from transformers import AutoModelForCausalLM

    from opid_core.policy_check import check_policy_folder

    learner = make_learner(zero_stage=stage)
    learner.update(samples, seed=0)
    learner.export(tmp_path / "policy")
    check_policy_folder(tmp_path / "policy")
    exported = dict(AutoModelForCausalLM.from_pretrained(tmp_path / "policy").named_parameters())
    assert largest_difference({n: p.detach() for n, p in exported.items()}, weights(learner)) == 0


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2)], ids=["whole", "lora"])
def test_an_export_needs_the_folder_that_was_loaded_no_more(policy_folder, lora, tmp_path):
    """The local cache of a store in S3 may have evicted it by then."""
    from opid_core.learning.learner import Learner

    shutil.copytree(policy_folder, tmp_path / "cached")
    learner = Learner(tmp_path / "cached", CONFIG.model_copy(update={"lora": lora}), threads=1, seed=0)
    shutil.rmtree(tmp_path / "cached")
    learner.export(tmp_path / "policy")
    learner.close()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "policy" / name).read_bytes() == (policy_folder / name).read_bytes()
    assert (tmp_path / "policy" / "config.json").is_file()


def test_bfloat16_trains_with_float32_master_weights(make_learner, samples, policy_folder):
    learner = make_learner(dtype="bfloat16", learning_rate=1e-5, epochs=1)
    before = weights(learner)
    for seed in range(3):
        metrics = learner.update(samples, seed=seed)
    assert np.isfinite(list(metrics.values())).all()
    assert before["lm_head.weight"].dtype == torch.bfloat16
    assert 0 < largest_difference(before, weights(learner)) < 0.05


def test_an_update_writes_nothing_into_the_working_directory(make_learner, samples, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_learner().update(samples, seed=0)
    assert os.listdir(tmp_path) == []


class Runs:
    """Pickled as a call: whoever unpickles it makes the folder."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_state_that_would_run_something_is_refused(make_learner, samples, tmp_path):
    learner = make_learner()
    learner.update(samples, seed=1)
    learner.save(tmp_path / "saved")
    for name in ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"):
        file = tmp_path / "saved" / "state" / name
        whole = file.read_bytes()
        torch.save({"module": Runs(str(tmp_path / "ran"))}, file)
        with pytest.raises(DataError, match=r"saved: holds what no learner saves \(\w+\.mkdir\); `opid verify`"):
            make_learner(state=tmp_path / "saved")
        file.write_bytes(whole)
    assert not (tmp_path / "ran").exists()
    make_learner(state=tmp_path / "saved")
