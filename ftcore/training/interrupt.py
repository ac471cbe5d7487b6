"""Ctrl-C and SIGTERM ask a run to stop after its step instead of tearing it apart in the middle."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

GRACE = 20  # seconds that a process is given to stop; torchrun kills it after 30


class Interrupt:
    """with Interrupt() as interrupt: ... if interrupt.requested: save and leave

    A second Ctrl-C ends the process at once, as usual. One inside another is that other: what asks a run to
    stop asks the search that it belongs to.
    """

    _SIGNALS = (signal.SIGINT, signal.SIGTERM)
    _outermost: "Interrupt | None" = None

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> "Interrupt":
        if Interrupt._outermost is not None:
            return Interrupt._outermost
        Interrupt._outermost = self
        self._previous = {number: signal.signal(number, self._request) for number in self._SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if Interrupt._outermost is not self:
            return
        Interrupt._outermost = None
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        signal.signal(number, self._previous[signal.Signals(number)])


@contextmanager
def speaking_when_stuck(speak: Callable[[], None]) -> Iterator[None]:
    """Call `speak` some time after a request to stop, if the process is still at work then.

    A process that waits for a lost one inside of CUDA gets no exception, and runs no signal handler; a thread
    of its own can still speak before torchrun kills it.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer)
    ended = threading.Event()

    def wait_for_signal() -> None:
        while byte := os.read(reader, 1):
            if byte[0] in Interrupt._SIGNALS and not ended.wait(GRACE):
                speak()

    thread = threading.Thread(target=wait_for_signal, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        signal.set_wakeup_fd(before)
        os.close(writer)
        thread.join()
        os.close(reader)
