"""All runbooks, in the order of their index."""

from __future__ import annotations

from tests.e2e.runbooks.backups import RESTORE_FROM_BACKUP
from tests.e2e.runbooks.definitions import BAD_DEFINITIONS
from tests.e2e.runbooks.fleet import DRAIN_A_REGION, SCALE_UP_AND_DOWN, UPGRADE_AND_ROLL_BACK
from tests.e2e.runbooks.intake import LAG_GROWS, POISON_FLOOD
from tests.e2e.runbooks.outages import KAFKA_AWAY, POSTGRESQL_AWAY, REDIS_AWAY
from tests.e2e.runbooks.page import Runbook
from tests.e2e.runbooks.passwords import ROTATE_SECRETS

RUNBOOKS: list[Runbook] = [
    KAFKA_AWAY,
    REDIS_AWAY,
    POSTGRESQL_AWAY,
    LAG_GROWS,
    POISON_FLOOD,
    BAD_DEFINITIONS,
    RESTORE_FROM_BACKUP,
    SCALE_UP_AND_DOWN,
    DRAIN_A_REGION,
    ROTATE_SECRETS,
    UPGRADE_AND_ROLL_BACK,
]
