//! `gantry.services.documents.v1`.

use futures_util::stream;
use gantry_api::gantry::services::documents::v1 as wire;
use gantry_api::gantry::services::documents::v1::documents_server::Documents;
use gantry_core::Digest;
use gantry_errdefs::{Error, Result};
use gantry_metadata::Db;
use tonic::{Request, Response, Status};

use crate::call;
use crate::stream::Answers;

/// Documents asked for in one call; clients with more ask again.
const DIGEST_COUNT_MAX: usize = 10_000;

/// Documents in one message.
const PAGE_LEN: usize = 64;

/// Largest document that is sent this way; few manifests and configs are larger. With
/// [`PAGE_LEN`] it keeps messages at half of what gRPC clients take.
const DOCUMENT_LEN_MAX: u64 = 32 << 10;

/// Reads many manifests and configs at once.
#[derive(Clone, Debug)]
pub struct DocumentsService {
    db: Db,
}

impl DocumentsService {
    /// A service over `db`.
    pub fn new(db: Db) -> Self {
        Self { db }
    }
}

#[tonic::async_trait]
impl Documents for DocumentsService {
    type ReadStream = Answers<wire::ReadDocumentsResponse>;

    async fn read(
        &self,
        request: Request<wire::ReadDocumentsRequest>,
    ) -> Result<Response<Self::ReadStream>, Status> {
        let ctx = call::context(&request)?;
        let asked = request.into_inner().digests;
        if asked.len() > DIGEST_COUNT_MAX {
            let why = format!("{} documents in one call, at most {DIGEST_COUNT_MAX}", asked.len());
            return Err(Error::invalid_argument(why).into());
        }
        let digests = asked.iter().map(|text| text.parse()).collect::<Result<Vec<Digest>>>()?;
        let content = self.db.content();
        let pages = stream::unfold(digests.into_iter(), move |mut rest| {
            let (content, ctx) = (content.clone(), ctx.clone());
            async move {
                let page: Vec<Digest> = rest.by_ref().take(PAGE_LEN).collect();
                if page.is_empty() {
                    return None;
                }
                let read = content.read_small(&ctx, page, DOCUMENT_LEN_MAX).await;
                Some((read.map(to_wire).map_err(Status::from), rest))
            }
        });
        Ok(Response::new(Box::pin(pages)))
    }
}

fn to_wire(read: Vec<(Digest, bytes::Bytes)>) -> wire::ReadDocumentsResponse {
    let documents = read
        .into_iter()
        .map(|(digest, data)| wire::Document { digest: digest.into(), data: data.into() })
        .collect();
    wire::ReadDocumentsResponse { documents }
}
