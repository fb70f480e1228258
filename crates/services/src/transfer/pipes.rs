//! Archives and layers that come over streams, as byte streams for those who read them.

use std::future::Future;

use gantry_errdefs::{Error, Result};
use tokio::io::{AsyncWriteExt as _, DuplexStream};

use crate::streaming::Stream;
use crate::window::{DATA_LEN_MAX, DataReader, DataWriter};

/// Bytes between a stream and who reads or writes it: enough that they seldom wait for each other.
const PIPE_LEN: usize = 2 * DATA_LEN_MAX;

/// Runs `work` on the bytes that come over `stream`.
///
/// # Errors
/// What broke the stream, if it broke; else that of `work`.
pub(super) async fn read<T, F>(stream: Stream, work: impl FnOnce(DuplexStream) -> F) -> Result<T>
where
    F: Future<Output = Result<T>>,
{
    let (reader, mut into) = tokio::io::duplex(PIPE_LEN);
    let pump = async move {
        let mut data = DataReader::new(stream);
        while let Some(bytes) = data.next().await? {
            if into.write_all(&bytes).await.is_err() {
                // The reader has all it wants.
                break;
            }
        }
        Ok::<_, Error>(())
    };
    let work = work(reader);
    tokio::pin!(pump, work);
    tokio::select! {
        done = &mut work => done,
        // Dropping the work undoes it; with the stream broken it could only fail.
        pumped = &mut pump => { pumped?; work.await }
    }
}

/// Sends back what comes.
///
/// # Errors
/// What broke either stream.
pub(super) async fn echo(from: Stream, to: Stream) -> Result<()> {
    let (mut reader, mut writer) = (DataReader::new(from), DataWriter::new(to));
    while let Some(bytes) = reader.next().await? {
        writer.write(bytes).await?;
    }
    writer.flush().await
}
