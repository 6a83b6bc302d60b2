//! What a server by gRPC is, and what it does.

use consort_core::{Error, ErrorKind, Result};
use vllm_proto::control_client::ControlClient;
use vllm_proto::{GetModelInfoRequest, GetServerInfoRequest, ListLorasRequest};

use super::GrpcTransport;
use crate::facts::{Finding, ServerFacts, Verdict};
use crate::trials::{self, Subject};

/// Finds it out.
///
/// # Errors
/// The server is not reached, refuses the key, or does not have the model.
pub(super) async fn probe(server: &GrpcTransport) -> Result<ServerFacts> {
    let mut control = server.control();
    let info = server.ask(control.get_server_info(GetServerInfoRequest {})).await?;
    let model = server.ask(control.get_model_info(GetModelInfoRequest {})).await?;
    let name = match &server.model {
        None => model.served_model_name,
        Some(name) if model.served_model_name == *name || model.served_model_aliases.contains(name) => name.clone(),
        Some(name) => {
            return Err(Error::new(ErrorKind::NotFound, "the server does not have the model")
                .with_backend(crate::NAME)
                .with_context("endpoint", &*server.endpoint)
                .with_context("model", name.clone())
                .with_context("it has", model.served_model_name));
        }
    };
    let subject = Subject {
        transport: server,
        model: &name,
        image_token: server.image_token.filter(|_| model.supports_multimodal),
        adapters: server.share.as_deref().filter(|_| model.supports_lora),
        prompts: server.may_ask_of_prompts,
    };
    let trials::Tried { abilities, mut findings } = trials::run(&subject).await?;
    findings.push(loaded(server).await);
    findings.extend(key(server).await);
    Ok(ServerFacts {
        endpoint: server.endpoint.to_string(),
        version: info.engine_version,
        // No other has these services.
        front_end: "rust".into(),
        model: name,
        root: model.model_id,
        context_length: info.max_model_len as usize,
        max_running: usize::try_from(info.max_running_requests).ok().filter(|&count| count > 0),
        abilities,
        findings,
    })
}

async fn loaded(server: &GrpcTransport) -> Finding {
    let mut control = server.control();
    let (verdict, seen) = match server.ask(control.list_loras(ListLorasRequest {})).await {
        Ok(list) => (Verdict::Works, format!("{} adapters are loaded there", list.adapters.len())),
        Err(error) => (Verdict::Refused, error.to_string()),
    };
    Finding { name: "lists_adapters", verdict, seen }
}

/// Whether a server whose key is given asks for it. vLLM 0.32 checks its `--api-key` by HTTP only.
async fn key(server: &GrpcTransport) -> Option<Finding> {
    server.key.0.as_ref()?;
    let mut stranger = ControlClient::new(server.channel.clone());
    let (verdict, seen) = match server.ask(stranger.get_server_info(GetServerInfoRequest {})).await {
        Ok(_) => {
            tracing::warn!(endpoint = %server.endpoint, "the server answers by gRPC to anybody, whatever its key");
            (Verdict::Ignored, "it answers without the key too; let nobody else reach this port".into())
        }
        Err(error) if error.kind() == ErrorKind::InvalidConfig => (Verdict::Works, error.to_string()),
        Err(error) => (Verdict::Untried, error.to_string()),
    };
    Some(Finding { name: "key_is_checked", verdict, seen })
}
