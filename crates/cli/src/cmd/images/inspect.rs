//! `images inspect`.

use clap::Args;
use gantry_client::Client;
use gantry_core::image::{Document, INDEX_DEPTH_MAX};
use gantry_core::{Descriptor, Labels, platforms, timestamp};
use gantry_errdefs::Result;
use serde::Serialize;
use serde_json::Value;

use crate::output::{self, Format};
use crate::session::Session;

#[derive(Debug, Args)]
pub(crate) struct Flags {
    /// Show manifests and configs whole
    #[arg(long)]
    content: bool,
    /// Image
    image: String,
}

/// An image record and all it names.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Inspected {
    name: String,
    created_at: String,
    updated_at: String,
    labels: Labels,
    target: Node,
}

/// A piece of content and what it names.
#[derive(Serialize)]
struct Node {
    #[serde(flatten)]
    descriptor: Descriptor,
    /// Whether it is in the store.
    present: bool,
    /// The document itself, when asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<Value>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    children: Vec<Node>,
}

impl Flags {
    pub(super) async fn execute(self, session: &Session) -> Result<()> {
        let record = session.client.images().get(&self.image).await?;
        let inspected = Inspected {
            target: read(&session.client, record.target, self.content, 0).await?,
            name: record.name,
            created_at: timestamp::format(record.created_at),
            updated_at: timestamp::format(record.updated_at),
            labels: record.labels,
        };
        match session.format {
            Format::Json => output::json(&inspected),
            Format::Table => output::text(&inspected.text()),
        }
        Ok(())
    }
}

/// Reads what is there below `descriptor`.
async fn read(client: &Client, descriptor: Descriptor, keep: bool, depth: usize) -> Result<Node> {
    let mut node = Node { descriptor, present: false, content: None, children: Vec::new() };
    let target = &node.descriptor;
    let (digest, media_type) = (&target.digest, target.media_type.as_str());
    let is_read = target.is_document() || (keep && media_type.ends_with("json"));
    if !is_read {
        node.present = match client.content().info(digest).await {
            Ok(_) => true,
            Err(e) if e.is_not_found() => false,
            Err(e) => return Err(e),
        };
        return Ok(node);
    }
    let bytes = match client.content().read(digest).await {
        Ok(bytes) => bytes,
        Err(e) if e.is_not_found() => return Ok(node),
        Err(e) => return Err(e),
    };
    node.present = true;
    if keep {
        node.content = serde_json::from_slice(&bytes).ok();
    }
    if node.descriptor.is_document() && depth < INDEX_DEPTH_MAX {
        let document = Document::parse(&node.descriptor, &bytes)?;
        for (_, child) in document.children() {
            node.children.push(Box::pin(read(client, child.clone(), keep, depth + 1)).await?);
        }
    }
    Ok(node)
}

impl Inspected {
    fn text(&self) -> String {
        let mut out = format!(
            "{}\n  created: {}\n  updated: {}\n",
            self.name, self.created_at, self.updated_at
        );
        for (key, value) in &self.labels {
            out.push_str(&format!("  label: {key}={value}\n"));
        }
        self.target.text(&mut out, "", "");
        out
    }
}

impl Node {
    /// Adds the lines of this node and below. `branch` leads to it, `indent` to what follows.
    fn text(&self, out: &mut String, branch: &str, indent: &str) {
        let Descriptor { media_type, digest, size, platform, .. } = &self.descriptor;
        out.push_str(&format!("{branch}{media_type} @{digest} ({})", output::bytes(*size)));
        if let Some(platform) = platform {
            out.push_str(&format!(" {}", platforms::format(&platforms::normalize(platform))));
        }
        out.push_str(if self.present { "\n" } else { " missing\n" });
        let below = if self.children.is_empty() { "    " } else { "│   " };
        if let Some(content) = &self.content {
            let pretty = serde_json::to_string_pretty(content).unwrap_or_default();
            for line in pretty.lines() {
                out.push_str(&format!("{indent}{below}{line}\n"));
            }
        }
        for (n, child) in self.children.iter().enumerate() {
            let (branch, next) = if n + 1 == self.children.len() {
                ("└── ", "    ")
            } else {
                ("├── ", "│   ")
            };
            child.text(out, &format!("{indent}{branch}"), &format!("{indent}{next}"));
        }
    }
}
