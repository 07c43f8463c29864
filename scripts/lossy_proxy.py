"""A network that loses answers, delays requests and repeats them: a proxy for Kafka's frames
between clients and one broker, which advertises the proxy's port as its own.

What befalls the next request of a kind is said beforehand, so that a run can be repeated to
the letter. Everything else is passed on as it is.

    request:  length i32 | api key i16 | api version i16 | correlation id i32 | …
    answer:   length i32 | correlation id i32 | …
"""

import contextlib
import enum
import socket
import struct
import threading

PRODUCE, END_TXN = 0, 26


class Fate(enum.Enum):
    """What can become of a request."""

    ARRIVES = "arrives"
    # The broker does what it asks for; the connection breaks before the answer is through.
    ANSWER_LOST = "its answer is lost"
    # The connection breaks, and the request reaches the broker much later.
    LATE = "arrives late"
    # The broker gets it two times, one after the other.
    TWICE = "arrives twice"
    # As ANSWER_LOST, and the client dies of it: it gets no connection until it is back.
    CLIENT_DIES_AFTER = "client dies before the answer"
    # The same, and the broker never gets the request.
    CLIENT_DIES_BEFORE = "client dies before it arrives"


DEADLY = {Fate.CLIENT_DIES_AFTER, Fate.CLIENT_DIES_BEFORE}


class LossyProxy:
    def __init__(self, broker, port=0):
        self.broker = broker
        self.listener = socket.create_server(("127.0.0.1", port))
        self.port = self.listener.getsockname()[1]
        self.lock = threading.Lock()
        self.planned = None
        self.script = (), iter(())
        self.held = []
        self.is_down = False
        self.client_died = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def befalls(self, api_key, fate):
        """The next request of this API meets this fate."""
        self.client_died.clear()
        with self.lock:
            self.planned = None if fate is Fate.ARRIVES else (api_key, fate)

    def befalls_each(self, api_keys, fates):
        """The requests of these APIs meet one fate after the other, and when these are used up, none."""
        self.client_died.clear()
        with self.lock:
            self.script = api_keys, iter(fates)

    def revive(self):
        """The client that died may connect again."""
        self.client_died.clear()
        self.is_down = False

    def held_count(self):
        with self.lock:
            return len(self.held)

    def take_held(self, most=None):
        """The requests that are held back, oldest first; `deliver` brings one to the broker."""
        with self.lock:
            most = len(self.held) if most is None else most
            taken, self.held = self.held[:most], self.held[most:]
            return taken

    def deliver(self, frame):
        """Brings a request to the broker that was held back, and waits until it was served."""
        with self._to_broker() as broker:
            broker.sendall(frame)
            read_frame(broker)

    def _to_broker(self):
        host, port = self.broker.rsplit(":", 1)
        connection = socket.create_connection((host, int(port)), timeout=30)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def _accept(self):
        while True:
            client, _ = self.listener.accept()
            if self.is_down:
                client.close()
                continue
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                broker = self._to_broker()
                broker.settimeout(None)
                Link(self, client, broker).start()
            except OSError:
                client.close()

    def fate_of(self, frame):
        with self.lock:
            api_keys, fates = self.script
            if self.planned is not None and self.planned[0] == api_key(frame):
                fate, self.planned = self.planned[1], None
            elif api_key(frame) in api_keys:
                fate = next(fates, Fate.ARRIVES)
            else:
                return Fate.ARRIVES
            if fate is Fate.LATE:
                self.held.append(frame)
            return fate


class Link:
    """One client's connection, and its other half to the broker."""

    def __init__(self, proxy, client, broker):
        self.proxy, self.client, self.broker = proxy, client, broker
        # Correlation ids whose answer ends the connection, or is not passed on.
        self.fatal, self.repeated = {}, set()

    def start(self):
        for work in (self._requests, self._answers):
            threading.Thread(target=self._until_closed, args=(work,), daemon=True).start()

    def _until_closed(self, work):
        with contextlib.suppress(OSError):
            work()
        self.close()

    def close(self):
        for half in (self.client, self.broker):
            with contextlib.suppress(OSError):
                half.shutdown(socket.SHUT_RDWR)
            half.close()

    def _requests(self):
        while frame := read_frame(self.client):
            fate = self.proxy.fate_of(frame)
            if fate is Fate.LATE:
                return
            if fate is Fate.CLIENT_DIES_BEFORE:
                self._client_dies()
                return
            if fate in (Fate.ANSWER_LOST, Fate.CLIENT_DIES_AFTER):
                self.fatal[correlation_id(frame[4:])] = fate
            if fate is Fate.TWICE:
                self.repeated.add(correlation_id(frame[4:]))
                self.broker.sendall(frame)
            self.broker.sendall(frame)

    def _answers(self):
        while frame := read_frame(self.broker):
            number = correlation_id(frame)
            if number in self.fatal:
                if self.fatal[number] in DEADLY:
                    self._client_dies()
                return
            if number in self.repeated:
                self.repeated.remove(number)
                continue
            self.client.sendall(frame)

    def _client_dies(self):
        self.proxy.is_down = True
        self.close()
        self.proxy.client_died.set()


def read_frame(source):
    """A frame with its length, or nothing at the end of the connection."""
    head = read_exactly(source, 4)
    if head is None:
        return None
    body = read_exactly(source, struct.unpack(">i", head)[0])
    return None if body is None else head + body


def read_exactly(source, count):
    parts = []
    while count:
        part = source.recv(min(count, 1 << 16))
        if not part:
            return None
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def api_key(frame):
    return struct.unpack_from(">h", frame, 4)[0]


def correlation_id(frame):
    """Of an answer; of a request, when it is given without its length."""
    return struct.unpack_from(">i", frame, 4)[0]
