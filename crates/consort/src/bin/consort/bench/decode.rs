//! `consort bench decode`: decode speed beside the rate at which this machine reads memory.
//!
//! Decoding one sequence reads every weight once a token, so the machine's stream rate bounds it. The share of that rate
//! which is reached can be compared between machines; tokens per second cannot. Both are measured in the same run, the
//! stream rate before and after, because other work on the machine moves it.

use std::fmt::Write as _;
use std::num::NonZeroUsize;
use std::path::Path;
use std::time::Instant;

use consort::bundled;
use consort_core::{
    AdapterSet, DevicePolicy, Engine, Error, ErrorKind, Position, Result, SeqId, Step, StepInput, StepOutcome, TokenId,
    Want,
};
use consort_gguf::{Gguf, TensorType};
use consort_hardware::{probe, stream_rate};
use consort_native::synthetic::SyntheticConfig;
use consort_native::{Activations, ModelSource, NativeConfig, NativeEngine};

use crate::args::BenchDecodeArgs;
use crate::output::Table;

/// Tokens of the prompt that stands before what is measured.
const PROMPT: usize = 64;
/// Bytes that the stream probe reads: several times what a processor's caches hold.
const STREAM_BYTES: usize = 512 << 20;

/// Median, smallest and largest of some measurements.
#[derive(Clone, Copy)]
struct Spread {
    median: f64,
    least: f64,
    most: f64,
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
        Self { median: at(values.len() / 2), least: at(0), most: at(values.len().saturating_sub(1)) }
    }

    fn show(self) -> String {
        format!("{:.1} ({:.1}–{:.1})", self.median, self.least, self.most)
    }
}

/// A model to measure.
struct Subject {
    name: String,
    source: ModelSource,
    /// Bytes of weights that one decode step reads.
    bytes: u64,
}

/// Runs the command.
pub fn run(args: &BenchDecodeArgs) -> Result<()> {
    if args.tokens == 0 || args.repeats == 0 {
        return Err(Error::new(ErrorKind::InvalidConfig, "there must be at least one token and one repeat"));
    }
    let policy = args.device.policy();
    let folder = std::env::temp_dir().join(format!("consort-bench-{}", std::process::id()));
    std::fs::create_dir_all(&folder).map_err(|source| Error::io(&folder, source))?;
    let outcome = subjects(args, &folder, policy).and_then(|subjects| measure_all(args, policy, &subjects));
    // What is left behind in the temporary folder harms nothing but space.
    drop(std::fs::remove_dir_all(&folder));
    let report = outcome?;
    anstream::print!("{report}");
    if let Some(path) = &args.output {
        std::fs::write(path, report).map_err(|source| Error::io(path, source))?;
    }
    Ok(())
}

/// The synthetic model's weight type of that name.
fn weight_type(name: &str) -> Result<TensorType> {
    TensorType::from_name(name)
        .ok_or_else(|| Error::new(ErrorKind::InvalidConfig, "there is no such weight type").with_context("types", name))
}

fn subjects(args: &BenchDecodeArgs, folder: &Path, policy: DevicePolicy) -> Result<Vec<Subject>> {
    let types = args.types.iter().map(|name| weight_type(name)).collect::<Result<Vec<_>>>()?;
    // A refusal should come before gigabytes are written.
    let etude = ModelSource::Static(bundled::TEXT);
    NativeEngine::load(NativeConfig { policy, ..NativeConfig::new(etude.clone()) })?;
    let mut subjects = vec![Subject {
        name: "etude, Q8_0".into(),
        source: etude,
        bytes: bytes_per_token(&Gguf::from_static(bundled::TEXT)?)?,
    }];
    for weight_type in types {
        let path = folder.join(format!("{weight_type}.gguf"));
        SyntheticConfig { weight_type, ..SyntheticConfig::qwen35_0_8b() }.write_text(&path)?;
        let bytes = bytes_per_token(&Gguf::open(&path)?)?;
        let name = format!("0.8B dimensions, random weights, {weight_type}");
        subjects.push(Subject { name, source: ModelSource::Path(path), bytes });
    }
    Ok(subjects)
}

/// Every tensor but the MTP block, which is not run, and the embedding table of an untied model, of which one row is read.
fn bytes_per_token(gguf: &Gguf) -> Result<u64> {
    let architecture = gguf.metadata().require_str("general.architecture")?.to_owned();
    let blocks = gguf.metadata().require_u32(&format!("{architecture}.block_count"))?;
    let unused = gguf.metadata().u32_or(&format!("{architecture}.nextn_predict_layers"), 0)?;
    let untied = gguf.tensor("output.weight").is_some();
    let read = |name: &str| {
        let mtp = (blocks.saturating_sub(unused)..blocks).any(|block| name.starts_with(&format!("blk.{block}.")));
        !(mtp || untied && name == "token_embd.weight")
    };
    Ok(gguf.tensors().filter(|tensor| read(&tensor.name)).map(consort_gguf::TensorInfo::byte_len).sum())
}

fn measure_all(args: &BenchDecodeArgs, policy: DevicePolicy, subjects: &[Subject]) -> Result<String> {
    let hardware = probe();
    let most =
        args.device.threads.or(NonZeroUsize::new(hardware.cpu.usable_threads.value)).unwrap_or(NonZeroUsize::MIN);
    let mut counts = vec![NonZeroUsize::MIN, most];
    counts.dedup();
    let mut table = Table::new([
        "model",
        "threads",
        "sequences",
        "decode tokens/s",
        "GB/s of weights",
        "stream GB/s",
        "share of stream",
        "prefill tokens/s",
    ]);
    for subject in subjects {
        for &threads in &counts {
            for sequences in [1, 4] {
                let stream = || stream_rate(threads, STREAM_BYTES).map(|rate| rate.gigabytes_per_second);
                let before = stream()?;
                let speed = measure(args, policy, subject, threads, sequences)?;
                let stream = before.max(stream()?);
                #[allow(clippy::cast_precision_loss)]
                let read = subject.bytes as f64 / 1e9 * speed.decode.median / sequences as f64;
                table.row([
                    subject.name.clone(),
                    threads.to_string(),
                    sequences.to_string(),
                    speed.decode.show(),
                    format!("{read:.2}"),
                    format!("{stream:.2}"),
                    format!("{:.0}%", 100.0 * read / stream),
                    format!("{:.0}", speed.prefill),
                ]);
            }
        }
    }
    let model = hardware.cpu.model.as_ref().map_or("unknown processor", |found| found.value.as_str());
    let mut report = String::new();
    let _ = writeln!(report, "# Decode speed of the native engine\n");
    let _ = writeln!(report, "Written by `{}`.\n", super::command_line());
    let _ = writeln!(
        report,
        "{model}, {} of {} threads usable, {}. Median of {} runs of {} tokens after a prompt of {PROMPT} (smallest–largest). \
         Tokens/s are over all sequences of a batch; weights are read once a step. The stream rate is the better of two \
         readings, before and after; etude fits into the caches, so its share says nothing about memory.\n",
        hardware.cpu.usable_threads.value,
        hardware.cpu.logical_cores.value,
        hardware.os.value.architecture,
        args.repeats,
        args.tokens,
    );
    let _ = writeln!(report, "```text\n{}```", anstream::adapter::strip_str(&table.render()));
    Ok(report)
}

struct Speed {
    decode: Spread,
    prefill: f64,
}

fn measure(
    args: &BenchDecodeArgs,
    policy: DevicePolicy,
    subject: &Subject,
    threads: NonZeroUsize,
    sequences: usize,
) -> Result<Speed> {
    let activations = if args.exact { Activations::F32 } else { Activations::Int8 };
    let config =
        NativeConfig { policy, activations, threads: Some(threads), ..NativeConfig::new(subject.source.clone()) };
    let mut engine = NativeEngine::load(config)?;
    let vocabulary = engine.info().vocab_size;
    let (mut decode, mut prefill) = (Vec::new(), Vec::new());
    // The first run warms caches and the file's mapping; it does not count.
    for run in 0..=args.repeats {
        let mut states = Vec::new();
        let start = Instant::now();
        for index in 0..sequences {
            let prompt: Vec<TokenId> = (0..PROMPT).map(|i| token((i * 31 + index * 17 + run) % vocabulary)).collect();
            let seq = engine.open(&AdapterSet::none())?;
            let next = advance(&mut engine, &[(seq, prompt, 0)])?;
            states.push((seq, next[0]));
        }
        let prefilled = start.elapsed().as_secs_f64();
        let start = Instant::now();
        for position in PROMPT..PROMPT + args.tokens {
            let batch: Vec<_> = states.iter().map(|&(seq, next)| (seq, vec![next], position)).collect();
            for ((_, next), found) in states.iter_mut().zip(advance(&mut engine, &batch)?) {
                *next = found;
            }
        }
        let decoded = start.elapsed().as_secs_f64();
        states.iter().for_each(|&(seq, _)| engine.release(seq));
        if run > 0 {
            #[allow(clippy::cast_precision_loss)]
            {
                decode.push((args.tokens * sequences) as f64 / decoded);
                prefill.push((PROMPT * sequences) as f64 / prefilled);
            }
        }
    }
    Ok(Speed { decode: Spread::of(decode), prefill: Spread::of(prefill).median })
}

fn token(index: usize) -> TokenId {
    TokenId::try_from(index).unwrap_or(0)
}

/// One batch; the first maximum of each sequence's last logits.
fn advance(engine: &mut NativeEngine, batch: &[(SeqId, Vec<TokenId>, usize)]) -> Result<Vec<TokenId>> {
    let positions: Vec<Vec<Position>> = batch
        .iter()
        .map(|(_, tokens, start)| (*start..start + tokens.len()).map(|index| Position::text(token(index))).collect())
        .collect();
    let steps: Vec<_> = batch
        .iter()
        .zip(&positions)
        .map(|((seq, tokens, _), positions)| Step {
            seq: *seq,
            input: StepInput::Tokens(tokens),
            positions,
            want: Want::Last,
        })
        .collect();
    let ticket = engine.submit(&steps)?;
    let choose = |outcome| match outcome {
        StepOutcome::Done(consort_core::StepOutput::Logits(logits)) => {
            let row = logits.last().unwrap_or_default();
            Ok(token((0..row.len()).rev().max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap_or(0)))
        }
        StepOutcome::Refused(error) | StepOutcome::Poisoned(error) => Err(error),
        StepOutcome::Done(_) => Err(Error::new(ErrorKind::Unexpected, "the engine gave no logits")),
    };
    engine.collect(ticket)?.into_iter().map(choose).collect()
}
