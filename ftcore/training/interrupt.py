"""Ctrl-C and SIGTERM ask a run to stop after its step instead of tearing it apart in the middle."""

import signal
from types import FrameType, TracebackType


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
