//! What is refused and what fails, in the API's form.

use axum::body::Body;
use axum::http::HeaderName;
use consort_server::Keys;
use serde_json::{Value, json};

use super::{COUNT, MESSAGES, body, events, failure};
use crate::client::{Answer, Client, request};

#[tokio::test]
async fn every_field_that_cannot_be_obeyed_is_named() {
    let client =
        Client::with("[limits]\nimages = 1\nimage_bytes = 1000\nmessages = 4\ntools = 2\nreply_tokens = 5000\n").await;
    let tool = |more: Value| {
        let mut tool = json!({ "name": "f", "input_schema": { "type": "object" } });
        for (key, value) in more.as_object().unwrap() {
            tool[key] = value.clone();
        }
        json!({ "tools": [tool] })
    };
    let user = |content: Value| json!({ "messages": [{ "role": "user", "content": content }] });
    let source = |source: Value| user(json!([{ "type": "image", "source": source }]));
    let said = |block: Value| json!({ "messages": [{ "role": "user", "content": "x" }, { "role": "assistant", "content": [block] }, { "role": "user", "content": "x" }] });
    let call = json!({ "type": "tool_use", "id": "a", "name": "f", "input": {} });
    for (more, code, param) in [
        (json!({ "temprature": 1 }), "unknown_parameter", "temprature"),
        (json!({ "model": null }), "missing_required_parameter", "model"),
        (json!({ "max_tokens": null }), "missing_required_parameter", "max_tokens"),
        (json!({ "max_tokens": -1 }), "invalid_type", "max_tokens"),
        (json!({ "max_tokens": 5001 }), "invalid_value", "max_tokens"),
        (json!({ "messages": null }), "missing_required_parameter", "messages"),
        (json!({ "messages": [] }), "invalid_value", "messages"),
        (json!({ "messages": [{}, {}, {}, {}, {}] }), "invalid_value", "messages"),
        (json!({ "temperature": -1 }), "invalid_value", "temperature"),
        (json!({ "top_p": 1.5 }), "invalid_value", "top_p"),
        (json!({ "top_k": "x" }), "invalid_type", "top_k"),
        (json!({ "stop_sequences": "x" }), "invalid_type", "stop_sequences"),
        (json!({ "stop_sequences": [""] }), "invalid_value", "stop_sequences"),
        (json!({ "stop": ["x"] }), "unknown_parameter", "stop"),
        (json!({ "n": 2 }), "unknown_parameter", "n"),
        (json!({ "container": "c" }), "unsupported_parameter", "container"),
        (json!({ "mcp_servers": [] }), "unsupported_parameter", "mcp_servers"),
        (json!({ "context_management": {} }), "unsupported_parameter", "context_management"),
        (json!({ "diagnostics": {} }), "unsupported_parameter", "diagnostics"),
        (json!({ "inference_geo": "us" }), "unsupported_parameter", "inference_geo"),
        (json!({ "speed": "fast" }), "unsupported_parameter", "speed"),
        (json!({ "service_tier": "priority" }), "unsupported_parameter", "service_tier"),
        (json!({ "system": 5 }), "invalid_type", "system"),
        (json!({ "system": [{ "type": "image" }] }), "unsupported_parameter", "system[0].type"),
        (json!({ "thinking": {} }), "missing_required_parameter", "thinking.type"),
        (json!({ "thinking": { "type": "on" } }), "invalid_value", "thinking.type"),
        (json!({ "thinking": { "type": "between_tools" } }), "unsupported_parameter", "thinking.type"),
        (
            json!({ "thinking": { "type": "disabled", "budget_tokens": 1 } }),
            "unknown_parameter",
            "thinking.budget_tokens",
        ),
        (
            json!({ "thinking": { "type": "adaptive", "display": "omitted" } }),
            "unsupported_parameter",
            "thinking.display",
        ),
        (json!({ "thinking": { "type": "enabled" } }), "missing_required_parameter", "thinking.budget_tokens"),
        (json!({ "thinking": { "type": "enabled", "budget_tokens": 100 } }), "invalid_value", "thinking.budget_tokens"),
        (
            json!({ "thinking": { "type": "enabled", "budget_tokens": 2000 } }),
            "invalid_value",
            "thinking.budget_tokens",
        ),
        (
            json!({ "thinking": { "type": "enabled", "budget_tokens": 2000 }, "max_tokens": 4000 }),
            "unsupported_parameter",
            "thinking.budget_tokens",
        ),
        (json!({ "output_config": { "effort": "low" } }), "unsupported_parameter", "output_config.effort"),
        (json!({ "output_config": { "x": 1 } }), "unknown_parameter", "output_config.x"),
        (json!({ "output_config": { "format": { "type": "x" } } }), "invalid_value", "output_config.format.type"),
        (
            json!({ "output_config": { "format": { "type": "json_schema" } } }),
            "missing_required_parameter",
            "output_config.format.schema",
        ),
        (
            json!({ "output_format": { "type": "json_schema", "schema": {} }, "output_config": { "format": {} } }),
            "invalid_value",
            "output_format",
        ),
        (
            json!({ "output_format": { "type": "json_schema", "schema": { "type": "nonsense" } } }),
            "invalid_grammar",
            "",
        ),
        (tool(json!({ "type": "web_search_20250305" })), "unsupported_parameter", "tools[0].type"),
        (tool(json!({ "name": "a b" })), "invalid_value", "tools[0].name"),
        (tool(json!({ "input_schema": null })), "missing_required_parameter", "tools[0].input_schema"),
        (tool(json!({ "input_schema": 5 })), "invalid_type", "tools[0].input_schema"),
        (tool(json!({ "defer_loading": true })), "unsupported_parameter", "tools[0].defer_loading"),
        (tool(json!({ "allowed_callers": ["code"] })), "unsupported_parameter", "tools[0].allowed_callers"),
        (tool(json!({ "input_examples": [] })), "unsupported_parameter", "tools[0].input_examples"),
        (tool(json!({ "x": 1 })), "unknown_parameter", "tools[0].x"),
        (json!({ "tools": [1, 2, 3] }), "invalid_value", "tools"),
        (json!({ "tool_choice": { "type": "any" } }), "invalid_value", "tool_choice"),
        (json!({ "tool_choice": "any" }), "invalid_type", "tool_choice"),
        (json!({ "tool_choice": { "type": "required" } }), "invalid_value", "tool_choice.type"),
        (json!({ "tool_choice": { "type": "tool", "name": "g" } }), "invalid_value", "tool_choice.name"),
        (json!({ "messages": [{ "content": "x" }] }), "missing_required_parameter", "messages[0].role"),
        (json!({ "messages": [{ "role": "tool", "content": "x" }] }), "invalid_value", "messages[0].role"),
        (json!({ "messages": [{ "role": "user" }] }), "missing_required_parameter", "messages[0].content"),
        (
            json!({ "messages": [{ "role": "user", "content": "x", "name": "e" }] }),
            "unknown_parameter",
            "messages[0].name",
        ),
        (user(json!([])), "invalid_value", "messages[0].content"),
        (user(json!(vec![json!({ "type": "text", "text": "x" }); 5])), "invalid_value", "messages[0].content"),
        (user(json!([{ "text": "x" }])), "missing_required_parameter", "messages[0].content[0].type"),
        (user(json!([{ "type": "text" }])), "missing_required_parameter", "messages[0].content[0].text"),
        (
            user(json!([{ "type": "text", "text": "x", "citations": [{}] }])),
            "unsupported_parameter",
            "messages[0].content[0].citations",
        ),
        (user(json!([{ "type": "document", "source": {} }])), "unsupported_parameter", "messages[0].content[0].type"),
        (user(json!([{ "type": "thinking", "thinking": "x" }])), "invalid_value", "messages[0].content[0].type"),
        (user(json!([call])), "invalid_value", "messages[0].content[0].type"),
        (
            user(json!([{ "type": "tool_result", "tool_use_id": "a", "content": "x" }])),
            "invalid_value",
            "messages[0].content[0].tool_use_id",
        ),
        (
            source(json!({ "type": "url", "url": "https://example.org/x.png" })),
            "remote_image",
            "messages[0].content[0].source.url",
        ),
        (
            source(json!({ "type": "file", "file_id": "x" })),
            "unsupported_parameter",
            "messages[0].content[0].source.type",
        ),
        (
            source(json!({ "type": "base64", "media_type": "text/html", "data": "AAEC" })),
            "invalid_value",
            "messages[0].content[0].source.media_type",
        ),
        (
            source(json!({ "type": "base64", "media_type": "image/png", "data": "*" })),
            "invalid_image",
            "messages[0].content[0].source.data",
        ),
        (
            source(json!({ "type": "base64", "media_type": "image/png", "data": "A".repeat(3000) })),
            "invalid_image",
            "messages[0].content[0].source.data",
        ),
        (source(json!({ "type": "base64", "media_type": "image/png", "data": "AAEC" })), "invalid_image", ""),
        (
            said(json!({ "type": "redacted_thinking", "data": "x" })),
            "unsupported_parameter",
            "messages[1].content[0].type",
        ),
        (said(json!({ "type": "image" })), "invalid_value", "messages[1].content[0].type"),
        (
            said(json!({ "type": "tool_use", "id": "a", "name": "f", "input": "x" })),
            "invalid_type",
            "messages[1].content[0].input",
        ),
        (
            said(json!({ "type": "tool_use", "id": "a", "name": "f" })),
            "missing_required_parameter",
            "messages[1].content[0].input",
        ),
        (
            json!({ "messages": [{ "role": "user", "content": "x" }, { "role": "assistant", "content": "The" }] }),
            "unsupported_parameter",
            "messages[1].role",
        ),
    ] {
        let asked = body("Hello!", &more);
        let answer = client.post(MESSAGES, asked.clone()).await;
        let (status, kind, found, message) = failure(&answer);
        assert_eq!((status, kind.as_str(), found.as_str()), (400, "invalid_request_error", code), "{asked}: {message}");
        assert!(message.contains(param), "{asked}: {message} names {param}");
    }
    // Counting knows what shapes the prompt, and nothing of how it is answered.
    let count = |more: Value| {
        let mut body = json!({ "model": "etude", "messages": [{ "role": "user", "content": "x" }] });
        for (key, value) in more.as_object().unwrap() {
            body[key] = value.clone();
        }
        body
    };
    for (more, code) in [
        (json!({ "max_tokens": 5 }), "unknown_parameter"),
        (json!({ "stream": true }), "unknown_parameter"),
        (json!({ "temperature": 1 }), "unknown_parameter"),
        (json!({ "model": "nobody" }), "model_not_found"),
    ] {
        assert_eq!(failure(&client.post(COUNT, count(more.clone())).await).2, code, "{more}");
    }
}

#[tokio::test]
async fn every_failure_has_the_api_s_shape() {
    let client =
        Client::with_keys("[limits]\nrequests = 1\nbody_bytes = 1000\n", Keys::new(["open-sesame"]).unwrap()).await;
    let send = async |method: &str, path: &str, headers: &[(&str, &str)], body: &str| {
        let mut request = request(method, path, Body::from(body.to_owned()));
        for (name, value) in headers {
            request.headers_mut().insert(HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
        }
        client.send(request).await
    };
    let key = ("x-api-key", "open-sesame");
    let told = |answer: Answer| {
        let (status, kind, code, _) = failure(&answer);
        (status, kind, code)
    };
    let expected = |status: u16, kind: &str, code: &str| (status, kind.to_owned(), code.to_owned());
    let good = body("Hello!", &json!({ "max_tokens": 2 })).to_string();
    for (method, path, headers, sent, wanted) in [
        ("POST", MESSAGES, vec![], good.as_str(), expected(401, "authentication_error", "invalid_api_key")),
        (
            "POST",
            MESSAGES,
            vec![("x-api-key", "open-sesamE")],
            &good,
            expected(401, "authentication_error", "invalid_api_key"),
        ),
        (
            "POST",
            MESSAGES,
            vec![key, ("host", "evil.example")],
            &good,
            expected(403, "permission_error", "host_not_allowed"),
        ),
        (
            "POST",
            MESSAGES,
            vec![key, ("origin", "https://evil.example")],
            &good,
            expected(403, "permission_error", "origin_not_allowed"),
        ),
        ("GET", MESSAGES, vec![key], "", expected(405, "invalid_request_error", "method_not_allowed")),
        ("POST", "/v1/messages/batches", vec![key], "{}", expected(404, "not_found_error", "unknown_url")),
        (
            "POST",
            "/v1/complete",
            vec![key, ("anthropic-version", "2023-06-01")],
            "{}",
            expected(404, "not_found_error", "unknown_url"),
        ),
        (
            "POST",
            MESSAGES,
            vec![key, ("content-type", "text/plain")],
            &good,
            expected(415, "invalid_request_error", "unsupported_media_type"),
        ),
        ("POST", MESSAGES, vec![key], &" ".repeat(1001), expected(413, "invalid_request_error", "body_too_large")),
        ("POST", MESSAGES, vec![key], "{", expected(400, "invalid_request_error", "invalid_json")),
        ("POST", COUNT, vec![key], "[]", expected(400, "invalid_request_error", "invalid_type")),
        (
            "POST",
            MESSAGES,
            vec![key],
            &good.replace("etude", "nobody"),
            expected(404, "not_found_error", "model_not_found"),
        ),
    ] {
        assert_eq!(told(send(method, path, &headers, sent).await), wanted, "{method} {path} {headers:?}");
    }
    // The other API's clients are told in the other form.
    assert_eq!(send("GET", "/v1/models", &[], "").await.error().0, 401);
    assert_eq!(send("POST", MESSAGES, &[("authorization", "Bearer open-sesame")], &good).await.status, 200);
    // One is answered, and there is no place for another.
    let long = body("Tell me a story about a fox.", &json!({ "stream": true }));
    let mut first = request("POST", MESSAGES, Body::from(long.to_string()));
    first.headers_mut().insert("x-api-key", "open-sesame".parse().unwrap());
    let running = tower::ServiceExt::oneshot(client.app.router(consort_server::Transport::Tcp), first).await.unwrap();
    assert_eq!(running.status(), 200);
    let refused = send("POST", MESSAGES, &[key], &good).await;
    assert_eq!(refused.headers["retry-after"], "1");
    assert_eq!(told(refused), expected(529, "overloaded_error", "overloaded"));
    drop(running);
    assert_eq!(send("POST", MESSAGES, &[key], &good).await.status, 200);
}

#[tokio::test]
async fn an_error_in_the_middle_is_the_last_event() {
    let client = Client::with("[limits]\nreply_seconds = 1\n").await;
    // Longer than a second, whatever the machine.
    let schema = json!({ "type": "string", "minLength": 100_000 });
    let more = json!({ "stream": true, "temperature": 1, "output_format": { "type": "json_schema", "schema": schema }, "max_tokens": 100_000 });
    let asks = (0..8).map(|_| client.post(MESSAGES, body("Tell me a story about a fox.", &more)));
    let mut failed = 0;
    for answer in futures_util::future::join_all(asks).await {
        let events = events(&answer);
        let last = events.last().unwrap();
        if last["type"] == "message_stop" {
            // The context was full before the time was.
            continue;
        }
        assert_eq!((&last["type"], &last["error"]["type"]), (&json!("error"), &json!("timeout_error")), "{last}");
        failed += 1;
    }
    assert!(failed > 0, "all of them had time enough");
}
