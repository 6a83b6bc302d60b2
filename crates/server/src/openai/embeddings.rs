//! `/v1/embeddings`.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use consort_core::{EmbedRequest, Pooling, Prompt, PromptPart, SpecialTokens, Usage};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde_json::{Value, json};

use super::completions::{prepare, several};
use super::{HARMLESS, json_response};
use crate::app::Shared;
use crate::body;
use crate::error::Failure;
use crate::metrics::Outcome;

/// Texts of one request that are embedded side by side.
const SIDE_BY_SIDE: usize = 4;

/// Embeds texts: the mean of the model's hidden states over a text's tokens, or the last token's, of length 1.
pub(crate) async fn handle(State(app): State<Arc<Shared>>, request: Request) -> Result<Response, Failure> {
    let arrived = Instant::now();
    let mut fields = body::json(&app, request).await?;
    fields.harmless(&HARMLESS);
    let model: String = fields.require("model")?;
    let given = several(&mut fields, "input", app.config.limits.inputs.get())?;
    let width = app.backend.info().hidden_size;
    if fields.get::<usize>("dimensions")?.is_some_and(|wanted| wanted != width) {
        return Err(Failure::unsupported(
            "dimensions",
            format!("embeddings of this model have {width} dimensions, and are not cut"),
        ));
    }
    let format = fields.get::<String>("encoding_format")?;
    let base64 = match format.as_deref() {
        None | Some("float") => false,
        Some("base64") => true,
        Some(_) => return Err(Failure::value("encoding_format", "it is float or base64")),
    };
    let pooling = fields.get::<String>("pooling")?;
    let pooling = match pooling.as_deref() {
        None | Some("mean") => Pooling::Mean,
        Some("last") => Pooling::Last,
        Some(_) => return Err(Failure::value("pooling", "it is mean or last")),
    };
    fields.finish()?;
    let member = app.member(&model)?;
    let seat = member.sit()?;
    for adapter in &member.persona.adapters {
        app.adapters.need(&adapter.name, app.registry.residency(&adapter.name)).await?;
    }
    let other = app.clone();
    let texts = tokio::task::spawn_blocking(move || prepare(&other, given, SpecialTokens::Plain))
        .await
        .map_err(|_| Failure::internal())?
        .map_err(|failure| failure.or_param("input"))?;
    let tokens: usize = texts.iter().map(|text| text.tokens.len()).sum();
    let mut meter = member.meter.reply(&member.persona.name, arrived);
    let usage = Usage { prompt_tokens: tokens, ..Usage::default() };
    let embed = texts.into_iter().map(|text| {
        let (backend, adapters) = (Arc::clone(&app.backend), member.persona.adapter_uses());
        let prompt = Prompt::Parts(vec![PromptPart::Tokens(text.tokens)]);
        let placement = member.persona.placement;
        async move { backend.embed(EmbedRequest { prompt, adapters, pooling, placement }).await }
    });
    let embedded: Result<Vec<Vec<f32>>, _> = stream::iter(embed).buffered(SIDE_BY_SIDE).try_collect().await;
    let embedded = embedded.map_err(|error| {
        let failure = Failure::from(error);
        let refused = failure.status() == StatusCode::TOO_MANY_REQUESTS;
        meter.ended(if refused { Outcome::Refused } else { Outcome::Failed }, Usage::default());
        failure
    })?;
    meter.ended(Outcome::Finished, usage);
    drop(seat);
    let data = embedded.into_iter().enumerate().map(|(index, values)| {
        let values = unit(values);
        let embedding = if base64 { encoded(&values).into() } else { Value::from(values) };
        json!({ "object": "embedding", "index": index, "embedding": embedding })
    });
    Ok(json_response(&json!({
        "object": "list",
        "data": data.collect::<Vec<_>>(),
        "model": model,
        "usage": { "prompt_tokens": tokens, "total_tokens": tokens },
    })))
}

/// The same direction with length 1, as the API has it.
fn unit(mut values: Vec<f32>) -> Vec<f32> {
    let length = values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
    if length > 0.0 && length.is_finite() {
        values.iter_mut().for_each(|value| *value = (f64::from(*value) / length) as f32);
    }
    values
}

/// Little-endian 32-bit floats in base64.
fn encoded(values: &[f32]) -> String {
    STANDARD.encode(values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn embeddings_have_length_one() {
        assert_eq!(unit(vec![3.0, 4.0]), [0.6, 0.8]);
        assert_eq!(unit(vec![0.0, 0.0]), [0.0, 0.0]);
        assert_eq!(encoded(&[1.0]), "AACAPw==");
    }
}
