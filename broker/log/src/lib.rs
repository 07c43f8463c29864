//! Kafka-format partition logs: segments, indexes, recovery, retention
