"""On Ctrl-C, SIGTERM or SIGHUP a run finishes its step and saves."""

import signal
from types import FrameType


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
