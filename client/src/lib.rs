//! Kafka client: connection, producer, consumer, admin, and the yuxi command line
