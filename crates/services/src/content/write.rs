//! `Write`: an ingest from its first message to its commit.
//!
//! Each message gets one answer. The first names the ingest and locks it for the call; the lock
//! goes, and the bytes stay, when the call ends in any way but a commit.

use futures_util::stream;
use gantry_api::containerd::services::content::v1::{
    WriteAction, WriteContentRequest, WriteContentResponse,
};
use gantry_content::WriterOptions;
use gantry_core::{Context, Digest};
use gantry_errdefs::{Error, Result};
use gantry_metadata::{Content, ContentWriter};
use tonic::{Status, Streaming};

use crate::convert;
use crate::stream::Answers;

/// One call: what it may write to, and the ingest once it is open.
struct Call {
    content: Content,
    ctx: Context,
    messages: Streaming<WriteContentRequest>,
    session: Option<Session>,
    ended: bool,
}

/// An open ingest with what the client told of it so far.
struct Session {
    writer: ContentWriter,
    total: u64,
    expected: Option<Digest>,
    /// Times and size as the last answer to a STAT had them: later answers of the call repeat
    /// them, as clients know it.
    stated: Stated,
}

#[derive(Clone, Debug, Default)]
struct Stated {
    started_at: Option<prost_types::Timestamp>,
    updated_at: Option<prost_types::Timestamp>,
    total: i64,
}

/// Answers the messages of one call as they come.
pub(super) fn serve(
    content: Content,
    ctx: Context,
    messages: Streaming<WriteContentRequest>,
) -> Answers<WriteContentResponse> {
    let call = Call { content, ctx, messages, session: None, ended: false };
    Box::pin(stream::unfold(call, |mut call| async move {
        let answer = call.next().await?;
        Some((answer, call))
    }))
}

impl Call {
    async fn next(&mut self) -> Option<Result<WriteContentResponse, Status>> {
        if self.ended {
            return None;
        }
        let answer = match self.messages.message().await {
            Ok(Some(message)) => self.answer(message).await.map_err(Status::from),
            Ok(None) => {
                self.end();
                return None;
            }
            Err(status) => Err(status),
        };
        if answer.is_err() {
            // The reference must be free by the time the client reads the error.
            self.end();
        }
        Some(answer)
    }

    fn end(&mut self) {
        self.ended = true;
        self.session = None;
    }

    async fn answer(&mut self, message: WriteContentRequest) -> Result<WriteContentResponse> {
        let expected = match message.expected.as_str() {
            "" => None,
            text => Some(text.parse::<Digest>()?),
        };
        let total = u64::try_from(message.total).unwrap_or(0);
        let session = match &mut self.session {
            Some(session) => {
                session.learn(total, expected).await?;
                session
            }
            None => {
                let session = open(&self.content, &self.ctx, &message.r#ref, total, expected);
                self.session.insert(session.await?)
            }
        };
        match WriteAction::try_from(message.action) {
            Ok(WriteAction::Stat) => Ok(session.answer(WriteAction::Stat)),
            Ok(WriteAction::Write) => {
                session.write(&message).await?;
                Ok(session.answer(WriteAction::Write))
            }
            Ok(WriteAction::Commit) => {
                session.write(&message).await?;
                let answer = session.answer(WriteAction::Commit);
                let session = self.session.take();
                self.ended = true;
                commit(session, message, answer).await
            }
            Err(_) => Err(Error::invalid_argument(format!(
                "content ingest: unknown action {}",
                message.action
            ))),
        }
    }
}

async fn open(
    content: &Content,
    ctx: &Context,
    reference: &str,
    total: u64,
    expected: Option<Digest>,
) -> Result<Session> {
    if reference.is_empty() {
        return Err(Error::invalid_argument("content ingest: first message must have a reference"));
    }
    let options =
        WriterOptions { reference: reference.to_owned(), total, expected: expected.clone() };
    let writer = content.writer(ctx, options).await?;
    Ok(Session { writer, total, expected, stated: Stated::default() })
}

async fn commit(
    session: Option<Session>,
    message: WriteContentRequest,
    mut answer: WriteContentResponse,
) -> Result<WriteContentResponse> {
    let session =
        session.ok_or_else(|| Error::internal("content ingest: commit without ingest"))?;
    let labels = convert::labels(message.labels);
    let digest = session.writer.commit(session.total, session.expected.as_ref(), labels).await?;
    answer.digest = digest.into();
    Ok(answer)
}

impl Session {
    /// Takes in what a later message tells of size and digest.
    async fn learn(&mut self, total: u64, expected: Option<Digest>) -> Result<()> {
        if total == 0 && expected.is_none() {
            return Ok(());
        }
        self.writer.expect(total, expected.as_ref()).await?;
        if total > 0 {
            self.total = total;
        }
        if expected.is_some() {
            self.expected = expected;
        }
        Ok(())
    }

    /// Stores the bytes of a message. Offset 0 starts over; any other must be where the stored
    /// bytes end.
    async fn write(&mut self, message: &WriteContentRequest) -> Result<()> {
        let stored = self.writer.status().offset;
        match u64::try_from(message.offset) {
            Ok(0) if stored > 0 => self.writer.truncate(0).await?,
            Ok(offset) if offset > 0 && offset != stored => {
                return Err(Error::out_of_range(format!(
                    "content ingest {:?}: write at {offset} must occur at current offset {stored}",
                    self.writer.status().reference
                )));
            }
            _ => {}
        }
        if !message.data.is_empty() {
            self.writer.write(message.data.clone()).await?;
        }
        Ok(())
    }

    fn answer(&mut self, action: WriteAction) -> WriteContentResponse {
        let status = self.writer.status();
        if action == WriteAction::Stat {
            self.stated = Stated {
                started_at: convert::time_to_wire(status.started_at),
                updated_at: convert::time_to_wire(status.updated_at),
                // What this call knows of it, not what an earlier one told.
                total: convert::size_to_wire(self.total),
            };
        }
        let Stated { started_at, updated_at, total } = self.stated.clone();
        let mut answer = WriteContentResponse {
            action: action.into(),
            started_at,
            updated_at,
            offset: convert::size_to_wire(status.offset),
            total,
            ..Default::default()
        };
        // A commit hashes once more for its answer; that digest replaces this one.
        if action != WriteAction::Commit {
            answer.digest = self.writer.digest().into();
        }
        answer
    }
}
