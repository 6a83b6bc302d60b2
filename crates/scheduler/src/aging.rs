//! How a job's turn comes nearer while it is not served.
//!
//! A job has a *rank*: its priority, raised by one class for each [`aging`](crate::SchedulerConfig::aging) that it has gone
//! without being admitted or given a token, up to the highest. Ranks decide who is admitted first and whose prompt is read
//! first; of equal ranks the older request comes first. So after at most three times `aging` a request stands before every
//! request that came later, whatever its priority, and has the next slot that those before it leave. To turn somebody out
//! takes priority and not age.
//!
//! Being served takes the age away, but not at once: what was raised, or had to give its slot up before, is *held*. It keeps
//! its rank and its slot until its prompt is read and it is `progress` tokens further than it ever was. Else it would be
//! raised, admitted and turned out again without ever getting anywhere.

use std::time::{Duration, Instant};

use consort_core::Priority;

/// The rules of aging.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Aging {
    /// After how long without service a job rises by one class. `None`: never.
    pub(crate) after: Option<Duration>,
    /// How many tokens beyond its prompt, and beyond where it was, a raised or once suspended job comes before it can be
    /// turned out.
    pub(crate) progress: usize,
}

/// What a job that is being served is owed.
#[derive(Debug, Clone, Copy)]
struct Hold {
    rank: Priority,
    /// Until this many tokens of it were computed.
    until: usize,
}

/// Where a job stands among others.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Standing {
    priority: Priority,
    /// Whether somebody waits for it. What nobody waits for does not age.
    ages: bool,
    /// Since when it has not been served.
    since: Instant,
    hold: Option<Hold>,
    /// It had to give its slot up since it was last admitted.
    suspended: bool,
}

impl Standing {
    pub(crate) fn new(priority: Priority, ages: bool, now: Instant) -> Self {
        Self { priority, ages, since: now, hold: None, suspended: false }
    }

    /// Its rank at this moment.
    pub(crate) fn rank(&self, now: Instant, aging: Aging) -> Priority {
        let waited = now.saturating_duration_since(self.since);
        let classes = match aging.after {
            Some(after) if self.ages && !after.is_zero() => waited.as_nanos() / after.as_nanos(),
            _ => 0,
        };
        let rank = raised(self.priority, classes);
        self.hold.map_or(rank, |hold| rank.max(hold.rank))
    }

    /// When its rank changes next by waiting alone.
    pub(crate) fn next_change(&self, now: Instant, aging: Aging) -> Option<Instant> {
        let after = aging.after.filter(|after| self.ages && !after.is_zero())?;
        let classes = now.saturating_duration_since(self.since).as_nanos() / after.as_nanos();
        if raised(self.priority, classes) == Priority::Realtime {
            return None;
        }
        self.since.checked_add(after.checked_mul(u32::try_from(classes + 1).ok()?)?)
    }

    /// Whether it may not be turned out yet.
    pub(crate) fn is_held(&self) -> bool {
        self.hold.is_some()
    }

    /// It was admitted, or some of it was computed. `furthest`: how many of its tokens were ever computed; `prompt`: how many
    /// of them it came with.
    pub(crate) fn served(&mut self, now: Instant, aging: Aging, furthest: usize, prompt: usize) {
        let rank = self.rank(now, aging);
        self.since = now;
        match self.hold {
            Some(hold) if furthest >= hold.until => self.hold = None,
            Some(_) => {}
            None if rank > self.priority || self.suspended => {
                self.hold = Some(Hold { rank, until: furthest.max(prompt) + aging.progress.max(1) });
                self.suspended = false;
            }
            None => {}
        }
    }

    /// It waits for its own reader, and for nobody else.
    pub(crate) fn excused(&mut self, now: Instant) {
        self.since = now;
    }

    /// It had to give its slot up.
    pub(crate) fn suspended(&mut self, now: Instant) {
        self.since = now;
        self.hold = None;
        self.suspended = true;
    }
}

/// A priority, so many classes higher.
fn raised(priority: Priority, classes: u128) -> Priority {
    let ladder = [Priority::Batch, Priority::Background, Priority::Interactive, Priority::Realtime];
    let place = ladder.iter().position(|other| *other == priority).unwrap_or_default();
    let place = usize::try_from(classes).unwrap_or(usize::MAX).saturating_add(place);
    ladder.get(place).copied().unwrap_or(Priority::Realtime)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const AGING: Aging = Aging { after: Some(SECOND), progress: 10 };

    #[test]
    fn waiting_raises_by_one_class_at_a_time_and_service_takes_it_away() {
        let start = Instant::now();
        let mut standing = Standing::new(Priority::Batch, true, start);
        let ranks: Vec<_> = (0..5).map(|seconds| standing.rank(start + seconds * SECOND, AGING)).collect();
        use Priority::{Background, Batch, Interactive, Realtime};
        assert_eq!(ranks, [Batch, Background, Interactive, Realtime, Realtime]);
        assert_eq!(standing.next_change(start, AGING), Some(start + SECOND));
        assert_eq!(standing.next_change(start + SECOND * 3 / 2, AGING), Some(start + 2 * SECOND));
        assert_eq!(standing.next_change(start + 3 * SECOND, AGING), None);
        // It keeps the rank until its prompt of a hundred tokens is read and it is ten tokens further.
        let now = start + 2 * SECOND;
        standing.served(now, AGING, 3, 100);
        assert!(standing.is_held() && standing.rank(now, AGING) == Interactive);
        standing.served(now, AGING, 109, 100);
        assert!(standing.is_held() && standing.rank(now, AGING) == Interactive);
        standing.served(now, AGING, 110, 100);
        assert!(!standing.is_held() && standing.rank(now, AGING) == Batch);
    }

    #[test]
    fn what_was_turned_out_once_is_held_when_it_comes_back() {
        let now = Instant::now();
        let mut standing = Standing::new(Priority::Interactive, true, now);
        standing.served(now, AGING, 0, 20);
        assert!(!standing.is_held(), "who was neither raised nor suspended can be turned out at once");
        standing.suspended(now);
        assert!(!standing.is_held());
        standing.served(now, AGING, 40, 20);
        assert!(standing.is_held() && standing.rank(now, AGING) == Priority::Interactive);
        standing.served(now, AGING, 50, 20);
        assert!(!standing.is_held());
    }

    #[test]
    fn without_aging_and_for_what_nobody_waits_for_a_rank_is_a_priority() {
        let start = Instant::now();
        let later = start + 1000 * SECOND;
        let never = Aging { after: None, progress: 10 };
        assert_eq!(Standing::new(Priority::Batch, true, start).rank(later, never), Priority::Batch);
        let keep = Standing::new(Priority::Background, false, start);
        assert_eq!((keep.rank(later, AGING), keep.next_change(later, AGING)), (Priority::Background, None));
        let mut excused = Standing::new(Priority::Batch, true, start);
        excused.excused(later);
        assert_eq!(excused.rank(later, AGING), Priority::Batch);
    }
}
