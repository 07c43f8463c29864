//! The signed variable-length integers of records: zigzag, then seven bits a byte, the
//! lowest first. At most 5 bytes for 32 bits of value and 10 for 64.

/// Reads a 32-bit value from the front of `rest`. `None` if it is cut off, goes on after
/// its fifth byte, or does not fit.
#[inline]
pub(super) fn read_i32(rest: &mut &[u8]) -> Option<i32> {
    let raw = match **rest {
        // Nearly every length and delta is one byte.
        [byte, ref after @ ..] if byte < 0x80 => {
            *rest = after;
            u32::from(byte)
        }
        _ => read_raw(rest, 5).and_then(|raw| u32::try_from(raw).ok())?,
    };
    Some((raw >> 1) as i32 ^ -((raw & 1) as i32))
}

/// Reads a 64-bit value from the front of `rest`. `None` if it is cut off, goes on after
/// its tenth byte, or does not fit.
#[inline]
pub(super) fn read_i64(rest: &mut &[u8]) -> Option<i64> {
    let raw = read_raw(rest, 10)?;
    Some((raw >> 1) as i64 ^ -((raw & 1) as i64))
}

fn read_raw(rest: &mut &[u8], most_bytes: usize) -> Option<u64> {
    let mut raw = 0_u64;
    for (at, &byte) in rest.iter().take(most_bytes).enumerate() {
        let bits = u64::from(byte & 0x7f);
        let shift = 7 * at as u32;
        // The tenth byte has room for one bit.
        if shift == 63 && bits > 1 {
            return None;
        }
        raw |= bits << shift;
        if byte < 0x80 {
            *rest = &rest[at + 1..];
            return Some(raw);
        }
    }
    None
}

/// Appends a value. 32-bit values are written as they are as 64-bit ones.
pub(super) fn write(value: i64, out: &mut Vec<u8>) {
    let mut raw = zigzag(value);
    while raw >= 0x80 {
        out.push(raw as u8 | 0x80);
        raw >>= 7;
    }
    out.push(raw as u8);
}

/// How many bytes [`write`] appends.
pub(super) fn size(value: i64) -> usize {
    let bits = 64 - (zigzag(value) | 1).leading_zeros() as usize;
    bits.div_ceil(7)
}

fn zigzag(value: i64) -> u64 {
    (value << 1) as u64 ^ (value >> 63) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_spelled_as_kafka_spells_them() {
        // From the expectations of Kafka's ByteUtilsTest.
        let cases: &[(i64, &[u8])] = &[
            (0, &[0]),
            (-1, &[1]),
            (1, &[2]),
            (63, &[0x7e]),
            (-64, &[0x7f]),
            (64, &[0x80, 1]),
            (-65, &[0x81, 1]),
            (8191, &[0xfe, 0x7f]),
            (-8192, &[0xff, 0x7f]),
            (8192, &[0x80, 0x80, 1]),
            (i32::MAX.into(), &[0xfe, 0xff, 0xff, 0xff, 0x0f]),
            (i32::MIN.into(), &[0xff, 0xff, 0xff, 0xff, 0x0f]),
            (
                i64::MAX,
                &[0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1],
            ),
            (
                i64::MIN,
                &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1],
            ),
        ];
        for &(value, bytes) in cases {
            let mut out = Vec::new();
            write(value, &mut out);
            assert_eq!(out, bytes, "{value}");
            assert_eq!(size(value), bytes.len(), "{value}");
            let mut rest = bytes;
            assert_eq!(read_i64(&mut rest), Some(value));
            assert!(rest.is_empty());
            let mut rest = bytes;
            assert_eq!(read_i32(&mut rest), i32::try_from(value).ok(), "{value}");
        }
    }

    #[test]
    fn a_varint_that_is_cut_off_too_long_or_too_large_is_refused() {
        let cases: &[&[u8]] = &[
            &[],
            &[0x80],
            &[0xff, 0xff, 0xff, 0xff],
            &[0xff, 0xff, 0xff, 0xff, 0xff, 0],
            &[0x80, 0x80, 0x80, 0x80, 0x80, 0],
            &[0xff, 0xff, 0xff, 0xff, 0x10],
        ];
        for bytes in cases {
            assert_eq!(read_i32(&mut &**bytes), None, "{bytes:x?}");
        }
        let cases: &[&[u8]] = &[
            &[],
            &[0x80; 9],
            &[
                0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0,
            ],
            &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2],
        ];
        for bytes in cases {
            assert_eq!(read_i64(&mut &**bytes), None, "{bytes:x?}");
        }
    }
}
