"""`bcs actors`: the supervision tree of the running service."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.text import Text
from rich.tree import Tree

from bcs.cli.options import PANEL, URL_OF_SETTINGS, AsJson, ServiceUrl, single_command
from bcs.cli.output import plain, present, print_json
from bcs.ops.asking import ask
from bcs.ops.wording import counted

_PATH = "/internal/v1/actors"
_MEMBERS = ("name", "state", "incarnation", "restarts", "mailbox", "last_error", "total_children", "children")
_STYLES = {
    "running": "green",
    "unresponsive": "red",
    "backing_off": "yellow",
    "starting": "yellow",
    "stopping": "yellow",
}

app = single_command()


@app.command(rich_help_panel=PANEL)
def actors(url: ServiceUrl = URL_OF_SETTINGS, as_json: AsJson = False) -> None:
    """Show the running service's tree of actors: state, restarts, mailboxes, last errors."""
    root = ask(f"{url}{_PATH}", expecting=_MEMBERS)
    if as_json:
        print_json(root)
    else:
        present(_grow(root))


def _grow(node: Mapping[str, Any]) -> Tree:
    tree = Tree(_line(node))
    if node["last_error"]:
        tree.add(Text.assemble(("last error: ", "red"), plain(node["last_error"])))
    for child in node["children"]:
        tree.children.append(_grow(child))
    hidden = node["total_children"] - len(node["children"])
    if hidden:
        tree.add(f"and {hidden} more")
    return tree


def _line(node: Mapping[str, Any]) -> Text:
    state = node["state"]
    parts = [f"incarnation {node['incarnation']}", counted(node["restarts"], "restart")]
    mailbox = node["mailbox"]
    if mailbox:
        oldest = f", oldest {mailbox['oldest_message_seconds']:.1f} s" if mailbox["depth"] else ""
        parts.append(f"{counted(mailbox['depth'], 'message')}{oldest}")
    return Text.assemble(
        plain(node["name"], "bold"),
        " ",
        plain(state.replace("_", " "), _STYLES.get(state, "")),
        f", {', '.join(parts)}",
    )
