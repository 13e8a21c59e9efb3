"""The suite of `skills`: rows, texts, and the failure budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from opid_core.schema import OUTCOMES, SKILL_KINDS
from opid_core.skills.replies import MAX_SKILL_CHARS
from tasks.gates import skill_texts
from tasks.gates.columns import plain
from tasks.gates.expectations import flag, in_range, in_set, is_finite, unique, warn
from tasks.gates.frame import Frame, Limits, frame_of, step_keys

SKILL_OUTCOMES = (*OUTCOMES, "unknown")


def skills(table: pa.Table, related: Mapping[str, pa.Table], limits: Limits) -> list[Frame]:
    """The suite of `skills`: well-formed rows, what their texts copy and tell, the failure budget and the coverage."""
    rows = plain(table)
    analyses = _analyses(rows, related["trajectories"], limits)
    frames = [_rows(rows, related), _texts(rows, related, limits), _budget(analyses, limits)]
    return [*frames, _coverage(analyses, limits)]


def _rows(rows: pd.DataFrame, related: Mapping[str, pa.Table]) -> Frame:
    known_trajectories = related["trajectories"].column("trajectory_id").to_pylist()
    known_steps = set(step_keys(related["steps"]).itertuples(index=False, name=None))
    is_step, is_failed = rows["kind"] == "step", rows["kind"] == "failed"
    text = rows["text"].fillna("")
    pairs = zip(rows["trajectory_id"], rows["step"].fillna(-1).astype(int), strict=True)
    rows = rows.assign(
        trajectory_known=rows["trajectory_id"].isin(known_trajectories),
        step_fits_kind=is_step == rows["step"].notna(),
        step_known=~is_step | np.array([pair in known_steps for pair in pairs], dtype=bool),
        text_chars=text.str.len().astype(int),
        text_fits_kind=(text.str.strip() != "") != is_failed,
        error_fits_kind=~is_failed | rows["error"].notna(),
        subject=np.where(is_step, "step " + rows["step"].astype(str), "episode"),
    )
    suite = (
        in_set("kind", SKILL_KINDS),
        in_set("outcome", SKILL_OUTCOMES),
        unique("trajectory_id", "subject"),
        *(flag(c) for c in ("trajectory_known", "step_known", "step_fits_kind", "text_fits_kind", "error_fits_kind")),
        in_range("text_chars", high=MAX_SKILL_CHARS),
        *(in_range(c, low=0) for c in ("attempts", "tokens", "prompt_tokens", "completion_tokens", "cost")),
        is_finite("cost"),
    )
    return frame_of("skills", rows, *suite)


def _texts(rows: pd.DataFrame, related: Mapping[str, pa.Table], limits: Limits) -> Frame:
    """One row a skill: what its text repeats, copies and tells."""
    rows = pd.DataFrame(rows[rows["kind"] != "failed"])
    ids, trajectories = rows["skill_id"].fillna("").tolist(), rows["trajectory_id"].tolist()
    texts = rows["text"].fillna("").tolist()
    shown, forbidden, settings = _shown(related["steps"]), _forbidden(related["trajectories"], limits), limits.settings
    written, taken = _written(related["steps"])
    known = {name: shown[name] + skill_texts.searchable(actions) for name, actions in taken.items()}

    def written_words(text: str, trajectory: str) -> int:
        """Most words in a row of what the policy wrote; where they are not too many, maybe with actions in them."""
        source, known_here = written.get(trajectory, ""), known.get(trajectory, "")
        found = skill_texts.longest_copied_run(text, source, known_here)
        if found <= settings.max_written_words:
            return found  # never less than without the actions, which takes longer
        return skill_texts.longest_copied_run(text, skill_texts.without(source, taken[trajectory]), known_here)

    frame = pd.DataFrame(
        {
            "skill_id": ids,
            "duplicate_of": skill_texts.duplicate_of(texts, ids),
            "near_duplicate_of": skill_texts.near_duplicate_of(texts, ids),
            "copied_words": [
                skill_texts.longest_copied_run(text, shown.get(trajectory, ""))
                for text, trajectory in zip(texts, trajectories, strict=True)
            ],
            "written_words": [written_words(*of_skill) for of_skill in zip(texts, trajectories, strict=True)],
            "leaked": [
                skill_texts.forbidden_in(text, forbidden.get(trajectory, ()))
                for text, trajectory in zip(texts, trajectories, strict=True)
            ],
        }
    )
    frame["quotes"] = frame["written_words"] > settings.max_written_words
    suite = (
        warn(in_set("duplicate_of", [""], max_others=settings.max_duplicate_skills)),
        warn(in_set("near_duplicate_of", [""], max_others=settings.max_near_duplicate_skills)),
        warn(in_range("copied_words", high=settings.max_copied_words)),
        warn(in_range("written_words", high=settings.max_written_words)),
        in_set("quotes", [False], max_others=settings.max_leaking_skills),
        warn(in_set("leaked", [""])),
        in_set("leaked", [""], max_others=settings.max_leaking_skills),
    )
    return Frame(frame, ("skill_id",), suite)


def _shown(steps: pa.Table) -> dict[str, str]:
    """What the policy was shown in each trajectory, searchable: its first prompt and all observations."""
    texts: dict[str, list[str]] = {}
    first = steps.filter(pc.equal(steps["step"], 0))  # pyright: ignore[reportAttributeAccessIssue]
    for shown, column in ((first, "prompt_text"), (steps, "observation")):
        for trajectory, text in zip(shown["trajectory_id"].to_pylist(), shown[column].to_pylist(), strict=True):
            texts.setdefault(trajectory, []).append(text or "")
    return {trajectory: skill_texts.searchable(shown) for trajectory, shown in texts.items()}


def _written(steps: pa.Table) -> tuple[dict[str, str], dict[str, dict[str, None]]]:
    """What the policy wrote in each trajectory, searchable, and the actions of its group, which a skill may name: a
    thought that has the words of one (a query) is no other text than the action."""
    columns = ("group_id", "trajectory_id", "response_text", "action", "is_valid")
    texts: dict[str, list[str]] = {}
    actions: dict[str, dict[str, None]] = {}
    taken: dict[str, dict[str, None]] = {}
    for group, trajectory, text, action, is_valid in zip(*(steps[name].to_pylist() for name in columns), strict=True):
        texts.setdefault(trajectory, []).append(text or "")
        taken[trajectory] = actions.setdefault(group, {})
        if is_valid:
            actions[group][action or ""] = None
    return {trajectory: skill_texts.searchable(wrote) for trajectory, wrote in texts.items()}, taken


def _forbidden(trajectories: pa.Table, limits: Limits) -> dict[str, tuple[str, ...]]:
    """The texts that must not be in a skill, by trajectory."""
    columns = (trajectories.column(name).to_pylist() for name in ("trajectory_id", "task_id"))
    by_task = limits.forbidden or {}
    return {trajectory: tuple(by_task.get(task, ())) for trajectory, task in zip(*columns, strict=True)}


def _analyses(rows: pd.DataFrame, trajectories: pa.Table, limits: Limits) -> pd.DataFrame:
    """One row an analysed trajectory: whether it has an episode skill or a failure, and why it failed."""
    ids = sorted(set(rows["trajectory_id"]) if limits.analyzed is None else {*limits.analyzed})
    with_skill = set(rows.loc[rows["kind"] == "episode", "trajectory_id"])
    done = set(rows.loc[rows["kind"] != "step", "trajectory_id"])
    failed = pd.DataFrame(rows[rows["kind"] == "failed"])
    reasons = dict(zip(failed["trajectory_id"], failed["error"].fillna("no reason given"), strict=True))
    facts = trajectories.select(["trajectory_id", "task_type", "outcome"]).to_pandas().drop_duplicates("trajectory_id")
    return pd.DataFrame(
        {
            "trajectory_id": pd.Series(ids, dtype=str),
            "has_skill": pd.Series([i in with_skill for i in ids], dtype=bool),
            "analysis_present": pd.Series([i in done for i in ids], dtype=bool),
            "failure": pd.Series([reasons.get(i, "") for i in ids], dtype=str),
        }
    ).merge(pd.DataFrame(facts).astype(str), how="left", on="trajectory_id")


def _budget(analyses: pd.DataFrame, limits: Limits) -> Frame:
    suite = [flag("analysis_present")]
    if limits.max_failure_rate is not None:
        allowed = in_set("failure", [""], max_others=limits.max_failure_rate)
        suite.append(replace(allowed, budget=f"more than {limits.max_failure_rate:.1%} of the analyses failed"))
    return Frame(analyses, ("trajectory_id",), tuple(suite))


def _coverage(analyses: pd.DataFrame, limits: Limits) -> Frame:
    """One row a task type and outcome with enough analysed trajectories: the share with an episode skill."""
    settings = limits.settings
    cells = analyses.groupby(["task_type", "outcome"])["has_skill"].agg(["size", "mean"]).reset_index()
    cells = cells.rename(columns={"size": "analyzed", "mean": "coverage"})
    cells = pd.DataFrame(cells[cells["analyzed"] >= settings.min_coverage_trajectories]).reset_index(drop=True)
    budget = f"a task type and outcome has fewer than {settings.min_coverage:.1%} of its episode skills"
    allowed = replace(in_range("coverage", low=settings.min_coverage), budget=budget)
    return Frame(cells, ("task_type", "outcome", "analyzed"), (allowed,))
