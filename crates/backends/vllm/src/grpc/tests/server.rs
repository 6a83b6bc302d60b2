//! The server's side of vLLM's services.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_core::Stream;
use futures_util::{StreamExt as _, stream};
use hyper_util::rt::TokioIo;
use tokio::runtime::Handle;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tonic::transport::{Channel, Endpoint as Address};
use tonic::{Request, Response, Status};
use vllm_proto::control_server::{Control, ControlServer};
use vllm_proto::decoding_parameters::StructuredOutput;
use vllm_proto::finish_info::{FinishReason, StopReason};
use vllm_proto::inference_server::{Inference, InferenceServer};
use vllm_proto::*;

use super::super::GrpcTransport;
use crate::config::VllmConfig;

/// What a server does next.
#[allow(clippy::large_enum_variant)] // Scripts are short.
pub(super) enum Step {
    Send(GenerateResponse),
    Fail(Status),
    Wait(Duration),
}

/// What it does with a request.
pub(super) struct Script {
    /// Until the head of the answer.
    pub(super) head: Duration,
    pub(super) refused: Option<Status>,
    pub(super) steps: Vec<Step>,
}

impl Script {
    pub(super) fn of(steps: Vec<Step>) -> Self {
        Self { head: Duration::ZERO, refused: None, steps }
    }

    pub(super) fn refuse(status: Status) -> Self {
        Self { head: Duration::ZERO, refused: Some(status), steps: Vec::new() }
    }
}

type Reply = Box<dyn Fn(&GenerateRequest) -> Script + Send + Sync>;

/// How a server is.
pub(super) struct State {
    pub(super) reply: Reply,
    /// Asks for this key.
    pub(super) key: Option<&'static str>,
    pub(super) paused: std::result::Result<bool, Status>,
    pub(super) asleep: bool,
    pub(super) adapters: fn(&LoadLoraRequest) -> std::result::Result<(), Status>,
    /// Until it answers what needs no model.
    pub(super) control: Duration,
    pub(super) seen: Mutex<Vec<GenerateRequest>>,
    aborted: UnboundedSender<String>,
}

#[derive(Clone)]
pub(super) struct Server(Arc<State>);

impl Server {
    pub(super) fn new(change: impl FnOnce(&mut State)) -> (Self, UnboundedReceiver<String>) {
        let (aborted, names) = unbounded_channel();
        let mut state = State {
            reply: Box::new(|request| Script::of(faithful(request).into_iter().map(Step::Send).collect())),
            key: None,
            paused: Ok(false),
            asleep: false,
            adapters: |_| Err(Status::internal("No adapter found for it")),
            control: Duration::ZERO,
            seen: Mutex::default(),
            aborted,
        };
        change(&mut state);
        (Self(Arc::new(state)), names)
    }

    /// That answers each request so.
    pub(super) fn with(
        reply: impl Fn(&GenerateRequest) -> Script + Send + Sync + 'static,
    ) -> (Self, UnboundedReceiver<String>) {
        Self::new(|state| state.reply = Box::new(reply))
    }

    pub(super) fn seen(&self) -> Vec<GenerateRequest> {
        self.0.seen.lock().unwrap().clone()
    }

    pub(super) fn router(&self) -> tonic::transport::server::Router {
        Self::routes(self, &mut tonic::transport::Server::builder())
    }

    pub(super) fn routes(&self, builder: &mut tonic::transport::Server) -> tonic::transport::server::Router {
        let longest = 64 << 20;
        builder
            .add_service(InferenceServer::new(self.clone()).max_decoding_message_size(longest))
            .add_service(ControlServer::new(self.clone()))
    }

    /// Connected in memory, so that paused time stands still while anything is on its way.
    pub(super) fn transport(&self, config: &VllmConfig) -> GrpcTransport {
        let (here, there) = tokio::io::duplex(1 << 20);
        let incoming = stream::iter([Ok::<_, std::io::Error>(there)]).chain(stream::pending());
        tokio::spawn(self.router().serve_with_incoming(incoming));
        let mut here = Some(here);
        let connector = tower::service_fn(move |_: tonic::codegen::http::Uri| {
            let here = here.take();
            async move { here.map(TokioIo::new).ok_or_else(|| std::io::Error::other("there is one connection")) }
        });
        let channel: Channel = Address::from_static("http://server").connect_with_connector_lazy(connector);
        GrpcTransport::over(channel, "grpc://server:1".into(), config, Some(99), &Handle::current()).unwrap()
    }

    async fn admit<T>(&self, request: &Request<T>) -> std::result::Result<(), Status> {
        tokio::time::sleep(self.0.control).await;
        let key = request.metadata().get("authorization").and_then(|value| value.to_str().ok());
        match self.0.key {
            Some(wanted) if key != Some(&format!("Bearer {wanted}")) => {
                Err(Status::unauthenticated(format!("no such key: {}", key.unwrap_or("none"))))
            }
            _ => Ok(()),
        }
    }
}

pub(super) fn prompt(tokens: u32) -> GenerateResponse {
    let prompt = PromptInfo { num_prompt_tokens: tokens, ..PromptInfo::default() };
    GenerateResponse { prompt_info: Some(prompt), outputs: None }
}

pub(super) fn tokens(ids: &[u32]) -> GenerateResponse {
    let outputs = SequenceOutput { num_tokens: ids.len() as u32, token_ids: ids.to_vec(), ..SequenceOutput::default() };
    GenerateResponse { prompt_info: None, outputs: Some(outputs) }
}

pub(super) fn last(ids: &[u32], reason: FinishReason, stop: Option<StopReason>) -> GenerateResponse {
    let mut response = tokens(ids);
    let info = FinishInfo {
        finish_reason: reason.into(),
        stop_reason: stop,
        num_cached_tokens: Some(2),
        ..FinishInfo::default()
    };
    response.outputs.as_mut().unwrap().finish_info = Some(info);
    response
}

/// Continues with 10, 11, 12 …, and heeds everything.
pub(super) fn faithful(request: &GenerateRequest) -> Vec<GenerateResponse> {
    let stopping = request.stopping.clone().unwrap();
    let decoding = request.decoding.clone().unwrap();
    let options = request.response.clone().unwrap();
    let Some(generate_request::Prompt::TokenIds(TokenIds { ids: sent })) = &request.prompt else { return Vec::new() };
    let shade: u32 = request
        .media
        .iter()
        .map(|item| match &item.source {
            Some(media_item::Source::RawBytes(bytes)) => u32::from(blake3::hash(bytes).as_bytes()[0]) + 1,
            _ => 0,
        })
        .sum();
    // Each picture has four tokens.
    let sent: Vec<u32> = sent.iter().flat_map(|&id| vec![id; if id == 99 { 4 } else { 1 }]).collect();
    let drawn = request.temperature.filter(|&t| t > 0.0).map(|_| request.sampling.as_ref().unwrap().seed() as u32);
    let forbidden: Vec<u32> = decoding.bad_words_token_ids.iter().flat_map(|words| words.ids.clone()).collect();
    let mut ids: Vec<u32> = (10..10 + stopping.max_new_tokens).map(|id| id + drawn.unwrap_or(0)).collect();
    for id in &mut ids {
        if forbidden.contains(id) || decoding.logit_bias.contains_key(id) {
            *id += 100;
        }
    }
    let mut end = (FinishReason::Length, None);
    if let Some(at) = ids.iter().position(|id| stopping.stop_token_ids.contains(id)) {
        ids.truncate(at + 1);
        end = (FinishReason::Stop, Some(StopReason::StopTokenId(ids[at])));
    }
    if let Some(StructuredOutput::Regex(regex)) = &decoding.structured_output {
        // As vLLM 0.32: what is no expression gives an empty reply.
        ids = match regex.as_str() {
            "[0-9]{3}" => vec![20, 21, 22, 7],
            "[a-z]{3}" => vec![30, 31, 7],
            _ => vec![7],
        };
        end = (FinishReason::Stop, Some(StopReason::EosTokenId(7)));
    }
    let of = |id: u32, logprob: f32| CandidateTokenInfo {
        tokens: (0..4)
            .map(|rank| candidate_token_info::TokenInfo {
                id: id + rank,
                logprob: logprob - rank as f32,
                rank: rank + 1,
            })
            .collect(),
    };
    let top = |select: &Option<CandidateTokens>, mut info: CandidateTokenInfo| {
        let count = match select {
            Some(CandidateTokens { select: Some(candidate_tokens::Select::TopN(count)) }) => *count as usize,
            _ => 0,
        };
        info.tokens.truncate(count);
        info
    };
    let mut first = prompt(sent.len() as u32);
    if options.prompt_logprobs {
        let info = first.prompt_info.as_mut().unwrap();
        info.logprobs = sent.iter().enumerate().map(|(at, _)| if at == 0 { 0.0 } else { -2.0 }).collect();
        info.candidate_tokens = sent.iter().map(|&id| top(&options.prompt_candidates, of(id, -2.0))).collect();
        info.candidate_tokens[0].tokens.clear();
        info.token_ids = sent;
    }
    let mut all = vec![first];
    let count = ids.len();
    for (at, id) in ids.into_iter().enumerate() {
        let mut response = if at + 1 == count { last(&[id], end.0, end.1.clone()) } else { tokens(&[id]) };
        let output = response.outputs.as_mut().unwrap();
        if options.output_logprobs {
            let logprob = -1.0 - shade as f32;
            output.logprobs = vec![logprob];
            output.candidate_tokens = vec![top(&options.output_candidates, of(id, logprob))];
        }
        output.text = format!("<{id}>");
        all.push(response);
    }
    all
}

type Answer<T> = std::result::Result<Response<T>, Status>;

#[tonic::async_trait]
impl Inference for Server {
    type GenerateStreamStream = Pin<Box<dyn Stream<Item = std::result::Result<GenerateResponse, Status>> + Send>>;

    async fn generate(&self, _: Request<GenerateRequest>) -> Answer<GenerateResponse> {
        Err(Status::unimplemented("it is not used"))
    }

    async fn generate_stream(&self, request: Request<GenerateRequest>) -> Answer<Self::GenerateStreamStream> {
        self.admit(&request).await?;
        let request = request.into_inner();
        let script = (self.0.reply)(&request);
        self.0.seen.lock().unwrap().push(request);
        tokio::time::sleep(script.head).await;
        if let Some(status) = script.refused {
            return Err(status);
        }
        let steps = stream::iter(script.steps).filter_map(|step| async move {
            match step {
                Step::Send(response) => Some(Ok(response)),
                Step::Fail(status) => Some(Err(status)),
                Step::Wait(time) => {
                    tokio::time::sleep(time).await;
                    None
                }
            }
        });
        Ok(Response::new(Box::pin(steps)))
    }
}

/// What is not asked for.
fn unused<T>() -> Answer<T> {
    Err(Status::unimplemented("it is not used"))
}

#[tonic::async_trait]
impl Control for Server {
    async fn get_server_info(&self, request: Request<GetServerInfoRequest>) -> Answer<ServerInfo> {
        self.admit(&request).await?;
        Ok(Response::new(ServerInfo {
            engine_version: "0.32.0".into(),
            max_model_len: 4096,
            max_running_requests: 16,
            ..ServerInfo::default()
        }))
    }

    async fn get_model_info(&self, request: Request<GetModelInfoRequest>) -> Answer<ModelInfo> {
        self.admit(&request).await?;
        Ok(Response::new(ModelInfo {
            model_id: "/models/base".into(),
            served_model_name: "base".into(),
            served_model_aliases: vec!["other".into()],
            supports_token_ids_input: true,
            supports_multimodal: true,
            supports_lora: true,
            ..ModelInfo::default()
        }))
    }

    async fn abort(&self, request: Request<AbortRequest>) -> Answer<AbortResponse> {
        self.admit(&request).await?;
        for id in request.into_inner().request_ids {
            self.0.aborted.send(id).unwrap();
        }
        Ok(Response::new(AbortResponse {}))
    }

    async fn load_lora(&self, request: Request<LoadLoraRequest>) -> Answer<LoadLoraResponse> {
        self.admit(&request).await?;
        (self.0.adapters)(request.get_ref())?;
        Ok(Response::new(LoadLoraResponse { adapter: None }))
    }

    async fn unload_lora(&self, request: Request<UnloadLoraRequest>) -> Answer<UnloadLoraResponse> {
        self.admit(&request).await?;
        match request.into_inner().lora_name.as_str() {
            "there" => Ok(Response::new(UnloadLoraResponse { adapter: None })),
            "stuck" => Err(Status::internal("it is stuck")),
            name => Err(Status::not_found(format!("LoRA adapter `{name}` is not loaded"))),
        }
    }

    async fn list_loras(&self, request: Request<ListLorasRequest>) -> Answer<ListLorasResponse> {
        self.admit(&request).await?;
        Ok(Response::new(ListLorasResponse { adapters: vec![LoraAdapter::default()] }))
    }

    async fn is_paused(&self, request: Request<IsPausedRequest>) -> Answer<IsPausedResponse> {
        self.admit(&request).await?;
        self.0.paused.clone().map(|paused| Response::new(IsPausedResponse { paused }))
    }

    async fn is_sleeping(&self, request: Request<IsSleepingRequest>) -> Answer<IsSleepingResponse> {
        self.admit(&request).await?;
        Ok(Response::new(IsSleepingResponse { sleeping: self.0.asleep }))
    }

    async fn shutdown(&self, _: Request<ShutdownRequest>) -> Answer<ShutdownResponse> {
        unused()
    }

    async fn get_kv_event_sources(&self, _: Request<GetKvEventSourcesRequest>) -> Answer<GetKvEventSourcesResponse> {
        unused()
    }

    async fn pause_generation(&self, _: Request<PauseGenerationRequest>) -> Answer<PauseGenerationResponse> {
        unused()
    }

    async fn resume_generation(&self, _: Request<ResumeGenerationRequest>) -> Answer<ResumeGenerationResponse> {
        unused()
    }

    async fn sleep(&self, _: Request<SleepRequest>) -> Answer<SleepResponse> {
        unused()
    }

    async fn wake_up(&self, _: Request<WakeUpRequest>) -> Answer<WakeUpResponse> {
        unused()
    }

    async fn init_weight_transfer_engine(
        &self,
        _: Request<InitWeightTransferEngineRequest>,
    ) -> Answer<InitWeightTransferEngineResponse> {
        unused()
    }

    async fn start_weight_update(&self, _: Request<StartWeightUpdateRequest>) -> Answer<StartWeightUpdateResponse> {
        unused()
    }

    async fn start_draft_weight_update(
        &self,
        _: Request<StartDraftWeightUpdateRequest>,
    ) -> Answer<StartDraftWeightUpdateResponse> {
        unused()
    }

    async fn update_weights(&self, _: Request<UpdateWeightsRequest>) -> Answer<UpdateWeightsResponse> {
        unused()
    }

    async fn finish_weight_update(&self, _: Request<FinishWeightUpdateRequest>) -> Answer<FinishWeightUpdateResponse> {
        unused()
    }

    async fn update_weight_version(
        &self,
        _: Request<UpdateWeightVersionRequest>,
    ) -> Answer<UpdateWeightVersionResponse> {
        unused()
    }

    async fn get_weight_version(&self, _: Request<GetWeightVersionRequest>) -> Answer<GetWeightVersionResponse> {
        unused()
    }
}
