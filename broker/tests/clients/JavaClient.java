import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Optional;
import java.util.Set;
import java.util.concurrent.ExecutionException;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.AlterConfigOp;
import org.apache.kafka.clients.admin.Config;
import org.apache.kafka.clients.admin.ConfigEntry;
import org.apache.kafka.clients.admin.ConsumerGroupDescription;
import org.apache.kafka.clients.admin.NewPartitions;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.clients.admin.OffsetSpec;
import org.apache.kafka.clients.admin.RecordsToDelete;
import org.apache.kafka.clients.admin.TopicDescription;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.consumer.OffsetAndMetadata;
import org.apache.kafka.clients.consumer.SubscriptionPattern;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.clients.producer.RecordMetadata;
import org.apache.kafka.common.GroupState;
import org.apache.kafka.common.GroupType;
import org.apache.kafka.common.TopicCollection;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.Uuid;
import org.apache.kafka.common.config.ConfigResource;
import org.apache.kafka.common.errors.InvalidRegularExpression;
import org.apache.kafka.common.errors.ProducerFencedException;
import org.apache.kafka.common.errors.TopicExistsException;
import org.apache.kafka.common.errors.UnknownTopicOrPartitionException;
import org.apache.kafka.common.header.Header;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.ByteArraySerializer;

/** What Kafka's Java client does with a broker: one method a test, chosen by the first argument. */
public class JavaClient {
  private static final Duration POLL = Duration.ofMillis(100);
  private static final long DEADLINE_MS = 30_000;

  private final String bootstrap;
  private final String name;

  private JavaClient(String bootstrap, String name) {
    this.bootstrap = bootstrap;
    this.name = name;
  }

  /** Arguments: scenario, bootstrap servers, a name for topics and groups. */
  public static void main(String[] arguments) throws Exception {
    JavaClient client = new JavaClient(arguments[1], arguments[2]);
    switch (arguments[0]) {
      case "codecs" -> client.codecs();
      case "positions" -> client.positions();
      case "cooperative" -> client.cooperative();
      case "consumerProtocol" -> client.consumerProtocol();
      case "administration" -> client.administration();
      case "transactions" -> client.transactions();
      case "pipeline" -> client.pipeline();
      default -> throw new IllegalArgumentException(arguments[0]);
    }
  }

  /** Every codec, with keys, headers, tombstones and partitions, through an idempotent producer. */
  private void codecs() throws Exception {
    try (Admin admin = admin()) {
      admin.createTopics(List.of(new NewTopic(name, 3, (short) 1))).all().get();
    }
    Map<TopicPartition, List<ProducerRecord<byte[], byte[]>>> sent = new HashMap<>();
    for (String codec : List.of("none", "gzip", "snappy", "lz4", "zstd")) {
      try (KafkaProducer<byte[], byte[]> producer = producer(Map.of("compression.type", codec))) {
        List<java.util.concurrent.Future<RecordMetadata>> acks = new ArrayList<>();
        for (int i = 0; i < 300; i++) {
          int partition = i % 3;
          ProducerRecord<byte[], byte[]> record =
              new ProducerRecord<>(
                  name,
                  partition,
                  1_600_000_000_000L + i,
                  i % 5 == 0 ? null : bytes(codec + "-key-" + i),
                  i % 7 == 0 ? null : bytes((codec + "-value-" + i + " ").repeat(1 + i % 40)));
          record.headers().add("codec", bytes(codec)).add("nothing", null);
          sent.computeIfAbsent(new TopicPartition(name, partition), p -> new ArrayList<>())
              .add(record);
          acks.add(producer.send(record));
        }
        for (java.util.concurrent.Future<RecordMetadata> ack : acks) {
          expect(ack.get().hasOffset(), "an acknowledgement has an offset");
        }
      }
    }
    try (KafkaConsumer<byte[], byte[]> consumer = consumer(Map.of("check.crcs", "true"))) {
      consumer.assign(sent.keySet());
      consumer.seekToBeginning(sent.keySet());
      Map<TopicPartition, List<ConsumerRecord<byte[], byte[]>>> got = read(consumer, 1500);
      for (TopicPartition partition : sent.keySet()) {
        List<ProducerRecord<byte[], byte[]>> expected = sent.get(partition);
        for (int i = 0; i < expected.size(); i++) {
          ProducerRecord<byte[], byte[]> in = expected.get(i);
          ConsumerRecord<byte[], byte[]> out = got.get(partition).get(i);
          expectEqual(out.offset(), (long) i, "offset");
          expectEqual(out.timestamp(), in.timestamp(), "timestamp");
          expect(Arrays.equals(out.key(), in.key()), "key " + out);
          expect(Arrays.equals(out.value(), in.value()), "value " + out);
          Header[] headers = out.headers().toArray();
          expectEqual(headers.length, 2, "headers");
          expect(
              Arrays.equals(headers[0].value(), in.headers().lastHeader("codec").value()),
              "header");
          expect(headers[1].value() == null, "a header without a value");
        }
      }
    }
  }

  /** Seeks, offsets by time, begin and end offsets, committed offsets with metadata. */
  private void positions() throws Exception {
    TopicPartition partition = new TopicPartition(name, 0);
    try (Admin admin = admin()) {
      admin.createTopics(List.of(new NewTopic(name, 1, (short) 1))).all().get();
    }
    long start = System.currentTimeMillis() - 1_000_000;
    try (KafkaProducer<byte[], byte[]> producer = producer(Map.of())) {
      for (int i = 0; i < 100; i++) {
        producer.send(new ProducerRecord<>(name, 0, start + i * 10L, null, bytes("" + i)));
      }
    }
    try (KafkaConsumer<byte[], byte[]> consumer = consumer(Map.of("group.id", name))) {
      consumer.assign(List.of(partition));
      expectEqual(consumer.beginningOffsets(List.of(partition)).get(partition), 0L, "beginning");
      expectEqual(consumer.endOffsets(List.of(partition)).get(partition), 100L, "end");
      expectEqual(
          consumer.offsetsForTimes(Map.of(partition, start + 495)).get(partition).offset(),
          50L,
          "the first record at or after a time");
      expect(
          consumer.offsetsForTimes(Map.of(partition, start + 1_000_000)).get(partition) == null,
          "no record after the last");
      consumer.seek(partition, 42);
      expectEqual(read(consumer, 58).get(partition).get(0).offset(), 42L, "after a seek");
      expectEqual(consumer.position(partition), 100L, "position at the end");
      consumer.seekToBeginning(List.of(partition));
      expectEqual(consumer.position(partition), 0L, "position at the beginning");
      consumer.commitSync(
          Map.of(partition, new OffsetAndMetadata(7, Optional.of(0), "where I was")));
      OffsetAndMetadata committed = consumer.committed(Set.of(partition)).get(partition);
      expectEqual(committed.offset(), 7L, "committed offset");
      expectEqual(committed.metadata(), "where I was", "committed metadata");
      expect(
          consumer.partitionsFor(name).stream().allMatch(p -> p.leader() != null), "leaders known");
    }
    // The committed offset is where a new member of the group begins.
    try (KafkaConsumer<byte[], byte[]> consumer = consumer(Map.of("group.id", name))) {
      consumer.subscribe(List.of(name));
      expectEqual(read(consumer, 93).get(partition).get(0).offset(), 7L, "resumed");
    }
  }

  /** Two cooperative members share a topic; when one leaves, the other takes over. */
  private void cooperative() throws Exception {
    try (Admin admin = admin()) {
      admin.createTopics(List.of(new NewTopic(name, 4, (short) 1))).all().get();
    }
    Map<String, Object> settings =
        Map.of(
            "group.id",
            name,
            "partition.assignment.strategy",
            "org.apache.kafka.clients.consumer.CooperativeStickyAssignor",
            "heartbeat.interval.ms",
            "300");
    try (KafkaConsumer<byte[], byte[]> first = consumer(settings)) {
      first.subscribe(List.of(name));
      until(() -> first.assignment().size() == 4, "one member has all partitions", first);
      try (KafkaConsumer<byte[], byte[]> second = consumer(settings)) {
        second.subscribe(List.of(name));
        until(
            () -> first.assignment().size() == 2 && second.assignment().size() == 2,
            "two members have two partitions each",
            first,
            second);
        Set<TopicPartition> all = new HashSet<>(first.assignment());
        all.addAll(second.assignment());
        expectEqual(all.size(), 4, "partitions assigned");
      }
      until(() -> first.assignment().size() == 4, "the one that stayed has all again", first);
    }
  }

  /** Two members that the coordinator assigns to (KIP-848); one subscribes by a pattern. */
  private void consumerProtocol() throws Exception {
    try (Admin admin = admin()) {
      admin.createTopics(List.of(new NewTopic(name, 4, (short) 1))).all().get();
    }
    try (KafkaProducer<byte[], byte[]> producer = producer(Map.of())) {
      for (int i = 0; i < 100; i++) {
        producer.send(new ProducerRecord<>(name, i % 4, null, bytes("" + i)));
      }
    }
    Map<String, Object> settings = Map.of("group.id", name, "group.protocol", "consumer");
    try (KafkaConsumer<byte[], byte[]> first = consumer(settings)) {
      first.subscribe(new SubscriptionPattern(name.substring(0, name.length() - 1) + ".*"));
      read(first, 100);
      expectEqual(first.assignment().size(), 4, "partitions of one member");
      first.commitSync();
      try (KafkaConsumer<byte[], byte[]> second = consumer(settings)) {
        second.subscribe(List.of(name));
        until(
            () -> first.assignment().size() == 2 && second.assignment().size() == 2,
            "two members have two partitions each",
            first,
            second);
        Set<TopicPartition> all = new HashSet<>(first.assignment());
        all.addAll(second.assignment());
        expectEqual(all.size(), 4, "partitions assigned");
        for (TopicPartition partition : second.assignment()) {
          expectEqual(second.position(partition), 25L, "where the first had come to");
        }
      }
      until(() -> first.assignment().size() == 4, "the one that stayed has all again", first);
      // The broker's expressions look neither ahead nor back, so that matching takes linear time.
      try (KafkaConsumer<byte[], byte[]> wrong = consumer(settings)) {
        wrong.subscribe(new SubscriptionPattern("(?=t).*"));
        try {
          until(() -> false, "an error", wrong);
        } catch (InvalidRegularExpression expected) {
          expect(expected.getMessage().contains("(?=t).*"), expected.getMessage());
        }
      }
      try (Admin admin = admin()) {
        ConsumerGroupDescription group =
            admin.describeConsumerGroups(List.of(name)).all().get().get(name);
        expectEqual(group.type(), GroupType.CONSUMER, "type");
        expectEqual(group.groupState(), GroupState.STABLE, "state");
        expectEqual(group.members().size(), 1, "members");
        expectEqual(
            group.members().iterator().next().assignment().topicPartitions().size(),
            4,
            "partitions described");
      }
    }
  }

  private void administration() throws Exception {
    ConfigResource topic = new ConfigResource(ConfigResource.Type.TOPIC, name);
    TopicPartition partition = new TopicPartition(name, 0);
    try (Admin admin = admin()) {
      expectEqual(admin.describeCluster().nodes().get().size(), 1, "brokers");
      expect(admin.describeCluster().clusterId().get() != null, "cluster id");
      Uuid id =
          admin
              .createTopics(
                  List.of(
                      new NewTopic(name, Optional.of(2), Optional.empty())
                          .configs(Map.of("retention.ms", "123456"))))
              .topicId(name)
              .get();
      expectFailure(
          TopicExistsException.class,
          () -> admin.createTopics(List.of(new NewTopic(name, 1, (short) 1))).all().get());
      TopicDescription description =
          admin.describeTopics(List.of(name)).allTopicNames().get().get(name);
      expectEqual(description.topicId(), id, "topic id");
      expectEqual(description.partitions().size(), 2, "partitions");
      expectEqual(
          admin
              .describeTopics(TopicCollection.ofTopicIds(List.of(id)))
              .allTopicIds()
              .get()
              .get(id)
              .name(),
          name,
          "described by id");

      admin.createPartitions(Map.of(name, NewPartitions.increaseTo(3))).all().get();
      expectEqual(
          admin.describeTopics(List.of(name)).allTopicNames().get().get(name).partitions().size(),
          3,
          "partitions after growing");

      admin
          .incrementalAlterConfigs(
              Map.of(
                  topic,
                  List.of(
                      new AlterConfigOp(
                          new ConfigEntry("cleanup.policy", "delete"), AlterConfigOp.OpType.APPEND),
                      new AlterConfigOp(
                          new ConfigEntry("retention.ms", null), AlterConfigOp.OpType.DELETE))))
          .all()
          .get();
      Config config = admin.describeConfigs(List.of(topic)).all().get().get(topic);
      expectEqual(config.get("cleanup.policy").value(), "delete", "appended config");
      expectEqual(
          config.get("cleanup.policy").source(),
          ConfigEntry.ConfigSource.DYNAMIC_TOPIC_CONFIG,
          "source of a topic's config");
      expectEqual(config.get("retention.ms").value(), "604800000", "config back at its default");

      try (KafkaProducer<byte[], byte[]> producer = producer(Map.of())) {
        for (int i = 0; i < 10; i++) {
          producer.send(new ProducerRecord<>(name, 0, 1000L + (i * 7) % 10, bytes("k"), bytes("v")));
        }
      }
      expectEqual(offset(admin, partition, OffsetSpec.latest()), 10L, "latest");
      expectEqual(offset(admin, partition, OffsetSpec.maxTimestamp()), 7L, "max timestamp");
      expectEqual(
          admin
              .deleteRecords(Map.of(partition, RecordsToDelete.beforeOffset(4)))
              .lowWatermarks()
              .get(partition)
              .get()
              .lowWatermark(),
          4L,
          "low watermark");
      expectEqual(offset(admin, partition, OffsetSpec.earliest()), 4L, "earliest");
      expect(
          admin.describeLogDirs(List.of(description.partitions().get(0).leader().id()))
              .allDescriptions().get().values().iterator().next().values().stream()
              .anyMatch(dir -> dir.replicaInfos().get(partition).size() > 0),
          "size of a log");

      admin
          .alterConsumerGroupOffsets(name, Map.of(partition, new OffsetAndMetadata(5)))
          .all()
          .get();
      expectEqual(
          admin
              .listConsumerGroupOffsets(name)
              .partitionsToOffsetAndMetadata()
              .get()
              .get(partition)
              .offset(),
          5L,
          "offset set by an administrator");
      expect(
          admin.listGroups().all().get().stream().anyMatch(g -> g.groupId().equals(name)),
          "group listed");
      admin.deleteConsumerGroupOffsets(name, Set.of(partition)).all().get();
      admin.deleteConsumerGroups(List.of(name)).all().get();

      admin.deleteTopics(TopicCollection.ofTopicIds(List.of(id))).all().get();
      expectFailure(
          UnknownTopicOrPartitionException.class,
          () -> admin.describeTopics(List.of(name)).allTopicNames().get());
    }
  }

  private static long offset(Admin admin, TopicPartition partition, OffsetSpec spec)
      throws Exception {
    return admin.listOffsets(Map.of(partition, spec)).partitionResult(partition).get().offset();
  }

  private Map<TopicPartition, List<ConsumerRecord<byte[], byte[]>>> read(
      KafkaConsumer<byte[], byte[]> consumer, int count) {
    Map<TopicPartition, List<ConsumerRecord<byte[], byte[]>>> got = new HashMap<>();
    int[] seen = {0};
    long end = System.currentTimeMillis() + DEADLINE_MS;
    while (seen[0] < count) {
      expect(System.currentTimeMillis() < end, "only " + seen[0] + " of " + count + " records");
      for (ConsumerRecord<byte[], byte[]> record : consumer.poll(POLL)) {
        seen[0]++;
        got.computeIfAbsent(
                new TopicPartition(record.topic(), record.partition()), p -> new ArrayList<>())
            .add(record);
      }
    }
    if (seen[0] != count) {
      throw new AssertionError("too many records: " + shown(got));
    }
    return got;
  }

  private static String shown(Map<TopicPartition, List<ConsumerRecord<byte[], byte[]>>> got) {
    StringBuilder text = new StringBuilder();
    got.forEach(
        (partition, records) -> {
          text.append(partition).append(':');
          for (ConsumerRecord<byte[], byte[]> record : records) {
            byte[] value = record.value();
            String shown = value == null ? "null" : new String(value, StandardCharsets.UTF_8);
            text.append(' ').append(record.offset()).append('=').append(shown);
          }
          text.append('\n');
        });
    return text.toString();
  }

  /** Commits, aborts and a zombie: readers of committed records see the first and no other. */
  private void transactions() throws Exception {
    try (Admin admin = admin()) {
      admin.createTopics(List.of(new NewTopic(name, 2, (short) 1))).all().get();
    }
    List<String> committed = new ArrayList<>();
    try (KafkaProducer<byte[], byte[]> zombie = transactional()) {
      zombie.initTransactions();
      for (int i = 0; i < 30; i++) {
        zombie.beginTransaction();
        for (int partition = 0; partition < 2; partition++) {
          zombie.send(new ProducerRecord<>(name, partition, null, bytes("" + i)));
        }
        if (i % 3 == 0) {
          // Without it this client at times keeps the record, when its abort overtakes the first
          // request for it, and writes it with the next transaction: docs/BUGS.md.
          zombie.flush();
          zombie.abortTransaction();
        } else {
          zombie.commitTransaction();
          committed.add("" + i);
        }
      }
      zombie.beginTransaction();
      zombie.send(new ProducerRecord<>(name, 0, null, bytes("zombie"))).get();
      try (KafkaProducer<byte[], byte[]> alive = transactional()) {
        alive.initTransactions();
        alive.beginTransaction();
        for (int partition = 0; partition < 2; partition++) {
          alive.send(new ProducerRecord<>(name, partition, null, bytes("alive")));
        }
        try {
          zombie.commitTransaction();
          throw new AssertionError("a zombie has committed");
        } catch (ProducerFencedException fenced) {
          // As it should be.
        }
        alive.commitTransaction();
        committed.add("alive");
      }
    }
    for (int partition = 0; partition < 2; partition++) {
      expectEqual(committedValues(partition, committed.size()), committed, "committed records");
    }
  }

  /** Reads, writes and commits its offsets in one transaction, and is interrupted now and then. */
  private void pipeline() throws Exception {
    String output = name + "-out";
    int count = 100;
    List<String> expected = new ArrayList<>();
    try (Admin admin = admin()) {
      admin
          .createTopics(
              List.of(new NewTopic(name, 1, (short) 1), new NewTopic(output, 1, (short) 1)))
          .all()
          .get();
    }
    try (KafkaProducer<byte[], byte[]> producer = producer(Map.of())) {
      for (int i = 0; i < count; i++) {
        producer.send(new ProducerRecord<>(name, 0, null, bytes("" + i)));
        expected.add("done-" + i);
      }
    }
    TopicPartition input = new TopicPartition(name, 0);
    Map<String, Object> settings =
        Map.of("group.id", name, "max.poll.records", 7, "isolation.level", "read_committed");
    try (KafkaProducer<byte[], byte[]> producer = transactional();
        KafkaConsumer<byte[], byte[]> consumer = consumer(settings)) {
      producer.initTransactions();
      consumer.subscribe(List.of(name));
      long end = System.currentTimeMillis() + DEADLINE_MS;
      long done = 0;
      for (int round = 0; done < count; round++) {
        expect(System.currentTimeMillis() < end, "the pipeline is through, not at " + done);
        var records = consumer.poll(POLL);
        if (records.isEmpty()) {
          continue;
        }
        producer.beginTransaction();
        long next = done;
        for (ConsumerRecord<byte[], byte[]> record : records) {
          String value = "done-" + new String(record.value(), StandardCharsets.UTF_8);
          producer.send(new ProducerRecord<>(output, 0, null, bytes(value)));
          next = record.offset() + 1;
        }
        producer.sendOffsetsToTransaction(
            Map.of(input, new OffsetAndMetadata(next)), consumer.groupMetadata());
        if (round % 3 == 1) {
          producer.abortTransaction();
          OffsetAndMetadata kept = consumer.committed(Set.of(input)).get(input);
          expectEqual(kept == null ? 0 : kept.offset(), done, "the offset before the abort");
          consumer.seek(input, done);
        } else {
          producer.commitTransaction();
          done = next;
        }
      }
    }
    expectEqual(committedValues(output, 0, count), expected, "each input counts once");
  }

  private List<String> committedValues(int partition, int count) {
    return committedValues(name, partition, count);
  }

  private List<String> committedValues(String topic, int partition, int count) {
    TopicPartition from = new TopicPartition(topic, partition);
    List<String> values = new ArrayList<>();
    try (KafkaConsumer<byte[], byte[]> consumer =
        consumer(Map.of("isolation.level", "read_committed"))) {
      consumer.assign(List.of(from));
      consumer.seekToBeginning(List.of(from));
      for (ConsumerRecord<byte[], byte[]> record : read(consumer, count).get(from)) {
        values.add(new String(record.value(), StandardCharsets.UTF_8));
      }
      expect(consumer.poll(POLL).isEmpty(), "nothing else is committed");
    }
    return values;
  }

  private KafkaProducer<byte[], byte[]> transactional() {
    return producer(Map.of("transactional.id", name + "-id", "max.block.ms", 20_000));
  }

  @SafeVarargs
  private static void until(
      java.util.function.BooleanSupplier condition,
      String what,
      KafkaConsumer<byte[], byte[]>... consumers) {
    long end = System.currentTimeMillis() + DEADLINE_MS;
    while (!condition.getAsBoolean()) {
      expect(System.currentTimeMillis() < end, what);
      for (KafkaConsumer<byte[], byte[]> consumer : consumers) {
        consumer.poll(POLL);
      }
    }
  }

  private Admin admin() {
    return Admin.create(Map.of("bootstrap.servers", bootstrap, "default.api.timeout.ms", 30_000));
  }

  private KafkaProducer<byte[], byte[]> producer(Map<String, Object> more) {
    Map<String, Object> settings = new HashMap<>(more);
    settings.put("bootstrap.servers", bootstrap);
    settings.put("linger.ms", 5);
    return new KafkaProducer<>(settings, new ByteArraySerializer(), new ByteArraySerializer());
  }

  private KafkaConsumer<byte[], byte[]> consumer(Map<String, Object> more) {
    Map<String, Object> settings = new HashMap<>(more);
    settings.put("bootstrap.servers", bootstrap);
    settings.put("auto.offset.reset", "earliest");
    settings.put("enable.auto.commit", false);
    return new KafkaConsumer<>(
        settings, new ByteArrayDeserializer(), new ByteArrayDeserializer());
  }

  private interface Call {
    void run() throws Exception;
  }

  private static void expectFailure(Class<? extends Exception> expected, Call call)
      throws Exception {
    try {
      call.run();
    } catch (ExecutionException failure) {
      expect(expected.isInstance(failure.getCause()), "expected " + expected + ", got " + failure);
      return;
    }
    throw new AssertionError("expected " + expected);
  }

  private static void expectEqual(Object actual, Object expected, String what) {
    expect(Objects.equals(actual, expected), what + ": " + actual + ", expected " + expected);
  }

  private static void expect(boolean condition, String what) {
    if (!condition) {
      throw new AssertionError(what);
    }
  }

  private static byte[] bytes(String text) {
    return text.getBytes(StandardCharsets.UTF_8);
  }
}
