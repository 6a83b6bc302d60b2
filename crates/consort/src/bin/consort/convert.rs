//! `consort convert`: a Hugging Face directory becomes GGUF and mmproj.

use consort_core::Result;
use consort_forge::{ConvertConfig, OutputType, Overwrite, WrittenFile, convert};

use crate::args::{ConvertArgs, WeightChoice};
use crate::output;

impl From<WeightChoice> for OutputType {
    fn from(choice: WeightChoice) -> Self {
        match choice {
            WeightChoice::F32 => Self::F32,
            WeightChoice::F16 => Self::F16,
            WeightChoice::Bf16 => Self::BF16,
            WeightChoice::Q8_0 => Self::Q8_0,
        }
    }
}

/// Runs the command.
pub fn run(args: &ConvertArgs) -> Result<()> {
    let output = args.output.clone().unwrap_or_else(|| args.source.clone());
    let report = convert(&ConvertConfig {
        text_type: args.text_type.into(),
        mmproj_type: args.mmproj_type.into(),
        overwrite: if args.overwrite { Overwrite::Replace } else { Overwrite::Refuse },
        ..ConvertConfig::new(&args.source, output)
    })?;
    let show = |what: &str, file: &WrittenFile| {
        anstream::println!(
            "{what} {}: {} tensors, {} parameters, {}",
            file.path.display(),
            file.tensors,
            file.parameters,
            output::bytes(file.bytes)
        );
    };
    show("text  ", &report.text);
    match &report.mmproj {
        Some(file) => show("vision", file),
        None => anstream::println!("vision: the checkpoint has no vision tower"),
    }
    Ok(())
}
