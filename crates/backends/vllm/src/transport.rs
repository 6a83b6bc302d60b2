//! The inner seam: one server, whatever it is spoken to by.

use std::sync::Arc;

use consort_core::{BoxFuture, Result, SpecialTokens, TokenId};

use crate::call::{Call, ChunkStream};
use crate::facts::ServerFacts;

/// The operation of errors that say that no connection to the server was made, so that nothing can have been begun there.
pub(crate) const UNREACHED: &str = "vllm::connect";

/// One server.
///
/// Every method has its own time limit ([`Timeouts`](crate::Timeouts)), and errors say by their status whether the same can
/// be asked again ([`ErrorStatus`](consort_core::ErrorStatus)): what is temporary was not begun, or is gone. Whichever finds
/// that there is no way to the server says so by the operation [`UNREACHED`].
pub(crate) trait Transport: Send + Sync {
    /// Finds out what the server is and what it really does, by asking it.
    fn probe(&self) -> BoxFuture<'_, Result<ServerFacts>>;

    /// Whether it lives and answers.
    fn health(&self) -> BoxFuture<'_, Result<()>>;

    /// Asks for a reply. Ends when the server has accepted; its errors until then are this future's, later ones the
    /// stream's. A stream keeps the call, whose prompt may be megabytes.
    fn generate<'a>(&'a self, call: &'a Arc<Call>) -> BoxFuture<'a, Result<ChunkStream>>;

    /// Loads an adapter from a path that the server sees. One that is loaded already is no error.
    fn load_adapter<'a>(&'a self, name: &'a str, path: &'a str) -> BoxFuture<'a, Result<()>>;

    /// Forgets an adapter. One that is not there is no error.
    fn unload_adapter<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<()>>;

    /// Text to tokens by the server's tokenizer.
    fn tokenize<'a>(&'a self, text: &'a str, special: SpecialTokens) -> BoxFuture<'a, Result<Vec<TokenId>>>;

    /// A conversation to tokens by the server's template and tokenizer; pictures are not among them.
    fn write<'a>(&'a self, chat: &'a crate::call::CallPrompt) -> BoxFuture<'a, Result<Vec<TokenId>>>;

    /// Tokens to text by the server's tokenizer, special ones shown.
    fn detokenize<'a>(&'a self, tokens: &'a [TokenId]) -> BoxFuture<'a, Result<String>>;
}
