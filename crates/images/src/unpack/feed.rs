//! Bytes on their way from the network to an unpacker that blocks.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::{Buf, Bytes, BytesMut};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use crate::budget::Budget;

/// Bytes handed on at once. They are copied together, since a chunk of the network, however short,
/// keeps the whole buffer it was read into, which is some 400 KiB.
const PIECE_BYTES: usize = 128 << 10;

/// Pieces between network and unpacker: enough to keep both busy, little memory. A slow unpacker
/// slows its download down, which is right: the bytes have nowhere else to go.
const PIECES_MAX: usize = 8;

/// Makes the two sides of a layer that may be unpacked while it arrives.
pub(crate) fn offer() -> (Offer, Want) {
    let (give, take) = oneshot::channel();
    let wanted = Arc::new(AtomicBool::new(false));
    (Offer { wanted: wanted.clone(), give }, Want { wanted, take })
}

/// The downloading side. It is asked once, when the first byte is about to come: whether someone
/// waits for the bytes is decided then. Dropping it says that they will not come this way.
#[derive(Debug)]
pub(crate) struct Offer {
    wanted: Arc<AtomicBool>,
    give: oneshot::Sender<FeedReader>,
}

impl Offer {
    /// A feed, if the unpacker waits for this layer right now and there is room for one more.
    pub(crate) fn accept(self, budget: &Budget) -> Option<Feed> {
        if !self.wanted.load(Ordering::Acquire) {
            return None;
        }
        let slot = budget.feed()?;
        let (sender, receiver) = mpsc::channel(PIECES_MAX);
        let reader = FeedReader { receiver, piece: Bytes::new(), ended: false, _slot: slot };
        self.give.send(reader).ok().map(|()| Feed { sender, piece: BytesMut::new() })
    }
}

/// The unpacking side.
#[derive(Debug)]
pub(crate) struct Want {
    wanted: Arc<AtomicBool>,
    take: oneshot::Receiver<FeedReader>,
}

impl Want {
    /// Waits for the bytes to begin to come; None when they come to the store only.
    pub(crate) async fn wait(self) -> Option<FeedReader> {
        self.wanted.store(true, Ordering::Release);
        self.take.await.ok()
    }
}

/// The writing end. Dropping it before [`Feed::finish`] tells the reader that the bytes will not
/// come this way.
#[derive(Debug)]
pub(crate) struct Feed {
    sender: mpsc::Sender<Bytes>,
    /// What came since the last piece was handed on.
    piece: BytesMut,
}

impl Feed {
    /// Hands bytes on; false when the reader has gone.
    pub(crate) async fn send(&mut self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            if self.piece.capacity() == 0 {
                self.piece = BytesMut::with_capacity(PIECE_BYTES);
            }
            let (now, later) = bytes.split_at(bytes.len().min(PIECE_BYTES - self.piece.len()));
            self.piece.extend_from_slice(now);
            bytes = later;
            if self.piece.len() == PIECE_BYTES && !self.flush().await {
                return false;
            }
        }
        true
    }

    /// Says that these were all the bytes.
    pub(crate) async fn finish(mut self) {
        if self.piece.is_empty() || self.flush().await {
            // An empty piece is the end mark: it cannot be confused with a sender that died.
            let _ = self.sender.send(Bytes::new()).await;
        }
    }

    async fn flush(&mut self) -> bool {
        let piece = std::mem::take(&mut self.piece).freeze();
        self.sender.send(piece).await.is_ok()
    }
}

/// The reading end, for a thread that may block.
#[derive(Debug)]
pub(crate) struct FeedReader {
    receiver: mpsc::Receiver<Bytes>,
    piece: Bytes,
    ended: bool,
    _slot: OwnedSemaphorePermit,
}

impl Read for FeedReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            if self.ended {
                return Ok(0);
            }
            match self.receiver.blocking_recv() {
                Some(piece) if piece.is_empty() => self.ended = true,
                Some(piece) => self.piece = piece,
                None => return Err(io::Error::new(io::ErrorKind::ConnectionAborted, CUT)),
            }
        }
        let len = buf.len().min(self.piece.len());
        self.piece.copy_to_slice(&mut buf[..len]);
        Ok(len)
    }
}

/// What the unpacker reads when the bytes stop coming this way.
const CUT: &str = "the download does not come this way to its end";

#[cfg(test)]
mod tests {
    use super::*;

    /// Both ends of a layer that is asked for, if `budget` has room.
    async fn asked_for(budget: &Budget) -> (Option<Feed>, Option<FeedReader>) {
        let (offer, want) = offer();
        let waiting = tokio::spawn(want.wait());
        tokio::task::yield_now().await;
        let feed = offer.accept(budget);
        (feed, waiting.await.unwrap())
    }

    /// The same where there is.
    async fn accepted(budget: &Budget) -> (Feed, FeedReader) {
        let (feed, reader) = asked_for(budget).await;
        (feed.unwrap(), reader.unwrap())
    }

    #[tokio::test]
    async fn bytes_pass_in_order_to_their_end() {
        let (mut feed, mut reader) = accepted(&Budget::default()).await;
        let reading = tokio::task::spawn_blocking(move || {
            let mut out = Vec::new();
            reader.read_to_end(&mut out).map(|_| out)
        });
        for piece in ["one ", "", "two"] {
            assert!(feed.send(piece.as_bytes()).await);
        }
        feed.finish().await;
        assert_eq!(reading.await.unwrap().unwrap(), b"one two");
    }

    #[tokio::test]
    async fn a_feed_nobody_reads_from_holds_little() {
        let (mut feed, _reader) = accepted(&Budget::default()).await;
        let mut taken = 0;
        // Short chunks count with what they are, not one by one.
        let chunk = [0; 1000];
        while futures_util::FutureExt::now_or_never(feed.send(&chunk)).is_some() {
            taken += chunk.len();
        }
        let most = PIECE_BYTES * (PIECES_MAX + 1);
        assert!(taken <= most && taken > most - PIECE_BYTES, "{taken}");
    }

    #[tokio::test]
    async fn a_dropped_feed_is_no_end() {
        let (feed, mut reader) = accepted(&Budget::default()).await;
        drop(feed);
        let read = tokio::task::spawn_blocking(move || reader.read(&mut [0; 4]));
        assert!(read.await.unwrap().is_err());
    }

    #[tokio::test]
    async fn a_feed_takes_room_until_it_is_read() {
        let budget = Budget::default();
        let taken: Vec<_> = std::iter::from_fn(|| budget.feed()).collect();
        let (feed, reader) = asked_for(&budget).await;
        assert!(feed.is_none());
        assert!(reader.is_none());
        drop(taken);
        let (feed, reader) = accepted(&budget).await;
        drop(feed);
        let free = || std::iter::from_fn(|| budget.feed()).collect::<Vec<_>>().len();
        let before = free();
        drop(reader);
        assert_eq!(free(), before + 1);
    }

    #[tokio::test]
    async fn nobody_is_fed_who_does_not_wait() {
        let (unwanted, want) = offer();
        assert!(unwanted.accept(&Budget::default()).is_none());
        assert!(want.wait().await.is_none());
    }
}
