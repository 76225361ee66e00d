"""Writes items together; an item that the store refuses does not stop the other items."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from bcs.errors import StoreRefused

T = TypeVar("T")


async def isolate(
    items: Sequence[T],
    attempt: Callable[[Sequence[T]], Awaitable[None]],
    on_refused: Callable[[T, StoreRefused], Awaitable[None]],
) -> None:
    """Try items together. If the store refuses them, try each item alone, in their order.

    :param items: at least one item.
    :param attempt: writes the items in one step, or none of them.
    :param on_refused: gets each item that the store refuses alone.
    :raises Exception: any error of `attempt` except a refusal, and any error of `on_refused`. Later items are not
        tried.
    """
    try:
        await attempt(items)
    except StoreRefused as error:
        if len(items) == 1:
            await on_refused(items[0], error)
            return
        for item in items:
            await isolate([item], attempt, on_refused)
