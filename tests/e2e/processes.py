"""What runs on this machine, as Linux tells it."""

from __future__ import annotations

from pathlib import Path


def servers_in(directory: Path) -> list[str]:
    """The process ids of what runs in a directory or below it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").readlink().is_relative_to(directory):
                found.append(process.name)
        except OSError:  # ended meanwhile, or another user's
            continue
    return found
