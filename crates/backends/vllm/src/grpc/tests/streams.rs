//! Replies as they come, end, break off and are left.

use std::sync::Arc;
use std::time::Duration;

use consort_core::{ErrorKind, ErrorStatus};
use futures_util::StreamExt as _;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::Instant;
use tonic::Status;
use vllm_proto::finish_info::{FinishReason, StopReason};

use super::server::{Script, Server, Step, last, prompt, tokens};
use super::{all, call, config};
use crate::call::{Call, Finish};
use crate::transport::Transport as _;

const LONG: Duration = Duration::from_secs(100_000);

fn end() -> Step {
    Step::Send(last(&[7], FinishReason::Stop, Some(StopReason::EosTokenId(7))))
}

/// Nothing was aborted, and nothing will be: everything that runs has come to rest.
async fn nothing(aborted: &mut UnboundedReceiver<String>) {
    let name = tokio::time::timeout(Duration::from_secs(3600), aborted.recv()).await;
    assert!(name.is_err(), "{name:?} was aborted");
}

#[tokio::test(start_paused = true)]
async fn a_reply_comes_to_its_end() {
    let (server, mut aborted) = Server::with(|_| {
        Script::of(vec![
            Step::Send(prompt(3)),
            Step::Send(tokens(&[])),
            Step::Send(tokens(&[4])),
            Step::Send(tokens(&[5, 6])),
            end(),
            Step::Send(tokens(&[8])),
        ])
    });
    let transport = server.transport(&config());
    let mut stream = transport.generate(&Arc::new(call())).await.unwrap();
    let (chunks, error) = all(&mut stream).await;
    assert!(error.is_none(), "{error:?}");
    let ids: Vec<_> = chunks.iter().map(|chunk| chunk.ids.clone()).collect();
    assert_eq!(ids, [vec![], vec![4], vec![5, 6], vec![7]]);
    assert_eq!(chunks[0].prompt_tokens, Some(3));
    assert_eq!((chunks[3].finish.clone(), chunks[3].cached_tokens), (Some(Finish::End), Some(2)));
    assert_eq!(server.seen().len(), 1);
    drop(stream);
    nothing(&mut aborted).await;
}

#[tokio::test(start_paused = true)]
async fn a_reply_without_an_end_is_an_error() {
    let (server, mut aborted) = Server::with(|_| Script::of(vec![Step::Send(prompt(3)), Step::Send(tokens(&[4]))]));
    let transport = server.transport(&config());
    let (chunks, error) = all(&mut transport.generate(&Arc::new(call())).await.unwrap()).await;
    let error = error.unwrap();
    assert_eq!(chunks.len(), 2);
    assert_eq!((error.kind(), error.status()), (ErrorKind::Remote, ErrorStatus::Temporary));
    assert!(error.message().contains("not finished"), "{error}");
    assert_eq!(aborted.recv().await.unwrap(), "request-1");
}

#[tokio::test(start_paused = true)]
async fn an_error_in_the_middle_is_the_streams() {
    let (server, _aborted) =
        Server::with(|_| Script::of(vec![Step::Send(tokens(&[4])), Step::Fail(Status::internal("the engine died"))]));
    let transport = server.transport(&config());
    let (chunks, error) = all(&mut transport.generate(&Arc::new(call())).await.unwrap()).await;
    let error = error.unwrap();
    assert_eq!(chunks[0].ids, [4]);
    assert_eq!((error.kind(), error.status()), (ErrorKind::Remote, ErrorStatus::Temporary));
    assert!(error.message().contains("the engine died"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_reply_that_the_server_aborts_is_an_error() {
    let (server, _aborted) = Server::with(|_| {
        Script::of(vec![Step::Send(tokens(&[4])), Step::Send(last(&[], FinishReason::Aborted, None))])
    });
    let transport = server.transport(&config());
    let (chunks, error) = all(&mut transport.generate(&Arc::new(call())).await.unwrap()).await;
    let error = error.unwrap();
    assert_eq!(chunks.len(), 1);
    assert_eq!((error.kind(), error.status()), (ErrorKind::Remote, ErrorStatus::Temporary));
    assert!(error.context().any(|pair| pair == ("endpoint", "grpc://server:1")), "{error}");
}

#[tokio::test(start_paused = true)]
async fn what_is_dropped_is_aborted() {
    let (server, mut aborted) = Server::with(|_| Script::of(vec![Step::Send(tokens(&[4])), Step::Wait(LONG), end()]));
    let transport = server.transport(&config());
    let mut stream = transport.generate(&Arc::new(Call { id: "begun".into(), ..call() })).await.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap().ids, [4]);
    drop(stream);
    assert_eq!(aborted.recv().await.unwrap(), "begun");
    // Before anything came.
    drop(transport.generate(&Arc::new(Call { id: "accepted".into(), ..call() })).await.unwrap());
    assert_eq!(aborted.recv().await.unwrap(), "accepted");
}

#[tokio::test(start_paused = true)]
async fn what_is_dropped_before_the_server_accepted_is_aborted() {
    let (server, mut aborted) = Server::with(|_| Script { head: LONG, ..Script::of(vec![end()]) });
    let transport = server.transport(&config());
    let call = Arc::new(call());
    tokio::select! {
        _ = transport.generate(&call) => panic!("it was accepted"),
        () = tokio::time::sleep(Duration::from_secs(1)) => {}
    }
    assert_eq!(aborted.recv().await.unwrap(), "request-1");
}

#[tokio::test(start_paused = true)]
async fn what_was_refused_needs_no_abort() {
    let (server, mut aborted) = Server::with(|_| Script::refuse(Status::resource_exhausted("full")));
    let transport = server.transport(&config());
    let error = transport.generate(&Arc::new(call())).await.err().unwrap();
    assert_eq!((error.kind(), error.status()), (ErrorKind::Overloaded, ErrorStatus::Temporary));
    nothing(&mut aborted).await;
}

#[tokio::test(start_paused = true)]
async fn each_phase_has_its_time() {
    let config = config();
    let timeouts = config.timeouts;
    let second = Duration::from_secs(1);
    let slow = |head: Duration, first: Duration, between: Duration| {
        move |_: &_| Script {
            head,
            refused: None,
            steps: vec![
                Step::Wait(first),
                Step::Send(prompt(3)),
                Step::Send(tokens(&[4])),
                Step::Wait(between),
                Step::Send(tokens(&[5])),
                Step::Wait(between),
                end(),
            ],
        }
    };
    // Just in time.
    let (server, _aborted) =
        Server::with(slow(timeouts.head - second, timeouts.first_token - second, timeouts.token - second));
    let transport = server.transport(&config);
    let (chunks, error) = all(&mut transport.generate(&Arc::new(call())).await.unwrap()).await;
    assert!(error.is_none() && chunks.last().unwrap().finish == Some(Finish::End), "{error:?}");

    let (server, mut aborted) = Server::with(slow(timeouts.head + second, Duration::ZERO, Duration::ZERO));
    let (transport, since) = (server.transport(&config), Instant::now());
    let error = transport.generate(&Arc::new(call())).await.err().unwrap();
    assert_eq!((error.kind(), error.status()), (ErrorKind::Remote, ErrorStatus::Temporary));
    assert!(error.message().contains("did not answer within 30 s"), "{error}");
    assert!(since.elapsed() < timeouts.head + second);
    assert_eq!(aborted.recv().await.unwrap(), "request-1");

    let (server, mut aborted) = Server::with(slow(Duration::ZERO, timeouts.first_token + second, Duration::ZERO));
    let (transport, since) = (server.transport(&config), Instant::now());
    let (chunks, error) = all(&mut transport.generate(&Arc::new(call())).await.unwrap()).await;
    assert!(chunks.is_empty() && error.unwrap().message().contains("no token came within 120 s"));
    assert!(since.elapsed() >= timeouts.first_token);
    assert_eq!(aborted.recv().await.unwrap(), "request-1");

    let (server, mut aborted) = Server::with(slow(Duration::ZERO, Duration::ZERO, timeouts.token + second));
    let transport = server.transport(&config);
    let (chunks, error) = all(&mut transport.generate(&Arc::new(call())).await.unwrap()).await;
    assert_eq!(chunks.last().unwrap().ids, [4]);
    assert!(error.unwrap().message().contains("no further token came within 30 s"));
    assert_eq!(aborted.recv().await.unwrap(), "request-1");
}

#[tokio::test(start_paused = true)]
async fn messages_without_a_token_give_no_time() {
    let (server, _aborted) = Server::with(|_| {
        let mut steps = vec![Step::Send(prompt(3)), Step::Send(tokens(&[4]))];
        for _ in 0..10 {
            steps.push(Step::Wait(Duration::from_secs(20)));
            steps.push(Step::Send(tokens(&[])));
        }
        steps.push(end());
        Script::of(steps)
    });
    let transport = server.transport(&config());
    let (_, error) = all(&mut transport.generate(&Arc::new(call())).await.unwrap()).await;
    assert!(error.unwrap().message().contains("no further token"));
}

#[tokio::test(start_paused = true)]
async fn a_message_that_is_too_long_is_an_error() {
    let (server, _aborted) = Server::with(|_| {
        let mut long = tokens(&[4]);
        long.outputs.as_mut().unwrap().text = "x".repeat(5 << 20);
        Script::of(vec![Step::Send(long), end()])
    });
    let transport = server.transport(&config());
    let (chunks, error) = all(&mut transport.generate(&Arc::new(call())).await.unwrap()).await;
    let error = error.unwrap();
    assert!(chunks.is_empty());
    assert_eq!((error.kind(), error.status()), (ErrorKind::Remote, ErrorStatus::Permanent), "{error}");
    // A prompt's numbers may take more.
    let chunks =
        all(&mut transport.generate(&Arc::new(Call { prompt_logprobs: Some(0), ..call() })).await.unwrap()).await;
    assert!(chunks.1.is_none(), "{:?}", chunks.1);
}
