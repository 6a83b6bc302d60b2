//! `consort perplexity` and `consort kld` on etude.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;

use common::{failure, json, pirate_as_gguf, succeed};
use serde_json::Value;

/// etude as the checkpoint has it, every weight exact: bf16 values in an F32 file.
fn exact(folder: &Path) -> String {
    let out = folder.to_str().unwrap();
    succeed(&["convert", "--type", "f32", "--output", out, "models/etude"]);
    folder.join("etude-F32.gguf").to_str().unwrap().to_owned()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("no number: {value}"))
}

fn near(found: &Value, expected: f64, tolerance: f64) {
    let found = number(found);
    assert!((found - expected).abs() <= tolerance, "{found}, and not {expected} ± {tolerance}");
}

#[test]
fn perplexity_is_that_of_transformers() {
    // The expected figures were printed by
    //     python crates/bench/reference/perplexity.py models/etude models/etude/eval-small/conversations.txt
    // with the packages of tools/python/requirements.txt.
    let folder = tempfile::tempdir().unwrap();
    let model = exact(folder.path());
    let text = "models/etude/eval-small/conversations.txt";
    for (windows, nll, error, scored) in [
        (&["--context", "128"][..], 6.051_888_613, 0.158_359_058, 1764),
        (&["--context", "128", "--stride", "32"], 6.194_198_071, 0.110_772_494, 3638),
    ] {
        let mut args = vec!["perplexity", "--device", "cpu", "--json", "--model", &model, "--special", "parse", text];
        args.extend(windows);
        let found = json(&args);
        assert_eq!(found["text"]["tokens"], 3639);
        assert_eq!(found["result"]["scored"], scored);
        near(&found["result"]["nll"], nll, 2e-5);
        near(&found["result"]["nll_error"], error, 2e-5);
        near(&found["result"]["perplexity"], nll.exp(), 2e-5 * nll.exp());
        assert_eq!(found["evidence"]["device"], "cpu");
    }
}

#[test]
fn quantized_etude_is_near_itself() {
    let folder = tempfile::tempdir().unwrap();
    let model = exact(folder.path());
    let kld = |model: &str, against: &str| {
        let args = [
            "kld",
            "--device",
            "cpu",
            "--json",
            "--builtin",
            "--context",
            "128",
            "--model",
            model,
            "--against",
            against,
        ];
        json(&args)["result"].clone()
    };
    let q8 = kld("models/etude/gguf/etude-Q8_0.gguf", &model);
    // 7e-5 with activations in f32; the bound is for engines that round those as well.
    assert!(number(&q8["kl"]["mean"]) <= 1e-3, "{q8}");
    assert!(number(&q8["kl"]["p99_9"]) <= 5e-2, "{q8}");
    assert!(number(&q8["top1_agreement"]) >= 0.97, "{q8}");
    assert!(number(&q8["top_probability_change"]) <= 0.01, "{q8}");
    near(&q8["perplexity_ratio"], 1.0, 0.01);
    assert!(number(&q8["kl"]["mean"]) > 1e-7, "two files of different weights cannot be equal: {q8}");

    // The checkpoint is bf16, so nothing is lost there and every kernel of the two files must agree.
    succeed(&["convert", "--type", "bf16", "--output", folder.path().to_str().unwrap(), "--overwrite", "models/etude"]);
    let bf16 = kld(folder.path().join("etude-BF16.gguf").to_str().unwrap(), &model);
    assert!(number(&bf16["kl"]["max"]) <= 1e-5, "{bf16}");
    assert_eq!(number(&bf16["top1_agreement"]), 1.0, "{bf16}");
}

#[test]
fn an_adapter_shows_in_what_is_foreseen() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("pirate.txt");
    let said = "<|im_start|>user\nHi!<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n\
                Arr, hello! How can I help you, matey?<|im_end|>";
    std::fs::write(&text, said).unwrap();
    // One window of 27 tokens; the 13 of its second half are the answer.
    let nll = |adapter: &[&str]| {
        let text = text.to_str().unwrap();
        let mut args = vec!["perplexity", "--device", "cpu", "--json", "--special", "parse", text];
        args.extend(adapter);
        number(&json(&args)["result"]["nll"])
    };
    let (plain, pirate) = (nll(&[]), nll(&["--adapter", "pirate"]));
    assert!(pirate < 0.1 && plain > 0.5, "{pirate} with the adapter, {plain} without");
    let file = pirate_as_gguf(folder.path());
    let gguf = nll(&["--adapter", file.to_str().unwrap()]);
    assert!((gguf - pirate).abs() < 1e-5, "{pirate} in PEFT's format, {gguf} as GGUF");
}

#[test]
fn ids_limits_and_tables() {
    let folder = tempfile::tempdir().unwrap();
    let ids = folder.path().join("ids.txt");
    let tokens =
        succeed(&["tokenize", "--ids", "--special", "parse", "--file", "models/etude/eval-small/conversations.txt"]);
    std::fs::write(&ids, tokens).unwrap();
    let common = ["perplexity", "--device", "cpu", "--json", "--context", "64", "--max-tokens", "300"];
    let of_ids = json(&[&common[..], &["--token-ids", ids.to_str().unwrap()]].concat());
    let of_text = json(&[&common[..], &["--builtin"]].concat());
    assert_eq!(of_ids["result"], of_text["result"]);
    assert_eq!((&of_ids["text"]["tokens"], &of_ids["result"]["windows"]), (&Value::from(300), &Value::from(4)));

    let table = succeed(&["perplexity", "--device", "cpu", "--builtin", "--max-tokens", "300"]);
    for expected in ["perplexity", "± standard error", "300 tokens, 149 of them scored; 1 windows of 300", "on cpu"] {
        assert!(table.contains(expected), "{expected:?} is missing:\n{table}");
    }
    let table =
        succeed(&["kld", "--device", "cpu", "--builtin", "--max-tokens", "300", "--against", "models/etude/gguf"]);
    for expected in [
        "KL divergence, 99.9%",
        "same first choice",
        "100.000%",
        "ratio of the perplexities",
        "1.000000",
        "against: Etude",
    ] {
        assert!(table.contains(expected), "{expected:?} is missing:\n{table}");
    }
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let short = folder.path().join("short.txt");
    std::fs::write(&short, "Hi").unwrap();
    let short = short.to_str().unwrap();
    // A model with another vocabulary, made of the behaviour suite's files.
    let parts = folder.path().join("parts");
    std::fs::create_dir(&parts).unwrap();
    for part in
        ["plain/config.json", "plain/model.safetensors", "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"]
    {
        let from = common::repository().join("crates/behavior/golden").join(part);
        std::fs::copy(&from, parts.join(from.file_name().unwrap())).unwrap();
    }
    let made = folder.path().join("made");
    succeed(&["convert", "--type", "f32", "--output", made.to_str().unwrap(), parts.to_str().unwrap()]);
    let other = made.to_str().unwrap();
    for (args, code, expected) in [
        (&["perplexity", "--device", "cpu"][..], 2, "<FILE>"),
        (&["perplexity", "--builtin"], 3, "--device cpu"),
        (&["perplexity", "--device", "cpu", short], 4, "tokens"),
        (&["perplexity", "--device", "cpu", "--context", "8", short], 4, "8 are needed"),
        (&["perplexity", "--device", "cpu", "--builtin", "--stride", "600"], 4, "stride"),
        (&["perplexity", "--device", "cpu", "--builtin", "--context", "100000"], 4, "tokens"),
        (&["perplexity", "--device", "cpu", "no-such-file.txt"], 5, "no-such-file"),
        (&["perplexity", "--device", "cpu", "models/etude/demo.png"], 4, "UTF-8"),
        (&["kld", "--device", "cpu", "--builtin"], 2, "--against"),
        (&["kld", "--device", "cpu", "--builtin", "--against", "README.md"], 4, "README.md"),
        (&["kld", "--device", "cpu", "--builtin", "--against", other], 4, "different vocabularies"),
    ] {
        let (found, text) = failure(args);
        assert_eq!(found, code, "{args:?}: {text}");
        assert!(text.contains(expected), "{args:?}: {text}");
    }
}
