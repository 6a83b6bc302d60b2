//! Who comes first, what comes too late, and numbers that add up.

use std::time::{Duration, Instant};

use consort_core::{
    Deadlines, ErrorKind, Event, EventStream, GenerateRequest, Metrics, PrefixReuse, Priority, PromptPart, TokenId,
};

use super::client::{Client, collect, refusal, request, text};
use super::limits::{long, one_slot, until};
use super::{BackendFixture, List, Need};
use crate::case::{Outcome, ensure};

pub(super) fn add(list: &mut List) {
    list.add("a_deadline_that_passes_in_the_queue", &[], in_the_queue);
    list.add("a_deadline_that_passes_in_the_middle_of_a_reply", &[], in_the_middle);
    list.add("a_deadline_that_is_far_away_changes_nothing", &[], far_away);
    list.add("the_higher_priority_leaves_the_queue_first", &[Need::Queue, Need::Counters], priority_order);
    list.add("metrics_add_up_whatever_happens", &[], metrics);
}

/// What remains of a stream that must end with an error of this kind: how many tokens came before.
fn ends_with(stream: EventStream, kind: ErrorKind) -> Outcome<u64> {
    let (mut tokens, mut error) = (0, None);
    for event in stream.blocking() {
        ensure!(error.is_none(), "something follows the error");
        match event {
            Ok(Event::Finished { .. }) => return Err("the reply was finished, and was to be too late".into()),
            Ok(Event::Tokens { ids, .. }) => tokens += ids.len() as u64,
            Ok(_) => {}
            Err(late) => error = Some(late),
        }
    }
    let error = error.ok_or("the stream ended without an end")?;
    ensure!(error.kind() == kind, "it must end as {}: {error:?}", kind.as_str());
    Ok(tokens)
}

fn in_the_queue(fixture: &BackendFixture) -> Outcome {
    let client = Client::with(fixture, one_slot())?;
    // A voice that is listened to keeps its slot.
    let stream = client.start(GenerateRequest { priority: Priority::Realtime, ..long(fixture) })?;
    let mut voice = stream.blocking();
    ensure!(voice.next().is_some_and(|event| event.is_ok()), "the voice does not start");
    let deadlines = Deadlines { first_token: Some(Duration::ZERO), total: None };
    let late = GenerateRequest { deadlines, ..request(text(&fixture.engine.prompt(4, 901)), 3) };
    let error = refusal(&client, late, ErrorKind::DeadlineExceeded, "a request whose time is over when it comes")?;
    ensure!(error.status() == consort_core::ErrorStatus::Temporary, "another time it may be quicker: {error:?}");
    ensure!(voice.next().is_some_and(|event| event.is_ok()), "the neighbour of a late request failed");
    drop(voice);
    let metrics = client.settle()?;
    ensure!((metrics.failed, metrics.queued, metrics.running) == (1, 0, 0), "{metrics:?}");
    adds_up(&metrics)
}

fn in_the_middle(fixture: &BackendFixture) -> Outcome {
    let client = Client::with(fixture, one_slot())?;
    let allowed = Duration::from_millis(300);
    let deadlines = Deadlines { first_token: None, total: Some(allowed) };
    let asked = GenerateRequest { deadlines, ..long(fixture) };
    let (begun, before) = (Instant::now(), client.settle()?);
    // Its reader does not read: the reply stands still, and the time passes all the same.
    let stream = client.start(asked)?;
    until(&client, "the slot is free again", |metrics| metrics.running + metrics.queued == 0)?;
    let metrics = client.backend.metrics();
    adds_up(&metrics)?;
    let reply = client.ask(request(text(&fixture.engine.prompt(4, 903)), 3))?;
    ensure!(!reply.all().is_empty(), "no reply after a late one");
    ensure!(begun.elapsed() >= allowed, "it was ended after {:?}", begun.elapsed());
    let tokens = ends_with(stream, ErrorKind::DeadlineExceeded)?;
    ensure!(tokens == metrics.generated_tokens - before.generated_tokens, "{tokens} tokens of the late reply came");
    Ok(())
}

fn far_away(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    let asked = request(text(&fixture.engine.prompt(12, 905)), 20);
    let expected = client.anew(&asked)?;
    let hour = Some(Duration::from_secs(3600));
    for deadlines in [
        Deadlines { first_token: hour, total: hour },
        Deadlines { first_token: Some(Duration::MAX), total: Some(Duration::MAX) },
    ] {
        let reply = client.ask(GenerateRequest { deadlines, ..asked.clone() })?;
        client.same(&reply, &expected, "with deadlines that are far away")?;
    }
    Ok(())
}

fn priority_order(fixture: &BackendFixture) -> Outcome {
    let client = Client::with(fixture, one_slot())?;
    let with = |priority, seed| -> Outcome<GenerateRequest> {
        // Each takes its time, so that the moment in which only one of them waits is not missed; and says no more than a
        // buffer holds, as one whose reader is behind gives way to anybody.
        let prompt = text(&fixture.engine.prompt(200, seed));
        Ok(GenerateRequest { priority, prefix_reuse: PrefixReuse::Bypass, ..request(prompt, 10) })
    };
    let stream = client.start(GenerateRequest { priority: Priority::Realtime, ..long(fixture) })?;
    let mut voice = stream.blocking();
    ensure!(voice.next().is_some_and(|event| event.is_ok()), "the voice does not start");
    let low = client.start(with(Priority::Batch, 907)?)?;
    let high = client.start(with(Priority::Realtime, 908)?)?;
    drop(voice);
    let (begun, mut since) = (Instant::now(), None);
    loop {
        let metrics = client.backend.metrics();
        adds_up(&metrics)?;
        let turned_about = metrics.queued_by.realtime == 1 && metrics.queued_by.batch == 0 && metrics.running == 1;
        since = turned_about.then(|| since.unwrap_or(metrics.steps));
        // A request that has just come is seen within a step or two.
        let steps = since.map_or(0, |since| metrics.steps - since);
        ensure!(steps <= 4, "the lower priority runs while the higher one waits: {metrics:?}");
        if metrics.queued == 0 {
            break;
        }
        ensure!(begun.elapsed() < Duration::from_secs(60), "after a minute somebody still waits: {metrics:?}");
    }
    collect(high)?;
    collect(low)?;
    Ok(())
}

/// What the documentation of [`Metrics`] promises of every snapshot.
fn adds_up(metrics: &Metrics) -> Outcome {
    let ended = metrics.finished + metrics.cancelled + metrics.failed;
    ensure!(metrics.requests == ended + metrics.queued + metrics.running, "requests are lost: {metrics:?}");
    ensure!(metrics.queued == metrics.queued_by.total(), "who waits: {metrics:?}");
    ensure!(metrics.failed == metrics.failures.total(), "who failed: {metrics:?}");
    let missed = metrics.missed_first_token + metrics.missed_total;
    ensure!(metrics.failures.deadline == missed, "who was late: {metrics:?}");
    let computed = metrics.prefilled_tokens + metrics.recomputed_tokens + metrics.decoded_tokens;
    ensure!(metrics.step_tokens == computed, "tokens are lost: {metrics:?}");
    Ok(())
}

fn metrics(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    let asked: Vec<(Vec<TokenId>, u32)> =
        (0..6).map(|index| (fixture.engine.prompt(5 + 20 * index, 910 + index as u64), 4 + index as u32)).collect();
    let streams = asked
        .iter()
        .map(|(prompt, most)| client.start(request(vec![PromptPart::Tokens(prompt.clone())], *most)))
        .collect::<Outcome<Vec<_>>>()?;
    let left = client.start(long(fixture))?;
    let before = client.backend.metrics();
    adds_up(&before)?;
    drop(left);
    let mut said = 0;
    for stream in streams {
        said += collect(stream)?.usage.completion_tokens as u64;
        adds_up(&client.backend.metrics())?;
    }
    let vocabulary = client.backend.info().vocab_size as TokenId;
    refusal(&client, request(text(&[vocabulary]), 3), ErrorKind::InvalidRequest, "a token beyond the vocabulary")?;
    let deadlines = Deadlines { first_token: None, total: Some(Duration::ZERO) };
    let late = GenerateRequest { deadlines, ..request(text(&fixture.engine.prompt(4, 920)), 3) };
    refusal(&client, late, ErrorKind::DeadlineExceeded, "a request whose time is over when it comes")?;
    let metrics = client.settle()?;
    adds_up(&metrics)?;
    ensure!((metrics.queued, metrics.running, metrics.background) == (0, 0, 0), "something is left: {metrics:?}");
    ensure!((metrics.failed, metrics.missed_total, metrics.refused) == (1, 1, 0), "who failed: {metrics:?}");
    ensure!(metrics.cancelled == 1 && metrics.finished == 6, "who finished: {metrics:?}");
    ensure!(metrics.generated_tokens >= said, "{said} tokens were read: {metrics:?}");
    let prompts: usize = asked.iter().map(|(prompt, _)| prompt.len()).sum();
    ensure!(metrics.prompt_tokens >= prompts as u64, "{prompts} tokens were asked: {metrics:?}");
    let first = &metrics.time_to_first_token;
    ensure!(first.count >= 6 && first.sum >= first.max, "each reply has a first token: {first:?}");
    ensure!(metrics.step_time.count == metrics.steps && metrics.busy >= metrics.step_time.sum, "{metrics:?}");
    Ok(())
}
