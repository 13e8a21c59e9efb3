"""The configs that are shipped, against the numbers of the paper and of its released runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from opid_core.config import load_config
from opid_core.learning.methods import Opid

CONFIGS = Path(__file__).parents[2] / "configs"
MODELS = ("qwen2.5_3b", "qwen2.5_7b", "qwen3_1.7b")
OF_THE_PAPER = [CONFIGS / "paper" / f"{e}_{m}.yaml" for e in ("alfworld", "webshop", "search_qa") for m in MODELS]
CAMPAIGNS = [*sorted(CONFIGS.glob("*.yaml")), *OF_THE_PAPER]


@pytest.mark.parametrize("path", CAMPAIGNS, ids=lambda p: p.stem)
@pytest.mark.parametrize("preset", ["released", "paper"])
def test_every_shipped_config_loads_with_both_presets(path, preset):
    config = load_config(path, [f"preset={preset}"])
    environment = config.environment
    released = {"search_qa": (1.0, 0.01)}.get(environment.name, (10.0, 0.1))
    assert (environment.success_reward, environment.invalid_action_penalty) == (
        released if preset == "released" else (1.0, 0.0)
    )
    assert isinstance(config.method, Opid)
    assert config.method.baseline == ("step" if preset == "released" else "trajectory")


@pytest.mark.parametrize(
    ("name", "steps", "history", "prompt", "tasks", "mini_batch", "kl_coefficient", "step_skills"),
    [
        ("alfworld_qwen2.5_3b", 30, 5, 2048, 16, 256, 0.01, 5),
        ("alfworld_qwen2.5_7b", 30, 5, 2048, 16, 256, 0.01, 5),
        ("alfworld_qwen3_1.7b", 30, 5, 2048, 16, 256, 0.01, 5),
        *((f"webshop_{model}", 15, 2, 4096, 16, 64, 0.01, 5) for model in MODELS),
        *((f"search_qa_{model}", 4, 4, 4096, 128, 512, 0.001, 2) for model in MODELS),
    ],
)
def test_the_configs_of_the_papers_models_hold_its_numbers(
    name, steps, history, prompt, tasks, mini_batch, kl_coefficient, step_skills, monkeypatch
):
    """ALGORITHM, section 7."""
    monkeypatch.setenv("ALFWORLD_DATA", "games")
    config = load_config(CONFIGS / "paper" / f"{name}.yaml")
    environment, rollout, learner, method = config.environment, config.rollout, config.learner, config.method
    assert (environment.max_steps, environment.history_length, rollout.max_prompt_tokens) == (steps, history, prompt)
    assert (rollout.tasks_per_iteration, rollout.group_size, rollout.max_response_tokens) == (tasks, 8, 512)
    assert (learner.mini_batch_samples, learner.learning_rate, learner.epochs) == (mini_batch, 1e-6, 1)
    assert (learner.clip_low, learner.clip_high, learner.dual_clip) == (0.2, 0.2, 3.0)
    assert (learner.kl_coefficient, learner.aggregation) == (kl_coefficient, "token-mean")
    assert isinstance(method, Opid)
    assert (method.lambda_episode, method.lambda_step) == (0.001, 0.001)
    assert (config.iterations, config.evaluation.temperatures) == (150, (0.4,))
    assert config.analyzer.max_step_skills == step_skills


@pytest.mark.parametrize(
    ("name", "normalize", "entropy", "warmup", "splits"),
    [
        ("alfworld_qwen2.5_3b", "mean_std", 0.001, 0, ("valid_seen", "valid_unseen")),
        ("alfworld_qwen3_1.7b", "mean", 0.001, 0, ("valid_seen", "valid_unseen")),
        *((f"webshop_{model}", "mean", 0.001, 0, ("validation",)) for model in MODELS),
        *((f"search_qa_{model}", "mean_std", 0.0, 15, ("test",)) for model in MODELS),
    ],
)
def test_the_configs_of_the_papers_models_follow_the_released_runs(
    name, normalize, entropy, warmup, splits, monkeypatch
):
    """ALGORITHM, sections 2 and 7, as corrected."""
    monkeypatch.setenv("ALFWORLD_DATA", "games")
    config = load_config(CONFIGS / "paper" / f"{name}.yaml")
    assert isinstance(config.method, Opid)
    assert config.method.normalize == normalize
    assert (config.learner.entropy_coefficient, config.learner.warmup_iterations) == (entropy, warmup)
    assert config.evaluation.splits == splits
    assert config.evaluation.final_tasks == (51713 if "search_qa" in name else None)
    assert config.prompting.template_arguments == ({"enable_thinking": False} if "qwen3" in name else {})
