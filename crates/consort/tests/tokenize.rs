//! `consort tokenize`.
#![allow(clippy::unwrap_used)]

mod common;

use common::{consort_with_input, failure, json, stdout, succeed};

const TEXT: &str = "<|im_start|>user\nWhat do you see?<|im_end|>\n";

#[test]
fn text_becomes_ids_and_ids_become_text() {
    // The ids are those of the reference tokenizer: `tokenizers` on models/etude/tokenizer.json.
    let ids = succeed(&["tokenize", "--special", "parse", "--ids", TEXT]);
    assert_eq!(ids, "1267 368 198 309 348 283 343 30 1268 198\n");
    assert_eq!(succeed(&["tokenize", "--decode", ids.trim()]), format!("{TEXT}\n"));
    assert_eq!(succeed(&["tokenize", "--special", "parse", "--count", TEXT]), "10\n");
    let plain = succeed(&["tokenize", "--ids", TEXT]);
    assert!(plain.split_whitespace().all(|id| id.parse::<u32>().unwrap() < 1266), "no special token: {plain}");
}

#[test]
fn every_source_of_a_vocabulary_and_of_a_text_will_do() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("text.txt");
    std::fs::write(&file, TEXT).unwrap();
    let expected = succeed(&["tokenize", "--ids", TEXT]);
    assert_eq!(succeed(&["tokenize", "--ids", "--file", file.to_str().unwrap()]), expected);
    for input in [&["tokenize", "--ids"][..], &["tokenize", "--ids", "-"]] {
        assert_eq!(stdout(&consort_with_input(input, TEXT)), expected);
    }
    for model in
        ["models/etude", "models/etude/tokenizer.json", "models/etude/gguf/etude-Q8_0.gguf", "models/etude/gguf"]
    {
        assert_eq!(succeed(&["tokenize", "--ids", "--model", model, TEXT]), expected, "{model}");
    }
}

#[test]
fn the_table_and_the_json_show_pieces() {
    let table = succeed(&["tokenize", "--special", "parse", "see 世<|im_end|>"]);
    for expected in ["\" \"", "\\xe4", "\"<|im_end|>\" special", "tokens, 17 bytes"] {
        assert!(table.contains(expected), "{expected:?} is missing:\n{table}");
    }
    let value = json(&["tokenize", "--special", "parse", "--json", "see 世<|im_end|>"]);
    assert_eq!(value["text"], "see 世<|im_end|>");
    let tokens = value["tokens"].as_array().unwrap();
    assert_eq!(value["count"].as_u64().unwrap(), tokens.len() as u64);
    let bytes: Vec<u8> = tokens
        .iter()
        .flat_map(|token| {
            token["bytes"].as_array().unwrap().iter().map(|byte| u8::try_from(byte.as_u64().unwrap()).unwrap())
        })
        .collect();
    assert_eq!(bytes, "see 世<|im_end|>".as_bytes());
    assert!(tokens.iter().any(|token| token["text"].is_null()), "a piece that is no whole character");
    assert_eq!(tokens.last().unwrap()["special"], true);
}

#[test]
fn what_is_wrong_is_refused() {
    for (args, code, expected) in [
        (&["tokenize", "--decode", "1 two"][..], 4, "two"),
        (&["tokenize", "--decode", "99999"], 4, "99999"),
        (&["tokenize", "--model", "README.md", "x"], 4, "README.md"),
        (&["tokenize", "--model", "no-such-file.gguf", "x"], 5, "no-such-file"),
        (&["tokenize", "--file", "no-such-file.txt"], 5, "no-such-file"),
        (&["tokenize", "--file", "models/etude/demo.png"], 4, "UTF-8"),
        (&["tokenize", "--ids", "--count", "x"], 2, "--count"),
    ] {
        let (found, text) = failure(args);
        assert_eq!(found, code, "{args:?}: {text}");
        assert!(text.contains(expected), "{args:?}: {text}");
    }
}
