//! The codecs of the record format, both ways.
//!
//! Invariant: decompressing never holds more than the cap it was told, whatever the
//! compressed bytes claim about themselves.

use std::fmt;

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
