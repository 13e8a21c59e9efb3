import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import psutil
import pytest
from safetensors.torch import load_file, save_file

from infra.hosting import HostedGroup
from opid_core.config import EngineConfig, LearnerConfig, build_config
from opid_core.errors import ConfigError, DataError, InfrastructureError, NumericsError
from opid_core.rollout.episodes import run_episodes
from opid_core.samples import Ragged, Samples
from tasks.engines import play, start_engine
from tasks.evaluate import panel_requests
from tests.factories import EOS_ID, make_tiny_policy_folder, random_tokens
from tests.opid_core.rollout.scripted import SETTINGS, TOKENIZER, Room, request

pytestmark = pytest.mark.integration

CONFIG = EngineConfig(max_concurrent=8, kv_cache_mib=16)
TOLERANCE = 1e-3


@pytest.fixture(scope="module", autouse=True)
def without_llvmlite():
    """Starting, vLLM reads `__dict__` of all that any loaded module holds, and one object of llvmlite answers that with
    something else. Other tests load it; a campaign's engine has a process of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(sys.modules, "llvmlite.binding.ffi", raising=False)
        yield


@pytest.fixture(scope="module")
def policy_folder(tmp_path_factory):
    return make_tiny_policy_folder(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def engine(policy_folder):
    from opid_core.rollout.engines.vllm import VllmEngine

    return VllmEngine(policy_folder, CONFIG, max_model_len=128, threads=1, seed=0)  # the last test closes it


@pytest.fixture
def learner(policy_folder):
    from opid_core.learning.learner import Learner

    learner = Learner(policy_folder, LearnerConfig(learning_rate=1e-2, kl_coefficient=0.0), threads=1, seed=0)
    yield learner
    learner.close()


def prompts(count: int, seed: int = 0) -> list[list[int]]:
    generator = np.random.default_rng(seed)
    return [random_tokens(generator, int(length)) for length in generator.integers(3, 60, size=count)]


def generate(engine, count: int, temperature: float = 1.0):
    """All completions by request id, and the engine steps at which they came."""
    for index, prompt_ids in enumerate(prompts(count)):
        engine.submit(f"r{index}", prompt_ids, max_tokens=4 + 3 * index, temperature=temperature, seed=index)
    finished, steps = {}, {}
    step = 0
    while not engine.is_idle:
        step += 1
        for completion in engine.step():
            finished[completion.request_id] = completion
            steps[completion.request_id] = step
    return finished, steps


def test_completions_end_at_eos_or_the_limit_and_every_generated_token_is_returned(engine):
    before = engine.tokens_generated
    finished, steps = generate(engine, 12)
    assert sorted(finished) == sorted(f"r{index}" for index in range(12))
    for index in range(12):
        completion = finished[f"r{index}"]
        assert len(completion.log_probs) == len(completion.token_ids)
        assert EOS_ID not in completion.token_ids[:-1]
        if completion.finish_reason == "stop":
            assert completion.token_ids[-1] == EOS_ID
        else:
            assert completion.finish_reason == "length"
            assert len(completion.token_ids) == 4 + 3 * index
    assert engine.tokens_generated - before == sum(len(c.token_ids) for c in finished.values())
    # No barrier: a response that ends early is returned at once, and the places it frees are taken (12 > 8 places).
    assert steps["r0"] <= 4
    assert len(set(steps.values())) > 3


def test_log_probs_are_at_temperature_one_whatever_the_sampling_temperature(engine, learner):
    for temperature in (0.4, 1.0):
        finished, _ = generate(engine, 6, temperature)
        done = [finished[f"r{i}"] for i in range(6)]
        responses = Ragged.from_rows([completion.token_ids for completion in done], np.int32)
        scored = learner.score(Ragged.from_rows(prompts(6), np.int32), responses)
        sampled = np.concatenate([completion.log_probs for completion in done])
        np.testing.assert_allclose(sampled, scored.values, atol=1e-4)


def test_the_same_submissions_give_the_same_tokens(policy_folder, engine):
    """In a fresh process too: the replicas below."""
    engine.load_policy(policy_folder)  # a fresh prefix cache
    finished, _ = generate(engine, 10)
    engine.load_policy(policy_folder)
    again, _ = generate(engine, 10)
    assert again == finished


def test_when_a_request_enters_changes_its_response_by_rounding_at_most(policy_folder, engine):
    """What an asynchronous world's episodes rest on: its answers, and so its turns, come when they come. Another order
    lets another request of a group find its prompt's beginning in the prefix cache, which rounds differently."""
    begin = random_tokens(np.random.default_rng(1), 40)
    results = []
    for order, at_once in ((range(8), True), (range(8), False), (reversed(range(8)), False)):
        engine.load_policy(policy_folder)  # a fresh prefix cache
        finished = {}
        for index in order:
            prompt = [*begin, *prompts(8)[index]]
            engine.submit(f"r{index}", prompt, max_tokens=24, temperature=1.0, seed=index)
            finished |= {} if at_once else {completion.request_id: completion for completion in engine.step()}
        while not engine.is_idle:
            finished |= {completion.request_id: completion for completion in engine.step()}
        results.append(finished)
    first, *others = results
    for name, completion in first.items():
        for other in others:
            assert other[name].token_ids == completion.token_ids
            np.testing.assert_allclose(other[name].log_probs, completion.log_probs, atol=1e-5)


def test_the_canary_passes_before_and_after_a_push_and_catches_a_missing_one(engine, learner, policy_folder, tmp_path):
    from opid_core.rollout.engines.vllm import canary_gap

    learner.export(tmp_path / "before")
    engine.load_policy(tmp_path / "before")
    assert canary_gap([engine], learner.score, prompts(4), TOLERANCE) < 1e-4
    finished, _ = generate(engine, 8)
    done = [finished[f"r{i}"] for i in range(8)]
    log_probs = Ragged.from_rows([completion.log_probs for completion in done], np.float32)
    samples = Samples.from_columns(
        prompt_ids=Ragged.from_rows(prompts(8), np.int32),
        response_ids=Ragged.from_rows([completion.token_ids for completion in done], np.int32),
        old_log_probs=log_probs,
        outcome_advantage=np.array([1, -1] * 4, np.float32),
        step_advantage=np.zeros(8, np.float32),
        skill_advantages=Ragged(np.zeros_like(log_probs.values), log_probs.offsets),
    )
    learner.update(samples, seed=0)
    with pytest.raises(NumericsError, match="does not hold the learner's weights"):
        canary_gap([engine], learner.score, prompts(4), TOLERANCE)
    learner.export(tmp_path / "after")
    engine.load_policy(tmp_path / "after")
    assert canary_gap([engine], learner.score, prompts(4), TOLERANCE) < 1e-4
    engine.load_policy(policy_folder)


def test_one_call_submits_and_samples_until_a_response_ends(engine, policy_folder, learner, tmp_path):
    """`advance` gives what `submit` and `step` do."""
    engine.load_policy(policy_folder)
    expected, _ = generate(engine, 4)
    asked = [
        {"request_id": f"r{i}", "prompt_ids": ids, "max_tokens": 4 + 3 * i, "temperature": 1.0, "seed": i}
        for i, ids in enumerate(prompts(4))
    ]
    learner.export(tmp_path)  # another policy: the learner was updated
    engine.load_policy(tmp_path)
    engine.load_policy(policy_folder)
    found, sampled = {}, 0
    while asked or not engine.is_idle:
        completions, tokens, held = engine.advance(asked)
        assert completions
        assert held == policy_folder
        asked, sampled = [], sampled + tokens
        found |= {c.request_id: c for c in completions}
    assert found == expected
    assert sampled == sum(len(c.token_ids) for c in found.values())


def test_an_incomplete_push_is_refused(engine, policy_folder, tmp_path):
    weights = load_file(policy_folder / "model.safetensors")
    save_file(
        {name: tensor for name, tensor in weights.items() if name != "lm_head.weight"}, tmp_path / "model.safetensors"
    )
    with pytest.raises(DataError, match=r"1 weights are missing, such as lm_head\.weight"):
        engine.load_policy(tmp_path)


def test_weights_and_canary_wait_for_an_idle_engine(engine, learner, policy_folder):
    from opid_core.rollout.engines.vllm import canary_gap

    engine.submit("busy", [5, 6, 7], max_tokens=2, temperature=1.0, seed=0)
    with pytest.raises(DataError, match="load_policy: 1 requests still run"):
        engine.load_policy(policy_folder)
    with pytest.raises(DataError, match="canary: requests still run"):
        canary_gap([engine], learner.score, prompts(1), TOLERANCE)
    while not engine.is_idle:
        engine.step()


def test_an_engine_that_has_slept_goes_on_as_before_and_takes_nothing_while_it_sleeps(engine, policy_folder):
    """On a CPU vLLM's sleep mode frees no memory, and does everything else."""
    engine.load_policy(policy_folder)
    expected, _ = generate(engine, 6)
    engine.submit("busy", [5, 6, 7], max_tokens=1, temperature=1.0, seed=0)
    with pytest.raises(DataError, match="sleep: 1 requests still run"):
        engine.sleep()
    engine.step()
    for _ in range(2):
        engine.sleep()
    with pytest.raises(DataError, match="load_policy: the engine sleeps"):
        engine.load_policy(policy_folder)
    with pytest.raises(DataError, match="request r0: the engine sleeps"):
        generate(engine, 1)
    for _ in range(2):
        engine.wake()
    again, _ = generate(engine, 6)  # with an empty prefix cache, as after a push
    assert again == expected


def test_an_empty_prompt_and_one_beyond_the_model_length_are_refused(engine):
    for length in (0, 127):
        with pytest.raises(DataError, match="request long"):
            engine.submit("long", [5] * length, max_tokens=2, temperature=1.0, seed=0)
    assert engine.is_idle


def test_a_cache_too_small_for_one_sequence_is_a_config_error(policy_folder):
    from opid_core.rollout.engines.vllm import VllmEngine

    with pytest.raises(ConfigError, match="vLLM refuses"):
        VllmEngine(policy_folder, CONFIG, max_model_len=100_000, threads=1, seed=0)


def test_two_replicas_play_what_one_engine_plays_and_the_death_of_one_is_named(engine, policy_folder, tmp_path):
    """Four groups of two. Seeds belong to requests, so tokens do not depend on who samples them; new replicas, as the
    next try of a stage has, play the same."""
    asked = [
        replace(request(f"{group}-{member}", seed=2 * group + member), group_id=str(group))
        for group in range(4)
        for member in range(2)
    ]

    def tokens(engine, on_episode=lambda episode: None):
        episodes = run_episodes(engine, TOKENIZER, Room, asked, SETTINGS, on_episode)
        return [([*turn.response_ids], [*turn.log_probs]) for episode in episodes for turn in episode.turns]

    another = make_tiny_policy_folder(tmp_path / "another", seed=1)
    expected = {}
    for folder in (policy_folder, another, policy_folder):
        engine.load_policy(folder)
        expected[folder] = tokens(engine)
    assert expected[another] != expected[policy_folder]
    engines = {**CONFIG.model_dump(), "replicas": 2}
    rollout = {"max_prompt_tokens": 96, "max_response_tokens": 32}
    config = build_config({"campaign": "c", "threads": 2, "engine": engines, "rollout": rollout})
    fleet = start_engine(config, policy_folder, trained=True)
    groups = [cast(HostedGroup, replica.group) for replica in fleet.replicas]
    try:
        assert tokens(fleet) == expected[policy_folder]
        assert fleet.tokens_generated == sum(len(ids) for ids, _ in expected[policy_folder])
        assert all(replica.tokens_generated for replica in fleet.replicas)
        fleet.load_policy(another)
        assert tokens(fleet) == expected[another]
        victim = groups[1].process
        with pytest.raises(InfrastructureError, match=r"the engine replica 2 of 2 died \(killed by SIGKILL\)"):
            tokens(fleet, on_episode=lambda episode: os.kill(victim.pid, signal.SIGKILL))
    finally:
        fleet.kill()
    assert all(group.process.poll() is not None for group in groups)


@pytest.mark.slow  # that a replica which dies is named: the test above
def test_the_engine_below_a_replica_that_plays_is_named_when_it_dies_and_ends_with_it(tmp_path):
    world = {"options": {"generator": {"size": "small", "train": 4, "valid_unseen": 4}}, "max_steps": 3}
    rollout = {"loop": "replicas", "max_prompt_tokens": 464, "max_response_tokens": 24}
    one_at_a_time = {**CONFIG.model_dump(), "max_concurrent": 1}  # so that others still play when the first has ended
    config = build_config(
        {"campaign": "c", "threads": 1, "environment": world, "rollout": rollout, "engine": one_at_a_time}
    )
    fleet = start_engine(config, Path("configs/policies/alfworld_tiny"), trained=False)
    player = psutil.Process(cast(HostedGroup, fleet.replicas[0].group).process.pid)
    try:
        asked = panel_requests(config, 4, 1.0)
        episodes = play(config, fleet, None, asked, 1.0)
        assert [episode.request for episode in episodes] == asked
        assert fleet.tokens_generated == sum(episode.tokens for episode in episodes) > 0
        (below,) = player.children()
        with pytest.raises(InfrastructureError, match=r"the engine died \(killed by SIGKILL\)"):
            play(config, fleet, None, asked, 1.0, on_episode=lambda episode: below.kill())
        assert not below.is_running()
    finally:
        fleet.kill()
    assert not player.is_running()


def test_closing_an_engine_leaves_the_learner_alive_and_a_tied_policy_is_pushed_into_new_ones(
    engine, policy_folder, learner, tmp_path
):
    """The new engines have an output layer of their own, the learner and what it exports have not."""
    from opid_core.learning.learner import Learner
    from opid_core.rollout.engines.vllm import VllmEngine, canary_gap

    engine.close()
    learner.save(tmp_path / "state")  # takes part in the process group
    tied = make_tiny_policy_folder(tmp_path / "tied", tied=True)
    other = make_tiny_policy_folder(tmp_path / "other", tied=True, seed=1)
    (headless := tmp_path / "headless").mkdir()
    weights = load_file(tied / "model.safetensors")
    save_file({n: t for n, t in weights.items() if n != "model.embed_tokens.weight"}, headless / "model.safetensors")
    trained = Learner(tied, LearnerConfig(kl_coefficient=0.0), threads=1, seed=0)
    for _ in range(2):
        fresh = VllmEngine(tied, CONFIG, max_model_len=128, threads=1, seed=0)
        assert canary_gap([fresh], trained.score, prompts(2), TOLERANCE) < 1e-4
        fresh.load_policy(other)
        with pytest.raises(NumericsError):
            canary_gap([fresh], trained.score, prompts(2), TOLERANCE)
        trained.export(tmp_path / "exported")
        fresh.load_policy(tmp_path / "exported")
        assert canary_gap([fresh], trained.score, prompts(2), TOLERANCE) < 1e-4
        with pytest.raises(DataError, match="neither of the tied weights"):
            fresh.load_policy(headless)
        fresh.close()
    trained.close()
    played = VllmEngine(tied, CONFIG, max_model_len=128, threads=1, seed=0, trained=False)
    with pytest.raises(DataError, match="play one tied policy"):
        played.load_policy(tied)
    played.close()
