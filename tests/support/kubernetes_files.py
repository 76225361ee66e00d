"""The files of config/kubernetes, read; and the one that is made from another file.

    python -m tests.support.kubernetes_files

writes the alert rules again as a resource of the Prometheus operator.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.support.alert_stories import rules_document

KUBERNETES = Path(__file__).parents[2] / "config" / "kubernetes"
PROMETHEUS_RULE = KUBERNETES / "monitoring" / "prometheusrule.yaml"
_HEAD = "# Made from config/prometheus-rules.yml by `python -m tests.support.kubernetes_files`.\n"


@cache
def documents(path: Path) -> list[dict[str, Any]]:
    """The documents of a file."""
    return [each for each in yaml.load_all(path.read_text(), Loader=yaml.CSafeLoader) if each]


def prometheus_rule() -> str:
    """The alert rules as a resource of the Prometheus operator."""
    resource = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "bcs"},
        "spec": rules_document(),
    }
    return _HEAD + yaml.dump(resource, Dumper=yaml.CSafeDumper, sort_keys=False, width=120, allow_unicode=True)


if __name__ == "__main__":
    PROMETHEUS_RULE.write_text(prometheus_rule())
