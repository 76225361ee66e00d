"""Events are not read on, or become dead letters by the thousand."""

from __future__ import annotations

import json
import re

from bcs.wire import topics
from tests.e2e.runbooks.definitions import SHIPPED
from tests.e2e.runbooks.outages import ESSAYS, PROBLEMS, a_spellchecked_batch, metrics
from tests.e2e.runbooks.page import Runbook, Transcript
from tests.e2e.runbooks.site import GROUP, Site
from tests.support.events import Event, phase_outcome, registered, spellchecked
from tests.support.record_batches import RawRecord, damaged_on_disk, record_batch, send_batch
from tests.support.waiting import wait_until

_FLOOD = 1000
_PARTITION = 1
_BEHIND = 200


async def _lag(site: Site, page: Transcript) -> None:
    await site.start()
    await a_spellchecked_batch(site, page, "b1")
    await wait_until(lambda: site.platform.caught_up(GROUP))
    await site.stop("bcs-1")
    lost = spellchecked("b2", "anna")
    topic = topics.SPELLCHECK_COMPLETED
    batch = record_batch([RawRecord(lost.value, lost.key)])
    await send_batch(site.kafka_proxy.address, topic, _PARTITION, batch)
    await site.platform.send(*(spellchecked("b3", f"essay-{number}") for number in range(_BEHIND)))
    log = site.kafka.directory / "data" / f"{topic}-{_PARTITION}" / "00000000000000000000.log"
    with damaged_on_disk(log, lost.value):
        await page.run("away", "bcs doctor | grep -E '^warning|lag'", "no member")
        await site.start()
        await page.run(
            "see",
            metrics("kafka_partition_stalled.* 1|kafka_consumer_lag.* [1-9]"),
            r"(?s)\A(?!.*_lag.*_lag).*stalled.* 1",
        )
        problems = await page.run("see", PROBLEMS, f"{topic}/{_PARTITION}", exit_code=1)
        found = re.search(rf"{topic}/{_PARTITION}\D+(\d+)", problems)
        assert found, problems
        skip = f'bcs intake skip {topic} {_PARTITION} {found[1]} --reason "disk failed, see INC-7" --yes'
        await page.run("skip", skip, "skipped", exit_code=0)
        await page.run("over", metrics("kafka_partition_stalled.* 1|kafka_consumer_lag.* [1-9]") + " | wc -l", "^0")
        await page.run("over", "bcs dlq list", "skipped_by_operator")


async def _flood(site: Site, page: Transcript) -> None:
    file = site.directory / "pipelines.yaml"
    file.write_text(SHIPPED.read_text())
    site.settings["pipeline_config_path"] = file
    await site.start()
    await site.platform.send(registered("b1", ESSAYS))
    await site.platform.send(*(phase_outcome(f"class-{number}", "grammar", ESSAYS) for number in range(_FLOOD)))
    await site.platform.send(*(_mistaken(f"class-{number}") for number in range(_FLOOD)))
    await site.platform.send(*(spellchecked("b1", essay) for essay in ESSAYS))
    await page.run("see", metrics("dead_letters_total.* [1-9]"), f"{_FLOOD}.0\n.*{_FLOOD}.0")
    await page.run("see", "bcs dlq list", f"invalid_event +speller-ng +{_FLOOD}", f"unknown_phase +tests +{_FLOOD}")
    await page.run("others", "bcs resolve b1 ai_feedback", "spellcheck +pruned", exit_code=0)
    newest = await page.run("producer", "bcs dlq list --each --reason invalid_event | tail -2", r"\.DLQ/\d+/\d+")
    position = re.search(r"huleedu\S+\.DLQ/\d+/\d+", newest)
    assert position
    await page.run("producer", f"bcs dlq show {position[0]}", "speller-ng", exit_code=0)
    await page.run("producer", "bcs dlq list --each --reason unknown_phase | tail -1", "unknown_phase")
    mend = r"sed -i 's/^pipelines:/  - {name: grammar, requires: [spellcheck]}\n\n&/' pipelines.yaml"
    await page.run("mend", mend, exit_code=0)
    await page.run("mend", "bcs pipelines reload", "grammar", exit_code=0)
    replay = "bcs dlq replay --reason unknown_phase --rate 500"
    await page.run("replay", replay, f"{_FLOOD} of {_FLOOD} dead letters replayed", exit_code=0)
    await page.run("over", "bcs batches show class-7 --phase grammar", "outcome completed_successfully")
    await page.run("over", "bcs dlq list", rf"unknown_phase +tests +0 +{_FLOOD}")
    await page.run("purge", "bcs dlq purge --yes", "deleted", exit_code=0)
    await page.run("purge", PROBLEMS, " 0 failed", exit_code=0)


def _mistaken(batch: str) -> Event:
    """As a new version of a producer might send it: with a status that the platform does not have."""
    event = spellchecked(batch, "anna", status="done")
    envelope = {**json.loads(event.value), "source_service": "speller-ng"}
    return Event(event.topic, event.key, json.dumps(envelope).encode())


LAG_GROWS = Runbook("lag-grows", _lag, ("away", "see", "skip", "over"), on_apache_kafka=True)
POISON_FLOOD = Runbook("poison-flood", _flood, ("see", "others", "producer", "mend", "replay", "over", "purge"))
