"""`bcs doctor` on Apache Kafka, which answers every question of its exactly."""

from __future__ import annotations

import pytest

from bcs.contracts import topics
from bcs.embedded import free_port
from tests.kafka.services import SESSION_SECONDS
from tests.support.commands import bcs, settings_of
from tests.support.events import cj_completed, spellchecked
from tests.support.kafka import Platform
from tests.support.service import running_service
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio


async def test_the_lag_is_exact_and_members_are_counted(kafka: str, redis_url: str, batch: str) -> None:
    async def found(environment: dict[str, object]) -> dict[str, list[str]]:
        ran = await bcs("doctor", "--json", **environment)
        assert ran.error == ""
        # Other tests leave letters on the broker that they share.
        assert {one["check"] for one in ran.json["findings"] if one["status"] == "failed"} <= {"dead letters"}
        by_check: dict[str, list[str]] = {}
        for finding in ran.json["findings"]:
            by_check.setdefault(finding["check"], []).append(finding["found"])
        return by_check

    nowhere = {"BCS_HTTP_PORT": free_port()}
    where = {"redis_url": redis_url, "kafka_bootstrap_servers": kafka, "kafka_auto_offset_reset": "latest"}
    async with Platform(kafka) as platform:
        async with running_service(**where, kafka_session_timeout_seconds=SESSION_SECONDS) as service:
            environment = {**settings_of(service), "BCS_KAFKA_AUTO_OFFSET_RESET": "latest"}
            group = service.group
            await wait_until(lambda: service.service.kafka.connected)
            await wait_until(lambda: has_member(environment))
            # To every partition, so that the group has an offset of its own on each.
            await platform.send(*(spellchecked(batch, f"essay-{number}") for number in range(64)))
            await wait_until(lambda: platform.caught_up(group))
            alive = await found(environment)
            assert alive["consumer group"] == [f"{group}: 1 member (Stable)"]
            assert alive["lag"] == [f"{name}: 0 messages to be read" for name in topics.CONSUMED]
        await platform.send(
            *(spellchecked(batch, f"essay-{number}") for number in range(7)), cj_completed(batch, ["a"])
        )
        stopped = await found({**environment, **nowhere})
    assert stopped["consumer group"] == [f"{group}: no members (Empty)"]
    assert stopped["lag"][0] == f"{topics.SPELLCHECK_COMPLETED}: 7 messages to be read"


async def has_member(environment: dict[str, object]) -> bool:
    ran = await bcs("doctor", "--json", **environment)
    return any(finding["check"] == "consumer group" and finding["status"] == "ok" for finding in ran.json["findings"])
