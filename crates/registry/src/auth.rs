//! Tokens and passwords: answering challenges and remembering the answers.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use gantry_errdefs::{Class, Error, Result};
use http::HeaderValue;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use serde::Deserialize;
use url::Url;

use crate::challenge::{self, Challenge};
use crate::client::Clients;
use crate::credentials::{AuthRequest, Credential, Credentials};
use crate::failure::Failure;
use crate::hosts::{Host, Scheme};
use crate::limits::{
    RESPONSE_TIMEOUT, TOKEN_LIFETIME_DEFAULT, TOKEN_LIFETIME_MARGIN, TOKEN_SIZE_MAX, TOKENS_MAX,
};
use crate::steps::{Observer, Step, shown};

/// The name we give to token servers.
const CLIENT_ID: &str = "gantry";

/// What a request needs to be allowed: the scopes of the token spec.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Scope(Vec<String>);

impl Scope {
    pub(crate) fn pull(repository: &str) -> Self {
        Self(vec![format!("repository:{repository}:pull")])
    }

    pub(crate) fn push(repository: &str) -> Self {
        Self(vec![format!("repository:{repository}:pull,push")])
    }

    /// The same, and pull from another repository too, for mounting its blobs.
    pub(crate) fn and_pull(mut self, repository: &str) -> Self {
        self.0.push(format!("repository:{repository}:pull"));
        self
    }

    /// Adds the scope that the challenge asked for, unless it is covered by name.
    fn with_asked(&self, asked: Option<&str>) -> Vec<String> {
        let mut all = self.0.clone();
        for scope in asked.into_iter().flat_map(str::split_whitespace) {
            let resource = scope.rsplit_once(':').map_or(scope, |(resource, _)| resource);
            let covered = all.iter().any(|s| {
                s == scope || s.rsplit_once(':').is_some_and(|(have, _)| have == resource)
            });
            if !covered {
                all.push(scope.to_owned());
            }
        }
        all
    }
}

/// A header to send and how long it is good for.
struct Known {
    header: HeaderValue,
    /// None: as long as the host takes it.
    until: Option<Instant>,
}

type Key = (String, Scope);

/// The answers to the challenges of every host of a resolver.
pub(crate) struct Auth {
    credentials: Arc<dyn Credentials>,
    /// Who is told what happens.
    observer: Option<Arc<dyn Observer>>,
    /// Never held across an await.
    known: Mutex<HashMap<Key, Known>>,
    /// One token request per host and scope at a time: the others wait and share its answer.
    flights: Mutex<HashMap<Key, Arc<tokio::sync::Mutex<()>>>>,
}

impl Auth {
    pub(crate) fn new(credentials: Arc<dyn Credentials>) -> Self {
        let (known, flights) = (Mutex::default(), Mutex::default());
        Self { credentials, observer: None, known, flights }
    }

    /// The same credentials, and no tokens yet; `observer` is told what happens.
    pub(crate) fn observed(&self, observer: Arc<dyn Observer>) -> Self {
        Self { observer: Some(observer), ..Self::new(self.credentials.clone()) }
    }

    /// Tells what happened, if anyone wants to know.
    pub(crate) fn tell(&self, step: impl FnOnce() -> Step) {
        if let Some(observer) = &self.observer {
            observer.step(step());
        }
    }

    /// Whether anyone wants to see heads.
    pub(crate) fn tells_heads(&self) -> bool {
        self.observer.as_ref().is_some_and(|observer| observer.heads())
    }

    pub(crate) fn credentials(&self) -> Arc<dyn Credentials> {
        self.credentials.clone()
    }

    /// The header to send to `host` without being asked.
    pub(crate) fn header(&self, host: &Host, scope: &Scope) -> Option<HeaderValue> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let found = known.get(&(host.origin(), scope.clone()))?;
        found.until.is_none_or(|until| Instant::now() < until).then(|| found.header.clone())
    }

    /// Answers a refusal: `sent` is the header that was refused. True when there is now another
    /// header to try.
    pub(crate) async fn answer(
        &self,
        clients: &Clients,
        host: &Host,
        scope: &Scope,
        request: AuthRequest,
        sent: Option<&HeaderValue>,
    ) -> Result<bool, Failure> {
        let key = (host.origin(), scope.clone());
        let flight = {
            let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
            flights.entry(key.clone()).or_default().clone()
        };
        let guard = flight.lock().await;
        if self.header(host, scope).is_some_and(|now| Some(&now) != sent) {
            return Ok(true);
        }
        let outcome = self.ask(clients, host, scope, request).await;
        drop(guard);
        self.flights.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
        let Some(answer) = outcome? else { return Ok(false) };
        if Some(&answer.header) == sent {
            return Ok(false);
        }
        self.remember(key, answer);
        Ok(true)
    }

    fn remember(&self, key: Key, answer: Known) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= TOKENS_MAX {
            let now = Instant::now();
            known.retain(|_, k| k.until.is_some_and(|until| now < until));
            if known.len() >= TOKENS_MAX {
                known.clear();
            }
        }
        known.insert(key, answer);
    }

    async fn ask(
        &self,
        clients: &Clients,
        host: &Host,
        scope: &Scope,
        request: AuthRequest,
    ) -> Result<Option<Known>, Failure> {
        let challenges: Vec<Challenge> =
            request.challenges.iter().flat_map(|h| challenge::parse(h)).collect();
        let credential = self.credentials.get(&request).await?;
        self.tell(|| Step::Credential {
            host: host.origin(),
            kind: match &credential {
                None => "anonymous",
                Some(Credential::Basic { .. }) => "password",
                Some(Credential::RefreshToken(_)) => "refresh token",
                Some(Credential::Header(_)) => "header",
            }
            .to_owned(),
        });
        let find = |scheme: &str| challenges.iter().find(|c| c.scheme == scheme);
        if let Some(Credential::Header(header)) = &credential {
            return Ok(Some(Known { header: secret(header)?, until: None }));
        }
        if let Some(bearer) = find("bearer") {
            let exchange = TokenExchange { clients, host, challenge: bearer, scope };
            let answer = exchange.run(credential.as_ref()).await;
            self.tell(|| Step::Token {
                server: Url::parse(bearer.get("realm").unwrap_or_default())
                    .map_or_else(|_| "?".to_owned(), |realm| shown(&realm)),
                outcome: match &answer {
                    Ok(_) => "a token".to_owned(),
                    Err(failure) => failure.reason.clone(),
                },
            });
            return answer.map(Some);
        }
        match (find("basic"), &credential) {
            (Some(_), Some(Credential::Basic { username, secret: password })) => {
                Ok(Some(Known { header: basic(username, password)?, until: None }))
            }
            _ => Ok(None),
        }
    }
}

/// One exchange with a token server.
struct TokenExchange<'a> {
    clients: &'a Clients,
    host: &'a Host,
    challenge: &'a Challenge,
    scope: &'a Scope,
}

/// What a token server answers; everything else in it is not for us.
#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

impl TokenExchange<'_> {
    async fn run(&self, credential: Option<&Credential>) -> Result<Known, Failure> {
        let realm = self.realm(credential.is_some())?;
        let shown = format!("token server {}", realm.host_str().unwrap_or_default());
        let scheme = if realm.scheme() == "https" { Scheme::Https } else { Scheme::Http };
        let client = self.clients.get(self.host, scheme, false).await?;
        let request = match credential {
            Some(Credential::RefreshToken(token)) => self.post(&client, realm, token),
            Some(Credential::Basic { username, secret }) => self
                .get(&client, realm, Some(username))
                .header(AUTHORIZATION, basic(username, secret)?),
            _ => self.get(&client, realm, None),
        };
        let started = Instant::now();
        let response = tokio::time::timeout(RESPONSE_TIMEOUT, request.send())
            .await
            .map_err(|_| Failure::passing(format!("{shown}: no answer in {RESPONSE_TIMEOUT:?}")))?
            .map_err(|e| prefixed(&shown, Failure::of_request(e)))?;
        if !response.status().is_success() {
            return Err(prefixed(&shown, Failure::of_response(response).await));
        }
        let body = read_limited(response, TOKEN_SIZE_MAX).await.map_err(|f| prefixed(&shown, f))?;
        let broken =
            || Failure::lasting(Class::Unknown, format!("{shown}: answer without a token"));
        let answer: TokenAnswer = serde_json::from_slice(&body).map_err(|_| broken())?;
        let token = answer.token.filter(|t| !t.is_empty()).or(answer.access_token);
        let token = token.filter(|t| !t.is_empty()).ok_or_else(broken)?;
        let life = answer.expires_in.map_or(TOKEN_LIFETIME_DEFAULT, std::time::Duration::from_secs);
        let life = life.saturating_sub(TOKEN_LIFETIME_MARGIN).max(life / 2);
        Ok(Known { header: secret(&format!("Bearer {token}"))?, until: started.checked_add(life) })
    }

    /// The token server's address. Credentials go to a plain one only if the registry is plain.
    fn realm(&self, with_credential: bool) -> Result<Url, Failure> {
        let text = self.challenge.get("realm").unwrap_or_default();
        let bad = |why: &str| {
            Failure::lasting(Class::Unauthenticated, format!("bearer realm {text:?}: {why}"))
        };
        let realm = Url::parse(text).map_err(|e| bad(&e.to_string()))?;
        match realm.scheme() {
            "https" => {}
            "http" if !with_credential || self.host.scheme == Scheme::Http => {}
            "http" => return Err(bad("credentials are not sent in plain text")),
            _ => return Err(bad("unsupported scheme")),
        }
        Ok(realm)
    }

    fn get(
        &self,
        client: &reqwest::Client,
        mut realm: Url,
        account: Option<&str>,
    ) -> reqwest::RequestBuilder {
        {
            let mut query = realm.query_pairs_mut();
            if let Some(service) = self.challenge.get("service") {
                query.append_pair("service", service);
            }
            for scope in self.scope.with_asked(self.challenge.get("scope")) {
                query.append_pair("scope", &scope);
            }
            if let Some(account) = account {
                query.append_pair("account", account).append_pair("client_id", CLIENT_ID);
            }
        }
        client.get(realm)
    }

    fn post(&self, client: &reqwest::Client, realm: Url, token: &str) -> reqwest::RequestBuilder {
        let scopes = self.scope.with_asked(self.challenge.get("scope")).join(" ");
        let body = url::form_urlencoded::Serializer::new(String::new())
            .append_pair("grant_type", "refresh_token")
            .append_pair("refresh_token", token)
            .append_pair("service", self.challenge.get("service").unwrap_or_default())
            .append_pair("scope", &scopes)
            .append_pair("client_id", CLIENT_ID)
            .finish();
        client.post(realm).header(CONTENT_TYPE, "application/x-www-form-urlencoded").body(body)
    }
}

fn prefixed(what: &str, failure: Failure) -> Failure {
    Failure { reason: format!("{what}: {}", failure.reason), ..failure }
}

fn basic(username: &str, password: &str) -> Result<HeaderValue, Error> {
    secret(&format!("Basic {}", STANDARD.encode(format!("{username}:{password}"))))
}

/// A header value that debug output hides.
fn secret(text: &str) -> Result<HeaderValue, Error> {
    let mut value = HeaderValue::try_from(text)
        .map_err(|_| Error::invalid_argument("credential: not usable as a header"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// Reads a whole body of at most `limit` bytes.
pub(crate) async fn read_limited(
    mut response: reqwest::Response,
    limit: usize,
) -> Result<Vec<u8>, Failure> {
    let mut body = Vec::new();
    let deadline = tokio::time::Instant::now() + RESPONSE_TIMEOUT;
    loop {
        let next = tokio::time::timeout_at(deadline, response.chunk()).await;
        let next = next
            .map_err(|_| Failure::passing(format!("body not complete in {RESPONSE_TIMEOUT:?}")))?;
        let Some(chunk) = next.map_err(Failure::of_request)? else { return Ok(body) };
        if body.len() + chunk.len() > limit {
            return Err(Failure::lasting(
                Class::ResourceExhausted,
                format!("body is larger than {limit} bytes"),
            ));
        }
        body.extend_from_slice(&chunk);
    }
}
