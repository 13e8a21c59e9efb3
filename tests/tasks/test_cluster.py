"""Places on a cluster, and what is refused before any work; no cluster is started."""

from __future__ import annotations

import socket
import sys

import pytest

from infra import ray_nodes
from opid_core.config import build_config
from opid_core.errors import ConfigError
from tasks.cluster import bundles, seats_of_ranks
from tasks.engines import start_engine

GPU_NODES = [{"CPU": 32.0, "GPU": 4.0}, {"CPU": 32.0, "GPU": 4.0}, {"CPU": 4.0}]


def config_of(replicas=1, tensor_parallel=1, ranks=1, **others):
    engine = {"replicas": replicas, "tensor_parallel": tensor_parallel}
    return build_config({"campaign": "c", "engine": engine, "learner": {"ranks": ranks}, **others})


SHARED = build_config({"campaign": "c", "engine": {"share_gpus": True}})


def test_each_replica_and_each_rank_has_a_place():
    assert bundles(config_of(), [{"CPU": 2.0}]) == [{"CPU": 1.0}]
    assert bundles(config_of(1, 1, 2), [{"CPU": 1.0}, {"CPU": 1.0}]) == [{"CPU": 1.0}] * 2
    assert bundles(config_of(2, 2, 8), GPU_NODES) == [
        *[{"CPU": 1.0, "GPU": 2.0}] * 2,
        *[{"CPU": 1.0, "GPU": 1.0}] * 4,
    ]
    assert bundles(config_of(3, 1, 1), GPU_NODES) == [{"CPU": 1.0, "GPU": 1.0}] * 3


def test_ranks_take_the_gpus_of_the_places_in_order():
    assert seats_of_ranks([["0", "1"], ["4", "5"], ["2"]], 5) == [(0, "0"), (0, "1"), (1, "4"), (1, "5"), (2, "2")]
    assert seats_of_ranks([["0", "1"], ["4", "5"]], 1) == [(0, "0")]
    assert seats_of_ranks([[], []], 2) == [(0, ""), (1, "")]


@pytest.mark.parametrize(
    ("config", "nodes", "message"),
    [
        (config_of(1, 1, 9), GPU_NODES, r"learner.ranks 9: 9 GPUs are needed, the cluster has 8"),
        (config_of(5, 2, 1), GPU_NODES, r"engine.replicas 5 x engine.tensor_parallel 2 .*: 10 GPUs are needed"),
        (config_of(2, 3, 1), [{"GPU": 4.0}, {"GPU": 2.0}], r"must be of one node, 1 replicas fit the cluster"),
        (config_of(1, 2, 1), [{"CPU": 4.0}], r"engine.tensor_parallel 2: the cluster shows no GPU"),
        (SHARED, [{"CPU": 4.0}], r"engine.share_gpus: the cluster shows no GPU; set it to false"),
        (config_of(1, 1, 3), [{"CPU": 1.0}, {"CPU": 1.0}], r"3 CPUs are needed, the cluster has 2 and no GPU"),
    ],
)
def test_more_than_the_cluster_has_is_refused(config, nodes, message):
    with pytest.raises(ConfigError, match=message):
        bundles(config, nodes)


def test_an_address_where_nothing_answers_is_refused_at_once(monkeypatch):
    ray = pytest.importorskip("ray", reason="needs the extra `ray`")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # another test of this process may have joined a cluster
    with socket.socket() as taken:
        taken.bind(("127.0.0.2", 0))  # and does not listen
        port = taken.getsockname()[1]
        with pytest.raises(
            ConfigError, match=rf"^cluster.address: no Ray cluster at 127.0.0.2:{port}: Connection refused"
        ):
            ray_nodes.connect(f"127.0.0.2:{port}")


def test_a_head_that_stops_answering_is_told_once_and_so_is_its_return():
    told, looks = [], iter(range(8))
    heads = [socket.create_server(("127.0.0.1", 0))]
    host, port = heads[0].getsockname()

    def goes_on():
        look = next(looks, None)
        if look == 2:
            heads.pop().close()
        if look == 6:  # after four looks in vain
            heads.append(socket.create_server((host, port)))
        return look is not None

    ray_nodes.watch_head(f"{host}:{port}", told.append, goes_on, every_s=0.0)
    heads.pop().close()
    lost, back = told
    assert lost.startswith(f"the head of the cluster at {host}:{port} does not answer (Connection refused)")
    assert back == f"the head of the cluster at {host}:{port} answers again"


def test_a_missing_ray_is_said_with_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"cluster.address: a cluster needs Ray: pip install 'opid\[ray\]'"):
        ray_nodes.connect("head:6379")


@pytest.mark.parametrize("address", ["ray://head:10001", "head", "user:key@head:6379", "head:port", ""])
def test_other_forms_of_an_address_are_refused(address):
    with pytest.raises(ConfigError, match=r"cluster\.address"):
        config_of(cluster={"address": address})


def test_a_command_that_plays_on_its_own_machine_says_so(tmp_path):
    with pytest.raises(ConfigError, match=r"add --set cluster\.address=null$"):
        start_engine(config_of(cluster={"address": "head:6379"}), tmp_path, trained=False)
