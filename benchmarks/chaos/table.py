"""The result of a chaos run as Markdown."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Mapping, Sequence

from benchmarks.chaos import victims
from benchmarks.chaos.play import Outcome, Reference

ORDER = (
    *(victims.DRIVER, victims.TREE, victims.ENGINE, victims.RANK, victims.TORCHRUN),
    *(victims.PREFECT, victims.STORAGE, victims.WORKER, victims.RUN),
)


def to_markdown(
    command: str, outcomes: Sequence[Outcome], references: Mapping[tuple[str, int], Reference], seconds: float
) -> str:
    """Tables of the victims, the campaigns, the moments and the storage's faults."""
    kills = sum(len(outcome.kills) for outcome in outcomes)
    failed = [outcome for outcome in outcomes if outcome.failure]
    parts = [
        f"`{command}`: {kills} kills in {len(outcomes)} campaigns, {len(failed)} failed, in {seconds / 60:.0f} minutes "
        f"(Python {platform.python_version()}, {platform.machine()}).",
        _victims(outcomes),
        _campaigns(outcomes, references),
        _moments(outcomes),
    ]
    struck = sum((outcome.struck for outcome in outcomes), Counter[str]())
    if struck:
        parts.append(table(["fault of the proxy", "requests that met it"], sorted(struck.items())))
    parts += [f"Failed: {outcome.name}\n\n```\n{outcome.failure}\n```" for outcome in failed]
    return "\n\n".join(parts) + "\n"


def _victims(outcomes: Sequence[Outcome]) -> str:
    rows = []
    for store in sorted({outcome.shape.store for outcome in outcomes}):
        for victim in ORDER:
            hit = [o for o in outcomes if o.shape.store == store and any(kill[0] == victim for kill in o.kills)]
            count = sum(kill[0] == victim for outcome in hit for kill in outcome.kills)
            if count:
                finished = sum(outcome.failure is None for outcome in hit)
                rows.append((store, victim, count, len(hit), finished, len(hit) - finished))
    return table(["store", "killed", "kills", "campaigns with it", "finished and equal", "failed"], rows)


def _campaigns(outcomes: Sequence[Outcome], references: Mapping[tuple[str, int], Reference]) -> str:
    rows = []
    for shape in sorted({outcome.shape for outcome in outcomes}, key=lambda s: (s.store, s.mode, s.ranks)):
        alike = [outcome for outcome in outcomes if outcome.shape == shape]
        resumes, kills = sum(o.resumes for o in alike), sum(len(o.kills) for o in alike)
        mean_s = sum(o.seconds for o in alike) / len(alike)
        undisturbed_s = sum(references[shape.store, shape.ranks].seconds.values())
        readings, away = sum(o.readings for o in alike), sum(o.away for o in alike)
        failed = sum(o.failure is not None for o in alike)
        times = f"{undisturbed_s:.0f} s", f"{mean_s:.0f} s"
        read = f"{readings} ({away})"
        rows.append((shape.store, shape.mode, shape.ranks, len(alike), kills, resumes, *times, read, failed))
    head = ["store", "mode", "ranks", "campaigns", "kills", "started again", "undisturbed", "mean time"]
    return table([*head, "whole readings (storage away)", "failed"], rows)


def _moments(outcomes: Sequence[Outcome]) -> str:
    count = Counter(step.rpartition("/")[2] for outcome in outcomes for _, step in outcome.kills)
    return table(["under way when killed", "kills"], count.most_common())


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table in Markdown."""
    lines = [list(head), ["---"] * len(head), *([str(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
