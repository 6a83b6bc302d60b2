//! The acceptance gate: may a backend stand beside llama.cpp?
//!
//! The rules are data (`rules/seed.toml` in this crate, or another file of the form), the evidence is what the bench, the
//! quality instrument, the engines' device evidence and the behaviour suite have shown. **What is not shown is not kept.**
//!
//! ```
//! use consort_bench::accept::Rules;
//!
//! # fn main() -> consort_core::Result<()> {
//! let rules = Rules::seed()?;
//! assert!(rules.parity.iter().any(|rule| rule.name == "first token in a room"));
//! # Ok(())
//! # }
//! ```

mod behavior;
mod judge;
mod markdown;
mod rules;

pub use behavior::{BehaviorResults, SuiteResult};
pub use judge::{Acceptance, Case, Judged, Outcome, Statement, Verdict, judge};
pub use rules::{Axis, Figure, Parity, QualityBounds, Rules, SeedPlace};
