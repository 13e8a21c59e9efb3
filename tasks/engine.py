"""The inference engine in a process of its own, as the episode loop sees it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from infra.hosting import HostedGroup
from opid_core.config import CampaignConfig
from opid_core.rollout.engines.vllm import Completion


class RemoteEngine:
    """A `VllmEngine` behind a `HostedGroup`: what is submitted crosses with the next `step`, in one call."""

    tokens_generated: int

    def __init__(self, config: CampaignConfig, policy_dir: Path) -> None:
        """Start the process and load the HF folder. Raises what `VllmEngine` raises."""
        self.tokens_generated = 0
        self._waiting: list[dict[str, Any]] = []
        self._running = 0
        self._group = HostedGroup(
            "engine",
            "opid_core.rollout.engines.vllm:VllmEngine",
            policy_dir,
            config.engine,
            max_model_len=config.rollout.max_prompt_tokens + config.rollout.max_response_tokens,
            threads=config.threads,
            seed=config.seed,
            env={"OMP_NUM_THREADS": str(config.threads)},
        )

    @property
    def is_idle(self) -> bool:
        """Whether no request waits or runs."""
        return self._running == 0

    def submit(
        self, request_id: str, prompt_ids: Sequence[int], *, max_tokens: int, temperature: float, seed: int
    ) -> None:
        """See `VllmEngine.submit`, whose errors come with the next `step`."""
        self._waiting.append(
            {
                "request_id": request_id,
                "prompt_ids": list(prompt_ids),
                "max_tokens": max_tokens,
                "temperature": temperature,
                "seed": seed,
            }
        )
        self._running += 1

    def step(self) -> Sequence[Completion]:
        """Sample until at least one response ends; returns the ended ones."""
        submissions, self._waiting = self._waiting, []
        completions, sampled = self._group.call("advance", submissions)
        self.tokens_generated += sampled
        self._running -= len(completions)
        return completions

    def load_policy(self, policy_dir: Path) -> None:
        """Put the weights of another HF folder into the live engine."""
        self._group.call("load_policy", policy_dir)

    def kill(self) -> None:
        """End the process."""
        self._group.kill()
