//! How a batch that was not done ends for each of its steps.

use consort_core::{Error, ErrorKind, StepOutcome};

use crate::ffi::{Verdict, complaint};

/// What had happened to a sequence when its part of a batch failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Touched {
    /// Nothing: it is as it was before the step.
    Not,
    /// Some of the step, or all of it: the library does not tell.
    Perhaps,
}

/// The outcome of a step whose batch was not done.
pub(crate) fn failed(verdict: Verdict, touched: Touched) -> StepOutcome {
    let complaint = complaint();
    let error = match verdict {
        Verdict::Done => Error::new(ErrorKind::Unexpected, "llama.cpp gives no output for a batch that it has done"),
        Verdict::NoRoom => Error::new(
            ErrorKind::OutOfMemory,
            format!("llama.cpp finds no room for this batch: release or unpark other sequences ({complaint})"),
        ),
        Verdict::Invalid => {
            Error::new(ErrorKind::InvalidRequest, format!("llama.cpp does not take this batch: {complaint}"))
        }
        Verdict::Failed(code) => {
            let kind = match touched {
                Touched::Not => ErrorKind::Unexpected,
                Touched::Perhaps => ErrorKind::Poisoned,
            };
            Error::new(kind, format!("llama.cpp gave up on this batch (code {code}): {complaint}"))
        }
    };
    match touched {
        Touched::Not => StepOutcome::Refused(error),
        Touched::Perhaps => StepOutcome::Poisoned(error),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::path::Path;

    use consort_core::{AdapterSet, Device, DevicePolicy, Engine, Position, SeqId, Step, StepInput, StepOutput, Want};

    use super::*;
    use crate::ffi::{Input, Row};
    use crate::{LlamacppConfig, LlamacppEngine};

    fn engine() -> LlamacppEngine {
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../models/etude/gguf/etude-Q8_0.gguf");
        LlamacppEngine::load(LlamacppConfig {
            policy: DevicePolicy::Named(Device::Cpu),
            threads: std::num::NonZeroUsize::new(1),
            max_total_tokens: 1024,
            ..LlamacppConfig::new(model)
        })
        .unwrap()
    }

    fn positions(from: u32, count: u32) -> Vec<Position> {
        (from..from + count).map(Position::text).collect()
    }

    fn read(engine: &mut LlamacppEngine, seq: SeqId, from: u32, tokens: &[u32]) -> StepOutcome {
        let positions = positions(from, tokens.len() as u32);
        let step = Step { seq, input: StepInput::Tokens(tokens), positions: &positions, want: Want::Last };
        let ticket = engine.submit(&[step]).unwrap();
        engine.collect(ticket).unwrap().swap_remove(0)
    }

    fn row(outcome: StepOutcome) -> Vec<f32> {
        match outcome {
            StepOutcome::Done(StepOutput::Logits(logits)) => logits.into_values(),
            other => panic!("{other:?}"),
        }
    }

    /// What `docs/upstream/llamacpp-hybrid-failed-batch.md` reports, and what follows from it.
    #[test]
    fn after_an_aborted_batch_every_past_is_lost_and_the_engine_goes_on() {
        let mut engine = engine();
        let [begun, empty, aside] = [(); 3].map(|()| engine.open(&AdapterSet::none()).unwrap());
        let expected = row(read(&mut engine, begun, 0, &[5; 8]));
        row(read(&mut engine, aside, 0, &[6; 8]));
        let parked = engine.park(aside).unwrap();
        engine.loaded.context.abort(true);
        let slot = engine.sequence(begun).unwrap().past.slot.number;
        let rows: Vec<_> =
            (8..12).map(|at| Row { slot, input: Input::Token(7), position: [at; 3], output: at == 11 }).collect();
        assert_eq!(engine.loaded.context.decode(&rows), Verdict::Failed(2));
        assert!(engine.loaded.context.end(slot) > 7, "the library gave the failed part back: strike the report");
        let (first, second) = (positions(8, 4), positions(0, 3));
        let steps = [
            Step { seq: begun, input: StepInput::Tokens(&[7; 4]), positions: &first, want: Want::Last },
            Step { seq: empty, input: StepInput::Tokens(&[8; 3]), positions: &second, want: Want::Last },
        ];
        engine.loaded.context.clear_all();
        let ticket = engine.submit(&steps).unwrap();
        for outcome in engine.collect(ticket).unwrap() {
            assert!(
                matches!(&outcome, StepOutcome::Poisoned(error) if error.kind() == ErrorKind::Poisoned),
                "{outcome:?}"
            );
        }
        engine.loaded.context.abort(false);
        // Nobody goes on with a past that is gone.
        assert!(matches!(read(&mut engine, aside, 8, &[9]), StepOutcome::Poisoned(_)));
        assert_eq!(engine.resume(&parked).unwrap_err().kind(), ErrorKind::Poisoned);
        assert!(engine.fork(begun).is_err() && engine.park(begun).is_err());
        for seq in [begun, empty, aside] {
            engine.release(seq);
        }
        drop(parked);
        let fresh = engine.open(&AdapterSet::none()).unwrap();
        assert!(row(read(&mut engine, fresh, 0, &[5; 8])) == expected, "a replayed past says something else");
    }

    #[test]
    fn what_was_not_touched_is_refused() {
        let StepOutcome::Refused(error) = failed(Verdict::NoRoom, Touched::Not) else { panic!("must be refused") };
        assert_eq!(error.kind(), ErrorKind::OutOfMemory);
        let StepOutcome::Refused(error) = failed(Verdict::Invalid, Touched::Not) else { panic!("must be refused") };
        assert_eq!(error.kind(), ErrorKind::InvalidRequest);
        let StepOutcome::Poisoned(error) = failed(Verdict::Failed(2), Touched::Perhaps) else { panic!("poisoned") };
        assert_eq!(error.kind(), ErrorKind::Poisoned);
    }
}
