//! Grammars from strangers: an answer or a typed error, soon, and never a panic.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use consort_core::{ErrorKind, SpecialTokens, Structure};
use consort_grammar::{Compiler, GrammarLimits, Vocabulary};
use consort_text::{Tokenizer, doc_tokenizer_json};
use proptest::prelude::*;
use serde_json::{Value, json};

/// Loose: tests run beside other work.
const PATIENCE: Duration = Duration::from_secs(20);

fn tokenizer() -> Tokenizer {
    Tokenizer::from_json(&doc_tokenizer_json(), None).unwrap()
}

fn compiler() -> Compiler {
    let tokenizer = tokenizer();
    Compiler::new(Vocabulary::new(&tokenizer, 300, tokenizer.end_tokens()).unwrap(), GrammarLimits::default())
}

/// Compiles, and walks as far as it goes: always the first, or always the last allowed token.
fn walk(compiler: &Compiler, structure: &Structure, last: bool) -> Result<String, ErrorKind> {
    let begin = Instant::now();
    let walked = (|| {
        let mut matcher = compiler.compile(structure)?;
        let mut bytes = Vec::new();
        for _ in 0..40 {
            let mask = matcher.mask()?;
            let mut allowed = (0..256u32).filter(|&token| mask.allows(token));
            let Some(token) = (if last { allowed.next_back() } else { allowed.next() }) else { break };
            bytes.extend_from_slice(tokenizer().token_bytes(token).unwrap());
            matcher.commit(token)?;
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    })();
    assert!(begin.elapsed() < PATIENCE, "{:?} for {structure:?}", begin.elapsed());
    walked.map_err(|error: consort_core::Error| {
        assert!(error.context().any(|(key, _)| key == "structure"), "{error}");
        assert!(!error.message().contains("backtrace"), "{error}");
        error.kind()
    })
}

fn refused(structure: &Structure) {
    assert_eq!(walk(&compiler(), structure, true), Err(ErrorKind::InvalidGrammar), "{structure:?}");
}

#[test]
fn what_explodes_or_is_bottomless_is_refused() {
    for regex in ["[a-z", "(?=x)y", &"(".repeat(9000), &"a".repeat(100_000)] {
        refused(&Structure::Regex(regex.into()));
    }
    let nested = "start: ".to_owned() + &"(".repeat(100_000) + "\"a\"" + &")".repeat(100_000);
    for lark in ["", "start: missing", "start: start", "other: \"a\"", "start: \"a", "%import nothing", &nested] {
        refused(&Structure::Lark(lark.into()));
    }
    refused(&Structure::Choice(Vec::new()));
    refused(&Structure::Choice(vec!["x".repeat(400_000)]));
    let deep = (0..3000).fold(json!({}), |inner, _| json!({ "items": inner }));
    refused(&Structure::json_schema(deep));
    for schema in
        [json!(false), json!(1), json!({ "type": "colour" }), json!({ "$ref": "#/nowhere" }), json!({ "pattern": "(" })]
    {
        refused(&Structure::json_schema(schema));
    }
}

#[test]
fn what_is_heavy_ends_soon() {
    let compiler = compiler();
    let wide: serde_json::Map<String, Value> =
        (0..2000).map(|index| (format!("key{index}"), json!({ "type": "string", "maxLength": 500 }))).collect();
    let heavy = [
        Structure::json_schema(json!({ "type": "object", "properties": wide })),
        Structure::Regex("(a|b|ab|ba|aab|bba)*c{1,200}(a*b*){1,50}".into()),
        Structure::Regex(".{0,5000}x.{0,5000}".into()),
        Structure::Regex("((a{1000}){1000}){1000}".into()),
        Structure::Regex("a{99999999}".into()),
        Structure::Lark("start: a\na: a a | \"x\" | \"xx\" | a \"x\" a\n".into()),
        Structure::Lark("start: x+\nx: /[a-z]+/ | /[a-y]+/ | /[b-z]+/\n".into()),
        Structure::json_schema(json!({ "$ref": "#" })),
        Structure::json_schema(
            json!({ "anyOf": (0..200).map(|i| json!({ "const": format!("{i}") })).collect::<Vec<_>>() }),
        ),
    ];
    for structure in heavy {
        for last in [false, true] {
            if let Err(kind) = walk(&compiler, &structure, last) {
                assert_eq!(kind, ErrorKind::InvalidGrammar, "{structure:?}");
            }
        }
    }
}

#[test]
fn copies_of_a_cached_grammar_do_not_meet() {
    let compiler = compiler();
    let structure = Structure::Choice(vec!["north".into(), "south".into()]);
    let mut one = compiler.compile(&structure).unwrap();
    for token in tokenizer().encode("north", SpecialTokens::Plain).unwrap() {
        assert!(one.mask().unwrap().allows(token));
        one.commit(token).unwrap();
    }
    let two = compiler.compile(&structure).unwrap();
    assert!(one.is_complete() && one.may_end().unwrap() && !two.is_complete());
    let mask = one.mask().unwrap();
    let ends = compiler.vocabulary().end_tokens();
    assert_eq!(mask.count(), ends.len());
    assert!(ends.iter().all(|&end| mask.allows(end)));
    assert_eq!(one.commit(5).unwrap_err().kind(), ErrorKind::Unexpected);
}

#[test]
fn a_model_without_end_tokens_has_complete_structures_too() {
    let compiler = Compiler::new(Vocabulary::new(&tokenizer(), 258, &[]).unwrap(), GrammarLimits::default());
    let mut matcher = compiler.compile(&Structure::Regex("ab".into())).unwrap();
    for token in tokenizer().encode("ab", SpecialTokens::Plain).unwrap() {
        assert_eq!(matcher.mask().unwrap().count(), 1);
        matcher.commit(token).unwrap();
    }
    assert!(matcher.is_complete());
    assert_eq!(matcher.mask().unwrap().count(), 0);
}

#[test]
fn control_tokens_are_never_allowed() {
    let tokenizer = tokenizer();
    let compiler = compiler();
    let mut matcher = compiler.compile(&Structure::Regex("(.|\n)*".into())).unwrap();
    let mask = matcher.mask().unwrap();
    let start = tokenizer.token_to_id("<|im_start|>").unwrap();
    assert!(!mask.allows(start) && mask.allows(b'<'.into()), "text that looks like one is text");
    assert!((258..300).all(|token| !mask.allows(token)), "rows without a token");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]
    #[test]
    fn any_regex_is_answered(regex in r"[a-c()\[\]{}|*+?.,0-9\\^$-]{0,24}", last: bool) {
        let _ = walk(&compiler(), &Structure::Regex(regex), last);
    }

    #[test]
    fn any_lark_is_answered(body in "[a-c():|*+?~/\"\\[\\]{}.,0-9 \n%-]{0,40}", last: bool) {
        let _ = walk(&compiler(), &Structure::Lark(format!("start: {body}")), last);
    }

    #[test]
    fn any_schema_is_answered(
        keys in proptest::collection::vec(proptest::sample::select(vec![
            "type", "properties", "items", "anyOf", "allOf", "oneOf", "enum", "const", "pattern", "format", "minLength",
            "maxLength", "minimum", "maximum", "multipleOf", "minItems", "maxItems", "prefixItems", "required", "$ref", "not",
            "additionalProperties", "x-guidance", "patternProperties",
        ]), 0..5),
        values in proptest::collection::vec(proptest::sample::select(vec![
            "\"object\"", "\"string\"", "\"integer\"", "3", "-1.5", "[]", "{}", "[\"a\"]", "{\"a\":{}}", "[{}]", "true", "null",
            "\"#\"", "\"[a-z]{2}\"", "[{\"type\":\"integer\"},{\"type\":\"string\"}]", "1e300", "\"date\"", "[\"type\"]",
        ]), 5),
        last: bool,
    ) {
        let mut schema = serde_json::Map::new();
        for (key, value) in keys.into_iter().zip(values) {
            schema.insert(key.into(), serde_json::from_str(value).unwrap());
        }
        let _ = walk(&compiler(), &Structure::json_schema(Value::Object(schema)), last);
    }
}
