"""A picture of a tree at one instant."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from enum import Enum
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator


class State(Enum):
    """Where a child stands."""

    IDLE = "idle"  # not started yet, or its supervisor does not run
    STARTING = "starting"  # an attempt runs and is not ready yet
    RUNNING = "running"
    STOPPING = "stopping"  # asked to stop, or cancelled
    BACKING_OFF = "backing_off"  # between two attempts
    UNRESPONSIVE = "wedged"  # ignores its cancellation; readers of the JSON know the value
    ENDED = "ended"  # will not be started again by this run of its supervisor


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One node and what is below it.

    :param name: of the child; the key, for a child of a dynamic supervisor
    :param kind: what it is
    :param state: where it stands
    :param incarnation: how many attempts there were
    :param restarts: how many of these followed another one in the same run of its supervisor, whatever had ended that:
        a failure, a return, or the restart of a sibling, as the strategy has it
    :param last_error: what ended the last attempt that failed
    :param mailbox_depth: envelopes queued, unacked, and to be delivered again; for a dynamic supervisor of all children
    :param mailbox_capacity: None where there is no mailbox
    :param oldest_message_seconds: the age of the oldest envelope, 0.0 without one
    :param busy_seconds: since the last heartbeat, 0.0 while idle
    :param children: in order; a dynamic supervisor lists unresponsive ones first, and not more than a hundred or so
    :param total_children: how many there are
    """

    name: str
    kind: Literal["actor", "supervisor", "dynamic"]
    state: State
    _: KW_ONLY
    incarnation: int = 0
    restarts: int = 0
    last_error: str | None = None
    mailbox_depth: int = 0
    mailbox_capacity: float | None = None
    oldest_message_seconds: float = 0.0
    busy_seconds: float = 0.0
    children: tuple[Snapshot, ...] = ()
    total_children: int = 0

    @property
    def healthy(self) -> bool:
        """False when an attempt here or below ignores its cancellation: only a new process helps."""
        return self.state is not State.UNRESPONSIVE and all(child.healthy for child in self.children)

    def iter_flat(self) -> Iterator[tuple[str, Snapshot]]:
        """Every node below this one with its path, parents before children."""
        for child in self.children:
            yield child.name, child
            for path, node in child.iter_flat():
                yield f"{child.name}/{path}", node
