//! Rooms: personas with activated adapters over one scene, which is read once for all of them.

use consort_core::{
    AdapterBinding, AdapterKey, AdapterSet, AdapterUse, GenerateRequest, PromptPart, SpecialTokens, TokenId,
};

use super::client::{Client, Reply, adapter, collect, follows, request, text};
use super::{BackendFixture, List, Need};
use crate::activation::persona;
use crate::case::{Outcome, ensure};
use crate::rig::Rig;

const PERSONAS: usize = 8;
const REPLY: u32 = 8;

pub(super) fn add(list: &mut List) {
    let needs = [Need::Activated, Need::Pasts];
    let room = [Need::Activated, Need::Pasts, Need::EightSequences];
    list.add("a_room_of_eight_reads_its_scene_once", &room, |fixture| room_of_eight(fixture, Scene::Text));
    let seen = [Need::Activated, Need::Pasts, Need::EightSequences, Need::Images];
    list.add("a_room_of_eight_sees_its_picture_once", &seen, |fixture| room_of_eight(fixture, Scene::Picture));
    list.add("personas_that_come_one_after_another", &needs, one_after_another);
    list.add("the_base_model_shares_a_room", &needs, with_the_base);
    list.add("ordinary_adapters_share_nothing", &needs, ordinary);
    list.add("a_persona_that_is_not_invoked", &[Need::Activated], not_invoked);
    list.add("an_activated_adapter_is_the_engines_own", &[Need::Activated], engines_own);
    list.add("a_persona_with_new_weights_keeps_the_scene", &[Need::Activated, Need::Pasts, Need::HotSwap], new_weights);
    list.add("a_scene_outlives_its_personas", &[Need::Activated, Need::Pasts, Need::HotSwap], scene_outlives);
    list.add("personas_over_an_ordinary_adapter", &needs, over_an_ordinary_one);
    list.add("a_persona_in_a_conversation", &[Need::Activated, Need::Pasts, Need::Text], conversation);
}

/// The tokens that invoke every persona: what tells them apart is the adapter alone.
fn invocation(fixture: &BackendFixture) -> Vec<TokenId> {
    fixture.engine.prompt(2, 2000)
}

/// `length` tokens in which the invocation does not occur.
fn scene(fixture: &BackendFixture, length: usize, seed: u64) -> Vec<TokenId> {
    let first = invocation(fixture)[0];
    let other = fixture.engine.tokens.clone().find(|token| *token != first).unwrap_or(first);
    fixture.engine.prompt(length, seed).into_iter().map(|token| if token == first { other } else { token }).collect()
}

fn load(client: &Client<'_>, id: &str, number: usize) -> Outcome {
    let files = persona(&client.fixture.engine.adapters, number, &invocation(client.fixture))?;
    let info = client.load_files(id, &files)?;
    ensure!(
        info.invocation_tokens == Some(invocation(client.fixture)),
        "the backend tells {:?}",
        info.invocation_tokens
    );
    Ok(())
}

fn name(number: usize) -> String {
    format!("persona-{number}")
}

fn said_by(number: usize, parts: &[PromptPart]) -> GenerateRequest {
    GenerateRequest { adapters: adapter(&name(number), 1.0), ..request(parts.to_vec(), REPLY) }
}

/// The same tokens and, where the engine promises the same bits, the same bits.
fn same(client: &Client<'_>, one: &Reply, other: &Reply, what: &str) -> Outcome {
    client.same(one, other, what)?;
    let bits = |reply: &Reply| -> Vec<u32> {
        let both = |logprobs: &consort_core::PositionLogprobs| {
            let top = logprobs.top.iter().map(|top| top.logprob.to_bits());
            std::iter::once(logprobs.chosen.logprob.to_bits()).chain(top).collect::<Vec<_>>()
        };
        reply.logprobs.iter().flat_map(both).collect()
    };
    let invariant = client.fixture.capability.batch_invariant;
    ensure!(!invariant || bits(one) == bits(other), "{what}: the log probabilities differ in their bits");
    Ok(())
}

fn apart(replies: &[Reply]) -> Outcome {
    for (index, one) in replies.iter().enumerate() {
        for other in &replies[..index] {
            ensure!(
                one.ids != other.ids || one.logprobs != other.logprobs,
                "persona {index} says what another says: this case would not notice a mix-up"
            );
        }
    }
    Ok(())
}

#[derive(Clone, Copy)]
enum Scene {
    Text,
    Picture,
}

/// Eight personas come at once. All read the same tokens; their adapters alone differ.
fn room_of_eight(fixture: &BackendFixture, kind: Scene) -> Outcome {
    let client = Client::new(fixture)?;
    for number in 0..PERSONAS {
        load(&client, &name(number), number)?;
    }
    let own = [invocation(fixture), scene(fixture, 5, 2001)].concat();
    let mut parts = text(&scene(fixture, 150, 2002));
    let mut shared = 150;
    if let Scene::Picture = kind {
        let image = &fixture.engine.images[0];
        shared += image.grid().tokens() + 20;
        parts.push(PromptPart::Image(std::sync::Arc::clone(image)));
        parts.push(PromptPart::Tokens(scene(fixture, 20, 2003)));
    }
    parts.push(PromptPart::Tokens(own.clone()));

    let before = client.settle()?;
    let streams = (0..PERSONAS).map(|number| client.start(said_by(number, &parts))).collect::<Outcome<Vec<_>>>()?;
    let replies = streams.into_iter().map(collect).collect::<Outcome<Vec<_>>>()?;
    let after = client.settle()?;
    // What was read: the scene, and of each persona its own.
    let read = after.prefilled_tokens - before.prefilled_tokens;
    let expected = shared + PERSONAS * own.len();
    ensure!(read == expected as u64, "{read} tokens were read, the scene once and the personas' own are {expected}");
    let reused = after.reused_tokens - before.reused_tokens;
    ensure!(reused == ((PERSONAS - 1) * shared) as u64, "{reused} tokens were reused, of a scene of {shared}");
    if let Scene::Picture = kind {
        let encoded = after.images_encoded - before.images_encoded;
        ensure!(encoded == 1, "the picture was encoded {encoded} times");
    }
    apart(&replies)?;
    for (number, reply) in replies.iter().enumerate() {
        let anew = client.anew(&said_by(number, &parts))?;
        same(&client, reply, &anew, &format!("persona {number} in the room against alone and uncached"))?;
    }
    Ok(())
}

/// The second persona already finds what the first one left.
fn one_after_another(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    let prompt = [scene(fixture, 90, 2010), invocation(fixture), scene(fixture, 3, 2011)].concat();
    let mut replies = Vec::new();
    for number in 0..4 {
        load(&client, &name(number), number)?;
        let asked = said_by(number, &text(&prompt));
        let reply = client.ask(asked.clone())?;
        client.settle()?;
        let expected = if number == 0 { 0 } else { 90 };
        let reused = reply.usage.reused_tokens;
        ensure!(reused == expected, "persona {number} reused {reused} tokens of a scene of 90");
        same(&client, &reply, &client.anew(&asked)?, &format!("persona {number}, cached against anew"))?;
        replies.push(reply);
    }
    apart(&replies)?;
    // Again, each finds its own prompt.
    for (number, before) in replies.iter().enumerate() {
        let reply = client.ask(said_by(number, &text(&prompt)))?;
        ensure!(reply.usage.reused_tokens > 90, "persona {number} reused {} tokens", reply.usage.reused_tokens);
        same(&client, &reply, before, &format!("persona {number}, the second time"))?;
    }
    Ok(())
}

fn with_the_base(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    load(&client, &name(0), 0)?;
    let prompt = [scene(fixture, 80, 2020), invocation(fixture), scene(fixture, 4, 2021)].concat();
    let base = request(text(&prompt), REPLY);
    let first = client.ask(said_by(0, &text(&prompt)))?;
    client.settle()?;
    let reply = client.ask(base.clone())?;
    ensure!(reply.usage.reused_tokens == 80, "the base model reused {} tokens of 80", reply.usage.reused_tokens);
    apart(&[first, reply.clone()])?;
    same(&client, &reply, &client.anew(&base)?, "the base model on a persona's scene against anew")
}

/// An ordinary adapter touches the first token already.
fn ordinary(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    load(&client, &name(0), 0)?;
    client.load("ordinary", 0)?;
    client.load("other", 1)?;
    let prompt = text(&[scene(fixture, 80, 2030), invocation(fixture), scene(fixture, 4, 2031)].concat());
    client.ask(said_by(0, &prompt))?;
    client.settle()?;
    for id in ["ordinary", "other"] {
        let asked = GenerateRequest { adapters: adapter(id, 1.0), ..request(prompt.clone(), REPLY) };
        let reply = client.ask(asked.clone())?;
        client.settle()?;
        ensure!(reply.usage.reused_tokens == 0, "{id} reused {} tokens of others", reply.usage.reused_tokens);
        same(&client, &reply, &client.anew(&asked)?, &format!("{id} in a room against anew"))?;
    }
    Ok(())
}

/// Without its invocation an activated adapter is not in effect, and says so by being the base model.
fn not_invoked(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    load(&client, &name(0), 0)?;
    // Its beginning at the end, and its end at the beginning.
    let tokens = [&invocation(fixture)[1..], &scene(fixture, 40, 2040), &invocation(fixture)[..1]].concat();
    let prompt = text(&tokens);
    let reply = client.anew(&said_by(0, &prompt))?;
    same(
        &client,
        &reply,
        &client.anew(&request(prompt, REPLY))?,
        "a persona that is not invoked against the base model",
    )
}

/// The last place counts, and what is generated is touched.
fn engines_own(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    load(&client, &name(0), 0)?;
    let calls = invocation(fixture);
    let tokens =
        [scene(fixture, 10, 2050), calls.clone(), scene(fixture, 12, 2051), calls, scene(fixture, 6, 2052)].concat();
    let reply = client.ask(said_by(0, &text(&tokens)))?;
    let mut rig = Rig::new(&fixture.engine)?;
    let key: AdapterKey = rig.load("own", &persona(&fixture.engine.adapters, 0, &invocation(fixture))?)?.key;
    let adapters = AdapterSet::new([AdapterBinding { key, scale: 1.0, active_from: 24 }])?;
    follows(fixture, &mut rig, &adapters, &text(&tokens), (&reply, REPLY as usize), "an invoked persona")
}

fn new_weights(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    load(&client, "one", 0)?;
    let prompt = text(&[scene(fixture, 70, 2060), invocation(fixture), scene(fixture, 4, 2061)].concat());
    let asked = GenerateRequest { adapters: adapter("one", 1.0), ..request(prompt, REPLY) };
    let old = client.ask(asked.clone())?;
    client.settle()?;
    load(&client, "one", 1)?;
    let new = client.ask(asked.clone())?;
    ensure!(new.usage.reused_tokens == 70, "of a scene of 70 tokens {} were reused", new.usage.reused_tokens);
    apart(&[old, new.clone()])?;
    same(&client, &new, &client.anew(&asked)?, "new weights on the old scene against anew")
}

fn scene_outlives(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    let prompt = text(&[scene(fixture, 70, 2070), invocation(fixture), scene(fixture, 4, 2071)].concat());
    load(&client, &name(0), 0)?;
    client.ask(said_by(0, &prompt))?;
    client.settle()?;
    consort_core::block_on(client.backend.unload_adapter(&name(0)))?;
    load(&client, &name(1), 1)?;
    let reply = client.ask(said_by(1, &prompt))?;
    ensure!(reply.usage.reused_tokens == 70, "of a scene of 70 tokens {} were reused", reply.usage.reused_tokens);
    same(&client, &reply, &client.anew(&said_by(1, &prompt))?, "on the scene of a persona that left, against anew")
}

/// An ordinary adapter for the whole room, and on it the personas.
fn over_an_ordinary_one(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    client.load("room", 1)?;
    let prompt = text(&[scene(fixture, 60, 2080), invocation(fixture), scene(fixture, 4, 2081)].concat());
    let with = |number: usize, scale: f32| GenerateRequest {
        adapters: vec![AdapterUse { id: "room".into(), scale }, AdapterUse { id: name(number), scale: 1.0 }],
        ..request(prompt.clone(), REPLY)
    };
    let mut replies = Vec::new();
    for (number, scale, expected) in [(0, 1.0, 0), (1, 1.0, 60), (2, 0.5, 0), (3, 0.5, 60)] {
        load(&client, &name(number), number)?;
        let reply = client.ask(with(number, scale))?;
        client.settle()?;
        let reused = reply.usage.reused_tokens;
        ensure!(reused == expected, "persona {number} over a room at {scale} reused {reused} tokens");
        same(&client, &reply, &client.anew(&with(number, scale))?, &format!("persona {number}, cached against anew"))?;
        replies.push(reply);
    }
    apart(&replies)
}

/// A persona that the generation prompt invokes: each of its turns is read by the base model afterwards, so that the
/// others find the whole conversation.
fn conversation(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    let turn = fixture.user_turn.as_ref().ok_or("the fixture has no template")?;
    let rendered = turn("x");
    let prompt = rendered.rfind("<|im_start|>").map(|at| &rendered[at..]).ok_or("the template has no turns")?;
    let calls = client.backend.tokenize(prompt, SpecialTokens::Parse)?;
    for number in 0..2 {
        let files = persona(&fixture.engine.adapters, number, &calls)?;
        client.load_files(&name(number), &files)?;
    }
    let mut messages = Vec::new();
    let mut read = 0;
    for round in 0..4_usize {
        let said =
            ["Who is there, and what do you want of me on such a night as this one?", "Why?", "And then?", "So?"];
        messages.push(consort_core::ChatMessage::text(consort_core::Role::User, said[round]));
        let chat = consort_core::ChatPrompt { messages: messages.clone(), ..consort_core::ChatPrompt::default() };
        let asked = GenerateRequest {
            adapters: adapter(&name(round % 2), 1.0),
            max_tokens: Some(6),
            logprobs: Some(1),
            ..GenerateRequest::new(consort_core::Prompt::Chat(chat))
        };
        let reply = client.ask(asked.clone())?;
        client.settle()?;
        if round > 0 {
            // The prompt before, but for its generation prompt, and the reply to it.
            let reused = reply.usage.reused_tokens;
            ensure!(reused + calls.len() >= read, "of {read} tokens that were read before, {reused} were reused");
        }
        same(&client, &reply, &client.anew(&asked)?, &format!("turn {round} of two personas, cached against anew"))?;
        read = reply.usage.prompt_tokens;
        messages.push(consort_core::ChatMessage::text(consort_core::Role::Assistant, &reply.text));
    }
    Ok(())
}
