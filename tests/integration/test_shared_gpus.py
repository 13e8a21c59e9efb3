"""Engine and learner with a GPU in turns: what each keeps of its state, and what it frees.

Without a GPU DeepSpeed moves a learner's weights all the same, from one place in memory to another, and vLLM stops an
engine without freeing anything. What leaves a GPU is shown by the tests that need one.
"""

from __future__ import annotations

import gc
import warnings
from functools import partial

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from infra import ray_nodes
from infra.hosting import HostedGroup
from infra.ray_hosting import RayGroup
from infra.store import open_campaign, put_folder
from opid_core.config import EngineConfig, build_config
from opid_core.errors import InfrastructureError, OutOfMemory
from opid_core.policies import make_tiny_policy
from opid_core.rollout.engines.vllm import canary_gap
from opid_core.rollout.episodes import run_episodes
from tasks import places
from tasks.remote_engine import RemoteEngine
from tasks.workers import Workers
from tests.clusters import raylets
from tests.factories import EOS_ID, make_tiny_policy_folder, make_tokenizer
from tests.integration.learner_cases import CONFIG, LORA, largest_difference, make_samples, sequences_of, weights
from tests.opid_core.rollout.scripted import SETTINGS, TOKENIZER, Room, request

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("frozen_libraries")]
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
MIB = 2**20


@pytest.fixture(scope="module")
def policy_folder(tmp_path_factory):
    return make_tiny_policy_folder(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def samples(policy_folder):
    return make_samples(policy_folder)


@pytest.fixture
def make_learner(policy_folder):
    from opid_core.learning.learner import Learner

    learners = []

    def make(folder=policy_folder, state=None, **changes) -> Learner:
        learners.append(Learner(folder, CONFIG.model_copy(update=changes), threads=1, seed=0, state=state))
        return learners[-1]

    yield make
    for learner in learners:
        learner.close()


@pytest.mark.parametrize(("stage", "lora"), [(0, None), (1, None), (2, LORA)])
def test_a_learner_that_was_away_goes_on_bit_for_bit(make_learner, policy_folder, samples, tmp_path, stage, lora):
    """Before its first update, between updates, and where it saves."""
    found = []
    for is_moved in (False, True):
        learner = make_learner(zero_stage=stage, lora=lora)

        def away(learner=learner, is_moved=is_moved) -> None:
            for move in 2 * [learner.offload] + 2 * [learner.reload] if is_moved else []:
                move()

        away()
        first = learner.update(samples, seed=3)
        reference = learner.score(*sequences_of(samples), reference=policy_folder).values
        away()
        scores = learner.score(*sequences_of(samples)).values
        assert (learner.score(*sequences_of(samples), reference=policy_folder).values == reference).all()
        second = learner.update(samples, seed=4)
        away()
        learner.save(tmp_path / str(is_moved))
        learner.update(samples, seed=5)
        found.append((first, second, scores.tolist(), weights(learner)))
    (*stayed, stayed_weights), (*moved, moved_weights) = found
    assert moved == stayed
    assert largest_difference(moved_weights, stayed_weights) == 0
    continued = make_learner(zero_stage=stage, lora=lora, state=tmp_path / "True")
    continued.update(samples, seed=5)
    assert largest_difference(weights(continued), stayed_weights) == 0


def held() -> set[StorageWeakRef]:
    """The memory of all tensors of many numbers."""
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names of torch's that `isinstance` reads
        tensors = [one for one in gc.get_objects() if isinstance(one, torch.Tensor) and one.device.type != "meta"]
    return {StorageWeakRef(one.untyped_storage()) for one in tensors if one.numel() > 1000}


@pytest.mark.skipif(torch.cuda.is_available(), reason="counts what is left without a GPU")
@pytest.mark.parametrize("stage", [1, 2])
def test_nothing_holds_on_to_the_weights_of_a_learner_that_is_away(make_learner, samples, stage):
    """Weights, their float32 copies and the two moments are one block each. Without a GPU the moments stay in place."""
    before = held()
    learner = make_learner(zero_stage=stage)
    learner.update(samples, seed=3)
    of_learner = held() - before
    assert len(of_learner) == 4
    learner.offload()
    gc.collect()
    assert sum(not block.expired() for block in of_learner) == 2


def played_and_learned(root, policy_folder, samples, calls, *, ranks, zero_stage, share_gpus, address=None):
    """What the processes of a campaign play, score, update, store and play again, with a replica for each rank."""
    config = build_config(
        {
            "campaign": f"shared-{share_gpus}-{address is None}",
            "root": str(root),
            "threads": ranks,
            "cluster": {"address": address},
            "engine": {"max_concurrent": 8, "kv_cache_mib": 16, "share_gpus": share_gpus, "replicas": ranks},
            "learner": {**CONFIG.model_dump(mode="json"), "ranks": ranks, "zero_stage": zero_stage},
            "rollout": {"max_prompt_tokens": 96, "max_response_tokens": 32},
        }
    )
    store = open_campaign(config.root, config.campaign, config.model_dump(mode="json"))
    policy = put_folder(store, policy_folder, "policies/000000/start")
    asked = [request(f"{member}", seed=member) for member in range(4)]

    def played(engine) -> list[tuple[list[int], list[float]]]:
        episodes = run_episodes(engine, TOKENIZER, Room, asked, SETTINGS)
        return [([*turn.response_ids], [*turn.log_probs]) for episode in episodes for turn in episode.turns]

    calls.clear()
    with Workers(config, store) as processes:
        turns = played(processes.engine(policy))
        scores = processes.reference_score(policy, policy)(*sequences_of(samples)).values
        with processes.updating(policy) as learner:
            numbers = learner.update(samples, seed=3, learning_rate=1e-3, extra_loss=None, on_progress=lambda *_: None)
            updated = learner.store(store, "policies/000001/next")
        processes.updated(updated)
        turns += played(processes.engine(updated))
        stored = processes.stored()
        scores_after = processes.learner(stored).score(*sequences_of(samples)).values
    hashes = {file.path: file.content_hash for file in stored.files if file.path.endswith(".safetensors")}
    assert scores.tolist() != scores_after.tolist()
    return turns, scores.tolist(), numbers, hashes, scores_after.tolist()


@pytest.fixture
def calls(monkeypatch) -> list[tuple[str, str]]:
    """What the groups of this process are told from here on, but for what engines sample: name and method."""
    told: list[tuple[str, str]] = []

    def written_down(real):
        def call(group, method, *arguments, **named):
            if method != "advance":
                told.append((group.name, method))
            return real(group, method, *arguments, **named)

        return call

    for kind in (HostedGroup, RayGroup):
        for name in ("call", "begin"):
            monkeypatch.setattr(kind, name, written_down(getattr(kind, name)))
    return told


@pytest.mark.slow  # the order of calls: tests/tasks/test_workers.py
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("ranks", "zero_stage"), [(1, 1), (2, 1), (2, 2)])
def test_real_processes_do_the_same_in_turns_as_side_by_side(
    policy_folder, samples, tmp_path, monkeypatch, calls, ranks, zero_stage
):
    monkeypatch.setattr(places, "visible_gpus", lambda: ["0", "1"])  # passes the check; there may be none
    how = {"ranks": ranks, "zero_stage": zero_stage}
    apart, in_turns = (
        played_and_learned(tmp_path, policy_folder, samples, calls, share_gpus=share_gpus, **how)
        for share_gpus in (False, True)
    )
    assert in_turns == apart


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(1800)
def test_the_nodes_of_a_cluster_do_in_turns_what_one_machine_does(policy_folder, samples, tmp_path, monkeypatch, calls):
    monkeypatch.setattr(places, "visible_gpus", lambda: ["0", "1"])
    how = {"ranks": 2, "zero_stage": 1, "share_gpus": True}
    here = played_and_learned(tmp_path, policy_folder, samples, calls, **how)
    told_here = [*calls]
    with raylets(2, cpus=1, gpus=1) as cluster:  # which need not be there
        try:
            there = played_and_learned(tmp_path, policy_folder, samples, calls, address=cluster.address, **how)
        finally:
            ray_nodes.disconnect()
    assert there == here
    assert calls == told_here
    learner = [method for name, method in calls if name == "learner"]
    assert learner == [
        *("score", "offload"),  # the check of the engine
        *("reload", "score", "update", "store", "offload"),
        *("reload", "score", "offload", "stored", "reload", "score"),
    ]


# With a GPU ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large_folder(tmp_path_factory):
    """Of 54M parameters: 1 GiB with its optimizer, which no library's workspace comes near."""
    folder = tmp_path_factory.mktemp("large")
    policy = make_tiny_policy(vocab_size=512, hidden_size=1024, layers=4, heads=16, max_positions=256, seed=0)
    policy.config.eos_token_id = EOS_ID
    policy.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def test_a_gpu_that_others_hold_is_no_reason_for_smaller_micro_batches(make_learner, monkeypatch):
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    learner = make_learner()
    monkeypatch.setattr("opid_core.learning.learner.reload", full)
    with pytest.raises(InfrastructureError, match=r"engine\.gpu_memory_fraction") as error:
        learner.reload()
    assert not isinstance(error.value, OutOfMemory)


@needs_gpu
@pytest.mark.parametrize("lora", [None, LORA], ids=["whole", "lora"])
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_learner_that_is_away_leaves_its_gpu_and_comes_back_to_it(make_learner, large_folder, samples, stage, lora):
    before = torch.cuda.memory_allocated()
    learner = make_learner(large_folder, zero_stage=stage, lora=lora)
    learner.update(samples, seed=3)
    learner.score(*sequences_of(samples), reference=large_folder)
    there, expected = torch.cuda.memory_allocated() - before, weights(learner)
    learner.offload()
    assert torch.cuda.memory_allocated() - before < 64 * MIB < there / 4
    learner.reload()
    assert largest_difference(weights(learner), expected) == 0
    assert torch.cuda.memory_allocated() - before == pytest.approx(there, rel=0.1)
    learner.update(samples, seed=4)


@needs_gpu
def test_an_engine_that_sleeps_leaves_its_gpu_and_plays_on_with_its_weights(large_folder):
    config = EngineConfig(max_concurrent=8, gpu_memory_fraction=0.3, share_gpus=True)
    learner = HostedGroup("learner", places.LEARNER, large_folder, CONFIG, threads=1, seed=0)
    group = HostedGroup("engine", places.ENGINE, large_folder, config, max_model_len=128, threads=1, seed=0)
    engine = RemoteEngine("engine", group, large_folder)
    score = partial(learner.call, "score")
    try:
        learner.call("offload")
        assert canary_gap([engine], lambda *rows: (learner.call("reload"), score(*rows))[1], [[5, 6, 7]], 1e-2) < 1e-2
        awake, total = torch.cuda.mem_get_info()
        group.call("sleep")
        assert torch.cuda.mem_get_info()[0] - awake > 0.2 * total
        group.call("wake")
        assert canary_gap([engine], score, [[5, 6, 7]], 1e-2) < 1e-2
        engine.begin_load(large_folder)
        engine.finish()
        group.call("sleep")
        assert torch.cuda.mem_get_info()[0] - awake > 0.2 * total  # new weights too
        group.call("wake")
        assert canary_gap([engine], score, [[5, 6, 7]], 1e-2) < 1e-2
    finally:
        engine.kill()
        learner.kill()
