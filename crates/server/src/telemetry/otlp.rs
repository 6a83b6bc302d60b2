//! Spans, and sending them to a collector as OTLP over HTTP.

use std::time::Duration;

use async_trait::async_trait;
use axum::body::Bytes;
use axum::http::StatusCode;
use consort_core::{Error, ErrorKind, Result, Usage};
use opentelemetry::propagation::TextMapPropagator as _;
use opentelemetry::trace::{SpanKind, Status, TraceContextExt as _, Tracer as _, TracerProvider as _};
use opentelemetry::{Context, KeyValue};
use opentelemetry_http::{HeaderExtractor, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};

use super::{Asked, Closing, TelemetryConfig};

/// The longest that a collector may take, for one batch and at the end.
const PATIENCE: Duration = Duration::from_secs(5);
/// The most bytes of a collector's answer that are read.
const MAX_ANSWER: u64 = 1 << 20;

/// Collects spans and sends them, on a thread of its own. Where the collector does not keep up, spans are lost and nothing waits.
#[derive(Debug, Clone, Default)]
pub(super) struct Sender(Option<(SdkTracerProvider, SdkTracer)>);

impl Sender {
    pub(super) fn open(config: &TelemetryConfig) -> Result<Self> {
        let mut exporter = opentelemetry_otlp::SpanExporter::builder().with_http().with_http_client(Client::new());
        if let Some(base) = &config.otlp_endpoint {
            exporter = exporter.with_endpoint(format!("{}/v1/traces", base.trim_end_matches('/')));
        }
        let exporter = exporter.build().map_err(|source| {
            Error::new(ErrorKind::InvalidConfig, format!("traces cannot be sent: {source}"))
                .with_operation("server::telemetry")
        })?;
        let resource = Resource::builder()
            .with_service_name(config.service_name.clone())
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .build();
        let provider = SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build();
        let tracer = provider.tracer("consort");
        Ok(Self(Some((provider, tracer))))
    }

    pub(super) fn request(&self, asked: &Asked<'_>) -> RequestSpan {
        let Some((_, tracer)) = &self.0 else { return RequestSpan::default() };
        let parent =
            TraceContextPropagator::new().extract_with_context(&Context::new(), &HeaderExtractor(asked.headers));
        let span = tracer
            .span_builder(format!("{} {}", asked.method, asked.route))
            .with_kind(SpanKind::Server)
            .with_attributes([
                KeyValue::new("http.request.method", asked.method.to_string()),
                KeyValue::new("http.route", asked.route.to_owned()),
                KeyValue::new("consort.request.id", asked.id.to_owned()),
            ])
            .start_with_context(tracer, &parent);
        RequestSpan(Some(Inner {
            tracer: tracer.clone(),
            context: parent.with_span(span),
            operation: operation(asked.route),
        }))
    }

    pub(super) fn shut_down(&self) {
        if let Some((provider, _)) = &self.0
            && let Err(error) = provider.shutdown_with_timeout(PATIENCE)
        {
            tracing::warn!(%error, "the last traces were not sent");
        }
    }
}

/// What the conventions call that which a route does.
fn operation(route: &str) -> &'static str {
    match route {
        "/v1/completions" => "text_completion",
        "/v1/embeddings" => "embeddings",
        _ => "chat",
    }
}

/// A request's span. It ends once; clones are other hands on it.
#[derive(Debug, Clone, Default)]
pub(crate) struct RequestSpan(Option<Inner>);

#[derive(Debug, Clone)]
struct Inner {
    tracer: SdkTracer,
    context: Context,
    operation: &'static str,
}

impl RequestSpan {
    /// Begins the span of a reply, below this one.
    pub(crate) fn reply(&self, persona: &str) -> ReplySpan {
        ReplySpan(self.0.as_ref().map(|Inner { tracer, context, operation }| {
            let span = tracer
                .span_builder(format!("{operation} {persona}"))
                .with_kind(SpanKind::Internal)
                .with_attributes([
                    KeyValue::new("gen_ai.operation.name", *operation),
                    KeyValue::new("gen_ai.provider.name", "consort"),
                    KeyValue::new("gen_ai.request.model", persona.to_owned()),
                ])
                .start_with_context(tracer, context);
            context.with_span(span)
        }))
    }

    /// Ends it. No status: the client went away before there was one.
    pub(crate) fn end(&self, status: Option<StatusCode>) {
        let Some(Inner { context, .. }) = &self.0 else { return };
        let span = context.span();
        if let Some(status) = status {
            span.set_attribute(KeyValue::new("http.response.status_code", i64::from(status.as_u16())));
            if status.is_server_error() {
                span.set_attribute(KeyValue::new("error.type", status.as_u16().to_string()));
                span.set_status(Status::error(""));
            }
        } else {
            span.set_attribute(KeyValue::new("error.type", "client_gone"));
        }
        span.end();
    }
}

/// A reply's span.
#[derive(Debug)]
pub(crate) struct ReplySpan(Option<Context>);

impl ReplySpan {
    /// The prompt is in.
    pub(crate) fn started(&self, usage: Usage) {
        if let Some(context) = &self.0 {
            let span = context.span();
            span.set_attribute(KeyValue::new("gen_ai.usage.input_tokens", count(usage.prompt_tokens)));
            span.set_attribute(KeyValue::new("gen_ai.usage.cache_read.input_tokens", count(usage.reused_tokens)));
            span.add_event("prompt", Vec::new());
        }
    }

    /// The first token came.
    pub(crate) fn first_token(&self) {
        if let Some(context) = &self.0 {
            context.span().add_event("first token", Vec::new());
        }
    }

    /// Ends it.
    pub(crate) fn end(&self, closing: Closing) {
        let Some(context) = &self.0 else { return };
        let (span, usage) = (context.span(), closing.usage);
        span.set_attribute(KeyValue::new("gen_ai.usage.input_tokens", count(usage.prompt_tokens)));
        span.set_attribute(KeyValue::new("gen_ai.usage.cache_read.input_tokens", count(usage.reused_tokens)));
        span.set_attribute(KeyValue::new("gen_ai.usage.output_tokens", count(usage.completion_tokens)));
        span.set_attribute(KeyValue::new("consort.outcome", closing.outcome));
        if let Some(reason) = closing.reason {
            let reasons = opentelemetry::Array::String(vec![reason.into()]);
            span.set_attribute(KeyValue::new("gen_ai.response.finish_reasons", opentelemetry::Value::Array(reasons)));
        }
        if closing.outcome == "failed" {
            span.set_attribute(KeyValue::new("error.type", "failed"));
            span.set_status(Status::error(""));
        }
        span.end();
    }
}

fn count(tokens: usize) -> i64 {
    i64::try_from(tokens).unwrap_or(i64::MAX)
}

/// The client that carries batches. It is called on the sender's own thread, so it may block.
#[derive(Debug)]
struct Client(ureq::Agent);

impl Client {
    fn new() -> Self {
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(PATIENCE))
            .max_redirects(0)
            .http_status_as_error(false)
            .build();
        Self(config.new_agent())
    }
}

#[async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let (parts, body) = request.into_parts();
        let answer = self.0.run(Request::from_parts(parts, &body[..]))?;
        let (parts, mut body) = answer.into_parts();
        let body = body.with_config().limit(MAX_ANSWER).read_to_vec()?;
        Ok(Response::from_parts(parts, body.into()))
    }
}
