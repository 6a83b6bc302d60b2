//! `consort quantize`: one GGUF file becomes a smaller one.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;
use consort_core::Result;
use consort_forge::{
    Mix, Override, Overwrite, QuantizeConfig, QuantizePlan, Reason, Requantize, Spread, quantize, quantize_plan,
};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use crate::output::{self, Table};

/// What `--help` shows last.
pub const HELP: &str = "\
Types: F32, F16, BF16, Q8_0, Q6_K, Q5_K_M, Q5_K_S, Q5_1, Q5_0, Q4_K_M, Q4_K_S, Q4_1, Q4_0, IQ4_NL, IQ4_XS, Q3_K_L, Q3_K_M,
Q3_K_S, Q2_K. They name the mixes of published files: some tensors take finer types than the rest.

Examples:
  consort quantize --type Q4_K_M --dry-run model-BF16.gguf model-Q4_K_M.gguf
  consort quantize --type Q4_K_M --imatrix imatrix.gguf model-BF16.gguf model-Q4_K_M.gguf
  consort quantize --type Q3_K_M --tensor 'ffn_down=Q6_K' --tensor 'blk\\.0\\.=Q8_0' model-BF16.gguf out.gguf";

/// Arguments of `consort quantize`.
#[derive(Args)]
pub struct QuantizeArgs {
    /// The GGUF file; any of its shards for a model in several files.
    pub input: PathBuf,
    /// The file to write.
    pub output: PathBuf,
    /// Which types the tensors take.
    #[arg(long = "type", value_name = "TYPE", default_value = "Q4_K_M")]
    pub mix: Mix,
    /// Another type for all matrices whose name the pattern, a regular expression, finds. The first that matches decides.
    #[arg(long = "tensor", value_name = "PATTERN=TYPE")]
    pub overrides: Vec<Override>,
    /// Give every matrix the type that most have, the output projection too.
    #[arg(long)]
    pub uniform: bool,
    /// Weigh errors by this importance matrix (GGUF, as llama-imatrix writes it).
    #[arg(long, value_name = "FILE")]
    pub imatrix: Option<PathBuf>,
    /// Also quantize what is quantized to less than 8 bits already.
    #[arg(long)]
    pub requantize: bool,
    /// Replace the output if it is there.
    #[arg(long)]
    pub overwrite: bool,
    /// Show what would become of each tensor, and write nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Runs the command.
pub fn run(args: &QuantizeArgs) -> Result<()> {
    let config = QuantizeConfig {
        spread: if args.uniform { Spread::Uniform } else { Spread::Mixed },
        overrides: args.overrides.clone(),
        importance: args.imatrix.clone(),
        requantize: if args.requantize { Requantize::Allow } else { Requantize::Refuse },
        overwrite: if args.overwrite { Overwrite::Replace } else { Overwrite::Refuse },
        ..QuantizeConfig::new(&args.input, &args.output, args.mix)
    };
    if args.dry_run {
        let plan = quantize_plan(&config)?;
        if args.json {
            print_json(args, &plan, None);
        } else {
            print_plan(args, &plan);
        }
        return Ok(());
    }
    // Hidden where stderr is no terminal.
    let bar = ProgressBar::new(0).with_style(
        ProgressStyle::with_template("  {bar:30} {bytes} of {total_bytes}, {eta} left  {msg}")
            .unwrap_or_else(|_| ProgressStyle::default_bar()),
    );
    let outcome = quantize(&config, &mut |progress| {
        bar.set_length(progress.total);
        bar.set_position(progress.done);
        bar.set_message(output::printable(progress.tensor));
    });
    bar.finish_and_clear();
    let report = outcome?;
    if args.json {
        print_json(args, &report.plan, Some(report.file.bytes));
    } else {
        print_totals(args, &report.plan);
        anstream::println!("wrote {}: {}", report.file.path.display(), output::bytes(report.file.bytes));
    }
    Ok(())
}

fn reason(reason: Reason) -> String {
    match reason {
        Reason::Kept => "kept".to_owned(),
        Reason::Mix => String::new(),
        Reason::Override => "asked for".to_owned(),
        Reason::Fallback(wanted) => format!("rows do not fit {wanted}"),
    }
}

fn print_plan(args: &QuantizeArgs, plan: &QuantizePlan) {
    let mut table = Table::new(["tensor", "shape (contiguous first)", "from", "to", "size", ""]);
    for tensor in &plan.tensors {
        let mut why = reason(tensor.reason);
        if tensor.weighted {
            why.push_str(if why.is_empty() { "weighted" } else { ", weighted" });
        }
        table.row([
            output::printable(&tensor.name),
            format!("{:?}", tensor.dims),
            tensor.from.to_string(),
            tensor.to.to_string(),
            output::bytes(tensor.bytes_after),
            why,
        ]);
    }
    anstream::println!("{}", table.render());
    print_totals(args, plan);
}

#[allow(clippy::cast_precision_loss)] // Two digits are shown.
fn bits(bytes: u64, parameters: u64) -> f64 {
    bytes as f64 * 8.0 / parameters.max(1) as f64
}

fn print_totals(args: &QuantizeArgs, plan: &QuantizePlan) {
    let mut kinds: BTreeMap<&str, (usize, u64)> = BTreeMap::new();
    for tensor in &plan.tensors {
        let total = kinds.entry(tensor.to.name()).or_default();
        *total = (total.0 + 1, total.1 + tensor.bytes_after);
    }
    let mut table = Table::new(["type", "tensors", "size"]);
    for (kind, (tensors, bytes)) in kinds {
        table.row([kind.to_owned(), tensors.to_string(), output::bytes(bytes)]);
    }
    anstream::print!("{}", table.render());
    let (before, after, parameters) = (plan.bytes_before(), plan.bytes_after(), plan.parameters());
    anstream::println!(
        "{}: {} → {}, {:.2} → {:.2} bits a weight",
        args.mix,
        output::bytes(before),
        output::bytes(after),
        bits(before, parameters),
        bits(after, parameters)
    );
}

fn print_json(args: &QuantizeArgs, plan: &QuantizePlan, written: Option<u64>) {
    let tensors: Vec<_> = plan
        .tensors
        .iter()
        .map(|tensor| {
            json!({
                "name": tensor.name, "dims": tensor.dims, "from": tensor.from.name(), "to": tensor.to.name(),
                "reason": match tensor.reason {
                    Reason::Kept => "kept",
                    Reason::Mix => "mix",
                    Reason::Override => "override",
                    Reason::Fallback(_) => "fallback",
                },
                "weighted": tensor.weighted, "bytes_before": tensor.bytes_before, "bytes_after": tensor.bytes_after,
            })
        })
        .collect();
    let object = json!({
        "output": args.output.display().to_string(),
        "type": args.mix.name(),
        "written_bytes": written,
        "bytes_before": plan.bytes_before(),
        "bytes_after": plan.bytes_after(),
        "parameters": plan.parameters(),
        "tensors": tensors,
    });
    anstream::println!("{object:#}");
}
