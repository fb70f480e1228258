//! Blobs: many small ones, one large one.

use std::time::Instant;

use bytes::Bytes;
use gantry_api::containerd::services::content::v1 as content;
use gantry_core::Digest;
use gantry_errdefs::{Error, Result};

use crate::Pair;
use crate::client::{Client, rates};
use crate::report::Report;

const SMALL_LEN: usize = 4096;
const SMALL_COUNT: usize = 1008;
const LARGE_LEN: usize = 64 << 20;
const LARGE_COUNT: u8 = 7;
const CHUNK_LEN: usize = 1 << 20;

pub(crate) async fn run(pair: &Pair, report: &mut Report) -> Result<()> {
    for (run, workers) in [1, 16].into_iter().enumerate() {
        let rates = rates(pair, SMALL_COUNT, workers, move |client, n| async move {
            let mut data = vec![0_u8; SMALL_LEN];
            data[..16].copy_from_slice(format!("{run:08}{n:08}").as_bytes());
            let digest = Digest::of(&data);
            write(&client, &format!("small-{run}-{n}"), data.into(), &digest).await
        });
        report.rates(&format!("4 KiB blobs, {workers} writers"), rates.await?);
    }
    let mut sides = [Vec::new(), Vec::new()];
    for round in 0..LARGE_COUNT {
        let data = Bytes::from(vec![round; LARGE_LEN]);
        let digest = Digest::of(&data);
        let first = usize::from(round % 2);
        for side in [first, 1 - first] {
            let begin = Instant::now();
            let reference = format!("large-{round}");
            write(&pair.daemons[side].1, &reference, data.clone(), &digest).await?;
            sides[side].push(begin.elapsed());
        }
    }
    report.times("a 64 MiB blob", sides);
    Ok(())
}

async fn write(client: &Client, reference: &str, data: Bytes, digest: &Digest) -> Result<()> {
    let total = i64::try_from(data.len()).map_err(|_| Error::invalid_argument("blob size"))?;
    let expected = digest.to_string();
    let mut messages = Vec::new();
    let mut offset = 0;
    while offset < data.len() {
        let end = data.len().min(offset + CHUNK_LEN);
        messages.push(content::WriteContentRequest {
            action: if end == data.len() { 2 } else { 1 },
            r#ref: reference.to_owned(),
            total,
            expected: expected.clone(),
            offset: i64::try_from(offset).unwrap_or(i64::MAX),
            data: data.slice(offset..end),
            ..Default::default()
        });
        offset = end;
    }
    let stream = tokio_stream::iter(messages);
    let mut answers = client.content().write(client.request(stream)).await?.into_inner();
    let mut last = 0;
    while let Some(answer) = answers.message().await? {
        last = answer.offset;
    }
    if last == total {
        Ok(())
    } else {
        Err(Error::data_loss(format!("{reference}: {last} of {total} bytes stored")))
    }
}
