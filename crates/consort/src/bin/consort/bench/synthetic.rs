//! `consort bench synthetic`: a model of random weights as files.

use std::path::PathBuf;

use clap::Args;
use consort::{ModelFiles, SyntheticModel};
use consort_core::Result;

/// Arguments of `consort bench synthetic`.
#[derive(Args, Clone, Debug)]
pub struct SyntheticArgs {
    /// synthetic:SIZE:MIX, and :vision for a vision tower too. Sizes: 0.8b, 2b, 4b, 9b, tiny. Mixes: those of `consort
    /// quantize`.
    pub model: SyntheticModel,
    /// Write so many random adapters for it too: each as a PEFT folder and as GGUF, which llama-server's --lora takes too.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub adapters: usize,
    /// Where it is kept. Default: the user's cache folder.
    #[arg(long, value_name = "DIR")]
    pub cache: Option<PathBuf>,
}

/// Runs the command.
pub fn run(args: &SyntheticArgs) -> Result<()> {
    let folder = args.cache.clone().unwrap_or_else(SyntheticModel::default_folder);
    if let ModelFiles::Files { text, vision } = args.model.files(&folder)? {
        anstream::println!("{}", text.display());
        if let Some(path) = vision {
            anstream::println!("{}", path.display());
        }
    }
    for adapter in args.model.adapters(&folder, args.adapters)? {
        anstream::println!("{}\n{}", adapter.peft.display(), adapter.gguf.display());
    }
    Ok(())
}
