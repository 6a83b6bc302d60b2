//! `consort perplexity` and `consort kld`: the quality instrument on a text.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use clap::Args;
use consort::{Backend, ModelFiles, bundled};
use consort_bench::{
    Divergence, Perplexity, Progress, QualityConfig, Subject, Windows, divergence, perplexity as measure,
};
use consort_core::{
    AdapterBinding, AdapterKey, AdapterSet, AdapterSource, Engine, Error, ErrorKind, Result, SpecialTokens, TokenId,
};
use consort_text::Tokenizer;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use crate::args::adapter_spec;
use crate::model_args::{EngineArgs, parse_backend};
use crate::output::{self, Table, styled};
use crate::tokenize::{SpecialChoice, parse_ids};

/// What is measured, in which windows.
#[derive(Args)]
pub struct TextArgs {
    /// The text, UTF-8. Its first 8 MiB are used.
    #[arg(required_unless_present = "builtin", conflicts_with = "builtin")]
    file: Option<PathBuf>,
    /// Measure on etude's own conversations, which are part of the program.
    #[arg(long)]
    builtin: bool,
    /// The file holds token ids, with commas or blanks between them, and no text.
    #[arg(long, conflicts_with_all = ["builtin", "special"])]
    token_ids: bool,
    /// How text that looks like a special token is read. Default: `parse` with --builtin, else `plain`.
    #[arg(long, value_enum)]
    special: Option<SpecialChoice>,
    /// Use no more than the first N tokens.
    #[arg(long, value_name = "N")]
    max_tokens: Option<usize>,
    /// Tokens of a window. Default: 512, or the whole text where that is shorter.
    #[arg(long, value_name = "N")]
    context: Option<usize>,
    /// Let windows overlap: each begins N tokens after the one before, and every token but the first is scored. Without it
    /// windows are disjoint and their second half is scored, as llama.cpp does.
    #[arg(long, value_name = "N")]
    stride: Option<usize>,
    /// An adapter: a PEFT folder, a GGUF file, or the name of a bundled one; `@0.5` sets its scale. Repeat to add several.
    #[arg(long, value_name = "NAME|PATH[@SCALE]")]
    adapter: Vec<String>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// Arguments of `consort perplexity`.
#[derive(Args)]
pub struct PerplexityArgs {
    #[command(flatten)]
    text: TextArgs,
    #[command(flatten)]
    engine: EngineArgs,
    /// A GGUF file, or a folder that holds one. Default: the bundled etude.
    #[arg(long, value_name = "PATH")]
    model: Option<PathBuf>,
}

/// Arguments of `consort kld`.
#[derive(Args)]
pub struct KldArgs {
    #[command(flatten)]
    text: TextArgs,
    #[command(flatten)]
    engine: EngineArgs,
    /// The model that is judged. Default: the bundled etude.
    #[arg(long, value_name = "PATH")]
    model: Option<PathBuf>,
    /// The reference that it is held against, such as the same model before it was quantized.
    #[arg(long, value_name = "PATH")]
    against: PathBuf,
    /// The engine that runs the reference. Default: that of --backend.
    #[arg(long, value_name = "NAME", value_parser = parse_backend)]
    against_backend: Option<Backend>,
}

/// The most bytes of a text that are used: what the tokenizer takes at once.
const MAX_TEXT: u64 = 8 << 20;

/// Runs `consort perplexity`.
pub fn perplexity(args: &PerplexityArgs) -> Result<()> {
    let tokenizer = consort::open_tokenizer(args.model.as_deref())?;
    let tokens = args.text.tokens(&tokenizer)?;
    let mut engine = open(&args.engine, args.model.as_deref())?;
    let config = args.text.config(tokens.len(), &mut [&mut *engine])?;
    let bar = bar();
    let found = measure(&mut *engine, &tokens, &config, &mut |progress| show(&bar, progress))?;
    bar.finish_and_clear();
    if args.text.json {
        let object = json!({
            "model": engine.info(), "text": args.text.describe(&tokens, &config), "result": found,
            "evidence": engine.evidence(),
        });
        anstream::println!("{object:#}");
        return Ok(());
    }
    let mut table = Table::new(["", "value", "± standard error"]);
    perplexity_rows(&mut table, "", &found);
    anstream::print!("{}", table.render());
    args.text.print_foot(&tokens, &config, &found, &[("model", &*engine)]);
    Ok(())
}

/// Runs `consort kld`.
pub fn kld(args: &KldArgs) -> Result<()> {
    let tokenizer = consort::open_tokenizer(args.model.as_deref())?;
    let reference_tokenizer = consort::open_tokenizer(Some(&args.against))?;
    // Before gigabytes are read.
    consort_bench::same_vocabulary(&reference_tokenizer, &tokenizer)?;
    let tokens = args.text.tokens(&tokenizer)?;
    let mut other = open(&args.engine, args.model.as_deref())?;
    let engine = EngineArgs { backend: args.against_backend.or(args.engine.backend), ..args.engine.clone() };
    let mut reference = open(&engine, Some(&args.against))?;
    let config = args.text.config(tokens.len(), &mut [&mut *reference, &mut *other])?;
    let bar = bar();
    let found = divergence(
        Subject::new(&mut *reference, &reference_tokenizer),
        Subject::new(&mut *other, &tokenizer),
        &tokens,
        &config,
        &mut |progress| show(&bar, progress),
    )?;
    bar.finish_and_clear();
    if args.text.json {
        let object = json!({
            "model": other.info(), "against": reference.info(), "text": args.text.describe(&tokens, &config),
            "result": found, "evidence": { "model": other.evidence(), "against": reference.evidence() },
        });
        anstream::println!("{object:#}");
        return Ok(());
    }
    anstream::print!("{}", divergence_table(&found).render());
    args.text.print_foot(&tokens, &config, &found.reference, &[("model", &*other), ("against", &*reference)]);
    Ok(())
}

impl TextArgs {
    fn tokens(&self, tokenizer: &Tokenizer) -> Result<Vec<TokenId>> {
        let (text, special) = match &self.file {
            Some(path) => (read_beginning(path)?, SpecialTokens::Plain),
            None => (Beginning { text: bundled::EVALUATION_TEXT.to_owned(), cut: false }, SpecialTokens::Parse),
        };
        let mut tokens = if self.token_ids {
            parse_ids(&text.text)?
        } else {
            tokenizer.encode(&text.text, self.special.map_or(special, SpecialTokens::from))?
        };
        match self.max_tokens {
            Some(most) if most <= tokens.len() => tokens.truncate(most),
            _ if text.cut => {
                let message = "the text is longer than 8 MiB: say how much of it to use with --max-tokens";
                return Err(Error::new(ErrorKind::InvalidRequest, message)
                    .with_context("tokens in 8 MiB", tokens.len().to_string()));
            }
            _ => {}
        }
        Ok(tokens)
    }

    /// The windows, and the adapters after loading them into each engine.
    fn config(&self, tokens: usize, engines: &mut [&mut dyn Engine]) -> Result<QualityConfig> {
        let mut bindings = Vec::new();
        for (spec, generation) in self.adapter.iter().zip(1..) {
            let (name, scale) = adapter_spec(spec)?;
            let key = AdapterKey { id: name.into(), generation };
            for engine in &mut *engines {
                let files = consort::adapter_files(name);
                let info = engine.load_adapter(&AdapterSource { key: key.clone(), files })?;
                if info.invocation_tokens.is_some() {
                    let message =
                        "this adapter is active from its invocation tokens on, which windows of a text cut off";
                    return Err(Error::new(ErrorKind::Unsupported, message).with_context("adapter", name));
                }
            }
            bindings.push(AdapterBinding::new(key, scale));
        }
        Ok(QualityConfig {
            windows: self.stride.map_or(Windows::SecondHalf, |stride| Windows::Strided { stride }),
            adapters: AdapterSet::new(bindings)?,
            ..QualityConfig::new(self.context.unwrap_or(tokens.min(512)))
        })
    }

    fn source(&self) -> String {
        self.file.as_ref().map_or_else(|| "builtin".into(), |path| path.display().to_string())
    }

    fn describe(&self, tokens: &[TokenId], config: &QualityConfig) -> serde_json::Value {
        json!({
            "source": self.source(), "tokens": tokens.len(), "context": config.context, "windows": config.windows,
            "adapters": self.adapter,
        })
    }

    fn print_foot(
        &self,
        tokens: &[TokenId],
        config: &QualityConfig,
        found: &Perplexity,
        engines: &[(&str, &dyn Engine)],
    ) {
        let windows = match config.windows {
            Windows::SecondHalf => "their second halves scored".to_owned(),
            Windows::Strided { stride } => format!("{stride} tokens apart"),
        };
        let line = format!(
            "{}: {} tokens, {} of them scored; {} windows of {}, {windows}",
            self.source(),
            tokens.len(),
            found.scored,
            found.windows,
            config.context,
        );
        anstream::println!("{}", styled(output::FAINT, &line));
        for (role, engine) in engines {
            let (info, evidence) = (engine.info(), engine.evidence());
            let line = format!(
                "{role}: {} ({}, {}), {} on {} ({})",
                info.name, info.architecture, info.weight_type, evidence.backend, evidence.device, evidence.device_name
            );
            anstream::println!("{}", styled(output::FAINT, &line));
        }
    }
}

fn open(engine: &EngineArgs, model: Option<&Path>) -> Result<Box<dyn Engine>> {
    let files = match model {
        // The vision tower has no part in it.
        Some(path) => match ModelFiles::find(path, Some(path))? {
            ModelFiles::Files { text, .. } => ModelFiles::Files { text, vision: None },
            ModelFiles::Bundled => ModelFiles::Bundled,
        },
        None => ModelFiles::Bundled,
    };
    consort::open_engine(&engine.load_config(files))
}

struct Beginning {
    text: String,
    /// Whether the file goes on.
    cut: bool,
}

fn read_beginning(path: &Path) -> Result<Beginning> {
    let file = std::fs::File::open(path).map_err(|source| Error::io(path, source))?;
    let mut bytes = Vec::new();
    file.take(MAX_TEXT + 1).read_to_end(&mut bytes).map_err(|source| Error::io(path, source))?;
    let cut = bytes.len() as u64 > MAX_TEXT;
    if cut {
        bytes.pop();
        // The last line may be cut in the middle of a character.
        let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        bytes.truncate(whole);
    }
    let text = String::from_utf8(bytes).map_err(|source| {
        Error::new(ErrorKind::InvalidRequest, "the text is no UTF-8")
            .with_context("path", path.display().to_string())
            .with_source(source)
    })?;
    Ok(Beginning { text, cut })
}

fn bar() -> ProgressBar {
    // On stderr, and only on a terminal: indicatif's default.
    let style = ProgressStyle::with_template("{wide_bar} {pos}/{len} tokens scored, {eta} to go");
    ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn show(bar: &ProgressBar, progress: Progress) {
    bar.set_length(progress.total as u64);
    bar.set_position(progress.scored as u64);
}

fn error(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "-".into(), |value| format!("{value:.digits$}"))
}

fn perplexity_rows(table: &mut Table, whose: &str, found: &Perplexity) {
    table.row([format!("perplexity{whose}"), format!("{:.4}", found.perplexity), error(found.perplexity_error, 4)]);
    table.row([format!("nats a token{whose}"), format!("{:.5}", found.nll), error(found.nll_error, 5)]);
}

fn divergence_table(found: &Divergence) -> Table {
    let mut table = Table::new(["", "value", "± standard error"]);
    let kl = &found.kl;
    table.row(["KL divergence, mean".into(), format!("{:.3e}", kl.mean), scientific(kl.standard_error)]);
    for (name, value) in
        [("median", kl.median), ("90%", kl.p90), ("99%", kl.p99), ("99.9%", kl.p99_9), ("maximum", kl.max)]
    {
        table.row([format!("KL divergence, {name}"), format!("{value:.3e}"), String::new()]);
    }
    let per_cent = |value: f64| format!("{:.3}%", 100.0 * value);
    table.row([
        "same first choice".into(),
        per_cent(found.top1_agreement),
        found.top1_agreement_error.map_or_else(|| "-".into(), per_cent),
    ]);
    table.row([
        "change of the first choice's probability".into(),
        per_cent(found.top_probability_change),
        found.top_probability_change_error.map_or_else(|| "-".into(), per_cent),
    ]);
    perplexity_rows(&mut table, ", reference", &found.reference);
    perplexity_rows(&mut table, ", model", &found.other);
    table.row([
        "ratio of the perplexities".into(),
        format!("{:.6}", found.perplexity_ratio),
        error(found.perplexity_ratio_error, 6),
    ]);
    table
}

fn scientific(value: Option<f64>) -> String {
    value.map_or_else(|| "-".into(), |value| format!("{value:.1e}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_long_text_is_cut_at_a_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("long.txt");
        let line = "ein Wörtchen\n";
        std::fs::write(&path, line.repeat(usize::try_from(MAX_TEXT).unwrap() / line.len() + 10)).unwrap();
        let found = read_beginning(&path).unwrap();
        assert!(found.cut && found.text.len() as u64 <= MAX_TEXT && found.text.ends_with("Wörtchen\n"));
        std::fs::write(&path, "kurz").unwrap();
        let found = read_beginning(&path).unwrap();
        assert!(!found.cut && found.text == "kurz");
        std::fs::write(&path, [0xff]).unwrap();
        assert_eq!(read_beginning(&path).err().unwrap().kind(), ErrorKind::InvalidRequest);
    }
}
