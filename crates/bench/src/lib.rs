//! Measures engines and servers: how fast they are for live chat, and what their numbers are worth.
//!
//! **Speed.** [`live`] replays workloads ([`live::Workload`]) on any [`ModelBackend`](consort_core::ModelBackend) in this
//! process and any OpenAI-compatible URL, interleaved in one run; [`report`] makes of it a table, JSON and a chart, and
//! compares reports; [`accept`] holds a report against rules that stand in a file; [`overhead`] compares a path of ours with a bare
//! HTTP client.
//!
//! **Quality.** Two instruments, over any [`Engine`](consort_core::Engine) that gives the logits of every position:
//!
//! - [`perplexity`]: how well a model foresees a text, in windows as llama.cpp cuts them or overlapping, with its standard
//!   error.
//! - [`divergence`]: how far one engine's distributions are from a reference's on the same tokens: Kullback-Leibler
//!   divergence with its percentiles, how often both would choose the same token, what became of the reference's first
//!   choice. It is what tells whether a quantization, a kernel or another engine still says the same, long before a score
//!   of answers would move.
//!
//! Sums are taken in f64. Memory is bounded: at any time only one chunk of rows of each engine is held
//! ([`QualityConfig::max_row_bytes`]), and eight bytes for each scored token. A logit that is no finite number ends the
//! measurement with an error that names the token.
//!
//! ```
//! use consort_bench::{QualityConfig, Subject, Windows, divergence, perplexity};
//! use consort_core::{Device, DevicePolicy, Engine, SpecialTokens};
//! use consort_native::{NativeConfig, NativeEngine};
//! use consort_text::Tokenizer;
//!
//! # fn main() -> consort_core::Result<()> {
//! let path = std::path::Path::new("../../models/etude/gguf/etude-Q8_0.gguf");
//! let tokenizer = Tokenizer::from_gguf(&consort_gguf::Gguf::open(path)?)?;
//! let text = "<|im_start|>user\nHello!<|im_end|>\n<|im_start|>assistant\nHello! How can I help you?<|im_end|>\n";
//! let tokens = tokenizer.encode(text, SpecialTokens::Parse)?;
//!
//! let policy = DevicePolicy::Named(Device::Cpu);
//! let mut engine = NativeEngine::load(NativeConfig { policy, ..NativeConfig::new(path) })?;
//! let config = QualityConfig { windows: Windows::Strided { stride: 8 }, ..QualityConfig::new(16) };
//! let found = perplexity(&mut engine, &tokens, &config, &mut |_| {})?;
//! assert_eq!(found.scored, tokens.len() - 1);
//!
//! let mut other = NativeEngine::load(NativeConfig { policy, ..NativeConfig::new(path) })?;
//! let [reference, other] = [&mut engine, &mut other].map(|engine| Subject::new(engine, &tokenizer));
//! let found = divergence(reference, other, &tokens, &config, &mut |_| {})?;
//! assert_eq!(found.kl.max, 0.0);
//! assert_eq!(found.top1_agreement, 1.0);
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

pub mod accept;
mod divergence;
pub mod live;
pub mod overhead;
mod perplexity;
pub mod report;
mod rows;
mod softmax;
mod statistics;
mod vocabulary;
mod window;

pub use divergence::{Divergence, Subject, divergence};
pub use perplexity::{Perplexity, perplexity};
pub use rows::Progress;
pub use statistics::Spread;
pub use vocabulary::same_vocabulary;
pub use window::{QualityConfig, Window, Windows};
