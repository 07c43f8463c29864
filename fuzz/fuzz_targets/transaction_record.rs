#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| yuxi_coordinator::transactions::fuzz_record(data));
