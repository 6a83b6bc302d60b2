//! Encoded images: one job at a time, a bounded part of it per turn of the loop, and the embeddings of late.

use std::collections::BTreeMap;
use std::sync::Arc;

use consort_core::{ContentHash, Engine, Error, ImageHandle, ImageJob, ImageProgress, ImageSource};

/// Who an embedding is for: whoever shows the same image, or one request that shares nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Audience {
    Shared,
    Private(u64),
}

/// Which embedding is meant.
pub(crate) type ImageKey = (Audience, [u8; 32]);

/// An image that a running sequence waits for.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    pub(crate) audience: Audience,
    pub(crate) hash: ContentHash,
    pub(crate) source: Arc<dyn ImageSource>,
}

impl Wanted {
    pub(crate) fn key(&self) -> ImageKey {
        (self.audience, self.hash.0)
    }
}

/// What one turn of encoding gave.
pub(crate) enum Advanced {
    /// There was nothing to do.
    Idle,
    /// Some of the work is done.
    Worked,
    /// An image is ready.
    Ready(ImageKey, ImageHandle),
    /// An image cannot be encoded.
    Failed(ImageKey, Error),
}

struct Kept {
    handle: ImageHandle,
    bytes: u64,
    stamp: u64,
}

/// The encoder's queue of one, and the embeddings that are kept.
pub(crate) struct Images {
    job: Option<(ImageKey, ImageJob)>,
    kept: BTreeMap<[u8; 32], Kept>,
    stamp: u64,
    bytes: u64,
    max_bytes: u64,
    max_entries: usize,
    /// Bytes of one token's embedding.
    token_bytes: u64,
    /// How many were encoded.
    pub(crate) encoded: u64,
    /// How many were at hand.
    pub(crate) reused: u64,
}

impl Images {
    pub(crate) fn new(max_bytes: u64, max_entries: usize, hidden_size: usize) -> Self {
        Self {
            job: None,
            kept: BTreeMap::new(),
            stamp: 0,
            bytes: 0,
            max_bytes,
            max_entries,
            token_bytes: (hidden_size as u64).saturating_mul(4).max(1),
            encoded: 0,
            reused: 0,
        }
    }

    /// An embedding that is at hand.
    pub(crate) fn get(&mut self, hash: ContentHash) -> Option<ImageHandle> {
        let kept = self.kept.get_mut(&hash.0)?;
        self.stamp += 1;
        kept.stamp = self.stamp;
        self.reused += 1;
        Some(kept.handle.clone())
    }

    /// Does a bounded part of the work on what is wanted, in this order. A job that nobody wants any more is given up.
    pub(crate) fn advance(&mut self, engine: &mut impl Engine, wanted: &[Wanted]) -> Advanced {
        let (key, job) = match self.job.take() {
            Some((key, job)) if wanted.iter().any(|wanted| wanted.key() == key) => (key, job),
            stale => {
                if let Some((_, job)) = stale {
                    engine.cancel_image(job);
                }
                let Some(next) = wanted.first() else { return Advanced::Idle };
                match engine.begin_image(Arc::clone(&next.source)) {
                    Ok(job) => (next.key(), job),
                    Err(error) => return Advanced::Failed(next.key(), error),
                }
            }
        };
        match engine.advance_image(job) {
            Ok(ImageProgress::Pending(job)) => {
                self.job = Some((key, job));
                Advanced::Worked
            }
            Ok(ImageProgress::Ready(handle)) => {
                self.encoded += 1;
                if key.0 == Audience::Shared {
                    self.keep(key.1, handle.clone());
                }
                Advanced::Ready(key, handle)
            }
            Err(error) => Advanced::Failed(key, error),
        }
    }

    fn keep(&mut self, hash: [u8; 32], handle: ImageHandle) {
        let bytes = (handle.tokens() as u64).saturating_mul(self.token_bytes);
        if bytes > self.max_bytes || self.max_entries == 0 {
            return;
        }
        while self.kept.len() >= self.max_entries || self.bytes + bytes > self.max_bytes {
            if !self.evict() {
                return;
            }
        }
        self.stamp += 1;
        self.bytes += bytes;
        if let Some(before) = self.kept.insert(hash, Kept { handle, bytes, stamp: self.stamp }) {
            self.bytes -= before.bytes;
        }
    }

    /// Bytes of the embeddings that are kept.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Gives the least recently used embedding up. `false` when there is none.
    pub(crate) fn evict(&mut self) -> bool {
        let Some(hash) = self.kept.iter().min_by_key(|(_, kept)| kept.stamp).map(|(hash, _)| *hash) else {
            return false;
        };
        if let Some(kept) = self.kept.remove(&hash) {
            self.bytes -= kept.bytes;
        }
        true
    }
}
