//! What was measured, and what follows.

use std::time::{Duration, Instant};

use consort_core::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

use super::run::Times;
use super::{FIRST_TOKEN_BOUND, TOKEN_BOUND};
use crate::report::Summary;
use crate::statistics::percentile;

/// The replies of one path in one round, in milliseconds.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Round {
    first: Vec<f64>,
    between: Vec<f64>,
    /// Of each reply, from asking to its last token, by its tokens.
    whole: Vec<f64>,
}

impl Round {
    /// # Errors
    /// [`ErrorKind::Remote`] for a reply of fewer than two events: it has nothing between them.
    pub(super) fn add(&mut self, times: &Times, tokens: u32) -> Result<()> {
        let (Some(first), Some(last)) = (times.came.first(), times.came.last().filter(|_| times.came.len() > 1)) else {
            let error = Error::new(ErrorKind::Remote, "a reply came in fewer than two pieces");
            return Err(error.with_operation("bench::overhead").with_context("pieces", times.came.len().to_string()));
        };
        self.first.push(milliseconds(times.asked, *first));
        self.between.extend(times.came.windows(2).map(|pair| milliseconds(pair[0], pair[1])));
        self.whole.push(milliseconds(times.asked, *last) / f64::from(tokens));
        Ok(())
    }
}

fn milliseconds(from: Instant, to: Instant) -> f64 {
    let between: Duration = to.saturating_duration_since(from);
    between.as_secs_f64() * 1e3
}

fn at(values: &[f64], fraction: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    percentile(&sorted, fraction)
}

/// What the rounds of a cell gave: the bare client first, then each path of ours.
pub(super) struct Taken {
    pub(super) server: String,
    pub(super) prompt: usize,
    pub(super) streams: usize,
    /// Of our paths.
    pub(super) names: Vec<String>,
    pub(super) rounds: Vec<Vec<Round>>,
}

/// One server, one length of prompts, one number of replies at once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// The server.
    pub server: String,
    /// Tokens of each prompt.
    pub prompt: usize,
    /// Replies at once.
    pub streams: usize,
    /// The bare client.
    pub bare: PathFigures,
    /// Our paths, with what they cost over it.
    pub ours: Vec<(PathFigures, Distance)>,
}

/// What one path took, over all replies of all rounds, in milliseconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PathFigures {
    /// The path.
    pub name: String,
    /// From asking to the first token: median and 95th percentile.
    pub first: [f64; 2],
    /// From one token to the next: median and 95th percentile.
    pub between: [f64; 2],
    /// From asking to the last token, by the number of tokens: median and 95th percentile.
    pub whole: [f64; 2],
}

impl PathFigures {
    fn of(name: &str, rounds: &[Round]) -> Self {
        let figures = |of: fn(&Round) -> &[f64]| {
            let all: Vec<f64> = rounds.iter().flat_map(|round| of(round).iter().copied()).collect();
            [at(&all, 0.5), at(&all, 0.95)]
        };
        Self {
            name: name.to_owned(),
            first: figures(|round| &round.first),
            between: figures(|round| &round.between),
            whole: figures(|round| &round.whole),
        }
    }
}

/// What a path of ours takes over the bare client, in milliseconds: the difference of the two medians of each round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Distance {
    /// To the first token.
    pub first: Summary,
    /// From one token to the next.
    pub between: Summary,
    /// For each token of a whole reply.
    pub whole: Summary,
}

impl Distance {
    /// # Errors
    /// [`ErrorKind::Unexpected`] without rounds.
    fn of(bare: &[Round], ours: &[Round]) -> Result<Self> {
        let distance = |of: fn(&Round) -> &[f64]| {
            let median = |round: &Round| at(of(round), 0.5);
            let values = bare.iter().zip(ours).map(|(bare, ours)| Some(median(ours) - median(bare)));
            Summary::of(values.collect()).ok_or_else(|| Error::new(ErrorKind::Unexpected, "there is no round"))
        };
        Ok(Self {
            first: distance(|round| &round.first)?,
            between: distance(|round| &round.between)?,
            whole: distance(|round| &round.whole)?,
        })
    }

    /// For each token: from one to the next, or of a whole reply, whichever is more. Where a server is faster than its
    /// readers, many tokens come at once, and the time between two of them says nothing.
    #[must_use]
    pub fn token(&self) -> f64 {
        self.between.median.max(self.whole.median)
    }
}

impl Cell {
    /// # Errors
    /// [`ErrorKind::Unexpected`] without rounds.
    pub(super) fn of(taken: Taken) -> Result<Self> {
        let Taken { server, prompt, streams, names, rounds } = taken;
        let mut rounds = rounds.iter();
        let bare = rounds.next().map(Vec::as_slice).unwrap_or_default();
        let ours = names.iter().zip(rounds);
        let ours = ours.map(|(name, rounds)| Ok((PathFigures::of(name, rounds), Distance::of(bare, rounds)?)));
        Ok(Self {
            server,
            prompt,
            streams,
            bare: PathFigures::of("bare client", bare),
            ours: ours.collect::<Result<_>>()?,
        })
    }

    /// What is measured here, in words.
    #[must_use]
    pub fn describe(&self) -> String {
        let replies =
            if self.streams == 1 { "one reply".to_owned() } else { format!("{} replies at once", self.streams) };
        format!("{}: {} tokens of prompt, {replies}", self.server, self.prompt)
    }
}

/// Which cost is bounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// To the first token: [`FIRST_TOKEN_BOUND`].
    FirstToken,
    /// For each token: [`TOKEN_BOUND`].
    Token,
}

impl Bound {
    /// The most that it may be, in milliseconds.
    #[must_use]
    pub fn most(self) -> f64 {
        match self {
            Self::FirstToken => FIRST_TOKEN_BOUND,
            Self::Token => TOKEN_BOUND,
        }
    }
}

/// Whether a path keeps a bound, by the cell where it costs the most.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// The path.
    pub path: String,
    /// The bound.
    pub bound: Bound,
    /// The largest median cost, in milliseconds.
    pub found: f64,
    /// In which cell that was.
    pub cell: String,
    /// Whether the bound is kept there, and so everywhere.
    pub kept: bool,
}

/// Each path with each bound, in the order in which they were measured.
pub(super) fn verdicts(cells: &[Cell]) -> Vec<Verdict> {
    let mut found: Vec<Verdict> = Vec::new();
    for cell in cells {
        for (path, distance) in &cell.ours {
            for (bound, cost) in [(Bound::FirstToken, distance.first.median), (Bound::Token, distance.token())] {
                // A cost that is no number is not kept.
                let kept = cost <= bound.most();
                let verdict = Verdict { path: path.name.clone(), bound, found: cost, cell: cell.describe(), kept };
                match found.iter_mut().find(|known| known.path == path.name && known.bound == bound) {
                    None => found.push(verdict),
                    Some(known) if known.found.total_cmp(&cost).is_lt() => *known = verdict,
                    Some(_) => {}
                }
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// A reply whose tokens come after so many milliseconds.
    fn round(replies: &[&[u64]]) -> Round {
        let asked = Instant::now();
        let mut round = Round::default();
        for reply in replies {
            let came = reply.iter().map(|&after| asked + Duration::from_millis(after)).collect();
            round.add(&Times { asked, came }, u32::try_from(reply.len()).unwrap()).unwrap();
        }
        round
    }

    fn cell(ours: &[Vec<Round>]) -> Cell {
        let bare = vec![round(&[&[10, 15, 20, 25]]), round(&[&[12, 17, 22, 28]])];
        let names = (0..ours.len()).map(|index| format!("path {index}")).collect();
        let rounds = std::iter::once(bare).chain(ours.iter().cloned()).collect();
        Cell::of(Taken { server: "s".into(), prompt: 64, streams: 1, names, rounds }).unwrap()
    }

    #[test]
    fn each_round_is_compared_with_the_bare_one_beside_it() {
        let cell = cell(&[vec![round(&[&[11, 16, 21, 29]]), round(&[&[15, 21, 27, 40]])]]);
        let (figures, distance) = &cell.ours[0];
        let close = |one: f64, other: f64| assert!((one - other).abs() < 1e-6, "{one} {other}");
        close(cell.bare.first[0], 11.0);
        close(cell.bare.between[0], 5.0);
        close(figures.first[0], 13.0);
        // 1 in the first round and 3 in the second.
        close(distance.first.median, 2.0);
        assert_eq!(distance.first.values.len(), 2);
        close(distance.first.least, 1.0);
        // Medians of 5 and 5, then of 6 and 5.
        close(distance.between.median, 0.5);
        // (29 - 25) / 4 and (40 - 28) / 4.
        close(distance.whole.median, 2.0);
        close(distance.token(), 2.0);
    }

    #[test]
    fn the_worst_cell_decides() {
        let near = vec![round(&[&[10, 15, 20, 25]]), round(&[&[12, 17, 22, 28]])];
        let far = vec![round(&[&[13, 18, 23, 28]]), round(&[&[15, 20, 25, 31]])];
        let cells = [cell(&[near.clone(), near.clone()]), Cell { streams: 8, ..cell(&[near.clone(), far]) }];
        let found = verdicts(&cells);
        let kept: Vec<_> = found.iter().map(|verdict| (verdict.path.as_str(), verdict.bound, verdict.kept)).collect();
        let expected = [
            ("path 0", Bound::FirstToken, true),
            ("path 0", Bound::Token, true),
            ("path 1", Bound::FirstToken, false),
            ("path 1", Bound::Token, true),
        ];
        assert_eq!(kept, expected);
        assert!((found[2].found - 3.0).abs() < 1e-6 && found[2].cell.contains("8 replies at once"), "{:?}", found[2]);
    }

    #[test]
    fn a_reply_in_one_piece_is_no_measurement() {
        let asked = Instant::now();
        for pieces in [0, 1] {
            let error = Round::default().add(&Times { asked, came: vec![asked; pieces] }, 4).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Remote);
        }
    }
}
