//! Bytes on their way from the network to an unpacker that blocks.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::{Buf, Bytes};
use tokio::sync::{mpsc, oneshot};

/// Chunks between network and unpacker: enough to keep both busy, little memory (network chunks
/// are at most some 64 KiB). A slow unpacker slows its download down, which is right: the bytes
/// have nowhere else to go.
const CHUNKS_MAX: usize = 64;

/// Makes the two sides of a layer that may be unpacked while it arrives.
pub(super) fn offer() -> (Offer, Want) {
    let (give, take) = oneshot::channel();
    let wanted = Arc::new(AtomicBool::new(false));
    (Offer { wanted: wanted.clone(), give }, Want { wanted, take })
}

/// The downloading side. It is asked once, when the first byte is about to come: whether someone
/// waits for the bytes is decided then. Dropping it says that they will not come this way.
#[derive(Debug)]
pub(super) struct Offer {
    wanted: Arc<AtomicBool>,
    give: oneshot::Sender<FeedReader>,
}

impl Offer {
    /// A feed, if the unpacker waits for this layer right now.
    pub(super) fn accept(self) -> Option<Feed> {
        if !self.wanted.load(Ordering::Acquire) {
            return None;
        }
        let (sender, receiver) = mpsc::channel(CHUNKS_MAX);
        let reader = FeedReader { receiver, chunk: Bytes::new(), ended: false };
        self.give.send(reader).ok().map(|()| Feed(sender))
    }
}

/// The unpacking side.
#[derive(Debug)]
pub(super) struct Want {
    wanted: Arc<AtomicBool>,
    take: oneshot::Receiver<FeedReader>,
}

impl Want {
    /// Waits for the bytes to begin to come; None when they come to the store only.
    pub(super) async fn wait(self) -> Option<FeedReader> {
        self.wanted.store(true, Ordering::Release);
        self.take.await.ok()
    }
}

/// The writing end. Dropping it before [`Feed::finish`] tells the reader that the bytes will not
/// come this way.
#[derive(Debug)]
pub(super) struct Feed(mpsc::Sender<Bytes>);

impl Feed {
    /// Hands a chunk on; false when the reader has gone.
    pub(super) async fn send(&mut self, chunk: Bytes) -> bool {
        chunk.is_empty() || self.0.send(chunk).await.is_ok()
    }

    /// Says that these were all the bytes.
    pub(super) async fn finish(self) {
        // An empty chunk is the end mark: it cannot be confused with a sender that died.
        let _ = self.0.send(Bytes::new()).await;
    }
}

/// The reading end, for a thread that may block.
#[derive(Debug)]
pub(super) struct FeedReader {
    receiver: mpsc::Receiver<Bytes>,
    chunk: Bytes,
    ended: bool,
}

impl Read for FeedReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() {
            if self.ended {
                return Ok(0);
            }
            match self.receiver.blocking_recv() {
                Some(chunk) if chunk.is_empty() => self.ended = true,
                Some(chunk) => self.chunk = chunk,
                None => return Err(io::Error::new(io::ErrorKind::ConnectionAborted, CUT)),
            }
        }
        let len = buf.len().min(self.chunk.len());
        self.chunk.copy_to_slice(&mut buf[..len]);
        Ok(len)
    }
}

/// What the unpacker reads when the bytes stop coming this way.
const CUT: &str = "the download does not come this way to its end";

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn bytes_pass_in_order_to_their_end() {
        let (offer, want) = offer();
        let waiting = tokio::spawn(want.wait());
        tokio::task::yield_now().await;
        let mut feed = offer.accept().unwrap();
        let mut reader = waiting.await.unwrap().unwrap();
        let reading = tokio::task::spawn_blocking(move || {
            let mut out = Vec::new();
            reader.read_to_end(&mut out).map(|_| out)
        });
        for piece in ["one ", "", "two"] {
            assert!(feed.send(Bytes::from_static(piece.as_bytes())).await);
        }
        feed.finish().await;
        assert_eq!(reading.await.unwrap().unwrap(), b"one two");
    }

    #[tokio::test]
    async fn a_dropped_feed_is_no_end() {
        let (offer, want) = offer();
        let waiting = tokio::spawn(want.wait());
        tokio::task::yield_now().await;
        drop(offer.accept().unwrap());
        let mut reader = waiting.await.unwrap().unwrap();
        let read = tokio::task::spawn_blocking(move || reader.read(&mut [0; 4]));
        assert!(read.await.unwrap().is_err());
    }

    #[tokio::test]
    async fn nobody_is_fed_who_does_not_wait() {
        let (unwanted, want) = offer();
        assert!(unwanted.accept().is_none());
        assert!(want.wait().await.is_none());
    }
}
