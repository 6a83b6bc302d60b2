//! The page: three files that are part of the program. They hold nothing that a key protects, so they are sent without one;
//! everything that the page then asks for goes by `/v1`.

use std::sync::LazyLock;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::response::Response;

/// What the page may do: run its own script, ask its own server, show pictures that it was given. Nothing else.
const POLICY: &str = "default-src 'self'; img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'; object-src 'none'; require-trusted-types-for 'script'; trusted-types 'none'";

struct File {
    paths: &'static [&'static str],
    kind: &'static str,
    bytes: &'static [u8],
}

const FILES: [File; 3] = [
    File {
        paths: &["/", "/index.html"],
        kind: "text/html; charset=utf-8",
        bytes: include_bytes!("../page/dist/index.html"),
    },
    File { paths: &["/app.js"], kind: "text/javascript; charset=utf-8", bytes: include_bytes!("../page/dist/app.js") },
    File { paths: &["/app.css"], kind: "text/css; charset=utf-8", bytes: include_bytes!("../page/dist/app.css") },
];

/// Digests of the files, in their order.
static TAGS: LazyLock<[HeaderValue; 3]> = LazyLock::new(|| {
    FILES.each_ref().map(|file| {
        let digest = blake3::hash(file.bytes).to_hex();
        HeaderValue::try_from(format!("\"{}\"", digest.get(..32).unwrap_or_default()))
            .unwrap_or(HeaderValue::from_static("\"\""))
    })
});

/// Where the page's files are.
pub(crate) const PATHS: [&str; 4] = ["/", "/index.html", "/app.js", "/app.css"];

/// A file of the page.
pub(crate) async fn file(request: Request) -> Response {
    answer(request.uri(), request.headers())
}

fn answer(uri: &Uri, headers: &HeaderMap) -> Response {
    let found = FILES.iter().zip(&*TAGS).find(|(file, _)| file.paths.contains(&uri.path()));
    let Some((file, tag)) = found else {
        // The router sends the paths above here, and no others.
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NOT_FOUND;
        return response;
    };
    let unchanged = is_known(headers, tag);
    let mut response = Response::new(if unchanged { Body::empty() } else { Body::from(file.bytes) });
    if unchanged {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
    }
    for (name, value) in [
        (header::CONTENT_TYPE, HeaderValue::from_static(file.kind)),
        (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY)),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        (header::ETAG, tag.clone()),
    ] {
        response.headers_mut().insert(name, value);
    }
    response
}

/// Whether the browser has the file already (RFC 9110, section 13.1.2; weak tags compare as strong ones).
fn is_known(headers: &HeaderMap, tag: &HeaderValue) -> bool {
    let known = |value: &HeaderValue| {
        let value = value.to_str().unwrap_or_default();
        value.split(',').map(str::trim).any(|one| one == "*" || one.strip_prefix("W/").unwrap_or(one) == *tag)
    };
    headers.get_all(header::IF_NONE_MATCH).iter().any(known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_is_a_file_s() {
        let of_files: Vec<&str> = FILES.iter().flat_map(|file| file.paths).copied().collect();
        assert_eq!(of_files, PATHS);
        for path in PATHS {
            assert_eq!(answer(&Uri::from_static(path), &HeaderMap::new()).status(), StatusCode::OK, "{path}");
        }
    }
}
