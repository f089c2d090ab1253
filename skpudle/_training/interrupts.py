"""Ctrl-C, delayed until an update is complete."""

import signal
import threading

__all__ = ["Interrupts"]


class Interrupts:
    """Within this context, note a first Ctrl-C; a second one interrupts at once.

    Only Python's own handler of the main thread is replaced, and restored at the end: a handler
    that other code installed stays in place. A noted Ctrl-C that nothing acted on is raised at the
    end.
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
