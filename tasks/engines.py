"""The engine of a campaign: a fleet of replicas, each in a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from infra.groups import Folder
from opid_core.config import CampaignConfig
from opid_core.errors import ConfigError
from opid_core.rollout.engines import protocols
from opid_core.rollout.engines.fleet import EngineFleet
from opid_core.rollout.episodes import Episode, EpisodeRequest, run_episodes
from tasks.episodes import environment_maker, episode_settings
from tasks.places import LocalPlaces, Places
from tasks.players import PlayerFleet, RemotePlayer
from tasks.remote_engine import RemoteEngine

Engine = EngineFleet[RemoteEngine] | PlayerFleet
"""What plays a campaign's episodes."""


def start_engine(config: CampaignConfig, policy_dir: Folder, *, trained: bool, places: Places | None = None) -> Engine:
    """Start the config's replicas side by side in `places` (None: this machine), with the weights of the HF folder
    `policy_dir`; `trained`: others will be pushed.

    Raises ConfigError where they need more GPUs than there are; their first answers raise what `VllmEngine` raises.
    """
    if places is None:
        if config.cluster.address is not None:
            raise ConfigError("cluster.address: this command plays on its own machine; add --set cluster.address=null")
        places = LocalPlaces(config)
    if config.rollout.loop == "replicas":
        return PlayerFleet(
            _started(RemotePlayer, config, policy_dir, trained, places), policy_dir, partial(_first_done, places)
        )
    return EngineFleet(
        _started(RemoteEngine, config, policy_dir, trained, places), policy_dir, partial(_first_done, places)
    )


R = TypeVar("R", bound=RemoteEngine)


def _started(handle: type[R], config: CampaignConfig, policy_dir: Folder, trained: bool, places: Places) -> Sequence[R]:
    replicas = config.engine.replicas
    names = [f"engine replica {n + 1} of {replicas}" if replicas > 1 else "engine" for n in range(replicas)]
    engines = [
        handle(name, places.engine(number, name, policy_dir, trained=trained), policy_dir)
        for number, name in enumerate(names)
    ]
    try:
        for engine in engines:
            engine.group.create()
    except BaseException:
        for engine in engines:
            engine.kill()
        raise
    return engines


def _first_done(places: Places, begun: Sequence[R]) -> R:
    done = places.first_done([engine.group for engine in begun])
    return next(engine for engine in begun if engine.group is done)


def play(
    config: CampaignConfig,
    engine: Engine | protocols.Engine,
    tokenizer: Any,
    requests: Sequence[EpisodeRequest],
    temperature: float | None,
    on_episode: Callable[[Episode], None] = lambda episode: None,
) -> list[Episode]:
    """Play `requests` under the campaign's rules (see `episode_settings` for `temperature`): here, or beside the
    replicas of a `PlayerFleet`. The episodes in the order of the requests; arguments and errors of `run_episodes`."""
    if not isinstance(engine, PlayerFleet):
        rules = episode_settings(config, temperature)
        return run_episodes(engine, tokenizer, environment_maker(config), requests, rules, on_episode)
    ended: dict[str, Episode] = {}
    for episode in engine.play(requests, temperature):
        ended[episode.request.trajectory_id] = episode
        on_episode(episode)
    return [ended[request.trajectory_id] for request in requests]
