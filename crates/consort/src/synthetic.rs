//! Random-weight models as files: the dimensions, the types and the vocabulary size of a real model, and no sense.
//!
//! Engines that we did not write load files, so a model that all of them measure must be one. It is made once and kept in a
//! cache folder.

mod adapter;

use std::path::{Path, PathBuf};
use std::str::FromStr;

use consort_core::{Error, ErrorKind, Result};
use consort_forge::{Mix, mix_types};
use consort_gguf::{Gguf, TensorType};
use consort_native::synthetic::{SyntheticConfig, SyntheticTokenizer};

pub use adapter::SyntheticAdapter;

use crate::ModelFiles;

/// What the name of a synthetic model begins with.
const PREFIX: &str = "synthetic:";

/// A random-weight model by its name: `synthetic:SIZE:MIX`, and `:vision` for one that also sees.
///
/// ```
/// use consort::SyntheticModel;
///
/// # fn main() -> consort::core::Result<()> {
/// let model: SyntheticModel = "synthetic:0.8b:Q4_K_M".parse()?;
/// assert_eq!(model.to_string(), "synthetic:0.8b:Q4_K_M");
/// assert!("synthetic:0.8b:Q9".parse::<SyntheticModel>().is_err());
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyntheticModel {
    size: String,
    mix: Mix,
    vision: bool,
}

impl SyntheticModel {
    /// Whether this names a synthetic model, rightly or wrongly, and not a file.
    #[must_use]
    pub fn is_named(name: &str) -> bool {
        name.starts_with(PREFIX)
    }

    /// The model's files in `folder`. What is not there yet is written: the 0.8B takes a second or two.
    ///
    /// # Errors
    /// Those of writing and of reading what is there.
    pub fn files(&self, folder: &Path) -> Result<ModelFiles> {
        let config = self.config()?;
        let folder = self.folder(&config, folder)?;
        let name = self.file_name();
        let text = folder.join(format!("{name}.gguf"));
        if !text.exists() {
            config.write_text(&text)?;
        }
        let mut vision = None;
        if self.vision {
            let path = folder.join(format!("mmproj-{name}.gguf"));
            if !path.exists() {
                SyntheticConfig { weight_type: TensorType::F16, ..config }.write_vision(&path)?;
            }
            vision = Some(path);
        }
        Ok(ModelFiles::Files { text, vision })
    }

    /// Random adapters for this model, of rank 8. Each changes every linear layer of attention and MLP, and those of the delta
    /// net where it has as many value heads as key heads: else their order differs between the two forms.
    ///
    /// # Errors
    /// Those of writing.
    pub fn adapters(&self, folder: &Path, count: usize) -> Result<Vec<SyntheticAdapter>> {
        let config = self.config()?;
        let folder = self.folder(&config, folder)?;
        (1..=count).map(|number| adapter::write(&config, number, &folder)).collect()
    }

    fn file_name(&self) -> String {
        self.to_string().replace(':', "-")
    }

    /// The folder of this model's files, which is there afterwards.
    fn folder(&self, config: &SyntheticConfig, folder: &Path) -> Result<PathBuf> {
        // What the files depend on is part of its name, so that a changed generator never meets an old file.
        let digest = blake3::hash(format!("{config:?}").as_bytes()).to_hex();
        let folder = folder.join(format!("{}-{}", self.file_name(), digest.get(..12).unwrap_or_default()));
        std::fs::create_dir_all(&folder).map_err(|source| Error::io(&folder, source))?;
        Ok(folder)
    }

    /// Where models are kept unless somebody says otherwise: `consort/synthetic` in the user's cache folder, or in the
    /// temporary one where there is none.
    #[must_use]
    pub fn default_folder() -> PathBuf {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let cache = set("XDG_CACHE_HOME").or_else(|| set("LOCALAPPDATA")).or_else(|| Some(set("HOME")?.join(".cache")));
        cache.unwrap_or_else(std::env::temp_dir).join("consort").join("synthetic")
    }

    fn config(&self) -> Result<SyntheticConfig> {
        let etude = Gguf::from_static(crate::bundled::TEXT)?;
        let tokenizer = SyntheticTokenizer {
            words: consort_bench::live::WORDS.iter().map(ToString::to_string).collect(),
            chat_template: etude.metadata().require_str("tokenizer.chat_template")?.to_owned(),
        };
        let mut config = dimensions(&self.size).ok_or_else(|| unknown(&self.size))?;
        config.tokenizer = Some(tokenizer);
        config.weight_type = self.mix.base();
        config.file_type = Some(self.mix.file_type());
        let shapes = config.shapes()?;
        let heads_per_key = config.heads / config.kv_heads.max(1);
        let types = mix_types(self.mix, &shapes, heads_per_key);
        config.types = shapes.into_iter().zip(types).filter_map(|((name, _), kind)| Some((name, kind?))).collect();
        Ok(config)
    }
}

/// `tiny` is for tests: it computes in no time.
fn dimensions(size: &str) -> Option<SyntheticConfig> {
    match size {
        "tiny" => Some(SyntheticConfig { vocab: 4096, ..SyntheticConfig::tiny() }),
        _ => SyntheticConfig::family(size),
    }
}

fn unknown(name: &str) -> Error {
    Error::new(
        ErrorKind::InvalidConfig,
        "a synthetic model is named synthetic:SIZE:MIX or synthetic:SIZE:MIX:vision; sizes are 0.8b, 2b, 4b, 9b and tiny, \
         mixes those of `consort quantize`",
    )
    .with_context("model", name)
}

impl FromStr for SyntheticModel {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let rest = name.strip_prefix(PREFIX).ok_or_else(|| unknown(name))?;
        let mut parts = rest.split(':');
        let (Some(size), Some(mix)) = (parts.next(), parts.next()) else { return Err(unknown(name)) };
        let vision = match (parts.next(), parts.next()) {
            (None, None) => false,
            (Some("vision"), None) => true,
            _ => return Err(unknown(name)),
        };
        let size = size.to_ascii_lowercase();
        if dimensions(&size).is_none() {
            return Err(unknown(name));
        }
        Ok(Self { size, mix: mix.parse().map_err(|error: Error| error.with_context("model", name))?, vision })
    }
}

impl std::fmt::Display for SyntheticModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{PREFIX}{}:{}{}", self.size, self.mix, if self.vision { ":vision" } else { "" })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use consort_core::SpecialTokens;

    use super::*;

    fn named(name: &str) -> SyntheticModel {
        name.parse().unwrap()
    }

    #[test]
    fn names_come_back() {
        for name in ["synthetic:0.8b:Q4_K_M", "synthetic:tiny:Q8_0:vision", "synthetic:9b:F16"] {
            assert_eq!(named(name).to_string(), name);
        }
        for wrong in
            ["synthetic:", "synthetic:0.8b", "synthetic:3b:F16", "synthetic:2b:F16:audio", "synthetic:2b:F16:vision:x"]
        {
            assert_eq!(wrong.parse::<SyntheticModel>().unwrap_err().kind(), ErrorKind::InvalidConfig, "{wrong}");
        }
    }

    #[test]
    fn the_mix_is_that_of_published_files() {
        let types = named("synthetic:0.8b:Q4_K_M").config().unwrap().types;
        assert_eq!(types["token_embd.weight"], TensorType::Q6K);
        assert_eq!(types["blk.0.ffn_down.weight"], TensorType::Q6K);
        assert_eq!(types["blk.4.ffn_down.weight"], TensorType::Q4K);
        assert_eq!(types["blk.3.ssm_alpha.weight".replace('3', "2").as_str()], TensorType::Q8_0);
        assert!(!types.contains_key("blk.0.attn_norm.weight"));
    }

    #[test]
    fn a_file_is_made_once_and_its_words_are_tokens() {
        let folder = tempfile::tempdir().unwrap();
        let model = named("synthetic:tiny:Q8_0:vision");
        let files = model.files(folder.path()).unwrap();
        let ModelFiles::Files { text, vision } = &files else { panic!("files") };
        let written = std::fs::metadata(text).unwrap().modified().unwrap();
        assert_eq!(model.files(folder.path()).unwrap(), files);
        assert_eq!(std::fs::metadata(text).unwrap().modified().unwrap(), written);
        assert!(vision.as_ref().unwrap().exists());
        let tokenizer = crate::open_tokenizer(Some(text)).unwrap();
        let words = consort_bench::live::WORDS;
        for word in words {
            let tokens = tokenizer.encode(&format!(" {word}"), SpecialTokens::Plain).unwrap();
            assert_eq!(tokens.len(), 1, "{word}");
        }
        let adapters = model.adapters(folder.path(), 2).unwrap();
        assert_eq!((adapters.len(), &adapters), (2, &model.adapters(folder.path(), 2).unwrap()));
        let backend = crate::load(crate::LoadConfig {
            policy: consort_core::DevicePolicy::Named(consort_core::Device::Cpu),
            ..crate::LoadConfig::new(files.clone())
        })
        .unwrap();
        let peft = consort_core::AdapterFiles::Directory(adapters[0].peft.clone());
        let info = consort_core::block_on(backend.load_adapter("a", peft)).unwrap();
        // Seven layers of each attention and MLP; of the delta net's three none, as it has more value heads.
        assert_eq!((info.rank, info.layers), (8, 4 + 4 * 3));
        let gguf = crate::adapter_at(&adapters[1].gguf);
        let other = consort_core::block_on(backend.load_adapter("b", gguf)).unwrap();
        assert_eq!((other.rank, other.layers, other.bytes), (info.rank, info.layers, info.bytes));
        let special = tokenizer.encode("<|im_start|>user\nqq<|im_end|>", SpecialTokens::Parse).unwrap();
        assert_eq!((special[0], *special.last().unwrap()), (4096 - 275, 4096 - 274));
    }
}
