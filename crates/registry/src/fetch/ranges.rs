//! Parts of one big blob on connections of their own, ahead of where its stream is.
//!
//! Many links give one connection less than they could carry: registries and their caches limit
//! each connection, and a long way limits how much of it is under way. So the next parts are
//! fetched side by side as long as that makes the whole faster. Nobody has to say how many: one more
//! is tried where the stream waits for bytes, and kept if the rate rose by [`GAIN_PERCENT_MIN`].
//!
//! The stream stays what it was: bytes in order, for whoever checks their digest. What is ahead is
//! held in memory, never more than a 25th of the blob, so that little is lost with the process, and
//! never more than [`AHEAD_BYTES_MAX`] by all streams of a resolver together.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use gantry_errdefs::Class;
use http::header::{ACCEPT_ENCODING, IF_RANGE, RANGE};
use http::{HeaderValue, Method};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::AbortHandle;
use url::Url;

use super::{Meter, content_range};
use crate::auth::Scope;
use crate::failure::Failure;
use crate::hosts::Host;
use crate::limits::{
    AHEAD_BYTES_MAX, BACKOFF_FIRST, BACKOFF_MAX, CONNECTIONS_PER_BLOB_MAX, GAIN_PERCENT_MIN,
    PARALLEL_SIZE_MIN, PART_BYTES_MAX, PART_BYTES_MIN, RESUMES_WITHOUT_PROGRESS_MAX,
};
use crate::repository::Repository;
use crate::transport::Request;

/// Bytes a part hands on at once, at least; smaller chunks of the network are put together.
const PIECE_BYTES: usize = 64 << 10;

/// What of a blob may be ahead: one part in so many.
const AHEAD_FRACTION: u64 = 25;

/// Shortest time over which a rate is told from chance.
const WINDOW: Duration = Duration::from_millis(60);

/// A stream that waits for the network less than this part of its time has a slow reader: more
/// connections would not help it.
const WAITING_PERCENT_MIN: u32 = 40;

/// Windows after which a number of connections that had settled is tried anew; links change.
const SETTLED_WINDOWS: u32 = 64;

/// What all streams of a resolver may hold ahead, in [`PART_BYTES_MIN`] each.
#[derive(Clone, Debug)]
pub(crate) struct AheadBudget(Arc<Semaphore>);

impl Default for AheadBudget {
    fn default() -> Self {
        let parts = usize::try_from(AHEAD_BYTES_MAX / PART_BYTES_MIN).unwrap_or(1);
        Self(Arc::new(Semaphore::new(parts)))
    }
}

/// Where parts come from: the host that sends the stream, and what the blob was there.
#[derive(Clone, Debug)]
pub(super) struct Origin {
    pub(super) host: Host,
    pub(super) url: Url,
    pub(super) etag: Option<HeaderValue>,
}

/// Where a stream is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Position {
    /// The next byte it will give.
    pub(super) position: u64,
    /// Bytes of the blob.
    pub(super) size: u64,
    /// Whether it reads a response of its own, and not parts.
    pub(super) is_open: bool,
}

/// The parts ahead of one stream, contiguous and in order.
#[derive(Debug)]
pub(super) struct Ahead {
    parts: VecDeque<Part>,
    budget: AheadBudget,
    part_bytes: u64,
    pace: Pace,
}

#[derive(Debug)]
struct Part {
    end: u64,
    pieces: mpsc::Receiver<Result<Bytes, Failure>>,
    task: AbortHandle,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Part {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Ahead {
    /// None yet; for a blob of `size` bytes.
    pub(super) fn new(size: u64, budget: AheadBudget) -> Self {
        let part_bytes = (size / 128).clamp(PART_BYTES_MIN, PART_BYTES_MAX);
        let parts_max = if size < PARALLEL_SIZE_MIN {
            0
        } else {
            (size / AHEAD_FRACTION / part_bytes).min(CONNECTIONS_PER_BLOB_MAX - 1)
        };
        Self { parts: VecDeque::new(), budget, part_bytes, pace: Pace::new(parts_max) }
    }

    /// The next piece of the parts; None when there are none. Cancelling it loses nothing.
    pub(super) async fn next(&mut self, position: u64) -> Option<Result<Bytes, Failure>> {
        loop {
            let part = self.parts.front_mut()?;
            if position >= part.end {
                self.parts.pop_front();
                continue;
            }
            let early = || Err(Failure::passing("a part ended early"));
            return Some(part.pieces.recv().await.unwrap_or_else(early));
        }
    }

    /// Drops the parts, since what is before them will not come; there may be others later.
    pub(super) fn clear(&mut self) {
        self.parts.clear();
        self.pace = Pace::new(self.pace.parts_max);
    }

    /// Gives up on parts for the rest of the stream.
    pub(super) fn give_up(&mut self) {
        self.parts.clear();
        self.pace.parts_max = 0;
    }

    /// Takes note of bytes that were read.
    pub(super) fn note(&mut self, bytes: u64, waited: Duration) {
        self.pace.note(bytes, waited, self.part_bytes);
    }

    /// Begins parts if they are worth it. Returns where the first begins, if a response is open
    /// that would otherwise be read to the end of the blob.
    pub(super) fn extend(
        &mut self,
        repository: &Repository,
        origin: &Origin,
        at: Position,
    ) -> Option<u64> {
        let Position { position, size, is_open } = at;
        let mut cut = None;
        while (self.parts.len() as u64) < self.pace.parts {
            let part = self.part_bytes;
            let start = match self.parts.back() {
                Some(last) => last.end,
                // What is open goes on for one part more meanwhile.
                None if is_open => position + part,
                None => position,
            };
            let end = (start + part).min(size);
            // The end of the blob may not be worth a connection.
            if start >= size || end - start < part / 2 {
                break;
            }
            let permits = u32::try_from(part.div_ceil(PART_BYTES_MIN)).unwrap_or(u32::MAX);
            let Ok(permit) = self.budget.0.clone().try_acquire_many_owned(permits) else { break };
            if is_open && self.parts.is_empty() {
                cut = Some(start);
            }
            let pieces_max = usize::try_from(part).unwrap_or(usize::MAX) / PIECE_BYTES + 2;
            let (sender, pieces) = mpsc::channel(pieces_max);
            let fetch = PartFetch {
                repository: repository.clone(),
                origin: origin.clone(),
                range: (start, end),
                size,
            };
            let task = tokio::spawn(fetch.run(sender)).abort_handle();
            self.parts.push_back(Part { end, pieces, task, _permit: permit });
        }
        cut
    }
}

/// How many parts are worth it.
#[derive(Debug)]
struct Pace {
    /// Parts ahead that are wanted now.
    parts: u64,
    parts_max: u64,
    began: Instant,
    bytes: u64,
    waited: Duration,
    /// Bytes a second before the last part was added; 0 when none is on trial.
    rate_before: u64,
    /// Windows for which the number stays as it is.
    settled: u32,
}

impl Pace {
    fn new(parts_max: u64) -> Self {
        Self {
            parts: 0,
            parts_max,
            began: Instant::now(),
            bytes: 0,
            waited: Duration::ZERO,
            rate_before: 0,
            settled: 0,
        }
    }

    fn note(&mut self, bytes: u64, waited: Duration, part_bytes: u64) {
        self.parts = self.parts.min(self.parts_max);
        self.bytes += bytes;
        self.waited += waited;
        let took = self.began.elapsed();
        if self.parts_max == 0 || took < WINDOW || self.bytes < part_bytes * (self.parts + 1) {
            return;
        }
        let rate = u64::try_from(u128::from(self.bytes) * 1000 / took.as_millis().max(1));
        let waiting = self.waited * 100 >= took * WAITING_PERCENT_MIN;
        self.judge(rate.unwrap_or(u64::MAX), waiting);
        (self.began, self.bytes, self.waited) = (Instant::now(), 0, Duration::ZERO);
    }

    /// Decides after a window in which `rate` bytes came a second, with the stream `waiting` for
    /// them or not.
    fn judge(&mut self, rate: u64, waiting: bool) {
        if self.settled > 0 {
            self.settled -= 1;
            return;
        }
        let wanted = u128::from(self.rate_before) * u128::from(100 + GAIN_PERCENT_MIN);
        let gained = u128::from(rate) * 100 >= wanted;
        if self.rate_before > 0 && !gained {
            self.parts = self.parts.saturating_sub(1);
            self.rate_before = 0;
            self.settled = SETTLED_WINDOWS;
        } else if waiting && self.parts < self.parts_max {
            self.rate_before = rate;
            self.parts += 1;
        } else {
            self.rate_before = 0;
        }
    }
}

/// The fetching of one part.
struct PartFetch {
    repository: Repository,
    origin: Origin,
    /// First byte, and the one after the last.
    range: (u64, u64),
    size: u64,
}

impl PartFetch {
    async fn run(self, pieces: mpsc::Sender<Result<Bytes, Failure>>) {
        let (mut position, end) = self.range;
        let mut failures = 0;
        loop {
            let before = position;
            let failure = match self.read(&mut position, &pieces).await {
                Ok(()) if position >= end => return,
                Ok(()) => Failure::passing("the connection ended early"),
                Err(Some(failure)) => failure,
                // Nobody reads any more.
                Err(None) => return,
            };
            failures = if position > before { 1 } else { failures + 1 };
            if !failure.transient || failures > RESUMES_WITHOUT_PROGRESS_MAX {
                let _ = pieces.send(Err(failure)).await;
                return;
            }
            let pause = BACKOFF_FIRST * 2u32.saturating_pow(failures - 1);
            tokio::time::sleep(pause.min(BACKOFF_MAX)).await;
        }
    }

    /// Reads from `position` on until the part or the connection ends. None as the error: nobody
    /// wants the bytes.
    async fn read(
        &self,
        position: &mut u64,
        pieces: &mpsc::Sender<Result<Bytes, Failure>>,
    ) -> Result<(), Option<Failure>> {
        let mut response = self.open(*position).await?;
        let mut meter = Meter::default();
        let mut piece = BytesMut::new();
        loop {
            let chunk = meter.chunk(&mut response).await;
            let (chunk, ended) = match chunk {
                Ok(Some(chunk)) => (chunk, None),
                Ok(None) => (Bytes::new(), Some(Ok(()))),
                Err(failure) => (Bytes::new(), Some(Err(Some(failure)))),
            };
            let left = self.range.1 - *position - piece.len() as u64;
            if chunk.len() as u64 > left {
                let why = "sent more than the part asked for";
                return Err(Some(Failure::lasting(Class::DataLoss, why)));
            }
            // Always copied: a chunk keeps the whole buffer that it was read into, of which it may
            // be a small part.
            if piece.capacity() == 0 {
                piece.reserve(PIECE_BYTES + chunk.len());
            }
            piece.extend_from_slice(&chunk);
            let whole = ended.is_some() || piece.len() as u64 + *position == self.range.1;
            let out = if whole || piece.len() >= PIECE_BYTES {
                std::mem::take(&mut piece).freeze()
            } else {
                Bytes::new()
            };
            if !out.is_empty() {
                let len = out.len() as u64;
                pieces.send(Ok(out)).await.map_err(|_| None)?;
                *position += len;
            }
            if let Some(ended) = ended {
                return ended;
            }
        }
    }

    async fn open(&self, position: u64) -> Result<reqwest::Response, Option<Failure>> {
        let Origin { host, url, etag } = &self.origin;
        let scope = Scope::pull(self.repository.reference().path());
        let last = self.range.1 - 1;
        let range = HeaderValue::try_from(format!("bytes={position}-{last}"))
            .map_err(|e| Failure::lasting(Class::Internal, format!("range header: {e}")))?;
        let mut request = Request::new(Method::GET, url.clone(), &scope)
            .header(ACCEPT_ENCODING, HeaderValue::from_static("identity"))
            .header(RANGE, range)
            .on_own_connection();
        if let Some(etag) = etag {
            request = request.header(IF_RANGE, etag.clone());
        }
        let response = self.repository.send(host, &request).await?;
        let status = response.status();
        if status.is_client_error() || status.is_server_error() {
            return Err(Some(Failure::of_response(response).await));
        }
        let part = content_range(response.headers());
        let same = matches!(part, Some((start, total))
            if start == position && total.is_none_or(|total| total == self.size));
        if status.as_u16() != 206 || !same {
            // The whole blob, or of another one: the stream decides what to make of it.
            let why = format!("answered {status} to a part");
            return Err(Some(Failure::lasting(Class::FailedPrecondition, why)));
        }
        Ok(response)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The number of parts after each window of these rates.
    fn parts(pace: &mut Pace, rates: &[(u64, bool)]) -> Vec<u64> {
        let judged = rates.iter().map(|(rate, waiting)| {
            pace.judge(*rate, *waiting);
            pace.parts
        });
        judged.collect()
    }

    #[test]
    fn connections_are_added_while_they_help() {
        let mut pace = Pace::new(7);
        let rates = [(100, true), (200, true), (290, true), (300, true), (300, true)];
        assert_eq!(parts(&mut pace, &rates), [1, 2, 3, 2, 2]);
        // They are tried again later, not at once.
        assert_eq!(parts(&mut pace, &vec![(300, true); 63]), vec![2; 63]);
        assert_eq!(parts(&mut pace, &[(300, true)]), [3]);
    }

    #[test]
    fn a_slow_reader_gets_no_more() {
        let mut pace = Pace::new(7);
        assert_eq!(parts(&mut pace, &[(100, false), (100, false)]), [0, 0]);
        assert_eq!(parts(&mut pace, &[(100, true), (150, false), (150, false)]), [1, 1, 1]);
    }

    #[test]
    fn there_is_a_most() {
        let mut pace = Pace::new(2);
        let rates = [(100, true), (200, true), (400, true), (800, true)];
        assert_eq!(parts(&mut pace, &rates), [1, 2, 2, 2]);
    }

    #[test]
    fn little_is_ahead_of_small_blobs_and_nothing_of_smaller_ones() {
        let max = |size| {
            let ahead = Ahead::new(size, AheadBudget::default());
            (ahead.pace.parts_max, ahead.part_bytes)
        };
        assert_eq!(max(PARALLEL_SIZE_MIN - 1).0, 0);
        let (parts, bytes) = max(PARALLEL_SIZE_MIN);
        assert!(parts > 0 && parts * bytes <= PARALLEL_SIZE_MIN / 25);
        let (parts, bytes) = max(5 << 30);
        assert_eq!((parts, bytes), (CONNECTIONS_PER_BLOB_MAX - 1, PART_BYTES_MAX));
    }
}
