//! How fast memory can be read: the bound on decoding, which reads every weight once a token.

use std::hint::black_box;
use std::num::NonZeroUsize;
use std::sync::Barrier;
use std::thread;
use std::time::Instant;

use consort_core::{Error, ErrorKind, Result};
use serde::Serialize;

/// Passes over the buffer. The best counts: what disturbs a pass only ever makes it slower.
const PASSES: u32 = 5;
/// Sums that do not wait for one another: four vectors of 256 bits, or two of 512.
const LANES: usize = 16;

/// The result of [`stream_rate`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct StreamRate {
    /// 10^9 bytes read a second by all threads together, in the best pass.
    pub gigabytes_per_second: f64,
    /// Bytes read in each pass.
    pub bytes: usize,
    /// Threads that read.
    pub threads: usize,
    /// Passes, of which the best counted.
    pub passes: u32,
}

/// Reads a buffer of about `bytes` bytes with `threads` threads, several times, and tells the best rate.
///
/// Every thread writes its own part first (so that it lies in memory near that thread, and no page is shared with a page
/// of zeros), then all read at once from beginning to end. Choose `bytes` several times larger than the last-level cache
/// ([`CpuReport::last_level_cache`](crate::CpuReport::last_level_cache)), or this measures the cache; 256 MiB suits most
/// machines and takes a fraction of a second. Compile with optimisation: the loop is written so that it becomes vector
/// code, which an unoptimised build does not have. The baseline instruction set of the target is enough to be bound by
/// memory.
///
/// # Errors
/// [`ErrorKind::InvalidConfig`] when `bytes` is less than 4 KiB a thread, [`ErrorKind::OutOfMemory`] when the buffer cannot
/// be had.
///
/// ```
/// let threads = std::num::NonZeroUsize::MIN;
/// let rate = consort_hardware::stream_rate(threads, 8 << 20)?;
/// assert!(rate.gigabytes_per_second > 0.0);
/// # Ok::<(), consort_core::Error>(())
/// ```
pub fn stream_rate(threads: NonZeroUsize, bytes: usize) -> Result<StreamRate> {
    let words = bytes / threads / size_of::<u64>() / LANES * LANES;
    if words * size_of::<u64>() < 4096 - LANES * size_of::<u64>() {
        return Err(Error::new(ErrorKind::InvalidConfig, "the buffer must have at least 4 KiB a thread")
            .with_operation("hardware::stream_rate")
            .with_context("bytes", bytes.to_string())
            .with_context("threads", threads.to_string()));
    }
    let barrier = Barrier::new(threads.get());
    let passes: Vec<Result<Vec<(Instant, Instant)>>> = thread::scope(|scope| {
        let readers: Vec<_> = (0..threads.get())
            .map(|index| {
                scope.spawn({
                    let barrier = &barrier;
                    move || read(index as u64, words, barrier)
                })
            })
            .collect();
        readers
            .into_iter()
            .map(|reader| {
                reader.join().unwrap_or_else(|_| Err(Error::new(ErrorKind::Unexpected, "a reading thread panicked")))
            })
            .collect()
    });
    let passes = passes
        .into_iter()
        .collect::<Result<Vec<_>>>()
        .map_err(|error| error.with_operation("hardware::stream_rate"))?;
    let bytes = words * size_of::<u64>() * threads.get();
    let best = (0..PASSES as usize)
        .filter_map(|pass| {
            // A pass lasts from the first thread's start to the last one's end.
            let times = passes.iter().filter_map(|thread| thread.get(pass));
            let start = times.clone().map(|(start, _)| *start).min()?;
            let end = times.map(|(_, end)| *end).max()?;
            Some(end.duration_since(start).as_secs_f64().max(1e-9))
        })
        .fold(f64::INFINITY, f64::min);
    Ok(StreamRate { gigabytes_per_second: bytes as f64 / best / 1e9, bytes, threads: threads.get(), passes: PASSES })
}

fn read(seed: u64, words: usize, barrier: &Barrier) -> Result<Vec<(Instant, Instant)>> {
    let mut buffer: Vec<u64> = Vec::new();
    let reserved = buffer.try_reserve_exact(words);
    if reserved.is_ok() {
        buffer.extend((0..words as u64).map(|word| word ^ seed));
    }
    let mut times = Vec::with_capacity(PASSES as usize);
    // Every thread comes to every barrier, also one that got no memory: the others would wait for ever.
    for _ in 0..PASSES {
        barrier.wait();
        let start = Instant::now();
        black_box(sum(black_box(&buffer)));
        times.push((start, Instant::now()));
    }
    match reserved {
        Ok(()) => Ok(times),
        Err(error) => {
            let message = format!("{} bytes for the buffer cannot be had", words * size_of::<u64>());
            Err(Error::new(ErrorKind::OutOfMemory, message).with_source(error))
        }
    }
}

/// Adds everything up in independent lanes, which is what makes the compiler use vectors.
fn sum(words: &[u64]) -> u64 {
    let mut lanes = [0u64; LANES];
    for chunk in words.as_chunks::<LANES>().0 {
        for (lane, word) in lanes.iter_mut().zip(chunk) {
            *lane = lane.wrapping_add(*word);
        }
    }
    lanes.iter().fold(0, |total, lane| total.wrapping_add(*lane))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_whole_buffer_is_read() {
        let words: Vec<u64> = (0..4096).collect();
        assert_eq!(sum(&words), 4095 * 4096 / 2);
    }

    #[test]
    fn a_rate_is_measured_and_nonsense_is_refused() {
        let two = NonZeroUsize::new(2).unwrap();
        let rate = stream_rate(two, 4 << 20).unwrap();
        assert_eq!((rate.bytes, rate.threads), (4 << 20, 2));
        assert!(rate.gigabytes_per_second.is_finite() && rate.gigabytes_per_second > 0.01);
        assert_eq!(stream_rate(two, 100).unwrap_err().kind(), ErrorKind::InvalidConfig);
        assert_eq!(stream_rate(NonZeroUsize::MIN, usize::MAX / 2).unwrap_err().kind(), ErrorKind::OutOfMemory);
    }
}
