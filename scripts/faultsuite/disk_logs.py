"""Reads the replicas' logs as they are on disk, and compares them.

A segment holds record batches and nothing else:

```text
0  base offset       int64      20 CRC                uint32     43 producer id      int64
8  length after 12   int32      21 attributes         int16      51 producer epoch   int16
12 leader epoch      int32      23 last offset delta  int32      53 base sequence    int32
16 magic = 2         int8       27 base timestamp     int64      57 record count     int32
17 CRC               uint32     35 max timestamp      int64      61 records
```
"""

import mmap
import pathlib
import struct
from dataclasses import dataclass

HEADER = struct.Struct(">qiibIhiqqqhii")
CODEC_MASK = 0x07
CONTROL = 0x20
NO_PRODUCER = -1


class Unreadable(Exception):
    """A log does not have the form that it should have."""


@dataclass(frozen=True)
class Batch:
    base_offset: int
    last_offset: int
    leader_epoch: int
    attributes: int
    producer_id: int
    producer_epoch: int
    data: bytes

    @property
    def is_control(self):
        """It holds a transaction's end, and no record of anybody's."""
        return bool(self.attributes & CONTROL)

    def records(self):
        """(offset, value) of each record of an uncompressed batch."""
        if self.attributes & CODEC_MASK:
            raise Unreadable(f"the batch at offset {self.base_offset} is compressed")
        at = HEADER.size
        while at < len(self.data):
            length, at = varint(self.data, at)
            end = at + length
            _, at = varint(self.data, at + 1)
            delta, at = varint(self.data, at)
            key_size, at = varint(self.data, at)
            size, at = varint(self.data, at + max(key_size, 0))
            yield self.base_offset + delta, self.data[at : at + size] if size >= 0 else None
            at = end


def varint(data, at):
    """A zigzag number, and where it ends."""
    number = shift = 0
    while True:
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return (number >> 1) ^ -(number & 1), at
        shift += 7


def batches(directory):
    """The batches of a partition's directory in the order of the log."""
    for segment in sorted(pathlib.Path(directory).glob("*.log")):
        if segment.stat().st_size:
            with segment.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                yield from _batches_of(segment, data)


def _batches_of(segment, data):
    at = 0
    while at < len(data):
        if len(data) - at < HEADER.size:
            raise Unreadable(f"{segment} ends within a batch's header, at byte {at}")
        base, length, epoch, magic, _, attributes, last_delta, _, _, producer, producer_epoch, *_ = HEADER.unpack_from(data, at)
        end = at + 12 + length
        if magic != 2 or length < HEADER.size - 12 or end > len(data):
            raise Unreadable(f"{segment} has no whole batch at byte {at}")
        yield Batch(base, base + last_delta, epoch, attributes, producer, producer_epoch, data[at:end])
        at = end


def checked(directory, has_gaps):
    """The same batches; offsets grow (without gaps unless records are compacted away), epochs don't fall."""
    expected, newest = None, -1
    for batch in batches(directory):
        fits = expected is None or batch.base_offset == expected or (has_gaps and batch.base_offset > expected)
        if not fits:
            raise Unreadable(f"{directory} goes on with offset {batch.base_offset} where {expected} should be")
        if batch.leader_epoch < newest:
            raise Unreadable(f"{directory} has leader epoch {batch.leader_epoch} after {newest}, at offset {batch.base_offset}")
        expected, newest = batch.last_offset + 1, batch.leader_epoch
        yield batch


def zombie_writes(directory):
    """(offset, what is wrong) of each batch whose producer had been fenced: a newer epoch of it stands before, in records
    or in the marker that ended its transaction. Also of those that were aborted, which no reader sees."""
    newest = {}
    for batch in batches(directory):
        producer, epoch = batch.producer_id, batch.producer_epoch
        if producer == NO_PRODUCER:
            continue
        if epoch < newest.setdefault(producer, epoch):
            yield batch.base_offset, f"producer {producer} wrote in epoch {epoch} after {newest[producer]}"
        newest[producer] = max(epoch, newest[producer])


def difference(directories, end, has_gaps=False):
    """Compares the replicas of a partition below an offset, byte by byte. ({name: directory};
    what differs or None, bytes compared in each)."""
    size = 0
    try:
        replicas = {name: _below(checked(directory, has_gaps), end) for name, directory in directories.items()}
        while True:
            heads = {name: next(replica, None) for name, replica in replicas.items()}
            shown = {name: f"{b.base_offset} to {b.last_offset} in epoch {b.leader_epoch}" if b else "nothing" for name, b in heads.items()}
            first, *others = heads.values()
            if any((other and other.data) != (first and first.data) for other in others):
                what = "the same offsets, other bytes" if len(set(shown.values())) == 1 else str(shown)
                return f"replicas differ below offset {end}: {what}", size
            if first is None:
                return None, size
            size += len(first.data)
    except Unreadable as error:
        return str(error), size


def _below(found, end):
    last = -1
    for batch in found:
        # What follows must be in order too, but may differ.
        if batch.base_offset < end:
            last = batch.last_offset
            yield batch
    if last + 1 < end:
        raise Unreadable(f"a log ends at offset {last + 1}, below the high watermark {end}")
