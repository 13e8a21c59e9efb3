"""Section of the config about how prompts are rendered."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from opid_core.sections import Section, WithoutSwitchWords

EPISODE_TITLE = "Episode skill:"
STEP_TITLE = "Step skill:"
"""The first lines of the two blocks that tiny policies are warm-started on."""

ArgumentName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")]
Block = Annotated[str, Field(pattern=r"^[^{]*\{skill\}[^{]*$")]


class PromptingConfig(Section):
    """How a prompt becomes the policy's text, wherever one is rendered: rollout, re-scoring, evaluation, dry run. A
    warm start's policy knows the defaults alone."""

    style: Literal["single", "chat"] = "single"
    """`single`: every step is one user message, which tells the steps before it as text. `chat`: a conversation, in
    which the policy's own answers stand as it wrote them, token by token (docs/environments.md)."""
    template_arguments: Annotated[dict[ArgumentName, bool | int | float | str], WithoutSwitchWords] = Field(
        default_factory=dict
    )
    """Arguments of the policy's chat template, such as `{enable_thinking: false}`; one that the template does not read
    is refused. A model behind an endpoint has its template there: see `analyzer.llm.request_options`."""
    episode_block: Block = f"{EPISODE_TITLE}\n{{skill}}"
    """How an episode skill, `{skill}`, stands in a prompt. An instruct model needs to be told to use it."""
    step_block: Block = f"{STEP_TITLE}\n{{skill}}"
    """How a step skill, `{skill}`, stands in a prompt."""
