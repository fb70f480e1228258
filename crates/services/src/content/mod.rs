//! `containerd.services.content.v1`.

mod write;

use bytes::Bytes;
use futures_util::stream as futures_stream;
use gantry_api::containerd::services::content::v1 as wire;
use gantry_api::containerd::services::content::v1::content_server::Content;
use gantry_content::Reader;
use gantry_core::Digest;
use gantry_errdefs::{Error, Result};
use gantry_metadata::Db;
use tonic::{Request, Response, Status};

use crate::stream::{self, Answers};
use crate::{call, convert};

/// Bytes in one message of a read; containerd's bound, far below the message limit.
const CHUNK_LEN: usize = 1 << 20;

/// Blobs and ingests.
#[derive(Clone, Debug)]
pub struct ContentService {
    db: Db,
}

impl ContentService {
    /// A service over `db`.
    pub fn new(db: Db) -> Self {
        Self { db }
    }
}

fn digest(text: &str) -> Result<Digest> {
    text.parse()
}

fn status_to_wire(status: gantry_content::Status) -> wire::Status {
    wire::Status {
        started_at: convert::time_to_wire(status.started_at),
        updated_at: convert::time_to_wire(status.updated_at),
        r#ref: status.reference,
        offset: convert::size_to_wire(status.offset),
        total: convert::size_to_wire(status.total),
        expected: status.expected.map(String::from).unwrap_or_default(),
    }
}

/// The part of a blob that a client asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    start: u64,
    end: u64,
}

impl Range {
    /// Size 0 or too large means up to the end, a negative offset the start.
    ///
    /// # Errors
    /// OutOfRange for an offset past the end.
    fn of(request: &wire::ReadContentRequest, blob_len: u64) -> Result<Self> {
        let start = u64::try_from(request.offset).unwrap_or(0);
        if start > blob_len {
            return Err(Error::out_of_range(format!(
                "content {}: read past object length {blob_len} bytes",
                request.digest
            )));
        }
        let left = blob_len - start;
        let len = match u64::try_from(request.size) {
            Ok(size) if size > 0 => size.min(left),
            _ => left,
        };
        Ok(Self { start, end: start + len })
    }
}

/// Reads `range` in chunks, each when the client asks for more. The offset in an answer counts
/// from the start of this read, not of the blob: clients rely on it.
fn read(reader: Box<dyn Reader>, range: Range) -> Answers<wire::ReadContentResponse> {
    Box::pin(futures_stream::try_unfold((reader, range.start), move |(reader, at)| async move {
        if at >= range.end {
            return Ok(None);
        }
        let want = usize::try_from(range.end - at).unwrap_or(CHUNK_LEN).min(CHUNK_LEN);
        let data: Bytes = reader.read_at(at, want).await?;
        if data.is_empty() {
            return Err(Error::data_loss(format!("content: blob ends at {at} bytes")).into());
        }
        let offset = convert::size_to_wire(at - range.start);
        let next = at + data.len() as u64;
        Ok(Some((wire::ReadContentResponse { offset, data }, (reader, next))))
    }))
}

#[tonic::async_trait]
impl Content for ContentService {
    async fn info(
        &self,
        request: Request<wire::InfoRequest>,
    ) -> Result<Response<wire::InfoResponse>, Status> {
        let ctx = call::context(&request)?;
        let info = self.db.content().info(&ctx, &digest(&request.get_ref().digest)?).await?;
        Ok(Response::new(wire::InfoResponse { info: Some(convert::content_info_to_wire(info)) }))
    }

    async fn update(
        &self,
        request: Request<wire::UpdateRequest>,
    ) -> Result<Response<wire::UpdateResponse>, Status> {
        let ctx = call::context(&request)?;
        let request = request.into_inner();
        let info = call::required(request.info, "info")?;
        let digest = digest(&info.digest)?;
        let labels = convert::labels(info.labels);
        let mask = convert::mask(request.update_mask);
        let updated = self.db.content().update(&ctx, &digest, labels, &mask).await?;
        let info = Some(convert::content_info_to_wire(updated));
        Ok(Response::new(wire::UpdateResponse { info }))
    }

    type ListStream = Answers<wire::ListContentResponse>;

    async fn list(
        &self,
        request: Request<wire::ListContentRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        let ctx = call::context(&request)?;
        let found = self.db.content().list(&ctx, &request.get_ref().filters).await?;
        Ok(Response::new(stream::pages(found, |page| wire::ListContentResponse {
            info: page.into_iter().map(convert::content_info_to_wire).collect(),
        })))
    }

    async fn delete(
        &self,
        request: Request<wire::DeleteContentRequest>,
    ) -> Result<Response<()>, Status> {
        let ctx = call::context(&request)?;
        self.db.content().delete(&ctx, &digest(&request.get_ref().digest)?).await?;
        Ok(Response::new(()))
    }

    type ReadStream = Answers<wire::ReadContentResponse>;

    async fn read(
        &self,
        request: Request<wire::ReadContentRequest>,
    ) -> Result<Response<Self::ReadStream>, Status> {
        let ctx = call::context(&request)?;
        let request = request.get_ref();
        let reader = self.db.content().reader(&ctx, &digest(&request.digest)?).await?;
        let range = Range::of(request, reader.size())?;
        Ok(Response::new(read(reader, range)))
    }

    async fn status(
        &self,
        request: Request<wire::StatusRequest>,
    ) -> Result<Response<wire::StatusResponse>, Status> {
        let ctx = call::context(&request)?;
        let status = self.db.content().status(&ctx, &request.get_ref().r#ref).await?;
        Ok(Response::new(wire::StatusResponse { status: Some(status_to_wire(status)) }))
    }

    async fn list_statuses(
        &self,
        request: Request<wire::ListStatusesRequest>,
    ) -> Result<Response<wire::ListStatusesResponse>, Status> {
        let ctx = call::context(&request)?;
        let found = self.db.content().statuses(&ctx, &request.get_ref().filters).await?;
        let statuses = found.into_iter().map(status_to_wire).collect();
        Ok(Response::new(wire::ListStatusesResponse { statuses }))
    }

    type WriteStream = Answers<wire::WriteContentResponse>;

    async fn write(
        &self,
        request: Request<tonic::Streaming<wire::WriteContentRequest>>,
    ) -> Result<Response<Self::WriteStream>, Status> {
        let ctx = call::context(&request)?;
        Ok(Response::new(write::serve(self.db.content(), ctx, request.into_inner())))
    }

    async fn abort(&self, request: Request<wire::AbortRequest>) -> Result<Response<()>, Status> {
        let ctx = call::context(&request)?;
        self.db.content().abort(&ctx, &request.get_ref().r#ref).await?;
        Ok(Response::new(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(offset: i64, size: i64) -> Result<(u64, u64)> {
        let request = wire::ReadContentRequest { digest: "d".into(), offset, size };
        Range::of(&request, 10).map(|r| (r.start, r.end))
    }

    #[test]
    fn ranges_follow_the_contract() {
        assert_eq!(range(0, 0).unwrap(), (0, 10));
        assert_eq!(range(-5, -1).unwrap(), (0, 10));
        assert_eq!(range(4, 3).unwrap(), (4, 7));
        assert_eq!(range(4, 300).unwrap(), (4, 10));
        assert_eq!(range(10, 1).unwrap(), (10, 10));
        assert!(range(11, 0).unwrap_err().is_out_of_range());
    }
}
