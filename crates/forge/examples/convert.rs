//! Converts a directory from the command line: `cargo run -p consort-forge --example convert -- SOURCE OUTPUT [TYPE]`.
#![allow(clippy::print_stdout)]

use consort_core::{Error, ErrorKind, Result};
use consort_forge::{ConvertConfig, Overwrite, convert};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (Some(source), Some(output)) = (arguments.first(), arguments.get(1)) else {
        return Err(Error::new(ErrorKind::InvalidRequest, "usage: convert SOURCE OUTPUT [F32|F16|BF16|Q8_0]"));
    };
    let mut config = ConvertConfig::new(source, output);
    config.overwrite = Overwrite::Replace;
    if let Some(kind) = arguments.get(2) {
        config.text_type = kind.parse()?;
        config.mmproj_type = config.text_type;
    }
    let report = convert(&config)?;
    for file in [Some(report.text), report.mmproj].into_iter().flatten() {
        println!(
            "{} {} tensors {} parameters {} bytes",
            file.path.display(),
            file.tensors,
            file.parameters,
            file.bytes
        );
    }
    Ok(())
}
