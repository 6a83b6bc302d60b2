//! Operations that few engines declare.

use consort_core::{ErrorKind, Pooling, StepOutput, TokenId, Want};

use super::List;
use crate::case::{Outcome, ensure};
use crate::fixture::{EngineFixture, Need};
use crate::rig::{Rig, differ, fails};
use crate::script::Script;

pub(super) fn add(list: &mut List) {
    list.add("a_top_k_is_what_sorting_gives", &[Need::Logits, Need::TopK], top_k);
    list.add("a_top_k_keeps_to_its_mask", &[Need::Logits, Need::TopK], masked_top_k);
    list.add("pooled_states_depend_on_the_text", &[Need::Pooled, Need::Memory], pooled);
    list.add("a_rollback_is_as_if_nothing_was_read", &[Need::Logits, Need::Rollback], rollback);
    list.add("a_rollback_beyond_the_limit", &[Need::Logits, Need::Rollback], far_rollback);
    list.add("a_past_comes_back_from_disk", &[Need::Logits, Need::Park, Need::Snapshot], snapshot);
    list.add("a_damaged_snapshot_is_refused", &[Need::Logits, Need::Park, Need::Snapshot], damaged);
}

/// Tokens and logits, best first; of equal logits the lower token is the better.
fn sorted(row: &[f32]) -> Vec<(TokenId, f32)> {
    let mut pairs: Vec<_> = row.iter().enumerate().map(|(token, logit)| (token as TokenId, *logit)).collect();
    pairs.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    pairs
}

fn ask(rig: &mut Rig<'_>, script: &Script, want: Want<'_>) -> Outcome<StepOutput> {
    let seq = rig.open()?;
    let output = rig.step(script.chunk().step(seq, want));
    rig.engine.release(seq);
    output
}

fn top_k(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let script = Script::text(&fixture.prompt(9, 500));
    let row = rig.fresh(&script)?;
    let expected = sorted(&row);
    for k in [1, 5, row.len(), row.len() + 1] {
        let StepOutput::TopK(top) = ask(&mut rig, &script, Want::TopK { k, mask: None, bias: &[] })? else {
            return Err("a top k was wanted, and something else came".into());
        };
        ensure!(top.len() == k.min(row.len()), "{k} were wanted, and {} came", top.len());
        for (index, (one, other)) in top.iter().zip(&expected).enumerate() {
            let near = (one.1 - other.1).abs() <= fixture.capability.logit_tolerance;
            ensure!(near, "place {index} of the top {k} is {one:?}, and sorting gives {other:?}");
        }
    }
    Ok(())
}

fn masked_top_k(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let script = Script::text(&fixture.prompt(9, 501));
    let row = rig.fresh(&script)?;
    let best = sorted(&row);
    let mut mask = vec![u32::MAX; row.len().div_ceil(32)];
    let forbidden = best[0].0;
    mask[forbidden as usize / 32] &= !(1 << (forbidden % 32));
    let lifted = best[row.len() - 1].0;
    let want = Want::TopK { k: 2, mask: Some(&mask), bias: &[(lifted, 100.0)] };
    let StepOutput::TopK(top) = ask(&mut rig, &script, want)? else {
        return Err("a top k was wanted, and something else came".into());
    };
    ensure!(top.first().is_some_and(|(token, _)| *token == lifted), "a bias of 100 does not lift a token to the top");
    ensure!(top.iter().all(|(token, _)| *token != forbidden), "a forbidden token is among the best");
    ensure!(top.get(1).is_some_and(|(token, _)| *token == best[1].0), "the best token that is allowed is missing");
    Ok(())
}

fn pooled(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let hidden = rig.engine.info().hidden_size;
    for pooling in [Pooling::Last, Pooling::Mean] {
        let mut states = Vec::new();
        for seed in [502, 503] {
            let script = Script::text(&fixture.prompt(12, seed));
            let StepOutput::Pooled(state) = ask(&mut rig, &script, Want::Pooled(pooling))? else {
                return Err("pooled states were wanted, and something else came".into());
            };
            ensure!(state.len() == hidden, "a hidden state has {} numbers, the model {hidden}", state.len());
            ensure!(state.iter().all(|value| value.is_finite()), "a hidden state is not finite");
            states.push(state);
        }
        differ(&states[0], &states[1], "the pooled states of two texts")?;
    }
    Ok(())
}

fn rollback(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let most = fixture.capability.max_rollback.min(8);
    let script = Script::text(&fixture.prompt(20, 504));
    let seq = rig.open()?;
    rig.read_range(seq, &script, 0..10, usize::MAX / 2)?;
    let aside = Script::at(10).then_text(&fixture.prompt(most, 505));
    rig.read(seq, &aside)?;
    rig.engine.rollback(seq, most)?;
    let row = rig.read_range(seq, &script, 10..20, usize::MAX / 2)?;
    let whole = rig.fresh(&script)?;
    rig.same_tokens(&row, &whole, "after a rollback")
}

fn far_rollback(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let script = Script::text(&fixture.prompt(6, 506));
    let seq = rig.open()?;
    rig.read_range(seq, &script, 0..5, usize::MAX / 2)?;
    ensure!(rig.engine.rollback(seq, 6).is_err(), "six tokens of five were taken back");
    let row = rig.read_range(seq, &script, 5..6, usize::MAX / 2)?;
    let whole = rig.fresh(&script)?;
    rig.same_tokens(&row, &whole, "after a rollback that failed")
}

fn snapshot(fixture: &EngineFixture) -> Outcome {
    let script = Script::text(&fixture.prompt(30, 507));
    let mut rig = Rig::new(fixture)?;
    let seq = rig.open()?;
    rig.read_range(seq, &script, 0..20, usize::MAX / 2)?;
    let mut bytes = Vec::new();
    let parked = rig.engine.park(seq)?;
    rig.engine.save(&parked, &mut bytes)?;
    let expected = rig.read_range(seq, &script, 20..30, usize::MAX / 2)?;
    let mut other = Rig::new(fixture)?;
    let parked = other.engine.load(&mut bytes.as_slice())?;
    let seq = other.engine.resume(&parked)?;
    let row = other.read_range(seq, &script, 20..30, usize::MAX / 2)?;
    rig.same_steps(&row, &expected, "a past that another engine read from disk")
}

fn damaged(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let seq = rig.open()?;
    rig.read(seq, &Script::text(&fixture.prompt(20, 508)))?;
    let parked = rig.engine.park(seq)?;
    let mut bytes = Vec::new();
    rig.engine.save(&parked, &mut bytes)?;
    for cut in [0, 1, bytes.len() / 2, bytes.len().saturating_sub(1)] {
        let result = rig.engine.load(&mut &bytes[..cut]);
        fails(result, ErrorKind::InvalidModel, &format!("a snapshot cut to {cut} bytes"))?;
    }
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    fails(rig.engine.load(&mut bytes.as_slice()), ErrorKind::InvalidModel, "a snapshot with a flipped bit")?;
    Ok(())
}
