from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import cards
from flows.memory import (
    describe,
    estimate,
    in_host_mib,
    misfits,
    on_cpu_mib,
    planned_shape,
    policy_shape,
    smallest_gpu_mib,
    stored,
    trained_parameters,
)
from opid_core.config import CampaignConfig, load_config
from opid_core.policy_shape import KNOWN_SHAPES, Linear, PolicyShape

CONFIGS = Path(__file__).parents[2] / "configs" / "paper"
ARCHITECTURES = {
    "alfworld_qwen2.5_3b": {
        "model_type": "qwen2",
        "hidden_size": 2048,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "intermediate_size": 11008,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
    "alfworld_qwen2.5_7b": {
        "model_type": "qwen2",
        "hidden_size": 3584,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "intermediate_size": 18944,
        "vocab_size": 152064,
        "tie_word_embeddings": False,
    },
    "alfworld_qwen3_1.7b": {
        "model_type": "qwen3",
        "hidden_size": 2048,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 6144,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
}
"""What the models' published config.json say."""
SHAPE = PolicyShape(
    parameters=100 * 2**20,
    layers=10,
    hidden_size=64,
    vocab_size=1000,
    key_value_size=32,
    heads=4,
    key_value_heads=2,
    intermediate_size=256,
)


def config_of(name: str, tmp_path: Path, *overrides: str) -> CampaignConfig:
    folder = tmp_path / name
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(ARCHITECTURES[name]))
    data = ["environment.options={}"]  # no official games are needed to count
    return load_config(CONFIGS / f"{name}.yaml", [f"policy={folder}", *data, *overrides])


@pytest.mark.parametrize(
    ("name", "parameters", "tied_parameters", "key_value_size"),
    [
        ("alfworld_qwen2.5_3b", 3_085_938_688, 151_936 * 2_048, 2 * 128),
        ("alfworld_qwen2.5_7b", 7_615_616_512, 0, 4 * 128),
        ("alfworld_qwen3_1.7b", 1_720_574_976, 151_936 * 2_048, 8 * 128),
    ],
)
def test_the_shape_of_a_model_from_its_config_file(name, parameters, tied_parameters, key_value_size, tmp_path):
    """As published; where the folder is not there, by the model's name."""
    config = config_of(name, tmp_path)
    shape = policy_shape(config)
    found = (shape.parameters, shape.tied_parameters, shape.key_value_size)
    assert found == (parameters, tied_parameters, key_value_size)
    away = config.model_copy(update={"policy": load_config(CONFIGS / f"{name}.yaml").policy})
    assert planned_shape(away) == replace(shape, heads=0, key_value_heads=0, intermediate_size=0)
    assert [one.count for one in shape.linear] == 7 * [shape.layers]
    assert planned_shape(config.model_copy(update={"policy": "./models/unknown-3b"})) is None


def test_an_estimate_by_hand(tmp_path):
    config = config_of("alfworld_qwen2.5_3b", tmp_path, "learner.ranks=4", "learner.zero_stage=2")
    shape = SHAPE
    memory = estimate(config, shape)
    assert memory.weights_mib == 200  # bfloat16, whole on every rank below stage 3
    assert memory.gradients_mib == 200 / 4
    assert memory.optimizer_mib == 100 * (8 + 4) / 4  # two moments and the float32 weights
    assert memory.step_mib == 100 * 6 / 4  # gradients in bfloat16 in a row, then in float32
    assert memory.reference_mib == 200
    assert memory.engine_weights_mib == 200
    tied = replace(shape, tied_parameters=3 * 2**20)
    assert estimate(config, tied) == replace(memory, engine_weights_mib=206)  # an output layer of its own
    # 2,048 + 512 tokens, keys and values, 10 layers of width 32, two bytes
    assert memory.one_sequence_mib == 2560 * 2 * 10 * 32 * 2 / 2**20
    # 16,384 tokens: activations of two bytes, of nine layers checkpointed and of the last whole, and four float32
    # values of each logit of a response for each four prompt tokens
    assert memory.activations_mib == 16384 * ((9 * 2 + 34) * 64 * 2 + 4 * 4 * 1000 * 512 / 2048) / 2**20
    whole = config_of("alfworld_qwen2.5_3b", tmp_path, "learner.gradient_checkpointing=false")
    assert estimate(whole, shape).activations_mib == 16384 * (10 * 34 * 64 * 2 + 4 * 4 * 1000 * 512 / 2048) / 2**20
    # Of a vocabulary of 2^17 never more than 2^27 logits at once.
    wide = estimate(config, replace(shape, vocab_size=2**17))
    assert wide.activations_mib - 16384 * (9 * 2 + 34) * 64 * 2 / 2**20 == 4 * 4 * 2**27 / 2**20
    least = smallest_gpu_mib(config, memory)
    assert least == memory.learner_mib / 0.6
    assert misfits(config, memory, least + 1) == []
    (problem,) = misfits(config, memory, least - 1)
    assert problem.startswith("the learner: ")


def test_who_shares_a_gpu_has_it_whole_but_for_what_the_other_keeps(tmp_path):
    """Of Qwen2.5-3B on one rank. The sum is a maximum: two shares of a GPU, or one at a time and 2 GiB."""
    turns = "engine.share_gpus=true"
    config = config_of("alfworld_qwen2.5_3b", tmp_path, turns, "engine.gpu_memory_fraction=0.2")
    memory = estimate(config, SHAPE)
    assert memory == estimate(config_of("alfworld_qwen2.5_3b", tmp_path), SHAPE)
    least = smallest_gpu_mib(config, memory)
    assert least == memory.learner_mib + 2048
    assert misfits(config, memory, least + 1) == []
    (problem,) = misfits(config, memory, least - 1)
    assert problem.startswith("the learner: ")
    assert problem.endswith("learner.zero_stage 2")
    # 0.95 of 20 GiB leave 1 GiB, and the learner keeps 2.
    most = config_of("alfworld_qwen2.5_3b", tmp_path, turns, "engine.gpu_memory_fraction=0.95")
    assert smallest_gpu_mib(most, memory) == pytest.approx(2048 / 0.05)
    (problem,) = misfits(most, memory, 20 * 1024)
    assert problem.startswith("beside the engine: the learner keeps about 2048 MiB while it is away, 1024 MiB are left")
    # weights, their optimizer and the reference on two ranks (12 bytes of each parameter divided), an engine's weights
    ranks = config_of("alfworld_qwen2.5_3b", tmp_path, turns, "learner.ranks=2", "learner.zero_stage=1")
    of_ranks = estimate(ranks, SHAPE)
    assert in_host_mib(ranks, of_ranks) == 2 * (200 + 100 * 12 / 2 + 200) + 200
    assert "in turns (engine.share_gpus): 2.1 GiB of the machine's memory" in describe(ranks, of_ranks)
    assert "in turns" not in describe(config_of("alfworld_qwen2.5_3b", tmp_path), memory)


def test_replicas_hold_the_weights_each_and_tensor_parallelism_divides_them(tmp_path):
    """2 heads of keys: four GPUs divide the weights by four, the cache by two."""
    whole = estimate(config_of("alfworld_qwen2.5_3b", tmp_path), SHAPE)
    memory = estimate(
        config_of("alfworld_qwen2.5_3b", tmp_path, "engine.replicas=2", "engine.tensor_parallel=4"), SHAPE
    )
    assert memory.engine_weights_mib == whole.engine_weights_mib / 4 == 200 / 4
    assert memory.one_sequence_mib == whole.one_sequence_mib / 2
    assert memory.learner_mib == whole.learner_mib
    replicas = config_of("alfworld_qwen2.5_3b", tmp_path, "engine.replicas=3", "engine.kv_cache_mib=64")
    assert on_cpu_mib(replicas, whole) == 3 * (200 + 64)


@pytest.mark.parametrize(
    ("ranks", "replicas", "said"),
    [
        (1, 1, r"1 GPU of at least [\d.]+ GiB: it learns and samples$"),
        (4, 1, r"4 GPUs of at least [\d.]+ GiB each: the first 4 learn, the first samples$"),
        (1, 2, r"2 GPUs of at least [\d.]+ GiB each: the first learns, the first 2 sample$"),
    ],
)
def test_the_plan_counts_gpus_in_words(tmp_path, ranks, replicas, said):
    config = config_of("alfworld_qwen2.5_3b", tmp_path, f"learner.ranks={ranks}", f"engine.replicas={replicas}")
    assert re.search(said, describe(config, estimate(config, SHAPE)), re.MULTILINE)


LORA = "learner.lora={rank: 8, targets: [up, down]}"
ADAPTED = replace(SHAPE, linear=(Linear("down", 256, 64, 10), Linear("q", 64, 64, 10), Linear("up", 64, 256, 10)))
TRAINED = 2 * 10 * 8 * (256 + 64)


def test_adapters_alone_have_gradients_and_an_optimizer(tmp_path):
    """And the reference is the base, which is there already."""
    config = config_of("alfworld_qwen2.5_3b", tmp_path, "learner.ranks=4", "learner.zero_stage=2", LORA)
    memory, mib = estimate(config, ADAPTED), 2**20
    assert trained_parameters(config, ADAPTED) == TRAINED
    assert (memory.weights_mib, memory.reference_mib) == (200, 0)
    assert memory.gradients_mib == 2 * TRAINED / mib / 4
    assert memory.optimizer_mib == 12 * TRAINED / mib / 4
    assert memory.adapter_mib == (2 * TRAINED + 64 * 256 * (4 + 4 + 2)) / mib  # a sum in float32, and as it is used
    full = estimate(config_of("alfworld_qwen2.5_3b", tmp_path, "learner.ranks=4", "learner.zero_stage=2"), ADAPTED)
    assert (memory.activations_mib, full.adapter_mib) == (full.activations_mib, 0)
    assert memory.engine_weights_mib == full.engine_weights_mib


def test_of_adapters_the_store_has_the_base_once(tmp_path):
    few = ("iterations=9", "rollout.tasks_per_iteration=2", "rollout.group_size=4", "environment.max_steps=16")
    config = config_of("alfworld_qwen2.5_3b", tmp_path, *few, "storage.optimizer_states=null", LORA)
    everything, mib = stored(config, ADAPTED), 2**20
    assert everything.lasting_mib == (2 * TRAINED + 2 * 4 * 16 * 2048 * 2) / mib
    assert everything.state_mib == 14 * TRAINED / mib
    assert everything.campaign_mib == 200 + 10 * (everything.lasting_mib + everything.state_mib)
    assert (
        everything.temporary_mib == 200 + everything.lasting_mib + everything.state_mib
    )  # a merged policy, and its own
    later = stored(config, ADAPTED, done=4)
    assert later.campaign_mib == 6 * (everything.lasting_mib + everything.state_mib)
    assert stored(config, ADAPTED, done=10).temporary_mib == 0


def test_lora_of_a_3b_model_fits_24_gb_and_stores_little(tmp_path):
    for name in ("alfworld", "webshop", "search_qa"):
        config = load_config(CONFIGS.parent / f"{name}_qwen2.5_3b_lora_24gb.yaml", ["environment.options={}"])
        memory = estimate(config, KNOWN_SHAPES["qwen2.5-3b"])
        assert misfits(config, memory, 24e9 / 2**20) == []
        of_iteration = stored(config, KNOWN_SHAPES["qwen2.5-3b"])
        assert of_iteration.lasting_mib + of_iteration.state_mib < 300


def test_the_page_about_cards_says_what_the_estimate_does():
    page = (CONFIGS.parents[1] / "docs" / "lora.md").read_text(encoding="utf-8")
    assert "\n".join(cards.lines()) in page


def test_what_the_store_takes_by_hand(tmp_path):
    few = ("iterations=9", "rollout.tasks_per_iteration=2", "rollout.group_size=4", "environment.max_steps=16")
    shape = SHAPE
    everything = stored(config_of("alfworld_qwen2.5_3b", tmp_path, *few, "storage.optimizer_states=null"), shape)
    assert everything.lasting_mib == 200 + 2 * 4 * 16 * 2048 * 2 / 2**20  # bfloat16; rows of 2,048 prompt tokens
    assert everything.state_mib == 100 * (2 + 8 + 4)
    assert everything.campaign_mib == 10 * (everything.lasting_mib + everything.state_mib)
    newest = stored(config_of("alfworld_qwen2.5_3b", tmp_path, *few, "storage.optimizer_states=2"), shape)
    assert newest.campaign_mib == 10 * everything.lasting_mib + 3 * everything.state_mib  # the next one comes first
    many = stored(config_of("alfworld_qwen2.5_3b", tmp_path, *few, "storage.optimizer_states=20"), shape)
    assert many == everything


@pytest.mark.parametrize(
    ("dtype", "stage", "of_optimizer", "in_state"),
    [
        ("float32", 0, 8, 12),
        ("float32", 1, 12, 16),
        ("float32", 3, 12, 12),
        ("bfloat16", 2, 12, 14),
        ("bfloat16", 3, 12, 12),
    ],
)
def test_bytes_of_a_parameter_s_optimizer_state(tmp_path, dtype, stage, of_optimizer, in_state):
    """ZeRO has a float32 copy of weights in float32 too; stage 3 stores no other one."""
    learner = (f"learner.dtype={dtype}", f"learner.zero_stage={stage}", "learner.ranks=1")
    config = config_of("alfworld_qwen2.5_3b", tmp_path, *learner)
    assert estimate(config, SHAPE).optimizer_mib == 100 * of_optimizer
    assert stored(config, SHAPE).state_mib == 100 * in_state


@pytest.mark.parametrize(
    ("kept", "done", "policies", "states"),
    [
        ("null", 0, 10, 10),
        ("null", 4, 6, 6),
        ("null", 10, 0, 0),
        ("null", 12, 0, 0),  # iterations was lowered
        ("2", 1, 9, 2),  # one state is there; two more are the most at a time
        ("2", 4, 6, 1),
        ("2", 10, 0, 0),
        ("20", 4, 6, 6),
    ],
)
def test_what_is_stored_already_is_not_needed_again(tmp_path, kept, done, policies, states):
    shape = SHAPE
    config = config_of("alfworld_qwen2.5_3b", tmp_path, "iterations=9", f"storage.optimizer_states={kept}")
    one = stored(config, shape)
    assert stored(config, shape, done).campaign_mib == policies * one.lasting_mib + states * one.state_mib


def test_an_engine_whose_share_is_too_small(tmp_path):
    config = config_of("alfworld_qwen2.5_3b", tmp_path, "engine.gpu_memory_fraction=0.05")
    memory = estimate(config)
    assert smallest_gpu_mib(config, memory) == (memory.engine_weights_mib + memory.one_sequence_mib) / 0.05
    (problem,) = misfits(config, memory, 80 * 1024)
    assert problem.startswith("the engine: 6479 MiB of weights and 90 MiB for one sequence do not fit in its 4096 MiB")


@pytest.mark.parametrize(
    ("name", "gib"), [("alfworld_qwen2.5_3b", 50), ("alfworld_qwen2.5_7b", 59), ("alfworld_qwen3_1.7b", 64)]
)
def test_the_shipped_configs_fit_gpus_of_80_gib(name, gib, tmp_path):
    config = config_of(name, tmp_path)
    assert smallest_gpu_mib(config, estimate(config)) / 1024 == pytest.approx(gib, abs=1)
    assert misfits(config, estimate(config), 80 * 1024) == []
