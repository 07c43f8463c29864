"""Directories and settings a broker must not start with."""

import pytest

import wire
from test_hostile_bytes import ready

pytestmark = pytest.mark.yuxi_only  # Kafka refuses too, in words and codes of its own


def test_two_brokers_can_not_share_a_directory(new_broker):
    first = new_broker()
    second = new_broker(started=False, directory_of=first)
    second.log_path = first.directory / "second.stderr"
    log = second.refuses_to_start()
    assert str(first.data_dir) in log and "lock" in log.lower()
    with wire.Connection(first) as c:
        ready(c, "t")
        assert wire.produce(c, "t", wire.batch()) == (wire.NONE, 0)


def test_the_lock_of_a_killed_broker_holds_nobody_up(new_broker):
    broker = new_broker()
    broker.kill()
    broker.start()
    with wire.Connection(broker) as c:
        ready(c, "t")


def rewrite(broker, key, value):
    path = broker.data_dir / "meta.properties"
    lines = [line for line in path.read_text().splitlines() if not line.startswith(key + "=")]
    assert len(lines) < len(path.read_text().splitlines()), f"no {key} in {path}"
    path.write_text("\n".join([*lines, f"{key}={value}", ""]))


@pytest.mark.parametrize(("key", "value"), [("node.id", "77"), ("cluster.id", "AAAAAAAAAAAAAAAAAAAAAA")])
def test_the_directory_of_another_node_or_cluster_is_refused(new_broker, key, value):
    broker = new_broker()
    with wire.Connection(broker) as c:
        ready(c, "t")
    broker.stop()
    before = (broker.data_dir / "meta.properties").read_text()
    rewrite(broker, key, value)
    broker.log_path.write_text("")
    assert value in broker.refuses_to_start()
    (broker.data_dir / "meta.properties").write_text(before)
    broker.start()
    with wire.Connection(broker) as c:
        assert wire.fetch(c, "t")[0] == wire.NONE


def test_a_broken_meta_properties_is_refused(new_broker):
    broker = new_broker()
    broker.stop()
    (broker.data_dir / "meta.properties").write_bytes(b"\xff\xfe nonsense")
    broker.log_path.write_text("")
    assert "meta.properties" in broker.refuses_to_start()


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        (("log.retention.minute", "5"), "log.retention.minutes"),
        (("num.partitons", "5"), "num.partitions"),
        (("num.partitions", "many"), "num.partitions"),
        (("num.partitions", "0"), "num.partitions"),
        (("log.segment.bytes", "-1"), "log.segment.bytes"),
        (("node.id", "-5"), "node.id"),
        (("log.cleanup.policy", "burn"), "log.cleanup.policy"),
        (("listeners", "nonsense"), "listeners"),
    ],
    ids=lambda value: "=".join(value) if isinstance(value, tuple) else "",
)
def test_a_bad_setting_ends_the_start_with_a_line_that_names_it(new_broker, setting, expected):
    log = new_broker(dict([setting]), started=False).refuses_to_start()
    assert expected in log


def test_a_directory_that_can_not_be_made_is_named(new_broker, tmp_path):
    (tmp_path / "file").write_text("in the way")
    broker = new_broker(started=False)
    broker.data_dir = tmp_path / "file" / "data"
    log = broker.refuses_to_start()
    assert str(broker.data_dir) in log and "log.dirs" in log


def test_a_port_that_is_taken_is_named(new_broker):
    first = new_broker()
    second = new_broker(started=False)
    second.port = first.port
    assert str(first.port) in second.refuses_to_start()
