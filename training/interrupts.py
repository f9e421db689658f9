"""Ctrl-C that waits until what it would cut in half is done."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def interrupts() -> Iterator[list[int]]:
    """Collects Ctrl-C, so that an update is never cut in half; a second one is not held back."""
    caught: list[int] = []

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(number)

    try:
        previous = signal.signal(signal.SIGINT, on_interrupt)
    except ValueError:  # only the main thread may; elsewhere there is no Ctrl-C to catch
        yield caught
        return
    try:
        yield caught
    finally:
        signal.signal(signal.SIGINT, previous)
