//! The servers, how they are, and which of them answers.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use consort_core::{Error, ErrorKind, Result};

use crate::facts::ServerFacts;
use crate::transport::Transport;

/// How much more than its share a server may have to do before its personas' requests go to another, which has not their
/// prefixes. (Consistent hashing with bounded loads, Mirrokni et al. 2018.)
const MOST_OF_SHARE: f64 = 1.25;
/// The longest time for which a server that failed is left alone.
const LONGEST_REST: Duration = Duration::from_secs(30);

/// How a server is.
#[derive(Debug, Clone)]
enum Health {
    Up,
    /// It is left alone until then.
    Down {
        until: Instant,
        rest: Duration,
        why: String,
    },
}

/// One server.
pub(crate) struct Replica {
    pub(crate) name: String,
    pub(crate) transport: Arc<dyn Transport>,
    /// Requests on their way.
    running: AtomicU64,
    health: Mutex<Health>,
    /// What it was found to be, once it was reached.
    facts: Mutex<Option<Arc<ServerFacts>>>,
    /// Adapters that it has, by the names that they have there.
    adapters: tokio::sync::Mutex<BTreeSet<String>>,
}

/// What operators see of a server.
#[derive(Debug, Clone, PartialEq)]
pub struct ReplicaStatus {
    /// Its address.
    pub endpoint: String,
    /// Why it is left alone; `None` when it is not.
    pub down: Option<String>,
    /// Requests on their way to it.
    pub running: u64,
    /// What it was found to be.
    pub facts: Option<ServerFacts>,
}

/// A request on its way to a server; counted while it lives.
pub(crate) struct Visit {
    pub(crate) replica: Arc<Replica>,
}

impl Drop for Visit {
    fn drop(&mut self) {
        self.replica.running.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Replica {
    pub(crate) fn new(name: String, transport: Arc<dyn Transport>) -> Self {
        Self {
            name,
            transport,
            running: AtomicU64::new(0),
            health: Mutex::new(Health::Up),
            facts: Mutex::new(None),
            adapters: tokio::sync::Mutex::new(BTreeSet::new()),
        }
    }

    pub(crate) fn visit(self: &Arc<Self>) -> Visit {
        self.running.fetch_add(1, Ordering::Relaxed);
        Visit { replica: Arc::clone(self) }
    }

    pub(crate) fn facts(&self) -> Option<Arc<ServerFacts>> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn learn(&self, facts: ServerFacts) -> Arc<ServerFacts> {
        let facts = Arc::new(facts);
        *self.facts.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&facts));
        facts
    }

    pub(crate) fn status(&self) -> ReplicaStatus {
        let down = match &*self.health() {
            Health::Up => None,
            Health::Down { why, .. } => Some(why.clone()),
        };
        let running = self.running.load(Ordering::Relaxed);
        ReplicaStatus { endpoint: self.name.clone(), down, running, facts: self.facts().as_deref().cloned() }
    }

    fn health(&self) -> std::sync::MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It answered.
    pub(crate) fn works(&self) {
        let before = std::mem::replace(&mut *self.health(), Health::Up);
        if matches!(before, Health::Down { .. }) {
            tracing::info!(endpoint = %self.name, "the server answers again");
        }
    }

    /// It failed, and is left alone for a while: the longer, the longer it has failed.
    pub(crate) fn fails(&self, error: &Error, now: Instant) {
        let mut health = self.health();
        let rest = match &*health {
            Health::Up => Duration::from_millis(500),
            // Several requests fail at once for the same reason: that counts once.
            Health::Down { until, rest, .. } if now < *until => *rest,
            Health::Down { rest, .. } => (*rest * 2).min(LONGEST_REST),
        };
        if matches!(*health, Health::Up) {
            tracing::warn!(endpoint = %self.name, %error, "the server is left alone for a while");
        }
        *health = Health::Down { until: now + rest, rest, why: error.message().to_owned() };
    }

    fn is_up(&self) -> bool {
        matches!(*self.health(), Health::Up)
    }

    fn may_be_tried(&self, now: Instant) -> bool {
        match &*self.health() {
            Health::Up => true,
            Health::Down { until, .. } => now >= *until,
        }
    }

    /// Makes sure that the server has an adapter.
    pub(crate) async fn need(&self, name: &str, path: &str) -> Result<()> {
        // Held while it loads: two requests load it once.
        let mut has = self.adapters.lock().await;
        if has.contains(name) {
            return Ok(());
        }
        self.transport.load_adapter(name, path).await?;
        has.insert(name.to_owned());
        Ok(())
    }

    /// The server says that it has not what it had: it was started anew.
    pub(crate) async fn forget(&self, name: &str) {
        self.adapters.lock().await.remove(name);
    }

    /// Takes an adapter off the server.
    pub(crate) async fn drop_adapter(&self, name: &str) -> Result<()> {
        if self.adapters.lock().await.remove(name) {
            self.transport.unload_adapter(name).await?;
        }
        Ok(())
    }
}

/// All servers.
pub(crate) struct Replicas {
    pub(crate) all: Vec<Arc<Replica>>,
}

impl Replicas {
    /// The server for a request: of those that `tried` does not name, the one that has the prefixes of its persona, unless
    /// it is down or has more than its share to do. Where all were tried, they are tried again.
    ///
    /// # Errors
    /// [`ErrorKind::Remote`] when every server is left alone, with why.
    pub(crate) fn choose(&self, affinity: &[u8; 32], tried: &[usize], now: Instant) -> Result<(usize, Visit)> {
        let total: u64 = self.all.iter().map(|replica| replica.running.load(Ordering::Relaxed)).sum();
        let up = self.all.iter().filter(|replica| replica.is_up()).count().max(1);
        let share = ((total + 1) as f64 / up as f64 * MOST_OF_SHARE).ceil() as u64;
        let rank = |&index: &usize| {
            let replica = &self.all[index];
            let busy = replica.running.load(Ordering::Relaxed) >= share;
            let times = tried.iter().filter(|&&t| t == index).count();
            // Rendezvous hashing (Thaler and Ravishankar 1998): a server that goes takes only its own personas with it.
            let weight = std::cmp::Reverse(self.weight(index, affinity));
            // Whom one may ask at all, then who was not asked, then who is well, then who has room, then whose it is.
            (!replica.may_be_tried(now), times, !replica.is_up(), busy, weight)
        };
        // Each is ranked once, and an only one not at all.
        let best = match self.all.len() {
            0 | 1 => self.all.first().map(|_| 0),
            several => (0..several).map(|index| (rank(&index), index)).min().map(|(_, index)| index),
        };
        let Some(index) = best else {
            return Err(Error::new(ErrorKind::InvalidConfig, "there is no endpoint").with_backend(crate::NAME));
        };
        let replica = &self.all[index];
        if !replica.may_be_tried(now) {
            let why = replica.status().down.unwrap_or_default();
            return Err(Error::new(ErrorKind::Remote, format!("no server can be asked now: {why}"))
                .with_backend(crate::NAME)
                .with_context("endpoint", replica.name.clone()));
        }
        Ok((index, replica.visit()))
    }

    fn weight(&self, index: usize, affinity: &[u8; 32]) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_keyed(affinity);
        hasher.update(self.all[index].name.as_bytes());
        *hasher.finalize().as_bytes()
    }

    pub(crate) fn status(&self) -> Vec<ReplicaStatus> {
        self.all.iter().map(|replica| replica.status()).collect()
    }
}
