//! The description of everything that the server answers (OpenAPI 3.1), for `consort serve --print-openapi`.
//!
//! It is kept by hand, in parts that are put together here: `openapi/*.json`. The tests below hold it to the router, to the
//! readers of requests field by field, and to its own examples.

use serde_json::{Map, Value};

/// The parts. What stands in a later one is added to what stands in earlier ones.
const PARTS: [&str; 8] = [
    include_str!("../openapi/base.json"),
    include_str!("../openapi/operations.json"),
    include_str!("../openapi/personas.json"),
    include_str!("../openapi/openai.json"),
    include_str!("../openapi/responses.json"),
    include_str!("../openapi/anthropic.json"),
    include_str!("../openapi/rooms.json"),
    include_str!("../openapi/status.json"),
];

/// The description, as an OpenAPI 3.1 document.
#[must_use]
pub fn openapi() -> Value {
    let mut whole = Map::new();
    for part in PARTS {
        // The parts are in the binary, and the tests read all of them.
        if let Ok(Value::Object(part)) = serde_json::from_str(part) {
            add(&mut whole, part);
        }
    }
    let mut whole = Value::Object(whole);
    if let Some(version) = whole.pointer_mut("/info/version") {
        *version = env!("CARGO_PKG_VERSION").into();
    }
    whole
}

/// Objects are joined, lists are continued.
fn add(whole: &mut Map<String, Value>, part: Map<String, Value>) {
    for (name, value) in part {
        match (whole.get_mut(&name), value) {
            (Some(Value::Object(there)), Value::Object(more)) => add(there, more),
            (Some(Value::Array(there)), Value::Array(more)) => there.extend(more),
            (_, value) => drop(whole.insert(name, value)),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::{BTreeMap, BTreeSet};
    use std::num::NonZeroUsize;

    use axum::body::Body;
    use axum::http::Request;
    use consort::{LoadConfig, ModelFiles, bundled};
    use consort_core::{Device, DevicePolicy};
    use http_body_util::BodyExt as _;
    use serde_json::json;
    use tower::ServiceExt as _;

    use super::*;
    use crate::{AdapterLibrary, App, Config, Keys, Parts, TextFloor, Transport, fields};

    const METHODS: [&str; 5] = ["get", "post", "put", "patch", "delete"];

    /// Every address with its methods.
    fn described(document: &Value) -> BTreeSet<(String, String)> {
        let paths = document["paths"].as_object().unwrap();
        let methods = |path: &String, item: &Value| {
            let item = item.as_object().unwrap().clone();
            let path = path.clone();
            METHODS
                .into_iter()
                .filter(move |method| item.contains_key(*method))
                .map(move |m| (path.clone(), m.to_owned()))
        };
        paths.iter().flat_map(|(path, item)| methods(path, item).collect::<Vec<_>>()).collect()
    }

    /// Every `.route(…)` of the sources.
    fn routed() -> BTreeSet<(String, String)> {
        let mut files = vec![std::path::PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/src"))];
        let (mut found, marker) = (BTreeSet::new(), ".route(");
        while let Some(path) = files.pop() {
            if path.is_dir() {
                files.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
                continue;
            }
            if path.ends_with("openapi.rs") {
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            for (at, _) in text.match_indices(marker) {
                let rest = text[at + marker.len()..].trim_start();
                let address =
                    rest.strip_prefix('"').and_then(|rest| rest.split_once('"')).unwrap_or_else(|| panic!("{rest}"));
                // To the parenthesis that closes the call.
                let mut depth = 1;
                let end = address.1.find(|symbol| {
                    depth += i32::from(symbol == '(') - i32::from(symbol == ')');
                    depth == 0
                });
                let handlers = &address.1[..end.unwrap()];
                let methods: Vec<_> =
                    METHODS.into_iter().filter(|method| handlers.contains(&format!("{method}("))).collect();
                assert!(!methods.is_empty(), "no method at {}", address.0);
                found.extend(methods.into_iter().map(|method| (address.0.to_owned(), method.to_owned())));
            }
        }
        found
    }

    /// What a reference stands for.
    fn resolved<'a>(document: &'a Value, mut value: &'a Value) -> &'a Value {
        while let Some(reference) = value.get("$ref").and_then(Value::as_str) {
            let pointer = reference.strip_prefix('#').unwrap();
            value = document.pointer(pointer).unwrap_or_else(|| panic!("{reference} leads nowhere"));
        }
        value
    }

    /// The fields of a request's schema, each by its path, as readers name them.
    fn fields_of(document: &Value, schema: &Value, path: &str, found: &mut BTreeSet<String>) {
        let schema = resolved(document, schema);
        for kind in ["oneOf", "anyOf", "allOf"] {
            for one in schema.get(kind).and_then(Value::as_array).into_iter().flatten() {
                fields_of(document, one, path, found);
            }
        }
        if let Some(items) = schema.get("items") {
            fields_of(document, items, &format!("{path}[]"), found);
        }
        for (name, inner) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            fields_of(document, inner, &path, found);
            found.insert(path);
        }
    }

    /// Method, address, schema and examples of all requests with bodies.
    fn bodies(document: &Value) -> Vec<(String, String, Value, Vec<Value>)> {
        let with_body = described(document).into_iter().filter_map(|(path, method)| {
            let operation = &document["paths"][&path][&method];
            let media = operation.get("requestBody")?["content"]["application/json"].clone();
            let examples = media["examples"].as_object().unwrap_or_else(|| panic!("{path} has no example"));
            let examples = examples.values().map(|example| example["value"].clone()).collect();
            Some((method, path, media["schema"].clone(), examples))
        });
        with_body.collect()
    }

    async fn app() -> App {
        let load = LoadConfig {
            policy: DevicePolicy::Named(Device::Cpu),
            threads: NonZeroUsize::new(1),
            ..LoadConfig::new(ModelFiles::Bundled)
        };
        let (tokenizer, template) = consort::open_text(&ModelFiles::Bundled).unwrap();
        let app = App::open(Parts {
            backend: consort::load(load).unwrap(),
            text: TextFloor { tokenizer: Some(tokenizer), template },
            config: Config::parse("[[persona]]\nname = \"ada\"\n[[persona]]\nname = \"bo\"\n").unwrap(),
            keys: Keys::none(),
            adapters: AdapterLibrary::new(bundled::ADAPTERS.map(|a| (a.name.to_owned(), a.files())), &[]).unwrap(),
        })
        .await
        .unwrap();
        let (status, answer) = asked(&app, "post", "/v1/rooms", &json!({ "participants": ["ada"] })).await;
        assert_eq!(status, 201, "{answer}");
        app
    }

    async fn asked(app: &App, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let mut path = path.replace("{name}", "x");
        if path.contains("{room}") {
            let rooms = Box::pin(asked(app, "get", "/v1/rooms", &json!({}))).await.1;
            path = path.replace("{room}", rooms["data"][0]["id"].as_str().unwrap());
        }
        let request = Request::builder().method(method.to_uppercase().as_str()).uri(path).header("host", "localhost");
        let request = request.header("content-type", "application/json").body(Body::from(body.to_string())).unwrap();
        let response = app.router(Transport::Tcp).oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&bytes).unwrap_or_default())
    }

    #[test]
    fn each_address_is_described_and_nothing_else_is() {
        // The files of the page are no part of the API.
        let page = crate::page::PATHS.map(|path| (path.to_owned(), "get".to_owned()));
        assert_eq!(described(&openapi()), &routed() - &page.into());
    }

    #[test]
    fn the_parts_fit_together() {
        let document = openapi();
        assert_eq!(document["openapi"], "3.1.0");
        assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
        let mut names = BTreeSet::new();
        let mut stack = vec![&document];
        while let Some(value) = stack.pop() {
            resolved(&document, value);
            match value {
                Value::Object(fields) => stack.extend(fields.values()),
                Value::Array(items) => stack.extend(items),
                _ => {}
            }
        }
        for (path, method) in described(&document) {
            let operation = &document["paths"][&path][&method];
            assert!(names.insert(operation["operationId"].as_str().unwrap()), "twice: {operation}");
            assert!(operation["summary"].is_string() && operation["responses"]["403"].is_object(), "{path}");
            let written = path.matches('{').count();
            let told = document["paths"][&path]["parameters"].as_array().map_or(0, Vec::len);
            assert_eq!(written, told, "{path}");
        }
        for (method, path, schema, examples) in bodies(&document) {
            // The schema with the whole document around it, for its references.
            let mut around = document.clone();
            around["allOf"] = json!([schema]);
            let validator = jsonschema::validator_for(&around).unwrap();
            for example in examples {
                let wrong: Vec<String> = validator.iter_errors(&example).map(|error| error.to_string()).collect();
                assert!(wrong.is_empty(), "{method} {path}: {wrong:?}");
            }
            // And no field beyond.
            assert!(!validator.is_valid(&json!({ "no such field": 1 })), "{method} {path}");
        }
    }

    #[tokio::test]
    async fn each_field_that_a_reader_knows_is_described_and_each_described_one_is_known() {
        let (app, document) = (app().await, openapi());
        let mut wrong = BTreeMap::new();
        for (method, path, schema, examples) in bodies(&document) {
            let mut told = BTreeSet::new();
            fields_of(&document, &schema, "", &mut told);
            fields::record();
            for example in &examples {
                let (status, answer) = asked(&app, &method, &path, example).await;
                // Whoever is not there is asked for all the same; adapters of no folder are not found.
                let absent = path.contains("lora") && status == 404 || path == "/v1/reload" && status == 409;
                assert!(status < 300 || absent, "{method} {path}: {status} {answer}");
            }
            let known = fields::recorded();
            let differ: Vec<String> = known.symmetric_difference(&told).cloned().collect();
            if !differ.is_empty() {
                wrong.insert(format!("{method} {path}"), differ);
            }
        }
        assert!(wrong.is_empty(), "known and not described, or described and not asked for: {wrong:#?}");
    }

    #[tokio::test]
    async fn what_is_not_described_is_refused() {
        let (app, document) = (app().await, openapi());
        for (method, path, _, examples) in bodies(&document) {
            let mut body = examples[0].clone();
            body["no_such_field"] = json!(1);
            let (status, answer) = asked(&app, &method, &path, &body).await;
            let message = answer["error"]["message"].as_str().unwrap_or_default();
            assert!(status == 400 && message.contains("no_such_field"), "{method} {path}: {answer}");
        }
    }
}
