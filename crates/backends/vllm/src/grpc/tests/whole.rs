//! Connecting, keys, certificates, health, adapters and probing.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use consort_core::{
    ErrorKind, ErrorStatus, Event, GenerateRequest, ModelBackend as _, Prompt, PromptPart, SpecialTokens, Structure,
};
use consort_prompt::FrontEnd;
use consort_text::Tokenizer;
use futures_util::{StreamExt as _, stream};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tonic::Status;
use tonic::transport::{Identity, ServerTlsConfig};

use super::super::GrpcTransport;
use super::server::{Server, faithful};
use super::{all, call, config};
use crate::VllmRemoteBackend;
use crate::call::CallPrompt;
use crate::config::{AdapterShare, ApiKey, Endpoint, VllmConfig};
use crate::facts::Verdict;
use crate::transport::Transport;

/// An authority, and a certificate of it for these names.
struct Papers {
    authority: String,
    certificate: String,
    key: String,
}

fn papers(name: &str) -> Papers {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let signing = KeyPair::generate().unwrap();
    let authority = params.self_signed(&signing).unwrap().pem();
    let issuer = Issuer::new(params, signing);
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &issuer).unwrap().pem();
    Papers { authority, certificate, key: key.serialize_pem() }
}

/// Listens on this machine, encrypted where there are papers.
async fn listen(server: &Server, papers: Option<&Papers>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut builder = tonic::transport::Server::builder();
    if let Some(papers) = papers {
        crate::tls::install();
        let identity = Identity::from_pem(&papers.certificate, &papers.key);
        builder = builder.tls_config(ServerTlsConfig::new().identity(identity)).unwrap();
    }
    let router = server.routes(&mut builder);
    let incoming = stream::unfold(listener, |listener| async move {
        let accepted = listener.accept().await.map(|(connection, _)| connection);
        Some((accepted, listener))
    });
    tokio::spawn(router.serve_with_incoming(Box::pin(incoming)));
    address
}

fn transport(url: &str, config: &VllmConfig) -> GrpcTransport {
    let endpoint: Endpoint = url.parse().unwrap();
    GrpcTransport::new(&endpoint, config, Some(99), &Handle::current()).unwrap()
}

#[tokio::test]
async fn certificates_are_checked() {
    let (server, _aborted) = Server::new(|_| ());
    let papers = papers("localhost");
    let port = listen(&server, Some(&papers)).await.port();
    let trusting = VllmConfig { authorities: Some(Arc::from(papers.authority.as_bytes())), ..config() };

    let right = transport(&format!("grpcs://localhost:{port}"), &trusting);
    right.health().await.unwrap();
    let (chunks, error) = all(&mut right.generate(&Arc::new(call())).await.unwrap()).await;
    assert!(error.is_none() && chunks.len() == 9, "{error:?}");

    let refused = async |url: String, config: &VllmConfig| {
        let error = transport(&url, config).health().await.unwrap_err();
        assert_eq!((error.kind(), error.status()), (ErrorKind::InvalidConfig, ErrorStatus::Permanent), "{error:?}");
        assert!(error.message().contains("certificate is not accepted") && error.message().contains("ca_file"));
    };
    refused(format!("grpcs://127.0.0.1:{port}"), &trusting).await;
    refused(format!("grpcs://localhost:{port}"), &config()).await;

    // Speaking plainly to it, and speaking TLS to one that speaks plainly.
    let plain = transport(&format!("grpc://localhost:{port}"), &config()).health().await.unwrap_err();
    assert_eq!((plain.kind(), plain.status()), (ErrorKind::Remote, ErrorStatus::Temporary), "{plain:?}");
    let port = listen(&server, None).await.port();
    transport(&format!("grpc://127.0.0.1:{port}"), &config()).health().await.unwrap();
    let error = transport(&format!("grpcs://127.0.0.1:{port}"), &trusting).health().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Remote, "{error:?}");
}

#[tokio::test]
async fn a_file_without_certificates_is_refused() {
    for pem in ["", "no certificate", "-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n"] {
        let config = VllmConfig { authorities: Some(Arc::from(pem.as_bytes())), ..config() };
        let endpoint: Endpoint = "grpcs://localhost:1".parse().unwrap();
        let error = GrpcTransport::new(&endpoint, &config, None, &Handle::current()).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::InvalidConfig);
        assert!(error.context().any(|pair| pair == ("key", "ca_file")), "{error}");
    }
}

#[tokio::test]
async fn a_server_that_is_not_there_may_come() {
    // A port that was free a moment ago.
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let transport = transport(&format!("grpc://127.0.0.1:{port}"), &config());
    let error = transport.generate(&Arc::new(call())).await.err().unwrap();
    assert_eq!((error.kind(), error.status()), (ErrorKind::Remote, ErrorStatus::Temporary));
    assert!(error.message().contains("cannot be reached"), "{error}");
    assert_eq!(error.operation(), crate::transport::UNREACHED);
    assert_eq!(transport.probe().await.unwrap_err().kind(), ErrorKind::Remote);
}

#[tokio::test]
async fn the_connection_is_made_again() {
    let (server, _aborted) = Server::new(|_| ());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let transport = transport(&format!("grpc://{}", listener.local_addr().unwrap()), &config());
    // The first one is closed at once.
    let ((), error) = tokio::join!(async { drop(listener.accept().await.unwrap()) }, transport.health());
    let error = error.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Remote);
    assert_ne!(error.operation(), crate::transport::UNREACHED, "it was there");
    let incoming = stream::unfold(listener, |listener| async move {
        let accepted = listener.accept().await.map(|(connection, _)| connection);
        Some((accepted, listener))
    });
    tokio::spawn(server.router().serve_with_incoming(Box::pin(incoming)));
    transport.health().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_key_goes_with_every_request() {
    let (server, mut aborted) = Server::new(|state| state.key = Some("hush-hush"));
    let with = VllmConfig { api_key: Some(ApiKey::new("hush-hush").unwrap()), ..config() };
    let known = server.transport(&with);
    known.health().await.unwrap();
    drop(known.generate(&Arc::new(call())).await.unwrap());
    assert_eq!(aborted.recv().await.unwrap(), "request-1");
    let wrong = VllmConfig { api_key: Some(ApiKey::new("wrong-key").unwrap()), ..config() };
    for config in [&wrong, &config()] {
        let error = server.transport(config).generate(&Arc::new(call())).await.err().unwrap();
        assert_eq!((error.kind(), error.status()), (ErrorKind::InvalidConfig, ErrorStatus::Permanent));
        assert!(!format!("{error:?}").contains("wrong-key") && error.message().contains("api_key_env"), "{error:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_paused_server_is_not_well() {
    let (server, _aborted) = Server::new(|state| state.paused = Ok(true));
    let error = server.transport(&config()).health().await.unwrap_err();
    assert_eq!((error.kind(), error.status()), (ErrorKind::Remote, ErrorStatus::Temporary));
    assert!(error.message().contains("paused"), "{error}");
    let (server, _aborted) = Server::new(|state| state.asleep = true);
    assert!(server.transport(&config()).health().await.unwrap_err().message().contains("asleep"));
    let (server, _aborted) = Server::new(|state| state.paused = Err(Status::unimplemented("not here")));
    server.transport(&config()).health().await.unwrap();
    let (server, _aborted) = Server::new(|state| state.paused = Err(Status::unavailable("engine")));
    assert_eq!(server.transport(&config()).health().await.unwrap_err().kind(), ErrorKind::Remote);
    let (server, _aborted) = Server::new(|state| state.control = Duration::from_secs(11));
    let error = server.transport(&config()).health().await.unwrap_err();
    assert!(error.message().contains("did not answer within 10 s"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn adapters_are_loaded_and_forgotten() {
    let (server, _aborted) = Server::new(|state| {
        state.adapters = |request| match (request.lora_name.as_str(), request.source_path.as_str()) {
            ("new", "/share/new") => Ok(()),
            ("there", _) => Err(Status::invalid_argument("LoRA adapter `there` is already loaded")),
            ("twice", _) => Err(Status::already_exists("twice")),
            ("slow", _) => Err(Status::deadline_exceeded("slow")),
            _ => Err(Status::invalid_argument("Local LoRA adapter path must exist and be accessible.")),
        };
    });
    let transport = server.transport(&config());
    for name in ["new", "there", "twice"] {
        transport.load_adapter(name, "/share/new").await.unwrap();
    }
    let error = transport.load_adapter("gone", "/share/gone").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.context().any(|pair| pair == ("adapter", "gone")), "{error}");
    assert_eq!(transport.load_adapter("slow", "/").await.unwrap_err().status(), ErrorStatus::Temporary);
    transport.unload_adapter("there").await.unwrap();
    transport.unload_adapter("gone").await.unwrap();
    assert_eq!(transport.unload_adapter("stuck").await.unwrap_err().kind(), ErrorKind::Remote);
}

#[tokio::test(start_paused = true)]
async fn text_and_conversations_are_refused_by_name() {
    let (server, _aborted) = Server::new(|_| ());
    let transport = server.transport(&config());
    let chat = CallPrompt::Chat { messages: serde_json::json!([]), tools: vec![], thinking: None };
    let refused = [
        transport.tokenize("x", SpecialTokens::Plain).await.unwrap_err(),
        transport.write(&chat).await.unwrap_err(),
        transport.detokenize(&[1]).await.unwrap_err(),
    ];
    for (error, name) in refused.iter().zip(["tokenize", "write", "detokenize"]) {
        assert_eq!((error.kind(), error.operation()), (ErrorKind::Unsupported, name));
    }
    assert!(server.seen().is_empty());
}

#[tokio::test(start_paused = true)]
async fn probing_finds_what_the_server_does() {
    let (server, _aborted) = Server::new(|state| state.key = Some("hush-hush"));
    let share = AdapterShare { local: "/here".into(), remote: "/there".into() };
    let config = VllmConfig {
        api_key: Some(ApiKey::new("hush-hush").unwrap()),
        adapters: Some(share),
        prompt_logprobs_with_adapters: true,
        ..config()
    };
    let facts = server.transport(&config).probe().await.unwrap();
    assert_eq!((facts.model.as_str(), facts.root.as_str()), ("base", "/models/base"));
    assert_eq!((facts.version.as_str(), facts.front_end.as_str()), ("0.32.0", "rust"));
    assert_eq!((facts.context_length, facts.max_running), (4096, Some(16)));
    let failed: Vec<_> = facts.findings.iter().filter(|finding| finding.verdict != Verdict::Works).collect();
    assert_eq!(failed.len(), 1, "{failed:#?}");
    assert_eq!((failed[0].name, failed[0].verdict), ("malformed_structure_is_refused", Verdict::Ignored));
    let does = facts.abilities;
    assert!(does.tokens_in_and_out && does.logprobs && does.prompt_logprobs && does.structured_output && does.seed);
    assert!(does.logit_bias && does.priority && does.pictures_with_tokens && does.tells_cached_tokens && does.adapters);
    assert!(!does.chat && !does.completions && !does.pictures_in_chat && !does.tokenize);
    assert!(facts.findings.iter().any(|finding| finding.name == "key_is_checked"));
    // Where that may end the engine, it is not tried.
    let careful = VllmConfig { prompt_logprobs_with_adapters: false, ..config };
    assert!(!server.transport(&careful).probe().await.unwrap().abilities.prompt_logprobs);
    // Every request of the trials says which model it means.
    assert!(server.seen().iter().all(|request| request.model == "base"));
}

#[tokio::test]
async fn a_form_that_is_none_is_refused_before_it_is_sent() {
    let (server, _aborted) = Server::new(|_| ());
    let url: Endpoint = format!("grpc://{}", listen(&server, None).await).parse().unwrap();
    let json = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../models/etude/tokenizer.json");
    let tokenizer = Tokenizer::from_json(&std::fs::read(json).unwrap(), None).unwrap();
    let front_end = FrontEnd { tokenizer: Some(tokenizer), ..FrontEnd::default() };
    let config = VllmConfig { front_end, ..VllmConfig::new(vec![url]) };
    let connected = tokio::task::spawn_blocking(move || VllmRemoteBackend::connect(config)).await.unwrap();
    let backend = connected.unwrap();
    let before = server.seen().len();
    let asked = |structure| GenerateRequest {
        structure: Some(structure),
        max_tokens: Some(8),
        ..GenerateRequest::new(Prompt::Parts(vec![PromptPart::Tokens(vec![1, 2, 3])]))
    };
    for (kind, structure) in [
        ("regex", Structure::Regex("[0-9".into())),
        ("lark", Structure::Lark("start: missing".into())),
        ("choice", Structure::Choice(Vec::new())),
        ("json_schema", Structure::json_schema(serde_json::json!({ "type": "colour" }))),
    ] {
        let error = backend.generate(asked(structure)).err().unwrap();
        assert_eq!((error.kind(), error.backend()), (ErrorKind::InvalidGrammar, crate::NAME), "{error:?}");
        assert!(error.context().any(|pair| pair == ("structure", kind)), "{error}");
    }
    assert_eq!(server.seen().len(), before, "nothing of them was sent");
    assert_eq!((backend.metrics().requests, backend.metrics().refused), (0, 0));
    let mut stream = backend.generate(asked(Structure::Regex("[0-9]{3}".into()))).unwrap();
    let mut ids = Vec::new();
    while let Some(event) = stream.next().await {
        if let Event::Tokens { ids: new, .. } = event.unwrap() {
            ids.extend(new);
        }
    }
    assert_eq!((ids, server.seen().len()), (vec![20, 21, 22], before + 1));
    // Its runtime may not be waited for here.
    tokio::task::spawn_blocking(move || drop(backend)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_server_that_does_not_ask_for_the_key_is_found_out() {
    let (server, _aborted) = Server::new(|_| ());
    let config = VllmConfig { api_key: Some(ApiKey::new("hush-hush").unwrap()), ..config() };
    let facts = server.transport(&config).probe().await.unwrap();
    let key = facts.findings.iter().find(|finding| finding.name == "key_is_checked").unwrap();
    assert_eq!(key.verdict, Verdict::Ignored);
    // Without a key there is nothing to check, and without a folder nothing to load.
    let facts = server.transport(&VllmConfig { api_key: None, ..config }).probe().await.unwrap();
    assert!(facts.findings.iter().all(|finding| finding.name != "key_is_checked"));
    let adapters = facts.findings.iter().find(|finding| finding.name == "adapters").unwrap();
    assert_eq!(adapters.verdict, Verdict::Untried);
}

#[tokio::test(start_paused = true)]
async fn the_model_that_is_meant_must_be_there() {
    let (server, _aborted) = Server::new(|_| ());
    let named = |name: &str| VllmConfig { model: Some(name.into()), ..config() };
    let facts = server.transport(&named("other")).probe().await.unwrap();
    assert_eq!(facts.model, "other", "an alias is a name too");
    let error = server.transport(&named("unknown")).probe().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.context().any(|pair| pair == ("it has", "base")), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_faithful_server_gives_every_token_its_text() {
    let (server, _aborted) = Server::with(|request| {
        let answers = faithful(request).into_iter().map(super::server::Step::Send).collect();
        super::server::Script::of(answers)
    });
    let (chunks, error) = all(&mut server.transport(&config()).generate(&Arc::new(call())).await.unwrap()).await;
    let text: String = chunks.iter().map(|chunk| chunk.text.as_str()).collect();
    assert!(error.is_none() && text.starts_with("<10><11>"), "there is no tokenizer here: {text}");
}
