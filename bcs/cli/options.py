"""The shared parts of several commands: the layout of help, arguments and options."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

import typer

PANEL = "For operators"
URL_OF_SETTINGS = ""
"""The default of `ServiceUrl`: the service of this machine, as BCS_HTTP_HOST and BCS_HTTP_PORT describe it."""

_LONGEST_ID = 255


def single_command() -> typer.Typer:
    """An application with a single command."""
    # Typer wraps the paragraphs of docstrings again only if it reads them as Markdown.
    return typer.Typer(add_completion=False, rich_markup_mode="markdown")


def command_group(name: str) -> typer.Typer:
    """An application with a group of commands.

    :param name: the name of the group.
    """
    return typer.Typer(name=name, no_args_is_help=True, add_completion=False, rich_markup_mode="markdown")


def _checked_batch_id(batch_id: str) -> str:
    if not 1 <= len(batch_id) <= _LONGEST_ID:
        raise typer.BadParameter(f"it has 1 to {_LONGEST_ID} characters")
    try:
        batch_id.encode()
    except UnicodeEncodeError:
        raise typer.BadParameter("it is not UTF-8 text") from None
    return batch_id


def _checked_url(url: str) -> str:
    if url == URL_OF_SETTINGS:
        return _local_url()
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or not url.isascii() or not url.isprintable() or " " in url:
        raise typer.BadParameter("it must be like http://127.0.0.1:4002")
    return url.rstrip("/")


def _local_url() -> str:
    from bcs.config.loading import load_settings_for_health_check

    url = load_settings_for_health_check().local_url
    if url is None:
        raise typer.BadParameter("BCS_HTTP_PORT is 0, so --url is required")
    return url


AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
BatchId = Annotated[
    str, typer.Argument(metavar="BATCH", callback=_checked_batch_id, help="The batch's id.", show_default=False)
]
ServiceUrl = Annotated[
    str,
    typer.Option(
        "--url",
        metavar="URL",
        callback=_checked_url,
        help="The URL of the service; default: this machine, with BCS_HTTP_HOST and BCS_HTTP_PORT (4002)",
        show_default=False,
    ),
]
