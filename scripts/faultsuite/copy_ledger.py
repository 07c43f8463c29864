"""What a copying load owes: each record of the input below the committed offset stands once in the output, in
order, and nothing else does.

Plain values in and out: copy_load.py reads the topics, and this is the judgement.
"""

import zlib
from dataclasses import dataclass, field

KINDS = [
    "lost", "duplicated", "out_of_order", "torn", "aborted_reads", "offsets_without_output", "output_without_offsets", "altered",
    "zombie_writes",
]  # fmt: skip


@dataclass(frozen=True)
class Copy:
    """A record of the output: which one of the input it is, and which transaction of how many records wrote it."""

    source: int
    transaction: str
    size: int
    checksum: int

    def value(self, run, partition):
        """As the other loads', with run, partition and number first."""
        return f"{run} {partition} {self.source} {self.transaction} {self.size} {self.checksum}"

    @property
    def writer(self):
        """Which of the programs wrote it, and in which of its lives."""
        program, life, _ = self.transaction.split("-")
        return int(program), int(life)

    @classmethod
    def parse(cls, value):
        _, _, source, transaction, size, checksum = value.decode().split()
        return cls(int(source), transaction, int(size), int(checksum))


def transaction_name(program, life, number):
    """A program has one transactional id in all its lives, each of which fences those before."""
    return f"{program}-{life}-{number}"


def checksum(value):
    return zlib.crc32(value)


@dataclass
class Partition:
    """One partition at the end, as readers of committed records see it."""

    committed: int = 0
    source: dict = field(default_factory=dict)
    output: list = field(default_factory=list)
    # The numbers of the records whose transaction the producer knows to be committed.
    acknowledged: set = field(default_factory=set)


def judge(partitions, aborted):
    """How many things of each kind are wrong; `aborted` are the transactions that were given up."""
    wrong = dict.fromkeys(KINDS, 0)
    sizes, seen = {}, {}
    for partition in partitions:
        copies, newest, newest_lives = {}, -1, {}
        for copy in partition.output:
            copies[copy.source] = copies.get(copy.source, 0) + 1
            wrong["duplicated"] += copies[copy.source] > 1
            wrong["out_of_order"] += copies[copy.source] == 1 and copy.source < newest
            newest = max(newest, copy.source)
            program, life = copy.writer
            newest_lives[program] = max(life, newest_lives.get(program, life))
            wrong["zombie_writes"] += life < newest_lives[program]
            wrong["aborted_reads"] += copy.transaction in aborted
            wrong["output_without_offsets"] += copy.source >= partition.committed
            if copy.source < partition.committed:
                wrong["altered"] += checksum(partition.source.get(copy.source, b"")) != copy.checksum
            sizes[copy.transaction] = copy.size
            seen[copy.transaction] = seen.get(copy.transaction, 0) + 1
        wrong["offsets_without_output"] += sum(
            1 for offset in partition.source if offset < partition.committed and offset not in copies
        )
        wrong["lost"] += sum(1 for source in partition.acknowledged if source not in copies)
    wrong["torn"] = sum(1 for transaction, size in sizes.items() if seen[transaction] < size)
    return wrong
