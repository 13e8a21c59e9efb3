"""A campaign on the nodes of a Ray cluster: whether they fit it, and where its engines and ranks go.

A place is a share of a node: the GPUs of one replica, or one GPU, or (a cluster without GPUs) one CPU. Replica k plays
in place k; the ranks take the places' GPUs in order, so that both sit side by side as on one machine.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from infra import ray_hosting, ray_nodes
from infra.groups import Folder, Group, StoredFolder
from infra.manifest import FolderRecord
from infra.store import CampaignStore, location, put_object, read_object, weights_only
from opid_core.config import CampaignConfig
from opid_core.errors import ConfigError, OpidError
from tasks.places import LEARNER, engine_factory, engine_options, threads_of_rank
from tasks.policies import MergedFolder, base_and_adapter
from tasks.progress import report
from tasks.version import versions

TOKEN = "_cluster/token"
"""In a campaign's folder: what the nodes read to show that they see the store."""
_CHECK_S = 120.0


class ClusterPlaces:
    """See `tasks.places.Places`. Made anew after a fault: `close` gives everything back."""

    def __init__(self, config: CampaignConfig) -> None:
        self._config = config
        self._places: ray_hosting.RayPlaces | None = None

    def folder(self, store: CampaignStore, folder: FolderRecord) -> StoredFolder:
        """See `Places.folder`: each node fetches it into its own cache."""
        return StoredFolder(store, folder)

    @contextmanager
    def whole_policy(self, store: CampaignStore, policy: FolderRecord) -> Iterator[StoredFolder]:
        """See `Places.whole_policy`: base and adapter (LoRA) are merged where a replica is."""
        base, adapter = base_and_adapter(store, weights_only(policy))
        if adapter is None:
            yield self.folder(store, base)
            return
        merged = MergedFolder(store, adapter, base=base)
        try:
            yield merged
        finally:
            if self._places is not None:
                self._places.forget(merged)

    def engine(self, replica: int, name: str, policy_dir: Folder, *, trained: bool) -> Group:
        """See `Places.engine`."""
        places = self._opened()
        options = engine_options(self._config, trained)
        env = {"OMP_NUM_THREADS": str(options["threads"]), "CUDA_VISIBLE_DEVICES": ",".join(places.gpus[replica])}
        factory = engine_factory(self._config, policy_dir)
        return places.group(name, *factory, seats=[replica], envs=[env], **options)

    def learner(self, policy_dir: Folder, config: Any, **named: Any) -> Group:
        """See `Places.learner`."""
        places = self._opened()
        seats = seats_of_ranks(places.gpus, self._config.learner.ranks)
        threads = str(threads_of_rank(self._config))
        envs = [{"OMP_NUM_THREADS": threads, "CUDA_VISIBLE_DEVICES": gpu} for _, gpu in seats]
        options = {"threads": self._config.threads, "seed": self._config.seed, **named}
        return places.group(
            "learner", LEARNER, policy_dir, config, seats=[place for place, _ in seats], envs=envs, **options
        )

    def first_done(self, groups: Sequence[Any]) -> Group:
        """See `Places.first_done`."""
        return ray_hosting.first_done(groups)

    def close(self) -> None:
        """See `Places.close`."""
        if self._places is not None:
            self._places.close()
        self._places = None

    def _opened(self) -> ray_hosting.RayPlaces:
        if self._places is None:
            cluster = self._config.cluster
            assert cluster.address is not None
            ray_nodes.connect(cluster.address, _tell)
            self._places = ray_hosting.RayPlaces(bundles(self._config, ray_nodes.nodes()), cluster.start_timeout_s)
        return self._places


def seats_of_ranks(gpus: Sequence[Sequence[str]], ranks: int) -> list[tuple[int, str]]:
    """Place and GPU of each rank, given the GPUs of each place; a place without any takes one rank."""
    return [(place, gpu) for place, own in enumerate(gpus) for gpu in own or [""]][:ranks]


def bundles(config: CampaignConfig, nodes: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """What each place reserves on a cluster of `nodes`.

    Raises ConfigError where replicas and ranks need more GPUs (or, without any, CPUs) than all of them have, and for
    what needs a GPU where there is none.
    """
    replicas, each, ranks = config.engine.replicas, config.engine.tensor_parallel, config.learner.ranks
    gpus = int(sum(node.get("GPU", 0) for node in nodes))
    wanted = f"engine.replicas {replicas} x engine.tensor_parallel {each} and learner.ranks {ranks}"
    if not gpus:
        if config.engine.share_gpus:
            raise ConfigError("engine.share_gpus: the cluster shows no GPU; set it to false")
        if each > 1:
            raise ConfigError(f"engine.tensor_parallel {each}: the cluster shows no GPU; set it to 1")
        needed, cpus = max(replicas, ranks), int(sum(node.get("CPU", 0) for node in nodes))
        if needed > cpus:
            raise ConfigError(f"{wanted}: {needed} CPUs are needed, the cluster has {cpus} and no GPU")
        return [{"CPU": 1.0}] * needed
    needed = max(replicas * each, ranks)
    if needed > gpus:
        raise ConfigError(f"{wanted}: {needed} GPUs are needed, the cluster has {gpus}")
    if replicas > (fit := sum(int(node.get("GPU", 0)) // each for node in nodes)):
        raise ConfigError(f"{wanted}: the GPUs of a replica must be of one node, {fit} replicas fit the cluster")
    return [{"CPU": 1.0, "GPU": float(each)}] * replicas + [{"CPU": 1.0, "GPU": 1.0}] * max(0, ranks - replicas * each)


def _tell(note: str) -> None:
    report(None, "cluster", note=note, event="fault")


def check_cluster(config: CampaignConfig) -> None:
    """Raise ConfigError where the config's cluster cannot be joined, is too small, or has a node with other versions of
    the program or its packages. Touches nothing."""
    assert config.cluster.address is not None
    ray_nodes.connect(config.cluster.address, _tell)
    bundles(config, ray_nodes.nodes())
    ours = versions()
    for node, theirs in ray_nodes.on_every_node("tasks.version:versions", timeout_s=_CHECK_S).items():
        different = [
            f"{name} {theirs.get(name)} there, {ours[name]} here" for name in ours if theirs.get(name) != ours[name]
        ]
        if different:
            raise ConfigError(
                f"cluster.address: node {node} has other versions: {'; '.join(different)}; install the same everywhere"
            )


def check_store(store: CampaignStore) -> None:
    """Raise ConfigError where a node of the joined cluster does not see the store: all policies go through it."""
    token = secrets.token_hex(16)
    put_object(store, TOKEN, token.encode())
    for node, seen in ray_nodes.on_every_node("tasks.cluster:read_token", store, timeout_s=_CHECK_S).items():
        if seen != token:
            raise ConfigError(
                f"root: node {node} does not see {location(store)} as this machine does ({seen}); choose a root on S3 "
                "whose keys all nodes have, or a folder that all nodes share"
            )


def read_token(store: CampaignStore) -> str:
    """On a node: the token that it finds, or why it finds none."""
    try:
        return (read_object(store, TOKEN) or b"there is no such campaign").decode()
    except OpidError as error:
        return str(error)
