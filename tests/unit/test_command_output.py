"""The output of commands is safe for a terminal, and exact."""

from __future__ import annotations

import re
from functools import partial

import pytest
from rich.console import Console

from bcs.cli.output import plain, present, table
from bcs.domain.times import format_timestamp
from bcs.ops.asking import RequestFailed
from bcs.ops.wording import counted, printable


def test_times_keep_their_microseconds() -> None:
    assert format_timestamp(1_732_360_000_123_456) == "2024-11-23T11:06:40.123456Z"
    assert format_timestamp(1_732_360_000_000_000) == "2024-11-23T11:06:40.000000Z"


def test_a_time_that_no_calendar_has_is_shown_all_the_same() -> None:
    assert format_timestamp(2**64 - 1) == "18446744073709551615 us after 1970"


def test_what_a_terminal_would_obey_is_spelled_out() -> None:
    assert printable("a\x1b[31mb\n\u202ec") == r"a\x1b[31mb\n\u202ec"
    assert printable("Åsa 😀") == "Åsa 😀"


def test_markup_in_an_id_is_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    present(plain("[bold]essay[/bold] [link=x]"))
    assert capsys.readouterr().out == "[bold]essay[/bold] [link=x]\n"


def test_into_a_pipe_nothing_is_cut_off_or_wrapped(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    essay, words = "e" * 300, "word " * 100
    rows = table("essay", "why")
    rows.add_row(plain(essay), plain(words))
    present(rows)
    heading, row = capsys.readouterr().out.splitlines()
    assert heading.split() == ["essay", "why"]
    assert row == f"{essay}  {words.rstrip()}"


@pytest.mark.parametrize("columns", [30, 40, 80, 120])
def test_a_table_breaks_between_words_at_any_width(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bcs.cli.output.Console", partial(Console, force_terminal=True, width=columns))
    words = ["consumer", "group", "bcs-event-consumer:", "no", "members", "(Empty)", "a-word-of-28-characters-xxxx"]
    page = table("status", "check", "number", "found", right=("number",))
    for number in range(2):
        page.add_row(plain("warning"), "consumer group", str(number), plain(" ".join(words)))
    present(page)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert max(map(len, lines)) <= columns
    shown = " ".join(lines).split()
    assert all(shown.count(word) >= 2 for word in words)
    # Side by side where that fits, else a block for each row.
    assert ("status: warning" in lines) is (columns < 80)


def test_counts_read_as_a_person_would_say_them() -> None:
    assert [counted(count, "essay") for count in (0, 1, 2)] == ["0 essays", "1 essay", "2 essays"]


def test_a_problem_is_told_in_one_line_with_its_fields() -> None:
    error = RequestFailed(
        400,
        {
            "title": "Bad Request",
            "detail": "not valid:\nbatch_id",
            "errors": [{"field": "batch_id", "problem": "too long"}],
            "correlation_id": "c-1",
        },
        "1",
    )
    assert str(error) == (
        r"400 Bad Request: not valid:\nbatch_id; batch_id: too long; try again in 1 s; correlation id c-1"
    )
