from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from envs.base import Task
from flows.cli.rollout import transcript
from opid_core.errors import ConfigError
from opid_core.rollout.episodes import Episode, EpisodeRequest, Turn
from opid_core.rollout.prompting import EncodedPrompt


@pytest.fixture
def config(tmp_path) -> Path:
    """A config file of three tasks."""
    path = tmp_path / "small.yaml"
    values = {
        "campaign": "small",
        "root": str(tmp_path / "runs"),
        "threads": 1,
        "environment": {
            "options": {"generator": {"size": "small", "train": 6, "valid_unseen": 3}},
            "max_steps": 3,
            "history_length": 1,
        },
        "rollout": {"max_prompt_tokens": 400, "max_response_tokens": 12},
        "engine": {"kv_cache_mib": 16, "max_concurrent": 4},
        "evaluation": {"tasks": 3, "temperatures": [0.7, 1.0]},
    }
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def turn(observation: str, response: str, action: str, is_valid: bool, reward: float) -> Turn:
    prompt = EncodedPrompt(text="", ids=[1], history_dropped=0)
    return Turn(observation, (), prompt, [2, 3], response, [0.0, 0.0], 2, action, is_valid, reward, seed=0)


def test_a_transcript_tells_the_episode_step_by_step():
    episode = Episode(EpisodeRequest("t/1", "t/1", Task("t/1", "fetch", None), seed=0), "Fetch the mug.")
    episode.turns = [
        turn("A room.", "<think>?</think>", "", False, 0.0),
        turn("A ```mug```.", "go `home`", "go `home`", True, 10.0),
    ]
    episode.outcome = "success"
    assert transcript(episode) == (
        "## `t/1` (`fetch`)\n\n```text\nFetch the mug.\n```\n\n"
        "### Step 1\n\nObservation:\n\n```text\nA room.\n```\n\n"
        "Response:\n\n```text\n<think>?</think>\n```\n\nAction: (none), not valid, reward 0\n\n"
        "### Step 2\n\nObservation:\n\n````text\nA ```mug```.\n````\n\n"
        "Response:\n\n```text\ngo `home`\n```\n\nAction: `` go `home` ``, valid, reward 10\n\n"
        "Outcome: **success**, return 10, 2 steps, 4 tokens"
    )
    episode.outcome, episode.error = "broken", "the world\nended"
    assert transcript(episode).endswith("Outcome: **broken**, return 10, 2 steps, 4 tokens: `the world ended`")


def test_bad_input_is_refused_before_anything_runs(tmp_path, config, opid):
    taken = tmp_path / "taken.md"
    taken.write_text("mine")
    absent = tmp_path / "absent"
    for options, message in (
        (["--policy", tmp_path, "--out", taken], f"--out: {taken} exists already; name a new file"),
        (["--policy", tmp_path, "--out", absent / "out.md"], f"--out: {absent} is no folder"),
        (["--policy", tmp_path, "--out", "/proc/out.md"], "--out: /proc/out.md cannot be made: No such file"),
        (["--policy", tmp_path, "--episodes", 4], "the split 'valid_unseen' has 3 tasks, the panel needs 4"),
        (["--policy", absent], f"policy: there is no folder {absent}"),
    ):
        with pytest.raises(ConfigError, match=message):
            opid("rollout", config, *options)
    assert taken.read_text() == "mine"


@pytest.mark.integration
def test_a_policy_plays_the_first_tasks_of_the_panel_and_nothing_is_stored(tmp_path, config, opid):
    policy = Path(__file__).parents[3] / "configs" / "policies" / "alfworld_tiny"
    out = tmp_path / "transcripts.md"
    printed = opid("rollout", config, "--policy", policy, "--out", out)
    text = out.read_text(encoding="utf-8")
    tasks = re.findall("^## `(.*?)`", text, re.MULTILINE)
    assert tasks == ["valid_unseen/000000", "valid_unseen/000001"]
    assert text.count("### Step ") == 6
    # 12 tokens are too few for an answer: no response is valid, and no episode can be won.
    summary = "0 of 2 episodes won at temperature 0.7; 0 of 6 responses valid; 3.0 steps an episode"
    assert text.endswith(f"**{summary}**\n")
    assert printed.endswith(f"{summary}\nTranscripts: {out}\n")
    assert not (tmp_path / "runs").exists()
