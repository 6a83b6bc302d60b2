//! Every committed input, through the function that the fuzzer runs.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::path::{Path, PathBuf};

use consort_fuzz_targets::TARGETS;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz").join(name)
}

fn inputs(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

#[test]
fn seeds_and_findings_are_harmless() {
    for (name, target) in TARGETS {
        let seeds = inputs(&folder("corpus").join(name));
        assert!(!seeds.is_empty(), "{name} has no seeds");
        for path in seeds.into_iter().chain(inputs(&folder("findings").join(name))) {
            // The path tells, when it panics, which input it was.
            println!("{}", path.display());
            target(&std::fs::read(&path).unwrap());
        }
    }
}

#[test]
fn every_target_survives_the_seeds_of_all_others() {
    for (name, target) in TARGETS {
        for (_, path) in TARGETS
            .iter()
            .flat_map(|(other, _)| inputs(&folder("corpus").join(other)).into_iter().map(move |path| (other, path)))
        {
            println!("{name}: {}", path.display());
            target(&std::fs::read(&path).unwrap());
        }
        target(&[]);
    }
}

/// Seeds that are refused at the first byte would teach a fuzzer nothing.
#[test]
fn seeds_are_accepted() {
    use consort_fuzz_targets::{fitted, parts};
    use consort_gguf::Gguf;

    let seed = |path: &str| std::fs::read(folder("corpus").join(path)).unwrap();
    assert_eq!(Gguf::from_bytes(seed("gguf/model.gguf")).unwrap().tensors().len(), 12);
    for name in ["lora", "etude", "gguf"] {
        let adapter = fitted(&seed(&format!("adapter/{name}"))).unwrap();
        let tensors: Vec<_> = adapter.deltas().map(|delta| delta.tensor.as_str()).collect();
        assert_eq!(tensors, ["blk.0.attn_q.weight", "blk.1.attn_qkv.weight"], "{name}");
    }
    let data = seed("tokenizer/json");
    let [_, config, file] = parts(&data);
    consort_text::Tokenizer::from_json(file, Some(config)).unwrap();
    let data = seed("tokenizer/gguf");
    let [_, _, file] = parts(&data);
    consort_text::Tokenizer::from_gguf(&Gguf::from_bytes(file.to_vec()).unwrap()).unwrap();
    for path in inputs(&folder("corpus/image")) {
        let bytes = std::fs::read(&path).unwrap();
        consort_vision::RgbImage::decode(&bytes, &consort_vision::ImageLimits::default()).unwrap();
    }
    let tokenizer = consort_text::Tokenizer::from_json(&consort_text::doc_tokenizer_json(), None).unwrap();
    let vocabulary = consort_grammar::Vocabulary::new(&tokenizer, 300, tokenizer.end_tokens()).unwrap();
    let compiler = consort_grammar::Compiler::new(vocabulary, consort_grammar::GrammarLimits::default());
    for (name, structure) in
        [("regex", consort_core::Structure::Regex as fn(String) -> _), ("lark", consort_core::Structure::Lark)]
    {
        let data = seed(&format!("grammar/{name}"));
        let [_, grammar] = parts(&data);
        compiler.compile(&structure(String::from_utf8(grammar.to_vec()).unwrap())).unwrap();
    }
    let data = seed("grammar/schema");
    let [_, schema] = parts(&data);
    compiler.compile(&consort_core::Structure::json_schema(serde_json::from_slice(schema).unwrap())).unwrap();
    for name in ["etude", "own"] {
        let data = seed(&format!("template/{name}"));
        let [_, source] = parts(&data);
        consort_text::ChatTemplate::new(std::str::from_utf8(source).unwrap()).unwrap();
    }
}
