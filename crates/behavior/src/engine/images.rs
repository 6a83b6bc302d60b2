//! Images: encoded in bounded parts, placed by position, seen by what follows.

use std::sync::Arc;

use consort_core::{ErrorKind, ImageProgress, ImageSource, PatchGrid, Position, Want};

use super::List;
use crate::case::{Failure, Outcome, ensure};
use crate::fixture::{EngineFixture, Need};
use crate::picture::Picture;
use crate::rig::{Rig, differ};
use crate::script::Script;

pub(super) fn add(list: &mut List) {
    let needs = [Need::Logits, Need::Images];
    list.add("an_image_is_seen", &needs, seen);
    list.add("an_image_is_seen_by_later_text", &needs, seen_later);
    list.add("an_image_takes_its_tokens", &needs, tokens);
    list.add("an_image_that_was_dropped_is_missed", &needs, dropped);
    list.add("the_same_image_twice", &needs, same_twice);
    list.add("one_handle_for_two_sequences", &[Need::Logits, Need::Images, Need::TwoSequences], shared_handle);
    list.add("two_images_in_one_prompt", &needs, two_images);
    list.add("the_order_of_two_images_matters", &needs, order);
    list.add("an_image_that_is_no_square", &needs, not_square);
    list.add("an_image_in_chunks", &needs, chunks);
    list.add("an_image_token_by_token", &needs, token_by_token);
    list.add("an_image_at_the_beginning", &needs, at_the_beginning);
    list.add("rows_and_columns_matter", &[Need::Logits, Need::Images, Need::Positions], rows_matter);
    list.add("encoding_never_stalls_a_sequence", &needs, never_stalls);
    list.add("two_images_are_encoded_in_turns", &needs, in_turns);
    list.add("a_cancelled_image_gives_memory_back", &[Need::Images], cancelled);
    list.add("a_dropped_image_gives_memory_back", &needs, handle_dropped);
    list.add("an_image_job_that_never_was", &[Need::Images], unknown_job);
    for (index, (what, _, _)) in hostile_images().into_iter().enumerate() {
        list.add(format!("an_image_with_{what}_is_refused"), &needs, move |fixture| hostile(fixture, index));
    }
}

fn picture_and_text(fixture: &EngineFixture, rig: &mut Rig<'_>, image: &Arc<dyn ImageSource>) -> Outcome<Script> {
    let handle = rig.encode(image)?;
    Ok(Script::text(&fixture.prompt(3, 300)).then_image(&handle).then_text(&fixture.prompt(7, 301)))
}

fn seen(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let mut rows = Vec::new();
    let blank = Picture::blank(fixture.images[0].grid());
    for image in [&fixture.images[0], &fixture.images[1], &blank] {
        let script = picture_and_text(fixture, &mut rig, image)?;
        rows.push(rig.fresh(&script)?);
    }
    differ(&rows[0], &rows[1], "two images of one size")?;
    differ(&rows[0], &rows[2], "an image against a blank one")?;
    differ(&rows[1], &rows[2], "the other image against a blank one")
}

fn seen_later(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let mut rows = Vec::new();
    for image in &fixture.images[..2] {
        let script = picture_and_text(fixture, &mut rig, image)?.then_text(&fixture.prompt(60, 302));
        rows.push(rig.fresh(&script)?);
    }
    // Sixty-seven tokens later a small random model has forgotten much, but not all.
    let distance = crate::rig::distance(&rows[0], &rows[1]);
    let noise = 10.0 * fixture.capability.logit_tolerance.min(1e-4);
    ensure!(distance > noise, "after 67 more tokens two images make a difference of only {distance}");
    Ok(())
}

fn tokens(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    for image in &fixture.images {
        let handle = rig.encode(image)?;
        ensure!(handle.tokens() == image.grid().tokens(), "an image takes other tokens than its grid says");
        ensure!(handle.tokens() > 0, "an image takes no tokens");
        let seq = rig.open()?;
        rig.read(seq, &Script::default().then_image(&handle))?;
        if fixture.capability.park {
            let tokens = rig.engine.park(seq)?.tokens();
            ensure!(tokens == handle.tokens(), "an image of {} tokens left a past of {tokens}", handle.tokens());
        }
        rig.engine.release(seq);
    }
    Ok(())
}

fn dropped(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let script = picture_and_text(fixture, &mut rig, &fixture.images[0])?;
    let with = rig.fresh(&script)?;
    let text = [fixture.prompt(3, 300), fixture.prompt(7, 301)].concat();
    let without = rig.fresh_text(&text)?;
    differ(&with, &without, "a prompt with and without its image")?;
    // Text in the image's place is not the image either.
    let handle = rig.image(0)?;
    let stand_in = vec![fixture.tokens.start; handle.tokens()];
    let tokens = [fixture.prompt(3, 300), stand_in, fixture.prompt(7, 301)].concat();
    let replaced = Script::text(&tokens).with_positions(script.positions().to_vec());
    let replaced = rig.fresh(&replaced)?;
    differ(&with, &replaced, "an image against text in its place")
}

fn same_twice(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let one = picture_and_text(fixture, &mut rig, &fixture.images[0])?;
    let one = rig.fresh(&one)?;
    let two = picture_and_text(fixture, &mut rig, &fixture.images[0])?;
    let two = rig.fresh(&two)?;
    rig.same_steps(&one, &two, "the same image, encoded twice")
}

fn shared_handle(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let script = picture_and_text(fixture, &mut rig, &fixture.images[0])?;
    let (a, b) = (rig.open()?, rig.open()?);
    let one = rig.read(a, &script)?;
    let two = rig.read(b, &script)?;
    rig.same_steps(&one, &two, "one image in two sequences")
}

fn two_images(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let (first, second, third) = (rig.image(0)?, rig.image(1)?, rig.image(2)?);
    let pair = |other| {
        Script::text(&fixture.prompt(2, 310))
            .then_image(&first)
            .then_text(&fixture.prompt(4, 311))
            .then_image(other)
            .then_text(&fixture.prompt(5, 312))
    };
    let (one, two, three) = (rig.fresh(&pair(&second))?, rig.fresh(&pair(&third))?, rig.fresh(&pair(&first))?);
    differ(&one, &two, "another second image")?;
    differ(&one, &three, "the first image again as the second")
}

fn order(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let (first, second) = (rig.image(0)?, rig.image(1)?);
    let ordered = |a, b| Script::default().then_image(a).then_image(b).then_text(&fixture.prompt(4, 315));
    let (one, two) = (rig.fresh(&ordered(&first, &second))?, rig.fresh(&ordered(&second, &first))?);
    differ(&one, &two, "two images in the other order")
}

fn not_square(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let grid = fixture.images[2].grid();
    ensure!(grid.h != grid.w, "the fixture's third image must not be square");
    let script = picture_and_text(fixture, &mut rig, &fixture.images[2])?;
    let row = rig.fresh(&script)?;
    // The same patches in a grid that is turned are another picture.
    let turned = PatchGrid { h: grid.w, w: grid.h, ..grid };
    let turned: Arc<dyn ImageSource> = Arc::new(Picture::new(turned, fixture.images[2].patches()?));
    let script = picture_and_text(fixture, &mut rig, &turned)?;
    let other = rig.fresh(&script)?;
    differ(&row, &other, "a grid that was turned")
}

fn chunks(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    for index in 0..3 {
        let script = picture_and_text(fixture, &mut rig, &fixture.images[index])?;
        let whole = rig.fresh(&script)?;
        for most in [2, 3] {
            let seq = rig.open()?;
            let row = rig.read_range(seq, &script, 0..script.len(), most)?;
            rig.engine.release(seq);
            rig.same_tokens(&row, &whole, &format!("image {index} in chunks of {most}"))?;
        }
    }
    Ok(())
}

fn token_by_token(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let script = picture_and_text(fixture, &mut rig, &fixture.images[2])?;
    let whole = rig.fresh(&script)?;
    let seq = rig.open()?;
    let row = rig.read_range(seq, &script, 0..script.len(), 1)?;
    rig.same_tokens(&row, &whole, "an image token by token")
}

fn at_the_beginning(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let mut rows = Vec::new();
    for index in [0, 1] {
        let image = rig.image(index)?;
        let seq = rig.open()?;
        let row = rig.step(Script::default().then_image(&image).chunk().step(seq, Want::Last))?;
        rows.push(rig.one_row(row)?);
    }
    differ(&rows[0], &rows[1], "two images at the beginning")
}

fn rows_matter(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let image = rig.encode(&Picture::seeded(8, 8, 5))?;
    let script = Script::text(&fixture.prompt(3, 320)).then_image(&image).then_text(&fixture.prompt(2, 321));
    let right = rig.fresh(&script)?;
    let flat = (0..script.len()).map(|index| Position::text(index as u32)).collect();
    let flat = rig.fresh(&script.with_positions(flat))?;
    let distance = crate::rig::distance(&right, &flat);
    ensure!(
        distance > 20.0 * fixture.capability.logit_tolerance.min(1e-4) && distance > 1e-3,
        "counting an image's positions one by one makes a difference of only {distance}"
    );
    Ok(())
}

fn never_stalls(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let large = Picture::seeded(12, 12, 6);
    let tokens = fixture.prompt(40, 325);
    let seq = rig.open()?;
    let mut job = rig.engine.begin_image(Arc::clone(&large))?;
    let mut rows = Vec::new();
    let mut parts = 0_usize;
    let handle = loop {
        // One token of a running voice between any two parts of the image.
        if let Some(token) = tokens.get(rows.len()) {
            rows.push(rig.read(seq, &Script::at(rows.len() as u32).then_text(&[*token]))?);
        }
        parts += 1;
        match rig.engine.advance_image(job)? {
            ImageProgress::Pending(again) => job = again,
            ImageProgress::Ready(handle) => break handle,
        }
        ensure!(parts < 1_000_000, "the image is never ready");
    };
    let mut alone = Rig::new(fixture)?;
    let other = alone.open()?;
    for (index, row) in rows.iter().enumerate() {
        let expected = alone.read(other, &Script::at(index as u32).then_text(&tokens[index..=index]))?;
        rig.same_steps(row, &expected, "a voice beside an image")?;
    }
    let undisturbed = alone.encode(&large)?;
    let script = |handle| Script::default().then_image(handle).then_text(&fixture.prompt(2, 326));
    let (one, two) = (rig.fresh(&script(&handle))?, alone.fresh(&script(&undisturbed))?);
    rig.same_steps(&one, &two, "an image that was encoded beside a voice")
}

fn in_turns(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let mut jobs = Vec::new();
    for image in &fixture.images[..2] {
        jobs.push(Some(rig.engine.begin_image(Arc::clone(image))?));
    }
    let mut handles = [None, None];
    for _ in 0..1_000_000 {
        for (slot, handle) in jobs.iter_mut().zip(&mut handles) {
            if let Some(job) = slot.take() {
                match rig.engine.advance_image(job)? {
                    ImageProgress::Pending(job) => *slot = Some(job),
                    ImageProgress::Ready(ready) => *handle = Some(ready),
                }
            }
        }
        if jobs.iter().all(Option::is_none) {
            break;
        }
    }
    for (index, handle) in handles.into_iter().enumerate() {
        let handle = handle.ok_or("an image is never ready")?;
        let again = rig.image(index)?;
        let script = |handle| Script::default().then_image(handle).then_text(&fixture.prompt(2, 330));
        let (one, two) = (rig.fresh(&script(&handle))?, rig.fresh(&script(&again))?);
        rig.same_steps(&one, &two, "an image that was encoded in turns with another")?;
    }
    Ok(())
}

fn cancelled(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let start = rig.engine.memory().images;
    for parts in 0..3 {
        let mut job = rig.engine.begin_image(Picture::seeded(12, 12, 7))?;
        let mut ready = false;
        for _ in 0..parts {
            match rig.engine.advance_image(job)? {
                ImageProgress::Pending(again) => job = again,
                ImageProgress::Ready(_) => {
                    ready = true;
                    job = consort_core::ImageJob(u64::MAX);
                    break;
                }
            }
        }
        let id = job.0;
        rig.engine.cancel_image(job);
        if !ready {
            let gone = rig.engine.advance_image(consort_core::ImageJob(id));
            ensure!(gone.is_err(), "a cancelled image can be advanced");
        }
        let seq = rig.open()?;
        rig.step(Script::text(&fixture.prompt(1, 335)).chunk().step(seq, Want::Nothing))?;
        rig.engine.release(seq);
        let now = rig.engine.memory().images;
        ensure!(now == start, "a cancelled image still holds {now} bytes ({start} at the start)");
    }
    Ok(())
}

fn handle_dropped(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    rig.fresh_text(&fixture.prompt(1, 336))?;
    let start = rig.engine.memory().images;
    let handle = rig.image(0)?;
    let held = rig.engine.memory().images;
    ensure!(held > start, "an encoded image takes no memory");
    let clone = handle.clone();
    drop(handle);
    rig.fresh(&Script::default().then_image(&clone))?;
    ensure!(rig.engine.memory().images == held, "an image is gone while somebody holds it");
    drop(clone);
    rig.fresh_text(&fixture.prompt(1, 336))?;
    let now = rig.engine.memory().images;
    ensure!(now == start, "a dropped image still holds {now} bytes ({start} at the start)");
    Ok(())
}

fn unknown_job(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    rig.engine.cancel_image(consort_core::ImageJob(u64::MAX));
    match rig.engine.advance_image(consort_core::ImageJob(u64::MAX)) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Failure::from(error).during("an unknown image job is not found")),
        Ok(_) => Err("an image job that never was can be advanced".into()),
    }
}

/// What is wrong with a hostile image, its grid and its values.
fn hostile_images() -> Vec<(&'static str, PatchGrid, Vec<f32>)> {
    let grid = |t, h, w, merge| PatchGrid { t, h, w, merge };
    let patch = Picture::PATCH;
    vec![
        ("no_patches", grid(1, 0, 0, 2), vec![]),
        ("no_rows", grid(1, 0, 4, 2), vec![]),
        ("too_few_values", grid(1, 4, 4, 2), vec![0.0; 16 * patch - 1]),
        ("too_many_values", grid(1, 4, 4, 2), vec![0.0; 17 * patch]),
        ("no_values", grid(1, 4, 4, 2), vec![]),
        ("rows_that_do_not_merge", grid(1, 3, 4, 2), vec![0.0; 12 * patch]),
        ("columns_that_do_not_merge", grid(1, 4, 5, 2), vec![0.0; 20 * patch]),
        ("another_merge", grid(1, 4, 4, 4), vec![0.0; 16 * patch]),
        ("no_merge", grid(1, 4, 4, 0), vec![0.0; 16 * patch]),
        ("a_grid_beyond_all_memory", grid(u32::MAX, u32::MAX, u32::MAX, 2), vec![0.0; patch]),
        ("a_value_that_is_no_number", grid(1, 2, 2, 2), [vec![f32::NAN], vec![0.0; 4 * patch - 1]].concat()),
        ("an_infinite_value", grid(1, 2, 2, 2), [vec![f32::INFINITY], vec![0.0; 4 * patch - 1]].concat()),
    ]
}

fn hostile(fixture: &EngineFixture, index: usize) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let (what, grid, values) = hostile_images().swap_remove(index);
    let image: Arc<dyn ImageSource> = Arc::new(Picture::new(grid, values));
    match rig.encode_hostile(&image) {
        Err(error) if error.kind() == ErrorKind::InvalidImage => {}
        Err(error) => return Err(Failure::from(error).during(&format!("{what} must be an invalid image"))),
        Ok(()) => return Err(format!("an image with {what} was encoded").into()),
    }
    let script = picture_and_text(fixture, &mut rig, &fixture.images[0])?;
    rig.fresh(&script).map(|_| ()).map_err(|failure| failure.during("after a hostile image"))
}
