//! Measures masks over a real vocabulary: `cargo run --release -p consort-grammar --example bench -- VOCABULARY.gguf`.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::time::{Duration, Instant};

use consort_core::{SpecialTokens, Structure};
use consort_gguf::Gguf;
use consort_grammar::{Compiler, GrammarLimits, Vocabulary};
use consort_text::Tokenizer;

fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

fn main() {
    let path = std::env::args_os().nth(1).expect("the path of a GGUF file with a tokenizer");
    let tokenizer = Tokenizer::from_gguf(&Gguf::open(path.as_ref()).unwrap()).unwrap();
    let vocab_size = tokenizer.vocab_size();
    let compiler = Compiler::new(
        Vocabulary::new(&tokenizer, vocab_size, tokenizer.end_tokens()).unwrap(),
        GrammarLimits::default(),
    );
    let schema = serde_json::json!({
        "type": "object",
        "properties": {
            "name": { "type": "string", "maxLength": 40 },
            "age": { "type": "integer", "minimum": 0, "maximum": 120 },
            "likes": { "type": "array", "items": { "type": "string", "maxLength": 30 }, "maxItems": 5 },
            "mood": { "enum": ["calm", "cross", "merry"] },
        },
        "required": ["name", "age", "likes", "mood"],
        "additionalProperties": false,
    });
    let reply = r#"{"name": "Ada, the first of them", "age": 36, "likes": ["numbers", "poems and looms", "tea"], "mood": "calm"}"#;
    let cases = [
        ("JSON schema", Structure::json_schema(schema), reply),
        (
            "regular expression",
            Structure::Regex("[A-Z][a-z ]{0,80}[.]".into()),
            "The circle is red and the star is yellow.",
        ),
        ("choice", Structure::Choice(vec!["yes".into(), "no".into(), "perhaps".into()]), "perhaps"),
    ];
    println!("{vocab_size} tokens, microseconds\n");
    println!(
        "| form | first compilation | compiled again | masks | mask, median | largest |\n|---|---:|---:|---:|---:|---:|"
    );
    for (name, structure, text) in cases {
        let begin = Instant::now();
        let first = compiler.compile(&structure).unwrap();
        let first_time = begin.elapsed();
        drop(first);
        let begin = Instant::now();
        let mut matcher = compiler.compile(&structure).unwrap();
        let again = begin.elapsed();
        let mut times = Vec::new();
        for token in tokenizer.encode(text, SpecialTokens::Plain).unwrap() {
            let begin = Instant::now();
            let mask = matcher.mask().unwrap();
            times.push(begin.elapsed());
            assert!(mask.allows(token), "{name}: {token}");
            matcher.commit(token).unwrap();
        }
        times.sort_unstable();
        let (median, largest) = (times[times.len() / 2], times[times.len() - 1]);
        println!(
            "| {name} | {:.0} | {:.0} | {} | {:.0} | {:.0} |",
            micros(first_time),
            micros(again),
            times.len(),
            micros(median),
            micros(largest)
        );
    }
}
