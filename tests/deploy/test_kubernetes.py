"""Jobs and manifests for Kubernetes, against its own schema and against what Prefect's worker makes of them."""

from __future__ import annotations

import copy
import json
import re
from typing import Any
from uuid import UUID

import kubernetes_validate
import pytest
import yaml

from tests.conftest import REPO
from tests.deploy.test_service import chosen_options

FOLDER = REPO / "deploy" / "kubernetes"
POOLS = ("cpu", "gpu")
VERSIONS = ("1.31", kubernetes_validate.latest_version())
FLOW_RUN = UUID("00000000-0000-0000-0000-00000000002a")


def template(pool: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / f"{pool}-pool.json").read_text())
    return found


def manifests() -> list[dict[str, Any]]:
    return [made for path in sorted(FOLDER.glob("*.yaml")) for made in yaml.safe_load_all(path.read_text())]


def rendered(pool: str, **variables: Any) -> dict[str, Any]:
    """The job as Prefect's worker sends it to Kubernetes, with these variables instead of the template's defaults."""
    from prefect.client.schemas.objects import FlowRun
    from prefect.utilities.templating import apply_values
    from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration as Configuration

    base = template(pool)
    values = Configuration._get_base_config_defaults(base["variables"]["properties"])
    values |= variables | {"env": values["env"] | variables.get("env", {})}
    configuration = Configuration(**apply_values(base["job_configuration"], values))
    configuration.prepare_for_flow_run(FlowRun(id=FLOW_RUN, flow_id=FLOW_RUN, name="brave Otter"))
    return configuration.job_manifest


def strictly(resource: dict[str, Any], version: str) -> None:
    """Checks a resource against the schema of a release of Kubernetes, unknown fields refused.

    Prefect's worker insists on two fields that belong to the Job in its pod; Kubernetes drops them with a warning.
    """
    known = copy.deepcopy(resource)
    if known["kind"] == "Job":
        assert (known["spec"]["template"]["spec"].pop("parallelism"), 1) == (1, 1)
        assert (known["spec"]["template"]["spec"].pop("completions"), 1) == (1, 1)
    kubernetes_validate.validate(known, version, strict=True)


def pod(job: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = job["spec"]["template"]["spec"]
    return found


def container(job: dict[str, Any]) -> dict[str, Any]:
    (found,) = pod(job)["containers"]
    return dict(found)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("pool", POOLS)
def test_the_job_fits_the_schema(pool: str, version: str) -> None:
    strictly(rendered(pool), version)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_manifests_fit_the_schema(version: str) -> None:
    for manifest in manifests():
        strictly(manifest, version)
    kinds = sorted(manifest["kind"] for manifest in manifests())
    assert kinds == [
        *("ConfigMap", "ConfigMap", "Deployment", "Deployment", "Deployment", "Namespace", "PersistentVolumeClaim"),
        *("Role", "RoleBinding", "Service", "ServiceAccount", "ServiceAccount"),
    ]


def test_the_schema_refuses_what_is_wrong() -> None:
    job = rendered("gpu")
    pod(job)["containers"][0]["volumeMount"] = []
    with pytest.raises(kubernetes_validate.ValidationError, match="volumeMount"):
        strictly(job, VERSIONS[0])
    with pytest.raises(kubernetes_validate.ValidationError, match="'soon' is not of type"):
        strictly(rendered("cpu", deadline_seconds="soon"), VERSIONS[0])


@pytest.mark.parametrize("pool", POOLS)
def test_no_placeholder_is_left_and_none_lacks_a_variable(pool: str) -> None:
    assert "{{" not in json.dumps(rendered(pool))
    used = set(re.findall(r"{{ (\w+) }}", json.dumps(template(pool)["job_configuration"])))
    assert used == set(template(pool)["variables"]["properties"])


@pytest.mark.parametrize("pool", POOLS)
def test_the_default_values_fit_their_own_schema_and_are_explained(pool: str) -> None:
    import jsonschema

    schema = template(pool)["variables"]
    jsonschema.Draft202012Validator.check_schema(schema)
    defaults = {name: variable["default"] for name, variable in schema["properties"].items() if "default" in variable}
    jsonschema.validate(defaults, schema)
    assert all({"title", "description", "type"} <= set(variable) for variable in schema["properties"].values())


def test_a_gpu_job_is_a_cpu_job_with_devices_and_shared_memory() -> None:
    cpu, gpu = rendered("cpu"), rendered("gpu")
    assert container(gpu)["resources"] == {
        "requests": {"cpu": "8", "memory": "64Gi"},
        "limits": {"memory": "64Gi", "nvidia.com/gpu": 1},
    }
    assert pod(gpu)["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert pod(gpu)["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
    shared = next(volume for volume in pod(gpu)["volumes"] if volume["name"] == "shared-memory")
    assert shared["emptyDir"] == {"medium": "Memory", "sizeLimit": "16Gi"}
    assert {"name": "shared-memory", "mountPath": "/dev/shm"} in container(gpu)["volumeMounts"]  # noqa: S108

    for job in (cpu, gpu):
        for key in ("tolerations", "nodeSelector", "volumes", "containers"):
            pod(job).pop(key)
        job["spec"].pop("activeDeadlineSeconds")
    assert cpu == gpu


def test_variables_reach_the_job() -> None:
    job = rendered(
        "gpu", gpus=4, memory="128Gi", shared_memory="32Gi", deadline_seconds=60, finished_job_ttl=5, cpu_limit="16",
        image="registry.example/nextquill:2", store_claim="mine", runtime_class="nvidia", labels={"team": "a"},
        node_selector={"zone": "a"}, tolerations=[], environment_secret="other", env={"HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    strictly(job, VERSIONS[0])
    assert container(job)["resources"] == {
        "requests": {"cpu": "8", "memory": "128Gi"},
        "limits": {"cpu": "16", "memory": "128Gi", "nvidia.com/gpu": 4},
    }
    assert (job["spec"]["activeDeadlineSeconds"], job["spec"]["ttlSecondsAfterFinished"]) == (60, 5)
    assert container(job)["image"] == "registry.example/nextquill:2"
    assert pod(job)["volumes"][0]["persistentVolumeClaim"] == {"claimName": "mine"}
    assert (pod(job)["runtimeClassName"], pod(job)["nodeSelector"]) == ("nvidia", {"zone": "a"})
    assert job["metadata"]["labels"]["team"] == "a"
    assert {"name": "HF_HUB_OFFLINE", "value": "1"} in container(job)["env"]
    assert {"name": "HF_HOME", "value": "/data/huggingface"} in container(job)["env"]


@pytest.mark.parametrize("pool", POOLS)
def test_a_job_runs_once_and_is_cleared_away(pool: str) -> None:
    job = rendered(pool)
    assert (job["spec"]["backoffLimit"], pod(job)["restartPolicy"]) == (0, "Never")
    assert job["spec"]["activeDeadlineSeconds"] >= 3600
    assert job["spec"]["ttlSecondsAfterFinished"] == 86400
    assert container(job)["args"] == ["prefect", "flow-run", "execute"]
    assert {"name": "PREFECT__FLOW_RUN_ID", "value": str(FLOW_RUN)} in container(job)["env"]


@pytest.mark.parametrize("pool", POOLS)
def test_secrets_are_in_a_job_by_reference_alone(pool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_KEY, PREFECT_API_URL, temporary_settings

    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cret")
    workers_own = {
        PREFECT_API_URL: "http://server:4200/api",
        PREFECT_API_AUTH_STRING: "admin:s3cret",
        PREFECT_API_KEY: "s3cret",
    }
    with temporary_settings(workers_own):
        job = rendered(pool, env={"A": "b"})
    assert {"name": "PREFECT_API_URL", "value": "http://server:4200/api"} in container(job)["env"]
    assert "s3cret" not in json.dumps(job)
    assert container(job)["envFrom"] == [{"secretRef": {"name": "nextquill-environment", "optional": True}}]


def by_kind(kind: str) -> list[dict[str, Any]]:
    return [made for made in manifests() if made["kind"] == kind]


def pods() -> list[tuple[str, dict[str, Any]]]:
    jobs = [(pool, pod(rendered(pool))) for pool in POOLS]
    return jobs + [(made["metadata"]["name"], pod(made)) for made in by_kind("Deployment")]


@pytest.mark.parametrize(("name", "spec"), pods(), ids=lambda value: value if isinstance(value, str) else "")
def test_every_pod_keeps_to_the_namespaces_security_standard(name: str, spec: dict[str, Any]) -> None:
    # The `restricted` pod security standard, rule by rule.
    (namespace,) = by_kind("Namespace")
    assert namespace["metadata"]["labels"] == {"pod-security.kubernetes.io/enforce": "restricted"}
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert (spec["securityContext"]["runAsUser"], spec["securityContext"]["runAsGroup"]) == (10001, 10001)
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
    kinds = {kind for volume in spec.get("volumes", []) for kind in volume}
    assert kinds <= {"name", "persistentVolumeClaim", "emptyDir", "configMap"}
    for made in spec["containers"]:
        assert made["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert not any("hostPort" in port for port in made.get("ports", []))


def test_the_worker_may_only_start_and_watch_jobs_and_the_jobs_may_nothing() -> None:
    (role,), (binding,) = by_kind("Role"), by_kind("RoleBinding")
    verbs = {resource: set(rule["verbs"]) for rule in role["rules"] for resource in rule["resources"]}
    look = {"get", "list", "watch"}
    assert verbs == {
        "jobs": look | {"create", "delete"},
        "pods": look,
        "pods/log": look,
        "pods/status": look,
        "events": look,
    }
    assert [subject["name"] for subject in binding["subjects"]] == ["nextquill-worker"]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    for pool in POOLS:
        assert pod(rendered(pool))["serviceAccountName"] == "nextquill-job"
        assert pod(rendered(pool))["automountServiceAccountToken"] is False


def test_names_that_refer_to_each_other_agree() -> None:
    named = {(made["kind"], made["metadata"]["name"]) for made in manifests()}
    for pool in POOLS:
        job = rendered(pool)
        assert ("Namespace", job["metadata"]["namespace"]) in named
        assert ("PersistentVolumeClaim", pod(job)["volumes"][0]["persistentVolumeClaim"]["claimName"]) in named
        assert ("ServiceAccount", pod(job)["serviceAccountName"]) in named
    assert {made["metadata"].get("namespace", "nextquill") for made in manifests()} == {"nextquill"}
    for deployment in by_kind("Deployment"):
        spec = deployment["spec"]["template"]["spec"]
        assert ("ServiceAccount", spec["serviceAccountName"]) in named
        assert deployment["spec"]["selector"]["matchLabels"] == deployment["spec"]["template"]["metadata"]["labels"]
        (worker,) = spec["containers"]
        if deployment["metadata"]["name"] == "serve":
            continue
        pool = worker["args"][worker["args"].index("--pool") + 1]
        assert (deployment["metadata"]["name"], pool in POOLS) == (f"worker-{pool}", True)
        assert all(("ConfigMap", source["configMapRef"]["name"]) in named for source in worker["envFrom"])


def test_the_worker_watches_its_own_namespace_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect_kubernetes.settings import KubernetesSettings

    settings = next(made for made in by_kind("ConfigMap") if made["metadata"]["name"] == "nextquill-worker")
    for name, value in settings["data"].items():
        monkeypatch.setenv(name, value)
    assert KubernetesSettings().observer.namespaces == {settings["metadata"]["namespace"]}


def test_the_pools_are_those_of_the_deployments() -> None:
    deployments = yaml.safe_load((REPO / "prefect.yaml").read_text())["deployments"]
    assert {deployment["work_pool"]["name"] for deployment in deployments} <= set(POOLS)


def test_the_reference_has_every_variable_with_its_default() -> None:
    text = (REPO / "docs" / "reference" / "kubernetes.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1:] for line in text.splitlines() if line.startswith("| `")]
    told = {name: row for row in rows for name in re.findall(r"`(\w+)`", row[0])}
    for place, pool in enumerate(POOLS, start=1):
        variables = template(pool)["variables"]["properties"]
        untold = {"name", "namespace", "command", "labels", "annotations", "stream_output", "service_account_name"}
        assert set(variables) - untold - {"job_watch_timeout_seconds"} <= set(told)
        for name in ("memory", "deadline_seconds", "finished_job_ttl", "pod_watch_timeout_seconds", "store_claim"):
            cell = told[name][place].strip(" `")
            assert cell in (str(variables[name]["default"]), "the same")


def test_the_server_is_started_as_its_command_line_allows_and_ends_in_time() -> None:
    from nextquill_core.config import parse_config

    (deployment,) = [made for made in by_kind("Deployment") if made["metadata"]["name"] == "serve"]
    (service,), (settings,) = by_kind("Service"), [made for made in by_kind("ConfigMap") if "run.yaml" in made["data"]]
    spec = deployment["spec"]["template"]["spec"]
    (server,) = spec["containers"]
    program, command, *arguments = server["args"]
    assert (program, command) == ("nextquill", "serve")
    chosen = chosen_options(command, arguments)
    (port,) = server["ports"]
    assert (chosen["host"], chosen["port"]) == ("0.0.0.0", port["containerPort"])  # noqa: S104 - within its pod
    assert chosen["api_key_env"] in {one["name"] for one in server["env"] if "valueFrom" in one}
    paths = {mount["name"]: mount["mountPath"] for mount in server["volumeMounts"]}
    assert str(chosen["config"]) == f"{paths['config']}/run.yaml"
    (volume,) = [one for one in spec["volumes"] if one["name"] == "config"]
    assert volume["configMap"]["name"] == settings["metadata"]["name"]
    assert parse_config(yaml.safe_load(settings["data"]["run.yaml"]), "run.yaml").store.startswith(f"{paths['store']}/")
    stopping = int(server["lifecycle"]["preStop"]["exec"]["command"][-1])
    assert spec["terminationGracePeriodSeconds"] > stopping + chosen["drain"] + 5
    for name, path in (("startupProbe", "/readyz"), ("readinessProbe", "/readyz"), ("livenessProbe", "/healthz")):
        assert server[name]["httpGet"] == {"path": path, "port": port["name"]}
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"] == labels
    assert service["spec"]["ports"][0]["targetPort"] == port["name"]
