"""The skills of a campaign by what they did."""

from __future__ import annotations

from collections.abc import Sequence

from flows.reports.chains import read_tables
from flows.reports.formatting import markdown_table, percent
from infra.manifest import Manifest
from infra.store import CampaignStore
from opid_core.skills.effects import SkillEffect, skill_effects

TABLES = ("skills", "routes", "scores")
SHOWN = 3
"""How many skills a summary shows."""


def effects_of(store: CampaignStore, chain: Sequence[Manifest]) -> list[SkillEffect]:
    """The effects of all skills of the campaign's iterations, most advantage first."""
    return skill_effects(read_tables(store, manifest, TABLES) for manifest in chain if "scores" in manifest.tables)


def effect_lines(effects: Sequence[SkillEffect]) -> list[str]:
    """The skills that did most, as a table in Markdown under a sentence that says what its numbers are."""
    if not effects:
        return ["No step was scored under a skill."]
    total = sum(effect.advantage for effect in effects)
    kinds = {kind: sum(e.advantage for e in effects if e.kind == kind) for kind in ("episode", "step")}
    parts = ", ".join(f"{kind} skills {percent(given / total)}" for kind, given in kinds.items() if total)
    lines = [
        f"{len(effects):,} different skills" + (f"; of what they gave {parts}." if parts else "; they gave nothing."),
        "",
    ]
    rows = [
        [
            *(effect.kind, effect.text.replace("|", "\\|").replace("\n", " "), str(effect.steps)),
            *(f"{effect.raised / effect.steps:.0%}", f"{effect.delta:+.2f}"),
            percent(effect.advantage / total if total else None),
        ]
        for effect in effects[:SHOWN]
    ]
    header = ["kind", "skill", "steps", "made likelier", "mean delta, nats", "share of all skills' advantage"]
    return [*lines, *markdown_table(header, rows)]
