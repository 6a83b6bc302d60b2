//! TLS for both protocols.

use std::error::Error as StdError;

/// Makes ring the provider of cryptography in this process, unless the application has chosen one.
pub(crate) fn install() {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        // Another thread may have been faster, with the same or with its own choice.
        let _ = rustls::crypto::ring::default_provider().install_default();
    }
}

/// Why a certificate was not accepted, if that is what an error is about.
pub(crate) fn refusal(error: &(dyn StdError + 'static)) -> Option<String> {
    let mut next = Some(error);
    while let Some(error) = next {
        let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        let tls =
            error.downcast_ref::<rustls::Error>().or_else(|| inner.and_then(|e| e.downcast_ref::<rustls::Error>()));
        if let Some(rustls::Error::InvalidCertificate(why)) = tls {
            return Some(why.to_string());
        }
        next = error.source();
    }
    None
}
