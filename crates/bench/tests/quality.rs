//! The instruments against naive formulas, over an engine whose every logit can be computed from outside.
#![allow(clippy::unwrap_used, clippy::cast_precision_loss)]

use std::collections::HashMap;

use consort_bench::{QualityConfig, Subject, Windows, divergence, perplexity};
use consort_core::{
    AdapterSet, Capability, Device, DeviceEvidence, Engine, Error, ErrorKind, Logits, MemoryReport, ModelInfo, Proof,
    Result, SeqId, SequenceMemory, Step, StepInput, StepOutcome, StepOutput, Ticket, TokenId, Want,
};
use proptest::prelude::*;

/// Logits that are a function of the tokens so far and a seed.
struct Oracle {
    info: ModelInfo,
    capability: Capability,
    seed: u64,
    /// How much the seed moves logits that are otherwise the same for all oracles.
    noise: f32,
    /// A past after which the first logit is no number.
    broken_after: Option<Vec<TokenId>>,
    pasts: HashMap<SeqId, Vec<TokenId>>,
    opened: u64,
    most_rows: usize,
    waiting: Option<StepOutcome>,
}

impl Oracle {
    fn new(vocab_size: usize, seed: u64, noise: f32) -> Self {
        let capability = Capability {
            max_sequences: 1,
            max_sequence_tokens: 64,
            max_batch_tokens: 7,
            prompt_logprobs: true,
            logprobs: true,
            ..Capability::default()
        };
        let info = ModelInfo { vocab_size, ..ModelInfo::default() };
        Self {
            info,
            capability,
            seed,
            noise,
            broken_after: None,
            pasts: HashMap::new(),
            opened: 0,
            most_rows: 0,
            waiting: None,
        }
    }

    fn row(&self, past: &[TokenId]) -> Vec<f32> {
        let value = |seed: u64, token: usize| {
            let start = seed ^ (token as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let hash = past.iter().fold(start, |hash, &token| {
                (hash ^ u64::from(token)).wrapping_mul(0x0100_0000_01b3).rotate_left(23) ^ 0x5bd1_e995
            });
            (hash.wrapping_mul(0xd6e8_feb8_6659_fd93) >> 40) as f32 / (1 << 24) as f32 * 8.0 - 4.0
        };
        let mut row: Vec<_> =
            (0..self.info.vocab_size).map(|token| value(0, token) + self.noise * value(self.seed, token)).collect();
        if self.broken_after.as_deref() == Some(past) {
            row[0] = f32::NAN;
        }
        row
    }
}

impl Engine for Oracle {
    fn name(&self) -> &'static str {
        "oracle"
    }
    fn info(&self) -> &ModelInfo {
        &self.info
    }
    fn capability(&self) -> Capability {
        self.capability
    }
    fn evidence(&self) -> DeviceEvidence {
        DeviceEvidence {
            backend: "oracle".into(),
            device: Device::Cpu,
            device_name: String::new(),
            placements: Vec::new(),
            established_by: Proof::SingleDeviceKernels,
        }
    }
    fn memory(&self) -> MemoryReport {
        MemoryReport::default()
    }
    fn sequence_memory(&self, _seq: SeqId) -> Result<SequenceMemory> {
        Ok(SequenceMemory::default())
    }
    fn open(&mut self, _adapters: &AdapterSet) -> Result<SeqId> {
        if self.pasts.len() >= self.capability.max_sequences {
            return Err(Error::new(ErrorKind::Overloaded, "every slot is taken"));
        }
        self.opened += 1;
        self.pasts.insert(SeqId(self.opened), Vec::new());
        Ok(SeqId(self.opened))
    }
    fn reserve(&mut self, _seq: SeqId, _tokens: usize) -> Result<()> {
        Ok(())
    }
    fn submit(&mut self, steps: &[Step<'_>]) -> Result<Ticket> {
        let [Step { seq, input: StepInput::Tokens(tokens), positions, want }] = steps else { panic!("one step") };
        assert!(!tokens.is_empty() && tokens.len() <= self.capability.max_batch_tokens);
        let mut past = self.pasts.remove(seq).unwrap();
        let mut rows = Vec::new();
        for (token, position) in tokens.iter().zip(*positions) {
            assert_eq!(position.t as usize, past.len());
            past.push(*token);
            if *want == Want::All {
                rows.extend(self.row(&past));
            }
        }
        self.pasts.insert(*seq, past);
        let output = match want {
            Want::Nothing => StepOutput::Nothing,
            _ => {
                self.most_rows = self.most_rows.max(tokens.len());
                StepOutput::Logits(Logits::new(self.info.vocab_size, rows)?)
            }
        };
        self.waiting = Some(StepOutcome::Done(output));
        Ok(Ticket(0))
    }
    fn collect(&mut self, _ticket: Ticket) -> Result<Vec<StepOutcome>> {
        Ok(self.waiting.take().into_iter().collect())
    }
    fn release(&mut self, seq: SeqId) {
        self.pasts.remove(&seq);
    }
}

fn softmax(row: &[f32]) -> Vec<f64> {
    let sum: f64 = row.iter().map(|&v| f64::from(v).exp()).sum();
    row.iter().map(|&v| f64::from(v).exp() / sum).collect()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn standard_error(values: &[f64]) -> f64 {
    let (n, m) = (values.len() as f64, mean(values));
    (values.iter().map(|v| (v - m).powi(2)).sum::<f64>() / (n - 1.0) / n).sqrt()
}

/// The distributions before each scored token, and the token.
fn scored(oracle: &Oracle, tokens: &[TokenId], config: &QualityConfig) -> Vec<(Vec<f64>, usize)> {
    let mut all = Vec::new();
    for window in config.plan(tokens.len()).unwrap() {
        for at in window.scored {
            all.push((softmax(&oracle.row(&tokens[window.tokens.start..at])), tokens[at] as usize));
        }
    }
    all
}

fn top(p: &[f64]) -> usize {
    (0..p.len()).rev().max_by(|&a, &b| p[a].total_cmp(&p[b])).unwrap()
}

fn close(found: f64, expected: f64) -> bool {
    (found - expected).abs() <= 1e-9 * expected.abs().max(1.0)
}

fn configs() -> impl Strategy<Value = QualityConfig> {
    (4..30_usize, any::<bool>(), 1..29_usize, 0..2000_usize).prop_filter_map(
        "a stride below the context",
        |(context, halves, stride, max_row_bytes)| {
            let windows = if halves { Windows::SecondHalf } else { Windows::Strided { stride } };
            (halves || stride < context).then(|| QualityConfig {
                windows,
                max_row_bytes,
                ..QualityConfig::new(context)
            })
        },
    )
}

proptest! {
    #[test]
    fn both_are_what_the_formulas_say(
        tokens in prop::collection::vec(0..23_u32, 30..120),
        config in configs(),
        noise in 0.0..1.0_f32,
    ) {
        let (mut one, mut two) = (Oracle::new(23, 1, 0.0), Oracle::new(23, 2, noise));
        let (ps, qs) = (scored(&one, &tokens, &config), scored(&two, &tokens, &config));
        let nll = |rows: &[(Vec<f64>, usize)]| rows.iter().map(|(p, token)| -p[*token].ln()).collect::<Vec<_>>();

        let mut seen = Vec::new();
        let found = perplexity(&mut one, &tokens, &config, &mut |progress| seen.push(progress)).unwrap();
        prop_assert_eq!(found.scored, ps.len());
        prop_assert!(close(found.nll, mean(&nll(&ps))));
        prop_assert!(close(found.perplexity, mean(&nll(&ps)).exp()));
        if ps.len() > 1 {
            prop_assert!(close(found.nll_error.unwrap(), standard_error(&nll(&ps))));
            prop_assert!(close(found.perplexity_error.unwrap(), standard_error(&nll(&ps)) * found.perplexity));
        } else {
            prop_assert_eq!(found.nll_error, None);
        }
        prop_assert!(seen.is_sorted_by_key(|progress| progress.scored));
        prop_assert!(seen.iter().all(|progress| progress.total == ps.len()));
        prop_assert_eq!(seen.last().unwrap().scored, ps.len());

        let subjects = [&mut one, &mut two].map(|engine| Subject { engine, tokenizer: None });
        let [reference, other] = subjects;
        let found = divergence(reference, other, &tokens, &config, &mut |_| {}).unwrap();
        let pairs: Vec<_> = ps.iter().zip(&qs).map(|((p, token), (q, _))| (p, q, *token)).collect();
        let kl: Vec<f64> =
            pairs.iter().map(|(p, q, _)| p.iter().zip(*q).map(|(p, q)| p * (p / q).ln()).sum()).collect();
        prop_assert!((found.kl.mean - mean(&kl)).abs() < 1e-9);
        prop_assert!((found.kl.max - kl.iter().copied().fold(0.0, f64::max)).abs() < 1e-9);
        let agree: Vec<f64> = pairs.iter().map(|(p, q, _)| f64::from(u8::from(top(p) == top(q)))).collect();
        prop_assert!(close(found.top1_agreement, mean(&agree)));
        let change: Vec<f64> = pairs.iter().map(|(p, q, _)| (q[top(p)] - p[top(p)]).abs()).collect();
        prop_assert!(close(found.top_probability_change, mean(&change)));
        let log_ratio: Vec<f64> = pairs.iter().map(|(p, q, token)| p[*token].ln() - q[*token].ln()).collect();
        prop_assert!(close(found.perplexity_ratio, found.other.perplexity / found.reference.perplexity));
        if pairs.len() > 1 {
            prop_assert!(close(found.perplexity_ratio_error.unwrap(), standard_error(&log_ratio) * found.perplexity_ratio));
            prop_assert!((found.kl.standard_error.unwrap() - standard_error(&kl)).abs() < 1e-9);
        }
        prop_assert!(close(found.other.nll, mean(&nll(&qs))));

        for oracle in [&one, &two] {
            prop_assert!(oracle.pasts.is_empty(), "a sequence was not released");
            let bound = (config.max_row_bytes / (23 * 4)).max(1);
            prop_assert!(oracle.most_rows <= bound, "{} rows were asked for at once; {bound} fit", oracle.most_rows);
        }
    }
}

#[test]
fn a_logit_that_is_no_number_ends_it_and_the_sequence_is_released() {
    let tokens: Vec<TokenId> = (0..40).map(|index| index * 7 % 23).collect();
    let config = QualityConfig { windows: Windows::Strided { stride: 10 }, ..QualityConfig::new(20) };
    let mut broken = Oracle { broken_after: Some(tokens[..9].to_vec()), ..Oracle::new(23, 1, 0.0) };
    let error = perplexity(&mut broken, &tokens, &config, &mut |_| {}).unwrap_err();
    assert_eq!((error.kind(), error.operation()), (ErrorKind::Unexpected, "bench::perplexity"));
    let mut sound = Oracle::new(23, 1, 0.0);
    let [reference, other] = [&mut sound, &mut broken].map(|engine| Subject { engine, tokenizer: None });
    let error = divergence(reference, other, &tokens, &config, &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("engine: other") && error.to_string().contains("NaN"), "{error}");
    assert!(sound.pasts.is_empty() && broken.pasts.is_empty());
}

#[test]
fn what_cannot_be_measured_is_refused_by_name() {
    let tokens: Vec<TokenId> = (0..40).map(|index| index * 7 % 23).collect();
    let config = QualityConfig::new(10);
    let kind = |engine: &mut Oracle, tokens: &[TokenId], config: &QualityConfig| {
        perplexity(engine, tokens, config, &mut |_| {}).unwrap_err().kind()
    };
    let mut mute = Oracle::new(23, 1, 0.0);
    mute.capability.prompt_logprobs = false;
    assert_eq!(kind(&mut mute, &tokens, &config), ErrorKind::Unsupported);
    let mut small = Oracle::new(20, 1, 0.0);
    assert_eq!(kind(&mut small, &tokens, &config), ErrorKind::InvalidRequest);
    let mut short = Oracle::new(23, 1, 0.0);
    short.capability.max_sequence_tokens = 9;
    assert_eq!(kind(&mut short, &tokens, &config), ErrorKind::InvalidConfig);

    let mut full = Oracle::new(23, 1, 0.0);
    let [reference, other] = [&mut full, &mut small].map(|engine| Subject { engine, tokenizer: None });
    let error = divergence(reference, other, &tokens, &config, &mut |_| {}).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidRequest);
    assert!(error.to_string().contains("reference: 23, other: 20"), "{error}");
}
