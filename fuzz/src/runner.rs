//! A small mutating fuzzer without coverage: the same seed gives the same inputs.
//!
//! `YUXI_FUZZ_SEED` and `YUXI_FUZZ_RUNS` replace the fixed seed and the number of inputs.
//! With `YUXI_FUZZ_CORPUS=DIR` nothing is run: the inputs to begin with are written to
//! `DIR/TARGET/`, for libFuzzer to begin with them too.

use std::{
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::Path,
};

const DEFAULT_SEED: u64 = 0x5e_a1;
/// Inputs grow by at most this much over the longest seed input.
const MAX_GROWTH: usize = 4096;
/// What lengths and counts are that go wrong most often.
const EVIL: &[&[u8]] = &[
    &[0],
    &[0xff],
    &[0x7f, 0xff],
    &[0x7f, 0xff, 0xff, 0xff],
    &[0x80, 0, 0, 0],
    &[0xff, 0xff, 0xff, 0xff],
    &[0xff, 0xff, 0xff, 0xff, 0x07],
    &[0xfe, 0xff, 0xff, 0xff, 0x0f],
    &[0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80],
    &[0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
    &[0x80, 0, 0, 0, 0, 0, 0, 0],
];

/// Gives `body` each of `corpus` and then `runs` mutations of them. When it panics, the
/// input and how to get it again are printed.
pub fn run(name: &str, runs: u64, corpus: &[Vec<u8>], body: fn(&[u8])) {
    if let Some(directory) = std::env::var_os("YUXI_FUZZ_CORPUS") {
        return write_corpus(&Path::new(&directory).join(name), corpus);
    }
    let seed = from_environment("YUXI_FUZZ_SEED").unwrap_or(DEFAULT_SEED);
    let runs = from_environment("YUXI_FUZZ_RUNS").unwrap_or(runs);
    println!("{name}: YUXI_FUZZ_SEED={seed} YUXI_FUZZ_RUNS={runs}");
    for input in corpus {
        attempt(name, seed, 0, input, body);
    }
    let mut random = Random(seed);
    for number in 1..=runs {
        let input = mutated(&mut random, corpus);
        attempt(name, seed, number, &input, body);
    }
}

fn write_corpus(directory: &Path, corpus: &[Vec<u8>]) {
    std::fs::create_dir_all(directory).expect("a folder for the corpus");
    for (number, input) in corpus.iter().enumerate() {
        let file = directory.join(format!("seed-{number:04}"));
        std::fs::write(file, input).expect("room for the corpus");
    }
}

fn from_environment(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|error| panic!("{name}={text}: {error}")),
    )
}

fn attempt(name: &str, seed: u64, number: u64, input: &[u8], body: fn(&[u8])) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| body(input))) {
        use std::fmt::Write;
        let hex = input.iter().fold(String::new(), |mut hex, byte| {
            // Writing to a String can't fail.
            let _ = write!(hex, "{byte:02x}");
            hex
        });
        eprintln!("{name}: input {number} of YUXI_FUZZ_SEED={seed} failed: {hex}");
        resume_unwind(panic);
    }
}

fn mutated(random: &mut Random, corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut input = corpus[random.below(corpus.len())].clone();
    let longest = input.len() + MAX_GROWTH;
    for _ in 0..=random.below(4) {
        let at = random.below(input.len() + 1);
        let end = input.len().min(at + random.below(16));
        match random.below(8) {
            0 if at < input.len() => input[at] ^= 1 << random.below(8),
            1 if at < input.len() => input[at] = random.next() as u8,
            2 => input.truncate(at),
            3 => drop(input.drain(at..end)),
            4 => {
                let copied = input[at..end].to_vec();
                input.splice(at..at, copied);
            }
            5 => {
                let other = &corpus[random.below(corpus.len())];
                let from = random.below(other.len() + 1);
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
            6 => {
                let evil = EVIL[random.below(EVIL.len())];
                input.splice(at..at, evil.iter().copied());
            }
            _ => {
                let evil = EVIL[random.below(EVIL.len())];
                let end = input.len().min(at + evil.len());
                input.splice(at..end, evil.iter().copied());
            }
        }
        input.truncate(longest);
    }
    input
}

/// SplitMix64: all that is asked of it is that a seed repeats.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is at least 1.
    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}
