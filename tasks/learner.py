"""The learner in processes of its own: one, or several ranks under torchrun."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from infra.hosting import HostedGroup
from opid_core.config import CampaignConfig
from opid_core.learning.methods import Distillation
from opid_core.samples import Ragged, Samples


class RemoteLearner:
    """A `Learner` behind a `HostedGroup`; every call runs on all ranks."""

    def __init__(self, config: CampaignConfig, policy_dir: Path, state: Path | None, micro_batch_tokens: int) -> None:
        """Start the ranks with the HF folder `policy_dir` and, where given, the stored learner state."""
        ranks = config.learner.ranks
        self._group = HostedGroup(
            "learner",
            "opid_core.learning.learner:Learner",
            policy_dir,
            config.learner.model_copy(update={"micro_batch_tokens": micro_batch_tokens}),
            threads=config.threads,
            seed=config.seed,
            state=state,
            ranks=ranks,
            env={"OMP_NUM_THREADS": str(max(1, config.threads // ranks))},
        )

    def score(self, prompts: Ragged, responses: Ragged, reference: Path | None = None) -> Ragged:
        """See `Learner.score`."""
        return self._group.call("score", prompts, responses, reference)

    def update(
        self,
        samples: Samples,
        *,
        seed: int,
        distillation: Distillation | None,
        on_progress: Callable[[int, int], None],
    ) -> dict[str, float]:
        """See `Learner.update`."""
        return self._group.call("update", samples, seed=seed, distillation=distillation, on_progress=on_progress)

    def export(self, folder: Path) -> None:
        """See `Learner.export`."""
        self._group.call("export", folder)

    def save(self, folder: Path) -> None:
        """See `Learner.save`."""
        self._group.call("save", folder)

    def kill(self) -> None:
        """End all ranks."""
        self._group.kill()
