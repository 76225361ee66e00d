"""Shows what the public surface is, beside what was accepted; with `--accept` it is accepted.

python -m tests.surface                       # what differs
python -m tests.surface --accept              # take all of it for meant
python -m tests.surface --accept metrics log_events
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import anyio

from tests.surface.comparing import accept, accepted, difference
from tests.surface.families import LEAST, OF_THE_STORY, WITHOUT_SERVERS
from tests.surface.scenario import play
from tests.surface.servers import embedded_servers


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script; the exit code is 1 where something differs and is not accepted."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.surface", description="The public surface, beside its snapshots."
    )
    parser.add_argument("families", nargs="*", metavar="FAMILY", help=f"of {', '.join(LEAST)}; all if none is named")
    parser.add_argument("--accept", action="store_true", help="write the snapshots anew")
    options = parser.parse_args(arguments)
    if unknown := set(options.families) - LEAST.keys():
        parser.error(f"no such family: {', '.join(sorted(unknown))}")
    wanted = options.families or list(LEAST)
    surface = {family: WITHOUT_SERVERS[family]() for family in wanted if family in WITHOUT_SERVERS}
    if set(wanted) & set(OF_THE_STORY):
        with embedded_servers() as servers:
            played = anyio.run(play, servers)
        surface |= {family: played[family] for family in wanted if family in played}
    differs = False
    for family, facts in surface.items():
        if found := difference(family, accepted(family), facts):
            differs = True
            sys.stdout.write(f"{family}: accepted\n" if options.accept else f"{found}\n\n")
            if options.accept:
                accept(family, facts)
    return int(differs and not options.accept)


if __name__ == "__main__":
    sys.exit(main())
