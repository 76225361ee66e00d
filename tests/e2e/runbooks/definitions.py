"""A pipeline file that is broken, or wrong."""

from __future__ import annotations

from pathlib import Path

from tests.e2e.runbooks.outages import PROBLEMS, a_spellchecked_batch, metrics
from tests.e2e.runbooks.page import Runbook, Transcript
from tests.e2e.runbooks.site import Site

SHIPPED = Path(__file__).parents[3] / "config" / "pipelines.yaml"
_HASHES = "for port in 4002 4003; do curl -s http://127.0.0.1:$port/metrics | grep ^bcs_pipeline_definitions_info; done"


async def _bad_definitions(site: Site, page: Transcript) -> None:
    file = site.directory / "pipelines.yaml"
    good = SHIPPED.read_text()
    file.write_text(good)
    (site.directory / "pipelines.yaml.before").write_text(good)
    site.settings["pipeline_config_path"] = file
    await site.start("bcs-1")
    await site.start("bcs-2")
    await a_spellchecked_batch(site, page, "b1")

    file.write_text(good.replace("requires: [spellcheck]", "requires: [spelcheck]", 1))
    await page.run("refused", "bcs pipelines validate pipelines.yaml", "spelcheck", exit_code=1)
    await page.run("refused", "bcs pipelines reload", "409", exit_code=1)
    await page.run("refused", metrics("pipeline_definitions_outdated"), "outdated 1")
    await page.run("refused", PROBLEMS)
    await page.run("refused-answers", "bcs resolve b1 ai_feedback", "spellcheck +pruned", exit_code=0)

    # Valid, and wrong: the feedback no longer needs the spellcheck. Only the first replica has read it.
    file.write_text(good.replace("  - name: ai_feedback\n    requires: [spellcheck]\n", "  - name: ai_feedback\n"))
    await page.try_out("bcs pipelines reload", exit_code=0)
    await page.run("wrong", "bcs resolve b1 ai_feedback", exit_code=0)
    await page.run("wrong", _HASHES, exit_code=0)
    await page.run("wrong", "bcs pipelines diff pipelines.yaml.before", "ai_feedback", exit_code=1)
    await page.run("back", "cp pipelines.yaml.before pipelines.yaml", exit_code=0)
    reload = "for port in 4002 4003; do bcs pipelines reload --url http://127.0.0.1:$port; done"
    await page.run("back", reload, exit_code=0)
    await page.run("over", _HASHES, exit_code=0)
    await page.run("over", metrics("pipeline_definitions_outdated"), "outdated 0")
    await page.run("over", "bcs resolve b1 ai_feedback", "spellcheck +pruned", exit_code=0)
    await page.run("harm", "bcs batches history b1 --type resolution", "pipeline definitions", exit_code=0)


BAD_DEFINITIONS = Runbook(
    "bad-definitions", _bad_definitions, ("refused", "refused-answers", "wrong", "back", "over", "harm")
)
