//! The topics that brokers keep for themselves.

use yuxi_controller::settings::ServerSettings;

/// Where groups commit their offsets.
pub(crate) const CONSUMER_OFFSETS: &str = "__consumer_offsets";
/// Where transactions are kept. Reserved: nobody else may have a topic of this name.
pub(crate) const TRANSACTION_STATE: &str = "__transaction_state";

/// Whether clients see the topic marked as internal and may not write it.
pub(crate) fn is_internal(topic: &str) -> bool {
    matches!(topic, CONSUMER_OFFSETS | TRANSACTION_STATE)
}

/// How [`CONSUMER_OFFSETS`] is made.
pub(crate) fn consumer_offsets_configs(settings: &ServerSettings) -> Vec<(String, Option<String>)> {
    let config = |name: &str, value: String| (name.to_owned(), Some(value));
    vec![
        config("cleanup.policy", "compact".to_owned()),
        config("compression.type", "producer".to_owned()),
        config(
            "segment.bytes",
            settings.offsets_topic_segment_bytes.to_string(),
        ),
    ]
}
