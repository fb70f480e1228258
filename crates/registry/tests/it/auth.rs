//! Bearer tokens, refresh tokens, passwords.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use gantry_core::{Digest, media_types};
use gantry_errdefs::{Class, Result};
use gantry_registry::{AuthRequest, Credential, Credentials};

use crate::fake::{Answer, Fake};

const MANIFEST: &str = r#"{"schemaVersion":2,"layers":[]}"#;

fn manifest_answer() -> Answer {
    Answer::body(MANIFEST)
        .with("Content-Type", media_types::OCI_MANIFEST)
        .with("Docker-Content-Digest", Digest::of(MANIFEST.as_bytes()))
}

/// Gives one credential and remembers what it was asked.
#[derive(Clone, Default)]
struct One(Option<Credential>, Arc<Mutex<Vec<AuthRequest>>>);

#[async_trait]
impl Credentials for One {
    async fn get(&self, request: &AuthRequest) -> Result<Option<Credential>> {
        self.1.lock().unwrap().push(request.clone());
        Ok(self.0.clone())
    }
}

fn password() -> One {
    One(Some(Credential::Basic { username: "u".into(), secret: "p".into() }), Arc::default())
}

/// A registry whose token server hands out `t1`, `t2`, ...; it takes what `accepts` says.
async fn with_tokens(accepts: impl Fn(&str) -> bool + Send + Sync + 'static) -> (Fake, Fake) {
    let count = AtomicUsize::new(0);
    let tokens = Fake::start(move |_| {
        let n = count.fetch_add(1, Ordering::SeqCst) + 1;
        Answer::body(format!(r#"{{"access_token":"t{n}","expires_in":300,"extra":1}}"#))
    })
    .await;
    let challenge = format!(
        "Bearer realm=\"http://{}/token?x=1\",service=\"reg\",scope=\"repository:a/b:pull\"",
        tokens.authority
    );
    let registry = Fake::start(move |request| match request.header("authorization") {
        Some(header) if accepts(header) => manifest_answer(),
        _ => Answer::status(401).with("WWW-Authenticate", &challenge),
    })
    .await;
    (registry, tokens)
}

#[tokio::test]
async fn anonymous_tokens_are_fetched_once() {
    let (registry, tokens) = with_tokens(|h| h == "Bearer t1").await;
    let repository = registry.repository().await;
    repository.resolve().await.unwrap();
    repository.resolve().await.unwrap();
    assert_eq!(registry.seen().len(), 3, "refused, let in, let in at once");
    assert_eq!(tokens.seen(), ["GET /token?x=1&service=reg&scope=repository%3Aa%2Fb%3Apull"]);
    assert_eq!(tokens.requests()[0].header("authorization"), None);
}

#[tokio::test]
async fn parallel_requests_share_one_token() {
    let (registry, tokens) = with_tokens(|h| h == "Bearer t1").await;
    let repository = registry.repository().await;
    let each = (0..8).map(|_| repository.resolve());
    for outcome in futures_util::future::join_all(each).await {
        outcome.unwrap();
    }
    assert_eq!(tokens.seen().len(), 1);
}

#[tokio::test]
async fn passwords_go_to_the_token_server_only() {
    let (registry, tokens) = with_tokens(|h| h == "Bearer t1").await;
    let credentials = password();
    registry.repository_as(credentials.clone()).await.resolve().await.unwrap();
    let request = &tokens.requests()[0];
    assert_eq!(request.header("authorization"), Some("Basic dTpw"));
    assert!(request.target.contains("account=u"), "{}", request.target);
    assert!(
        registry
            .requests()
            .iter()
            .all(|r| { r.header("authorization").is_none_or(|h| h.starts_with("Bearer")) })
    );
    let asked = credentials.1.lock().unwrap();
    assert_eq!(asked[0].host, registry.authority);
    assert!(asked[0].reference.ends_with("/a/b:tag"));
    assert!(asked[0].challenges[0].starts_with("Bearer"));
}

#[tokio::test]
async fn refresh_tokens_are_posted() {
    let (registry, tokens) = with_tokens(|h| h == "Bearer t1").await;
    let one = One(Some(Credential::RefreshToken("r+f".into())), Arc::default());
    registry.repository_as(one).await.resolve().await.unwrap();
    let request = &tokens.requests()[0];
    assert_eq!(request.method, "POST");
    let body = String::from_utf8(request.body.clone()).unwrap();
    assert!(body.contains("grant_type=refresh_token&refresh_token=r%2Bf"), "{body}");
    assert!(body.contains("scope=repository%3Aa%2Fb%3Apull"), "{body}");
}

#[tokio::test]
async fn refused_tokens_are_renewed_once() {
    let (registry, tokens) = with_tokens(|h| h == "Bearer t2").await;
    let repository = registry.repository().await;
    // t1 is refused even when fresh: that is the registry's answer.
    let err = repository.resolve().await.unwrap_err();
    assert_eq!(err.class(), Class::Unauthenticated, "{err}");
    // The next request finds t1 known, is refused, and gets t2.
    repository.resolve().await.unwrap();
    assert_eq!(tokens.seen().len(), 2);
}

#[tokio::test]
async fn basic_and_ready_headers() {
    for (credential, header) in [
        (Credential::Basic { username: "u".into(), secret: "p".into() }, "Basic dTpw"),
        (Credential::Header("Custom abc".into()), "Custom abc"),
    ] {
        let registry = Fake::start(move |request| match request.header("authorization") {
            Some(h) if h == header => manifest_answer(),
            _ => Answer::status(401).with("WWW-Authenticate", "Basic realm=\"r\""),
        })
        .await;
        let one = One(Some(credential), Arc::default());
        let repository = registry.repository_as(one).await;
        repository.resolve().await.unwrap();
        repository.resolve().await.unwrap();
        assert_eq!(registry.seen().len(), 3);
    }
}

#[tokio::test]
async fn wrong_passwords_and_none_fail_without_a_loop() {
    let registry = Fake::start(|_| {
        let mut answer = Answer::status(401).with("WWW-Authenticate", "Basic realm=\"r\"");
        answer.body = br#"{"errors":[{"code":"UNAUTHORIZED","message":"go away"}]}"#.to_vec();
        answer
    })
    .await;
    let err = registry.repository_as(password()).await.resolve().await.unwrap_err();
    assert_eq!(err.class(), Class::Unauthenticated);
    assert!(err.message().contains("401"), "{err}");
    assert_eq!(registry.seen().len(), 2);
    let err = registry.repository().await.resolve().await.unwrap_err();
    assert_eq!(err.class(), Class::Unauthenticated);
}

#[tokio::test]
async fn broken_token_servers_are_named() {
    for body in ["", "{}", r#"{"token":""}"#, "<html>"] {
        let tokens = Fake::start(move |_| Answer::body(body)).await;
        let challenge = format!("Bearer realm=\"http://{}/t\"", tokens.authority);
        let registry =
            Fake::start(move |_| Answer::status(401).with("WWW-Authenticate", &challenge)).await;
        let err = registry.repository().await.resolve().await.unwrap_err();
        assert!(err.message().contains("token server 127.0.0.1"), "{err}");
    }
    for realm in ["", "ftp://x", "not a url"] {
        let challenge = format!("Bearer realm=\"{realm}\"");
        let registry =
            Fake::start(move |_| Answer::status(401).with("WWW-Authenticate", &challenge)).await;
        let err = registry.repository().await.resolve().await.unwrap_err();
        assert_eq!(err.class(), Class::Unauthenticated, "{err}");
    }
}

#[tokio::test]
async fn only_the_host_itself_is_answered() {
    let thief = Fake::start(|_| Answer::body(r#"{"token":"t"}"#)).await;
    let challenge = format!("Bearer realm=\"http://{}/t\"", thief.authority);
    let elsewhere =
        Fake::start(move |_| Answer::status(401).with("WWW-Authenticate", &challenge)).await;
    let location = format!("http://{}/x", elsewhere.authority);
    let registry = Fake::start(move |_| Answer::status(307).with("Location", &location)).await;
    let credentials = password();
    let err = registry.repository_as(credentials.clone()).await.resolve().await.unwrap_err();
    assert_eq!(err.class(), Class::Unauthenticated);
    assert!(thief.seen().is_empty(), "credentials went to {:?}", thief.requests());
    assert!(credentials.1.lock().unwrap().is_empty());
}
