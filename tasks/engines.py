"""The engine of a campaign: a fleet of replicas, each in a process of its own, on this machine's GPUs or its CPU."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from infra.hosting import HostedGroup, first_done
from opid_core.config import CampaignConfig
from opid_core.errors import ConfigError
from opid_core.rollout.engines.fleet import EngineFleet
from opid_core.rollout.engines.vllm import Completion


class RemoteEngine:
    """A `VllmEngine` behind a `HostedGroup`: what is submitted crosses with the next `begin` or `step`, in one call."""

    tokens_generated: int
    policy_dir: Path

    def __init__(
        self, config: CampaignConfig, policy_dir: Path, name: str, gpus: Sequence[str], *, trained: bool
    ) -> None:
        """Start the process, which sees `gpus` alone; see `VllmEngine`, whose errors come with the first answer."""
        self.name = name
        self.tokens_generated = 0
        self.policy_dir = policy_dir
        self._waiting: list[dict[str, Any]] = []
        self._running = 0
        self._begun = False
        threads = threads_of_replica(config)
        self.group = HostedGroup(
            name,
            "opid_core.rollout.engines.vllm:VllmEngine",
            policy_dir,
            config.engine,
            max_model_len=config.rollout.max_prompt_tokens + config.rollout.max_response_tokens,
            threads=threads,
            seed=config.seed,
            trained=trained,
            env={"OMP_NUM_THREADS": str(threads), **({"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else {})},
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

    def begin(self, max_steps: int | None = 1) -> None:
        """Sample while the caller works, until a response ends or after `max_steps` tokens of all that runs; the next
        `step` returns what ended, if anything. Counted, whatever the caller takes for its work, never timed."""
        if self._running and not self._begun:
            submissions, self._waiting = self._waiting, []
            self.group.begin("advance", submissions, max_steps)
            self._begun = True

    def step(self) -> Sequence[Completion]:
        """Sample until at least one response ends, or finish what was begun; returns the ended ones."""
        self.begin(max_steps=None)
        self._begun = False
        completions, sampled, self.policy_dir = self.group.finish()
        self.tokens_generated += sampled
        self._running -= len(completions)
        return completions

    def begin_load(self, policy_dir: Path) -> None:
        """Put the weights of another HF folder into the live engine, without waiting for it."""
        self.group.begin("load_policy", policy_dir)

    def finish_load(self) -> None:
        """Wait for `begin_load`."""
        self.group.finish()

    def kill(self) -> None:
        """End the process."""
        self.group.kill()


Engine = EngineFleet[RemoteEngine]
"""What plays a campaign's episodes."""


def start_engine(config: CampaignConfig, policy_dir: Path, *, trained: bool) -> Engine:
    """Start the config's replicas side by side, with the weights of the HF folder `policy_dir`; `trained`: others will
    be pushed.

    Raises ConfigError where they need more GPUs than there are; their first answers raise what `VllmEngine` raises.
    """
    gpus, replicas = gpus_of_replicas(config), config.engine.replicas
    names = [f"engine replica {n + 1} of {replicas}" if replicas > 1 else "engine" for n in range(replicas)]
    engines = [
        RemoteEngine(config, policy_dir, name, own, trained=trained) for name, own in zip(names, gpus, strict=True)
    ]
    try:
        for engine in engines:
            engine.group.create()
    except BaseException:
        for engine in engines:
            engine.kill()
        raise

    def first(begun: Sequence[RemoteEngine]) -> RemoteEngine:
        done = first_done([engine.group for engine in begun])
        return next(engine for engine in begun if engine.group is done)

    return EngineFleet(engines, policy_dir, first)


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, by the names that CUDA_VISIBLE_DEVICES has for them."""
    import torch

    count = torch.cuda.device_count()
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return (given.split(",") if given else [str(number) for number in range(count)])[:count]


def gpus_of_replicas(config: CampaignConfig) -> list[list[str]]:
    """The GPUs of each replica: `engine.tensor_parallel` neighbours, from the first on; none where there is no GPU.

    Raises ConfigError where the replicas, or the learner's ranks, need more GPUs than are visible, and for tensor
    parallelism without any: the processes of a CPU share one memory, so dividing the weights gains nothing there.
    """
    gpus, engine = visible_gpus(), config.engine
    each = engine.tensor_parallel
    if not gpus and each > 1:
        raise ConfigError(f"engine.tensor_parallel {each}: this machine shows no GPU; set it to 1")
    if not gpus:
        return [[] for _ in range(engine.replicas)]
    for what, needed in (
        (f"engine.replicas {engine.replicas} x engine.tensor_parallel {each}", engine.replicas * each),
        (f"learner.ranks {config.learner.ranks}", config.learner.ranks),
    ):
        if needed > len(gpus):
            raise ConfigError(f"{what}: {needed} GPUs are needed, this machine shows {len(gpus)} ({', '.join(gpus)})")
    return [gpus[first : first + each] for first in range(0, engine.replicas * each, each)]


def threads_of_replica(config: CampaignConfig) -> int:
    """CPU threads of each replica."""
    return max(1, config.threads // config.engine.replicas)
