"""The command `bcs`, and `python -m bcs`."""

from bcs.runtime.signals import hold


def main() -> None:
    """Handle signals first, because importing the other modules takes most of a second."""
    hold()
    from bcs.cli.main import main as run

    run()


if __name__ == "__main__":
    main()
