"""The operator who runs a command, for the history and the log of the service."""

from __future__ import annotations

import getpass
import socket

from bcs import __version__


def operator() -> str:
    """The user and the machine, such as `elsa@laptop`."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container may have a user without a name
        user = "unknown"
    return f"{user}@{socket.gethostname()}"


def user_agent() -> str:
    """The `User-Agent` of commands, such as `bcs/0.2.0 (elsa@laptop)`."""
    return f"bcs/{__version__} ({operator()})".encode("ascii", "replace").decode()
