"""A trace as text: who caused what."""

from collections.abc import Iterable, Iterator

from opentelemetry.sdk.trace import ReadableSpan


def drawn(spans: Iterable[ReadableSpan], root: int) -> str:
    """The spans of a trace as a tree, in the order in which they began.

    :param root: the id of the span that caused them all, which is the caller's.
    """
    children: dict[int, list[ReadableSpan]] = {}
    for span in sorted(spans, key=lambda span: span.start_time or 0):
        if span.parent:
            children.setdefault(span.parent.span_id, []).append(span)

    def lines(parent: int, indent: str) -> Iterator[str]:
        known = children.get(parent, [])
        for span in known:
            last = span is known[-1]
            assert span.context is not None
            yield f"{indent}{'└─ ' if last else '├─ '}{span.name}  ({span.kind.name.lower()})"
            yield from lines(span.context.span_id, indent + ("   " if last else "│  "))

    return "\n".join(["the caller's span", *lines(root, "")])
