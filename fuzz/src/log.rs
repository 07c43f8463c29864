//! A segment of any bytes is opened after a crash: recovery keeps what is whole, refuses or
//! cuts the rest, and what it keeps can be read to the end.

use yuxi_log::{Log, LogConfig, Opening};
use yuxi_protocol::{ids::Offset, record::RecordBatchBuilder};

/// Segments as a broker writes them, to begin with.
pub fn segments() -> Vec<Vec<u8>> {
    let batch = |base: i64, records: i64| {
        let mut builder = RecordBatchBuilder::new().placed_at(Offset::new(base), 0.into());
        for at in 0..records {
            let value = at.to_be_bytes();
            builder
                .append(1_700_000_000_000 + at, Some(b"key"), Some(&value), &[])
                .expect("a small record");
        }
        builder.build().expect("a small batch").to_vec()
    };
    vec![
        batch(0, 1),
        [batch(0, 3), batch(3, 2), batch(5, 1)].concat(),
        [batch(0, 100), batch(100, 100)].concat(),
    ]
}

/// Recovers `data` as a log's only segment and reads all that is left of it.
pub fn recovery(data: &[u8]) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    std::fs::write(dir.path().join("00000000000000000000.log"), data).expect("room for a segment");
    let opening = Opening {
        recovery_point: Offset::ZERO,
        clean_shutdown: false,
        log_start_offset: Offset::ZERO,
        topic_id: None,
        now_ms: 0,
    };
    let Ok(log) = Log::open(dir.path(), LogConfig::default(), opening) else {
        return;
    };
    let end = log.log_end_offset();
    let mut at = log.log_start_offset();
    while at < end {
        let read = log
            .read(at, 1 << 20, true, end)
            .expect("what recovery kept can be read");
        let Some(slice) = read.slice else { break };
        for batch in yuxi_protocol::record::batches(slice.as_bytes()) {
            let batch = batch.expect("recovery keeps whole batches only");
            batch
                .check_crc()
                .expect("recovery keeps intact batches only");
            at = batch.header().next_offset();
        }
    }
}
