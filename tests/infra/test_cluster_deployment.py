"""The examples for clusters of Ray, by their structure: KubeRay's nodes, the run that joins them, the job of SLURM."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import yaml

import infra

INFRA = Path(infra.__file__).parent
CLUSTER, POLICY = yaml.safe_load_all((INFRA / "k8s" / "ray" / "raycluster.yaml").read_text(encoding="utf-8"))
PLAIN, ON_RAY = (
    json.loads((INFRA / "k8s" / folder / "base-job-template.json").read_text(encoding="utf-8"))
    for folder in ("", "ray")
)
MEMBER = {"opid-ray": "member"}
SLURM = INFRA / "slurm" / "opid.sbatch"


def spec_of(template):
    return template["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]


PODS = {
    "head": CLUSTER["spec"]["headGroupSpec"]["template"],
    "workers": CLUSTER["spec"]["workerGroupSpecs"][0]["template"],
    "run": ON_RAY["job_configuration"]["job_manifest"]["spec"]["template"],
}


@pytest.mark.parametrize("name", PODS)
def test_nobody_is_root_or_without_the_token_and_the_dead_are_reaped(name):
    pod = PODS[name]
    (container,) = pod["spec"]["containers"]
    assert pod["metadata"]["labels"] == MEMBER
    assert pod["spec"]["shareProcessNamespace"] is True
    assert pod["spec"]["automountServiceAccountToken"] is False
    assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
    assert pod["spec"]["securityContext"]["runAsUser"] > 0
    assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert container["image"].endswith(":CHANGE-ME")
    names = {source["secretRef"]["name"] for source in container["envFrom"]}
    assert {"opid-ray", "opid-s3"} <= names
    if name == "run":
        env = ON_RAY["variables"]["properties"]["env"]["default"]
    else:
        env = {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in container["env"]}
        # The operator's init container, which waits for the head, is given `env` alone.
        assert env["RAY_AUTH_TOKEN"] == {"secretKeyRef": {"name": "opid-ray", "key": "RAY_AUTH_TOKEN"}}
    assert (env["RAY_AUTH_MODE"], env["RAY_USAGE_STATS_ENABLED"]) == ("token", "0")


def test_the_head_and_the_driver_offer_nothing_and_the_workers_their_gpus():
    head, workers = CLUSTER["spec"]["headGroupSpec"], CLUSTER["spec"]["workerGroupSpecs"][0]
    assert (head["rayStartParams"]["num-cpus"], head["rayStartParams"]["num-gpus"]) == ("0", "0")
    assert "--num-cpus=0 --num-gpus=0" in spec_of(ON_RAY)["containers"][0]["command"][2]
    assert workers["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 8
    environments = [group["template"]["spec"]["containers"][0]["env"] for group in (head, workers)]
    assert all({"name": "RAY_worker_niceness", "value": "0"} in env for env in environments)


def test_members_of_the_cluster_alone_reach_each_other():
    assert POLICY["spec"] == {
        "podSelector": {"matchLabels": MEMBER},
        "policyTypes": ["Ingress"],
        "ingress": [{"from": [{"podSelector": {"matchLabels": MEMBER}}]}],
    }


def test_the_run_is_the_one_without_a_cluster_but_for_joining_it():
    plain, on_ray = spec_of(PLAIN), spec_of(ON_RAY)
    assert {key for key in {*plain, *on_ray} if plain.get(key) != on_ray.get(key)} == {
        "containers",
        "shareProcessNamespace",
        "tolerations",
    }
    (before,), (after,) = plain["containers"], on_ray["containers"]
    assert {key for key in {*before, *after} if before.get(key) != after.get(key)} == {
        "command",
        "envFrom",
        "resources",
    }
    assert "nvidia.com/gpu" not in json.dumps(ON_RAY)
    assert {"image", "namespace"} & {*ON_RAY["variables"]["properties"]} == set()


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (2, False), (1, True), (137, True)])
def test_the_job_of_slurm_comes_back_where_the_driver_was_lost(code, requeued, tmp_path):
    """With stand-ins for SLURM's commands and ours, which write down how they were called."""
    nodes_started = 'until [ "$(grep -c srun "$CALLS")" = 2 ]; do sleep 0.1; done'  # they are in the background
    commands = {
        "scontrol": 'if [ "$1" = show ]; then printf "one\\ntwo\\n"; else echo "scontrol $*" >> "$CALLS"; fi',
        "srun": 'echo "srun $*" >> "$CALLS"',
        "getent": 'echo "10.0.0.1 STREAM one"',
        "ray": "exit 0",
        "python": 'echo "python $4 $3" >> "$CALLS"',
        "opid": f'echo "opid $*" >> "$CALLS"; {nodes_started}; exit {code}',
    }
    for name, body in commands.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "CALLS": str(tmp_path / "calls"), "USER": "me"}
    env |= {"SLURM_JOB_ID": "12345", "SLURM_JOB_NODELIST": "one,two", "SLURM_CPUS_PER_TASK": "8"}
    ended = subprocess.run(["bash", str(SLURM), "config.yaml"], env=env, check=False)
    calls = (tmp_path / "calls").read_text().splitlines()
    assert ended.returncode == code
    assert "opid train config.yaml --set cluster.address=10.0.0.1:22345" in calls
    assert ("scontrol requeue 12345" in calls) == requeued
    starts = sorted(call for call in calls if call.startswith("srun"))
    assert len(starts) == 2
    assert "--nodelist=one" in starts[0]
    assert "--head --node-ip-address=10.0.0.1 --port=22345" in starts[0]
    assert "--nodelist=two" in starts[1]
    assert "--address=10.0.0.1:22345" in starts[1]
