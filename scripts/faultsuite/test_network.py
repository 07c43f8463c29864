"""Cuts in a network of namespaces, each in a process of its own, as entering them is for good."""

import pathlib
import subprocess
import sys

import pytest

from faultsuite import isolation

pytestmark = pytest.mark.skipif(isolation.why_not() is not None, reason=f"no namespaces: {isolation.why_not()}")

PROGRAM = """
import pathlib, subprocess, sys, time
from faultsuite import isolation
isolation.enter()
from faultsuite.network import CLIENTS, REFUSED, SILENT, Network
network = Network()
hosts = {}
for party in ["broker 1", "etcd"]:
    hosts[party], _, wrapper = network.place(party, 7)
    subprocess.Popen([*wrapper, sys.executable, "-c", ECHO, hosts[party]])

def asks(sender, receiver, timeout_s=1.0):
    '''What becomes of a question from one party to another.'''
    command = [sys.executable, "-c", ASK, hosts[receiver], str(timeout_s)]
    wrapper = () if sender == CLIENTS else network.place(sender, 7)[2]
    return subprocess.run([*wrapper, *command], capture_output=True, text=True).stdout.strip()

def until_answered(sender, receiver):
    deadline = time.monotonic() + 10
    while (last := asks(sender, receiver)) != "answered":
        assert time.monotonic() < deadline, last
"""

ECHO = """
import socket, sys
server = socket.create_server((sys.argv[1], 7))
while True:
    connection, _ = server.accept()
    connection.sendall(b"answer")
    connection.close()
"""

ASK = """
import socket, sys
try:
    connection = socket.create_connection((sys.argv[1], 7), float(sys.argv[2]))
    print("answered" if connection.recv(6) == b"answer" else "nothing")
except socket.timeout:
    print("silent")
except OSError as error:
    print("refused at once" if error.errno in (101, 113) else error)
"""


def in_a_network(body):
    program = f"ECHO, ASK = {ECHO!r}, {ASK!r}\n{PROGRAM}\nfor party in hosts: until_answered(CLIENTS, party)\n{body}"
    scripts = pathlib.Path(__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, "-B", "-c", program], cwd=scripts, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_parties_reach_each_other():
    in_a_network("assert asks('broker 1', 'etcd') == asks('etcd', 'broker 1') == 'answered'")


def test_a_silent_cut_swallows_packets_until_it_is_mended():
    in_a_network("""
network.cut("broker 1", "etcd", SILENT)
assert asks("broker 1", "etcd") == "silent"
assert asks(CLIENTS, "etcd") == "answered"
network.mend("broker 1", "etcd")
until_answered("broker 1", "etcd")
""")


def test_a_refused_cut_fails_at_once():
    in_a_network("""
network.cut(CLIENTS, "broker 1", REFUSED)
assert asks(CLIENTS, "broker 1") == "refused at once"
network.mend(CLIENTS, "broker 1")
until_answered(CLIENTS, "broker 1")
""")


def test_a_one_way_cut_loses_the_answers_to_what_arrives():
    in_a_network("""
network.cut("etcd", "broker 1", SILENT)
assert asks("broker 1", "etcd") == "silent"
assert asks(CLIENTS, "etcd") == asks("broker 1", "broker 1") == "answered"
""")


def test_cuts_of_the_same_way_add_up():
    in_a_network("""
network.cut(CLIENTS, "etcd", SILENT)
network.cut(CLIENTS, "etcd", REFUSED)
network.mend(CLIENTS, "etcd")
assert asks(CLIENTS, "etcd") == "silent"
network.mend(CLIENTS, "etcd")
until_answered(CLIENTS, "etcd")
""")


def test_a_link_is_slowed_down_and_sped_up():
    in_a_network("""
network.slow_down("etcd", "tbf rate 8kbit burst 1540 latency 1ms")
network.speed_up("etcd")
until_answered(CLIENTS, "etcd")
""")


def test_nothing_of_it_is_seen_outside():
    before = subprocess.run(["ip", "netns"], capture_output=True).stdout
    in_a_network("""
import subprocess
assert b"broker-1" in subprocess.run(["ip", "netns"], capture_output=True).stdout
""")
    assert subprocess.run(["ip", "netns"], capture_output=True).stdout == before
