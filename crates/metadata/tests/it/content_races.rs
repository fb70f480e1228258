//! Content whose lease ends at the worst moment.

use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use bytes::Bytes;
use gantry_content::{Info, Reader, Status, Store, Writer, WriterOptions};
use gantry_core::Digest;
use gantry_errdefs::{Class, Result};
use gantry_metadata::{Db, Options};

use crate::support::{World, ctx, fails, map};

type ToldDb = Arc<OnceLock<Db>>;

/// A content store during whose commits the lease `l` ends, in the database it was told of.
struct Ending(Arc<dyn Store>, ToldDb);

struct EndingWriter(Box<dyn Writer>, ToldDb);

#[async_trait]
impl Store for Ending {
    async fn info(&self, digest: &Digest) -> Result<Info> {
        self.0.info(digest).await
    }

    async fn reader(&self, digest: &Digest) -> Result<Box<dyn Reader>> {
        self.0.reader(digest).await
    }

    async fn delete(&self, digest: &Digest) -> Result<()> {
        self.0.delete(digest).await
    }

    async fn walk(&self, visit: &mut (dyn FnMut(Info) -> Result<()> + Send)) -> Result<()> {
        self.0.walk(visit).await
    }

    async fn writer(&self, options: WriterOptions) -> Result<Box<dyn Writer>> {
        let writer = self.0.writer(options).await?;
        Ok(Box::new(EndingWriter(writer, Arc::clone(&self.1))))
    }

    async fn status(&self, reference: &str) -> Result<Status> {
        self.0.status(reference).await
    }

    async fn statuses(&self) -> Result<Vec<Status>> {
        self.0.statuses().await
    }

    async fn abort(&self, reference: &str) -> Result<()> {
        self.0.abort(reference).await
    }
}

#[async_trait]
impl Writer for EndingWriter {
    async fn write(&mut self, data: Bytes) -> Result<()> {
        self.0.write(data).await
    }

    fn status(&self) -> Status {
        self.0.status()
    }

    fn digest(&self) -> Digest {
        self.0.digest()
    }

    async fn truncate(&mut self, size: u64) -> Result<()> {
        self.0.truncate(size).await
    }

    async fn commit(self: Box<Self>, size: u64, expected: Option<&Digest>) -> Result<Digest> {
        let digest = self.0.commit(size, expected).await?;
        if let Some(db) = self.1.get() {
            db.leases().delete(&ctx("default"), "l", false).await?;
        }
        Ok(digest)
    }
}

/// A client that goes away takes its lease along while a commit of its is done to its end. No
/// record of the ingest may stay either: it would hold the blob, once someone fetches it again.
#[tokio::test]
async fn a_commit_whose_lease_ends_leaves_nothing() {
    let w = World::new();
    let told = ToldDb::default();
    let content: Arc<dyn Store> = Arc::new(Ending(Arc::clone(&w.content), Arc::clone(&told)));
    let db = Db::open(Options::new(Arc::clone(&w.store), content)).unwrap();
    let (plain, bytes) = (ctx("default"), Bytes::from_static(b"hello"));
    let digest = Digest::of(&bytes);
    let options =
        || WriterOptions { reference: "r".to_owned(), total: 5, expected: Some(digest.clone()) };
    db.leases().create(&plain, "l", map(&[])).await.unwrap();
    let leased = plain.clone().with_lease("l");
    let mut writer = db.content().writer(&leased, options()).await.unwrap();
    writer.write(bytes.clone()).await.unwrap();
    told.set(db.clone()).unwrap();
    fails(writer.commit(5, None, map(&[])).await, Class::NotFound);
    assert!(!w.stored(&digest).await);
    assert!(db.content().statuses(&plain, &[]).await.unwrap().is_empty());

    // Fetched again under another name, and let go.
    db.leases().create(&plain, "l", map(&[])).await.unwrap();
    let again = WriterOptions { reference: "again".to_owned(), ..options() };
    let mut writer = db.content().writer(&plain, again).await.unwrap();
    writer.write(bytes).await.unwrap();
    writer.commit(5, None, map(&[])).await.unwrap();
    db.gc().run().await.unwrap();
    assert!(!w.stored(&digest).await, "something holds it");
}
