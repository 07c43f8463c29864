"""Faults of disks: no room left, and everything on it gone."""

import shutil
import subprocess

from faultsuite.fault import SMALL_DISK, fault, a_broker, seconds

BALLAST = "ballast"


def mount_small_disk(directory, size_bytes):
    """A file system of its own for one broker's data; it goes with the run's mount namespace."""
    directory.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", directory], check=True)


def unmount_small_disk(directory, keep):
    """Takes it away; what was on it stays behind where it was mounted, if it is to be kept."""
    kept = directory.with_name(directory.name + ".kept")
    if keep:
        shutil.copytree(directory, kept)
    subprocess.run(["umount", "--lazy", directory], check=True)
    directory.rmdir()
    if keep:
        kept.rename(directory)


@fault("full-disk", seconds(3, 10), needs=[SMALL_DISK])
def fill_disk(scene):
    """The disk of the one broker that has a small one is filled to its last byte, then freed."""
    node = scene.small_disk
    ballast = node.data / BALLAST
    with ballast.open("wb") as file:
        try:
            while True:
                file.write(b"\0" * (1 << 20))
                file.flush()
        except OSError:
            pass  # the point of it
    yield f"filled the disk of {node.name}"
    ballast.unlink()


@fault("wipe", seconds(0.5, 4), is_alone=True, broker=a_broker)
def wipe(scene, broker):
    """kill -9 of a broker whose data directory is then emptied; it is started again under the same id, while all
    others are in sync."""
    node = scene.take_broker(broker)
    node.kill()
    for entry in list(node.data.iterdir()):
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    yield f"killed {node.name} with -9 and emptied its data directory"
    node.start(wait=False)
