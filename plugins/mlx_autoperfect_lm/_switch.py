"""Whether autoperfect is on in this process: whatever says off wins."""

from __future__ import annotations

import os

_OFF = frozenset({"0", "off", "false", "no"})


def environment() -> bool | None:
    """What ``AUTOPERFECT`` says: on, off, or nothing.

    A value that cannot be read counts as on, so that the core reports it when a model is loaded. Read
    here and not through the core's settings, because the core must not be imported yet.
    """
    text = os.environ.get("AUTOPERFECT", "").strip().lower()
    return text not in _OFF if text else None


class Switch:
    """The state of one process.

    Attributes:
        flag: what the last parsed command line said, or ``None`` if nothing.
        forced: whether the launcher or ``activate()`` asked for it.
    """

    def __init__(self) -> None:
        self.flag: bool | None = None
        self.forced = False

    def on(self) -> bool:
        """The verdict: ``--no-autoperfect``, then ``AUTOPERFECT=0``, then anything that asks for it."""
        if self.flag is False or environment() is False:
            return False
        return bool(self.flag or self.forced or environment())


SWITCH = Switch()
