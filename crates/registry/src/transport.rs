//! One request to one host: authentication, redirects, deadlines.

use std::time::{Duration, Instant};

use gantry_core::Reference;
use gantry_errdefs::Class;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, HeaderMap, LOCATION, WWW_AUTHENTICATE};
use http::{HeaderName, HeaderValue, Method, StatusCode};
use url::Url;

use crate::auth::{Auth, Scope};
use crate::client::Clients;
use crate::credentials::AuthRequest;
use crate::failure::Failure;
use crate::hosts::{Host, Scheme};
use crate::limits::{REDIRECTS_MAX, RESPONSE_TIMEOUT, UPLOAD_RATE_MIN};
use crate::steps::{self, Step};

/// A body that can be made again, for a request may have to be sent more than once.
pub(crate) type MakeBody<'a> = &'a (dyn Fn() -> reqwest::Body + Send + Sync);

/// A request to a host, before authentication.
pub(crate) struct Request<'a> {
    pub(crate) method: Method,
    pub(crate) url: Url,
    pub(crate) headers: HeaderMap,
    pub(crate) scope: &'a Scope,
    /// The body and its length in bytes.
    pub(crate) body: Option<(MakeBody<'a>, u64)>,
    /// Not together with others on one HTTP/2 connection.
    own_connection: bool,
}

impl<'a> Request<'a> {
    pub(crate) fn new(method: Method, url: Url, scope: &'a Scope) -> Self {
        Self { method, url, headers: HeaderMap::new(), scope, body: None, own_connection: false }
    }

    #[must_use]
    pub(crate) fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.append(name, value);
        self
    }

    /// Sends it on a TCP connection that it shares with no other request meanwhile.
    #[must_use]
    pub(crate) fn on_own_connection(mut self) -> Self {
        self.own_connection = true;
        self
    }

    #[must_use]
    pub(crate) fn body(mut self, make: MakeBody<'a>, len: u64) -> Self {
        self.body = Some((make, len));
        self
    }

    fn deadline(&self) -> Duration {
        let upload = self.body.map_or(0, |(_, len)| len / UPLOAD_RATE_MIN);
        RESPONSE_TIMEOUT + Duration::from_secs(upload)
    }
}

/// Sends a request and returns whatever response comes after redirects; a refusal (401) is
/// answered once if credentials allow.
pub(crate) async fn send(
    clients: &Clients,
    auth: &Auth,
    host: &Host,
    reference: &Reference,
    request: &Request<'_>,
) -> Result<reqwest::Response, Failure> {
    let known = auth.header(host, request.scope);
    let response = follow(clients, auth, host, request, known.as_ref()).await?;
    // Where the host redirected to, or another address, gets no answer: it could name a token
    // server of its own and be sent the host's credentials.
    if response.status() != StatusCode::UNAUTHORIZED || !is_own(host, response.url()) {
        return Ok(response);
    }
    let challenges = response.headers().get_all(WWW_AUTHENTICATE).iter();
    let challenges: Vec<String> =
        challenges.filter_map(|v| v.to_str().ok()).map(str::to_owned).collect();
    auth.tell(|| Step::Challenged { host: host.origin(), challenges: challenges.clone() });
    let asked =
        AuthRequest { host: host.authority.clone(), reference: reference.to_string(), challenges };
    if !auth.answer(clients, host, request.scope, asked, known.as_ref()).await? {
        return Ok(response);
    }
    drop(response);
    let known = auth.header(host, request.scope);
    follow(clients, auth, host, request, known.as_ref()).await
}

/// Sends a request and follows redirects. What proves who we are and what is configured for the
/// host goes to the host itself only.
async fn follow(
    clients: &Clients,
    auth: &Auth,
    host: &Host,
    request: &Request<'_>,
    authorization: Option<&HeaderValue>,
) -> Result<reqwest::Response, Failure> {
    let mut url = request.url.clone();
    // Uploads go on where the host says, which need not be the host itself.
    let mut trusted = is_own(host, &url);
    for _ in 0..=REDIRECTS_MAX {
        let scheme = match url.scheme() {
            "https" => Scheme::Https,
            "http" => Scheme::Http,
            other => return Err(odd_redirect(&format!("to the scheme {other:?}"))),
        };
        let client = clients.get(host, scheme, request.own_connection).await?;
        let mut headers = request.headers.clone();
        if trusted {
            add_own_headers(&mut headers, host, authorization);
        }
        let mut builder = client.request(request.method.clone(), url.clone());
        if let Some((make, len)) = request.body {
            headers.insert(CONTENT_LENGTH, HeaderValue::from(len));
            builder = builder.body(make());
        }
        let sent = auth.tells_heads().then(|| steps::shown_headers(&headers));
        let started = Instant::now();
        let response = tokio::time::timeout(request.deadline(), builder.headers(headers).send())
            .await
            .map_err(|_| Failure::passing(format!("no answer in {:?}", request.deadline())))
            .and_then(|sent| sent.map_err(Failure::of_request));
        auth.tell(|| asked(request, &url, &response, started.elapsed()));
        if let Some(sent) = sent {
            auth.tell(|| heads(request, &url, sent, response.as_ref().ok()));
        }
        let response = response?;
        if !is_redirect(&request.method, response.status()) {
            return Ok(response);
        }
        let Some(location) = response.headers().get(LOCATION).and_then(|l| l.to_str().ok()) else {
            return Err(odd_redirect("without a location"));
        };
        let next = url.join(location).map_err(|e| odd_redirect(&e.to_string()))?;
        // Once the request has left the host, a redirect back does not make it ours again.
        trusted = trusted && next.origin() == url.origin();
        url = next;
    }
    Err(odd_redirect(&format!("more than {REDIRECTS_MAX} times")))
}

/// What came of a request, for who wants to know.
fn asked(
    request: &Request<'_>,
    url: &Url,
    response: &Result<reqwest::Response, Failure>,
    took: Duration,
) -> Step {
    let (method, address) = (request.method.to_string(), steps::shown(url));
    match response {
        Ok(response) => Step::Asked {
            method,
            address,
            status: response.status().as_u16(),
            protocol: format!("{:?}", response.version()),
            millis: steps::millis(took),
        },
        Err(failure) => Step::Unanswered { method, address, reason: failure.reason.clone() },
    }
}

/// The heads of a request and its answer.
fn heads(
    request: &Request<'_>,
    url: &Url,
    sent: Vec<(String, String)>,
    response: Option<&reqwest::Response>,
) -> Step {
    let received = response.map(|r| steps::shown_headers(r.headers())).unwrap_or_default();
    Step::Heads {
        method: request.method.to_string(),
        address: steps::shown(url),
        sent,
        status: response.map(|r| format!("{} {:?}", r.status(), r.version())),
        received,
    }
}

/// Whether an address is the host's own.
fn is_own(host: &Host, url: &Url) -> bool {
    Url::parse(&host.origin()).is_ok_and(|own| own.origin() == url.origin())
}

fn odd_redirect(why: &str) -> Failure {
    Failure::lasting(Class::Unknown, format!("redirected {why}"))
}

fn is_redirect(method: &Method, status: StatusCode) -> bool {
    match status.as_u16() {
        307 | 308 => true,
        // For other methods these would turn the request into a GET, which is never meant here.
        301..=303 => matches!(*method, Method::GET | Method::HEAD),
        _ => false,
    }
}

fn add_own_headers(headers: &mut HeaderMap, host: &Host, authorization: Option<&HeaderValue>) {
    for (name, value) in &host.header {
        let name = HeaderName::try_from(name.as_str());
        if let (Ok(name), Ok(value)) = (name, HeaderValue::try_from(value.as_str())) {
            headers.append(name, value);
        }
    }
    if let Some(authorization) = authorization {
        headers.insert(AUTHORIZATION, authorization.clone());
    }
}
