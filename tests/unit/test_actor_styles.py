"""`bcs actors` has a colour for the states that an operator should see."""

from __future__ import annotations

from bcs.cli.actors import _STYLES
from bcs.supervision import State


def test_every_colour_belongs_to_a_state() -> None:
    assert _STYLES.keys() <= {state.value for state in State}
    assert _STYLES[State.UNRESPONSIVE.value] == "red"
