//! The suite for any [`Engine`](consort_core::Engine).

mod activated;
mod adapters;
mod batches;
mod evidence;
mod extras;
mod goldens;
mod images;
mod memory;
mod pairs;
mod pasts;
mod prompts;
mod refusals;

pub use goldens::LOGITS;
pub use pairs::pair_cases;

use std::sync::Arc;

use crate::case::{Case, Outcome};
use crate::fixture::{EngineFixture, Need};

/// Collects cases for one fixture.
struct List {
    fixture: Arc<EngineFixture>,
    cases: Vec<Case>,
}

impl List {
    fn add(
        &mut self,
        name: impl Into<String>,
        needs: &[Need],
        run: impl Fn(&EngineFixture) -> Outcome + Send + Sync + 'static,
    ) {
        let fixture = Arc::clone(&self.fixture);
        let missing = fixture.missing(needs);
        self.cases.push(Case::new(name, missing, move || run(&fixture)));
    }
}

/// Every case of the engine suite for one fixture, those that do not apply included ([`Case::missing`]).
#[must_use]
pub fn engine_cases(fixture: &EngineFixture) -> Vec<Case> {
    let mut list = List { fixture: Arc::new(fixture.clone()), cases: Vec::new() };
    evidence::add(&mut list);
    prompts::add(&mut list);
    refusals::add(&mut list);
    batches::add(&mut list);
    pasts::add(&mut list);
    memory::add(&mut list);
    images::add(&mut list);
    adapters::add(&mut list);
    activated::add(&mut list);
    extras::add(&mut list);
    goldens::add(&mut list);
    list.cases
}
