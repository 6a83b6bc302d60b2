//! gRPC's faults and TLS, as vLLM's own client crate sees them.
#![cfg(feature = "tls")]
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};

use consort_vllm_replay::{
    After, Certificate, Cut, Fault, GrpcCode, Script, ServerConfig, ServerTls, Synthetic, SyntheticConfig, When,
};
use tonic::transport::{Certificate as Pem, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Status};
use vllm_proto::control_client::ControlClient;
use vllm_proto::inference_client::InferenceClient;
use vllm_proto::{
    CandidateTokens, GenerateRequest, GenerateResponse, GetServerInfoRequest, ResponseOptions, StoppingCriteria,
    TokenIds, candidate_tokens, generate_request,
};

fn request() -> GenerateRequest {
    GenerateRequest {
        model: "synthetic".into(),
        prompt: Some(generate_request::Prompt::TokenIds(TokenIds { ids: vec![1, 2, 3] })),
        stopping: Some(StoppingCriteria { max_new_tokens: 4, ..StoppingCriteria::default() }),
        response: Some(ResponseOptions {
            output_token_ids: true,
            output_logprobs: true,
            output_candidates: Some(CandidateTokens { select: Some(candidate_tokens::Select::TopN(2)) }),
            ..ResponseOptions::default()
        }),
        ..GenerateRequest::default()
    }
}

/// The messages that came, and how it ended.
async fn talk(channel: Channel) -> (Vec<GenerateResponse>, Result<(), Status>) {
    let mut messages = Vec::new();
    let mut stream = match InferenceClient::new(channel).generate_stream(request()).await {
        Ok(stream) => stream.into_inner(),
        Err(status) => return (messages, Err(status)),
    };
    loop {
        match stream.message().await {
            Ok(Some(message)) => messages.push(message),
            Ok(None) => return (messages, Ok(())),
            Err(status) => return (messages, Err(status)),
        }
    }
}

fn with(faults: &[Fault]) -> (Vec<GenerateResponse>, Result<(), Status>) {
    let script = faults.iter().fold(Script::new(), |script, fault| script.on(When::always(), fault.clone()));
    let server = ServerConfig { script, ..ServerConfig::default() };
    let synthetic = Synthetic::start(SyntheticConfig { server, ..SyntheticConfig::default() }).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        talk(Endpoint::from_shared(synthetic.server().grpc_url()).unwrap().connect().await.unwrap()).await
    })
}

fn tokens(messages: &[GenerateResponse]) -> Vec<u32> {
    messages.iter().flat_map(|message| message.outputs.iter()).flat_map(|outputs| outputs.token_ids.clone()).collect()
}

#[test]
fn a_stream_says_what_the_model_says() {
    let (messages, end) = with(&[]);
    end.unwrap();
    assert_eq!(
        tokens(&messages),
        [100, (3107 % 1266), (31 * 575 + 7) % 1266, (31 * ((31 * 575 + 7) % 1266) + 7) % 1266]
    );
    assert_eq!(messages[0].prompt_info.as_ref().unwrap().num_prompt_tokens, 3);
    let outputs = messages[1].outputs.as_ref().unwrap();
    assert_eq!((outputs.logprobs.as_slice(), outputs.candidate_tokens[0].tokens.len()), (&[-0.5_f32][..], 2));
    let finish = messages.last().unwrap().outputs.as_ref().unwrap().finish_info.as_ref().unwrap();
    assert_eq!((finish.num_output_tokens, finish.finish_reason), (4, 1));
}

#[test]
fn statuses_come_at_once_and_in_the_middle() {
    let code = |fault: Fault| {
        let (messages, end) = with(&[fault]);
        (messages.len(), end.unwrap_err().code())
    };
    assert_eq!(code(Fault::Unavailable { retry_after: None }), (0, Code::Unavailable));
    assert_eq!(code(Fault::TooMany { retry_after: None }), (0, Code::ResourceExhausted));
    assert_eq!(code(Fault::Unauthorized), (0, Code::Unauthenticated));
    assert_eq!(code(Fault::ServerError { message: "died".into() }), (0, Code::Internal));
    let middle = Fault::Status { after: 2, code: GrpcCode::INTERNAL, message: "100 % gone: ä".into() };
    let (messages, end) = with(&[middle]);
    let status = end.unwrap_err();
    assert_eq!((messages.len(), status.code(), status.message()), (2, Code::Internal, "100 % gone: ä"));
}

#[test]
fn streams_break() {
    for how in [Cut::Close, Cut::Reset, Cut::Stream] {
        let (messages, end) = with(&[Fault::Cut { after: After::Pieces(3), how }]);
        assert!(end.is_err() && messages.len() == 3, "{how:?}: {} {end:?}", messages.len());
    }
    let (messages, end) = with(&[Fault::NoFinish]);
    end.unwrap();
    assert!(
        messages.len() == 4 && messages.iter().all(|message| message.outputs.iter().all(|o| o.finish_info.is_none()))
    );
    let (messages, end) = with(&[Fault::Garbage { after: 1 }]);
    assert!(messages.len() == 1 && end.is_err());
    let (whole, _) = with(&[]);
    let (messages, end) = with(&[Fault::Split { bytes: 1 }]);
    end.unwrap();
    assert_eq!(messages, whole);
    let (messages, end) = with(&[Fault::Gigantic { after: 1, bytes: 64 << 20 }]);
    assert!(messages.len() == 1 && end.is_err(), "a client has a limit of its own");
}

#[test]
fn certificates_are_right_and_wrong() {
    for certificate in [
        Certificate::Right,
        Certificate::WrongName,
        Certificate::SelfSigned,
        Certificate::UnknownAuthority,
        Certificate::Expired,
        Certificate::NotYet,
    ] {
        let tls = ServerTls::make(certificate).unwrap();
        let pem = tls.authority_pem().to_owned();
        let server = ServerConfig { tls: Some(tls), ..ServerConfig::default() };
        let synthetic = Synthetic::start(SyntheticConfig { server, ..SyntheticConfig::default() }).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let result = runtime.block_on(async {
            let trust = ClientTlsConfig::new().ca_certificate(Pem::from_pem(&pem));
            let endpoint = Endpoint::from_shared(synthetic.server().grpc_url()).unwrap().tls_config(trust).unwrap();
            ControlClient::new(endpoint.connect().await.ok()?).get_server_info(GetServerInfoRequest {}).await.ok()
        });
        assert_eq!(result.is_some(), certificate == Certificate::Right, "{certificate:?}");
        // Who speaks no TLS gets nothing that is HTTP.
        let mut plain = std::net::TcpStream::connect(synthetic.server().http()).unwrap();
        plain.write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
        let mut seen = Vec::new();
        drop(plain.read_to_end(&mut seen));
        assert!(!seen.starts_with(b"HTTP/"), "{certificate:?}");
    }
}
