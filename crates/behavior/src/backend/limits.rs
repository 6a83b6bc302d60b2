//! Many at once, too many, and those who go away or ask for nonsense.

use std::time::{Duration, Instant};

use consort_core::{
    AdapterUse, ChatPrompt, EndTokens, ErrorKind, GenerateRequest, ImageInput, Prompt, PromptPart, Role, Sampling,
    StopRules, TokenId,
};

use super::client::{Client, adapter, collect, refusal, request, text};
use super::{BackendFixture, BackendSetup, Bounds, List, Need};
use crate::case::{Outcome, ensure};

/// How long a case waits for what must come.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) fn add(list: &mut List) {
    list.add("several_streams_are_each_alone", &[], several);
    list.add("more_streams_than_slots", &[], more_than_slots);
    list.add("cancelling_frees_the_slot", &[], cancel_running);
    list.add("cancelling_in_the_queue", &[], cancel_queued);
    list.add("cancelling_leaves_the_neighbour", &[], cancel_neighbour);
    list.add("an_overload_is_refused_at_once", &[], overload);
    list.add("a_slow_reader_pauses_itself_alone", &[], slow_reader);
    list.add("nonsense_is_refused_and_the_neighbour_unharmed", &[], nonsense);
    list.add("an_unknown_adapter_is_refused", &[Need::Adapters], unknown_adapter);
    list.add("an_image_token_in_text_is_refused", &[Need::Images], image_token);
    list.add("a_hostile_picture_file_is_refused", &[Need::Text, Need::Images], hostile_file);
}

fn prompts(fixture: &BackendFixture, count: usize) -> Vec<GenerateRequest> {
    (0..count)
        .map(|index| {
            let prompt = fixture.engine.prompt(3 + 13 * index, 800 + index as u64);
            request(text(&prompt), 6 + 3 * index as u32)
        })
        .collect()
}

fn each_alone(fixture: &BackendFixture, setup: BackendSetup, count: usize) -> Outcome {
    let requests = prompts(fixture, count);
    let alone = Client::new(fixture)?;
    let expected = requests.iter().map(|request| alone.anew(request)).collect::<Outcome<Vec<_>>>()?;
    let client = Client::with(fixture, setup)?;
    let streams = requests.iter().map(|request| client.start(request.clone())).collect::<Outcome<Vec<_>>>()?;
    for (index, (stream, expected)) in streams.into_iter().zip(&expected).enumerate() {
        let reply = collect(stream)?;
        client.same(&reply, expected, &format!("stream {index} of {count} against alone"))?;
    }
    Ok(())
}

fn several(fixture: &BackendFixture) -> Outcome {
    each_alone(fixture, BackendSetup::default(), 8)
}

fn more_than_slots(fixture: &BackendFixture) -> Outcome {
    // Where the slots are a server's, more than it has.
    let count =
        if fixture.nature.bounds == Bounds::SlotsAndQueue { 7 } else { fixture.capability.max_sequences.min(30) + 2 };
    each_alone(fixture, BackendSetup { max_running: Some(2), ..BackendSetup::default() }, count)
}

/// A request whose reply goes on for long: nothing but its length ends it.
pub(super) fn long(fixture: &BackendFixture) -> GenerateRequest {
    let stop = StopRules { end_tokens: EndTokens::Ignore, ..StopRules::default() };
    GenerateRequest { stop, logprobs: None, ..request(text(&fixture.engine.prompt(6, 820)), 4000) }
}

/// Waits until the metrics say so.
pub(super) fn until(client: &Client<'_>, what: &str, holds: impl Fn(&consort_core::Metrics) -> bool) -> Outcome {
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        if holds(&client.backend.metrics()) {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Err(format!("after a minute still not: {what}; {:?}", client.backend.metrics()).into())
}

pub(super) fn one_slot() -> BackendSetup {
    BackendSetup { max_running: Some(1), ..BackendSetup::default() }
}

fn cancel_running(fixture: &BackendFixture) -> Outcome {
    let client = Client::with(fixture, one_slot())?;
    let stream = client.start(long(fixture))?;
    let before = client.backend.metrics();
    let mut events = stream.blocking();
    ensure!(events.next().is_some_and(|event| event.is_ok()), "the stream does not start");
    drop(events);
    // The only slot is free again when the next is answered.
    let reply = client.ask(request(text(&fixture.engine.prompt(4, 821)), 3))?;
    ensure!(!reply.all().is_empty(), "no reply after a cancelled one");
    let metrics = client.settle()?;
    ensure!(metrics.cancelled == before.cancelled + 1, "one was cancelled: {metrics:?}");
    ensure!(metrics.running == 0 && metrics.queued == 0, "something is left: {metrics:?}");
    Ok(())
}

fn cancel_queued(fixture: &BackendFixture) -> Outcome {
    let client = Client::with(fixture, one_slot())?;
    let first = client.start(long(fixture))?;
    until(&client, "the first runs", |metrics| metrics.running == 1)?;
    let queued = client.start(request(text(&fixture.engine.prompt(4, 822)), 3))?;
    drop(queued);
    drop(first);
    let reply = client.ask(request(text(&fixture.engine.prompt(4, 823)), 3))?;
    ensure!(!reply.all().is_empty(), "no reply after cancelled ones");
    let metrics = client.settle()?;
    ensure!(metrics.cancelled >= 1 && metrics.running + metrics.queued == 0, "{metrics:?}");
    Ok(())
}

fn cancel_neighbour(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    let asked = request(text(&fixture.engine.prompt(15, 824)), 40);
    let expected = client.anew(&asked)?;
    let victim = client.start(long(fixture))?;
    let stream = client.start(asked)?;
    drop(victim);
    let reply = collect(stream)?;
    client.same(&reply, &expected, "beside a stream that was cancelled")
}

fn overload(fixture: &BackendFixture) -> Outcome {
    let client =
        Client::with(fixture, BackendSetup { max_running: Some(1), max_queued: Some(1), ..BackendSetup::default() })?;
    let running = client.start(long(fixture))?;
    until(&client, "the first runs", |metrics| metrics.running == 1)?;
    let queued = client.start(request(text(&fixture.engine.prompt(4, 825)), 2))?;
    let begun = Instant::now();
    match client.backend.generate(request(text(&fixture.engine.prompt(4, 826)), 2)) {
        Ok(_) => return Err("one is queued, one may be, and another was accepted".into()),
        Err(error) => {
            ensure!(error.kind() == ErrorKind::Overloaded, "an overload is {error:?}");
            ensure!(error.status() == consort_core::ErrorStatus::Temporary, "an overload passes");
        }
    }
    ensure!(begun.elapsed() < Duration::from_secs(2), "the refusal took {:?}", begun.elapsed());
    ensure!(client.backend.metrics().refused == 1, "{:?}", client.backend.metrics());
    drop(running);
    collect(queued)?;
    // Who is not read gives way: then the one that was dropped waits, and leaves the queue when its turn comes.
    until(&client, "nobody waits", |metrics| metrics.queued == 0)?;
    collect(client.start(request(text(&fixture.engine.prompt(4, 826)), 2))?)?;
    Ok(())
}

fn slow_reader(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    let asked = request(text(&fixture.engine.prompt(8, 827)), 12);
    let expected = client.anew(&asked)?;
    let slow = client.start(long(fixture))?;
    for _ in 0..3 {
        let reply = client.ask(asked.clone())?;
        client.same(&reply, &expected, "beside a reader that does not read")?;
    }
    // And the slow one misses nothing when it reads at last.
    let mut events = slow.blocking();
    for _ in 0..20 {
        match events.next() {
            Some(event) => drop(event?),
            None => break,
        }
    }
    Ok(())
}

fn nonsense(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    let neighbour = request(text(&fixture.engine.prompt(20, 830)), 60);
    let expected = client.anew(&neighbour)?;
    let stream = client.start(neighbour)?;
    let prompt = |tokens: &[TokenId]| request(text(tokens), 4);
    let good = fixture.engine.prompt(3, 831);
    let vocabulary = client.backend.info().vocab_size as TokenId;
    let sampled = |sampling| GenerateRequest { sampling, ..prompt(&good) };
    let invalid = ErrorKind::InvalidRequest;
    let cases: Vec<(&str, GenerateRequest)> = vec![
        ("a token beyond the vocabulary", prompt(&[good[0], vocabulary])),
        ("the largest token id", prompt(&[TokenId::MAX])),
        ("an empty prompt", request(Vec::new(), 4)),
        ("a prompt of an empty part", prompt(&[])),
        ("a negative temperature", sampled(Sampling { temperature: -1.0, ..Sampling::default() })),
        ("a temperature that is no number", sampled(Sampling { temperature: f32::NAN, ..Sampling::default() })),
        ("a top p of 0", sampled(Sampling { top_p: 0.0, ..Sampling::default() })),
        ("a top p above 1", sampled(Sampling { top_p: 1.5, ..Sampling::default() })),
        ("a min p above 1", sampled(Sampling { min_p: 2.0, ..Sampling::default() })),
        ("more log probabilities than anybody reads", GenerateRequest { logprobs: Some(u32::MAX), ..prompt(&good) }),
    ];
    for (what, asked) in cases {
        refusal(&client, asked, invalid, what)?;
    }
    let reply = collect(stream)?;
    client.same(&reply, &expected, "beside ten requests of nonsense")?;
    let after = client.ask(prompt(&good))?;
    ensure!(!after.all().is_empty(), "no reply after nonsense");
    Ok(())
}

fn unknown_adapter(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    client.load("known", 0)?;
    let asked = |adapters| GenerateRequest { adapters, ..request(text(&fixture.engine.prompt(3, 832)), 2) };
    refusal(&client, asked(adapter("unknown", 1.0)), ErrorKind::NotFound, "an adapter that is not loaded")?;
    let twice: Vec<AdapterUse> = [adapter("known", 1.0), adapter("known", 0.5)].concat();
    refusal(&client, asked(twice), ErrorKind::InvalidRequest, "an adapter that is named twice")?;
    refusal(&client, asked(adapter("known", f32::NAN)), ErrorKind::InvalidRequest, "a scale that is no number")?;
    let reply = client.ask(asked(adapter("known", 1.0)))?;
    ensure!(!reply.all().is_empty(), "no reply after refused adapters");
    Ok(())
}

fn image_token(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    let token = client.backend.info().image_token.ok_or("a model that sees has an image token")?;
    let tokens = [fixture.engine.prompt(3, 833), vec![token], fixture.engine.prompt(2, 834)].concat();
    refusal(&client, request(text(&tokens), 2), ErrorKind::InvalidRequest, "an image token without an image")?;
    Ok(())
}

fn hostile_file(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    let files: [&[u8]; 4] = [b"", b"not a picture", b"\x89PNG\r\n\x1a\n", b"GIF89a\xff\xff\xff\xff"];
    for file in files {
        let image = consort_core::ContentPart::Image(ImageInput::Encoded(file.into()));
        let message = consort_core::ChatMessage::new(Role::User, vec![image]);
        let chat = ChatPrompt { messages: vec![message], ..ChatPrompt::default() };
        refusal(&client, GenerateRequest::new(Prompt::Chat(chat)), ErrorKind::InvalidImage, "a hostile picture file")?;
    }
    let reply = client.ask(request(vec![PromptPart::Tokens(fixture.engine.prompt(3, 835))], 2))?;
    ensure!(!reply.all().is_empty(), "no reply after hostile pictures");
    Ok(())
}
