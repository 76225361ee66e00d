"""What the page `/ui` shows of a running service: its health, its tree, and what flows through it. Bounded in size."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from math import isfinite
from typing import Literal

from prometheus_client import CollectorRegistry
from pydantic_core import to_json

from bcs.http import service_answers
from bcs.http.routes.actors import actor_document
from bcs.http.routes.health import HealthHandlers
from bcs.kafka.lag_age import IntakeLag
from bcs.supervision import Snapshot, State
from bcs.wire.published import rfc3339

if sys.version_info >= (3, 12):
    from typing import TypedDict
else:
    from typing_extensions import TypedDict  # as in `answers`

# Of thousands of batches' actors only those are listed that need a look, and no more than a person can look at.
_MOST_LISTED = 10
_MOST_ERROR_CHARACTERS = 300

Figure = Literal[
    "resolutions",
    "resolutions_failed",
    "phases_pruned",
    "events",
    "dead_letters_written",
    "published",
    "requests",
    "requests_in_flight",
    "lag_events",
    "lag_seconds",
    "events_in_flight",
    "outbox",
    "outbox_oldest_seconds",
    "archive_queue",
    "dead_letter_messages",
    "loop_lag_seconds",
]
# The samples whose sum is the figure; one label and its value may choose some of them.
_SAMPLES: Mapping[Figure, tuple[str, tuple[str, str] | None]] = {
    "resolutions": ("bcs_pipeline_resolutions_total", ("status", "success")),
    "resolutions_failed": ("bcs_pipeline_resolutions_total", ("status", "failure")),
    "phases_pruned": ("bcs_phases_pruned_total", None),
    "events": ("bcs_events_processed_total", None),
    "dead_letters_written": ("bcs_dead_letters_total", None),
    "published": ("bcs_outbox_published_total", None),
    "requests": ("bcs_http_requests_total", None),
    "requests_in_flight": ("bcs_http_requests_in_flight", None),
    "events_in_flight": ("bcs_intake_in_flight", None),
    "outbox": ("bcs_outbox_backlog", None),
    "outbox_oldest_seconds": ("bcs_outbox_oldest_seconds", None),
    "archive_queue": ("bcs_archive_backlog", None),
    "dead_letter_messages": ("bcs_dead_letters_waiting", None),
    "loop_lag_seconds": ("bcs_event_loop_lag_seconds", None),
}
_COUNTED = frozenset(name for name, _ in _SAMPLES.values())


class LiveDocument(TypedDict):
    """The state of the service at one instant."""

    at: str
    uptime_seconds: float
    health: service_answers.Health
    actors: service_answers.Actor
    figures: Mapping[Figure, float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveDocuments:
    """Makes snapshots of the service. Everything is in memory: no snapshot asks a dependency or waits.

    :param snapshot: takes a snapshot of the supervision tree.
    :param sample: brings the metrics up to date, for a tree.
    :param lag: how far the intake of all replicas is behind.
    :param now: wall-clock time.
    :param clock: monotonic seconds.
    """

    snapshot: Callable[[], Snapshot]
    sample: Callable[[Snapshot], None]
    registry: CollectorRegistry
    health: HealthHandlers
    lag: Callable[[], IntakeLag]
    now: Callable[[], datetime]
    clock: Callable[[], float]

    def encoded(self) -> str:
        """A snapshot as JSON."""
        tree = self.snapshot()
        self.sample(tree)
        document: LiveDocument = {
            "at": rfc3339(self.now()),
            "uptime_seconds": round(self.clock(), 3),
            "health": self.health.document(tree),
            "actors": actor_document("", tree, listed=worth_a_look, most_error_characters=_MOST_ERROR_CHARACTERS),
            "figures": self._figures(),
        }
        return to_json(document).decode()

    def _figures(self) -> dict[Figure, float | None]:
        by_label: dict[tuple[str, str, str], float] = {}
        in_all: dict[str, float] = {}
        for family in self.registry.restricted_registry(_COUNTED).collect():
            for sample in family.samples:
                in_all[sample.name] = in_all.get(sample.name, 0.0) + sample.value
                for label, text in sample.labels.items():
                    key = sample.name, label, text
                    by_label[key] = by_label.get(key, 0.0) + sample.value
        found: dict[Figure, float | None] = {}
        for figure, (name, chosen) in _SAMPLES.items():
            value = in_all.get(name, 0.0) if chosen is None else by_label.get((name, *chosen), 0.0)
            # Unknown values are NaN, which JSON does not have.
            found[figure] = value if isfinite(value) else None
        lag = self.lag()
        return {**found, "lag_events": lag.events, "lag_seconds": lag.seconds}


def worth_a_look(children: Sequence[Snapshot]) -> Sequence[Snapshot]:
    """The children of a dynamic supervisor that are in trouble."""
    troubled = [
        child
        for child in children
        if child.restarts or child.last_error or child.state in (State.UNRESPONSIVE, State.BACKING_OFF)
    ]
    return troubled[:_MOST_LISTED]
