"""Corpora and questions on disk: JSON lines, plain or compressed (`.gz`, `.xz`), and parquet.

Questions are read as this project writes them, and as Search-R1 and verl do: the fields of both are looked for.
"""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
import lzma
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envs.search_qa.text import normalize_answer
from opid_core.errors import ConfigError, DataError
from opid_core.local_paths import local_path
from opid_core.reading import lines_of, parse_json, whole_characters

QUESTION_FILES = (".parquet", ".jsonl", ".jsonl.gz", ".jsonl.xz")
"""How the names of files of questions end, where a folder of them is given."""
DATA_SOURCES = {
    "google-research-datasets/nq_open": "nq",
    "mandarjoshi/trivia_qa": "triviaqa",
    "akariasai/PopQA": "popqa",
    "hotpotqa/hotpot_qa": "hotpotqa",
    "voidful/2WikiMultihopQA": "2wikimultihopqa",
    "bdsaglam/musique": "musique",
    "chiayewken/bamboogle": "bamboogle",
}
"""Names of data sets on the Hugging Face hub -> the names that Search-R1 and the paper give them."""
_VERL_PREFIX = "searchR1_"
"""What verl's own copy of the data puts before the names."""
_COLUMNS = ("id", "question", "golden_answers", "data_source", "split", "extra_info", "reward_model")
_ANSWERS = ("golden_answers", "extra_info.answer", "reward_model.ground_truth.target", "reward_model.ground_truth")
"""Where the golden answers may stand; the last is one text in which several may be joined, so it comes last."""


@dataclass(frozen=True)
class Question:
    """One question: any of `golden_answers` is right (no answer is, where the data has none with a word in it);
    `data_source` is the data set it is from; `split` may be ""."""

    question_id: str
    question: str
    golden_answers: tuple[str, ...]
    data_source: str
    split: str = ""

    @property
    def task_id(self) -> str:
        return f"{self.data_source}/{self.question_id}"


def existing_file(path: str, field: str) -> Path:
    """The file at `path` (`~` and environment variables expanded). Raises ConfigError that names the config field."""
    file = local_path(path, field)
    if not file.is_file():
        raise ConfigError(f"{field}: {file} is no file")
    return file


def read_corpus(file: Path) -> Iterator[tuple[str, str]]:
    """(id, contents) of each passage, in the file's order.

    Raises DataError that names file, line and field of a line that cannot be used, of a repeated id, and for a file
    without passages.
    """
    seen: dict[str, int] = {}
    for number, where, entry in _json_lines(file):
        passage_id = _id(entry, where)
        if passage_id in seen:
            raise DataError(f"{where}, field id: {passage_id!r} is already on line {seen[passage_id]}")
        seen[passage_id] = number
        yield passage_id, _text(entry, "contents", where)
    if not seen:
        raise DataError(f"{file}: no passages")


def question_files(path: str, field: str) -> list[Path]:
    """The file at `path`, or the files of questions in the folder there, by name. Raises ConfigError that names the
    config field where there are none."""
    folder = local_path(path, field)
    if not folder.is_dir():
        return [existing_file(path, field)]
    files = sorted(file for file in folder.iterdir() if file.is_file() and file.name.endswith(QUESTION_FILES))
    if not files:
        raise ConfigError(f"{field}: {folder} holds no file of questions ({', '.join(QUESTION_FILES)})")
    return files


def read_questions(*files: Path) -> list[Question]:
    """The questions of `files`, in their order; a split stands in all of them or in none.

    Each field is looked for where this project writes it and where Search-R1 and verl do: the question in `question` or
    `extra_info.question`, its answers in one of `_ANSWERS`, the split in `split` or `extra_info.split`, and what has no
    `id` is called by its split and `extra_info.index`, as in `test_0`. Data sets have the names of `DATA_SOURCES`; any
    other name is taken as it is.

    Answers without a word (nothing is left of them without punctuation and articles) are dropped; a question with no
    other stays, so that data sets keep their size, and nothing answers it. Raises DataError that names file, line (row
    of a parquet file) and field of an entry that cannot be used, of an id that its data source already has, and for a
    file without questions.
    """
    questions: list[Question] = []
    seen: dict[str, tuple[Path, str]] = {}
    for file in files:
        before = len(questions)
        for position, where, entry in _entries(file):
            question = _question(entry, where)
            if question.task_id in seen:
                first_file, first = seen[question.task_id]
                elsewhere = "" if first_file == file else f" of {first_file}"
                raise DataError(f"{where}, field id: question {question.task_id} is already on {first}{elsewhere}")
            if questions and bool(question.split) != bool(questions[0].split):
                raise DataError(f"{where}, field split: some lines have it, some do not")
            seen[question.task_id] = file, position
            questions.append(question)
        if len(questions) == before:
            raise DataError(f"{file}: no questions")
    return questions


def _question(entry: dict, where: str) -> Question:
    field, answers = _first(entry, _ANSWERS)
    if isinstance(answers, str) and field != "golden_answers":
        answers = [answers]
    if not isinstance(answers, list) or not answers or not all(isinstance(a, str) and a.strip() for a in answers):
        raise DataError(f"{where}, field {field}: expected a list of non-empty texts, got {answers!r}")
    # Of some real answers, such as '---', nothing is left: any other text without words would equal them.
    telling = [answer for answer in answers if normalize_answer(answer)]
    source = _text(entry, "data_source", where).removeprefix(_VERL_PREFIX)
    split_field, split = _first(entry, ("split", "extra_info.split"))
    return Question(
        question_id=_question_id(entry, where),
        question=" ".join(_checked(*_first(entry, ("question", "extra_info.question")), where).split()),
        golden_answers=tuple(whole_characters(answer, f"{where}, field {field}") for answer in telling),
        data_source=DATA_SOURCES.get(source, source),
        split="" if split is None and "split" not in entry else _checked(split_field, split, where),
    )


def _question_id(entry: dict, where: str) -> str:
    if entry.get("id") is None:
        index, split = (_first(entry, (f"extra_info.{name}",))[1] for name in ("index", "split"))
        if isinstance(index, int) and isinstance(split, str):
            return whole_characters(f"{split}_{index}", f"{where}, field extra_info.split")
    return _id(entry, where)


def _first(entry: dict, fields: Sequence[str]) -> tuple[str, Any]:
    """The first of `fields` (`a.b`: field b of the object a) that has a value, with it; the first of all and None where
    none has one."""
    for field in fields:
        value: Any = entry
        for name in field.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        if value is not None:
            return field, value
    return fields[0], None


def file_digest(file: Path) -> str:
    """sha256 of a file's bytes."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _entries(file: Path) -> Iterator[tuple[str, str, dict]]:
    """(place in the file, file and place, object) of each line, or of each row of a parquet file."""
    if file.suffix != ".parquet":
        for number, where, entry in _json_lines(file):
            yield f"line {number}", where, entry
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as table:
            columns = [name for name in _COLUMNS if name in table.schema_arrow.names]
            rows = itertools.chain.from_iterable(batch.to_pylist() for batch in table.iter_batches(columns=columns))
            for number, entry in enumerate(rows, start=1):
                yield f"row {number}", f"{file}, row {number}", entry
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{file}: cannot be read as parquet: {error}") from None


def _json_lines(file: Path) -> Iterator[tuple[int, str, dict]]:
    """(line number, where it stands, object) of each line that is not blank."""
    open_text = {".xz": lzma.open, ".gz": gzip.open}.get(file.suffix, open)
    number = 0
    try:
        with open_text(file, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines_of(lines), start=1):
                if not line.strip():
                    continue
                where = f"{file}, line {number}"
                try:
                    entry = parse_json(line.rstrip())
                except json.JSONDecodeError as error:
                    raise DataError(f"{where}, column {error.colno}: not valid JSON: {error.msg}") from None
                if not isinstance(entry, dict):
                    raise DataError(f"{where}: expected a JSON object, got {type(entry).__name__}")
                yield number, where, entry
    except (OSError, lzma.LZMAError, zlib.error, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read after line {number}: {error}") from None


def _id(entry: dict, where: str) -> str:
    value = entry.get("id")
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise DataError(f"{where}, field id: expected a non-empty text or a number, got {value!r}")
    return whole_characters(str(value), f"{where}, field id")


def _text(entry: dict, field: str, where: str) -> str:
    return _checked(field, entry.get(field), where)


def _checked(field: str, value: object, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}, field {field}: expected a non-empty text, got {value!r}")
    return whole_characters(value, f"{where}, field {field}")
