//! `consort tokenize`: text to tokens and back, without loading weights.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use consort_core::{Error, ErrorKind, Result, SpecialTokens, TokenId};
use consort_text::{SpecialText, Tokenizer};
use serde_json::json;

use crate::output::Table;
use crate::session;

/// Arguments of `consort tokenize`.
#[derive(Args)]
pub struct TokenizeArgs {
    /// The text. `-`, or nothing at all, reads the standard input.
    #[arg(conflicts_with_all = ["file", "decode"])]
    text: Option<String>,
    /// Read the text from a file, UTF-8.
    #[arg(long, value_name = "FILE", conflicts_with = "decode")]
    file: Option<PathBuf>,
    /// A GGUF file, a tokenizer.json, or a folder that holds either. Default: the bundled etude.
    #[arg(long, value_name = "PATH")]
    model: Option<PathBuf>,
    /// How text that looks like a special token, such as `<|im_end|>`, is read.
    #[arg(long, value_enum, default_value = "plain")]
    special: SpecialChoice,
    /// Turn token ids into text instead: numbers, with commas or blanks between them.
    #[arg(long, value_name = "IDS")]
    decode: Option<String>,
    /// Print one JSON object: every token with its id, its piece and its bytes.
    #[arg(long, conflicts_with_all = ["ids", "count"])]
    json: bool,
    /// Print the ids alone, in one line.
    #[arg(long, conflicts_with = "count")]
    ids: bool,
    /// Print the number of tokens alone.
    #[arg(long)]
    count: bool,
}

/// How text that looks like a special token is tokenized.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum SpecialChoice {
    /// As the special token, as in rendered templates.
    Parse,
    /// As text, as in what people write.
    Plain,
}

impl From<SpecialChoice> for SpecialTokens {
    fn from(choice: SpecialChoice) -> Self {
        match choice {
            SpecialChoice::Parse => Self::Parse,
            SpecialChoice::Plain => Self::Plain,
        }
    }
}

/// Runs the command.
pub fn run(args: &TokenizeArgs) -> Result<()> {
    let tokenizer = consort::open_tokenizer(args.model.as_deref())?;
    let ids = match &args.decode {
        Some(ids) => {
            let ids = parse_ids(ids)?;
            known(&tokenizer, &ids)?;
            ids
        }
        None => tokenizer.encode(&text(args)?, args.special.into())?,
    };
    if args.count {
        anstream::println!("{}", ids.len());
    } else if args.ids {
        anstream::println!("{}", join(&ids));
    } else if args.json {
        let tokens: Vec<_> = ids.iter().map(|&id| describe(&tokenizer, id)).collect();
        let text = tokenizer.decode(&ids, SpecialText::Show);
        anstream::println!("{:#}", json!({ "count": ids.len(), "text": text, "tokens": tokens }));
    } else if args.decode.is_some() {
        anstream::println!("{}", tokenizer.decode(&ids, SpecialText::Show));
    } else {
        anstream::print!("{}", table(&tokenizer, &ids));
    }
    Ok(())
}

fn text(args: &TokenizeArgs) -> Result<String> {
    match (&args.file, args.text.as_deref()) {
        (Some(path), _) => session::read_text(path),
        (None, None | Some("-")) => session::read_stdin(),
        (None, Some(text)) => Ok(text.to_owned()),
    }
}

/// Token ids that a person or a program wrote: numbers with commas, blanks or brackets between them.
///
/// # Errors
/// [`ErrorKind::InvalidRequest`] that names what is no number.
pub fn parse_ids(text: &str) -> Result<Vec<TokenId>> {
    let words = text.split(|c: char| c.is_whitespace() || matches!(c, ',' | '[' | ']')).filter(|word| !word.is_empty());
    let number = |word: &str| {
        word.parse().map_err(|_| {
            let shown: String = word.chars().take(40).collect();
            Error::new(ErrorKind::InvalidRequest, "token ids are whole numbers, with commas or blanks between them")
                .with_context("found", format!("{shown:?}"))
        })
    };
    words.map(number).collect()
}

fn known(tokenizer: &Tokenizer, ids: &[TokenId]) -> Result<()> {
    match ids.iter().find(|&&id| tokenizer.token_bytes(id).is_none()) {
        None => Ok(()),
        Some(id) => Err(Error::new(ErrorKind::InvalidRequest, "the vocabulary has no token of this id")
            .with_context("id", id.to_string())
            .with_context("vocabulary", tokenizer.vocab_size().to_string())),
    }
}

fn join(ids: &[TokenId]) -> String {
    ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

fn describe(tokenizer: &Tokenizer, id: TokenId) -> serde_json::Value {
    let bytes = tokenizer.token_bytes(id).unwrap_or_default();
    json!({
        "id": id,
        "piece": tokenizer.id_to_token(id),
        // Not every token is whole characters: only the bytes say all.
        "text": std::str::from_utf8(bytes).ok(),
        "bytes": bytes,
        "special": tokenizer.is_special(id),
    })
}

fn table(tokenizer: &Tokenizer, ids: &[TokenId]) -> String {
    let mut table = Table::new(["piece", "bytes", "id", "place"]);
    for (place, &id) in ids.iter().enumerate() {
        let bytes = tokenizer.token_bytes(id).unwrap_or_default();
        let piece = match std::str::from_utf8(bytes) {
            Ok(text) => format!("{text:?}"),
            Err(_) => bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect(),
        };
        let special = if tokenizer.is_special(id) { " special" } else { "" };
        table.row([format!("{piece}{special}"), bytes.len().to_string(), id.to_string(), place.to_string()]);
    }
    let bytes: usize = ids.iter().map(|&id| tokenizer.token_bytes(id).unwrap_or_default().len()).sum();
    format!("{}{} tokens, {bytes} bytes\n", table.render(), ids.len())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn ids_are_read_as_people_and_programs_write_them() {
        assert_eq!(parse_ids("[1, 2,3]\n4").unwrap(), [1, 2, 3, 4]);
        assert_eq!(parse_ids(" ").unwrap(), [0_u32; 0]);
        for wrong in ["1 two", "-1", "4294967296", "1.5"] {
            let error = parse_ids(wrong).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidRequest, "{error}");
        }
    }
}
