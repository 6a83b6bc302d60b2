//! Rounds: each path in turn, with as many replies at once as the cell says.

use std::sync::{Arc, Barrier};
use std::time::Instant;

use consort_core::{
    EndTokens, Error, ErrorKind, Event, GenerateRequest, ModelBackend, Prompt, PromptPart, Result, StopRules, TokenId,
};

use super::record::{Cell, Round, Taken, verdicts};
use super::{OVERHEAD_SCHEMA, OverheadConfig, OverheadReport, Path, Place, Session};
use crate::live::{MachineLog, Random, Watch};
use crate::report::Machine;

/// Prompts are of tokens from here on, for so many: ordinary text in every vocabulary of the family.
const TOKENS: (usize, usize) = (5, 995);

/// When a reply was asked for, and when what came of it.
#[derive(Debug, Clone)]
pub(super) struct Times {
    pub(super) asked: Instant,
    /// When each token came.
    pub(super) came: Vec<Instant>,
}

/// Who asks.
enum Who<'a> {
    Bare(&'a super::bare::Bare),
    Ours(&'a Path),
}

/// Measures every cell on every server. `progress` gets how many rounds are done, and how many there are.
///
/// # Errors
/// [`ErrorKind::InvalidConfig`] where nothing would be measured; the first request that fails or is too short ends the run.
pub fn measure(
    config: &OverheadConfig,
    places: &[Place],
    session: Session,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<OverheadReport> {
    config.check()?;
    crate::report::check_name(&session.title)?;
    let total = places.len() * config.prompts.len() * config.streams.len() * config.rounds;
    let (mut cells, mut logs, mut done) = (Vec::new(), Vec::new(), 0);
    for place in places {
        let watch = Watch::start(None);
        for &prompt in &config.prompts {
            for &streams in &config.streams {
                let mut cell = Recorder { config, place, prompt, streams, number: 0 };
                let mut rounds = vec![Vec::with_capacity(config.rounds); 1 + place.paths.len()];
                // Connections are made, and what is made once.
                for who in cell.everybody() {
                    cell.round(&who)?;
                }
                for round in 0..config.rounds {
                    progress(done, total);
                    let everybody = cell.everybody();
                    // Nobody is always the first.
                    for turn in 0..everybody.len() {
                        let index = (turn + round) % everybody.len();
                        if let (Some(who), Some(taken)) = (everybody.get(index), rounds.get_mut(index)) {
                            taken.push(cell.round(who)?);
                        }
                    }
                    done += 1;
                }
                let names = place.paths.iter().map(|path| path.name.clone()).collect();
                let taken = Taken { server: place.name.clone(), prompt, streams, names, rounds };
                cells.push(Cell::of(taken)?);
            }
        }
        logs.push(watch.end(0.0));
    }
    let optimised = !cfg!(debug_assertions);
    let Session { title, command } = session;
    Ok(OverheadReport {
        schema: OVERHEAD_SCHEMA.to_owned(),
        title,
        command,
        optimised,
        machine: Machine::probe(),
        config: config.clone(),
        notes: notes(optimised, &logs),
        verdicts: verdicts(&cells),
        cells,
    })
}

fn notes(optimised: bool, logs: &[MachineLog]) -> Vec<String> {
    let mut notes = Vec::new();
    if !optimised {
        notes.push("This program was compiled without optimisation: its figures are of no use.".to_owned());
    }
    let others = logs.iter().filter_map(|log| log.others_cores).fold(0.0, f64::max);
    if others > 0.1 {
        notes.push(format!("Other programs, the server among them, kept up to {others:.2} cores busy."));
    }
    let stolen = logs.iter().filter_map(|log| log.stolen).fold(0.0, f64::max);
    if stolen > 0.02 {
        notes.push(format!("The host took up to {:.1}% of the machine's time.", 100.0 * stolen));
    }
    notes
}

/// Runs the rounds of a cell.
struct Recorder<'a> {
    config: &'a OverheadConfig,
    place: &'a Place,
    prompt: usize,
    streams: usize,
    /// Requests so far: each has a prompt of its own.
    number: u64,
}

impl<'a> Recorder<'a> {
    fn everybody(&self) -> Vec<Who<'a>> {
        let ours = self.place.paths.iter().map(Who::Ours);
        std::iter::once(Who::Bare(&self.place.bare)).chain(ours).collect()
    }

    fn prompt(&mut self) -> Vec<TokenId> {
        self.number += 1;
        let name = format!("{} {} {}", self.place.name, self.prompt, self.streams);
        let mut random = Random::stream(self.config.seed, &name, self.number);
        let (first, count) = TOKENS;
        (0..self.prompt).map(|_| TokenId::try_from(first + random.below(count)).unwrap_or_default()).collect()
    }

    /// As many replies at once as the cell has.
    fn round(&mut self, who: &Who<'_>) -> Result<Round> {
        let prompts: Vec<_> = (0..self.streams).map(|_| self.prompt()).collect();
        let (tokens, start, number) = (self.config.tokens, Barrier::new(self.streams), self.number);
        let one = |prompt: Vec<TokenId>, index: usize| {
            // What is made beforehand is no cost of either.
            match who {
                Who::Bare(bare) => {
                    let body = bare.body(&prompt, tokens, &format!("bench-{number}-{index}"));
                    start.wait();
                    bare.ask(&body)
                }
                Who::Ours(path) => {
                    let request = request(prompt, tokens);
                    start.wait();
                    ours(&path.backend, request)
                }
            }
        };
        let one = &one;
        let times: Vec<Result<Times>> = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..).zip(prompts).map(|(index, prompt)| scope.spawn(move || one(prompt, index))).collect();
            let gone = |_| Err(Error::new(ErrorKind::Unexpected, "a thread of the bench ended"));
            threads.into_iter().map(|thread| thread.join().unwrap_or_else(gone)).collect()
        });
        let mut round = Round::default();
        for times in times {
            let named = |error: Error| match who {
                Who::Bare(_) => error.with_context("path", "bare"),
                Who::Ours(path) => error.with_context("path", path.name.clone()),
            };
            round.add(&times.map_err(named)?, tokens).map_err(named)?;
        }
        Ok(round)
    }
}

fn request(prompt: Vec<TokenId>, tokens: u32) -> GenerateRequest {
    GenerateRequest {
        max_tokens: Some(tokens),
        stop: StopRules { end_tokens: EndTokens::Ignore, ..StopRules::default() },
        ..GenerateRequest::new(Prompt::Parts(vec![PromptPart::Tokens(prompt)]))
    }
}

/// One reply by a path of ours.
fn ours(backend: &Arc<dyn ModelBackend>, request: GenerateRequest) -> Result<Times> {
    let mut came = Vec::with_capacity(request.max_tokens.unwrap_or_default() as usize);
    let asked = Instant::now();
    for event in backend.generate(request)?.blocking() {
        if let Event::Tokens { ids, .. } = event?
            && !ids.is_empty()
        {
            came.push(Instant::now());
        }
    }
    Ok(Times { asked, came })
}
