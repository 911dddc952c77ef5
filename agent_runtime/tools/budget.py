"""Bound the CPU time of a check: there are patterns that no machine matches to the end, and the loop waits for us.

A regular expression cannot be interrupted by another thread, as it holds the interpreter; but it looks for signals
from time to time. So a timer of the process's own CPU time ends it, which a busy machine does not make ring early.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Final, TypeVar

CHECK_MAX_S: Final = 0.25

Found = TypeVar("Found")


class TooLong(Exception):
    """A check did not end in its time."""


class _Timer:
    """The one timer of the process. Checks do not wait for anything, so that there is never more than one."""

    def __init__(self) -> None:
        self._armed = False
        self._installed = False

    def start(self) -> None:
        if not self._installed:
            signal.signal(signal.SIGVTALRM, self._ring)
            self._installed = True
        self._armed = True
        signal.setitimer(signal.ITIMER_VIRTUAL, CHECK_MAX_S)

    def stop(self) -> None:
        self._armed = False
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)

    def _ring(self, _signal: int, _frame: FrameType | None) -> None:
        if self._armed:  # else it rang just as the check had ended
            self._armed = False
            raise TooLong(f"a check took more than {CHECK_MAX_S:g} s")


_timer: Final = _Timer()


def bounded(check: Callable[[], Found]) -> Found:
    """What the check finds; `TooLong` where it takes too much. Signals reach the main thread only: elsewhere
    nothing is bounded, and nothing of ours checks there."""
    if threading.current_thread() is not threading.main_thread():
        return check()
    _timer.start()
    try:
        return check()
    finally:
        _timer.stop()
