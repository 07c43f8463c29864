//! The fuzz bodies of `/fuzz`, each over a bounded number of inputs from a fixed seed:
//! see `fuzz/src/runner.rs` for the two environment variables that change that.

#![expect(
    unreachable_pub,
    reason = "the modules below are public in the fuzz crate, which they belong to"
)]

#[path = "../../../fuzz/src/protocol.rs"]
mod protocol;
#[path = "../../../fuzz/src/runner.rs"]
mod runner;

#[test]
fn no_request_breaks_a_promise() {
    let corpus = [protocol::requests(), protocol::produce_requests()].concat();
    runner::run("frame", 200_000, &corpus, protocol::request);
}

#[test]
fn no_answer_breaks_a_promise() {
    runner::run("answer", 200_000, &protocol::answers(), protocol::answer);
}

#[test]
fn no_record_batch_breaks_a_promise() {
    let batches = protocol::record_batches();
    let corpus = [batches.clone(), vec![batches.concat()]].concat();
    runner::run("record_batch", 20_000, &corpus, protocol::record_batch);
}

#[test]
fn no_compressed_payload_breaks_a_promise() {
    runner::run(
        "decompress",
        20_000,
        &protocol::compressed_payloads(),
        protocol::decompress,
    );
}
