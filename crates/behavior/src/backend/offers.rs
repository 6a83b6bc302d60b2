//! What a backend does not offer it refuses, in words that say so, and serves the next as before.

use consort_core::{
    AdapterUse, Dry, DynamicTemperature, ErrorKind, GenerateRequest, Penalties, PrefixReuse, Residency, Sampling, Xtc,
    block_on,
};

use super::client::{Client, adapter, collect, refusal, request, text};
use super::{BackendFixture, Lack, List, Need};
use crate::case::{Failure, Outcome, ensure};

pub(super) fn add(list: &mut List) {
    let lacks = |lack| [Need::Lacks(lack)];
    list.add("a_prompt_that_is_too_short_is_refused", &lacks(Lack::OneToken), one_token);
    list.add("a_scale_that_is_not_offered_is_refused", &lacks(Lack::Scales), scales);
    list.add("a_mixture_that_is_not_offered_is_refused", &lacks(Lack::Stacks), stacks);
    list.add("samplers_that_are_not_offered_are_refused", &lacks(Lack::AllSamplers), samplers);
    list.add("a_bias_that_would_be_cut_is_refused", &lacks(Lack::AnyBias), bias);
    list.add("residency_is_told_where_a_server_pages", &lacks(Lack::Paging), residency);
    list.add("more_log_probabilities_than_offered_are_refused", &lacks(Lack::Logprobs), logprobs);
    list.add("memory_that_is_not_known_is_not_told", &lacks(Lack::Memory), memory);
    list.add("bypassing_a_servers_cache_reuses_nothing", &lacks(Lack::Bypass), bypass);
}

fn asked(fixture: &BackendFixture, sampling: Sampling) -> GenerateRequest {
    GenerateRequest { sampling, ..request(text(&fixture.engine.prompt(9, 3100)), 4) }
}

/// After refusals, an ordinary request is answered as ever.
fn goes_on(client: &Client<'_>) -> Outcome {
    let reply = client.ask(asked(client.fixture, Sampling::default()))?;
    ensure!(!reply.all().is_empty(), "no reply after what was refused");
    Ok(())
}

/// The error must be one of these kinds: what the server cannot do at all, or a value beyond its limits.
fn refused(client: &Client<'_>, request: GenerateRequest, what: &str) -> Outcome {
    refusal(client, request.clone(), ErrorKind::Unsupported, what)
        .or_else(|_| refusal(client, request, ErrorKind::InvalidRequest, what))
        .map(|_| ())
}

fn one_token(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    let neighbour = request(text(&fixture.engine.prompt(9, 3101)), 20);
    let expected = client.anew(&neighbour)?;
    let stream = client.start(neighbour)?;
    for length in 1..fixture.nature.shortest_prompt {
        refused(&client, request(text(&fixture.engine.prompt(length, 3102)), 4), "a prompt that is too short")?;
    }
    client.same(&collect(stream)?, &expected, "beside prompts that are too short")?;
    goes_on(&client)
}

fn scales(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    client.load("one", 0)?;
    for scale in [0.5, -1.0, 2.0] {
        let asked = GenerateRequest { adapters: adapter("one", scale), ..asked(fixture, Sampling::default()) };
        refused(&client, asked, &format!("the scale {scale}"))?;
    }
    goes_on(&client)
}

fn stacks(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    client.load("one", 0)?;
    client.load("two", 1)?;
    let both: Vec<AdapterUse> = [adapter("one", 1.0), adapter("two", 1.0)].concat();
    refused(
        &client,
        GenerateRequest { adapters: both, ..asked(fixture, Sampling::default()) },
        "two adapters at once",
    )?;
    // One of scale 0 has no effect, and is no second one.
    let with = |adapters| GenerateRequest { adapters, ..asked(fixture, Sampling::default()) };
    let one = client.anew(&with(adapter("one", 1.0)))?;
    let beside = client.anew(&with([adapter("one", 1.0), adapter("two", 0.0)].concat()))?;
    client.same(&beside, &one, "beside an adapter of scale 0")
}

fn samplers(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    let warm = || Sampling { temperature: 1.0, ..Sampling::default() };
    let cases = [
        ("typical p", Sampling { typical_p: 0.9, ..warm() }),
        ("top n sigma", Sampling { top_n_sigma: Some(1.0), ..warm() }),
        ("XTC", Sampling { xtc: Some(Xtc { probability: 0.5, threshold: 0.1 }), ..warm() }),
        ("DRY", Sampling { dry: Some(Dry::default()), ..warm() }),
        (
            "a temperature that follows the entropy",
            Sampling { dynamic_temperature: Some(DynamicTemperature { range: 0.5, exponent: 1.0 }), ..warm() },
        ),
        (
            "penalties on a window",
            Sampling { penalties: Penalties { presence: 1.0, window: Some(4), ..Penalties::default() }, ..warm() },
        ),
    ];
    for (what, sampling) in cases {
        let error = refusal(&client, asked(fixture, sampling), ErrorKind::Unsupported, what)?;
        ensure!(error.context().next().is_some(), "{what}: the error names nothing: {error}");
    }
    goes_on(&client)
}

fn bias(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    let token = fixture.engine.tokens.start + 1;
    let beyond = 2.0 * fixture.nature.largest_bias.max(1.0);
    for bias in [beyond, -beyond] {
        let sampling = Sampling { logit_bias: vec![(token, bias)], ..Sampling::default() };
        refused(&client, asked(fixture, sampling), &format!("a bias of {bias}"))?;
    }
    for penalties in
        [Penalties { presence: 10.0, ..Penalties::default() }, Penalties { frequency: -10.0, ..Penalties::default() }]
    {
        let sampling = Sampling { penalties, ..Sampling::default() };
        refused(&client, asked(fixture, sampling), "a penalty beyond the server's limits")?;
    }
    goes_on(&client)
}

/// Where an adapter is held is the server's affair; what was said of it is told all the same.
fn residency(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    client.load("one", 0)?;
    for residency in [Residency::Pinned, Residency::Paged { priority: 3 }] {
        block_on(client.backend.set_adapter_residency("one", residency))?;
        client.load("one", 1)?;
        let told: Vec<_> = client.backend.adapters().iter().map(|status| status.residency).collect();
        ensure!(told == [residency], "{residency:?} was said, and {told:?} is told");
    }
    let stranger = block_on(client.backend.set_adapter_residency("two", Residency::Pinned));
    ensure!(
        stranger.is_err_and(|error| error.kind() == ErrorKind::NotFound),
        "an adapter was pinned that is not there"
    );
    goes_on(&client)
}

fn logprobs(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    let most = fixture.nature.most_logprobs;
    let with = |logprobs| GenerateRequest { logprobs: Some(logprobs), ..asked(fixture, Sampling::default()) };
    let reply = client.ask(with(most))?;
    ensure!(!reply.logprobs.is_empty(), "no log probabilities came");
    for entry in &reply.logprobs {
        ensure!(entry.top.len() == most as usize, "{most} were wanted, and {} came", entry.top.len());
    }
    refused(&client, with(most + 1), "one more log probability than is offered")?;
    goes_on(&client)
}

fn memory(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    match block_on(client.backend.memory()) {
        Err(error) => ensure!(error.kind() == ErrorKind::Unsupported, "it must be unsupported: {error:?}"),
        Ok(report) => ensure!(report.weights == 0, "weights of {} bytes are told, and nobody knows", report.weights),
    }
    Ok(())
}

/// Long enough for a server to keep something of it, where that is told.
fn bypass(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    let asked = request(text(&fixture.kept(600, 3103)), 6);
    let anew = client.anew(&asked)?;
    let shared = client.ask(asked.clone())?;
    ensure!(shared.usage.reused_tokens == 0, "{} tokens of a request that leaves nothing", shared.usage.reused_tokens);
    client.same(&shared, &anew, "shared against bypassed")?;
    client.same(&client.ask(asked.clone())?, &anew, "reused against bypassed")?;
    let again = client.ask(GenerateRequest { prefix_reuse: PrefixReuse::Bypass, ..asked })?;
    if again.usage.reused_tokens != 0 {
        return Err(Failure::new(format!("a request that bypasses reused {} tokens", again.usage.reused_tokens)));
    }
    client.same(&again, &anew, "bypassed beside a kept past")
}
