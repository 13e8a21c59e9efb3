"""Search-based question answering: search a corpus, then answer (docs/search_qa.md)."""

from __future__ import annotations

import functools
from collections.abc import Coroutine, Sequence
from typing import Any

from pydantic import Field, model_validator

from envs.base import ActionWords, StepResult, Task, register
from envs.search_qa.data import Question, existing_file, question_files
from envs.search_qa.engines import Passage
from envs.search_qa.generator import GeneratorOptions, make_world
from envs.search_qa.retrieval import RetrievalOptions, SearchClient, open_engine
from envs.search_qa.tasks import generated_splits, generated_tasks, stored_splits, stored_tasks
from envs.search_qa.text import (
    FIRST_OBSERVATION,
    FIXED_PHRASES,
    NOTHING_DONE,
    TASK_LINE,
    answer_of,
    exact_match,
    information,
    normalize_answer,
    parse_action,
    prompt_parts,
    query_of,
    response_text,
)
from envs.search_qa.world import SearchQaExpert, wording
from opid_core.sections import Section

__all__ = [
    "Question",
    "SearchQaEnvironment",
    "SearchQaOptions",
    "exact_match",
    "normalize_answer",
    "parse_action",
    "prompt_parts",
]


class SearchQaOptions(Section):
    """Which questions, which passages, and how they are searched."""

    corpus: str = "generated"
    """`generated`, or a file of passages: JSON lines `{"id", "contents"}`, plain, `.gz` or `.xz`. A server has its own
    corpus: then this is not read."""
    questions: str = "generated"
    """`generated`, or a file of questions, or a folder of such files: JSON lines `{"id", "question", "golden_answers",
    "data_source"}`, with an optional `split`, plain, `.gz` or `.xz`; and Search-R1's and verl's files, parquet or JSON
    lines, as they are."""
    manifest: str | None = None
    """File of task ids a split, in task order: JSON `{"train": [id, ...]}`, or text with a `split id` pair a line."""
    max_turns: int = Field(default=4, ge=1)
    """The episode ends with this turn; a search in it is not made."""
    retrieval: RetrievalOptions = RetrievalOptions()
    """How passages are found."""
    generator: GeneratorOptions = GeneratorOptions()
    """The generated world."""

    @model_validator(mode="after")
    def _together(self) -> SearchQaOptions:
        if self.retrieval.engine != "server" and (self.corpus == "generated") != (self.questions == "generated"):
            raise ValueError("corpus and questions: give a file for both, or for neither")
        return self


class SearchQaEnvironment:
    """One running episode of search-based QA. Raises ConfigError for files that are not there.

    An action is `<search>query</search>` or `<answer>text</answer>`, as `parse_action` returns it. There are no
    admissible actions to list.
    """

    parse_action = staticmethod(parse_action)
    prompt_parts = staticmethod(prompt_parts)
    response_text = staticmethod(response_text)
    action_words = ActionWords(failed_observations=(NOTHING_DONE,), tags=("search", "answer"), answer_tag="answer")
    admissible_actions: Sequence[str] = ()

    def __init__(self, options: SearchQaOptions) -> None:
        self.options = options
        self.task_text = ""
        if options.corpus != "generated":
            existing_file(options.corpus, "environment.options.corpus")
        if options.questions != "generated":
            question_files(options.questions, "environment.options.questions")

    @property
    def fixed_phrases(self) -> Sequence[str]:
        """The wording of all prompts, and in the generated world that of its passages and the parts of its names."""
        if self.options.questions != "generated":
            return FIXED_PHRASES
        return _phrases_of(self.options.generator)  # pyright: ignore[reportArgumentType] -- frozen, hence hashable

    def splits(self) -> Sequence[str]:
        """The splits of the questions (the manifest's, if there is one)."""
        options = self.options
        if options.questions == "generated":
            return generated_splits(options.manifest)
        return stored_splits(options.questions, options.manifest)

    def tasks(self, split: str) -> Sequence[Task]:
        """The questions of `split` (in the manifest's order if there is one)."""
        options = self.options
        if options.questions == "generated":
            return generated_tasks(options.generator, split, options.manifest)
        return stored_tasks(options.questions, split, options.manifest)

    def reset(self, task: Task) -> str:
        """Start `task`. The first reset of a process opens the search engine (see `retrieval.open_engine`)."""
        options = self.options
        self._engine = open_engine(options.retrieval, options.corpus, options.generator)  # pyright: ignore[reportArgumentType] -- frozen, hence hashable
        self._question: Question = task.payload
        self._turn = 0
        self._top_passage = ""
        self.task_text = f"{TASK_LINE}{self._question.question}"
        return FIRST_OBSERVATION

    def step(self, action: str) -> StepResult | Coroutine[Any, Any, StepResult]:
        """Answer, which ends the episode with reward 1 for an exact match, else 0; or search. A coroutine where a
        server is asked.

        Raises InfrastructureError when the search engine gives no answer.
        """
        self._turn += 1
        answer = answer_of(action)
        if answer is not None:
            won = exact_match(answer, self._question.golden_answers)
            return StepResult("", reward=1.0 if won else 0.0, done=True, won=won)
        if self._turn >= self.options.max_turns:
            return StepResult("", reward=0.0, done=True, won=False)
        query = query_of(action)
        if query is None:
            return StepResult(NOTHING_DONE, reward=0.0, done=False, won=False)
        if not query:
            return self._shown([])
        if isinstance(self._engine, SearchClient):
            return self._ask(self._engine, query)
        return self._shown(self._engine.search([query], self.options.retrieval.top_k)[0])

    async def _ask(self, client: SearchClient, query: str) -> StepResult:
        return self._shown((await client.search([query], self.options.retrieval.top_k))[0])

    def _shown(self, passages: Sequence[Passage]) -> StepResult:
        if passages:
            self._top_passage = passages[0].passage_id
        return StepResult(information([passage.contents for passage in passages]), reward=0.0, done=False, won=False)

    def state_key(self) -> str:
        """The best passage of the latest search that found any: the others vary with the wording of the query."""
        return self._top_passage

    def forbidden_texts(self, task: Task) -> Sequence[str]:
        """The golden answers, without those that the question itself holds and those that are just yes or no."""
        question: Question = task.payload
        asked = f" {normalize_answer(question.question)} "
        answers = {answer: normalize_answer(answer) for answer in question.golden_answers}
        return [a for a, words in answers.items() if words not in ("", "yes", "no") and f" {words} " not in asked]

    def expert(self, observation: str) -> SearchQaExpert:
        """An expert for the episode that `reset` just started. Raises ConfigError for questions that were not
        generated."""
        return SearchQaExpert(self._question.question)


@functools.lru_cache(maxsize=4)
def _phrases_of(generator: GeneratorOptions) -> Sequence[str]:
    """Kept, because every check that an environment has an expert reads the phrases: 0.1 s of 20,000 passages."""
    world = make_world(generator)  # pyright: ignore[reportArgumentType] -- frozen, hence hashable
    return (*FIXED_PHRASES, *wording(world.names))


register("search_qa", SearchQaOptions, SearchQaEnvironment)
