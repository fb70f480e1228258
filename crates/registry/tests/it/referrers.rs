//! What refers to an image, by the API and by tags.

use gantry_core::{Digest, media_types};
use gantry_errdefs::Class;
use serde_json::json;

use crate::fake::{Answer, Fake, Request};

fn index(kinds: &[&str]) -> Vec<u8> {
    let manifests: Vec<_> = kinds
        .iter()
        .map(|kind| {
            json!({
                "mediaType": media_types::OCI_MANIFEST, "artifactType": kind, "size": 2,
                "digest": Digest::of(kind.as_bytes()).to_string(),
            })
        })
        .collect();
    let body =
        json!({"schemaVersion": 2, "mediaType": media_types::OCI_INDEX, "manifests": manifests});
    serde_json::to_vec(&body).unwrap()
}

fn subject() -> Digest {
    Digest::of(b"subject")
}

async fn kinds(fake: &Fake, wanted: Option<&str>) -> Vec<String> {
    let found = fake.repository().await.referrers(&subject(), wanted).await.unwrap();
    found.into_iter().map(|d| d.artifact_type.unwrap_or_default()).collect()
}

#[tokio::test]
async fn the_api_is_asked_page_by_page() {
    let fake = Fake::start(|request: &Request| {
        assert_eq!(request.path(), format!("/v2/a/b/referrers/{}", subject()));
        if request.target.contains("page=2") {
            return Answer::body(index(&["sbom"]));
        }
        let next = format!("</v2/a/b/referrers/{}?page=2>; rel=\"next\"", subject());
        Answer::body(index(&["sig", "sbom"])).with("Link", next)
    })
    .await;
    assert_eq!(kinds(&fake, None).await, ["sig", "sbom", "sbom"]);
    // Whether or not the host has chosen.
    assert_eq!(kinds(&fake, Some("sig")).await, ["sig"]);
    assert!(fake.seen().iter().any(|r| r.contains("artifactType=sig")), "{:?}", fake.seen());
}

#[tokio::test]
async fn registries_without_the_api_have_a_tag() {
    let tag = format!("/v2/a/b/manifests/sha256-{}", subject().hex());
    for unknown in [404, 400, 405] {
        let tag = tag.clone();
        let fake = Fake::start(move |request: &Request| match request.path() {
            path if path == tag => Answer::body(index(&["sig"])),
            _ => Answer::status(unknown),
        })
        .await;
        assert_eq!(kinds(&fake, None).await, ["sig"], "{unknown}");
    }
    let fake = Fake::start(|_| Answer::status(404)).await;
    assert_eq!(kinds(&fake, None).await, [""; 0]);
    let page = Fake::start(|request: &Request| match request.path().contains("referrers") {
        true => Answer::body("<html>registry</html>"),
        false => Answer::status(404),
    })
    .await;
    assert_eq!(kinds(&page, None).await, [""; 0]);
}

#[tokio::test]
async fn failures_are_no_empty_list() {
    let fake = Fake::start(|_| Answer::status(403)).await;
    let err = fake.repository().await.referrers(&subject(), None).await.unwrap_err();
    assert_eq!(err.class(), Class::PermissionDenied);
    let endless = Fake::start(|_| {
        Answer::body(index(&["sig"])).with("Link", "</v2/a/b/referrers/x>; rel=\"next\"")
    })
    .await;
    let err = endless.repository().await.referrers(&subject(), None).await.unwrap_err();
    assert_eq!(err.class(), Class::ResourceExhausted);
}
