"""`python -m bcs`."""

from bcs.cli import main

main()
