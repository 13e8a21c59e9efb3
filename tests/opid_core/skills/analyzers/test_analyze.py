from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import yaml

from envs.alfworld import AlfworldEnvironment
from opid_core.config import AnalyzerConfig, LlmConfig, build_config
from opid_core.errors import ConfigError, DataError
from opid_core.samples import Samples
from opid_core.skills.analyzers import analyze, is_analyzed, select_critical, step_returns
from opid_core.skills.replies import Analysis, skills_table
from tests.chat_server import KEY, Answer, chat_server
from tests.opid_core.skills.analyzers import shortest
from tests.opid_core.skills.episodes import episode, together

CONFIG = AnalyzerConfig()
SAMPLES = together(
    episode("won", ["go to desk 1", "take mug 1 from desk 1"], "success", {0: "room", 1: "desk"}, rewards=[0.0, 10.0]),
    episode("lost", ["look", "go to bed 1"], "failure", {0: "room", 1: "desk"}, invalid=[1]),
    episode("bad", ["look"], "broken", {0: "room"}),
)
SHUFFLED = np.array([3, 1, 4, 0, 2])
PAGE = (Path(__file__).parents[4] / "docs" / "analyzer.md").read_text(encoding="utf-8")


def analyses(samples: Samples = SAMPLES, config: AnalyzerConfig = CONFIG, **options) -> list[Analysis]:
    return analyze(samples, config, AlfworldEnvironment.action_words, gamma=0.5, penalty=0.25, **options)


def trajectories_of(samples: Samples) -> pa.Table:
    outcomes = dict(zip(samples.trajectory_ids, samples.texts("outcome"), strict=True))
    return pa.table({"trajectory_id": [*outcomes], "outcome": [*outcomes.values()]})


def test_step_returns_are_discounted_and_penalised_whatever_the_order():
    returns = step_returns(SAMPLES, 0.5, 0.25)
    assert returns.dtype == np.float32
    assert returns.tolist() == [5.0, 10.0, 0.0, -0.25, 0.0]
    assert step_returns(SAMPLES.select(SHUFFLED), 0.5, 0.25).tolist() == returns[SHUFFLED].tolist()


def test_critical_steps_come_from_the_selector_without_broken_episodes():
    returns = step_returns(SAMPLES, 0.5, 0.25)
    # room: 5, 0; desk: 10, -0.25 -> only desk is in the top quantile, and "lost" is below its mean there
    critical = select_critical(SAMPLES, returns, CONFIG)
    assert critical.tolist() == [False, False, False, True, False]
    shuffled = select_critical(SAMPLES.select(SHUFFLED), returns[SHUFFLED], CONFIG)
    assert shuffled.tolist() == critical[SHUFFLED].tolist()


def test_successes_are_left_out_once_so_many_iterations_are_completed():
    def analysed(iteration: int, failed_only_after: int | None) -> list[bool]:
        of_each = (
            episode(name, ["look"], name, iteration=iteration) for name in ("success", "failure", "truncated", "broken")
        )
        config = AnalyzerConfig(failed_only_after=failed_only_after)
        return is_analyzed(together(*of_each), config).tolist()

    both, failed_only = [True, True, True, False], [False, True, True, False]
    assert analysed(5, None) == both
    assert [analysed(iteration, 2) for iteration in (1, 2, 3, 4)] == [both, both, failed_only, failed_only]
    assert analysed(1, 0) == failed_only


def test_analyze_runs_the_configured_backend_on_whole_groups():
    progress = []
    won, lost = analyses(on_progress=lambda *counts: progress.append(counts))
    assert (won.trajectory_id, won.episode_skill) == ("won", "Plan: go to desk, take mug.")
    assert lost.step_skills == {1: "Do now: take mug 1 from desk 1"}  # looking led to the same state as going
    assert progress == [(1, 1)]
    (only_lost,) = analyses(config=AnalyzerConfig(failed_only_after=0))
    assert only_lost == lost  # which its sibling's success still teaches


def test_llm_backend_needs_its_key(monkeypatch):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    remote = LlmConfig(base_url="https://llm.example.org/v1", api_key_env="NO_SUCH_KEY")
    with pytest.raises(ConfigError, match="NO_SUCH_KEY is not set"):
        analyses(config=AnalyzerConfig(backend="llm", llm=remote))


def test_the_model_is_shown_the_group_where_the_config_says_so(monkeypatch):
    monkeypatch.setenv("TEST_LLM_KEY", KEY)
    asked = {}
    for shows in (False, True):
        with chat_server() as server:
            server.answer = lambda body: Answer(content='{"episode_skill": "from the model"}')
            llm = LlmConfig(base_url=server.url, model="teacher", api_key_env="TEST_LLM_KEY", show_group=shows)
            analyses(config=AnalyzerConfig(backend="llm", llm=llm))
            asked[shows] = sorted(body["messages"][1]["content"] for body in server.requests)
    assert not any('"group"' in text for text in asked[False])
    lost = next(json.loads(text[7:-8]) for text in asked[True] if '"outcome": "failure"' in text)
    taken = {"action": "take mug 1 from desk 1", "left_after": 0, "times": 1}
    stray = {"action": "", "left_after": None, "times": 1}  # its response held no action
    assert lost["steps"][1]["group"] == {"left": 1, "left_after": None, "done_there": [taken, stray]}


def test_hindsight_stands_in_for_a_failed_model(monkeypatch):
    monkeypatch.setenv("TEST_LLM_KEY", KEY)

    def answer(body):
        won = '"outcome": "success"' in body["messages"][1]["content"]
        return Answer(content='{"episode_skill": "from the model"}' if won else "no")

    with chat_server() as server:
        server.answer = answer
        llm = LlmConfig(base_url=server.url, model="teacher", api_key_env="TEST_LLM_KEY")
        won, lost = analyses(config=AnalyzerConfig(backend="llm_then_hindsight", llm=llm))
    assert (won.trajectory_id, won.analyzer, won.episode_skill, won.error) == ("won", "llm", "from the model", None)
    # the rules see the sibling that won, and the model's failure stays in the row
    by_rules = analyses()[1]
    assert (lost.trajectory_id, lost.analyzer, lost.failed) == ("lost", "hindsight", False)
    assert (lost.episode_skill, lost.step_skills) == (by_rules.episode_skill, by_rules.step_skills)
    assert (lost.model, lost.attempts, lost.tokens, lost.raw_reply) == ("teacher", 2, 84, "no")
    assert lost.error == "the reply holds no JSON object; asked again: the reply holds no JSON object"
    assert "failed" not in skills_table([won, lost], trajectories_of(SAMPLES))["kind"].to_pylist()


def test_an_analysis_that_fails_twice_says_both_reasons():
    nothing_worked = episode("won", ["look"], "success", invalid=[0])
    llm = LlmConfig(base_url="http://127.0.0.1:9/v1", max_retries=0)
    (analysis,) = analyses(nothing_worked, AnalyzerConfig(backend="llm_then_hindsight", llm=llm))
    assert analysis.failed
    assert (analysis.error or "").startswith("no connection: ")
    assert (analysis.error or "").endswith("; hindsight: no action of this success is known to have worked")
    assert skills_table([analysis], trajectories_of(nothing_worked))["kind"].to_pylist() == ["failed"]


# An analyzer of one's own ------------------------------------------------------------------------------------------


def block(language: str) -> str:
    section = PAGE.partition("## An analyzer of your own")[2].partition("\n## ")[0]
    (content,) = re.findall(rf"```{language}\n(.*?)```\n", section, re.DOTALL)
    return content


def test_the_page_shows_the_file_and_a_config_that_names_it(user_modules):
    assert block("python") == Path(shortest.__file__).read_text(encoding="utf-8")
    shutil.copy(shortest.__file__, user_modules)
    config = build_config({"campaign": "c", **yaml.safe_load(block("yaml"))})
    assert not config.analyzer.asks_model
    won, lost = analyses(config=config.analyzer)
    skill = "It can be done so: go to desk 1, then take mug 1 from desk 1."
    assert (won.analyzer, won.episode_skill, won.step_skills, won.error) == ("shortest:analyze", skill, {}, None)
    assert (lost.summary, lost.episode_skill) == ("Ended in failure after 2 steps.", skill)
    assert lost.step_skills == {1: "Now take mug 1 from desk 1."}
    (alone,) = analyses(episode("lost", ["look"], "failure"), config.analyzer)
    assert (alone.failed, alone.error) == (True, "nobody won")


def test_returns_are_told_before_the_penalty(user_modules):
    told = own(
        user_modules,
        "[Analysis(i, '', f'return {g}', {}) for i, g in zip(samples.trajectory_ids, samples.numbers"
        "('discounted_return')) if i != 'bad'][1::2]",
    )
    # won: 5, 10; lost: 0, 0, of which the second response was malformed
    assert [analysis.episode_skill for analysis in analyses(config=told)] == ["return 10.0", "return 0.0"]


def own(user_modules: Path, body: str, **options) -> AnalyzerConfig:
    source = "from opid_core.skills.replies import Analysis\ndef analyze(samples, config):\n    return "
    (user_modules / "mine.py").write_text(source + body)
    return AnalyzerConfig(backend="mine:analyze", **options)


def test_what_it_gives_is_held_to_what_holds_for_all(user_modules):
    of_lost = "Analysis('lost', 'a\\nb', ' look <|im_end|>first ', {1: 'x', 7: 'y', 0: 'z'})"
    others = "Analysis('bad', '', 'of a broken one', {})"
    won, lost = analyses(config=own(user_modules, f"[{of_lost}, {others}]", max_step_skills=1))
    assert (lost.summary, lost.episode_skill, lost.step_skills) == ("a b", "look first", {1: "x"})
    assert (won.trajectory_id, won.failed, won.error) == ("won", True, "the analyzer gave no analysis")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("['text']", "mine:analyze: gave 'text', expected an Analysis"),
        ("[Analysis('x', '', 's', {})]", "no trajectory of the iteration is called 'x'"),
        ("[Analysis('won', '', 's', {})] * 2", "two analyses of trajectory 'won'"),
    ],
)
def test_what_is_no_analysis_of_the_iteration_is_refused(user_modules, body, message):
    with pytest.raises(DataError, match=message):
        analyses(config=own(user_modules, body))


@pytest.mark.parametrize(
    ("backend", "message"),
    [
        ("hindsigth", "must be hindsight, llm, llm_then_hindsight, or module:name"),
        ("no_such_module:f", "cannot import module 'no_such_module'"),
        ("mine:missing", "module 'mine' has no function 'missing'"),
        ("mine:", "module 'mine' has no function ''"),
        ("../mine:f", "'../mine' is no name of a module"),
    ],
)
def test_a_backend_that_leads_nowhere_is_refused_with_the_config(user_modules, backend, message):
    (user_modules / "mine.py").write_text("text = ''")
    with pytest.raises(ConfigError, match=message) as caught:
        build_config({"campaign": "c", "analyzer": {"backend": backend}})
    assert "analyzer.backend: " in str(caught.value)
