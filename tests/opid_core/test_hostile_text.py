"""Ten thousand hostile strings from the analyzer's reply to the policy's prompt."""

from __future__ import annotations

import functools
import json
import unicodedata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from envs.base import TURN_LINE, PromptParts
from infra.store import open_campaign, read_table, write_table
from opid_core.config import AnalyzerConfig, LlmConfig
from opid_core.errors import AnalyzerReplyError
from opid_core.reading import well_formed
from opid_core.rollout.prompting import encode, inject, render
from opid_core.skills.analyzers import llm
from opid_core.skills.replies import MAX_SKILL_CHARS, Analysis, clean_skill, parse_reply, skills_table
from tests.chat_server import Answer, chat_server
from tests.hostile import KINDS, hostile_strings
from tests.opid_core.skills.episodes import episode, together

COUNT = 10_000
FRAGMENTS = sum(len(kind) for kind in KINDS)
TINY = Path(__file__).parents[2] / "configs" / "policies" / "alfworld_tiny"
PARTS = PromptParts("role", "Your task: put it there", "History:", ("one", "two"), "You see it.", "look, go", TURN_LINE)


@functools.cache
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(TINY)


@functools.cache
def analyses() -> list[Analysis]:
    """Of each string as an analyzer's reply, and of one that is JSON with the string as its skills."""
    found = []
    for number, text in enumerate(hostile_strings(COUNT, seed=0)):
        whole = {"episode_summary": "", "episode_skill": text, "step_skills": {"0": text}}
        for name, content in ((f"{number}", text), (f"{number}-json", json.dumps(whole))):
            raw_reply = well_formed(content)
            skill, steps, error = "", {}, None
            try:
                reply = parse_reply(raw_reply)
                skill = clean_skill(reply.episode_skill)
                steps = {step: cleaned for step, t in reply.step_skills.items() if (cleaned := clean_skill(t))}
            except AnalyzerReplyError as fault:
                error = str(fault)
            error = error if skill else error or "nothing but control tokens"
            found.append(Analysis(name, "", skill, steps if skill else {}, "llm", error=error, raw_reply=raw_reply))
    return found


def test_skills_are_short_single_lines_without_what_cannot_be_seen():
    skills = [analysis.episode_skill for analysis in analyses() if not analysis.failed]
    assert len(skills) > COUNT * 0.9
    for skill in skills:
        assert len(skill) <= MAX_SKILL_CHARS
        assert skill == clean_skill(skill) == " ".join(skill.split())
        assert not any(unicodedata.category(character) in ("Cc", "Cf", "Cs") for character in skill)


def test_the_table_reads_back_exactly(tmp_path):
    ids = [analysis.trajectory_id for analysis in analyses()]
    table = skills_table(analyses(), pa.table({"trajectory_id": ids, "outcome": ["failure"] * len(ids)}))
    assert table.num_rows > 2 * COUNT
    store = open_campaign(tmp_path, "hostile", {"campaign": "hostile"})
    record = write_table(store, "skills", 0, "attempt", table)
    assert read_table(store, record).equals(table)


def test_no_skill_brings_a_special_token_into_the_prompt():
    skills = sorted({a.episode_skill for a in analyses() if not a.failed})
    special = set(tokenizer().all_special_ids)
    assert len(special & set(tokenizer().encode("go<|end|><|user|>"))) == 2
    encoded = tokenizer()(skills, add_special_tokens=False)["input_ids"]
    assert not [skill for skill, ids in zip(skills, encoded, strict=True) if special & set(ids)]
    for skill, ids in list(zip(skills, encoded, strict=True))[::10]:
        assert tokenizer().decode(ids, clean_up_tokenization_spaces=False) == unicodedata.normalize("NFC", skill)


@pytest.mark.parametrize("kind", ["episode", "step"])
def test_a_skill_adds_its_title_and_one_line(kind):
    plain = render(PARTS).split("\n")
    template = [i for i in encode(tokenizer(), PARTS, 10_000).ids if i in tokenizer().all_special_ids]
    for analysis in analyses()[::50]:
        if analysis.failed:
            continue
        injected = inject(PARTS, kind, analysis.episode_skill)
        lines = render(injected).split("\n")
        at = lines.index(f"{kind.title()} skill:")
        assert lines[:at] + lines[at + 2 :] == plain
        assert lines[at + 1] == analysis.episode_skill
        ids = encode(tokenizer(), injected, 10_000).ids
        assert [i for i in ids if i in tokenizer().all_special_ids] == template


def test_over_http_each_fragment_reaches_only_its_own_row():
    """As observation of an episode and as its analyzer's reply at once."""
    texts = hostile_strings(FRAGMENTS, seed=0)

    def answer(body: dict[str, Any]) -> Answer:
        data = json.loads(body["messages"][1]["content"].removeprefix("<data>\n").removesuffix("\n</data>"))
        text = texts[int(data["task"])]
        assert data["steps"][0]["observation"] == well_formed(text)
        return Answer(content=json.dumps({"episode_skill": f"skill {data['task']}. {text}"}))

    trajectories = [
        episode(str(n), ["a"], "failure", {0: well_formed(text)}, task_text=str(n)) for n, text in enumerate(texts)
    ]
    with chat_server() as server:
        server.answer = answer
        config = AnalyzerConfig(backend="llm", llm=LlmConfig(base_url=server.url))
        found = llm.analyze(together(*trajectories), config)
    assert [a.episode_skill for a in found] == [clean_skill(f"skill {n}. {text}") for n, text in enumerate(texts)]
