"""kcat: what goes in comes out byte for byte, wherever reading begins."""

import random
import signal

import pytest

from daemon import wait_until

CODECS = ["none", "gzip", "snappy", "lz4", "zstd"]


def text(lines, seed=7):
    """Lines of many lengths, some empty of sense but none empty of bytes."""
    rng = random.Random(seed)
    words = [bytes(rng.choices(b"abcdefghijklmnopqrstuvwxyz\xc3\xa9 \t", k=rng.randint(1, 12))) for _ in range(500)]
    return b"".join(b"%d " % i + b" ".join(rng.choices(words, k=rng.randint(1, 30))) + b"\n" for i in range(lines))


@pytest.mark.parametrize("codec", CODECS)
def test_a_text_file_comes_back_byte_for_byte_with_every_codec(kcat, name, codec):
    data = text(20_000)
    kcat.produce(name, data, "-z", codec)
    assert kcat.consume(name, "-o", "beginning") == data


@pytest.mark.parametrize("acks", ["0", "1", "all"])
def test_every_acks_setting_delivers(kcat, name, acks):
    data = text(5_000)
    kcat.metadata("-t", name)
    wait_until(lambda: kcat.metadata("-t", name)["topics"][0]["partitions"], "the topic is there")
    kcat.produce(name, data, "-X", f"topic.acks={acks}")
    end = lambda: kcat.query(name, 0, -1) == 5_000  # noqa: E731
    wait_until(end, "all records are in the log")  # acks=0 tells nobody when
    assert kcat.consume(name, "-o", "beginning") == data


def test_keys_headers_partitions_and_null_values(kcat, tools, name):
    tools("topics", "--create", "--topic", name, "--partitions", 3)
    kcat.produce(name, b"k1:v1\nk2:\nplain\n", "-K:", "-Z", "-p", 2, "-H", "a=1", "-H", "b=x=y")
    printed = kcat.consume(name, "-o", "beginning", "-f", "%p %o %k %S %h\n")
    assert printed == b"2 0 k1 2 a=1,b=x=y\n2 1 k2 -1 a=1,b=x=y\n2 2  5 a=1,b=x=y\n"


def test_a_binary_file_is_one_message(kcat, name, tmp_path):
    data = random.Random(1).randbytes(700_000)
    (tmp_path / "image").write_bytes(data)
    kcat.run("-P", "-t", name, str(tmp_path / "image"))
    assert kcat.consume(name, "-o", "beginning", "-f", "%s") == data


def test_reading_begins_at_the_offset_asked_for(kcat, name):
    kcat.produce(name, b"".join(b"%d\n" % i for i in range(100)))
    assert kcat.consume(name, "-p", 0, "-o", "97") == b"97\n98\n99\n"
    assert kcat.consume(name, "-p", 0, "-o", "-2") == b"98\n99\n"
    assert kcat.consume(name, "-p", 0, "-o", "end") == b""
    assert kcat.consume(name, "-p", 0, "-o", "5", "-c", 2) == b"5\n6\n"
    # Out of range: auto.offset.reset decides, and kcat's default is the end.
    assert kcat.consume(name, "-p", 0, "-o", "1000") == b""


def test_times_find_offsets(kcat, broker, name):
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": broker.bootstrap})
    for i in range(50):
        producer.produce(name, b"%d" % i, partition=0, timestamp=1_700_000_000_000 + i * 1000)
        producer.flush(10)  # a batch each, so that the index has something to find
    assert kcat.query(name, 0, 1_700_000_000_000) == 0
    assert kcat.query(name, 0, 1_700_000_024_500) == 25
    assert kcat.query(name, 0, -2) == 0
    assert kcat.query(name, 0, -1) == 50
    printed = kcat.consume(name, "-p", 0, "-o", "s@1700000010000", "-o", "e@1700000013000", "-f", "%o %T\n")
    assert printed == b"".join(b"%d %d\n" % (i, 1_700_000_000_000 + i * 1000) for i in (10, 11, 12))


def test_metadata_lists_brokers_topics_and_partitions(kcat, broker, tools, name):
    tools("topics", "--create", "--topic", name, "--partitions", 5)
    metadata = kcat.metadata()
    assert [b["name"] for b in metadata["brokers"]] == [broker.bootstrap]
    assert metadata["controllerid"] == metadata["brokers"][0]["id"]
    topic = next(t for t in metadata["topics"] if t["topic"] == name)
    me = metadata["brokers"][0]["id"]
    assert [(p["partition"], p["leader"], p["isrs"]) for p in topic["partitions"]] == [
        (i, me, [{"id": me}]) for i in range(5)
    ]
    human = kcat.run("-L", "-t", name).stdout.decode()
    assert f'topic "{name}" with 5 partitions' in human


def test_a_group_reads_everything_once_and_goes_on_where_it_was(kcat, name):
    data = text(2_000)
    kcat.produce(name, data)
    group = ["-G", name, "-q", "-X", "auto.offset.reset=earliest", "-X", "session.timeout.ms=6000"]
    assert kcat.run(*group, "-c", "1500", name).stdout == b"".join(data.splitlines(True)[:1500])
    assert kcat.run(*group, "-e", name).stdout == b"".join(data.splitlines(True)[1500:])


def test_two_members_share_the_partitions(kcat, tools, name):
    tools("topics", "--create", "--topic", name, "--partitions", 4)
    group = ["-G", name, "-q", "-u", "-f", "%p %s\n", "-X", "auto.offset.reset=earliest", "-X", "heartbeat.interval.ms=200"]
    members = [kcat.start(*group, name) for _ in range(2)]
    try:

        def shared():
            out = tools("consumer-groups", "--describe", "--group", name, "--members", check=False)
            return [line.split()[-1] for line in out.splitlines() if line.startswith(name)] == ["2", "2"]

        wait_until(shared, "each of two members has two partitions", 30)
        sent = {f"{p} message-{i}" for p in range(4) for i in range(20)}
        for p in range(4):
            kcat.produce(name, b"".join(b"message-%d\n" % i for i in range(20)), "-p", p)
        wait_until(lambda: lag(tools, name) == 0, "everything is read and committed", 30)
        for member in members:
            member.send_signal(signal.SIGTERM)
        printed = [set(m.communicate(timeout=20)[0].decode().splitlines()) for m in members]
        assert printed[0] | printed[1] == sent
        assert not printed[0] & printed[1]
        partitions = [{line.split()[0] for line in lines} for lines in printed]
        assert sorted(map(len, partitions)) == [2, 2]
    finally:
        for member in members:
            member.kill()
            member.wait()


def lag(tools, group):
    out = tools("consumer-groups", "--describe", "--group", group, check=False)
    rows = [line.split() for line in out.splitlines() if line.startswith(group)]
    if not rows or any(row[5] == "-" for row in rows):
        return None
    return sum(int(row[5]) for row in rows)
