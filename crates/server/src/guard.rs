//! Whose pages may ask. A web page that somebody has open can send requests to this machine, under its own name (cross-site)
//! or under one that it has made to lead here (DNS rebinding).
//!
//! Against the second, `Host` must be a name that was configured, `localhost`, or an address in digits, which no DNS server
//! can have made up. Against the first, `Origin`, which browsers send with what changes something, must be the host itself
//! or be configured. CORS headers are never sent, so no page of another origin can read an answer.

use std::net::{Ipv4Addr, Ipv6Addr};

use axum::http::{HeaderMap, Uri, header, uri::Authority};

use crate::config::ServerConfig;
use crate::error::Failure;

/// Checks the names under which a request came.
///
/// # Errors
/// 400 without a host, 403 for a name or an origin that was not configured.
pub(crate) fn check(config: &ServerConfig, uri: &Uri, headers: &HeaderMap) -> Result<(), Failure> {
    let host = host_of(uri, headers)?;
    let name = host.host().trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
    let name = name.strip_suffix('.').unwrap_or(&name);
    let in_digits = name.parse::<Ipv4Addr>().is_ok() || name.parse::<Ipv6Addr>().is_ok();
    let configured = || config.allowed_hosts.iter().any(|allowed| allowed.eq_ignore_ascii_case(name));
    if !(in_digits || name == "localhost" || name.ends_with(".localhost") || configured()) {
        return Err(Failure::forbidden(
            "host_not_allowed",
            "this server is not reached under this name: the operator adds it to `allowed_hosts`",
        ));
    }
    let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
    let refused = || {
        Failure::forbidden(
            "origin_not_allowed",
            "pages of this origin may not ask: the operator adds it to `allowed_origins`",
        )
    };
    let origin = origin.to_str().map_err(|_| refused())?;
    let own = origin
        .split_once("://")
        .is_some_and(|(scheme, rest)| matches!(scheme, "http" | "https") && rest.eq_ignore_ascii_case(host.as_str()));
    if own || config.allowed_origins.iter().any(|allowed| allowed.eq_ignore_ascii_case(origin)) {
        Ok(())
    } else {
        Err(refused())
    }
}

fn host_of(uri: &Uri, headers: &HeaderMap) -> Result<Authority, Failure> {
    let bad = || Failure::invalid("invalid_host", "the request has no Host header that names a host");
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (Some(host), None) => host.to_str().map_err(|_| bad())?.parse::<Authority>().map_err(|_| bad())?,
        (None, _) => uri.authority().cloned().ok_or_else(bad)?,
        (Some(_), Some(_)) => return Err(bad()),
    };
    // `user@host` is no host.
    if host.as_str().contains('@') { Err(bad()) } else { Ok(host) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn status(host: &str, origin: Option<&str>) -> u16 {
        let config = ServerConfig {
            allowed_hosts: vec!["chat.example.org".into()],
            allowed_origins: vec!["https://app.example.org".into()],
            ..ServerConfig::default()
        };
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, host.parse().unwrap());
        if let Some(origin) = origin {
            headers.insert(header::ORIGIN, origin.parse().unwrap());
        }
        check(&config, &Uri::from_static("/v1/models"), &headers).err().map_or(200, |failure| failure.status().as_u16())
    }

    #[test]
    fn names_that_dns_can_make_up_are_refused() {
        for host in [
            "localhost",
            "LOCALHOST:8080",
            "127.0.0.1:1",
            "[::1]:8080",
            "192.168.1.7",
            "x.localhost",
            "chat.example.org:443",
            "chat.example.org.",
        ] {
            assert_eq!(status(host, None), 200, "{host}");
        }
        for host in [
            "evil.example",
            "127.0.0.1.evil.example",
            "localhost.evil.example:8080",
            "1.2.3",
            "chat.example.org.evil",
            "0x7f.1",
        ] {
            assert_eq!(status(host, None), 403, "{host}");
        }
        for host in ["localhost@evil.example", "a b", ""] {
            assert_eq!(status(host, None), 400, "{host}");
        }
        assert_eq!(
            check(&ServerConfig::default(), &Uri::from_static("/"), &HeaderMap::new()).unwrap_err().status().as_u16(),
            400
        );
    }

    #[test]
    fn pages_of_other_origins_are_refused() {
        assert_eq!(status("localhost:8080", Some("http://localhost:8080")), 200);
        assert_eq!(status("localhost:8080", Some("https://app.example.org")), 200);
        for origin in [
            "null",
            "http://localhost:3000",
            "https://evil.example",
            "file://localhost:8080",
            "http://localhost:8080.evil",
        ] {
            assert_eq!(status("localhost:8080", Some(origin)), 403, "{origin}");
        }
    }
}
