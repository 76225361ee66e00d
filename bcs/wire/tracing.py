"""The trace context of W3C (https://www.w3.org/TR/trace-context), which BCS passes on and does not use."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

TRACEPARENT, TRACESTATE = "traceparent", "tracestate"
_MOST_STATE_CHARACTERS = 512

Trace = Mapping[str, str]
"""`traceparent`, and `tracestate` where there is one; empty without a trace."""

NO_TRACE: Trace = MappingProxyType({})

_is_traceparent = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}").fullmatch


def trace_of(headers: Mapping[str, str]) -> Trace:
    """The trace of a request; invalid parts are left out, as the standard requires."""
    parent = headers.get(TRACEPARENT)
    if parent is None or not _is_traceparent(parent):
        return {}
    state = headers.get(TRACESTATE)
    if state and len(state) <= _MOST_STATE_CHARACTERS and state.isascii() and state.isprintable():
        return {TRACEPARENT: parent, TRACESTATE: state}
    return {TRACEPARENT: parent}
