//! HTTP clients, one per distinct set of TLS files.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use gantry_errdefs::{Class, Error, Result, ResultExt};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::hosts::{Host, Scheme};
use crate::limits::{
    CLIENTS_MAX, DIAL_TIMEOUT, HTTP2_CONNECTION_WINDOW, HTTP2_STREAM_WINDOW,
    IDLE_CONNECTION_LIFETIME, IDLE_CONNECTIONS_PER_HOST_MAX,
};

/// TLS files of a host, all PEM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct TlsFiles {
    /// Authorities trusted besides the system's.
    pub ca: Vec<PathBuf>,
    /// Client certificates, each with its key; None when both are in one file. The first is used.
    pub client: Vec<(PathBuf, Option<PathBuf>)>,
    /// Accept any server certificate.
    pub skip_verify: bool,
}

impl TlsFiles {
    /// Whether nothing is configured.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// What tells two clients apart. Plain HTTP has its own, so that it works where there are no
/// system certificates to load.
#[derive(Clone, PartialEq, Eq)]
struct Key {
    tls: Option<TlsFiles>,
    dial_timeout: Duration,
    /// Speaks HTTP/1.1 even where the server could do more.
    plain: bool,
}

/// Clients made so far; they hold the connection pools.
#[derive(Default)]
pub(crate) struct Clients {
    /// Newest last. Only looked up and pushed to under the lock; clients are built outside.
    made: Mutex<Vec<(Key, reqwest::Client)>>,
}

impl Clients {
    /// The client for requests to `scheme` on behalf of `host`. With `own_connection` no two
    /// requests share a connection at a time.
    pub(crate) async fn get(
        &self,
        host: &Host,
        scheme: Scheme,
        own_connection: bool,
    ) -> Result<reqwest::Client> {
        let key = Key {
            tls: (scheme == Scheme::Https).then(|| host.tls.clone()),
            dial_timeout: host.dial_timeout.unwrap_or(DIAL_TIMEOUT),
            plain: own_connection && scheme == Scheme::Https,
        };
        if let Some(client) = self.find(&key) {
            return Ok(client);
        }
        let build_key = key.clone();
        let client = tokio::task::spawn_blocking(move || build(&build_key))
            .await
            .map_err(|e| Error::internal(format!("making a registry client: {e}")))??;
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if made.len() >= CLIENTS_MAX {
            made.remove(0);
        }
        made.push((key, client.clone()));
        Ok(client)
    }

    fn find(&self, key: &Key) -> Option<reqwest::Client> {
        let made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        made.iter().find(|(k, _)| k == key).map(|(_, client)| client.clone())
    }
}

impl fmt::Debug for Clients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        write!(f, "Clients({} made)", made.len())
    }
}

fn build(key: &Key) -> Result<reqwest::Client> {
    let mut builder = reqwest::Client::builder();
    if key.plain {
        builder = builder.http1_only();
    }
    builder
        .tls_backend_preconfigured(tls_config(key)?)
        // Redirects are followed by us: only we know which headers may go along.
        .redirect(reqwest::redirect::Policy::none())
        .http2_initial_stream_window_size(HTTP2_STREAM_WINDOW)
        .http2_initial_connection_window_size(HTTP2_CONNECTION_WINDOW)
        .tcp_nodelay(true)
        .connect_timeout(key.dial_timeout)
        .pool_max_idle_per_host(IDLE_CONNECTIONS_PER_HOST_MAX)
        .pool_idle_timeout(IDLE_CONNECTION_LIFETIME)
        .user_agent(concat!("gantry/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|e| Error::internal(format!("making a registry client: {e}")).with_source(e))
}

fn tls_config(key: &Key) -> Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let failed = |e: rustls::Error| {
        Error::new(Class::FailedPrecondition, format!("TLS configuration: {e}")).with_source(e)
    };
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(failed)?;
    let Some(files) = &key.tls else {
        return Ok(builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth());
    };
    let verifier: Arc<dyn ServerCertVerifier> = if files.skip_verify {
        Arc::new(AcceptAny(provider))
    } else {
        let mut roots = Vec::new();
        for path in &files.ca {
            roots.extend(certificates(path)?);
        }
        let verifier = rustls_platform_verifier::Verifier::new_with_extra_roots(roots, provider)
            .map_err(failed)?;
        Arc::new(verifier)
    };
    let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
    let mut config = match files.client.first() {
        None => builder.with_no_client_auth(),
        Some((cert, key)) => {
            let key = key.as_ref().unwrap_or(cert);
            builder
                .with_client_auth_cert(certificates(cert)?, private_key(key)?)
                .map_err(failed)
                .context(|| format!("client certificate {}", cert.display()))?
        }
    };
    // What both can speak, by the order of this list.
    let protocols: &[&[u8]] = if key.plain { &[b"http/1.1"] } else { &[b"h2", b"http/1.1"] };
    config.alpn_protocols = protocols.iter().map(|p| p.to_vec()).collect();
    Ok(config)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let pem = std::fs::read(path).context(|| path.display().to_string())?;
    let parsed: Vec<_> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|e| not_pem(path, &e))?;
    if parsed.is_empty() {
        return Err(not_pem(path, &"it has no certificate"));
    }
    Ok(parsed)
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>> {
    let pem = std::fs::read(path).context(|| path.display().to_string())?;
    PrivateKeyDer::from_pem_slice(&pem).map_err(|e| not_pem(path, &e))
}

fn not_pem(path: &Path, why: &dyn fmt::Display) -> Error {
    Error::invalid_argument(format!("{}: not usable as PEM: {why}", path.display()))
}

/// For `skip_verify`: any certificate, but the server must still hold its key.
#[derive(Debug)]
struct AcceptAny(Arc<CryptoProvider>);

impl ServerCertVerifier for AcceptAny {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
