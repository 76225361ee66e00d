"""The files for Kubernetes and for Compose satisfy the schemas of these, as far as packages have them.

No package has the schemas of ServiceMonitor, PrometheusRule and KafkaTopic. tests/unit/test_kubernetes_files.py looks
at what BCS needs of them.
"""

from __future__ import annotations

import shutil
import subprocess
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.kubernetes_files import KUBERNETES, documents

pytestmark = pytest.mark.release

# The oldest release whose `preStop: sleep` needs no feature gate, and the newest that the package has.
RELEASES = ["1.30", "1.36"]
WITHOUT_SCHEMA = {"ServiceMonitor", "PrometheusRule", "KafkaTopic"}
FOLDERS = ("base", "monitoring", "kafka")
RESOURCES = [path for folder in FOLDERS for path in sorted((KUBERNETES / folder).glob("*.yaml"))]
KINDS = {"Deployment", "Service", "HorizontalPodAutoscaler", "NetworkPolicy", "PodDisruptionBudget", "Secret"}


@pytest.fixture(scope="module")
def validate() -> Any:
    """Validates a resource: `kubernetes_validate.validate`."""
    try:
        return import_module("kubernetes_validate").validate
    except ImportError:
        pytest.skip("the package kubernetes-validate is not installed (pip install -e '.[release]')")


def kustomize(folder: str) -> list[dict[str, Any]]:
    """What kustomize makes of a folder."""
    program = shutil.which("kustomize")
    if program is None:
        pytest.skip("the program `kustomize` is not installed (go install sigs.k8s.io/kustomize/kustomize/v5@v5.7.1)")
    built = subprocess.run([program, "build", str(KUBERNETES / folder)], capture_output=True, text=True, check=True)
    return list(yaml.safe_load_all(built.stdout))


@pytest.mark.parametrize("release", RELEASES)
def test_every_file_satisfies_the_strict_schema(validate: Any, release: str) -> None:
    resources = [each for path in RESOURCES for each in documents(path) if "kind" in each]
    checked = [each for each in resources if each["kind"] not in WITHOUT_SCHEMA | {"Kustomization"}]
    for resource in checked:
        validate(resource, release, strict=True)
    assert {each["kind"] for each in checked} == KINDS


def test_a_wrong_field_is_noticed(validate: Any) -> None:
    [deployment] = documents(KUBERNETES / "base" / "deployment.yaml")
    with pytest.raises(Exception, match="maxUnavailble"):
        validate({**deployment, "spec": {**deployment["spec"], "maxUnavailble": 0}}, RELEASES[-1], strict=True)


@pytest.mark.parametrize("folder", ["base", "overlays/production", "kafka"])
def test_what_kustomize_builds_satisfies_the_schemas(validate: Any, folder: str) -> None:
    built = kustomize(folder)
    for resource in built:
        if resource["kind"] not in WITHOUT_SCHEMA:
            validate(resource, RELEASES[-1], strict=True)
    if folder == "kafka":
        assert {each["kind"] for each in built} == {"KafkaTopic"}
        return
    [deployment] = [each for each in built if each["kind"] == "Deployment"]
    maps = {each["metadata"]["name"] for each in built if each["kind"] == "ConfigMap"}
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    assert container["image"].startswith("huleedu/batch-conductor-service:")
    used = {source["configMapRef"]["name"] for source in container["envFrom"]}
    volumes = deployment["spec"]["template"]["spec"]["volumes"]
    used |= {volume["configMap"]["name"] for volume in volumes if "configMap" in volume}
    assert used == maps, "a changed setting gets another name, and so rolls out"


def test_the_compose_file_satisfies_the_specification() -> None:
    try:
        specification = import_module("compose_spec").PyCompose
    except ImportError:
        pytest.skip("the package compose-spec is not installed (pip install -e '.[release]')")
    text = (Path(KUBERNETES).parent / "compose" / "compose.yaml").read_text()
    specification.from_yaml(text).validate()
    with pytest.raises(ValueError, match="healthchek"):
        specification.from_yaml(text.replace("healthcheck:", "healthchek:", 1))
