//! What the tests of the vLLM backend talk to when there is no vLLM: a development tool, in no shipped program.
//!
//! - A [`Recorder`] stands between a client and a vLLM, passes everything through, and writes a [`Transcript`].
//! - A [`Player`] serves a transcript. A request that was not recorded is a *stranger*: it is refused with the nearest recorded
//!   key and the first difference, and counted.
//! - A [`Synthetic`] server imitates vLLM around a model whose answer everybody knows.
//! - A [`Script`] of [`Fault`]s breaks what a player or a synthetic server answers.
//!
//! All of them listen on two free ports of loopback, one for HTTP/1.1 and one for gRPC, and run in a thread of their own: a test
//! needs no runtime.
//!
//! ```
//! use std::time::Duration;
//!
//! use consort_vllm_replay::{After, Cut, Fault, Script, Synthetic, SyntheticConfig, When};
//!
//! # fn main() -> consort_core::Result<()> {
//! let synthetic = Synthetic::start(SyntheticConfig::default())?;
//! synthetic.server().set_script(
//!     Script::new().on(When::containing("/inference").nth(1), Fault::Cut { after: After::Pieces(3), how: Cut::Reset }),
//! );
//! let url = synthetic.server().http_url();
//! // … a client connects to `url`, and its first reply breaks after three tokens.
//! # let _ = (url, Duration::ZERO);
//! # Ok(())
//! # }
//! ```
//!
//! The crate's README describes the format of transcripts and says how to record one.
#![forbid(unsafe_code)]

mod answer;
mod fault;
mod key;
mod link;
mod listen;
mod perform;
mod player;
mod proto;
mod recorder;
mod rules;
mod schema;
mod server;
mod synthetic;
mod tls;
mod transcript;

pub use answer::{Asked, Ending, GrpcCode, Protocol};
pub use fault::{After, Cut, ErrorShape, Fault, FrontEnd, Script, When};
pub use key::Key;
pub use player::{Pauses, Player, PlayerConfig, Stranger};
pub use recorder::{Recorder, RecorderConfig};
pub use rules::Rules;
pub use server::{Counts, Server, ServerConfig};
pub use synthetic::{Bytes as ByteWords, Reply as SyntheticReply, Synthetic, SyntheticConfig, Words, next_token};
#[cfg(feature = "tls")]
pub use tls::Certificate;
pub use tls::ServerTls;
pub use transcript::{Conversation, Reply, Transcript};
