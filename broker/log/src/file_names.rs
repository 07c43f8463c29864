//! How the files of a log are called: twenty digits of a base offset and a suffix.

use std::path::{Path, PathBuf};

use yuxi_protocol::ids::Offset;

pub(crate) const LOG: &str = "log";
pub(crate) const INDEX: &str = "index";
pub(crate) const TIME_INDEX: &str = "timeindex";
pub(crate) const TXN_INDEX: &str = "txnindex";
pub(crate) const SNAPSHOT: &str = "snapshot";
pub(crate) const DELETED: &str = "deleted";
pub(crate) const CLEANED: &str = "cleaned";
pub(crate) const SWAP: &str = "swap";
/// A copy in the making, of no worth until it is renamed.
pub(crate) const TEMPORARY: &str = "tmp";

/// Every file that belongs to the segment itself.
pub(crate) const SEGMENT_SUFFIXES: [&str; 4] = [LOG, INDEX, TIME_INDEX, TXN_INDEX];

/// `dir/%020d.suffix`.
pub(crate) fn path(dir: &Path, base_offset: Offset, suffix: &str) -> PathBuf {
    dir.join(format!("{:020}.{suffix}", base_offset.value()))
}

/// Appends `.extension` to whatever the file is called.
pub(crate) fn with_extension(path: &Path, extension: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(extension);
    name.into()
}

/// The offset and the rest of a name that begins with an offset and a dot.
pub(crate) fn parse(name: &str) -> Option<(Offset, &str)> {
    let (digits, suffix) = name.split_once('.')?;
    let all_digits = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    let offset = all_digits.then(|| digits.parse().ok())??;
    Some((Offset::new(offset), suffix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_kafkas() {
        let path = path(Path::new("/d"), Offset::new(42), TIME_INDEX);
        assert_eq!(path, Path::new("/d/00000000000000000042.timeindex"));
        assert_eq!(
            parse("00000000000000000042.timeindex"),
            Some((Offset::new(42), "timeindex"))
        );
        assert_eq!(
            parse("00000000000000000042.log.deleted"),
            Some((Offset::new(42), "log.deleted"))
        );
        for name in [
            ".log",
            "x.log",
            "-1.log",
            "+1.log",
            "partition.metadata",
            "9999999999999999999999.log",
        ] {
            assert_eq!(parse(name), None, "{name}");
        }
    }
}
