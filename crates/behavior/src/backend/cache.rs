//! The prefix cache changes the time and nothing else.

use consort_core::{GenerateRequest, PrefixReuse};

use super::client::{Client, collect, request, text};
use super::{BackendFixture, List, Need};
use crate::case::{Outcome, ensure};

pub(super) fn add(list: &mut List) {
    let told = [Need::Reuse];
    list.add("the_same_prompt_again_is_reused", &told, again);
    list.add("a_prompt_that_goes_on_is_reused", &told, goes_on);
    list.add("cached_is_uncached", &[], cached_is_uncached);
    list.add("a_prompt_that_parts_ways_is_not_mixed_up", &[], parts_ways);
    list.add("bypassing_leaves_nothing", &told, bypass);
    list.add("the_cache_is_shared_by_concurrent_requests", &[], concurrent);
    list.add("many_pasts_are_evicted_and_nothing_breaks", &[], many);
}

fn again(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    let asked = request(text(&fixture.kept(80, 900)), 8);
    let first = client.ask(asked.clone())?;
    client.settle()?;
    let second = client.ask(asked)?;
    ensure!(first.usage.reused_tokens == 0, "a fresh backend reused {} tokens", first.usage.reused_tokens);
    ensure!(second.usage.reused_tokens > 0, "the same prompt again reused nothing");
    let metrics = client.settle()?;
    ensure!(metrics.reused_tokens == second.usage.reused_tokens as u64, "{metrics:?}");
    ensure!(!fixture.nature.counts_work || metrics.cached_pasts > 0, "nothing is kept");
    Ok(())
}

fn goes_on(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    let whole = fixture.kept(120, 901);
    let read = whole.len() - 40;
    client.ask(request(text(&whole[..read]), 4))?;
    client.settle()?;
    let asked = request(text(&whole), 8);
    let reply = client.ask(asked.clone())?;
    // Twenty less than all of it, or what whole blocks of it there are.
    let least = fixture.nature.pasts.block().unwrap_or(60);
    ensure!(
        reply.usage.reused_tokens >= least,
        "of {read} tokens that were read only {} were reused",
        reply.usage.reused_tokens
    );
    let anew = client.anew(&asked)?;
    client.same(&reply, &anew, "a prompt that goes on, cached against anew")
}

fn cached_is_uncached(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    let room = fixture.nature.pasts.room();
    let lengths = [1, 2, 3, 17, 63, 64, 65, 66, 130, room.max(131)];
    for (index, length) in
        lengths.into_iter().enumerate().filter(|(_, length)| *length >= fixture.nature.shortest_prompt)
    {
        let asked = request(text(&fixture.engine.prompt(length, 910 + index as u64)), 8);
        let anew = client.anew(&asked)?;
        for round in 0..3 {
            let reply = client.ask(asked.clone())?;
            client.same(&reply, &anew, &format!("a prompt of {length}, round {round}, against anew"))?;
            if round == 1 {
                client.settle()?;
            }
        }
    }
    Ok(())
}

/// Prompts that share beginnings of many lengths, in an order in which each finds what others left.
fn parts_ways(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    let room = fixture.nature.pasts.room();
    let trunk = fixture.kept(100, 920);
    for (index, shared) in [100, 0, 1, 50, 51, 99, 64, 63, 100, 20].into_iter().enumerate() {
        let shared = if shared < 50 { shared } else { shared + room };
        let tail = fixture.engine.prompt(25, 921 + index as u64);
        let asked = request(text(&[&trunk[..shared], &tail].concat()), 6);
        let reply = client.ask(asked.clone())?;
        ensure!(
            reply.usage.reused_tokens <= shared,
            "{} tokens were reused of {shared} shared",
            reply.usage.reused_tokens
        );
        let anew = client.anew(&asked)?;
        client.same(&reply, &anew, &format!("a prompt that shares {shared} tokens, against anew"))?;
    }
    Ok(())
}

fn bypass(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    let asked = request(text(&fixture.kept(70, 930)), 4);
    client.anew(&asked)?;
    let metrics = client.settle()?;
    ensure!(metrics.cached_pasts == 0, "a request that bypasses the cache left {} pasts", metrics.cached_pasts);
    let shared = client.ask(asked)?;
    ensure!(shared.usage.reused_tokens == 0, "something was left to reuse");
    Ok(())
}

fn concurrent(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    let scene = fixture.kept(90, 940);
    let asked: Vec<_> = (0..5)
        .map(|index| request(text(&[scene.clone(), fixture.engine.prompt(6, 941 + index)].concat()), 10))
        .collect();
    let expected = asked.iter().map(|one| client.anew(one)).collect::<Outcome<Vec<_>>>()?;
    for round in 0..2 {
        let streams = asked.iter().map(|one| client.start(one.clone())).collect::<Outcome<Vec<_>>>()?;
        for (index, (stream, expected)) in streams.into_iter().zip(&expected).enumerate() {
            let reply = collect(stream)?;
            client.same(&reply, expected, &format!("round {round}, persona {index} of one room, against anew"))?;
        }
    }
    Ok(())
}

fn many(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    for seed in 0..40 {
        client.ask(GenerateRequest {
            prefix_reuse: PrefixReuse::Shared,
            ..request(text(&fixture.engine.prompt(40, 950 + seed)), 1)
        })?;
    }
    for seed in [0, 20, 39] {
        let asked = request(text(&fixture.engine.prompt(40, 950 + seed)), 6);
        let reply = client.ask(asked.clone())?;
        let anew = client.anew(&asked)?;
        client.same(&reply, &anew, "one of forty, against anew")?;
    }
    Ok(())
}
