//! Images behind a backend: seen, told apart, and not encoded twice.

use std::sync::Arc;

use consort_core::{GenerateRequest, ImageSource, PatchGrid, PromptPart};

use super::client::{Client, adapter, around, collect, engines_own, refusal, request};
use super::{BackendFixture, List, Need};
use crate::case::{Outcome, ensure};
use crate::picture::Picture;

pub(super) fn add(list: &mut List) {
    list.add("images_are_told_apart", &[Need::Images], told_apart);
    list.add("images_are_the_engines_own", &[Need::Images], own);
    for (name, length) in [("another_question", 30), ("another_short_question", 8)] {
        list.add(format!("{name}_about_an_image_reuses_it"), &[Need::Images, Need::Pasts], move |fixture| {
            another_question(fixture, length)
        });
    }
    list.add("an_image_elsewhere_is_not_encoded_again", &[Need::Images], elsewhere);
    list.add("images_never_reach_each_others_cache", &[Need::Images], never_mixed);
    list.add("images_and_adapters_never_mix", &[Need::Images, Need::Adapters], with_adapters);
    list.add("two_images_in_one_prompt", &[Need::Images], two_images);
    list.add("images_at_once", &[Need::Images], at_once);
    list.add("a_hostile_image_is_refused_and_the_neighbour_unharmed", &[Need::Images], hostile);
    list.add("cancelling_while_an_image_is_encoded", &[Need::Images], cancelled);
}

fn question(fixture: &BackendFixture, image: usize, seed: u64) -> GenerateRequest {
    let engine = &fixture.engine;
    request(around(&fixture.engine.prompt(40, 1100), &engine.images[image], &fixture.kept(8, seed)), 10)
}

fn told_apart(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    let one = client.ask(question(fixture, 0, 1101))?;
    let two = client.ask(question(fixture, 1, 1101))?;
    let tokens = 48 + fixture.nature.pasts.room() + fixture.engine.images[0].grid().tokens();
    ensure!(one.usage.prompt_tokens == tokens, "{} prompt tokens, not {tokens}", one.usage.prompt_tokens);
    ensure!(one.logprobs != two.logprobs || one.ids != two.ids, "two images say the same");
    Ok(())
}

/// Through the backend and past it: the same tokens and log probabilities, so the same positions too.
fn own(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    for index in 0..3 {
        let (before, after) = (fixture.engine.prompt(40, 1100), fixture.engine.prompt(8, 1105));
        let parts = around(&before, &fixture.engine.images[index], &after);
        let reply = client.ask(request(parts.clone(), 10))?;
        engines_own(fixture, &parts, &[], (&reply, 10), &format!("image {index}"))?;
    }
    Ok(())
}

fn another_question(fixture: &BackendFixture, length: usize) -> Outcome {
    let client = Client::new(fixture)?;
    let engine = &fixture.engine;
    let about = |seed| request(around(&engine.prompt(40, 1100), &engine.images[0], &engine.prompt(length, seed)), 10);
    client.ask(about(1110))?;
    let before = client.settle()?;
    ensure!(before.images_encoded == 1, "one image was encoded {} times", before.images_encoded);
    let asked = about(1111);
    let second = client.ask(asked.clone())?;
    let after = client.settle()?;
    ensure!(after.images_encoded == 1, "the image was encoded again");
    let shared = 40 + fixture.engine.images[0].grid().tokens();
    ensure!(
        second.usage.reused_tokens == shared,
        "text and image of {shared} tokens are shared, and {} were reused",
        second.usage.reused_tokens
    );
    let anew = client.anew(&asked)?;
    client.same(&second, &anew, "another question, cached against anew")
}

fn elsewhere(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    let engine = &fixture.engine;
    for seed in [1120, 1121, 1122] {
        let parts = around(&engine.prompt(20, seed), &engine.images[0], &engine.prompt(5, seed + 9));
        let asked = request(parts, 6);
        let reply = client.ask(asked.clone())?;
        let anew = client.anew(&asked)?;
        client.same(&reply, &anew, "an image in another prompt, against anew")?;
    }
    let metrics = client.settle()?;
    let counted = !fixture.nature.counts_work || metrics.images_reused > 0;
    ensure!(counted, "an image that was encoded is not reused: {metrics:?}");
    Ok(())
}

/// Pictures of one size, so that only their content tells them apart.
fn never_mixed(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    let expected = [0, 1].map(|image| client.anew(&question(fixture, image, 1130)));
    for round in 0..2 {
        for image in [0, 1] {
            let reply = client.ask(question(fixture, image, 1130))?;
            let expected = expected[image].clone()?;
            client.same(&reply, &expected, &format!("image {image}, round {round}, cached against anew"))?;
            if round == 0 && image == 1 {
                ensure!(
                    reply.usage.reused_tokens <= 40,
                    "an image reused {} tokens of another",
                    reply.usage.reused_tokens
                );
            }
            client.settle()?;
        }
    }
    Ok(())
}

fn with_adapters(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    client.load("one", 0)?;
    client.load("two", 1)?;
    for round in 0..2 {
        for image in [0, 1] {
            for voice in [Vec::new(), adapter("one", 1.0), adapter("two", 1.0)] {
                let asked = GenerateRequest { adapters: voice, ..question(fixture, image, 1140) };
                let reply = client.ask(asked.clone())?;
                let anew = client.anew(&asked)?;
                client.same(&reply, &anew, &format!("image {image}, round {round}, cached against anew"))?;
            }
        }
    }
    Ok(())
}

fn two_images(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    let engine = &fixture.engine;
    let pair = |first: usize, second: usize| {
        let mut parts = around(&engine.prompt(5, 1150), &engine.images[first], &engine.prompt(4, 1151));
        parts.extend([
            PromptPart::Image(Arc::clone(&engine.images[second])),
            PromptPart::Tokens(engine.prompt(6, 1152)),
        ]);
        request(parts, 8)
    };
    let mut seen = Vec::new();
    for (first, second) in [(0, 1), (1, 0), (0, 2), (2, 0), (0, 0)] {
        let asked = pair(first, second);
        let reply = client.ask(asked.clone())?;
        let anew = client.anew(&asked)?;
        client.same(&reply, &anew, &format!("images {first} and {second}, cached against anew"))?;
        ensure!(!seen.contains(&reply.logprobs), "images {first} and {second} say what others say");
        seen.push(reply.logprobs);
    }
    Ok(())
}

fn at_once(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    let requests: Vec<_> = [0, 1, 2, 0].map(|image| question(fixture, image, 1160)).into();
    let alone = Client::new(fixture)?;
    let expected = requests.iter().map(|one| alone.anew(one)).collect::<Outcome<Vec<_>>>()?;
    let streams = requests.iter().map(|one| client.start(one.clone())).collect::<Outcome<Vec<_>>>()?;
    for (index, (stream, expected)) in streams.into_iter().zip(&expected).enumerate() {
        let reply = collect(stream)?;
        client.same(&reply, expected, &format!("question {index} of four at once, against alone"))?;
    }
    Ok(())
}

fn hostile(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    let neighbour = question(fixture, 0, 1170);
    let expected = client.anew(&neighbour)?;
    let stream = client.start(neighbour)?;
    let grid = PatchGrid { t: 1, h: 4, w: 4, merge: 2 };
    for (what, values) in [("too few values", vec![0.0; 100]), ("no values", Vec::new())] {
        let image: Arc<dyn ImageSource> = Arc::new(Picture::broken(grid, values));
        let parts = around(&fixture.engine.prompt(3, 1171), &image, &fixture.engine.prompt(3, 1172));
        refusal(&client, request(parts, 2), consort_core::ErrorKind::InvalidImage, what)?;
    }
    let reply = collect(stream)?;
    client.same(&reply, &expected, "beside hostile images")
}

fn cancelled(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    for seed in 0..4 {
        let parts =
            vec![PromptPart::Image(Picture::seeded(16, 16, seed)), PromptPart::Tokens(fixture.engine.prompt(3, 1180))];
        drop(client.start(request(parts, 4))?);
    }
    let metrics = client.settle()?;
    ensure!(metrics.running + metrics.queued == 0, "something is left: {metrics:?}");
    let asked = question(fixture, 0, 1181);
    let reply = client.ask(asked.clone())?;
    let anew = client.anew(&asked)?;
    client.same(&reply, &anew, "after cancelled images")
}
