"""On Ctrl-C, SIGTERM or SIGHUP a run finishes its step and saves."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

GRACE = 20  # seconds between a request to stop and the report that nothing happens; torchrun kills after 30


class Interrupt:
    """Note Ctrl-C, SIGTERM and SIGHUP in `requested` instead of ending the process.

        with Interrupt() as interrupt: ... if interrupt.requested: save and leave

    A second Ctrl-C ends the process at once; a second SIGHUP does not, since a terminal that is closed sends
    one and its shell another. An ignored SIGHUP (nohup) stays ignored. Nested instances share the outermost.
    """

    _HANGUP = getattr(signal, "SIGHUP", None)  # not on Windows
    _SIGNALS = tuple(filter(None, (signal.SIGINT, signal.SIGTERM, _HANGUP)))
    _outermost: "Interrupt | None" = None

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> "Interrupt":
        if Interrupt._outermost is not None:
            return Interrupt._outermost
        Interrupt._outermost = self
        numbers = [n for n in self._SIGNALS if n != self._HANGUP or signal.getsignal(n) != signal.SIG_IGN]
        self._previous = {number: signal.signal(number, self._request) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        if Interrupt._outermost is not self:
            return
        Interrupt._outermost = None
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        if number != self._HANGUP:
            signal.signal(number, self._previous[signal.Signals(number)])


@contextmanager
def call_if_stuck(report: Callable[[], None]) -> Iterator[None]:
    """Call `report` where the block still runs GRACE seconds after a request to stop.

    A process that waits for a lost one inside CUDA raises no exception and runs no signal handler, but a
    thread can still print before torchrun kills the process.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    previous = signal.set_wakeup_fd(writer)
    ended = threading.Event()

    def wait_for_signal() -> None:
        while byte := os.read(reader, 1):
            if byte[0] in Interrupt._SIGNALS and not ended.wait(GRACE):
                report()

    thread = threading.Thread(target=wait_for_signal, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        signal.set_wakeup_fd(previous)
        os.close(writer)
        thread.join()
        os.close(reader)
