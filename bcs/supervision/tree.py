"""Run a whole tree from its root."""

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
    """Run a tree until `stop` is set, and stop it in order. Its mailboxes are closed at the end, however it comes.

    Cancellation cancels everything at once. No coroutine can be made to end: while an actor ignores its cancellation
    this does not return, so a process needs a last resort of its own.

    :param root: what to run
    :param stop: set it to stop the children gracefully, in reverse order
    :param shutdown_seconds: for all of that together; then what is left is cancelled
    :param started: called once, when every child has reported ready
    :returns: False when the time to stop was not enough
    :raises RestartIntensityExceeded: when the root gave up
    :raises UnexpectedCancellation: when something natively cancelled a task of the tree that nobody can restart
    """
    context: ActorContext[Any] = ActorContext(root.name, on_ready=started)
    failure: BaseException | None = UnexpectedCancellation(root.name)  # unless the root is seen to end
    scope = anyio.CancelScope()

    def stop_now() -> None:
        context.request_stop()
        scope.deadline = anyio.current_time() + shutdown_seconds

    async def stop_when_asked() -> None:
        await stop.wait()
        stop_now()

    if stop.is_set():
        stop_now()  # before anything has started
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
