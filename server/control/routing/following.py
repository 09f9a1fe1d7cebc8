"""What a server does about trials that others of its fleet began, stepped and ended: the same. In the event loop."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from server.control.routing.trial import Trial


class Move(StrEnum):
    """What to do about one model's trial."""

    NOTHING = "nothing"
    BEGIN = "begin"
    STEP = "step"
    END = "end"  # as the state says
    ABORT = "abort"  # the state has lost it: the baseline answers, and the state is told


def move(ours: Trial | None, theirs: Trial | None, *, emptied: bool) -> Move:
    """What `theirs`, the state's, asks of a server that has `ours`. What was going on when the state lost anything is over, and what is
    over here never goes on again. Pure."""
    if emptied or theirs is None:
        going = (ours is not None and ours.going) or (theirs is not None and theirs.going)
        return Move.ABORT if going else Move.NOTHING
    if ours is None or ours.id != theirs.id:
        return Move.BEGIN if theirs.going else Move.END
    if not theirs.going:
        return Move.END if ours.going or ours.state != theirs.state else Move.NOTHING
    if not ours.going:
        return Move.NOTHING
    return Move.STEP if (ours.step, ours.state) != (theirs.step, theirs.state) else Move.NOTHING


def moves(ours: Mapping[str, Trial], theirs: Mapping[str, Trial], *, emptied: bool) -> dict[str, Move]:
    """By model, those that ask for something."""
    found = {model: move(ours.get(model), theirs.get(model), emptied=emptied) for model in {*ours, *theirs}}
    return {model: what for model, what in found.items() if what is not Move.NOTHING}
