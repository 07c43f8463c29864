"""The programs of the copying load, each of which is now and then killed, or stopped for a while. Who was stopped goes
on as a zombie; who was replaced meanwhile has a successor by the same transactional id, which has fenced it.

Owned by copy_load.py. `start(number, life)` starts a program: later lives of a number have higher ones.
"""

import contextlib
import itertools
import signal
import subprocess

ENDING_S = 20


class Programs:
    def __init__(self, count, start):
        self.start = start
        self.lives = itertools.count()
        self.current = [self._begin(number) for number in range(count)]
        # (when it may go on, the program)
        self.stopped = []
        self.replaced = []

    def _begin(self, number):
        return self.start(number, next(self.lives))

    def strike(self, strike, now):
        struck = self.current[strike.program]
        if strike.stopped_s is None:
            struck.kill()
            return
        struck.send_signal(signal.SIGSTOP)
        self.stopped.append((now + strike.stopped_s, struck))
        if strike.is_replaced:
            self.replaced.append(struck)
            self.current[strike.program] = self._begin(strike.program)

    def look_after(self, now):
        """Lets those go on who were stopped for long enough, and starts again whoever has ended but has a successor."""
        for _, program in [stopped for stopped in self.stopped if now >= stopped[0]]:
            program.send_signal(signal.SIGCONT)
        self.stopped = [stopped for stopped in self.stopped if now < stopped[0]]
        for number, program in enumerate(self.current):
            if program.poll() is not None:
                self.current[number] = self._begin(number)

    def end(self):
        programs = [*self.current, *self.replaced]
        for program in programs:
            program.send_signal(signal.SIGCONT)
            program.terminate()
        for program in programs:
            with contextlib.suppress(subprocess.TimeoutExpired):
                program.wait(ENDING_S)
            program.kill()
            program.wait()
