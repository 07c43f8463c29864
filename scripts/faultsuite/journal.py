"""Follows the journals of the loads while they grow (see client/cli/verify/journal.rs)."""


def lines(path, kind):
    """(time in seconds, partition, the rest) of each line of a kind."""
    if not path.exists():
        return
    with path.open(errors="replace") as file:
        for line in file:
            if line.startswith(kind) and line.endswith("\n"):
                _, at, partition, *rest = line.split()
                yield int(at) / 1e6, int(partition), rest


class Tail:
    """What a journal says so far, read on from where the last look ended."""

    def __init__(self, path):
        self.path = path
        self.position = 0
        self.last_ack = {}
        self.acknowledged = 0
        self.given_up = 0
        self.reset_gap(0.0)

    def reset_gap(self, since):
        """Forgets the longest gap, and counts gaps from a moment on."""
        self.since = since
        self.longest_gap_s = 0.0

    def look(self):
        if self.path.exists():
            with self.path.open("rb") as file:
                file.seek(self.position)
                data = file.read()
            whole = data.rfind(b"\n") + 1
            self.position += whole
            for line in data[:whole].splitlines():
                self._read(line.split(None, 3))
        return self

    def _read(self, words):
        if words[0] == b"ack":
            at, partition = int(words[1]) / 1e6, int(words[2])
            last = max(self.last_ack.get(partition, at), self.since)
            self.longest_gap_s = max(self.longest_gap_s, at - last)
            self.last_ack[partition] = at
            self.acknowledged += 1
        elif words[0] == b"fail":
            self.given_up += 1

    def silent_since(self, moment, partitions):
        """The partitions that have acknowledged nothing after a moment."""
        return [p for p in range(partitions) if self.last_ack.get(p, 0.0) <= moment]
