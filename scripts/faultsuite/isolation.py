"""Namespaces for a whole run: mounts, network and processes of its own.

What the run makes (network namespaces, bridges, mounted disks) can then be seen by nobody
else, and the kernel takes all of it away with the run's last process, however that ends:
also after `kill -9`, when no code of ours gets a chance to clean up.
"""

import contextlib
import ctypes
import functools
import os
import shutil
import signal
import subprocess
import sys

CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWNET = 0x00020000, 0x20000000, 0x40000000
PR_SET_PDEATHSIG = 1


# What a run does in its namespaces: some containers let them be made and forbid the rest.
PROBE = """
mount --make-rprivate /; mount -t proc proc /proc; mkdir -p /run/netns; mount -t tmpfs tmpfs /run/netns
ip link set lo up; ip link add hub type bridge; ip addr add 10.207.0.1/24 dev hub; ip link set hub up
ip netns add probe; ip link add port type veth peer name eth0 netns probe; ip link set port master hub up
nsenter --net=/run/netns/probe true
"""


@functools.cache
def why_not():
    """Why a run can have no namespaces of its own here, or None."""
    if os.geteuid() != 0:
        return "that takes root"
    if not shutil.which("unshare") or not shutil.which("ip"):
        return "that takes unshare and ip (util-linux, iproute2)"
    command = ["unshare", "--mount", "--net", "--pid", "--fork", "sh", "-ec", PROBE]
    tried = subprocess.run(command, capture_output=True, text=True)
    return None if tried.returncode == 0 else (tried.stderr.strip() or "unshare failed").splitlines()[-1]


def enter():
    """Goes on in a child process inside namespaces of its own. The parent only waits for the child, and ends as it
    ended. As process 1 of its namespace the child is spared every signal that it has no handler for
    (interruption.py has some)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWPID) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    sys.stdout.flush()
    child = os.fork()
    if child:
        _wait_for(child)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    for command in [
        "mount --make-rprivate /", "mount -t proc proc /proc", "mkdir -p /run/netns",
        "mount -t tmpfs tmpfs /run/netns", "ip link set lo up",
    ]:  # fmt: skip
        subprocess.run(command.split(), check=True)


def _wait_for(child):
    def pass_on(number, _frame):
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)

    signal.signal(signal.SIGTERM, pass_on)
    signal.signal(signal.SIGHUP, pass_on)
    # A terminal's Ctrl-C reaches the child by itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _, status = os.waitpid(child, 0)
    os._exit(os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status))
