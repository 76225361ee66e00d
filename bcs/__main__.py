"""The command `bcs`, and `python -m bcs`."""

from bcs.runtime.signals import hold


def main() -> None:
    """Listen for signals first: to import all the rest takes most of a second."""
    hold()
    from bcs.cli.main import main as run

    run()


if __name__ == "__main__":
    main()
