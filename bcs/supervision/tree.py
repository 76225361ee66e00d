"""Run a whole tree."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio

from bcs.supervision.actor import ActorContext
from bcs.supervision.errors import UnexpectedCancellation

if TYPE_CHECKING:
    from collections.abc import Callable

    from bcs.supervision.base_supervisor import BaseSupervisor


async def run_tree(
    root: BaseSupervisor,
    stop: anyio.Event,
    *,
    shutdown_seconds: float,
    started: Callable[[], None] | None = None,
) -> bool:
    """Run a tree until `stop` is set, then stop the tree in order. The mailboxes are closed after every kind of end.

    Cancellation cancels all actors at once. Python cannot force a coroutine to end: this function does not return while
    an actor ignores its cancellation. So the process needs its own last resort.

    :param root: the root of the tree
    :param stop: set this event to stop the children gracefully, in reverse order
    :param shutdown_seconds: the time for the whole stop; after that the remaining actors are cancelled
    :param started: called once, when every child has reported ready
    :returns: False when the time for the stop was not enough
    :raises RestartIntensityExceeded: when the root gave up
    :raises UnexpectedCancellation: when other code natively cancelled a task of the tree that no supervisor can restart
    """
    context: ActorContext[Any] = ActorContext(root.name, on_ready=started)
    failure: BaseException | None = UnexpectedCancellation(root.name)  # replaced when the root ends in a known way
    scope = anyio.CancelScope()

    def stop_now() -> None:
        context.request_stop()
        scope.deadline = anyio.current_time() + shutdown_seconds

    async def stop_when_asked() -> None:
        await stop.wait()
        stop_now()

    if stop.is_set():
        stop_now()  # before any child starts
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stop_when_asked)
            with scope:
                try:
                    await root.run(context)
                    failure = None
                except anyio.get_cancelled_exc_class():
                    raise
                except BaseException as error:  # noqa: BLE001 - raised below, where no task group wraps it
                    failure = error
            tasks.cancel_scope.cancel()
    finally:
        root.close()
    if scope.cancelled_caught:
        return False
    if failure is not None:
        raise failure
    return True
