from __future__ import annotations

from opid_core.config import build_config
from tasks.extract_skills import analyzer_at


def analysed(name: str = "opid", **analyzer) -> list[str]:
    """What is analysed at iterations 0 to 5."""
    config = build_config({"campaign": "c", "method": {"name": name}, "analyzer": analyzer})
    found = [analyzer_at(config, iteration) for iteration in range(6)]
    return ["nothing" if one is None else "failed" if one.failed_only else "all" for one in found]


def test_when_and_what_is_analysed():
    assert analysed() == ["all"] * 6
    assert analysed(failed_only=True) == ["failed"] * 6
    assert analysed(failed_only_after=2) == ["all"] * 2 + ["failed"] * 4
    assert analysed(failed_only=True, failed_only_after=2) == ["failed"] * 6
    assert analysed(start_after=1, stop_after=4) == ["nothing", "all", "all", "all", "nothing", "nothing"]
    assert analysed(start_after=2, failed_only_after=4) == ["nothing"] * 2 + ["all"] * 2 + ["failed"] * 2
    assert analysed(stop_after=0) == ["nothing"] * 6


def test_methods_without_skills_analyse_nothing():
    assert analysed("gigpo") == ["nothing"] * 6
    assert analysed("sdar") == ["all"] * 6
