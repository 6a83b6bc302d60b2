//! Certificates for tests. Dev-quality: keys are made on the spot and never leave memory, and nothing is revoked.

use crate::answer::Protocol;
use crate::link::Wire;

#[cfg(feature = "tls")]
mod with {
    use std::sync::Arc;

    use consort_core::{Error, ErrorKind, Result};
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType};
    use tokio_rustls::TlsAcceptor;
    use tokio_rustls::rustls::ServerConfig as Rustls;
    use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
    use tokio_rustls::server::TlsStream;

    use super::{Protocol, Wire};

    /// What is wrong with a certificate, or not.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Certificate {
        /// For `localhost` and 127.0.0.1, signed by the authority whose certificate the client is given.
        Right,
        /// For another host's name.
        WrongName,
        /// Signed by itself: no authority knows it.
        SelfSigned,
        /// Signed by an authority of the same name that the client is not given.
        UnknownAuthority,
        /// It ended in 2001.
        Expired,
        /// It begins in 2090.
        NotYet,
    }

    /// TLS for a server.
    #[derive(Clone)]
    pub struct ServerTls {
        chain: CertificateDer<'static>,
        key: Vec<u8>,
        authority: String,
    }

    impl std::fmt::Debug for ServerTls {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.debug_struct("ServerTls").finish_non_exhaustive()
        }
    }

    fn failed(error: impl std::error::Error + Send + Sync + 'static) -> Error {
        Error::new(ErrorKind::Unexpected, format!("no certificate can be made: {error}"))
            .with_operation("vllm_replay::tls")
            .with_source(error)
    }

    /// An authority, and its certificate.
    fn authority() -> Result<(Issuer<'static, KeyPair>, String)> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "consort test authority");
        let key = KeyPair::generate().map_err(failed)?;
        let certificate = params.self_signed(&key).map_err(failed)?;
        let pem = certificate.pem();
        Ok((Issuer::new(params, key), pem))
    }

    impl ServerTls {
        /// Makes a certificate.
        ///
        /// # Errors
        ///
        /// [`Unexpected`](ErrorKind::Unexpected) if the cryptography fails.
        pub fn make(certificate: Certificate) -> Result<Self> {
            let (issuer, known) = authority()?;
            let name = if certificate == Certificate::WrongName { "elsewhere.invalid" } else { "localhost" };
            let mut params = CertificateParams::new(vec![name.to_owned()]).map_err(failed)?;
            if certificate != Certificate::WrongName {
                params.subject_alt_names.push(SanType::IpAddress(std::net::Ipv4Addr::LOCALHOST.into()));
            }
            match certificate {
                Certificate::Expired => {
                    params.not_before = rcgen::date_time_ymd(2000, 1, 1);
                    params.not_after = rcgen::date_time_ymd(2001, 1, 1);
                }
                Certificate::NotYet => {
                    params.not_before = rcgen::date_time_ymd(2090, 1, 1);
                    params.not_after = rcgen::date_time_ymd(2091, 1, 1);
                }
                _ => {}
            }
            let key = KeyPair::generate().map_err(failed)?;
            let made = match certificate {
                Certificate::SelfSigned => params.self_signed(&key),
                Certificate::UnknownAuthority => params.signed_by(&key, &authority()?.0),
                _ => params.signed_by(&key, &issuer),
            }
            .map_err(failed)?;
            Ok(Self { chain: made.der().clone(), key: key.serialize_der(), authority: known })
        }

        /// The authority's certificate in PEM: what a client is told to trust.
        #[must_use]
        pub fn authority_pem(&self) -> &str {
            &self.authority
        }

        pub(crate) fn acceptor(&self) -> Result<Acceptor> {
            let configure = |protocol: &[u8]| -> Result<TlsAcceptor> {
                let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
                let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.clone()));
                let mut config = Rustls::builder_with_provider(provider)
                    .with_safe_default_protocol_versions()
                    .and_then(|builder| builder.with_no_client_auth().with_single_cert(vec![self.chain.clone()], key))
                    .map_err(failed)?;
                config.alpn_protocols = vec![protocol.to_vec()];
                Ok(TlsAcceptor::from(Arc::new(config)))
            };
            Ok(Acceptor { http: configure(b"http/1.1")?, grpc: configure(b"h2")? })
        }
    }

    /// Begins TLS on connections.
    #[derive(Clone)]
    pub(crate) struct Acceptor {
        http: TlsAcceptor,
        grpc: TlsAcceptor,
    }

    impl std::fmt::Debug for Acceptor {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.debug_struct("Acceptor").finish_non_exhaustive()
        }
    }

    impl Acceptor {
        /// Begins TLS. `None` if the client does not want it so.
        pub(crate) async fn accept(&self, wire: Wire, protocol: Protocol) -> Option<TlsStream<Wire>> {
            match protocol {
                Protocol::Http => self.http.accept(wire).await.ok(),
                Protocol::Grpc => self.grpc.accept(wire).await.ok(),
            }
        }
    }
}

#[cfg(feature = "tls")]
pub(crate) use with::Acceptor;
#[cfg(feature = "tls")]
pub use with::{Certificate, ServerTls};

/// TLS for a server. Without the feature `tls` there is none.
#[cfg(not(feature = "tls"))]
#[derive(Debug, Clone)]
pub enum ServerTls {}

#[cfg(not(feature = "tls"))]
impl ServerTls {
    pub(crate) fn acceptor(&self) -> consort_core::Result<Acceptor> {
        match *self {}
    }
}

/// Begins TLS on connections. Without the feature `tls` there is none.
#[cfg(not(feature = "tls"))]
#[derive(Debug, Clone)]
pub(crate) enum Acceptor {}

#[cfg(not(feature = "tls"))]
impl Acceptor {
    pub(crate) async fn accept(&self, _: Wire, _: Protocol) -> Option<Wire> {
        match *self {}
    }
}
