"""Ctrl-C, and the SIGTERM of schedulers, that wait until what they would cut in half is done."""

import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType


@contextmanager
def interrupts() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM, so that an update is never cut in half; a second Ctrl-C is not held back."""
    caught: list[int] = []

    def on_signal(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and number in caught:
            raise KeyboardInterrupt
        caught.append(number)

    with ExitStack() as restored:
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                previous = signal.signal(number, on_signal)
            except ValueError:  # only the main thread may; elsewhere there is nothing to catch
                break
            restored.callback(signal.signal, number, previous)
        yield caught
