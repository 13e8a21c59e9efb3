"""The page of licences and the lock tell of the same packages."""

from __future__ import annotations

import re
from email.message import Message
from importlib.metadata import Distribution
from typing import Any

import pytest

from infra.licences import COPYLEFT, MATTERS, REPOSITORY, licence_of, locked

ROW = re.compile(r"^\| (\S+) \| (\S+) \| ([^|]*) \| ([^|]*)\|$", re.MULTILINE)


def test_every_locked_package_has_a_row_with_its_licence():
    text = (REPOSITORY / "docs" / "licences.md").read_text(encoding="utf-8")
    rows = [row for row in ROW.findall(text) if row[0] not in ("package", "---")]
    assert {name: version for name, version, *_ in rows} == locked()
    assert len(rows) == len(locked()) > 100
    assert [name for name, _, licence, _ in rows if not licence.strip()] == []
    assert [name for name, _, licence, meaning in rows if COPYLEFT.search(licence) and not meaning.strip()] == []
    assert {*MATTERS} <= {*locked()}


class Described(Distribution):
    """A distribution of nothing but metadata."""

    def __init__(self, *fields: tuple[str, str]) -> None:
        self._fields = fields

    @property
    def metadata(self) -> Any:
        message = Message()
        for name, value in self._fields:
            message[name] = value
        return message

    def read_text(self, filename: str) -> str | None:
        return None

    def locate_file(self, path: Any) -> Any:
        return path


@pytest.mark.parametrize(
    ("fields", "licence"),
    [
        ([("License", "BSD"), ("License-Expression", "MIT")], "MIT"),
        (
            [("License", "see file"), ("Classifier", "License :: OSI Approved :: ISC License (ISCL)")],
            "ISC License (ISCL)",
        ),
        ([("Classifier", "License :: OSI Approved"), ("License", "ISC")], "ISC"),
        ([("License", "### GNU GENERAL PUBLIC LICENSE\nVersion 3")], "GNU GENERAL PUBLIC LICENSE"),
        ([("Classifier", "Topic :: Software Development")], ""),
    ],
)
def test_a_licence_is_the_expression_else_the_classifiers_else_the_first_line(fields, licence):
    assert licence_of(Described(*fields)) == licence
