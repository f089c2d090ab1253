"""Ctrl-C, put off to the end of an update."""

import signal
import threading

__all__ = ["Interrupts"]


class Interrupts:
    """While this context lasts, a first Ctrl-C is noted, and a second one interrupts at once.

    Only Python's own handler of the main thread is stood in for, and it is put back at the end: a
    handler that somebody else installed stays what it is. A Ctrl-C that was noted and not acted on
    is raised at the end.
    """

    pending = False

    def __enter__(self):
        self._installed = (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        )
        if self._installed:
            signal.signal(signal.SIGINT, self._note)
        return self

    def _note(self, number, frame):
        self.pending = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def __exit__(self, kind, error, traceback):
        if self._installed:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if self.pending and kind is None:
            raise KeyboardInterrupt
