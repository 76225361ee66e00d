"""docs/performance.md has the figures of the run that is kept beside it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.page import BEGIN, CLUSTER_BEGIN, CLUSTER_RUN, END, PAGE, RUN, cluster_section, page_with, section
from benchmarks.report import Report


def test_the_page_shows_the_kept_run() -> None:
    page = PAGE.read_text()
    assert page_with(section(Report.load(RUN)), page) == page, "run `python -m benchmarks.page`"
    part = cluster_section(Report.load(CLUSTER_RUN))
    assert page_with(part, page, CLUSTER_BEGIN) == page, "run `python -m benchmarks.page`"


def test_five_headlines_come_before_the_table() -> None:
    headlines, _, table = section(Report.load(RUN)).partition("| path |")
    assert [line[:2] for line in headlines.split("\n") if line] == ["1.", "2.", "3.", "4.", "5."]
    assert len(table.splitlines()) > len(Report.load(RUN).rows)


def test_a_run_without_a_headline_s_path_is_refused() -> None:
    report = Report.load(RUN)
    with pytest.raises(LookupError, match="resolve, warm"):
        section(replace(report, rows=[row for row in report.rows if not row.path.startswith("resolve, warm")]))


@pytest.mark.parametrize("page", ["", BEGIN, END])
def test_a_page_without_its_marks_is_refused(page: str) -> None:
    with pytest.raises(ValueError, match="needs the lines"):
        page_with("", page)
