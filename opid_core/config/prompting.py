"""Section of the config about how prompts are rendered."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from opid_core.sections import Section

ArgumentName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")]


class PromptingConfig(Section):
    """How a prompt becomes the policy's text, wherever one is rendered: rollout, re-scoring, evaluation, dry run."""

    template_arguments: dict[ArgumentName, bool | int | float | str] = Field(default_factory=dict)
    """Arguments of the policy's chat template, such as `{enable_thinking: false}`; one that the template does not read
    is refused. A model behind an endpoint has its template there."""
