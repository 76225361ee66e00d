"""The supervision tree over HTTP: shows the tree, and kills an actor if chaos is enabled."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus

import structlog
from aiohttp import web

from bcs.http import service_answers
from bcs.http.guard import asked_by
from bcs.http.identity import Scope
from bcs.http.problems import Problem
from bcs.http.replies import reply_json
from bcs.http.routing import Group, Route, serves
from bcs.supervision import Snapshot, UnknownChild

log = structlog.stdlib.get_logger("bcs.http", actor="http")


_NAME = {
    "type": "string",
    "minLength": 1,
    "examples": ["publisher"],
    "description": "`metrics`, `publisher`, `archive`, `batches`, `intake`, `http`, or `batches/<batch id>`.",
}


@dataclass(frozen=True, slots=True)
class ActorHandlers:
    """The handlers of the actors' routes.

    :param chaos_enabled: True if callers may kill actors.
    :param snapshot: takes a snapshot of the supervision tree.
    :param cancel: kills the actor at a path; False if the actor does not run now.
    """

    chaos_enabled: bool
    snapshot: Callable[[], Snapshot]
    cancel: Callable[[str], bool]

    @serves(
        Route(
            method="GET",
            path="/internal/v1/actors",
            name="showActors",
            group=Group.ACTORS,
            summary="Show the tree of actors",
            answers={HTTPStatus.OK: service_answers.Actor},
            scope=Scope.READ,
        )
    )
    async def show(self, _: web.Request) -> web.Response:
        """GET /internal/v1/actors."""
        return reply_json(actor_document("", self.snapshot()))

    @serves(
        Route(
            method="POST",
            path="/internal/v1/actors/{name}/kill",
            name="killActor",
            group=Group.ACTORS,
            summary="Kill one actor, which its supervisor starts again",
            answers={HTTPStatus.ACCEPTED: service_answers.ActorKilled},
            problems=("chaos-disabled", "unknown-actor", "not-running"),
            scope=Scope.OPERATE,
            path_parameters={"name": _NAME},
            spans_segments=True,
            leads_to={"showActors": {}},
        )
    )
    async def kill(self, request: web.Request) -> web.Response:
        """POST /internal/v1/actors/{name}/kill. The name is a path in the tree, and may contain the id of a batch.

        The HTTP actor may kill itself. It answers all accepted requests before it ends.
        """
        if not self.chaos_enabled:
            raise Problem("chaos-disabled", "BCS_CHAOS_ENABLED is not set")
        path = request.match_info["name"]
        try:
            runs = self.cancel(path)
        except UnknownChild:
            known = [known for known, _ in self.snapshot().iter_flat() if "/" not in known]
            raise Problem("unknown-actor", "there is no actor with this name now", {"known_actors": known}) from None
        if not runs:
            raise Problem("not-running", "the actor does not run now")
        log.warning("actor_killed_on_request", actor=path, requested_by=asked_by(request))
        killed: service_answers.ActorKilled = {"status": "killed", "actor": path}
        return reply_json(killed, HTTPStatus.ACCEPTED)


def actor_document(
    path: str,
    node: Snapshot,
    *,
    listed: Callable[[Sequence[Snapshot]], Sequence[Snapshot]] = lambda children: children,
    most_error_characters: int | None = None,
) -> service_answers.Actor:
    """An actor or a supervisor with all below it.

    :param listed: chooses among the children of a dynamic supervisor.
    :param most_error_characters: cuts errors off there; None for whole errors.
    """
    children = listed(node.children) if node.kind == "dynamic" else node.children
    capacity = node.mailbox_capacity
    mailbox: service_answers.Mailbox | None = None
    if capacity is not None or node.kind == "dynamic":
        mailbox = {
            "depth": node.mailbox_depth,
            # JSON has no infinity.
            "capacity": None if capacity is None or math.isinf(capacity) else int(capacity),
            "oldest_message_seconds": round(node.oldest_message_seconds, 6),
        }
    return {
        "path": path,
        "name": node.name,
        "kind": node.kind,
        "state": node.state,
        "incarnation": node.incarnation,
        "restarts": node.restarts,
        "last_error": node.last_error and node.last_error[:most_error_characters],
        "busy_seconds": round(node.busy_seconds, 6),
        "mailbox": mailbox,
        "total_children": node.total_children,
        "children": [
            actor_document(
                f"{path}/{child.name}" if path else child.name,
                child,
                listed=listed,
                most_error_characters=most_error_characters,
            )
            for child in children
        ],
    }
