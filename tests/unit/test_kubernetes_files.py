"""The files for Kubernetes agree with the settings, the image, the topics and the measured figures of BCS."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import trustme

from bcs.config.loading import load_settings
from bcs.config.pipelines import load_pipelines
from bcs.config.secrets import secret_variables
from bcs.config.settings import DAY_SECONDS, Settings
from bcs.wire import topics
from tests.support.kubernetes_files import KUBERNETES, PROMETHEUS_RULE, documents, prometheus_rule

ROOT = Path(__file__).parents[2]
BASE, PRODUCTION = KUBERNETES / "base", KUBERNETES / "overlays" / "production"
DOCKERFILE = (ROOT / "Dockerfile").read_text()
LABELS = {"app.kubernetes.io/name": "bcs"}
# A stop that is stuck ends by force this long after its budget (docs/deploying.md).
FORCED_AFTER_SECONDS = 10


def only(name: str) -> dict[str, Any]:
    [document] = documents(BASE / f"{name}.yaml")
    return document


def variables(*files: Path) -> dict[str, str]:
    lines = [line for file in files for line in file.read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


DEPLOYMENT = only("deployment")
POD = DEPLOYMENT["spec"]["template"]["spec"]
[CONTAINER] = POD["containers"]
SECRET = only("secret.example")["stringData"]
PORTS = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}


@pytest.fixture(params=["base", "production"])
def settings(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The settings of a replica, read as it reads them."""
    given = variables(BASE / "settings.env")
    if request.param == "production":
        given |= variables(PRODUCTION / "settings.env")
    (tmp_path / "kafka-password").write_text("password")
    trustme.CA().cert_pem.write_to_path(tmp_path / "kafka-ca.pem")
    for name, value in SECRET.items():
        (tmp_path / name).write_text(value)
    mounted = mounts()["secrets"]
    for name, value in given.items():
        monkeypatch.setenv(name, value.replace(mounted, str(tmp_path)))
    return load_settings()


def mounts() -> dict[str, str]:
    return {mount["name"]: mount["mountPath"] for mount in CONTAINER["volumeMounts"]}


def test_a_kustomization_lists_the_files_beside_it() -> None:
    listed = set()
    found = sorted(KUBERNETES.rglob("kustomization.yaml"))
    for file in found:
        [kustomization] = documents(file)
        names = [*kustomization.get("resources", []), *(patch["path"] for patch in kustomization.get("patches", []))]
        for generator in kustomization.get("configMapGenerator", []):
            names += [*generator.get("envs", []), *generator.get("files", [])]
        for name in names:
            path = (file.parent / name).resolve()
            assert (path / "kustomization.yaml").exists() if path.is_dir() else path.is_file(), path
            listed.add(path)
    files = {path for path in KUBERNETES.rglob("*") if path.is_file()}
    unlisted = {path.name for path in files - listed - set(found)}
    assert unlisted == {"secret.example.yaml", "prometheus-adapter.yaml"}
    assert len(found) == 4


def test_every_variable_is_a_setting(settings: Settings) -> None:
    secrets = secret_variables(Settings)
    known = {f"BCS_{name.upper()}" for name in Settings.model_fields} | {f"{name}_FILE" for name in secrets}
    given = variables(BASE / "settings.env") | variables(PRODUCTION / "settings.env")
    assert set(given) <= known
    assert set(SECRET) <= set(secrets), "what is no secret belongs into settings.env"
    assert not set(given) & set(secrets), "what is a secret belongs into the secret"
    assert settings.secrets_dir
    assert variables(BASE / "settings.env")["BCS_SECRETS_DIR"] == mounts()["secrets"]
    assert settings.redis_url.get_secret_value() == SECRET["BCS_REDIS_URL"]
    assert settings.environment == "production"


def test_the_secret_and_the_settings_of_the_deployment_are_those_beside_it() -> None:
    [generator] = documents(BASE / "kustomization.yaml")[0]["configMapGenerator"]
    assert CONTAINER["envFrom"] == [{"configMapRef": {"name": generator["name"]}}]
    volumes = {volume["name"]: volume for volume in POD["volumes"]}
    assert volumes["secrets"]["secret"]["secretName"] == only("secret.example")["metadata"]["name"]
    assert volumes.keys() == mounts().keys()


def test_ports_are_those_that_bcs_listens_on(settings: Settings) -> None:
    assert {"http": settings.http_port, "probes": settings.http_probe_port} == PORTS
    assert int(re.findall(r"^EXPOSE (\d+)$", DOCKERFILE, re.MULTILINE)[0]) == PORTS["http"]
    service = only("service")
    assert {port["name"]: port["port"] for port in service["spec"]["ports"]} == PORTS
    assert all(port["targetPort"] == port["name"] for port in service["spec"]["ports"])
    callers, prometheus = only("networkpolicy")["spec"]["ingress"]
    assert (callers["ports"], prometheus["ports"]) == ([{"port": "http"}], [{"port": "probes"}])
    [monitor] = documents(KUBERNETES / "monitoring" / "servicemonitor.yaml")
    [endpoint] = monitor["spec"]["endpoints"]
    assert (endpoint["port"], endpoint["path"]) == ("probes", "/metrics")


def test_all_selectors_select_the_pods_of_the_deployment() -> None:
    template = DEPLOYMENT["spec"]["template"]["metadata"]["labels"]
    service = only("service")
    [monitor] = documents(KUBERNETES / "monitoring" / "servicemonitor.yaml")
    assert template == service["spec"]["selector"] == service["metadata"]["labels"] == LABELS
    assert service["metadata"]["name"] == "bcs", "Prometheus takes it as the job, for which the alerts look"
    budget, policy = only("poddisruptionbudget")["spec"], only("networkpolicy")["spec"]
    selectors = [DEPLOYMENT["spec"]["selector"], budget["selector"], monitor["spec"]["selector"], policy["podSelector"]]
    selectors += [spread["labelSelector"] for spread in POD["topologySpreadConstraints"]]
    assert selectors == [{"matchLabels": LABELS}] * 6


def test_probes_are_those_of_the_table() -> None:
    """docs/operations.md, "Probes": path, timeout, period, failures."""
    row = r"^\| (\w+) \| `GET (/\w+)` \| (\d+) \| (\d+) \| (\d+) \|"
    table = re.findall(row, (ROOT / "docs/operations.md").read_text(), re.MULTILINE)
    found = []
    for name in ("startup", "liveness", "readiness"):
        probe = CONTAINER[f"{name}Probe"]
        assert probe["httpGet"]["port"] == "probes"
        times = (probe["timeoutSeconds"], probe["periodSeconds"], probe["failureThreshold"])
        found.append((name, probe["httpGet"]["path"], *map(str, times)))
    assert found == table


def test_a_start_and_a_stop_get_the_time_that_they_need(settings: Settings) -> None:
    startup, pause = CONTAINER["startupProbe"], CONTAINER["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert startup["periodSeconds"] * startup["failureThreshold"] > 10 * settings.database_first_probe_seconds
    assert CONTAINER["livenessProbe"]["httpGet"]["path"] == startup["httpGet"]["path"] == "/healthz", (
        "an outage restarts no replica"
    )
    assert pause >= CONTAINER["readinessProbe"]["periodSeconds"]
    least = pause + settings.shutdown_seconds + FORCED_AFTER_SECONDS
    assert least < POD["terminationGracePeriodSeconds"] <= least + 10


def test_a_replica_may_do_nothing_that_it_does_not_need() -> None:
    [user] = re.findall(r"^USER (\d+):(\d+)$", DOCKERFILE, re.MULTILINE)
    pod, container = POD["securityContext"], CONTAINER["securityContext"]
    assert (pod["runAsUser"], pod["runAsGroup"]) == tuple(map(int, user))
    assert pod["runAsNonRoot"]
    assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert POD["automountServiceAccountToken"] is False
    assert POD["enableServiceLinks"] is False, "Kubernetes would set BCS_PORT and the like for the service bcs"
    [secrets] = [volume["secret"] for volume in POD["volumes"]]
    assert secrets["defaultMode"] == 0o440
    assert pod["fsGroup"] == pod["runAsGroup"]
    assert only("networkpolicy")["spec"]["policyTypes"] == ["Ingress", "Egress"]


def test_resources_are_those_of_the_benchmark() -> None:
    rows = json.loads((ROOT / "docs/performance.json").read_text())["rows"]
    most_mb = max(row["megabytes"] or 0 for row in rows)
    resources = CONTAINER["resources"]
    requested, limit = [int(resources[of]["memory"].removesuffix("Mi")) for of in ("requests", "limits")]
    assert requested > most_mb
    defaults = Settings()
    held_mb = (defaults.http_max_held_bytes + defaults.intake_max_in_flight_bytes) / 2**20
    # 25 MB for each large batch that is read.
    assert limit > most_mb + held_mb + 25 * defaults.http_max_concurrent_reads
    assert "cpu" not in resources["limits"], "a throttled process is late with everything"
    # 1,000 events and 500 answers a second.
    cpu_us = {row["path"]: row["cpu_us"] for row in rows}
    busy = (1000 * cpu_us["ingest, 2000 batches, Tansu"] + 500 * cpu_us["resolve, one phase pruned"]) / 1e6
    assert int(resources["requests"]["cpu"].removesuffix("m")) / 1000 > busy


def test_the_number_of_replicas_follows_cpu_and_the_events_that_wait() -> None:
    scaler = only("horizontalpodautoscaler")["spec"]
    assert scaler["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": "bcs"}
    assert "replicas" not in DEPLOYMENT["spec"]
    cpu, waiting = scaler["metrics"]
    requested = int(CONTAINER["resources"]["requests"]["cpu"].removesuffix("m"))
    # Of the one core that a replica can use.
    assert 500 <= requested * cpu["resource"]["target"]["averageUtilization"] / 100 < 1000
    [adapter] = documents(KUBERNETES / "monitoring" / "prometheus-adapter.yaml")
    [rule] = adapter["rules"]["external"]
    assert waiting["external"]["metric"]["name"] == rule["name"]["as"]
    assert rule["seriesQuery"] in rule["metricsQuery"]
    consumed = [spec for spec in map(spec_of, kafka_topics()) if spec["topicName"] in topics.CONSUMED]
    assert scaler["maxReplicas"] <= min(spec["partitions"] for spec in consumed)
    assert only("poddisruptionbudget")["spec"]["maxUnavailable"] < scaler["minReplicas"]


def spec_of(resource: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = resource["spec"]
    return spec


def kafka_topics() -> list[dict[str, Any]]:
    return documents(KUBERNETES / "kafka" / "topics.yaml")


def test_topics_are_those_of_bcs_with_what_it_needs_of_them() -> None:
    found = {spec["topicName"]: spec for spec in map(spec_of, kafka_topics())}
    assert sorted(found) == sorted([*topics.CONSUMED, *topics.PUBLISHED])
    assert len(kafka_topics()) == len(found)
    for topic, spec in found.items():
        config = spec["config"]
        days = config["retention.ms"] / 1000 / DAY_SECONDS
        assert days >= (30 if topic in topics.DEAD_LETTERS else 14)
        assert (spec["replicas"], config["min.insync.replicas"]) == (3, 2)
        assert (config["cleanup.policy"], config["message.timestamp.type"]) == ("delete", "CreateTime")
        assert config["max.message.bytes"] == Settings().kafka_max_message_bytes
    for resource in kafka_topics():
        name = resource["metadata"]["name"]
        assert re.fullmatch(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?", name)
        assert name == resource["spec"]["topicName"].lower().replace("_", "-")


def test_the_rules_of_the_operator_are_the_rules() -> None:
    assert PROMETHEUS_RULE.read_text() == prometheus_rule()


def test_the_example_of_a_pipeline_file_is_that_of_bcs() -> None:
    path = PRODUCTION / "pipelines.yaml"
    assert load_pipelines(path).identity.content_hash == load_pipelines(None).identity.content_hash
    [kustomization] = documents(PRODUCTION / "kustomization.yaml")
    [patch] = documents(PRODUCTION / "pipelines-patch.yaml")
    pod = patch["spec"]["template"]["spec"]
    [mount], [volume] = pod["containers"][0]["volumeMounts"], pod["volumes"]
    assert "subPath" not in mount
    assert f"{mount['mountPath']}/{path.name}" == variables(PRODUCTION / "settings.env")["BCS_PIPELINE_CONFIG_PATH"]
    assert {"name": volume["configMap"]["name"], "files": [path.name]} in kustomization["configMapGenerator"]
