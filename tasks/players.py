"""Episodes that are played beside their replica, where `rollout.loop` is `replicas`: the process of a replica runs the
environments of its groups and prepares their turns, and the driver of a large fleet only takes episodes as they end.

What a replica's engine is given is what it would be given by the driver: the same submissions in the same order.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from infra.groups import is_same_folder
from infra.hosting import HostedGroup
from opid_core.config import CampaignConfig
from opid_core.policies import load_tokenizer
from opid_core.rollout.engines.fleet import EngineFleet, dealt
from opid_core.rollout.engines.vllm import Completion
from opid_core.rollout.episodes import Episode, EpisodeRequest, ended_episodes
from opid_core.rollout.prompting import with_template_arguments
from tasks.episodes import environment_maker, episode_settings
from tasks.places import ENGINE
from tasks.remote_engine import RemoteEngine

Ended = tuple[Episode | None, int, Path]
"""An episode (None: all are played), the tokens sampled since the last answer, the folder of the engine's weights."""


class Player:
    """What a replica's process holds: the loop that plays episodes, and the engine in a process of its own below this
    one, which samples while the next turns are prepared."""

    def __init__(self, policy_dir: Path, config: CampaignConfig, **options: Any) -> None:
        """Start a `VllmEngine` with the HF folder `policy_dir` and `options`, and do not wait for it."""
        self._config = config
        group = HostedGroup("engine", ENGINE, policy_dir, config.engine, **options)
        self._engine = RemoteEngine("engine", group, policy_dir)
        group.create()
        self._load_tokenizer(policy_dir)
        self._playing: Generator[Episode, None, None] | None = None
        self._told = 0

    def advance(
        self, submissions: Sequence[Mapping[str, Any]], max_steps: int | None = None
    ) -> tuple[list[Completion], int, Path]:
        """See `VllmEngine.advance`."""
        return self._engine.group.call("advance", submissions, max_steps)

    def load_policy(self, policy_dir: Path) -> None:
        """See `VllmEngine.load_policy`."""
        self._engine.begin_load(policy_dir)
        self._engine.finish()
        self._engine.policy_dir = policy_dir
        self._load_tokenizer(policy_dir)

    def sleep(self) -> None:
        """See `VllmEngine.sleep`."""
        self._engine.group.call("sleep")

    def wake(self) -> None:
        """See `VllmEngine.wake`."""
        self._engine.group.call("wake")

    def play(self, requests: Sequence[EpisodeRequest], temperature: float | None) -> Ended:
        """Begin to play `requests` under the campaign's rules (see `episode_settings`), and wait for the first end."""
        settings = episode_settings(self._config, temperature)
        self._told = self._engine.tokens_generated
        self._playing = ended_episodes(
            self._engine, self._tokenizer, environment_maker(self._config), requests, settings
        )
        return self.go_on()

    def go_on(self) -> Ended:
        """Play until the next episode ends."""
        assert self._playing is not None
        episode = next(self._playing, None)
        sampled, self._told = self._engine.tokens_generated - self._told, self._engine.tokens_generated
        return episode, sampled, self._engine.policy_dir

    def _load_tokenizer(self, policy_dir: Path) -> None:
        """With the weights, not with the first episode: a merged policy (LoRA) is removed once all have loaded it."""
        arguments = self._config.prompting.template_arguments
        self._tokenizer = with_template_arguments(load_tokenizer(policy_dir), arguments)


class RemotePlayer(RemoteEngine):
    """A `Player` behind a group."""

    def begin_play(self, requests: Sequence[EpisodeRequest], temperature: float | None) -> None:
        """Begin to play `requests`, without waiting for it."""
        self.group.begin("play", requests, temperature)

    def ended(self) -> Episode | None:
        """Wait for the next episode that ends, and let the others go on; None when all were given."""
        episode, sampled, loaded = self.group.finish()
        self.policy_dir = self._given if is_same_folder(self._given, loaded) else loaded
        self.tokens_generated += sampled
        if episode is not None:
            self.group.begin("go_on")
        return episode


class PlayerFleet(EngineFleet[RemotePlayer]):
    """A fleet whose replicas play: groups are dealt to them as `EngineFleet.deal` does."""

    def play(self, requests: Sequence[EpisodeRequest], temperature: float | None) -> Iterator[Episode]:
        """Play `requests`, each group beside its replica, and give each episode as it ends. Raises as `step` does."""
        homes = dealt([request.group_id for request in requests], len(self.replicas))
        playing = []
        for number, replica in enumerate(self.replicas):
            if own := [request for request in requests if homes[request.group_id] == number]:
                replica.begin_play(own, temperature)
                playing.append(replica)
        while playing:
            replica = self.first_done(playing)
            episode = replica.ended()
            self.check_weights(replica)
            playing.remove(replica)
            if episode is not None:
                playing.append(replica)  # behind those that have waited longer
                yield episode
