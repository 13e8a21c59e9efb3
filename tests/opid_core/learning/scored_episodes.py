"""Four small episodes with two skills, rescored by a policy whose log-probs are known by hand.

Every token of a response has the log-prob -(tokens of the prompt) / 100, so the skill's delta is
-(tokens that the skill adds to the prompt, less those of the history it drops) / 100.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from envs.base import TURN_LINE, PromptParts
from opid_core.config import CampaignConfig, build_config
from opid_core.learning.rescoring import rescore_samples
from opid_core.rollout.prompting import encode
from opid_core.samples import Ragged, Samples
from opid_core.schema import from_rows
from tests.factories import VOCABULARY, make_tokenizer
from tests.opid_core.learning.methods.batches import method

TOKENIZER = make_tokenizer()
EPISODE_SKILL, STEP_SKILL = "take mug 1", "go to desk 2 ."
# The titles "Episode skill:" and "Step skill:" are two words each: the skills add 5 and 7 tokens.


def prompt_parts(
    task_text: str,
    history: Sequence[tuple[str, str]],
    observation: str,
    admissible_actions: Sequence[str],
    history_length: int,
) -> PromptParts:
    return PromptParts(
        role="",
        task=task_text,
        history_header="",
        history=tuple(f"{seen} : {action}" for seen, action in history[max(len(history) - history_length, 0) :]),
        current=observation,
        actions=" ".join(admissible_actions),
        turn=TURN_LINE,
    )


def config(name: str = "opid", **keys: Any) -> CampaignConfig:
    return build_config(
        {
            "campaign": "c",
            "environment": {"invalid_action_penalty": 1.0, "history_length": 2},
            "rollout": {"max_prompt_tokens": 64},
            "method": method(name, **keys),
        }
    )


# trajectory, outcome, responses (their number of tokens), which responses are malformed
EPISODES = (
    ("won", "success", (2, 1), ()),
    ("lost", "truncated", (3,), ()),
    ("clumsy", "failure", (1, 1), (1,)),
    ("broken", "broken", (4,), ()),
)


def observation(step: int) -> str:
    return f"room {step + 1}"


def steps_rows() -> list[dict[str, Any]]:
    rows = []
    for name, _, lengths, malformed in EPISODES:
        history: list[tuple[str, str]] = []
        for step, length in enumerate(lengths):
            parts = prompt_parts("put mug 1 in drawer 1", history, observation(step), ["look", "open drawer 1"], 2)
            prompt = encode(TOKENIZER, parts, 64)
            history.append((observation(step), "look"))
            rows.append(
                {
                    "campaign": "c",
                    "iteration": 1,
                    "group_id": "h" if name == "broken" else "g",
                    "trajectory_id": name,
                    "step": step,
                    "task_id": "t",
                    "task_type": "kind",
                    "task_text": "put mug 1 in drawer 1",
                    "observation": observation(step),
                    "admissible_actions": ["look", "open drawer 1"],
                    "prompt_text": prompt.text,
                    "prompt_ids": prompt.ids,
                    "history_dropped": prompt.history_dropped,
                    "response_text": "look",
                    "response_ids": [VOCABULARY.index("look")] * length,
                    "rollout_log_probs": [-len(prompt.ids) / 100 - 0.125] * length,
                    "action": "look",
                    "is_valid": step not in malformed,
                    "reward": 0.0,
                    "done": step == len(lengths) - 1,
                    "truncated": False,
                    "policy_version": 0,
                    "seed": 1,
                }
            )
    return rows


def trajectories_rows() -> list[dict[str, Any]]:
    return [
        {
            "campaign": "c",
            "iteration": 1,
            "group_id": "h" if name == "broken" else "g",
            "trajectory_id": name,
            "task_id": "t",
            "task_type": "kind",
            "outcome": outcome,
            "return": 10.0 if outcome == "success" else 0.0,
            "steps": len(lengths),
            "tokens": sum(lengths),
            "seconds": 0.0,
            "error": "stuck" if outcome == "broken" else None,
        }
        for name, outcome, lengths, _ in EPISODES
    ]


def skill_row(skill_id: str, trajectory_id: str, step: int | None, text: str) -> dict[str, Any]:
    return {
        "skill_id": skill_id,
        "trajectory_id": trajectory_id,
        "kind": "episode" if step is None else "step",
        "step": step,
        "text": text,
        "outcome": "success",
        "analyzer": "by hand",
        "model": None,
        "prompt_hash": None,
        "attempts": 1,
        "tokens": None,
        "seconds": None,
        "error": None,
        "raw_reply": None,
    }


SKILLS = [skill_row("won/episode", "won", None, EPISODE_SKILL), skill_row("won/1", "won", 1, STEP_SKILL)]
ROUTED = {("won", 0): ("episode", "won/episode"), ("won", 1): ("step", "won/1")}


def tables(routed: dict[tuple[str, int], tuple[str, str]] | None = None) -> dict[str, Any]:
    rows, routed = steps_rows(), ROUTED if routed is None else routed
    routes = []
    for row in rows:
        route, skill_id = routed.get((row["trajectory_id"], row["step"]), ("none", None))
        routes.append(
            {
                "trajectory_id": row["trajectory_id"],
                "step": row["step"],
                "route": route,
                "skill_id": skill_id,
                "added_skill_id": None,
                "reason": "by hand",
            }
        )
    return {
        "steps": from_rows("steps", rows),
        "trajectories": from_rows("trajectories", trajectories_rows()),
        "skills": from_rows("skills", SKILLS),
        "routes": from_rows("routes", routes),
    }


def score(prompts: Ragged, responses: Ragged) -> Ragged:
    values = np.repeat(-prompts.lengths / 100, responses.lengths).astype(np.float32)
    return Ragged(values, responses.offsets)


def rescore(given: dict[str, Any], config: CampaignConfig, score_reference=None, score=score):
    return rescore_samples(
        Samples.from_tables(given["steps"], given["trajectories"], given["routes"]),
        given["trajectories"],
        given["skills"],
        prompt_parts=prompt_parts,
        tokenizer=TOKENIZER,
        score=score,
        score_reference=score_reference,
        config=config,
    )


def learned(given: dict[str, Any], scores: pa.Table) -> Samples:
    """What the learner gets."""
    return Samples.from_tables(given["steps"], given["trajectories"], scores).learned()
