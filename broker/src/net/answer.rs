//! What goes back to a client: one response frame as a list of chunks, so that
//! records travel from the segment file to the socket without being copied here.

use bytes::Bytes;
use std::{io, os::unix::fs::FileExt};
use tokio::{io::Interest, net::TcpStream};
use yuxi_log::FileSlice;

/// Record data from this size on is sent by `sendfile`; below it, copying from
/// the mapping into the socket with the rest of the frame in one system call is cheaper, for
/// what a frame is sent in is what wakes its reader.
const SENDFILE_FROM_BYTES: usize = 128 * 1024;

/// Record data from this size on is looked for in the page cache before it is sent.
const LOOK_FROM_BYTES: usize = 32 * 1024;

/// How much is read at a time to bring cold data into the page cache.
const READ_THROUGH_BYTES: usize = 256 * 1024;

/// How many chunks one `writev` takes at most.
const CHUNKS_PER_WRITE: usize = 64;

/// A part of a response frame.
#[derive(Debug)]
pub(crate) enum Chunk {
    /// Encoded bytes.
    Bytes(Bytes),
    /// Record batches as they stand in a segment.
    Log(FileSlice),
}

impl Chunk {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Log(slice) => slice.len(),
        }
    }

    fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Log(slice) => slice.as_bytes(),
        }
    }

    /// The slice, if it is worth a `sendfile`.
    fn large_slice(&self) -> Option<&FileSlice> {
        match self {
            Self::Log(slice) if slice.len() >= SENDFILE_FROM_BYTES => Some(slice),
            Self::Log(_) | Self::Bytes(_) => None,
        }
    }
}

/// One whole response frame, length prefix included.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    chunks: Vec<Chunk>,
}

impl From<Bytes> for Answer {
    fn from(frame: Bytes) -> Self {
        Self {
            chunks: vec![Chunk::Bytes(frame)],
        }
    }
}

impl From<Vec<Chunk>> for Answer {
    fn from(chunks: Vec<Chunk>) -> Self {
        Self { chunks }
    }
}

impl Answer {
    /// The frame's size in bytes, length prefix included.
    pub(crate) fn len(&self) -> usize {
        self.chunks.iter().map(Chunk::len).sum()
    }

    /// The whole frame copied together, for tests and tools.
    #[cfg(test)]
    pub(crate) fn to_vec(&self) -> Vec<u8> {
        self.chunks
            .iter()
            .flat_map(|chunk| chunk.as_bytes().to_vec())
            .collect()
    }
}

/// The answers that are ready, waiting for room in the socket.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    chunks: std::collections::VecDeque<Chunk>,
    /// How much of the first chunk is already sent.
    sent_of_first: usize,
    /// How many of the first chunks were seen to be in the page cache: asking costs a look at
    /// each of their pages, so it is asked once a chunk and not once a write.
    loaded: usize,
}

impl Outbox {
    pub(crate) fn push(&mut self, answer: Answer) {
        self.chunks
            .extend(answer.chunks.into_iter().filter(|chunk| chunk.len() > 0));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Sends everything; returns how many bytes that was.
    pub(crate) async fn send_all(&mut self, stream: &TcpStream) -> io::Result<usize> {
        let mut total = 0;
        while !self.chunks.is_empty() {
            let together = self.sent_together();
            while self.loaded < together {
                load_if_cold(&self.chunks[self.loaded]).await?;
                self.loaded += 1;
            }
            let sent = stream
                .async_io(Interest::WRITABLE, || self.send_some(stream))
                .await?;
            total += sent;
            self.advance(sent)?;
        }
        Ok(total)
    }

    /// How many of the first chunks the next system call sends.
    fn sent_together(&self) -> usize {
        let is_small = |chunk: &&Chunk| chunk.large_slice().is_none();
        let small = self
            .chunks
            .iter()
            .take(CHUNKS_PER_WRITE)
            .take_while(is_small);
        small.count().max(1)
    }

    /// One system call's worth.
    fn send_some(&self, stream: &TcpStream) -> io::Result<usize> {
        if let Some(slice) = self.chunks.front().and_then(Chunk::large_slice) {
            let mut position = slice.position() + self.sent_of_first as u64;
            let left = slice.len() - self.sent_of_first;
            return Ok(rustix::fs::sendfile(
                stream,
                slice.file(),
                Some(&mut position),
                left,
            )?);
        }
        let mut skip = self.sent_of_first;
        let together = self.sent_together();
        let mut parts = Vec::with_capacity(together);
        for chunk in self.chunks.iter().take(together) {
            parts.push(io::IoSlice::new(&chunk.as_bytes()[skip..]));
            skip = 0;
        }
        let flags = if together < self.chunks.len() {
            // The kernel holds back a partial packet until the rest comes.
            rustix::net::SendFlags::MORE | rustix::net::SendFlags::NOSIGNAL
        } else {
            rustix::net::SendFlags::NOSIGNAL
        };
        Ok(rustix::net::sendmsg(
            stream,
            &parts,
            &mut rustix::net::SendAncillaryBuffer::default(),
            flags,
        )?)
    }

    fn advance(&mut self, mut sent: usize) -> io::Result<()> {
        if sent == 0 {
            // sendfile came to the file's end before the slice's: the segment lost bytes
            // that were promised in the header, and the frame cannot be completed.
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "a log segment ended before the bytes promised to the client",
            ));
        }
        while sent > 0 {
            let Some(first) = self.chunks.front() else {
                break;
            };
            let left = first.len() - self.sent_of_first;
            if sent < left {
                self.sent_of_first += sent;
                return Ok(());
            }
            sent -= left;
            self.sent_of_first = 0;
            self.loaded = self.loaded.saturating_sub(1);
            self.chunks.pop_front();
        }
        Ok(())
    }
}

/// Brings data that is not in the page cache into it on a blocking thread, so that
/// neither `sendfile` nor a page fault makes this thread wait for the disk.
async fn load_if_cold(chunk: &Chunk) -> io::Result<()> {
    let Chunk::Log(slice) = chunk else {
        return Ok(());
    };
    if slice.len() < LOOK_FROM_BYTES || slice.is_resident() {
        return Ok(());
    }
    let slice = slice.clone();
    tokio::task::spawn_blocking(move || read_through(&slice))
        .await
        .map_err(io::Error::other)?
}

/// Reads the slice once, for the page cache only.
fn read_through(slice: &FileSlice) -> io::Result<()> {
    let mut scratch = vec![0; READ_THROUGH_BYTES.min(slice.len())];
    let end = slice.position() + slice.len() as u64;
    let mut at = slice.position();
    while at < end {
        match slice.file().read_at(&mut scratch, at)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => at += read as u64,
        }
    }
    Ok(())
}
