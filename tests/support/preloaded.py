"""What processes import before ``bcs`` is forked, behind all its modules: what it imports only as it runs."""

import encodings.idna
import gc

import anyio._backends._asyncio
import typer._click.decorators

import tests.support.forked

__all__ = ["anyio", "encodings", "tests", "typer"]

# Otherwise a collection in each process would copy all pages of the objects that it shares with the others.
gc.freeze()
