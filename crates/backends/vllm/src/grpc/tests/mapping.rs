//! Calls to requests, answers to chunks, statuses to errors: no server is needed.

use std::sync::Arc;

use consort_core::{ErrorKind, ErrorStatus, Penalties, PositionLogprobs, Sampling, Structure, TokenLogprob};
use proptest::prelude::*;
use tonic::{Code, Status};
use vllm_proto::candidate_token_info::TokenInfo;
use vllm_proto::decoding_parameters::{StringChoices, StructuredOutput};
use vllm_proto::finish_info::{FinishReason, StopReason};
use vllm_proto::*;

use super::super::error::About;
use super::super::request::{self, Text};
use super::super::stream::Decoder;
use super::call;
use super::server::{last, prompt, tokens};
use crate::call::{Call, CallPrompt, Chunk, Finish, Picture};

fn picture() -> Picture {
    Picture { bytes: Arc::from(&b"a file"[..]), mime: "image/png" }
}

#[test]
fn every_field_is_said() {
    let sampling = Sampling {
        temperature: 0.7,
        top_k: 20,
        top_p: 0.8,
        min_p: 0.05,
        penalties: Penalties { repetition: 1.1, presence: 0.5, frequency: -0.5, window: None },
        logit_bias: vec![(5, 1.5), (6, f32::NEG_INFINITY), (5, 1.0), (7, 3.0), (7, f32::NEG_INFINITY)],
        seed: u64::MAX,
        ..Sampling::default()
    };
    let call = Call {
        adapter: Some("pirate".into()),
        model: "pirate".into(),
        prompt: CallPrompt::Tokens { ids: vec![1, 99, 3], pictures: vec![picture()] },
        sampling,
        stop_strings: vec!["stop".into()],
        stop_tokens: vec![8, 9],
        min_tokens: 2,
        ignore_end: true,
        logprobs: Some(0),
        prompt_logprobs: Some(3),
        structure: Some(Structure::Regex("[a-z]+".into())),
        priority: Some(-4),
        bypass: true,
        ..call()
    };
    let top = |count| Some(CandidateTokens { select: Some(candidate_tokens::Select::TopN(count)) });
    let wanted = GenerateRequest {
        request_id: "request-1".into(),
        model: "base".into(),
        prompt: Some(generate_request::Prompt::TokenIds(TokenIds { ids: vec![1, 99, 3] })),
        temperature: Some(0.7),
        sampling: Some(RandomSampling {
            num_sequences: 1,
            top_k: Some(20),
            top_p: Some(0.8),
            min_p: Some(0.05),
            seed: Some(i64::MAX),
        }),
        decoding: Some(DecodingParameters {
            presence_penalty: 0.5,
            frequency_penalty: -0.5,
            repetition_penalty: 1.1,
            logit_bias: [(5, 2.5)].into(),
            allowed_token_ids: vec![],
            bad_words_token_ids: vec![TokenIds { ids: vec![6] }, TokenIds { ids: vec![7] }],
            structured_output: Some(StructuredOutput::Regex("[a-z]+".into())),
        }),
        stopping: Some(StoppingCriteria {
            max_new_tokens: 8,
            min_new_tokens: 2,
            stop_token_ids: vec![8, 9],
            stop_strings: vec!["stop".into()],
            include_stop_strings: false,
            ignore_eos: true,
            thinking_token_budget: None,
        }),
        response: Some(ResponseOptions {
            prompt_token_ids: true,
            prompt_logprobs: true,
            prompt_candidates: top(3),
            output_text: Some(false),
            output_token_ids: true,
            output_logprobs: true,
            output_candidates: top(0),
            skip_special_tokens: Some(true),
        }),
        kv: Some(KvCacheParameters { bypass_prefix_cache: true, cache_salt: "salt".into(), ..Default::default() }),
        priority: -4,
        media: vec![MediaItem {
            modality: Modality::Image.into(),
            source: Some(media_item::Source::RawBytes(b"a file".to_vec())),
            mime_type: "image/png".into(),
            uuid: String::new(),
        }],
        lora_name: "pirate".into(),
        engine_reasoning_gate: Some(EngineReasoningGate { reasoning_ended: Some(true), chat_template_kwargs: None }),
        ..Default::default()
    };
    assert_eq!(request::of(&call, Some("base"), Text::NotWanted).unwrap(), wanted);
    // Without the base model's name, none is said: an adapter's is no model there.
    assert_eq!(request::of(&call, None, Text::NotWanted).unwrap().model, "");
}

#[test]
fn the_defaults_are_said_too() {
    let request = request::of(&call(), Some("elsewhere"), Text::Wanted).unwrap();
    assert_eq!((request.model.as_str(), request.lora_name.as_str()), ("base", ""));
    assert_eq!(request.temperature, Some(0.0));
    let sampling = request.sampling.unwrap();
    assert_eq!((sampling.top_k, sampling.top_p, sampling.min_p), (Some(0), Some(1.0), Some(0.0)));
    assert_eq!(request.decoding.unwrap().repetition_penalty, 1.0);
    assert_eq!(request.stopping.unwrap().max_new_tokens, 8);
    let options = request.response.unwrap();
    assert!(options.output_token_ids && options.output_text == Some(true));
    assert!(!options.output_logprobs && options.output_candidates.is_none() && options.prompt_candidates.is_none());
    assert!(request.engine_reasoning_gate.is_none());
}

#[test]
fn every_form_has_its_field() {
    let of = |structure| {
        let call = Call { structure: Some(structure), ..call() };
        request::of(&call, None, Text::NotWanted).unwrap().decoding.unwrap().structured_output.unwrap()
    };
    let schema = serde_json::json!({ "type": "object" });
    assert_eq!(of(Structure::json_schema(schema)), StructuredOutput::Json(r#"{"type":"object"}"#.into()));
    assert_eq!(of(Structure::JsonObject), StructuredOutput::JsonObject(true));
    assert_eq!(of(Structure::Lark("start: \"a\"".into())), StructuredOutput::Grammar("start: \"a\"".into()));
    let choices = vec!["red".to_owned(), "green".into()];
    assert_eq!(of(Structure::Choice(choices.clone())), StructuredOutput::Choice(StringChoices { choices }));
}

#[test]
fn what_cannot_be_asked_is_refused_by_name() {
    let chat = CallPrompt::Chat { messages: serde_json::json!([]), tools: vec![], thinking: None };
    let error = request::of(&Call { prompt: chat, ..call() }, None, Text::Wanted).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.message().contains("conversations") && error.message().contains("model's files"), "{error}");
    let error = request::of(&Call { max_tokens: 0, ..call() }, None, Text::Wanted).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidRequest);
}

fn decoder(change: impl FnOnce(&mut Call)) -> Decoder {
    let mut call = call();
    change(&mut call);
    Decoder::new(&call, Some(99), Text::NotWanted)
}

#[test]
fn every_end_has_its_reason() {
    let of = |ids: &[u32], reason, stop| decoder(|_| ()).read(last(ids, reason, stop));
    let end = |ids: &[u32], reason, stop| of(ids, reason, stop).unwrap().finish;
    assert_eq!(end(&[4, 7], FinishReason::Stop, Some(StopReason::EosTokenId(7))), Some(Finish::End));
    assert_eq!(end(&[4, 8], FinishReason::Stop, Some(StopReason::StopTokenId(8))), Some(Finish::Token(8)));
    let string = StopReason::StopString("ne".into());
    assert_eq!(end(&[4], FinishReason::Stop, Some(string)), Some(Finish::String("ne".into())));
    assert_eq!(end(&[4], FinishReason::Length, None), Some(Finish::Length));
    assert_eq!(end(&[4], FinishReason::NotFinished, None), None);
    let aborted = of(&[4], FinishReason::Aborted, None).unwrap_err();
    assert_eq!((aborted.kind(), aborted.status()), (ErrorKind::Remote, ErrorStatus::Temporary));
    // What no server says.
    for (reason, stop) in [
        (FinishReason::Stop, None),
        (FinishReason::Stop, Some(StopReason::EosTokenId(5))),
        (FinishReason::Stop, Some(StopReason::StopTokenId(5))),
    ] {
        let error = of(&[4], reason, stop).unwrap_err();
        assert_eq!((error.kind(), error.status()), (ErrorKind::Remote, ErrorStatus::Permanent), "{error}");
    }
    let mut unknown = last(&[4], FinishReason::Stop, None);
    unknown.outputs.as_mut().unwrap().finish_info.as_mut().unwrap().finish_reason = 77;
    assert!(decoder(|_| ()).read(unknown).unwrap_err().message().contains("not known"));
    // The token that ends it may have come before.
    let mut decoder = decoder(|_| ());
    decoder.read(tokens(&[7])).unwrap();
    let chunk = decoder.read(last(&[], FinishReason::Stop, Some(StopReason::EosTokenId(7)))).unwrap();
    assert_eq!((chunk.finish, chunk.cached_tokens), (Some(Finish::End), Some(2)));
}

fn info(tokens: &[(u32, f32)]) -> CandidateTokenInfo {
    CandidateTokenInfo { tokens: tokens.iter().map(|&(id, logprob)| TokenInfo { id, logprob, rank: 0 }).collect() }
}

fn candidate(token: u32, logprob: f32) -> TokenLogprob {
    TokenLogprob { token, logprob }
}

#[test]
fn log_probabilities_are_of_the_tokens_best_first_and_each_once() {
    let mut response = tokens(&[4, 5]);
    let output = response.outputs.as_mut().unwrap();
    output.logprobs = vec![-3.0, -0.5];
    output.candidate_tokens = vec![info(&[(9, -2.0), (8, -0.1), (4, -3.0), (8, -0.2)]), info(&[(5, -0.5)])];
    let chunk = decoder(|call| call.logprobs = Some(2)).read(response.clone()).unwrap();
    let first = PositionLogprobs { chosen: candidate(4, -3.0), top: vec![candidate(8, -0.1), candidate(9, -2.0)] };
    let second = PositionLogprobs { chosen: candidate(5, -0.5), top: vec![candidate(5, -0.5)] };
    assert_eq!(chunk.logprobs, [first, second]);
    // Not asked for, they are not told.
    assert!(decoder(|_| ()).read(response.clone()).unwrap().logprobs.is_empty());
    let strange = |change: fn(&mut SequenceOutput)| {
        let mut response = response.clone();
        change(response.outputs.as_mut().unwrap());
        decoder(|call| call.logprobs = Some(2)).read(response).unwrap_err()
    };
    assert_eq!(strange(|output| output.logprobs.truncate(1)).status(), ErrorStatus::Permanent);
    assert_eq!(strange(|output| output.candidate_tokens.clear()).status(), ErrorStatus::Permanent);
    assert!(strange(|output| output.logprobs[1] = f32::NAN).message().contains("no number"));
    // Without candidates there may be no lists of them.
    response.outputs.as_mut().unwrap().candidate_tokens.clear();
    let chunk = decoder(|call| call.logprobs = Some(0)).read(response).unwrap();
    assert!(chunk.logprobs.len() == 2 && chunk.logprobs.iter().all(|entry| entry.top.is_empty()));
}

#[test]
fn the_prompt_has_one_entry_for_each_position_and_none_for_pictures() {
    let mut response = prompt(5);
    let told = response.prompt_info.as_mut().unwrap();
    told.token_ids = vec![1, 99, 99, 99, 3];
    told.logprobs = vec![0.0, -1.0, -2.0, -3.0, -4.0];
    told.candidate_tokens = vec![info(&[]), info(&[(6, -1.0)]), info(&[]), info(&[]), info(&[(3, -4.0), (6, -0.1)])];
    let shown = |call: &mut Call| {
        call.prompt_logprobs = Some(1);
        call.prompt = CallPrompt::Tokens { ids: vec![1, 99, 3], pictures: vec![picture()] };
    };
    let chunk = decoder(shown).read(response.clone()).unwrap();
    let end = PositionLogprobs { chosen: candidate(3, -4.0), top: vec![candidate(6, -0.1)] };
    assert_eq!(chunk.prompt_logprobs, Some(vec![None, None, None, None, Some(end)]));
    assert_eq!(chunk.prompt_tokens, Some(5));
    // Without a picture, the token is one as any other.
    let chunk = decoder(|call| call.prompt_logprobs = Some(1)).read(response.clone()).unwrap();
    assert_eq!(chunk.prompt_logprobs.unwrap().iter().filter(|entry| entry.is_some()).count(), 4);
    let mut call = call();
    shown(&mut call);
    let blind = Decoder::new(&call, None, Text::NotWanted).read(response.clone()).unwrap_err();
    assert!(blind.message().contains("pictures"), "{blind}");
    response.prompt_info.as_mut().unwrap().token_ids.pop();
    assert!(decoder(shown).read(response).unwrap_err().message().contains("which tokens"));
}

#[test]
fn a_reply_that_was_not_asked_for_is_none() {
    let mut other = tokens(&[4]);
    other.outputs.as_mut().unwrap().index = 1;
    assert!(decoder(|_| ()).read(other).is_err());
    let mut silent = tokens(&[4]);
    silent.outputs.as_mut().unwrap().token_ids.clear();
    assert!(decoder(|_| ()).read(silent).unwrap_err().message().contains("which tokens"));
    // No server makes a reply longer than it may be.
    let mut decoder = decoder(|_| ());
    decoder.read(tokens(&[4; 8])).unwrap();
    assert!(decoder.read(tokens(&[4])).unwrap_err().message().contains("too long"));
}

#[test]
fn text_is_told_only_where_it_is_wanted() {
    let mut response = tokens(&[4]);
    response.outputs.as_mut().unwrap().text = "words".into();
    assert_eq!(decoder(|_| ()).read(response.clone()).unwrap().text, "");
    assert_eq!(Decoder::new(&call(), None, Text::Wanted).read(response).unwrap().text, "words");
}

fn about(call: Option<Call>) -> About {
    About { endpoint: "grpc://x".into(), secret: Some("hush-hush".into()), call: call.map(Arc::new) }
}

#[test]
fn every_code_has_its_kind() {
    let permanent = ErrorStatus::Permanent;
    let temporary = ErrorStatus::Temporary;
    for (code, kind, status) in [
        (Code::Ok, ErrorKind::Remote, permanent),
        (Code::Cancelled, ErrorKind::Remote, temporary),
        (Code::Unknown, ErrorKind::Remote, temporary),
        (Code::InvalidArgument, ErrorKind::InvalidRequest, permanent),
        (Code::DeadlineExceeded, ErrorKind::Remote, temporary),
        (Code::NotFound, ErrorKind::NotFound, permanent),
        (Code::AlreadyExists, ErrorKind::InvalidRequest, permanent),
        (Code::PermissionDenied, ErrorKind::InvalidConfig, permanent),
        (Code::ResourceExhausted, ErrorKind::Overloaded, temporary),
        (Code::FailedPrecondition, ErrorKind::Remote, permanent),
        (Code::Aborted, ErrorKind::Remote, temporary),
        (Code::OutOfRange, ErrorKind::InvalidRequest, permanent),
        (Code::Unimplemented, ErrorKind::Unsupported, permanent),
        (Code::Internal, ErrorKind::Remote, temporary),
        (Code::Unavailable, ErrorKind::Remote, temporary),
        (Code::DataLoss, ErrorKind::Remote, permanent),
        (Code::Unauthenticated, ErrorKind::InvalidConfig, permanent),
    ] {
        let error = about(None).of_status(Status::new(code, "what it says"));
        assert_eq!((error.kind(), error.status()), (kind, status), "{code:?}");
        assert!(error.message().ends_with(": what it says"), "{error}");
        assert!(error.context().any(|pair| pair == ("endpoint", "grpc://x")), "{error}");
    }
    let key = about(None).of_status(Status::unauthenticated(""));
    assert!(key.message().contains("api_key_env"), "{key}");
}

#[test]
fn a_refusal_is_of_what_was_wrong() {
    let structured = Call { structure: Some(Structure::Regex("[".into())), ..call() };
    let seeing = Call { prompt: CallPrompt::Tokens { ids: vec![99], pictures: vec![picture()] }, ..call() };
    let kind = |call: &Call, status| about(Some(call.clone())).of_status(status).kind();
    let schema = || Status::invalid_argument("invalid json schema: key must be a string");
    assert_eq!(kind(&structured, schema()), ErrorKind::InvalidGrammar);
    assert_eq!(kind(&call(), schema()), ErrorKind::InvalidRequest);
    let unread = || Status::internal("multimodal preprocessing error: image decode error: unexpected end of file");
    let error = about(Some(seeing.clone())).of_status(unread());
    assert_eq!((error.kind(), error.status()), (ErrorKind::InvalidImage, ErrorStatus::Permanent));
    assert_eq!(kind(&call(), unread()), ErrorKind::Remote);
    assert_eq!(kind(&seeing, Status::internal("the engine died")), ErrorKind::Remote);
    let long = about(None).of_status(Status::out_of_range("Error, decoded message length too large: found 9"));
    assert_eq!((long.kind(), long.status()), (ErrorKind::Remote, ErrorStatus::Permanent));
}

#[test]
fn the_key_is_never_repeated_and_words_are_cut() {
    let status = || Status::unauthenticated(format!("Bearer hush-hush is not known {}", "é".repeat(900)));
    let (plain, adapter) = (about(None).of_status(status()), about(None).of_adapter(status()));
    for error in [plain, adapter] {
        assert!(!format!("{error:?}").contains("hush"), "{error:?}");
        assert!(error.message().chars().count() < 620 && error.message().ends_with('…'), "{error}");
    }
}

#[test]
fn what_an_adapter_is_refused_for() {
    let of = |status| about(None).of_adapter(status);
    let off = of(Status::invalid_argument(
        "Local LoRA adapter paths require VLLM_RUNTIME_LORA_ALLOWED_PATH_PREFIXES to be configured.",
    ));
    assert_eq!(off.kind(), ErrorKind::Unsupported);
    assert_eq!(of(Status::unimplemented("")).kind(), ErrorKind::Unsupported);
    let unseen = of(Status::invalid_argument("Local LoRA adapter path must exist and be accessible."));
    assert_eq!(unseen.kind(), ErrorKind::NotFound);
    let broken = of(Status::internal(
        "failed to load LoRA adapter `p`: utility call `add_lora` failed (call_id=1): Call to add_lora method failed: \
         Expected `bool`, got `null` - at `$[4]`",
    ));
    assert_eq!((broken.kind(), broken.status()), (ErrorKind::Unsupported, ErrorStatus::Permanent));
    assert_eq!(of(Status::invalid_argument("rank 64 is too high")).kind(), ErrorKind::InvalidAdapter);
    assert_eq!(of(Status::unavailable("")).status(), ErrorStatus::Temporary);
}

fn any_candidates() -> impl Strategy<Value = CandidateTokenInfo> {
    let token = (any::<u32>(), proptest::num::f32::ANY, any::<u32>()).prop_map(|(id, logprob, rank)| TokenInfo {
        id,
        logprob,
        rank,
    });
    proptest::collection::vec(token, 0..4).prop_map(|tokens| CandidateTokenInfo { tokens })
}

/// Lists that fit to each other more often than chance would have it.
fn any_rows() -> impl Strategy<Value = (Vec<u32>, Vec<f32>, Vec<CandidateTokenInfo>)> {
    let lengths = prop_oneof![(0..5usize).prop_map(|n| (n, n, n)), (0..5usize, 0..5usize, 0..5usize)];
    lengths.prop_flat_map(|(ids, logprobs, candidates)| {
        (
            proptest::collection::vec(prop_oneof![Just(99), any::<u32>()], ids),
            proptest::collection::vec(proptest::num::f32::ANY, logprobs),
            proptest::collection::vec(any_candidates(), candidates),
        )
    })
}

fn any_finish() -> impl Strategy<Value = FinishInfo> {
    let stop = prop_oneof![
        Just(None),
        any::<u32>().prop_map(|id| Some(StopReason::StopTokenId(id))),
        any::<u32>().prop_map(|id| Some(StopReason::EosTokenId(id))),
        ".{0,4}".prop_map(|string| Some(StopReason::StopString(string))),
    ];
    (prop_oneof![0..5i32, any::<i32>()], stop, any::<Option<u32>>()).prop_map(|(finish_reason, stop_reason, cached)| {
        FinishInfo { finish_reason, stop_reason, num_cached_tokens: cached, ..FinishInfo::default() }
    })
}

fn any_response() -> impl Strategy<Value = GenerateResponse> {
    let prompt =
        (any_rows(), proptest::option::of(any::<u32>())).prop_map(|((ids, logprobs, candidates), count)| PromptInfo {
            num_prompt_tokens: count.unwrap_or(ids.len() as u32),
            token_ids: ids,
            logprobs,
            candidate_tokens: candidates,
            ..PromptInfo::default()
        });
    let output =
        (any_rows(), proptest::option::of(any::<u32>()), proptest::option::of(any_finish()), 0..2u32, ".{0,8}");
    let output = output.prop_map(|((ids, logprobs, candidates), count, finish_info, index, text)| SequenceOutput {
        index,
        text,
        num_tokens: count.unwrap_or(ids.len() as u32),
        token_ids: ids,
        logprobs,
        candidate_tokens: candidates,
        finish_info,
        ..SequenceOutput::default()
    });
    (proptest::option::of(prompt), proptest::option::of(output))
        .prop_map(|(prompt_info, outputs)| GenerateResponse { prompt_info, outputs })
}

proptest! {
    /// Whatever comes, it is a chunk that is as it should be, or an error.
    #[test]
    fn no_answer_makes_it_fall_over(
        responses in proptest::collection::vec(any_response(), 0..6),
        logprobs in proptest::option::of(0..3u32),
        prompt_logprobs in proptest::option::of(0..3u32),
        seeing in any::<bool>(),
    ) {
        let pictures = if seeing { vec![picture()] } else { vec![] };
        let call = Call { logprobs, prompt_logprobs, prompt: CallPrompt::Tokens { ids: vec![1], pictures }, ..call() };
        let mut decoder = Decoder::new(&call, Some(99), Text::NotWanted);
        let mut count = 0;
        for response in responses {
            let Ok(chunk) = decoder.read(response) else { continue };
            let Chunk { ids, logprobs: rows, prompt_logprobs: of_prompt, prompt_tokens, text, .. } = chunk;
            count += ids.len();
            prop_assert!(count <= 8 && text.is_empty());
            prop_assert_eq!(rows.len(), if logprobs.is_some() { ids.len() } else { 0 });
            let entries = of_prompt.unwrap_or_default();
            prop_assert!(entries.is_empty() || Some(entries.len()) == prompt_tokens);
            prop_assert!(entries.first().is_none_or(Option::is_none));
            let limit = |entry: &PositionLogprobs, count: Option<u32>| entry.top.len() <= count.unwrap_or(0) as usize;
            prop_assert!(rows.iter().all(|row| limit(row, logprobs) && !row.chosen.logprob.is_nan()));
            prop_assert!(entries.iter().flatten().all(|row| limit(row, prompt_logprobs)));
            for row in rows.iter().chain(entries.iter().flatten()) {
                prop_assert!(row.top.windows(2).all(|pair| pair[0].logprob >= pair[1].logprob));
                let ids: std::collections::BTreeSet<_> = row.top.iter().map(|candidate| candidate.token).collect();
                prop_assert_eq!(ids.len(), row.top.len());
            }
        }
    }
}
