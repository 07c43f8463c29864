//! The codecs of the record format, both ways, on buffers in memory.
//!
//! Invariant: decompressing never yields more than the cap it was told, and before it
//! has the bytes to show for it a stream is trusted with a fixed amount of memory only,
//! whatever it claims about itself.

use std::{
    cell::RefCell,
    fmt,
    io::{Read, Write},
    ops::RangeInclusive,
};

use flate2::{read::MultiGzDecoder, write::GzEncoder};
use lz4_flex::frame::{BlockMode, BlockSize, FrameDecoder, FrameEncoder, FrameInfo};
use zstd::zstd_safe;

/// How a batch's records are compressed: the low three bits of its attributes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Compression {
    /// Records stand as they are.
    #[default]
    None,
    /// One gzip member, or several.
    Gzip,
    /// Snappy in xerial's block framing.
    Snappy,
    /// The LZ4 frame format.
    Lz4,
    /// One Zstandard frame, or several.
    Zstd,
}

impl Compression {
    /// Every codec, by its number.
    pub const ALL: [Self; 5] = [Self::None, Self::Gzip, Self::Snappy, Self::Lz4, Self::Zstd];

    /// The codec's number in a batch's attributes.
    pub const fn id(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Gzip => 1,
            Self::Snappy => 2,
            Self::Lz4 => 3,
            Self::Zstd => 4,
        }
    }

    /// The codec with this number.
    pub fn from_id(id: u8) -> Option<Self> {
        Self::ALL.get(usize::from(id)).copied()
    }

    /// The name by which settings call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Snappy => "snappy",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }

    /// The codec that settings call `name`.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|codec| codec.name() == name)
    }

    /// The levels that [`compress`](Self::compress) tells apart; `None` for a codec that
    /// has only one way of working. (The LZ4 encoder is the fast one at every level.)
    pub fn levels(self) -> Option<RangeInclusive<i32>> {
        match self {
            Self::Gzip => Some(1..=9),
            Self::Zstd => Some(zstd::compression_level_range()),
            Self::None | Self::Snappy | Self::Lz4 => None,
        }
    }

    /// Appends `bytes`, compressed, to `out`. Without a level the codec's usual one is
    /// taken; one outside [`levels`](Self::levels) is moved to the nearest inside.
    pub fn compress(
        self,
        level: Option<i32>,
        bytes: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), CompressionError> {
        let level = level
            .zip(self.levels())
            .map(|(level, range)| level.clamp(*range.start(), *range.end()));
        match self {
            Self::None => {
                out.extend_from_slice(bytes);
                Ok(())
            }
            Self::Gzip => gzip_compress(level, bytes, out),
            Self::Snappy => snappy_compress(bytes, out),
            Self::Lz4 => lz4_compress(bytes, out),
            Self::Zstd => zstd_compress(level, bytes, out),
        }
    }

    /// The bytes that `compressed` stands for, at most `cap` of them.
    pub fn decompress(self, compressed: &[u8], cap: usize) -> Result<Vec<u8>, CompressionError> {
        match self {
            Self::None if compressed.len() > cap => Err(CompressionError::TooLarge { cap }),
            Self::None => Ok(compressed.to_vec()),
            Self::Gzip => read_capped(MultiGzDecoder::new(compressed), cap),
            Self::Snappy => snappy_decompress(compressed, cap),
            Self::Lz4 => lz4_decompress(compressed, cap),
            Self::Zstd => zstd_decompress(compressed, cap),
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a payload could not be decompressed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompressionError {
    /// The decompressed bytes would be more than the cap.
    #[error("more than {cap} bytes decompressed")]
    TooLarge {
        /// The cap, in bytes.
        cap: usize,
    },
    /// The codec refused the bytes.
    #[error("corrupt: {0}")]
    Corrupt(String),
}

impl CompressionError {
    fn corrupt(error: impl fmt::Display) -> Self {
        Self::Corrupt(error.to_string())
    }
}

/// What a decoder gives, unless it is more than `cap`. The buffer grows with what is
/// really decoded.
fn read_capped(decoder: impl Read, cap: usize) -> Result<Vec<u8>, CompressionError> {
    let mut out = Vec::new();
    decoder
        .take(cap as u64 + 1)
        .read_to_end(&mut out)
        .map_err(CompressionError::corrupt)?;
    if out.len() > cap {
        return Err(CompressionError::TooLarge { cap });
    }
    Ok(out)
}

fn gzip_compress(
    level: Option<i32>,
    bytes: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), CompressionError> {
    let level = level.map_or_else(flate2::Compression::default, |level| {
        flate2::Compression::new(level.unsigned_abs())
    });
    let mut encoder = GzEncoder::new(out, level);
    encoder
        .write_all(bytes)
        .and_then(|()| encoder.finish())
        .map_err(CompressionError::corrupt)?;
    Ok(())
}

/// How xerial's stream begins; raw Snappy can't begin so.
const XERIAL_MAGIC: [u8; 8] = *b"\x82SNAPPY\0";
/// The magic, the version and the oldest version that can read it.
const XERIAL_HEADER: [u8; 16] = *b"\x82SNAPPY\0\0\0\0\x01\0\0\0\x01";
/// The block size of Kafka's Java clients.
const XERIAL_BLOCK_BYTES: usize = 32 * 1024;
/// Snappy's densest element makes 64 bytes out of 3.
const SNAPPY_MAX_RATIO: (usize, usize) = (64, 3);

/// Header, then blocks, each a big-endian length and that many bytes of raw Snappy.
fn snappy_compress(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), CompressionError> {
    let mut encoder = snap::raw::Encoder::new();
    out.extend_from_slice(&XERIAL_HEADER);
    for block in bytes.chunks(XERIAL_BLOCK_BYTES) {
        let length_at = out.len();
        let block_at = length_at + 4;
        out.resize(block_at + snap::raw::max_compress_len(block.len()), 0);
        let written = encoder
            .compress(block, &mut out[block_at..])
            .map_err(CompressionError::corrupt)?;
        out.truncate(block_at + written);
        out[length_at..block_at].copy_from_slice(&(written as u32).to_be_bytes());
    }
    Ok(())
}

/// Reads xerial's framing, and what has none as one raw block, as Kafka's Java does.
fn snappy_decompress(compressed: &[u8], cap: usize) -> Result<Vec<u8>, CompressionError> {
    let mut out = Vec::new();
    if !compressed.starts_with(&XERIAL_MAGIC) {
        snappy_block(compressed, cap, &mut out)?;
        return Ok(out);
    }
    let mut rest = compressed;
    while !rest.is_empty() {
        if rest.starts_with(&XERIAL_MAGIC) {
            // Also between blocks: streams that were concatenated.
            rest = rest
                .get(XERIAL_HEADER.len()..)
                .ok_or_else(|| CompressionError::corrupt("the stream header is cut off"))?;
            continue;
        }
        let (block, after) = rest
            .split_first_chunk::<4>()
            .and_then(|(length, rest)| rest.split_at_checked(u32::from_be_bytes(*length) as usize))
            .ok_or_else(|| CompressionError::corrupt("a block is cut off"))?;
        snappy_block(block, cap, &mut out)?;
        rest = after;
    }
    Ok(out)
}

fn snappy_block(block: &[u8], cap: usize, out: &mut Vec<u8>) -> Result<(), CompressionError> {
    let length = snap::raw::decompress_len(block).map_err(CompressionError::corrupt)?;
    let (most, per) = SNAPPY_MAX_RATIO;
    if length / most > block.len() / per {
        return Err(CompressionError::corrupt(
            "a block claims more bytes than it can hold",
        ));
    }
    let at = out.len();
    if length > cap - at {
        return Err(CompressionError::TooLarge { cap });
    }
    out.resize(at + length, 0);
    snap::raw::Decoder::new()
        .decompress(block, &mut out[at..])
        .map_err(CompressionError::corrupt)?;
    Ok(())
}

/// One frame as Kafka's Java writes it, which reads only independent blocks.
fn lz4_compress(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), CompressionError> {
    let info = FrameInfo::new()
        .block_mode(BlockMode::Independent)
        .block_size(BlockSize::Max64KB);
    let mut encoder = FrameEncoder::with_frame_info(info, out);
    encoder
        .write_all(bytes)
        .map_err(CompressionError::corrupt)?;
    encoder.finish().map_err(CompressionError::corrupt)?;
    Ok(())
}

fn lz4_decompress(compressed: &[u8], cap: usize) -> Result<Vec<u8>, CompressionError> {
    let mut decoder = FrameDecoder::new(compressed);
    let out = read_capped(&mut decoder, cap)?;
    // Kafka's Java stops after the first frame. What stands behind it would be lost
    // there without a word, so it is refused.
    match decoder.get_ref().len() {
        0 => Ok(out),
        extra => Err(CompressionError::corrupt(format_args!(
            "{extra} bytes follow the frame"
        ))),
    }
}

thread_local! {
    // Setting up a context costs more than a small batch does.
    static ZSTD_ENCODER: RefCell<Option<zstd_safe::CCtx<'static>>> =
        RefCell::new(zstd_safe::CCtx::try_create());
    static ZSTD_DECODER: RefCell<Option<zstd_safe::DCtx<'static>>> =
        RefCell::new(zstd_safe::DCtx::try_create());
}

/// What a zstd frame is trusted with before it has shown more.
const ZSTD_FIRST_BUFFER_BYTES: usize = 128 * 1024;
/// How many times its compressed size a frame's own word is believed for, to begin with.
const ZSTD_TRUSTED_RATIO: usize = 64;

fn zstd_error(code: usize) -> CompressionError {
    CompressionError::corrupt(zstd_safe::get_error_name(code))
}

fn zstd_compress(
    level: Option<i32>,
    bytes: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), CompressionError> {
    let level = level.unwrap_or(zstd::DEFAULT_COMPRESSION_LEVEL);
    let mut frame = Vec::with_capacity(zstd_safe::compress_bound(bytes.len()));
    ZSTD_ENCODER.with_borrow_mut(|context| {
        let context = context
            .as_mut()
            .ok_or_else(|| CompressionError::corrupt("no memory for a zstd context"))?;
        context
            .compress(&mut frame, bytes, level)
            .map_err(zstd_error)
    })?;
    out.extend_from_slice(&frame);
    Ok(())
}

/// Decompresses in one go into a buffer that is enlarged when it was too small: unlike
/// a streaming decoder, that needs no window of the size that the frame asks for (up to
/// 2 GiB), so high-level frames of small batches are read without it.
fn zstd_decompress(compressed: &[u8], cap: usize) -> Result<Vec<u8>, CompressionError> {
    let claimed = match zstd_safe::get_frame_content_size(compressed) {
        Ok(Some(size)) => usize::try_from(size).unwrap_or(usize::MAX),
        Ok(None) | Err(_) => 0,
    };
    let mut capacity = claimed
        .min(compressed.len().saturating_mul(ZSTD_TRUSTED_RATIO))
        .max(ZSTD_FIRST_BUFFER_BYTES)
        .min(cap);
    loop {
        let mut out = Vec::with_capacity(capacity);
        let decoded = ZSTD_DECODER.with_borrow_mut(|context| {
            let context = context
                .as_mut()
                .ok_or_else(|| CompressionError::corrupt("no memory for a zstd context"))?;
            Ok(context.decompress(&mut out, compressed))
        })?;
        match decoded {
            // An allocation may be larger than was asked for.
            Ok(length) if length > cap => return Err(CompressionError::TooLarge { cap }),
            Ok(_) => return Ok(out),
            Err(code)
                if zstd_safe::is_error_kind(
                    code,
                    zstd_safe::zstd_sys::ZSTD_ErrorCode::ZSTD_error_dstSize_tooSmall,
                ) =>
            {
                if capacity == cap {
                    return Err(CompressionError::TooLarge { cap });
                }
                capacity = capacity.saturating_mul(4).min(cap);
            }
            Err(code) => return Err(zstd_error(code)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &[u8] = b"hello hello hello hello hello, kafka";
    const CODECS: [Compression; 4] = [
        Compression::Gzip,
        Compression::Snappy,
        Compression::Lz4,
        Compression::Zstd,
    ];

    fn compressed(codec: Compression, level: Option<i32>, bytes: &[u8]) -> Vec<u8> {
        let mut out = b"before".to_vec();
        codec.compress(level, bytes, &mut out).unwrap();
        out.split_off(b"before".len())
    }

    fn unhex(text: &str) -> Vec<u8> {
        (0..text.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
            .collect()
    }

    /// Bytes that no codec makes smaller, and blocks of them that every codec does.
    fn noise(len: usize) -> Vec<u8> {
        let mut state = 1_u64;
        std::iter::repeat_with(|| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 56) as u8
        })
        .take(len)
        .collect()
    }

    #[test]
    fn every_codec_returns_what_it_was_given_at_every_level() {
        let inputs = [
            Vec::new(),
            vec![7],
            TEXT.to_vec(),
            noise(XERIAL_BLOCK_BYTES),
            noise(200_000),
            [noise(50_000), noise(50_000), vec![0; 300_000]].concat(),
        ];
        for codec in Compression::ALL {
            let (low, high) = codec
                .levels()
                .map_or((0, 0), |levels| (*levels.start(), *levels.end()));
            for level in [None, Some(low), Some(high.min(12)), Some(i32::MIN), Some(9)] {
                for input in &inputs {
                    let bytes = compressed(codec, level, input);
                    let name = format!("{codec} {level:?} {} bytes", input.len());
                    assert!(
                        codec.decompress(&bytes, input.len()).unwrap() == *input,
                        "{name}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_level_changes_the_result_where_there_are_levels() {
        let input = [noise(3_000), noise(2_000), TEXT.repeat(200), noise(2_500)].concat();
        for codec in [Compression::Gzip, Compression::Zstd] {
            let fast = compressed(codec, Some(1), &input);
            let small = compressed(codec, Some(9), &input);
            assert!(small.len() <= fast.len() && small != fast, "{codec}");
        }
    }

    #[test]
    fn a_bomb_is_stopped_at_the_cap_by_every_codec() {
        let bomb = vec![0; 64 * 1024 * 1024];
        for codec in CODECS {
            let bytes = compressed(codec, None, &bomb);
            for cap in [0, 1, 1_000, 1024 * 1024, bomb.len() - 1] {
                assert_eq!(
                    codec.decompress(&bytes, cap),
                    Err(CompressionError::TooLarge { cap }),
                    "{codec} {cap}"
                );
            }
            assert_eq!(
                codec.decompress(&bytes, bomb.len()).unwrap().len(),
                bomb.len()
            );
        }
        assert_eq!(
            Compression::None.decompress(TEXT, 3),
            Err(CompressionError::TooLarge { cap: 3 })
        );
    }

    #[test]
    fn what_other_peoples_tools_wrote_is_read() {
        let cases = [
            (
                Compression::Gzip,
                "gzip -9",
                "1f8b0800000000000203cb48cdc9c957c8c04eea286427a66527020038dc371d24000000",
            ),
            (
                Compression::Zstd,
                "zstd from a pipe, no content size",
                "28b52ffd04589d00006868656c6c6f202c206b61666b610100a94b11eedec4b9",
            ),
            (
                Compression::Zstd,
                "zstd --ultra -22, window of 128 MiB",
                "28b52ffd00889d00006868656c6c6f202c206b61666b610100a94b11",
            ),
            (
                Compression::Lz4,
                "lz4 with a content checksum",
                "04224d186440a7120000006f68656c6c6f20060004702c206b61666b610000000068c17fc2",
            ),
            (
                Compression::Snappy,
                "raw, one literal",
                "248c68656c6c6f2068656c6c6f2068656c6c6f2068656c6c6f2068656c6c6f2c206b61666b61",
            ),
        ];
        for (codec, name, hex) in cases {
            assert_eq!(
                codec.decompress(&unhex(hex), 1_000).as_deref(),
                Ok(TEXT),
                "{name}"
            );
        }
    }

    #[test]
    fn frames_begin_as_kafkas_java_client_expects_them() {
        // Independent blocks of 64 KiB and the checksum of just these two bytes; the Java
        // client reads no dependent blocks.
        assert_eq!(
            compressed(Compression::Lz4, None, TEXT)[..7],
            [0x04, 0x22, 0x4d, 0x18, 0x60, 0x40, 0x82]
        );
        let snappy = compressed(Compression::Snappy, None, TEXT);
        assert_eq!(
            snappy[..16],
            [
                0x82, b'S', b'N', b'A', b'P', b'P', b'Y', 0, 0, 0, 0, 1, 0, 0, 0, 1
            ]
        );
        assert_eq!(snappy[16..20], ((snappy.len() - 20) as u32).to_be_bytes());
        assert_eq!(compressed(Compression::Gzip, None, TEXT)[..2], [0x1f, 0x8b]);
        assert_eq!(
            compressed(Compression::Zstd, None, TEXT)[..4],
            [0x28, 0xb5, 0x2f, 0xfd]
        );
    }

    #[test]
    fn snappy_streams_that_were_concatenated_are_read_as_one() {
        let once = compressed(Compression::Snappy, None, TEXT);
        let twice = [once.clone(), once].concat();
        assert_eq!(
            Compression::Snappy.decompress(&twice, 1_000).unwrap(),
            TEXT.repeat(2)
        );
    }

    #[test]
    fn a_stream_that_is_cut_off_or_claims_too_much_is_corrupt() {
        let mut lying_snappy = XERIAL_HEADER.to_vec();
        lying_snappy.extend_from_slice(&[0x7f, 0xff, 0xff, 0xff, 0]);
        let cases: &[(&str, Compression, &[u8])] = &[
            ("no bytes", Compression::Gzip, &[]),
            ("no bytes", Compression::Snappy, &[]),
            ("no gzip", Compression::Gzip, TEXT),
            ("no lz4", Compression::Lz4, TEXT),
            ("no zstd", Compression::Zstd, TEXT),
            (
                "a snappy block of 7fffffff bytes",
                Compression::Snappy,
                &lying_snappy,
            ),
            (
                "half a snappy header",
                Compression::Snappy,
                &XERIAL_HEADER[..9],
            ),
            (
                "raw snappy that claims 4 GiB",
                Compression::Snappy,
                &[0xff, 0xff, 0xff, 0xff, 0x0f, 0],
            ),
        ];
        for (name, codec, bytes) in cases {
            assert!(
                matches!(
                    codec.decompress(bytes, usize::MAX >> 1),
                    Err(CompressionError::Corrupt(_))
                ),
                "{codec}: {name}"
            );
        }
        for codec in CODECS {
            let whole = compressed(codec, None, &noise(1_000));
            for len in 0..whole.len() - 4 {
                let read = codec.decompress(&whole[..len], 10_000);
                // LZ4 and Snappy may stop between blocks; nothing is made up then.
                assert!(
                    read.as_ref().map_or(true, |bytes| bytes.len() < 1_000
                        || codec == Compression::Lz4),
                    "{codec} at {len}: {read:?}"
                );
            }
        }
        let mut two_frames = compressed(Compression::Lz4, None, TEXT);
        two_frames.extend_from_slice(&two_frames.clone());
        assert!(Compression::Lz4.decompress(&two_frames, 1_000).is_err());
    }

    #[test]
    fn a_snappy_block_is_not_believed_beyond_what_its_bytes_can_hold() {
        let too_much = Err(CompressionError::corrupt(
            "a block claims more bytes than it can hold",
        ));
        // 6 bytes that claim 4 GiB, raw and as a block of a stream.
        let raw = [0xff, 0xff, 0xff, 0xff, 0x0f, 0];
        let framed = [&XERIAL_HEADER[..], &[0, 0, 0, 6], &raw].concat();
        for bytes in [&raw[..], &framed] {
            assert_eq!(Compression::Snappy.decompress(bytes, usize::MAX), too_much);
        }
        // The densest that there is: a literal, then copies of 64 bytes for 3.
        let zeros = compressed(Compression::Snappy, None, &vec![0; XERIAL_BLOCK_BYTES]);
        assert!(Compression::Snappy.decompress(&zeros, usize::MAX).is_ok());
    }

    #[test]
    fn codecs_are_known_by_number_and_name() {
        for (id, name) in ["none", "gzip", "snappy", "lz4", "zstd"]
            .into_iter()
            .enumerate()
        {
            let codec = Compression::from_id(id as u8).unwrap();
            assert_eq!(codec.name(), name);
            assert_eq!(Compression::from_name(name), Some(codec));
            assert_eq!(usize::from(codec.id()), id);
        }
        assert_eq!(Compression::from_id(5), None);
        assert_eq!(Compression::from_name("LZ4"), None);
    }
}
