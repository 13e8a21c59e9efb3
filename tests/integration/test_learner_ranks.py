import os
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from opid_core.errors import ConfigError, DataError, InfrastructureError
from opid_core.samples import micro_batches
from tests.factories import make_tiny_policy_folder
from tests.integration.learner_cases import (
    CONFIG,
    DISTILLATION_AT,
    ENLARGED,
    LORA,
    largest_difference,
    make_samples,
    plain_torch_update,
    sequences_of,
    weights,
)

pytestmark = [
    pytest.mark.integration,
    pytest.mark.usefixtures("frozen_libraries"),
    pytest.mark.skipif(torch.cuda.device_count() == 1, reason="two ranks need two GPUs, or none"),
]

STAGES = (0, 1, 2, 3)
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """policy/, a tied one, and for each ZeRO stage the state one-<stage> that one rank saved after the first update."""
    folder = tmp_path_factory.mktemp("ranks")
    make_tiny_policy_folder(folder / "policy", tied=True)
    return folder


@pytest.fixture(scope="module")
def samples(folder):
    samples = make_samples(folder / "policy")
    (folder / "samples.pkl").write_bytes(pickle.dumps(samples))
    return samples


@pytest.fixture
def make_learner(folder):
    from opid_core.learning.learner import Learner

    learners = []

    def make(state=None, adapter=None, **changes) -> Learner:
        config = CONFIG.model_copy(update=changes)
        learners.append(Learner(folder / "policy", config, threads=1, seed=0, state=state, adapter=adapter))
        return learners[-1]

    yield make
    for learner in learners:
        learner.close()


@pytest.fixture(scope="module")
def one_rank(folder, samples):
    """Scores, and the weights after the second update, of one rank at each stage."""
    from opid_core.learning.learner import Learner

    results = {}
    for stage in STAGES:
        config = CONFIG.model_copy(update={"zero_stage": stage})
        learner = Learner(folder / "policy", config, threads=1, seed=0)
        scores = learner.score(*sequences_of(samples))
        learner.update(samples, seed=3)
        learner.save(folder / f"one-{stage}")
        learner.update(samples, seed=4)
        results[stage] = {"scores": scores, "uninterrupted": weights(learner)}
        learner.close()
    return results


@pytest.fixture(scope="module")
def two_ranks(folder, samples, one_rank):
    """What each of two ranks found (see learner_on_ranks.py)."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run(
        [*torchrun, "-m", "tests.integration.learner_on_ranks", str(folder)],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "LOCAL_RANK"},
        check=True,
    )
    return [torch.load(folder / f"rank-{rank}.pt", weights_only=False) for rank in (0, 1)]


def test_two_ranks_update_as_plain_torch_does_in_any_micro_batches(two_ranks, folder, samples):
    expected, loss = plain_torch_update(folder / "policy", samples, seed=3)
    for stage in STAGES:
        result = two_ranks[0][stage]
        for way in ("", " in one micro-batch") if stage in DISTILLATION_AT else ("",):
            assert largest_difference(result[f"updated{way}"], expected) < ENLARGED
            assert result[f"metrics{way}"]["loss"] == pytest.approx(loss, abs=1e-5)
            assert result[f"metrics{way}"] == pytest.approx(two_ranks[0][0]["metrics"], rel=1e-4)


def test_two_ranks_distil_as_plain_torch_does(two_ranks, folder, samples):
    for stage, distillation in DISTILLATION_AT.items():
        expected, _ = plain_torch_update(folder / "policy", samples, seed=3, distillation=distillation)
        for results in two_ranks:
            assert largest_difference(results[stage]["distilled"], expected) < ENLARGED


def test_two_ranks_train_adapters_as_plain_torch_does_and_one_goes_on_with_them(
    two_ranks, one_rank, make_learner, folder, samples
):
    expected, _ = plain_torch_update(folder / "policy", samples, 3, adapters=two_ranks[0][1]["adapters at first"])
    for stage in DISTILLATION_AT:
        first, second = (results[stage] for results in two_ranks)
        assert largest_difference(first["adapters"], expected) < ENLARGED
        for name in ("adapters", "adapters uninterrupted", "adapters resumed"):
            assert largest_difference(first[name], second[name]) == 0
        assert largest_difference(first["adapters resumed"], first["adapters uninterrupted"]) == 0
        base = one_rank[stage]["scores"].values
        np.testing.assert_allclose(first["base scores"].values, base, atol=1e-5)  # the reference is the frozen base
        state, adapter = folder / f"lora-{stage}", folder / f"adapter-{stage}"
        learner = make_learner(zero_stage=stage, lora=LORA, state=state, adapter=adapter)
        assert largest_difference(weights(learner), first["adapters"]) == 0
        learner.update(samples, seed=4)
        assert largest_difference(weights(learner), first["adapters uninterrupted"]) < 1e-5


def test_two_ranks_that_were_away_go_on_bit_for_bit(two_ranks):
    """Before the first update, between updates, and where they save (`engine.share_gpus`)."""
    for stage in (0, 1, 2):
        for results in (results[stage] for results in two_ranks):
            for name in ("away between updates", "resumed from what was away"):
                assert largest_difference(results[name], results["uninterrupted"]) == 0


def test_every_rank_returns_the_same(two_ranks):
    for stage in STAGES:
        first, second = (results[stage] for results in two_ranks)
        assert first["metrics"] == second["metrics"]
        for name in ("updated", "uninterrupted", "resumed from one"):
            assert largest_difference(first[name], second[name]) == 0
        assert first["progress"] == [(1, 4), (2, 4), (3, 4), (4, 4)]
        assert second["progress"] == []
    assert [results["threads"] for results in two_ranks] == [2, 2]


def test_scores_on_two_ranks_are_those_of_one_in_the_order_given(two_ranks, one_rank, samples):
    lengths = samples.prompt_ids.lengths + samples.response_ids.lengths
    parts = [len(micro_batches(lengths[:count], CONFIG.micro_batch_tokens)) for count in (16, 12)]
    assert parts == [6, 5]  # with 12 sequences one rank has nothing in the last round
    for stage in STAGES:
        for results in two_ranks:
            expected, of_12 = one_rank[stage]["scores"].values, results[stage]["scores of 12"].values
            np.testing.assert_allclose(results[stage]["scores"].values, expected, atol=1e-5)
            np.testing.assert_allclose(of_12, expected[: len(of_12)], atol=1e-5)


def test_the_same_number_of_ranks_continues_bit_for_bit(two_ranks):
    for stage in STAGES:
        for results in two_ranks:
            assert largest_difference(results[stage]["resumed"], results[stage]["uninterrupted"]) == 0
            assert results[stage]["random after resume"] == results[stage]["random"]
        assert two_ranks[0][stage]["random"] != two_ranks[1][stage]["random"]


def test_two_ranks_continue_from_one(two_ranks, one_rank):
    for stage in STAGES:
        assert largest_difference(two_ranks[0][stage]["resumed from one"], one_rank[stage]["uninterrupted"]) < 1e-5


def test_one_rank_continues_from_two_and_from_its_own_state_after_that(
    two_ranks, make_learner, samples, folder, tmp_path, monkeypatch
):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    for stage in STAGES:
        expected = two_ranks[0][stage]["uninterrupted"]
        learner = make_learner(zero_stage=stage, state=folder / f"two-{stage}")
        assert largest_difference(weights(learner), two_ranks[0][stage]["updated"]) == 0
        learner.save(tmp_path / f"again-{stage}")
        learner.update(samples, seed=4)
        assert largest_difference(weights(learner), expected) < 1e-5
        again = make_learner(zero_stage=stage, state=tmp_path / f"again-{stage}")
        again.update(samples, seed=4)
        assert largest_difference(weights(again), weights(learner)) == 0
        for one in (learner, again):
            one.close()
    assert list(temporary.iterdir()) == []


def test_stages_1_and_2_follow_each_other_and_no_others_do(two_ranks, make_learner, samples, folder):
    for saved, stage in ((1, 2), (2, 1)):
        learner = make_learner(zero_stage=stage, state=folder / f"two-{saved}")
        learner.update(samples, seed=4)
        assert largest_difference(weights(learner), two_ranks[0][saved]["uninterrupted"]) < 1e-5
    for saved, stage in ((1, 3), (3, 1), (0, 1), (1, 0)):
        with pytest.raises(ConfigError, match=rf"learner\.zero_stage: {stage} cannot .*two-{saved}, .* use {saved}$"):
            make_learner(zero_stage=stage, state=folder / f"two-{saved}")


def test_no_room_for_the_conversion_is_said_before_it_starts(two_ranks, make_learner, folder):
    huge = folder / "two-2" / "state" / "huge"
    with open(huge, "wb") as file:
        file.truncate(2**43)  # sparse: takes no room itself
    try:
        with pytest.raises(InfrastructureError, match=r"two-2 cannot be converted for 1 ranks .* point TMPDIR"):
            make_learner(zero_stage=2, state=folder / "two-2")
    finally:
        huge.unlink()
    make_learner(zero_stage=2, state=folder / "two-2")


def test_nothing_learned_is_nothing_to_convert(two_ranks, make_learner, folder, tmp_path):
    make_learner(zero_stage=3).save(tmp_path)
    make_learner(zero_stage=3, state=tmp_path)
    record = (tmp_path / "state.json").read_text()
    (tmp_path / "state.json").write_text(record.replace('"ranks": 1', '"ranks": 2'))
    with pytest.raises(DataError, match="before the first optimizer step, by 2 ranks"):
        make_learner(zero_stage=3, state=tmp_path)


def test_damage_in_one_ranks_file_is_an_error_on_all_of_them(two_ranks, folder):
    for results in two_ranks:
        assert results["damaged"].startswith(
            f"{folder / 'damaged'}: state/zero_pp_rank_1_mp_rank_00_optim_states.pt is damaged"
        )


def test_out_of_memory_is_named_and_a_new_learner_goes_on(two_ranks):
    for results in two_ranks:
        outcome = results["out of memory"]
        for name in ("score", "update"):
            assert outcome[name].startswith(
                "out of memory with learner.micro_batch_tokens = 128; a smaller one needs less: "
            )
        np.testing.assert_array_equal(outcome["scores after"].values, results[1]["scores"].values)


def test_the_export_of_two_ranks_is_whole(two_ranks, folder):
    from transformers import AutoModelForCausalLM

    for stage in STAGES:
        exported = AutoModelForCausalLM.from_pretrained(folder / f"export-{stage}")
        tensors = {name: parameter.detach() for name, parameter in exported.named_parameters()}
        assert largest_difference(tensors, two_ranks[0][stage]["updated"]) == 0
