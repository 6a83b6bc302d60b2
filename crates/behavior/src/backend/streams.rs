//! What a stream says, in which order, and how it ends.

use consort_core::{
    AdapterMode, AdapterUse, Capability, EmbedRequest, ErrorKind, Event, FinishReason, GenerateRequest, PlacementRule,
    Pooling, Prompt, PromptPart, SpecialTokens, StopRules, block_on,
};

use super::client::{Client, collect, engines_own, log_softmax, refusal, request, text};
use super::{BackendFixture, BackendSetup, List, Need};
use crate::case::{Failure, Outcome, ensure};
use crate::rig::{Rig, differ};
use crate::script::Script;

pub(super) fn add(list: &mut List) {
    list.add("a_stream_starts_goes_on_and_ends", &[], order);
    list.add("usage_counts", &[], usage);
    list.add("max_tokens_is_kept", &[], max_tokens);
    list.add("greedy_is_the_engines_own", &[], greedy);
    list.add("a_long_prompt_is_the_engines_own", &[], long_prompt);
    list.add("log_probabilities_are_the_engines_own", &[], logprobs);
    list.add("log_probabilities_sum_to_one", &[Need::SmallVocabulary], whole_distribution);
    list.add("log_probabilities_only_when_asked", &[], no_logprobs);
    list.add("a_stop_token_ends_a_reply", &[], stop_token);
    list.add("a_stop_string_ends_a_reply", &[Need::Text], stop_string);
    list.add("a_stop_string_across_tokens", &[Need::Text], stop_string_across);
    list.add("text_is_that_of_the_tokens", &[Need::Text], text_of_tokens);
    list.add("tokens_and_back", &[Need::Text], tokenize);
    list.add("the_context_ends_a_reply", &[], context_end);
    list.add("what_it_is", &[], identity);
    list.add("undeclared_is_refused", &[], undeclared);
    list.add("metrics_add_up", &[], metrics);
    list.add("memory_is_told", &[Need::Memory], memory);
    list.add("text_is_embedded", &[Need::Embeddings, Need::Remembers], embed);
    list.add("greedy_of_the_goldens", &[Need::Golden], golden);
    list.add("shutting_down_ends_streams", &[], shutdown);
}

fn order(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    let reply = client.ask(request(text(&fixture.engine.prompt(9, 1)), 8))?;
    ensure!(!reply.all().is_empty(), "a reply without a token");
    ensure!(reply.all().len() <= 8, "more tokens than were allowed");
    Ok(())
}

fn usage(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    for length in [1, 2, 40].into_iter().filter(|length| *length >= fixture.nature.shortest_prompt) {
        let reply = client.ask(request(text(&fixture.engine.prompt(length, 2)), 6))?;
        let usage = reply.usage;
        ensure!(usage.prompt_tokens == length, "a prompt of {length} tokens is counted as {}", usage.prompt_tokens);
        ensure!(usage.reused_tokens <= length, "more was reused than there was");
        ensure!(
            usage.completion_tokens == reply.all().len(),
            "{} tokens are counted as {}",
            reply.all().len(),
            usage.completion_tokens
        );
        ensure!(usage.time_to_first_token.is_some(), "the time to the first token is missing");
    }
    Ok(())
}

fn max_tokens(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    // With none the prompt is read all the same.
    for most in [0, 1, 2, 5] {
        let reply = client.ask(request(text(&fixture.engine.prompt(7, 3)), most))?;
        ensure!(reply.usage.prompt_tokens == 7, "a prompt of 7 tokens is counted as {}", reply.usage.prompt_tokens);
        let got = reply.all().len();
        ensure!(got <= most as usize, "{got} tokens, and {most} are the most");
        let ended = matches!(reply.reason, FinishReason::EndToken(_));
        ensure!(ended || (got == most as usize && reply.reason == FinishReason::Length), "ended by {:?}", reply.reason);
    }
    Ok(())
}

fn against_engine(fixture: &BackendFixture, length: usize, count: usize) -> Outcome {
    let client = Client::new(fixture)?;
    let parts = text(&fixture.engine.prompt(length, 4));
    let reply = client.ask(request(parts.clone(), count as u32))?;
    engines_own(fixture, &parts, &[], (&reply, count), &format!("after {length} tokens"))
}

fn greedy(fixture: &BackendFixture) -> Outcome {
    against_engine(fixture, 12, 24)
}

/// Longer than a batch may be, so that it is read in chunks.
fn long_prompt(fixture: &BackendFixture) -> Outcome {
    let length = fixture.capability.max_batch_tokens + 70;
    against_engine(fixture, length.min(fixture.capability.max_sequence_tokens / 2), 6)
}

fn logprobs(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    let tokens = fixture.engine.prompt(12, 5);
    let parts = text(&tokens);
    let reply = client.ask(GenerateRequest { logprobs: Some(3), ..request(parts.clone(), 8) })?;
    ensure!(reply.logprobs.len() == reply.ids.len(), "not one log probability a token");
    for entry in &reply.logprobs {
        ensure!(entry.top.len() == 3, "three of the most probable were wanted, and {} came", entry.top.len());
        ensure!(entry.top[0].token == entry.chosen.token, "a greedy token is not the most probable one");
    }
    engines_own(fixture, &parts, &[], (&reply, 8), "with log probabilities")
}

fn whole_distribution(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    let vocabulary = fixture.vocabulary;
    let tokens = fixture.engine.prompt(6, 6);
    let reply = client.ask(GenerateRequest { logprobs: Some(vocabulary as u32), ..request(text(&tokens), 2) })?;
    let entry = reply.logprobs.first().ok_or("no log probabilities")?;
    ensure!(entry.top.len() == vocabulary, "{} of {vocabulary} log probabilities", entry.top.len());
    let sum: f64 = entry.top.iter().map(|one| f64::from(one.logprob).exp()).sum();
    ensure!((sum - 1.0).abs() < 1e-4, "the probabilities sum to {sum}");
    let mut rig = Rig::new(&fixture.engine)?;
    let row = log_softmax(&rig.fresh(&Script::text(&tokens))?);
    let tolerance = fixture.oracle_tolerance;
    for one in &entry.top {
        let distance = (row[one.token as usize] - one.logprob).abs();
        ensure!(distance <= tolerance, "the log probability of {} is off by {distance}", one.token);
    }
    Ok(())
}

fn no_logprobs(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    let reply = client.ask(GenerateRequest { logprobs: None, ..request(text(&fixture.engine.prompt(6, 7)), 4) })?;
    ensure!(reply.logprobs.is_empty(), "log probabilities came unasked");
    Ok(())
}

fn stop_token(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    for seed in 8..40 {
        let prompt = text(&fixture.engine.prompt(8, seed));
        let free = client.ask(request(prompt.clone(), 12))?;
        let Some(&stop) = free.ids.get(3) else { continue };
        let at = free.ids.iter().position(|id| *id == stop).unwrap_or(3);
        let stop_rules = StopRules { tokens: vec![stop], ..StopRules::default() };
        let reply = client.ask(GenerateRequest { stop: stop_rules, ..request(prompt, 12) })?;
        ensure!(reply.reason == FinishReason::StopToken(stop), "ended by {:?}", reply.reason);
        ensure!(reply.ids == free.ids[..at], "{:?} come before the stop token, not {:?}", reply.ids, &free.ids[..at]);
        ensure!(reply.usage.completion_tokens == at + 1, "the stop token is not counted");
        return Ok(());
    }
    Err("no prompt gave a reply of four tokens".into())
}

/// A greedy reply with at least `least` bytes of clean text.
fn clean_reply(client: &Client<'_>, least: usize) -> Outcome<(Vec<PromptPart>, super::client::Reply)> {
    for seed in 40..140 {
        let prompt = text(&client.fixture.engine.prompt(8, seed));
        let reply = client.ask(request(prompt.clone(), 24))?;
        let clean = !reply.text.contains('\u{FFFD}') && reply.text.is_ascii();
        if clean && reply.text.len() >= least {
            return Ok((prompt, reply));
        }
    }
    for seed in 140..400 {
        // A model of random weights seldom writes clean text: its beginning is enough.
        let prompt = text(&client.fixture.engine.prompt(8, seed));
        let reply = client.ask(request(prompt.clone(), 24))?;
        if reply.text.chars().take(least).filter(char::is_ascii_graphic).count() >= least {
            return Ok((prompt, reply));
        }
    }
    Err("no prompt gave a reply of clean text".into())
}

fn stopped_by(client: &Client<'_>, prompt: &[PromptPart], whole: &str, stop: &str) -> Outcome {
    let at = whole.find(stop).ok_or("the stop string is not in the text")?;
    let rules = StopRules { strings: vec!["no such text \u{1F3BB}".into(), stop.into()], ..StopRules::default() };
    let reply = client.ask(GenerateRequest { stop: rules, ..request(prompt.to_vec(), 24) })?;
    ensure!(reply.reason == FinishReason::StopString(stop.into()), "{stop:?}: ended by {:?}", reply.reason);
    ensure!(reply.text == whole[..at], "{stop:?}: the text is {:?}, not {:?}", reply.text, &whole[..at]);
    Ok(())
}

fn stop_string(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    let (prompt, reply) = clean_reply(&client, 2)?;
    let last = reply.text.chars().take_while(|c| *c != '\u{FFFD}').last().ok_or("no text")?;
    stopped_by(&client, &prompt, &reply.text, &last.to_string())
}

fn stop_string_across(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    let (prompt, reply) = clean_reply(&client, 3)?;
    let clean: String = reply.text.chars().take_while(|c| *c != '\u{FFFD}').collect();
    // From the second character on: with small vocabularies that crosses a token's border.
    let start = clean.char_indices().nth(1).ok_or("no second character")?.0;
    stopped_by(&client, &prompt, &reply.text, &clean[start..])
}

fn text_of_tokens(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    let special = |id: &u32| *id >= fixture.engine.tokens.end;
    for seed in 400..406 {
        let reply = client.ask(request(text(&fixture.engine.prompt(8, seed)), 16))?;
        if reply.ids.iter().any(special) {
            continue;
        }
        let whole = client.backend.detokenize(&reply.ids)?;
        ensure!(reply.text == whole, "the text is {:?}, and that of all tokens {whole:?}", reply.text);
    }
    Ok(())
}

fn tokenize(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    let sample = "The violin begins; the cello answers. Ré, 音楽, 🎻!";
    let tokens = client.backend.tokenize(sample, SpecialTokens::Plain)?;
    let back = client.backend.detokenize(&tokens)?;
    ensure!(back == sample, "{sample:?} came back as {back:?}");
    let plain = client.backend.tokenize("<|im_end|>", SpecialTokens::Plain)?;
    let parsed = client.backend.tokenize("<|im_end|>", SpecialTokens::Parse)?;
    ensure!(parsed.len() == 1, "a special token was parsed into {}", parsed.len());
    ensure!(plain != parsed, "what people write became a special token");
    let stranger = client.backend.info().vocab_size as u32;
    ensure!(client.backend.detokenize(&[stranger]).is_err(), "a token beyond the vocabulary has a text");
    Ok(())
}

fn context_end(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    let most = fixture.capability.max_sequence_tokens;
    if most > 5000 {
        return Ok(());
    }
    let prompt = text(&fixture.engine.prompt(most - 5, 8));
    let reply = client.ask(GenerateRequest { max_tokens: None, ..request(prompt, 1) })?;
    let got = reply.all().len();
    ensure!(got <= 6, "{got} tokens fitted where five were left");
    refusal(
        &client,
        request(text(&fixture.engine.prompt(most + 1, 8)), 1),
        ErrorKind::InvalidRequest,
        "a prompt that is too long",
    )?;
    Ok(())
}

fn identity(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    let rig = Rig::new(&fixture.engine)?;
    let (info, engines) = (client.backend.info(), rig.engine.info());
    ensure!(client.backend.capability() == fixture.capability, "two backends declare different things");
    if !fixture.nature.engine_within {
        // Another engine with the same model: what prompts and replies are made of must agree.
        ensure!(info.vocab_size == engines.vocab_size, "{} tokens, not {}", info.vocab_size, engines.vocab_size);
        ensure!(info.stop_tokens == engines.stop_tokens, "{:?}, not {:?}", info.stop_tokens, engines.stop_tokens);
        ensure!(info.image_token == engines.image_token, "{:?}, not {:?}", info.image_token, engines.image_token);
        let evidence = client.backend.evidence();
        let remote = (consort_core::Device::Remote, consort_core::Proof::RemoteReport);
        ensure!((evidence.device, evidence.established_by) == remote, "{evidence:?} is no report of a remote");
        ensure!(evidence.backend == client.backend.name(), "the evidence of {}", evidence.backend);
        return Ok(());
    }
    ensure!(client.backend.name() == rig.engine.name(), "another name than the engine's");
    ensure!(info == engines, "another model than the engine's");
    ensure!(client.backend.evidence() == rig.engine.evidence(), "another evidence than the engine's");
    // Whoever schedules adds structures where it has a tokenizer, and nothing else.
    let structured_output = client.backend.capability().structured_output;
    let expected = Capability { structured_output, ..rig.engine.capability() };
    ensure!(client.backend.capability() == expected, "another capability than the engine's");
    Ok(())
}

fn undeclared(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    let capability = client.backend.capability();
    let prompt = || text(&fixture.engine.prompt(3, 9));
    let unsupported = ErrorKind::Unsupported;
    if !capability.embeddings {
        let asked = EmbedRequest {
            prompt: Prompt::Parts(prompt()),
            adapters: Vec::new(),
            pooling: Pooling::Last,
            placement: PlacementRule::Any,
        };
        let result = block_on(client.backend.embed(asked));
        ensure!(result.is_err_and(|error| error.kind() == unsupported), "embeddings must be unsupported");
    }
    if capability.adapter_mode == AdapterMode::None {
        let with =
            GenerateRequest { adapters: vec![AdapterUse { id: "x".into(), scale: 1.0 }], ..request(prompt(), 1) };
        match client.backend.generate(with) {
            Err(error) => ensure!(
                matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::NotFound),
                "an adapter must be unsupported: {error:?}"
            ),
            Ok(_) => return Err("a request with an adapter was accepted, and none is supported".into()),
        }
    }
    if !capability.image_input {
        let image = crate::Picture::seeded(4, 4, 1);
        refusal(&client, request(vec![PromptPart::Image(image)], 1), unsupported, "an image")?;
    }
    if fixture.user_turn.is_none() {
        let result = client.backend.tokenize("text", SpecialTokens::Plain);
        ensure!(result.is_err_and(|error| error.kind() == unsupported), "tokenizing must be unsupported");
        refusal(&client, GenerateRequest::new(Prompt::Chat(Default::default())), unsupported, "a conversation")?;
    }
    Ok(())
}

fn metrics(fixture: &BackendFixture) -> Outcome {
    let client = Client::with(fixture, BackendSetup { max_running: Some(2), ..BackendSetup::default() })?;
    let mut tokens = 0;
    for seed in 0..5 {
        tokens += client.ask(request(text(&fixture.engine.prompt(20, seed)), 4))?.usage.completion_tokens;
    }
    let metrics = client.settle()?;
    ensure!(metrics.requests == 5 && metrics.finished == 5, "five requests are counted as {metrics:?}");
    ensure!(metrics.cancelled + metrics.failed + metrics.refused == 0, "nothing went wrong: {metrics:?}");
    ensure!(metrics.queued + metrics.running == 0, "nothing is left to do: {metrics:?}");
    ensure!(metrics.prompt_tokens == 100, "100 prompt tokens are counted as {}", metrics.prompt_tokens);
    ensure!(metrics.generated_tokens == tokens as u64, "{tokens} tokens are counted as {}", metrics.generated_tokens);
    if !fixture.nature.counts_work {
        return Ok(());
    }
    ensure!(metrics.steps > 0 && metrics.prefilled_tokens >= 100 - metrics.reused_tokens, "{metrics:?}");
    Ok(())
}

fn memory(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    let report = block_on(client.backend.memory())?;
    ensure!(report.weights > 0, "the weights take no memory");
    Ok(())
}

fn embed(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    let hidden = client.backend.info().hidden_size;
    for pooling in [Pooling::Last, Pooling::Mean] {
        let of = |seed| -> Outcome<Vec<f32>> {
            let prompt = Prompt::Parts(text(&fixture.engine.prompt(30, seed)));
            Ok(block_on(client.backend.embed(EmbedRequest {
                prompt,
                adapters: Vec::new(),
                pooling,
                placement: PlacementRule::Any,
            }))?)
        };
        let (one, again, other) = (of(1)?, of(1)?, of(2)?);
        ensure!(one.len() == hidden, "{} numbers, and the hidden state has {hidden}", one.len());
        ensure!(one == again, "the same text is embedded otherwise the second time");
        differ(&one, &other, "the embeddings of two texts")?;
    }
    Ok(())
}

/// Beyond this a backend's log probabilities are not those of single precision, and its choices may be others.
const EXACT: f32 = 0.01;

/// Every golden that continues and needs nothing that the backend does not offer, through the whole scheduler; texts and images, with and without adapters.
fn golden(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    let golden = fixture.engine.golden.clone().ok_or("no goldens")?;
    let has_adapters = fixture.capability.adapter_mode != AdapterMode::None;
    let adapters = fixture.engine.adapters.iter().chain(&fixture.engine.activated_adapters);
    for adapter in adapters.filter(|_| has_adapters) {
        client.load_files(&adapter.name, &adapter.files)?;
    }
    let (mut checked, mut exact) = (0, 0);
    for case in golden.cases() {
        let Some(continuation) = &case.greedy else { continue };
        let offers = |nature: &super::BackendNature| {
            let scaled = case.adapters.iter().any(|adapter| adapter.scale != 1.0);
            (has_adapters || case.adapters.is_empty())
                && (nature.stacks_adapters || case.adapters.len() < 2)
                && (nature.scales_adapters || !scaled)
        };
        if !offers(&fixture.nature) || case.tokens.len() < fixture.nature.shortest_prompt {
            continue;
        }
        let mut parts = Vec::new();
        let mut from = 0;
        for shown in &case.images {
            let named = fixture.engine.images.iter().zip(&fixture.engine.image_names);
            let image = named.clone().find(|(_, name)| **name == shown.image);
            let image = image.ok_or_else(|| Failure::new(format!("no image {}", shown.image)))?.0;
            parts.push(PromptPart::Tokens(case.tokens[from..shown.at].to_vec()));
            parts.push(PromptPart::Image(std::sync::Arc::clone(image)));
            from = shown.at + shown.tokens;
        }
        parts.push(PromptPart::Tokens(case.tokens[from..].to_vec()));
        parts.retain(|part| !matches!(part, PromptPart::Tokens(tokens) if tokens.is_empty()));
        let asked = GenerateRequest {
            adapters: case
                .adapters
                .iter()
                .map(|adapter| AdapterUse { id: adapter.name.clone(), scale: adapter.scale })
                .collect(),
            ..request(parts.clone(), continuation.tokens.len() as u32)
        };
        let reply = client.ask(asked).map_err(|failure| failure.during(&case.name))?;
        if reply.all() == continuation.tokens {
            exact += 1;
        } else {
            let told = format!("{}: {:?}, and the reference says {:?}", case.name, reply.all(), continuation.tokens);
            ensure!(!fixture.is_exact() && fixture.oracle_tolerance > EXACT, "{told}");
            let adapters = case.adapters.iter().map(|adapter| {
                let at = fixture.engine.adapters.iter().position(|one| one.name == adapter.name);
                at.map(|at| (at, adapter.scale)).ok_or_else(|| Failure::new(format!("no adapter {}", adapter.name)))
            });
            let adapters = adapters.collect::<Outcome<Vec<_>>>()?;
            engines_own(fixture, &parts, &adapters, (&reply, continuation.tokens.len()), &told)?;
        }
        checked += 1;
    }
    ensure!(checked > 0, "no golden has a continuation");
    ensure!(2 * exact > checked, "{exact} of {checked} replies are the reference's");
    Ok(())
}

fn shutdown(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    let stream = client.start(request(text(&fixture.engine.prompt(4, 10)), 4000))?;
    let quick = client.start(request(text(&fixture.engine.prompt(4, 10)), 2))?;
    collect(quick)?;
    drop(client);
    let mut last = None;
    for event in stream.blocking() {
        last = Some(event);
    }
    match last {
        Some(Err(error)) => ensure!(error.kind() == ErrorKind::Cancelled, "ended by {error:?}"),
        // A short reply may have ended by itself.
        Some(Ok(Event::Finished { .. })) => {}
        other => return Err(format!("a stream of a backend that is gone ends with {other:?}").into()),
    }
    Ok(())
}
