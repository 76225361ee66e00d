"""All runbooks, in the order of their index."""

from __future__ import annotations

from tests.e2e.runbooks.outages import KAFKA_AWAY, POSTGRESQL_AWAY, REDIS_AWAY
from tests.e2e.runbooks.page import Runbook

RUNBOOKS: list[Runbook] = [KAFKA_AWAY, REDIS_AWAY, POSTGRESQL_AWAY]
