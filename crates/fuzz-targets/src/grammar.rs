//! Grammars, and replies held to them.

use std::sync::OnceLock;

use consort_core::{ErrorKind, Structure};
use consort_grammar::{Compiler, GrammarLimits, Matcher, Vocabulary};
use consort_text::Tokenizer;

/// Two parts: choices (the kind of grammar, then one byte for each token that is drawn), and the grammar.
///
/// # Panics
/// When an allowed token is refused, a copy differs from its original, or an error is of another kind than was promised.
pub fn grammar(data: &[u8]) {
    let [choices, text] = crate::parts(data);
    let (&kind, draws) = choices.split_first().unwrap_or((&0, &[]));
    let text = String::from_utf8_lossy(text);
    let structure = match kind % 4 {
        0 => Structure::Regex(text.into_owned()),
        1 => Structure::Lark(text.into_owned()),
        2 => Structure::Choice(text.split('|').map(str::to_owned).collect()),
        _ => match serde_json::from_str(&text) {
            Ok(schema) => Structure::json_schema(schema),
            Err(_) => Structure::JsonObject,
        },
    };
    let matcher = compiler().compile(&structure);
    match matcher.and_then(|matcher| walk(matcher, draws)) {
        Ok(()) => {}
        Err(error) => assert_eq!(error.kind(), ErrorKind::InvalidGrammar, "{error}"),
    }
}

fn walk(mut matcher: Matcher, draws: &[u8]) -> consort_core::Result<()> {
    for &draw in draws.iter().take(64) {
        let mask = matcher.mask()?;
        let mut copy = matcher.fork();
        let allowed: Vec<u32> = (0..256).filter(|&token| mask.allows(token)).collect();
        assert_eq!(copy.mask()?.count(), mask.count());
        assert!(!matcher.is_complete() || allowed.is_empty(), "something follows the end");
        let Some(&token) = allowed.get(usize::from(draw) % allowed.len().max(1)) else { break };
        matcher.commit(token)?;
    }
    Ok(())
}

/// Of the 256 bytes, with little room for anything.
fn compiler() -> &'static Compiler {
    static COMPILER: OnceLock<Compiler> = OnceLock::new();
    COMPILER.get_or_init(|| {
        let tokenizer = Tokenizer::from_json(&consort_text::doc_tokenizer_json(), None).unwrap();
        let limits = GrammarLimits {
            build_fuel: 100_000,
            step_fuel: 50_000,
            step_items: 10_000,
            lexer_states: 5_000,
            grammar_symbols: 20_000,
            cached: 1,
            ..GrammarLimits::default()
        };
        Compiler::new(Vocabulary::new(&tokenizer, 300, tokenizer.end_tokens()).unwrap(), limits)
    })
}
