//! The definition in a GGUF file's metadata.

use consort_core::{Result, TokenId};
use consort_gguf::Metadata;

use super::build::{Added, Definition, MAX_VOCAB, bad};
use super::{PreTokenizer, shorten};

/// Values of `tokenizer.ggml.token_type`.
const NORMAL: u32 = 1;
const CONTROL: u32 = 3;
const USER_DEFINED: u32 = 4;

pub(super) fn definition(metadata: &Metadata) -> Result<Definition> {
    let model = metadata.require_str("tokenizer.ggml.model")?;
    if model != "gpt2" {
        return Err(bad("only byte-level BPE tokenizers (gpt2) are supported")
            .with_context("tokenizer.ggml.model", shorten(model)));
    }
    let pre = PreTokenizer::from_gguf_name(metadata.require_str("tokenizer.ggml.pre")?)?;
    let tokens = metadata.array_of_strings("tokenizer.ggml.tokens")?;
    if tokens.len() > MAX_VOCAB {
        return Err(bad("the vocabulary is too large").with_context("tokens", tokens.len().to_string()));
    }
    let types = if metadata.contains("tokenizer.ggml.token_type") {
        let types = metadata.array_of_u32("tokenizer.ggml.token_type")?;
        if types.len() != tokens.len() {
            return Err(bad("there are not as many token types as tokens")
                .with_context("tokens", tokens.len().to_string())
                .with_context("types", types.len().to_string()));
        }
        types
    } else {
        vec![NORMAL; tokens.len()]
    };

    let (mut vocab, mut added, mut unused) = (Vec::with_capacity(tokens.len()), Vec::new(), Vec::new());
    for ((token, kind), id) in tokens.iter().zip(types).zip(0 as TokenId..) {
        match kind {
            NORMAL => vocab.push((token.clone(), id)),
            CONTROL | USER_DEFINED => added.push(Added { text: token.clone(), id, special: kind == CONTROL }),
            // Unknown, unused and padding entries are never produced from text.
            _ => unused.push((token.clone(), id)),
        }
    }

    let merges = metadata
        .array_of_strings("tokenizer.ggml.merges")?
        .iter()
        .map(|merge| {
            let (left, right) = merge.split_once(' ').ok_or_else(|| {
                bad("a merge is not two tokens with a space between").with_context("merge", shorten(merge))
            })?;
            Ok((left.to_owned(), right.to_owned()))
        })
        .collect::<Result<_>>()?;

    Ok(Definition {
        pre,
        normalize: false,
        ignore_merges: pre == PreTokenizer::Llama3,
        vocab,
        merges,
        added,
        unused,
        bos: metadata.get_u32("tokenizer.ggml.bos_token_id")?,
        eos: metadata.get_u32("tokenizer.ggml.eos_token_id")?,
        pad: metadata.get_u32("tokenizer.ggml.padding_token_id")?,
        end_of_turn: metadata.get_u32("tokenizer.ggml.eot_token_id")?,
        chat_template: metadata.get_str("tokenizer.chat_template")?.map(str::to_owned),
    })
}
