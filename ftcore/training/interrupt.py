"""Ctrl-C and SIGTERM ask a run to stop after its step instead of tearing it apart in the middle."""

import signal
from types import FrameType, TracebackType


class Interrupt:
    """with Interrupt() as interrupt: ... if interrupt.requested: save and leave

    A second Ctrl-C ends the process at once, as usual.
    """

    _SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> "Interrupt":
        self._previous = {number: signal.signal(number, self._request) for number in self._SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        signal.signal(number, self._previous[signal.Signals(number)])
