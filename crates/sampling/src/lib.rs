//! Chooses the next token from a row of logits.
//!
//! A [`Sampler`] belongs to one reply. It is made of the request's [`Sampling`](consort_core::Sampling) and the prompt, hears
//! each token that is appended, and chooses the next one:
//!
//! ```
//! use consort_core::{Penalties, Result, Sampling};
//! use consort_sampling::{Allowed, Sampler, TokenMask, Workspace};
//!
//! # fn main() -> Result<()> {
//! let sampling = Sampling { penalties: Penalties { presence: 1.0, ..Penalties::default() }, ..Sampling::default() };
//! let mut sampler = Sampler::new(sampling, [(7, &b"Hi"[..])])?;
//! let mut workspace = Workspace::default();
//!
//! let row = [0.0, 2.0, 1.5, 1.0]; // what the engine gave: [vocab_size]
//! let token = sampler.sample(&row, Allowed::default(), &mut workspace)?;
//! assert_eq!(token, 1);
//! sampler.accept(token, b" there");
//! assert_eq!(sampler.sample(&row, Allowed::default(), &mut workspace)?, 2, "token 1 was said");
//!
//! let mut mask = TokenMask::none(4);
//! mask.allow(3);
//! let allowed = Allowed { mask: Some(&mask), ..Allowed::default() };
//! assert_eq!(sampler.sample(&row, allowed, &mut workspace)?, 3);
//! # Ok(())
//! # }
//! ```
//!
//! # The chain
//!
//! The order is llama.cpp's default. Each filter sees the distribution, at temperature 1, of what the ones before it left, and
//! of equal logits the lower id counts as the more probable one.
//!
//! 1. **Logit bias**, then the **mask** of a grammar and tokens that are forbidden at this place.
//! 2. **Penalties**: repetition (Keskar et al. 2019, *CTRL*, arXiv:1909.05858) over prompt and reply; presence and frequency
//!    over the reply, as OpenAI's API defines them.
//! 3. **DRY** (text-generation-webui, pull request 5677): each reply keeps where its end stands before in its past, and how
//!    long the agreement is; one token more costs as many steps as that token stands in the window.
//! 4. **Top-n-sigma** (Tang et al. 2024, arXiv:2411.07641).
//! 5. **Top k**.
//! 6. **Locally typical** (Meister et al. 2022, arXiv:2202.00666).
//! 7. **Top p** (Holtzman et al. 2019, *The curious case of neural text degeneration*, arXiv:1904.09751).
//! 8. **Min p** (Nguyen et al. 2024, arXiv:2407.01082).
//! 9. **XTC** (text-generation-webui, pull request 6335).
//! 10. **Temperature**, which may follow the entropy; then the draw. At temperature 0 it is the first maximum of what is left.
//!
//! # Randomness
//!
//! Every random number, XTC's coin included, is a function of the request's seed and the token's index in the reply. So a reply
//! is the same whatever shares its batch, and after a preemption. The draw walks the ids upwards in blocks of a fixed size and
//! adds in a fixed order, so that a filter that drops nothing changes nothing.
//!
//! # Cost
//!
//! Passes over the whole row are loops over chunks without branches, which the compiler turns into vectors; nothing is sorted
//! but what a filter keeps. `docs/benchmarks/sampling.md` has the measured figures, `cargo run --release -p consort-sampling
//! --example bench` measures them.
#![forbid(unsafe_code)]

mod dry;
mod history;
mod logprobs;
mod mask;
mod pool;
mod random;
mod row;
mod sampler;

pub use logprobs::logprobs;
pub use mask::TokenMask;
pub use sampler::{Allowed, Sampler, Workspace};
