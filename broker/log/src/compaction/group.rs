//! Which segments become one: as many neighbours as fit into one segment again, so that
//! compaction does not leave ever smaller ones behind.

use std::{fs, path::Path};

use super::source::Source;
use crate::{config::LogConfig, file_names};

/// The sources in groups, in order. What counts is their size before they are cleaned.
pub(super) fn form(dir: &Path, sources: &[Source], config: &LogConfig) -> Vec<Vec<Source>> {
    let index_limit = u64::from(config.segment_index_bytes);
    let limits = [config.max_segment_bytes(), index_limit, index_limit];
    let mut groups: Vec<Vec<Source>> = Vec::new();
    let mut sums = [0; 3];
    for source in sources {
        // A file that is gone makes the compaction be abandoned when it is opened.
        let length = |suffix| fs::metadata(source.path(dir, suffix)).map_or(0, |meta| meta.len());
        let sizes = [
            source.size,
            length(file_names::INDEX),
            length(file_names::TIME_INDEX),
        ];
        let fits = |group: &Vec<Source>| {
            let mut pairs = sums.iter().zip(&sizes).zip(&limits);
            pairs.all(|((sum, size), limit)| sum + size <= *limit)
                && (source.size == 0
                    || source.end_offset.since(group[0].base_offset) - 1 <= i64::from(i32::MAX))
        };
        match groups.last_mut() {
            Some(group) if fits(group) => {
                group.push(*source);
                for (sum, size) in sums.iter_mut().zip(sizes) {
                    *sum += size;
                }
            }
            _ => {
                groups.push(vec![*source]);
                sums = sizes;
            }
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use yuxi_protocol::ids::Offset;

    use super::*;

    #[test]
    fn neighbours_are_put_together_up_to_a_segments_size_and_its_offsets_range() {
        let dir = tempfile::tempdir().unwrap();
        let source = |base, size, end| Source {
            base_offset: Offset::new(base),
            size,
            end_offset: Offset::new(end),
        };
        let far = i64::from(i32::MAX);
        let sources = [
            source(0, 40, 10),
            source(10, 60, 20),
            source(20, 1, 30),
            source(30, 100, 40),
            source(40, 10, 41),
            source(41, 10, far),
            source(far, 10, far + 41),
            source(far + 41, 10, far + 42),
            source(far + 42, 0, 3 * far),
        ];
        fs::write(sources[7].path(dir.path(), "index"), [0; 90]).unwrap();
        fs::write(sources[6].path(dir.path(), "index"), [0; 16]).unwrap();
        let config = LogConfig {
            segment_bytes: 100,
            segment_index_bytes: 100,
            ..LogConfig::default()
        };
        let formed: Vec<Vec<i64>> = form(dir.path(), &sources, &config)
            .iter()
            .map(|group| group.iter().map(|s| s.base_offset.value()).collect())
            .collect();
        let expected = vec![
            vec![0, 10],
            vec![20],
            vec![30],
            vec![40, 41, far],
            // The index would be too large with the one before it.
            vec![far + 41, far + 42],
        ];
        assert_eq!(formed, expected);
    }
}
