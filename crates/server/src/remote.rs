//! Pictures from other servers, where the operator allows their addresses (`server.image_prefixes`).
//!
//! Without a prefix nothing is ever fetched. With one, an address must have its scheme, host, port and the beginning of its
//! path. The host is looked up once, and the connection goes to what was found: an address within a private network is
//! refused, unless the prefix itself names such a host in digits (or `localhost`). No redirect is followed, no proxy of the
//! environment is used, and bytes, time and type have limits.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use axum::http::Uri;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use consort_core::{Error, ErrorKind, Result};
use serde_json::{Value, json};
use ureq::config::Config as AgentConfig;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};

use crate::config::{Config, Limits};
use crate::error::Failure;
use crate::fields::Fields;

/// What is taken for a picture. Whether it is one, its decoder says.
const TYPES: [&str; 4] = ["image/png", "image/jpeg", "image/webp", "image/gif"];
/// The most bytes of an answer's head.
const MAX_HEAD: usize = 16 << 10;
/// Where requests hold pictures: chats and messages, and responses.
const PLACES: [&str; 2] = ["messages", "input"];

/// An address with which allowed ones begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Prefix {
    scheme: Scheme,
    host: String,
    port: u16,
    path: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scheme {
    Http,
    Https,
}

impl Prefix {
    /// # Errors
    /// Why it is none.
    pub(crate) fn parse(text: &str) -> Result<Self, &'static str> {
        let address =
            Self::address(text).ok_or("a prefix is an address such as https://pictures.example.org/public/")?;
        if text.contains(['?', '#']) || !address.path.ends_with('/') {
            return Err("a prefix ends with a slash: `/pictures` would allow `/pictures-of-others` as well");
        }
        Ok(address)
    }

    /// An address, of which no part has two meanings.
    fn address(text: &str) -> Option<Self> {
        let uri: Uri = text.parse().ok()?;
        let scheme = match uri.scheme_str()? {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            _ => return None,
        };
        let authority = uri.authority()?;
        let path = uri.path().to_ascii_lowercase();
        // What a server may take for another path than it looks like.
        let tricky = path.split('/').any(|part| matches!(part, "." | ".."))
            || ["%2e", "%2f", "%5c", "\\", "%00"].iter().any(|trick| path.contains(trick));
        if authority.as_str().contains('@') || authority.host().is_empty() || tricky {
            return None;
        }
        let port = match (authority.port(), scheme) {
            (Some(port), _) => port.as_str().parse().ok()?,
            (None, Scheme::Http) => 80,
            (None, Scheme::Https) => 443,
        };
        Some(Self { scheme, host: authority.host().to_ascii_lowercase(), port, path: uri.path().to_owned() })
    }

    fn allows(&self, address: &Self) -> bool {
        (self.scheme, &self.host, self.port) == (address.scheme, &address.host, address.port)
            && address.path.starts_with(&self.path)
    }

    /// Whether the operator has named a host that no look-up can change.
    fn is_literal(&self) -> bool {
        let host = self.host.trim_start_matches('[').trim_end_matches(']');
        host == "localhost" || host.parse::<IpAddr>().is_ok()
    }
}

/// Fetches pictures from where the operator allows it.
#[derive(Debug)]
pub(crate) struct Remote {
    prefixes: Vec<Prefix>,
    time: Duration,
    lookup: Lookup,
}

/// How hosts are looked up.
#[derive(Debug, Clone)]
enum Lookup {
    /// As the system does it.
    System,
    /// As a test says.
    #[cfg(test)]
    Told(Vec<std::net::SocketAddr>),
}

impl Remote {
    /// `None`: nothing is fetched.
    ///
    /// # Errors
    /// A prefix with `https` in a program that was built without TLS.
    pub(crate) fn new(config: &Config) -> Result<Option<Self>> {
        let prefixes: Vec<Prefix> =
            config.server.image_prefixes.iter().filter_map(|text| Prefix::parse(text).ok()).collect();
        let secure = prefixes.iter().position(|prefix| prefix.scheme == Scheme::Https);
        if let (Some(index), false) = (secure, cfg!(feature = "remote-images")) {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "this program was built without TLS: build it with the feature `remote-images`, or name an http address of \
                 a proxy that you trust",
            )
            .with_operation("server::remote")
            .with_context("key", format!("server.image_prefixes[{index}]")));
        }
        let time = Duration::from_secs(config.limits.image_seconds.get());
        Ok((!prefixes.is_empty()).then_some(Self { prefixes, time, lookup: Lookup::System }))
    }

    /// Puts pictures in the place of their addresses. Addresses that are not allowed stay, and their reader refuses them.
    /// Takes its time: not for a thread of connections.
    ///
    /// # Errors
    /// The first picture that could not be fetched.
    pub(crate) fn fetch_all(&self, mut fields: Fields, limits: &Limits) -> Result<Fields, Failure> {
        let mut fetching = Fetching { remote: self, until: Instant::now() + self.time, left: limits.images, limits };
        for place in PLACES {
            if let Some(value) = fields.value_mut(place) {
                fetching.walk(value, place)?;
            }
        }
        Ok(fields)
    }

    /// Whether a body has an address of another server in it at all.
    pub(crate) fn concerns(&self, fields: &mut Fields) -> bool {
        PLACES.iter().any(|place| fields.value_mut(place).is_some_and(|value| self.is_in(value)))
    }

    fn is_in(&self, value: &Value) -> bool {
        match value {
            Value::String(text) => self.prefix_of(text).is_some(),
            Value::Array(items) => items.iter().any(|item| self.is_in(item)),
            Value::Object(fields) => fields.values().any(|field| self.is_in(field)),
            _ => false,
        }
    }

    fn prefix_of(&self, url: &str) -> Option<&Prefix> {
        let address = Prefix::address(url)?;
        self.prefixes.iter().find(|prefix| prefix.allows(&address))
    }

    fn fetch(&self, url: &str, prefix: &Prefix, time: Duration, most: usize) -> Result<Picture, String> {
        let config = AgentConfig::builder()
            .timeout_global(Some(time))
            .max_redirects(0)
            .max_redirects_will_error(false)
            .http_status_as_error(false)
            .proxy(None)
            .max_response_header_size(MAX_HEAD)
            .accept(TYPES.join(", "))
            .accept_encoding("identity")
            .user_agent(concat!("consort/", env!("CARGO_PKG_VERSION")))
            .build();
        let guard = Guard { lookup: self.lookup.clone(), literal: prefix.is_literal() };
        let agent = ureq::Agent::with_parts(config, DefaultConnector::default(), guard);
        let mut response = agent.get(url).call().map_err(|error| why(&error))?;
        let status = response.status();
        if status.is_redirection() {
            return Err("it is somewhere else now, and redirects are not followed".into());
        }
        if status != 200 {
            return Err(format!("its server answers {}", status.as_u16()));
        }
        let kind = response.headers().get("content-type").and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        let kind = TYPES.into_iter().find(|known| *known == kind).ok_or("it is no PNG, JPEG, WebP or GIF")?;
        let bytes = response.body_mut().with_config().limit(most as u64).read_to_vec().map_err(|error| why(&error))?;
        Ok(Picture { kind, bytes })
    }
}

/// A picture that was fetched.
struct Picture {
    kind: &'static str,
    bytes: Vec<u8>,
}

/// What the client is told: nothing of addresses within.
fn why(error: &ureq::Error) -> String {
    match error {
        ureq::Error::Timeout(_) => "it took too long".into(),
        ureq::Error::BodyExceedsLimit(most) => format!("it has more than {most} bytes"),
        ureq::Error::Io(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            "its host is within a private network".into()
        }
        other => {
            tracing::warn!(error = %other, "a picture could not be fetched");
            "its server could not be asked".into()
        }
    }
}

/// One request's pictures.
struct Fetching<'a> {
    remote: &'a Remote,
    until: Instant,
    left: usize,
    limits: &'a Limits,
}

impl Fetching<'_> {
    fn walk(&mut self, value: &mut Value, path: &str) -> Result<(), Failure> {
        match value {
            Value::Array(items) => {
                for (index, item) in items.iter_mut().enumerate() {
                    self.walk(item, &format!("{path}[{index}]"))?;
                }
            }
            Value::Object(fields) => {
                for (name, field) in fields.iter_mut() {
                    let path = format!("{path}.{name}");
                    match (name.as_str(), field) {
                        ("image_url", field) => {
                            let (at, url) = match field {
                                Value::Object(inner) => (format!("{path}.url"), inner.get_mut("url")),
                                other => (path, Some(other)),
                            };
                            if let Some(Value::String(url)) = url
                                && let Some(Picture { kind, bytes }) = self.fetch(url, &at)?
                            {
                                *url = format!("data:{kind};base64,{}", STANDARD.encode(bytes));
                            }
                        }
                        ("source", field) if field["type"] == "url" => {
                            let url = field["url"].as_str().unwrap_or_default().to_owned();
                            if let Some(Picture { kind, bytes }) = self.fetch(&url, &format!("{path}.url"))? {
                                *field =
                                    json!({ "type": "base64", "media_type": kind, "data": STANDARD.encode(bytes) });
                            }
                        }
                        (_, field) => self.walk(field, &path)?,
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn fetch(&mut self, url: &str, param: &str) -> Result<Option<Picture>, Failure> {
        let Some(prefix) = self.remote.prefix_of(url) else { return Ok(None) };
        let failed = |why: &str| {
            Failure::invalid("remote_image_failed", format!("the picture could not be fetched: {why}"))
                .with_param(param)
        };
        let Some(left) = self.left.checked_sub(1) else {
            return Err(Failure::value(param, format!("a request may have {} pictures", self.limits.images)));
        };
        self.left = left;
        let time = self.until.saturating_duration_since(Instant::now());
        if time.is_zero() {
            return Err(failed("it took too long"));
        }
        let fetched = self.remote.fetch(url, prefix, time, self.limits.image_bytes.get());
        fetched.map(Some).map_err(|why| failed(&why))
    }
}

/// Looks hosts up, and lets no address of a private network through. What it gives is connected to.
#[derive(Debug)]
struct Guard {
    lookup: Lookup,
    literal: bool,
}

impl Resolver for Guard {
    fn resolve(
        &self,
        uri: &Uri,
        config: &AgentConfig,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let found = match &self.lookup {
            Lookup::System => DefaultResolver::default().resolve(uri, config, timeout)?,
            #[cfg(test)]
            Lookup::Told(addresses) => {
                let mut found = self.empty();
                addresses.iter().for_each(|address| found.push(*address));
                found
            }
        };
        // One that is private among others is a trick as well.
        if !self.literal && found.iter().any(|address| !is_public(address.ip())) {
            return Err(ureq::Error::Io(std::io::ErrorKind::PermissionDenied.into()));
        }
        Ok(found)
    }
}

/// Whether an address is of the public Internet (IANA's registries of special-purpose addresses).
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    !(address.is_loopback()
        || address.is_private()
        || address.is_link_local()
        || address.is_broadcast()
        || address.is_documentation()
        || address.is_multicast()
        || a == 0
        || a >= 240
        || (a == 100 && (64..128).contains(&b))
        || (a == 192 && b == 0 && c == 0)
        || (a == 192 && b == 88 && c == 99)
        || (a == 198 && matches!(b, 18 | 19)))
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let [a, b, ..] = address.segments();
    // Global unicast alone, without what carries an IPv4 address (6to4, Teredo), is for documentation, or for protocols.
    (a & 0xe000) == 0x2000 && a != 0x2002 && !(a == 0x2001 && (b < 0x200 || b == 0xdb8)) && !(a == 0x3fff && b < 0x1000)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::{Read as _, Write as _};
    use std::net::{SocketAddr, TcpListener};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    const PNG: &[u8] = b"\x89PNG and so on";

    /// Answers each request for a picture with `answer`, and counts them.
    fn serve(answer: &'static [u8], stay: Duration) -> (SocketAddr, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, count) = (listener.local_addr().unwrap(), Arc::<AtomicUsize>::default());
        let counted = Arc::clone(&count);
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                counted.fetch_add(1, Ordering::Relaxed);
                let mut head = [0; 2048];
                let _ = stream.read(&mut head);
                let _ = stream.write_all(answer);
                std::thread::sleep(stay);
            }
        });
        (address, count)
    }

    fn remote(prefix: &str) -> Remote {
        let lookup = Lookup::System;
        Remote { prefixes: vec![Prefix::parse(prefix).unwrap()], time: Duration::from_secs(20), lookup }
    }

    /// What becomes of a request with this address.
    fn asked(remote: &Remote, url: &str, most: usize) -> Result<String, Failure> {
        let body = json!({ "messages": [{ "role": "user", "content": [{ "type": "image_url", "image_url": { "url": url } }] }] });
        let limits = Limits { image_bytes: std::num::NonZeroUsize::new(most).unwrap(), ..Limits::default() };
        let mut fields = remote.fetch_all(Fields::of(body, "").unwrap(), &limits)?;
        let value = fields.value_mut("messages").unwrap();
        Ok(value.pointer("/0/content/0/image_url/url").unwrap().as_str().unwrap().to_owned())
    }

    fn refusal(answer: &'static [u8], most: usize) -> String {
        let (address, _) = serve(answer, Duration::ZERO);
        let failure =
            asked(&remote(&format!("http://{address}/")), &format!("http://{address}/x.png"), most).unwrap_err();
        assert_eq!(
            (failure.code(), failure.param()),
            ("remote_image_failed", Some("messages[0].content[0].image_url.url"))
        );
        failure.message().to_owned()
    }

    #[test]
    fn only_addresses_with_the_prefix_are_fetched() {
        let prefix = Prefix::parse("https://pictures.example.org/public/").unwrap();
        let allows = |url: &str| Prefix::address(url).is_some_and(|address| prefix.allows(&address));
        for url in [
            "https://pictures.example.org/public/cat.png",
            "https://PICTURES.example.org:443/public/a/b.png?size=3",
            "HTTPS://pictures.example.org/public/",
        ] {
            assert!(allows(url), "{url}");
        }
        for url in [
            "http://pictures.example.org/public/cat.png",
            "https://pictures.example.org/private/cat.png",
            "https://pictures.example.org/public/../private/cat.png",
            "https://pictures.example.org/public/%2e%2E/private/cat.png",
            "https://pictures.example.org/public/..%2fprivate/cat.png",
            "https://pictures.example.org/public\\..\\x",
            "https://pictures.example.org/publicity/cat.png",
            "https://pictures.example.org:8443/public/cat.png",
            "https://pictures.example.org@evil.example/public/cat.png",
            "https://me:secret@pictures.example.org/public/cat.png",
            "https://pictures.example.org.evil.example/public/cat.png",
            "https://evil.example/https://pictures.example.org/public/",
            "//pictures.example.org/public/cat.png",
            "file:///public/cat.png",
            "",
        ] {
            assert!(!allows(url), "{url}");
        }
        for text in [
            "pictures.example.org",
            "https://a@b/",
            "https://a/b",
            "https://a/?b/",
            "ftp://a/",
            "https://",
            "https://a/../",
        ] {
            assert!(Prefix::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_picture_takes_the_place_of_its_address() {
        let (address, count) = serve(
            b"HTTP/1.1 200 OK\r\nContent-Type: image/png; x=y\r\nContent-Length: 14\r\nConnection: close\r\n\r\n\x89PNG and so on",
            Duration::ZERO,
        );
        let remote = remote(&format!("http://{address}/public/"));
        let url = format!("http://{address}/public/cat.png");
        let expected = format!("data:image/png;base64,{}", STANDARD.encode(PNG));
        assert_eq!(asked(&remote, &url, 14).unwrap(), expected);
        assert_eq!(count.load(Ordering::Relaxed), 1);
        // Addresses beside the prefix are left for their reader, who refuses them; nobody is asked.
        let other = format!("http://{address}/private/cat.png");
        assert_eq!(asked(&remote, &other, 14).unwrap(), other);
        assert_eq!(count.load(Ordering::Relaxed), 1);
        // In the other protocols' shapes, and no more than may be.
        let part = json!({ "type": "image", "source": { "type": "url", "url": url } });
        let body = json!({ "input": [{ "image_url": url }, part, { "image_url": url }] });
        let fields =
            |images| remote.fetch_all(Fields::of(body.clone(), "").unwrap(), &Limits { images, ..Limits::default() });
        let mut read = fields(3).unwrap();
        let value = read.value_mut("input").unwrap();
        assert_eq!(
            (value[0]["image_url"].as_str(), value[1]["source"]["type"].as_str()),
            (Some(expected.as_str()), Some("base64"))
        );
        assert_eq!(fields(2).unwrap_err().param(), Some("input[2].image_url"));
        // What is no picture's place is left alone.
        let mut tools = Fields::of(json!({ "tools": [{ "image_url": url }], "messages": [] }), "").unwrap();
        assert!(!remote.concerns(&mut tools));
    }

    #[test]
    fn redirects_are_not_followed() {
        let (target, count) =
            serve(b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nContent-Length: 0\r\n\r\n", Duration::ZERO);
        let answer = format!(
            "HTTP/1.1 302 Found\r\nLocation: http://{target}/\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
        let message = refusal(Box::leak(answer.into_bytes().into_boxed_slice()), 99);
        assert!(message.contains("redirects are not followed"), "{message}");
        assert_eq!(count.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn what_is_too_large_too_slow_or_no_picture_is_refused() {
        let message = refusal(b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nContent-Length: 14\r\nConnection: close\r\n\r\n\x89PNG and so on", 13);
        assert!(message.contains("more than 13 bytes"), "{message}");
        let message = refusal(
            b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nConnection: close\r\n\r\n\x89PNG and so on and so on",
            13,
        );
        assert!(message.contains("more than 13 bytes"), "of unsaid length: {message}");
        let message = refusal(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx",
            99,
        );
        assert!(message.contains("no PNG"), "{message}");
        let message = refusal(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", 99);
        assert!(message.contains("404"), "{message}");
        let message = refusal(b"no HTTP at all\r\n\r\n", 99);
        assert!(message.contains("could not be asked"), "{message}");
        let (address, _) = serve(
            b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nContent-Length: 14\r\n\r\n\x89PNG",
            Duration::from_secs(60),
        );
        let slow = Remote { time: Duration::from_millis(300), ..remote(&format!("http://{address}/")) };
        let failure = asked(&slow, &format!("http://{address}/x.png"), 99).unwrap_err();
        assert!(failure.message().contains("took too long"), "{}", failure.message());
    }

    #[test]
    fn names_that_lead_into_private_networks_are_refused() {
        let (address, count) = serve(
            b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx",
            Duration::ZERO,
        );
        let url = format!("http://pictures.example.org:{}/x.png", address.port());
        let prefix = format!("http://pictures.example.org:{}/", address.port());
        let public = SocketAddr::from(([93, 184, 216, 34], 80));
        for found in [vec![address], vec![public, address]] {
            let rebound = Remote { lookup: Lookup::Told(found), ..remote(&prefix) };
            let failure = asked(&rebound, &url, 99).unwrap_err();
            assert!(failure.message().contains("private network"), "{}", failure.message());
        }
        assert_eq!(count.load(Ordering::Relaxed), 0, "nobody was connected to");
        // A prefix that names the host in digits says so on purpose.
        let meant = Remote { lookup: Lookup::Told(vec![address]), ..remote(&format!("http://{address}/")) };
        asked(&meant, &format!("http://{address}/x.png"), 99).unwrap();
        assert_eq!(count.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn addresses_of_private_networks_are_known() {
        for address in ["93.184.216.34", "1.1.1.1", "2606:4700:4700::1111", "2a00:1450::1"] {
            assert!(is_public(address.parse().unwrap()), "{address}");
        }
        for address in [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "255.255.255.255",
            "192.0.0.8",
            "198.18.0.1",
            "224.0.0.1",
            "240.0.0.1",
            "203.0.113.1",
            "::1",
            "::",
            "fe80::1",
            "fd00::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:93.184.216.34",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
            "2001::1",
            "2001:db8::1",
        ] {
            assert!(!is_public(address.parse().unwrap()), "{address}");
        }
    }

    #[test]
    fn https_needs_tls() {
        let config = Config::parse("[server]\nimage_prefixes = [\"https://pictures.example.org/\"]\n").unwrap();
        let made = Remote::new(&config);
        if cfg!(feature = "remote-images") {
            assert!(made.unwrap().is_some());
        } else {
            let error = made.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            assert!(error.to_string().contains("server.image_prefixes[0]"), "{error}");
        }
        assert!(Remote::new(&Config::default()).unwrap().is_none());
    }
}
