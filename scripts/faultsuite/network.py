"""A network of namespaces: each party on a link of its own to one bridge, so that the way
from any party to any other can be cut, in one direction or both.

The bridge is in the namespace of the run (isolation.py), which is the clients' place in this
network. No packet filter is needed. A *silent* cut gives the sender a neighbour entry with a
hardware address that nobody has: packets vanish, as behind a pulled plug. A *refused* cut is an
unreachable route: sending fails at once, as a firewall that rejects would have it.
"""

import subprocess
from collections import Counter

CLIENTS = "clients"
NOBODY = "02:de:ad:00:00:01"
SILENT, REFUSED = "silent", "refused"


class Network:
    """Places for the parties of a cluster (see cluster.Loopback), and the cuts between them."""

    def __init__(self):
        self.hosts = {CLIENTS: "10.207.0.1"}
        self.cuts = Counter()
        ip("link add hub type bridge")
        ip(f"addr add {self.hosts[CLIENTS]}/24 dev hub")
        ip("link set hub up")
        self.has_netem = self._try_netem()

    def place(self, party, usual_port):
        if party not in self.hosts:
            self._connect(party)
        return self.hosts[party], usual_port, ("nsenter", f"--net=/run/netns/{namespace(party)}")

    def cut(self, sender, receiver, how=SILENT):
        """Packets from one to the other no longer arrive. Cuts of the same way add up."""
        self.cuts[sender, receiver] += 1
        if self.cuts[sender, receiver] == 1:
            self._change(sender, receiver, "replace", how)
            self.cuts[sender, receiver, "how"] = how

    def mend(self, sender, receiver):
        self.cuts[sender, receiver] -= 1
        if self.cuts[sender, receiver] == 0:
            self._change(sender, receiver, "del", self.cuts.pop((sender, receiver, "how")))

    def slow_down(self, party, discipline):
        """Has a party's outgoing packets shaped by tc (`netem …`, `tbf …`)."""
        tc(party, f"qdisc replace dev eth0 root {discipline}")

    def speed_up(self, party):
        tc(party, "qdisc del dev eth0 root")

    def _connect(self, party):
        name, number = namespace(party), len(self.hosts) + 1
        host = f"10.207.0.{number}"
        ip(f"netns add {name}")
        ip(f"link add port{number} type veth peer name eth0 netns {name}")
        ip(f"link set port{number} master hub up")
        for change in ["link set lo up", f"addr add {host}/24 dev eth0", "link set eth0 up"]:
            ip(f"-n {name} {change}")
        self.hosts[party] = host

    def _change(self, sender, receiver, verb, how):
        where, device = ("", "hub") if sender == CLIENTS else (f"-n {namespace(sender)} ", "eth0")
        host = self.hosts[receiver]
        if how == SILENT:
            entry = f"{host} lladdr {NOBODY} nud permanent" if verb == "replace" else host
            ip(f"{where}neigh {verb} {entry} dev {device}")
        else:
            ip(f"{where}route {verb} unreachable {host}/32")

    def _try_netem(self):
        ip("link add probe type veth peer name eborp")
        tried = subprocess.run("tc qdisc add dev probe root netem delay 1ms".split(), capture_output=True)
        ip("link del probe")
        return tried.returncode == 0


def namespace(party):
    return party.replace(" ", "-")


def ip(arguments):
    _run(["ip", *arguments.split()])


def tc(party, arguments):
    _run(["tc", "-n", namespace(party), *arguments.split()])


def _run(command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
