"""Kafka's own command-line tools, and its Java client."""

import re

import pytest

from daemon import wait_until


@pytest.mark.parametrize("scenario", ["codecs", "positions", "cooperative", "administration"])
def test_the_java_client(jvm, broker, name, scenario):
    jvm.run("client", scenario, broker.bootstrap, name)


def test_topics_are_created_listed_described_altered_and_deleted(tools, name):
    out = tools("topics", "--create", "--topic", name, "--partitions", 2, "--config", "max.message.bytes=65536")
    assert f"Created topic {name}" in out
    assert name in tools("topics", "--list").splitlines()
    described = tools("topics", "--describe", "--topic", name)
    assert re.search(r"PartitionCount: 2\s+ReplicationFactor: 1\s+Configs: .*max\.message\.bytes=65536", described)
    assert len(re.findall(r"Partition: \d+\s+Leader: \d+\s+Replicas: \d+\s+Isr: \d+", described)) == 2
    tools("topics", "--alter", "--topic", name, "--partitions", 4)
    assert "PartitionCount: 4" in tools("topics", "--describe", "--topic", name)
    tools("topics", "--delete", "--topic", name)
    assert name not in tools("topics", "--list").splitlines()


def test_refusals_say_what_is_wrong(jvm, broker, name):
    def refusal(*arguments):
        code, out, err = jvm.run("topics", "--bootstrap-server", broker.bootstrap, *arguments, check=False)
        assert code == 1
        return out + err

    jvm.run("topics", "--bootstrap-server", broker.bootstrap, "--create", "--topic", name, "--partitions", 3)
    assert "already exists" in refusal("--create", "--topic", name)
    assert "InvalidReplicationFactorException" in refusal("--create", "--topic", name + "-r", "--replication-factor", 3)
    assert "InvalidPartitionsException" in refusal("--alter", "--topic", name, "--partitions", 2)
    assert "Invalid value -5 for configuration retention.ms" in refusal("--create", "--topic", name + "-c", "--config", "retention.ms=-5")


def test_configs_of_topics_and_brokers(tools, kcat, name):
    tools("topics", "--create", "--topic", name)
    alter = ["configs", "--alter", "--entity-type", "topics", "--entity-name", name]
    tools(*alter, "--add-config", "retention.ms=86400000,compression.type=zstd")
    described = tools("configs", "--describe", "--entity-type", "topics", "--entity-name", name)
    assert "retention.ms=86400000" in described and "DYNAMIC_TOPIC_CONFIG:retention.ms=86400000" in described
    assert "compression.type=zstd" in described
    tools(*alter, "--delete-config", "retention.ms")
    described = tools("configs", "--describe", "--entity-type", "topics", "--entity-name", name)
    assert "retention.ms" not in described and "compression.type" in described
    everything = tools("configs", "--describe", "--all", "--entity-type", "topics", "--entity-name", name)
    for setting in ("retention.ms=604800000", "segment.bytes=1073741824", "min.insync.replicas=1"):
        assert setting in everything

    # A broker's own setting, while it runs.
    me = kcat.metadata()["brokers"][0]["id"]
    brokers = ["configs", "--entity-type", "brokers", "--entity-name", me]
    tools(*brokers, "--alter", "--add-config", "message.max.bytes=2000000")
    shown = lambda: f"message.max.bytes=2000000" in tools(*brokers, "--describe")  # noqa: E731, F541
    wait_until(shown, "the broker shows its dynamic config")
    tools(*brokers, "--alter", "--delete-config", "message.max.bytes")
    wait_until(lambda: not shown(), "the dynamic config is gone")


def test_console_producer_and_consumer(tools, name):
    lines = "".join(f"key-{i}\tvalue {i} ä\n" for i in range(500))
    tools("topics", "--create", "--topic", name)
    tools(
        "console-producer", "--topic", name, "--reader-property", "parse.key=true", "--compression-codec", "zstd",
        stdin=lines.encode(),
    )  # fmt: skip
    out = tools(
        "console-consumer", "--topic", name, "--from-beginning", "--max-messages", 500, "--timeout-ms", 20000,
        "--formatter-property", "print.key=true", "--group", name,
    )  # fmt: skip
    assert out == lines


def test_the_perf_tools_run_through(tools, jvm, broker, name):
    tools("topics", "--create", "--topic", name, "--partitions", 2)
    out = jvm.out(
        "producer-perf-test", "--topic", name, "--num-records", 50000, "--record-size", 200, "--throughput", -1,
        "--producer-props", f"bootstrap.servers={broker.bootstrap}", "acks=all", "compression.type=lz4",
    )  # fmt: skip
    assert re.search(r"50000 records sent", out)
    out = tools("consumer-perf-test", "--topic", name, "--messages", 50000, "--timeout", 20000)
    assert out.splitlines()[-1].split(", ")[4] == "50000"


def test_get_offsets_and_delete_records(tools, kcat, name, tmp_path):
    tools("topics", "--create", "--topic", name, "--partitions", 2)
    kcat.produce(name, b"x\n" * 10, "-p", 0)
    kcat.produce(name, b"y\n" * 4, "-p", 1)
    assert tools("get-offsets", "--topic", name).split() == [f"{name}:0:10", f"{name}:1:4"]
    plan = tmp_path / "delete.json"
    plan.write_text(f'{{"partitions": [{{"topic": "{name}", "partition": 0, "offset": 7}}], "version": 1}}')
    assert re.search(r"low_watermark: 7", tools("delete-records", "--offset-json-file", plan))
    assert tools("get-offsets", "--topic", name, "--time", "earliest").split() == [f"{name}:0:7", f"{name}:1:0"]
    assert kcat.consume(name, "-p", 0, "-o", "beginning", "-f", "%o ") == b"7 8 9 "


def test_groups_are_listed_described_reset_and_deleted(tools, kcat, name):
    kcat.produce(name, b"x\n" * 30)
    kcat.run("-G", name, "-q", "-c", "20", "-X", "auto.offset.reset=earliest", name)
    assert name in tools("consumer-groups", "--list").splitlines()

    def described():
        out = tools("consumer-groups", "--describe", "--group", name)
        row = next(line.split() for line in out.splitlines() if line.startswith(name))
        return row[1:6]

    assert described() == [name, "0", "20", "30", "10"]
    assert re.search(rf"{name}\s.*Empty\s+0", tools("consumer-groups", "--describe", "--group", name, "--state"))
    reset = ["consumer-groups", "--reset-offsets", "--group", name, "--topic", name]
    tools(*reset, "--to-offset", 5, "--dry-run")
    assert described()[2] == "20"
    for how, expected in ((["--to-earliest"], "0"), (["--to-latest"], "30"), (["--shift-by", "-3"], "27"),
                          (["--to-datetime", "2020-01-01T00:00:00.000"], "0"), (["--to-offset", "11"], "11")):  # fmt: skip
        tools(*reset, *how, "--execute")
        assert described()[2] == expected, how
    assert kcat.run("-G", name, "-q", "-e", "-f", "%o ", name).stdout.split()[0] == b"11"
    assert "Successful" in tools("consumer-groups", "--delete-offsets", "--group", name, "--topic", name)
    tools("consumer-groups", "--delete", "--group", name)
    assert name not in tools("consumer-groups", "--list").splitlines()


def test_log_dirs_shows_the_size_of_each_replica(tools, kcat, name):
    kcat.produce(name, b"x" * 1000 + b"\n")
    out = tools("log-dirs", "--describe", "--topic-list", name)
    size = re.search(rf'"partition":"{name}-0","size":(\d+)', out)
    assert size and int(size[1]) > 1000, out


def test_broker_api_versions_finds_no_unknown_or_broken_api(tools, broker):
    out = tools("api-versions")
    assert f"{broker.bootstrap} (id: " in out
    for api in ("Produce(0)", "Fetch(1)", "ListOffsets(2)", "Metadata(3)", "OffsetCommit(8)", "JoinGroup(11)",
                "CreateTopics(19)", "InitProducerId(22)", "DescribeConfigs(32)", "IncrementalAlterConfigs(44)"):  # fmt: skip
        assert re.search(rf"{re.escape(api)}: [0-9]+.* \[usable: \d+\]", out), api
    assert not re.search(r"UNKNOWN", out)
