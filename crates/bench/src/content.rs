//! Blobs: many small ones, one large one.

use std::time::Instant;

use bytes::Bytes;
use gantry_api::containerd::services::content::v1 as content;
use gantry_core::Digest;
use gantry_errdefs::{Error, Result};

use crate::Pair;
use crate::client::{Client, rate};
use crate::report::Report;

const SMALL_LEN: usize = 4096;
const SMALL_COUNT: usize = 400;
const LARGE_LEN: usize = 64 << 20;
const CHUNK_LEN: usize = 1 << 20;

pub(crate) async fn run(pair: &Pair, report: &mut Report) -> Result<()> {
    for (run, workers) in [1, 16].into_iter().enumerate() {
        let mut rates = [0.0; 2];
        for (side, (_, client)) in pair.daemons.iter().enumerate() {
            let client = client.clone();
            rates[side] = rate(SMALL_COUNT, workers, move |n| {
                let client = client.clone();
                async move {
                    let mut data = vec![0_u8; SMALL_LEN];
                    data[..16].copy_from_slice(format!("{run:08}{n:08}").as_bytes());
                    write(&client, &format!("small-{run}-{n}"), data.into()).await
                }
            })
            .await?;
        }
        report.rates(&format!("4 KiB blobs, {workers} writers"), rates);
    }
    let mut sides = [Vec::new(), Vec::new()];
    for round in 0..3_u8 {
        for (side, (_, client)) in pair.daemons.iter().enumerate() {
            let data = Bytes::from(vec![round; LARGE_LEN]);
            let begin = Instant::now();
            write(client, &format!("large-{round}"), data).await?;
            sides[side].push(begin.elapsed());
        }
    }
    report.times("a 64 MiB blob", sides);
    Ok(())
}

async fn write(client: &Client, reference: &str, data: Bytes) -> Result<()> {
    let total = i64::try_from(data.len()).map_err(|_| Error::invalid_argument("blob size"))?;
    let expected = Digest::of(&data).to_string();
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
