//! Images: bounded encoding, ranges of tokens, handles of another engine.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::sync::Arc;

use common::*;
use consort_core::*;
use consort_native::{NativeConfig, NativeEngine};

/// Positions of an image of `rows` × `columns` tokens that begins at `start`.
fn grid_positions(start: u32, rows: u32, columns: u32) -> Vec<Position> {
    let place = |row: u32| (0..columns).map(move |column| Position { t: start, h: start + row, w: start + column });
    (0..rows).flat_map(place).collect()
}

#[test]
fn an_image_in_parts_is_the_image_and_changes_what_follows() {
    let mut engine = engine();
    let image = encode(&mut engine, picture(6, 4, 1));
    assert_eq!(image.tokens(), 6);
    assert_eq!(engine.image_embeddings(&image).unwrap().len(), 6 * 32);
    let other = encode(&mut engine, picture(6, 4, 2));
    assert_eq!(engine.memory().images, 2 * 6 * 32 * 4);
    let positions = grid_positions(0, 3, 2);
    let read = |engine: &mut NativeEngine, image: &ImageHandle, cuts: &[usize]| {
        let seq = open(engine);
        for cut in cuts.windows(2) {
            let tokens = cut[0]..cut[1];
            let positions = &positions[tokens.clone()];
            let step = Step { seq, input: StepInput::Image { image, tokens }, positions, want: Want::Nothing };
            assert!(matches!(submit(engine, &[step])[..], [StepOutcome::Done(StepOutput::Nothing)]));
        }
        let step = Step { seq, input: StepInput::Tokens(&[7]), positions: &[Position::text(3)], want: Want::Last };
        let row = logits(submit(engine, &[step]).pop().unwrap());
        engine.release(seq);
        row
    };
    let whole = read(&mut engine, &image, &[0, 6]);
    assert_eq!(read(&mut engine, &image, &[0, 1, 4, 6]), whole);
    assert_ne!(read(&mut engine, &other, &[0, 6]), whole);
    drop((image, other));
    assert_eq!(engine.memory().images, 0);
}

#[test]
fn the_tower_is_the_same_on_several_threads_and_in_several_parts() {
    let mut one = engine();
    let mut two = NativeEngine::load(NativeConfig { threads: std::num::NonZeroUsize::new(2), ..config() }).unwrap();
    // 1,600 patches: more than are worked on at once.
    let image = encode(&mut one, picture(40, 40, 3));
    let again = encode(&mut two, picture(40, 40, 3));
    assert_eq!(one.image_embeddings(&image).unwrap(), two.image_embeddings(&again).unwrap());
    assert!(one.image_embeddings(&image).unwrap().iter().all(|x| x.is_finite()));
    // Two frames are two pictures, as long as their patches are.
    let frames = Picture { grid: PatchGrid { t: 2, h: 4, w: 6, merge: 2 }, patch: 4, seed: 3 };
    assert_eq!(encode(&mut one, Arc::new(frames)).tokens(), 12);
}

#[test]
fn what_does_not_fit_is_refused() {
    let mut engine = NativeEngine::load(NativeConfig { max_image_patches: 64, ..config() }).unwrap();
    let mut refuse = |grid: PatchGrid, patch: usize| {
        engine.begin_image(Arc::new(Picture { grid, patch, seed: 0 })).unwrap_err().kind()
    };
    for (grid, patch) in [
        (PatchGrid { t: 1, h: 10, w: 10, merge: 2 }, 4),
        (PatchGrid { t: 1, h: 0, w: 2, merge: 2 }, 4),
        (PatchGrid { t: 0, h: 2, w: 2, merge: 2 }, 4),
        (PatchGrid { t: 1, h: 3, w: 2, merge: 2 }, 4),
        (PatchGrid { t: 1, h: 2, w: 2, merge: 1 }, 4),
        (PatchGrid { t: 1, h: 2, w: 2, merge: 2 }, 16),
        (PatchGrid { t: u32::MAX, h: u32::MAX - 1, w: u32::MAX - 1, merge: 2 }, 0),
    ] {
        assert_eq!(refuse(grid, patch), ErrorKind::InvalidImage, "{grid:?}");
    }
    let mut other = common::engine();
    let stranger = encode(&mut other, picture(2, 2, 0));
    let image = encode(&mut engine, picture(2, 2, 0));
    let (one, two, three) = (open(&mut engine), open(&mut engine), open(&mut engine));
    let positions = at(0, 1);
    let step = |seq, image, tokens| Step {
        seq,
        input: StepInput::Image { image, tokens },
        positions: &positions,
        want: Want::Last,
    };
    let outcomes =
        submit(&mut engine, &[step(one, &stranger, 0..1), step(two, &image, 1..2), step(three, &image, 0..1)]);
    assert!(matches!(&outcomes[..], [StepOutcome::Refused(_), StepOutcome::Refused(_), StepOutcome::Done(_)]));

    let job = engine.begin_image(picture(2, 2, 0)).unwrap();
    let gone = ImageJob(job.0);
    engine.cancel_image(job);
    assert_eq!(engine.advance_image(gone).unwrap_err().kind(), ErrorKind::NotFound);

    let mut blind = NativeEngine::load(NativeConfig { vision: None, ..config() }).unwrap();
    assert!(!blind.capability().image_input);
    assert_eq!(blind.begin_image(picture(2, 2, 0)).unwrap_err().kind(), ErrorKind::Unsupported);
}
