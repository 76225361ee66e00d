"""Trace context as the W3C has it (https://www.w3.org/TR/trace-context), passed on and not looked into."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

TRACEPARENT, TRACESTATE = "traceparent", "tracestate"
_MOST_STATE_CHARACTERS = 512

Trace = Mapping[str, str]
"""`traceparent`, and `tracestate` where there is one; empty where nothing is traced."""

NO_TRACE: Trace = MappingProxyType({})

_is_traceparent = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}").fullmatch


def trace_of(headers: Mapping[str, str]) -> Trace:
    """The trace that a request belongs to; what is not valid is left out, as the standard says."""
    parent = headers.get(TRACEPARENT)
    if parent is None or not _is_traceparent(parent):
        return {}
    state = headers.get(TRACESTATE)
    if state and len(state) <= _MOST_STATE_CHARACTERS and state.isascii() and state.isprintable():
        return {TRACEPARENT: parent, TRACESTATE: state}
    return {TRACEPARENT: parent}
