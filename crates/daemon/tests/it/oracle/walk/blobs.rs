//! Content.

use gantry_api::containerd::services::content::v1 as content;
use gantry_api::containerd::services::content::v1::content_client::ContentClient;
use gantry_api::containerd::services::namespaces::v1 as namespaces;
use gantry_api::containerd::services::namespaces::v1::namespaces_client::NamespacesClient;
use gantry_core::Digest;
use tonic::{Request, Response, Status};

use super::{BAD_FILTERS, Walk, ask, labels, mask, shown, told};
use crate::harness::{in_ns, leased};

use content::WriteAction::{Commit, Stat, Write};

fn digest(bytes: &[u8]) -> String {
    Digest::of(bytes).to_string()
}

/// A message of a write.
fn message(action: content::WriteAction, reference: &str) -> content::WriteContentRequest {
    content::WriteContentRequest {
        action: action.into(),
        r#ref: reference.into(),
        ..Default::default()
    }
}

fn data(offset: i64, bytes: &'static [u8]) -> content::WriteContentRequest {
    content::WriteContentRequest { offset, data: bytes.into(), ..message(Write, "") }
}

fn commit(offset: i64, total: i64, expected: &str) -> content::WriteContentRequest {
    content::WriteContentRequest { offset, total, expected: expected.into(), ..message(Commit, "") }
}

impl Walk {
    /// Puts down the answers of one write; the last of a commit comes twice from containerd.
    async fn write(&mut self, call: &str, messages: Vec<content::WriteContentRequest>) {
        self.write_as(call, ask(tokio_stream::iter(messages))).await;
    }

    async fn write_as<S>(&mut self, call: &str, request: Request<S>)
    where
        S: tokio_stream::Stream<Item = content::WriteContentRequest> + Send + 'static,
    {
        let mut client = ContentClient::new(self.channel.clone());
        let mut text = Vec::new();
        match client.write(request).await {
            Err(status) => text.push(told(&status)),
            Ok(answers) => {
                let mut answers = answers.into_inner();
                loop {
                    match answers.message().await {
                        Ok(Some(answer)) => text.push(shown(&answer)),
                        Ok(None) => break,
                        Err(status) => {
                            text.push(told(&status));
                            break;
                        }
                    }
                }
            }
        }
        text.dedup();
        self.put(call, text.join("\n"));
    }

    pub(super) async fn blobs(&mut self) {
        self.writes().await;
        self.ingests().await;
        self.blob_records().await;
        self.other_namespaces().await;
    }

    async fn writes(&mut self) {
        self.write("write, no ref", vec![message(Stat, "")]).await;
        self.write("write, no message", vec![]).await;
        self.write("commit, no ref", vec![commit(0, 0, "")]).await;
        self.write("stat", vec![message(Stat, "r")]).await;
        let unleased = in_ns(super::NAMESPACE, tokio_stream::iter([message(Stat, "u")]));
        self.write_as("write, unknown lease", leased(unleased, "nobody's")).await;
        let known = |n: &str| content::WriteContentRequest { total: 5, ..message(Stat, n) };
        self.write("write by pieces", vec![known("r"), data(0, b"he"), data(2, b"llo")]).await;
        self.write("write, nothing", vec![message(Stat, "r"), data(5, b"")]).await;
        self.write("write, a gap", vec![message(Stat, "r"), data(7, b"x")]).await;
        self.write("write, back", vec![message(Stat, "r"), data(3, b"x")]).await;
        self.write("write, negative offset", vec![message(Stat, "r"), data(-1, b"x")]).await;
        self.write("write, over again", vec![message(Stat, "r"), data(0, b"hello")]).await;
        let stat = || message(Stat, "r");
        self.write("commit, wrong total", vec![stat(), commit(5, 6, "")]).await;
        self.write("commit, wrong digest", vec![stat(), commit(5, 5, &digest(b"x"))]).await;
        self.write("commit, bad digest", vec![stat(), commit(5, 5, "sha256:x")]).await;
        self.write("commit, wrong offset", vec![stat(), commit(4, 5, "")]).await;
        let long = content::WriteContentRequest {
            labels: labels(&[("key", &"v".repeat(4094))]),
            ..commit(5, 5, "")
        };
        self.write("commit, long label", vec![stat(), long]).await;
        let labelled = content::WriteContentRequest {
            labels: labels(&[("l", "1")]),
            ..commit(5, 5, &digest(b"hello"))
        };
        self.write("commit", vec![stat(), labelled]).await;
        let again =
            content::WriteContentRequest { expected: digest(b"hello"), ..message(Stat, "s") };
        self.write("write what is there", vec![again]).await;
        self.write(
            "write it anyway",
            vec![message(Stat, "s"), data(0, b"hello"), commit(5, 5, "")],
        )
        .await;
        let later =
            content::WriteContentRequest { expected: digest(b"hello"), ..message(Stat, "") };
        self.write("told later", vec![message(Stat, "s"), later]).await;
        let bad =
            content::WriteContentRequest { expected: "nonsense".into(), ..message(Stat, "s") };
        self.write("expect nonsense", vec![bad]).await;
        let other = message(Stat, "other");
        self.write("another ref on the way", vec![message(Stat, "s"), other]).await;
        let all =
            content::WriteContentRequest { data: b"one".as_slice().into(), ..message(Commit, "o") };
        self.write("all in one message", vec![all]).await;
        let empty = message(Commit, "empty");
        self.write("an empty blob", vec![empty]).await;
        self.write(
            "after the commit",
            vec![
                content::WriteContentRequest {
                    data: b"two".as_slice().into(),
                    ..message(Commit, "t")
                },
                message(Stat, "t"),
            ],
        )
        .await;
        let unknown = content::WriteContentRequest { action: 9, ..message(Stat, "a") };
        self.write("unknown action", vec![unknown]).await;
    }

    async fn ingests(&mut self) {
        let mut c = ContentClient::new(self.channel.clone());
        self.write("begin one", vec![message(Stat, "i"), data(0, b"abc")]).await;
        let status = |r: &str| ask(content::StatusRequest { r#ref: r.into() });
        self.note("status", c.status(status("i")).await);
        self.note("status, none", c.status(status("gone")).await);
        self.note("status, no ref", c.status(status("")).await);
        let list =
            |filter: &str| ask(content::ListStatusesRequest { filters: vec![filter.into()] });
        self.note("statuses", c.list_statuses(list("ref==i")).await);
        self.note("statuses, other field", c.list_statuses(list("x==i")).await);
        for bad in ["name===", "ref==", "ref!x"] {
            self.note(&format!("statuses {bad:?}"), c.list_statuses(list(bad)).await);
        }
        let abort = |r: &str| ask(content::AbortRequest { r#ref: r.into() });
        self.note("abort", c.abort(abort("i")).await);
        self.note("abort again", c.abort(abort("i")).await);
        self.note("abort, no ref", c.abort(abort("")).await);
    }

    async fn blob_records(&mut self) {
        let mut c = ContentClient::new(self.channel.clone());
        let hello = digest(b"hello");
        let info = |digest: &str| ask(content::InfoRequest { digest: digest.into() });
        self.note("info", c.info(info(&hello)).await);
        self.note("info, none", c.info(info(&digest(b"gone"))).await);
        for bad in ["", "x", "sha256:x", "md5:ab", "sha256:AB"] {
            self.note(&format!("info {bad:?}"), c.info(info(bad)).await);
        }
        for (digest, offset, size) in [
            (hello.as_str(), 0, 0),
            (&hello, 1, 2),
            (&hello, 4, 9),
            (&hello, 5, 0),
            (&hello, 6, 0),
            (&hello, 6, 1),
            (&hello, -1, 0),
            (&hello, 0, -1),
            ("x", 0, 0),
            (&digest(b"gone"), 0, 0),
        ] {
            let read = content::ReadContentRequest { digest: digest.into(), offset, size };
            let came = match c.read(ask(read)).await {
                Ok(mut read) => read.get_mut().message().await.map(Response::new),
                Err(status) => Err::<_, Status>(status),
            };
            self.note(&format!("read {digest} from {offset} for {size}"), came);
        }
        let filters = ["labels.l==1", "labels.x", "size==5,labels.l", "x!=1,labels.l"];
        for filter in filters.into_iter().map(str::to_owned).chain([format!("digest=={hello}")]) {
            self.list(&filter).await;
        }
        for bad in BAD_FILTERS {
            self.list(bad).await;
        }
        let update = |digest: &str, pairs: &[(&str, &str)], paths: &[&str]| {
            let info = Some(content::Info {
                digest: digest.into(),
                labels: labels(pairs),
                ..Default::default()
            });
            let update_mask = (!paths.is_empty()).then(|| mask(paths).unwrap());
            ask(content::UpdateRequest { info, update_mask })
        };
        for paths in [
            &["labels.l"][..],
            &["labels"],
            &["labels."],
            &["size"],
            &["digest"],
            &["created_at"],
            &["nonsense"],
            &["labels.l", "size"],
            &[],
        ] {
            let came = c.update(update(&hello, &[("l", "2")], paths)).await;
            self.note(&format!("update blob {paths:?}"), came);
        }
        self.note("update blob, none", c.update(update(&digest(b"gone"), &[], &[])).await);
        self.note("update blob, bad digest", c.update(update("x", &[], &[])).await);
        let long = "v".repeat(4094);
        let came = c.update(update(&hello, &[("key", &long)], &["labels.key"])).await;
        self.note("update blob, long label", came);
        let delete = |digest: &str| ask(content::DeleteContentRequest { digest: digest.into() });
        self.note("delete blob, none", c.delete(delete(&digest(b"gone"))).await);
        self.note("delete blob, bad digest", c.delete(delete("x")).await);
        self.note("delete blob", c.delete(delete(&digest(b"one"))).await);
    }

    async fn list(&mut self, filter: &str) {
        let mut c = ContentClient::new(self.channel.clone());
        let request = ask(content::ListContentRequest { filters: vec![filter.into()] });
        let came = match c.list(request).await {
            Ok(mut pages) => pages.get_mut().message().await.map(Response::new),
            Err(status) => Err(status),
        };
        self.note(&format!("list blobs {filter}"), came);
    }

    /// Known bytes from another namespace, as the policy `shared` has it.
    async fn other_namespaces(&mut self) {
        let elsewhere = |messages| in_ns("walk-other", tokio_stream::iter(messages));
        let hello = digest(b"hello");
        let first = content::WriteContentRequest {
            expected: hello.clone(),
            total: 5,
            ..message(Stat, "r")
        };
        self.write_as("known elsewhere", elsewhere(vec![first.clone()])).await;
        self.write_as("committed elsewhere", elsewhere(vec![first, commit(5, 5, &hello)])).await;
        let mut c = ContentClient::new(self.channel.clone());
        let update = content::UpdateRequest {
            info: Some(content::Info { digest: digest(b"two"), ..Default::default() }),
            update_mask: None,
        };
        self.note("update another's blob", c.update(in_ns("walk-other", update)).await);
        let read = content::ReadContentRequest { digest: digest(b"two"), ..Default::default() };
        let came = match c.read(in_ns("walk-other", read)).await {
            Ok(mut read) => read.get_mut().message().await.map(Response::new),
            Err(status) => Err(status),
        };
        self.note("read another's blob", came);
    }

    /// Blobs of a namespace that does not share, then does, then does no more.
    pub(super) async fn shared_by_some(&mut self) {
        let own = digest(b"own");
        let begun = vec![message(Stat, "own"), data(0, b"own"), commit(3, 3, &own)];
        self.write("write what others want", begun).await;
        let known = |reference: &str, total: i64| content::WriteContentRequest {
            expected: digest(b"own"),
            total,
            ..message(Stat, reference)
        };
        for (n, sharing) in ["", "true", "false", "1"].into_iter().enumerate() {
            let paths = ["labels.containerd.io/namespace.shareable"];
            let namespace = namespaces::Namespace {
                name: super::NAMESPACE.into(),
                labels: labels(&[("containerd.io/namespace.shareable", sharing)]),
            };
            let update = namespaces::UpdateNamespaceRequest {
                namespace: Some(namespace),
                update_mask: mask(&paths),
            };
            NamespacesClient::new(self.channel.clone()).update(Request::new(update)).await.unwrap();
            let elsewhere = |messages| in_ns(&format!("walk-{n}"), tokio_stream::iter(messages));
            let shown = |call: &str| format!("{call}, shareable {sharing:?}");
            let stat = vec![known("r", 3)];
            self.write_as(&shown("known elsewhere"), elsewhere(stat)).await;
            let unsized_stat = vec![known("unsized", 0)];
            self.write_as(&shown("known elsewhere, no size"), elsewhere(unsized_stat)).await;
            let other_size = vec![known("other", 4)];
            self.write_as(&shown("known elsewhere, other size"), elsewhere(other_size)).await;
            let nothing = vec![known("nothing", 3), commit(0, 3, &own)];
            self.write_as(&shown("commit of nothing"), elsewhere(nothing)).await;
            let said = vec![known("said", 3), commit(3, 3, &own)];
            self.write_as(&shown("commit of what is said to be there"), elsewhere(said)).await;
            let mut c = ContentClient::new(self.channel.clone());
            let info = || content::InfoRequest { digest: digest(b"own") };
            let elsewhere_info = in_ns(&format!("walk-{n}"), info());
            self.note(&shown("info"), c.info(elsewhere_info).await);
            let bytes = vec![known("bytes", 3), data(0, b"own"), commit(3, 3, &own)];
            self.write_as(&shown("all bytes shown"), elsewhere(bytes)).await;
            let elsewhere_info = in_ns(&format!("walk-{n}"), info());
            self.note(&shown("info, bytes shown"), c.info(elsewhere_info).await);
            let again = vec![known("again", 3)];
            self.write_as(&shown("known here"), elsewhere(again)).await;
            let list = in_ns(&format!("walk-{n}"), content::ListStatusesRequest::default());
            let ingests = c.list_statuses(list).await.map(|mut answer| {
                answer.get_mut().statuses.sort_by(|a, b| a.r#ref.cmp(&b.r#ref));
                answer
            });
            self.note(&shown("ingests"), ingests);
        }
    }
}
