"""Lines of the documents that tests run, so that the two can't differ."""

from __future__ import annotations

import re
from pathlib import Path

_OPERATIONS = Path(__file__).parent.parent.parent / "docs" / "operations.md"


def anchors(document: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a document."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def lines_of(name: str) -> list[str]:
    """The lines of a block in docs/operations.md."""
    [block] = re.findall(rf"<!-- {name}: begin -->\n```\w*\n(.*?)```", _OPERATIONS.read_text(), re.DOTALL)
    return str(block).splitlines()


def redis_acl(password: str, of: str = "redis acl") -> list[str]:
    """The command that makes the user of Redis, or gives it more rights.

    :param of: `redis acl`, `redis acl in a cluster`, or `redis acl of a sentinel`.
    """
    [line] = lines_of(of)
    return line.replace("PASSWORD", password).split()


def postgresql_grants(of: str, user: str) -> str:
    """The statements that give a user of PostgreSQL its rights.

    :param of: `an owner`, who upgrades the schema, or `a user`.
    """
    return "\n".join(line.replace("TO bcs;", f"TO {user};") for line in lines_of(f"postgresql grants of {of}"))
