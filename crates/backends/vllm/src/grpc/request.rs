//! A call as a request.
//!
//! Every field that has a default on the server is said, so that no server's default decides: vLLM ends a reply after 20
//! tokens where nothing is said.

use std::collections::BTreeMap;

use consort_core::{Error, ErrorKind, Result, Structure, TokenId};
use vllm_proto::candidate_tokens::Select;
use vllm_proto::decoding_parameters::{StringChoices, StructuredOutput};
use vllm_proto::generate_request::Prompt;
use vllm_proto::media_item::Source;
use vllm_proto::{
    CandidateTokens, DecodingParameters, EngineReasoningGate, GenerateRequest, KvCacheParameters, MediaItem, Modality,
    RandomSampling, ResponseOptions, StoppingCriteria, TokenIds,
};

use crate::call::{Call, CallPrompt, Picture};

/// Whether the server is to show text beside the ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Text {
    Wanted,
    NotWanted,
}

/// The request. `base`: the base model's name, where it was said.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for a conversation and for forms that vLLM has not; [`ErrorKind::InvalidRequest`] for a reply without tokens.
pub(super) fn of(call: &Call, base: Option<&str>, text: Text) -> Result<GenerateRequest> {
    let CallPrompt::Tokens { ids, pictures } = &call.prompt else {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "vLLM's gRPC services take tokens and no conversations; give the model's files, or an HTTP endpoint",
        )
        .with_backend(crate::NAME)
        .with_operation("generate"));
    };
    if call.max_tokens == 0 {
        // It would mean the server's default.
        return Err(Error::new(ErrorKind::InvalidRequest, "a reply has at least one token")
            .with_backend(crate::NAME)
            .with_context("field", "max_tokens"));
    }
    // An adapter has a field of its own here, and its name is no model's.
    let model = match &call.adapter {
        Some(_) => base.unwrap_or_default(),
        None => &call.model,
    };
    Ok(GenerateRequest {
        request_id: call.id.clone(),
        model: model.to_owned(),
        prompt: Some(Prompt::TokenIds(TokenIds { ids: ids.clone() })),
        temperature: Some(call.sampling.temperature),
        sampling: Some(sampling(call)),
        decoding: Some(decoding(call)?),
        stopping: Some(stopping(call)),
        response: Some(response(call, text)),
        kv: Some(KvCacheParameters {
            bypass_prefix_cache: call.bypass,
            cache_salt: call.salt.clone(),
            kv_transfer_params: None,
            ec_transfer_params: None,
        }),
        truncate_prompt_tokens: 0,
        priority: call.priority.unwrap_or_default(),
        session_id: None,
        media: pictures.iter().map(media).collect(),
        lora_name: call.adapter.clone().unwrap_or_default(),
        // Whether replies are marked is for whoever runs the server to say.
        watermarking: None,
        kv_hints: None,
        // A form holds from the first token. A server that takes reasoning apart would else wait for its end.
        engine_reasoning_gate: call
            .structure
            .is_some()
            .then_some(EngineReasoningGate { reasoning_ended: Some(true), chat_template_kwargs: None }),
    })
}

fn sampling(call: &Call) -> RandomSampling {
    let sampling = &call.sampling;
    RandomSampling {
        num_sequences: 1,
        top_k: Some(sampling.top_k),
        top_p: Some(sampling.top_p),
        min_p: Some(sampling.min_p),
        // Seeds are signed there. The same bits as by HTTP: a request may go either way.
        seed: Some((sampling.seed & i64::MAX as u64) as i64),
    }
}

fn decoding(call: &Call) -> Result<DecodingParameters> {
    let sampling = &call.sampling;
    let mut biases: BTreeMap<TokenId, f32> = BTreeMap::new();
    for &(token, bias) in &sampling.logit_bias {
        // A token that is named twice gets both.
        *biases.entry(token).or_default() += bias;
    }
    // The lowest bias is −100, which a high logit overcomes. A sequence that must not be said is never said.
    let (forbidden, biases): (Vec<_>, Vec<_>) = biases.into_iter().partition(|&(_, bias)| bias == f32::NEG_INFINITY);
    Ok(DecodingParameters {
        presence_penalty: sampling.penalties.presence,
        frequency_penalty: sampling.penalties.frequency,
        repetition_penalty: sampling.penalties.repetition,
        logit_bias: biases.into_iter().collect(),
        allowed_token_ids: Vec::new(),
        bad_words_token_ids: forbidden.into_iter().map(|(token, _)| TokenIds { ids: vec![token] }).collect(),
        structured_output: call.structure.as_ref().map(structured).transpose()?,
    })
}

/// What holds a reply to a form, as vLLM has it.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for a form that vLLM has not; there is none yet.
fn structured(structure: &Structure) -> Result<StructuredOutput> {
    Ok(match structure {
        Structure::JsonObject => StructuredOutput::JsonObject(true),
        Structure::JsonSchema(schema) => StructuredOutput::Json(schema.to_string()),
        Structure::Regex(regex) => StructuredOutput::Regex(regex.clone()),
        Structure::Lark(grammar) => StructuredOutput::Grammar(grammar.clone()),
        Structure::Choice(choices) => StructuredOutput::Choice(StringChoices { choices: choices.clone() }),
        _ => return Err(Error::unsupported(crate::NAME, "this kind of structure")),
    })
}

fn stopping(call: &Call) -> StoppingCriteria {
    StoppingCriteria {
        max_new_tokens: call.max_tokens,
        min_new_tokens: call.min_tokens,
        stop_token_ids: call.stop_tokens.clone(),
        stop_strings: call.stop_strings.clone(),
        include_stop_strings: false,
        ignore_eos: call.ignore_end,
        thinking_token_budget: None,
    }
}

fn response(call: &Call, text: Text) -> ResponseOptions {
    let candidates = |count: Option<u32>| count.map(|count| CandidateTokens { select: Some(Select::TopN(count)) });
    ResponseOptions {
        // Which token each position has; pictures are many there.
        prompt_token_ids: call.prompt_logprobs.is_some(),
        prompt_logprobs: call.prompt_logprobs.is_some(),
        prompt_candidates: candidates(call.prompt_logprobs),
        output_text: Some(text == Text::Wanted),
        output_token_ids: true,
        output_logprobs: call.logprobs.is_some(),
        output_candidates: candidates(call.logprobs),
        skip_special_tokens: Some(true),
    }
}

fn media(picture: &Picture) -> MediaItem {
    MediaItem {
        modality: Modality::Image.into(),
        source: Some(Source::RawBytes(picture.bytes.to_vec())),
        mime_type: picture.mime.to_owned(),
        uuid: String::new(),
    }
}
