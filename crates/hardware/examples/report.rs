//! Prints what this machine has as JSON, and the rate at which its memory is read: `cargo run --release --example report`.
#![allow(clippy::print_stdout)]

use std::num::NonZeroUsize;

use consort_hardware::{probe, stream_rate};

fn main() -> consort_core::Result<()> {
    let report = probe();
    println!("{}", serde_json::to_string_pretty(&report).unwrap_or_default());
    let threads = NonZeroUsize::new(report.cpu.usable_threads.value).unwrap_or(NonZeroUsize::MIN);
    let rate = stream_rate(threads, 512 << 20)?;
    println!("{:.1} GB/s with {} threads over {} MiB", rate.gigabytes_per_second, rate.threads, rate.bytes >> 20);
    Ok(())
}
