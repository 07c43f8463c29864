#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| yuxi_fuzz::log::recovery(data));
