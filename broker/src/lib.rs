//! The Yuxi broker: Kafka protocol server over mapped logs
