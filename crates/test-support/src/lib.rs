//! What the tests of damaged and malicious input share: how much a call allocates, and cases that are the same on every
//! machine. For tests alone; whoever links this crate allocates through [`peak`]'s counter.
//!
//! ```
//! use consort_test_support::{Random, peak};
//!
//! let (bytes, most) = peak(|| vec![0_u8; 1000]);
//! assert!(most >= bytes.len());
//! assert!(Random::default().below(10) < 10);
//! ```
#![deny(unsafe_code)]

mod counting;
mod random;

pub use counting::peak;
pub use random::Random;
