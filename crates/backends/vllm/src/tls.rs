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
    if let Some(rustls::Error::InvalidCertificate(why)) = error.downcast_ref::<rustls::Error>() {
        return Some(why.to_string());
    }
    // What an error of input and output wraps is not among its sources.
    let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    let wrapped = wrapped.and_then(|inner| refusal(inner));
    wrapped.or_else(|| error.source().and_then(refusal))
}
