from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from envs.base import Task
from flows.cli.rollout import show_rollout, transcript
from opid_core.config import CampaignConfig, build_config
from opid_core.errors import ConfigError
from opid_core.rollout.episodes import Episode, EpisodeRequest, Turn
from opid_core.rollout.prompting import EncodedPrompt
from tests.tiny_policy import make_tiny_policy_folder


def config_in(root: Path) -> CampaignConfig:
    return build_config(
        {
            "campaign": "small",
            "root": str(root),
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
    )


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


def test_bad_input_is_refused_before_anything_runs(tmp_path):
    config, console = config_in(tmp_path / "runs"), Console(file=io.StringIO())
    taken = tmp_path / "taken.md"
    taken.write_text("mine")
    with pytest.raises(ConfigError, match=f"--out: {taken} exists already; name a new file"):
        show_rollout(config, tmp_path, 1, console, taken)
    with pytest.raises(ConfigError, match=f"--out: {tmp_path}/absent is no folder"):
        show_rollout(config, tmp_path, 1, console, tmp_path / "absent" / "out.md")
    with pytest.raises(ConfigError, match="the split 'valid_unseen' has 3 tasks, the panel needs 4"):
        show_rollout(config, tmp_path, 4, console)
    with pytest.raises(ConfigError, match=f"policy: {tmp_path}/policy is not a folder"):
        show_rollout(config, tmp_path / "policy", 1, console)
    assert taken.read_text() == "mine"


@pytest.mark.integration
def test_a_policy_plays_the_first_tasks_of_the_panel_and_nothing_is_stored(tmp_path):
    policy = make_tiny_policy_folder(tmp_path / "policy", max_positions=412)
    output, out = io.StringIO(), tmp_path / "transcripts.md"
    episodes = show_rollout(config_in(tmp_path / "runs"), policy, 2, Console(file=output, width=300), out)
    assert [episode.request.task.task_id for episode in episodes] == ["valid_unseen/000000", "valid_unseen/000001"]
    turns = [turn for episode in episodes for turn in episode.turns]
    assert len(turns) == 6
    text = out.read_text(encoding="utf-8")
    assert re.findall("^## `(.*?)`", text, re.MULTILINE) == ["valid_unseen/000000", "valid_unseen/000001"]
    assert text.count("### Step ") == 6
    assert all(f"```text\n{turn.response_text}\n```" in text for turn in turns)
    # The policy's words hold no tags: no response is valid, and no episode can be won.
    summary = "0 of 2 episodes won at temperature 0.7; 0 of 6 responses valid; 3.0 steps an episode"
    assert text.endswith(f"**{summary}**\n")
    assert output.getvalue() == f"{summary}\nTranscripts: {out}\n"
    assert not (tmp_path / "runs").exists()
