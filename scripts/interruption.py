"""What a script does when a signal tells it to end (SIGINT, SIGTERM, SIGHUP): an exception is raised in its main
thread, so that whatever it has started is ended by the lines that end it anyhow.

Owned by whoever runs a script's main function (cluster.run). One exception is raised; what ends things is not
disturbed by a second signal, such as `timeout` sends to the whole process group.
"""

import contextlib
import signal
import threading

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_held_back = False
_pending = None


class Interrupted(BaseException):
    """A signal has told the script to end."""

    def __init__(self, number):
        super().__init__(signal.Signals(number).name)
        self.number = number


def heed():
    """From now on. What is ignored, as under nohup, stays so."""
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)


def _interrupt(number, _frame):
    global _pending
    if _held_back:
        _pending = number
        return
    for each in SIGNALS:
        # Not SIG_IGN, which whatever is started from now on would inherit.
        signal.signal(each, lambda *_: None)
    raise Interrupted(number)


def ignore():
    """When all is ended: Python takes its handlers away before the process is gone."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def held_back():
    """No interruption comes inside, but at its end: what was just started must be known to whoever ends it."""
    global _held_back
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _held_back = True
    try:
        yield
    finally:
        _held_back = False
    if _pending is not None:
        _interrupt(_pending, None)
