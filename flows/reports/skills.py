"""The skills of a campaign by what they did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from flows.reports.formatting import percent, quantity
from infra.manifest import Manifest
from infra.objects import in_parallel, small_at_once
from infra.store import CampaignStore, read_table
from opid_core.skills.effects import COLUMNS, SkillEffect, skill_effects
from tasks.markdown import as_code, markdown_table

NEWEST = 10
"""Iterations whose skills are looked at: a long campaign has gigabytes of scores."""
SHOWN = 3
"""How many skills a summary shows."""
LONGEST = 160
"""Characters of a skill that a summary shows."""


def effects_of(store: CampaignStore, chain: Sequence[Manifest]) -> list[SkillEffect]:
    """The effects of the skills of the campaign's `NEWEST` iterations, most advantage first."""
    newest = [manifest for manifest in chain if "scores" in manifest.tables][-NEWEST:]
    return skill_effects(
        (
            manifest.iteration,
            {name: read_table(store, manifest.tables[name], columns) for name, columns in COLUMNS.items()},
        )
        for manifest in newest
    )


def first_extracted(
    store: CampaignStore,
    manifests: Sequence[Manifest],
    known: Mapping[tuple[str, str], int] = MappingProxyType({}),
) -> dict[tuple[str, str], int]:
    """The iteration in which each skill, by its kind and text, was extracted first. `known` is that of the commits
    before `manifests`, which are not read again."""
    made = [manifest for manifest in manifests if "skills" in manifest.tables]

    def read(manifest: Manifest) -> list[dict[str, str | None]]:
        return read_table(store, manifest.tables["skills"], ["kind", "text"]).to_pylist()

    first = {**known}
    for manifest, rows in zip(made, in_parallel(read, made, small_at_once(store.address())), strict=True):
        for row in rows:
            if row["kind"] and row["text"]:
                first.setdefault((row["kind"], row["text"]), manifest.iteration)
    return first


def _cut(text: str) -> str:
    """What a line of a table has room for: a model may write a thousand characters; the audit page has them all."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST].rstrip()} ..."


def effect_lines(effects: Sequence[SkillEffect]) -> list[str]:
    """The skills that did most, as a table in Markdown under a sentence that says what its numbers are."""
    if not effects:
        return ["No step was scored under a skill."]
    total = sum(effect.advantage for effect in effects)
    kinds = {kind: sum(e.advantage for e in effects if e.kind == kind) for kind in ("episode", "step")}
    parts = ", ".join(f"{kind} skills {percent(given / total)}" for kind, given in kinds.items() if total)
    told = f"of what they gave {parts}" if parts else "they gave nothing"
    lines = [
        f"{quantity(len(effects), 'different skill')} in the newest iterations (at most {NEWEST}); {told}. Of each: "
        "the steps scored under it, how many became likelier, by how much in the mean (delta, nats), its share of all "
        "skills' advantage.",
        "",
    ]
    rows = [
        [
            *(as_code(effect.kind), as_code(_cut(effect.text)), str(effect.steps)),
            *(f"{effect.raised / effect.steps:.0%}", f"{effect.delta:+.2f}", f"{effect.delta_per_token:+.3f}"),
            percent(effect.advantage / total if total else None),
        ]
        for effect in effects[:SHOWN]
    ]
    header = ["kind", "skill", "steps", "likelier", "delta", "a token", "share"]
    return [*lines, *markdown_table(header, rows)]
