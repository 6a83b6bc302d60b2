//! Writes the seeds of the fuzzers, `fuzz/corpus/`, from our own files: `cargo run -p consort-fuzz-targets --example seeds`.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;

use consort_fuzz_targets::join;
use consort_gguf::{Array, GgufWriter, ShardLimit, TensorType};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let write = |target: &str, name: &str, bytes: &[u8]| {
        let folder = root.join("fuzz/corpus").join(target);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(name), bytes).unwrap();
    };
    let read = |path: &str| std::fs::read(root.join(path)).unwrap();

    write("gguf", "model.gguf", &bytes(model()));
    write("gguf", "shards", &shards());
    write("gguf", "vocabulary.gguf", &bytes(vocabulary()));

    let tokenizer = consort_text::doc_tokenizer_json();
    let config = br#"{"eos_token":"<|im_end|>","pad_token":{"content":"<|im_end|>"},"chat_template":"x"}"#;
    write("tokenizer", "json", &join(&["Hello, 世界! <|im_end|>\n  12".as_bytes(), config, &tokenizer]));
    write("tokenizer", "gguf", &join(&[b"abb<|im_end|> a<think>", b"", &bytes(vocabulary())]));

    let conversation = json!({ "messages": [
        { "role": "system", "content": "Be kind." },
        { "role": "user", "content": [{ "type": "image" }, { "type": "text", "text": "What is it?" }] },
        { "role": "assistant", "content": "A cat.", "reasoning_content": "Whiskers.", "tool_calls": [
            { "function": { "name": "f", "arguments": { "a": 1.5, "b": [true, null], "c": "é" } } }] },
        { "role": "tool", "content": "ok" },
    ], "tools": [{ "name": "f", "parameters": {} }], "add_generation_prompt": true, "enable_thinking": false });
    let conversation = conversation.to_string().into_bytes();
    write("template", "etude", &join(&[&conversation, &read("models/etude/chat_template.jinja")]));
    write("template", "own", &join(&[&conversation, &read("crates/text/tests/golden/own.jinja")]));
    let cases: Vec<Value> = serde_json::from_slice(&read("crates/text/tests/golden/expression_cases.json")).unwrap();
    for (index, cases) in cases.chunks(20).enumerate() {
        let source: Vec<&str> = cases.iter().map(|case| case["template"].as_str().unwrap()).collect();
        write("template", &format!("expressions-{index}"), &join(&[b"", source.join("\n").as_bytes()]));
    }

    for (name, kind, grammar) in [
        ("regex", 0, r"(?i:a|b)[^c-e]{2,4}\p{L}*\d+"),
        ("lark", 1, "start: item+ end?\nitem: WORD \" \" | \"(\" start \")\"\nWORD: /[a-z]+/\nend: \".\"\n"),
        ("choice", 2, "yes|yellow|no"),
        (
            "schema",
            3,
            r##"{"type":"object","properties":{"a":{"type":"integer","minimum":3},"b":{"type":"array",
            "items":{"$ref":"#/$defs/c"},"maxItems":3}},"required":["a"],"additionalProperties":false,
            "$defs":{"c":{"anyOf":[{"type":"string","pattern":"^x+$"},{"enum":[null,true,1.5]}]}}}"##,
        ),
    ] {
        write("grammar", name, &join(&[&[kind, 0, 7, 255, 31, 2, 90, 11, 64, 3, 0, 0], grammar.as_bytes()]));
    }

    for name in [
        "rgb.png",
        "palette_alpha.png",
        "palette.gif",
        "transparent.gif",
        "lossy.webp",
        "lossless.webp",
        "animated.webp",
        "progressive.jpg",
        "restart.jpg",
        "exif6.jpg",
    ] {
        write("image", name, &read(&format!("crates/vision/tests/golden/images/{name}")));
    }

    let config = json!({ "peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "in_proj_qkv"],
        "bias": "none", "use_rslora": true, "rank_pattern": { "layers.1.q_proj": 1 }, "alpha_pattern": { "q_proj": 8 } });
    write("adapter", "lora", &join(&[config.to_string().as_bytes(), &weights(2)]));
    write("adapter", "etude", &join(&[&read("models/etude/adapters/pirate/adapter_config.json"), &weights(8)]));
    write("adapter", "gguf", &join(&[b"", &bytes(lora())]));

    let calls = "I look.\n\n<tool_call>\n<function=act>\n<parameter=text>\n\"a\nb\"\n</parameter>\n<parameter=count>\n-7\n\
        </parameter>\n<parameter=list>\n[1, {\"a\": null}]\n</parameter>\n</function>\n</tool_call>\n<tool_call>\n\
        <function=other>\n</function>\n</tool_call>";
    for (name, choices, text) in [
        ("calls", [2, 0, 0, 0], calls),
        ("whole", [2, 1, 0, 2], calls),
        ("limits", [0, 0, 90, 1], calls),
        ("reasoning", [1, 0, 0, 0], "Hm.\n</think>\n\nYes. <think>no</think>\n"),
        ("think", [0, 0, 0, 3], "<think>\nHm.\n</think>\n\nYes."),
        (
            "broken",
            [2, 0, 0, 0],
            "<tool_call>\n<function=act>\n<parameter=text>\nx\n</function>\n</tool_call>\n<tool_call>\n<function=act>?",
        ),
    ] {
        write("reply", name, &join(&[&choices, text.as_bytes()]));
    }
}

fn bytes(writer: GgufWriter<'_>) -> Vec<u8> {
    let mut file = Vec::new();
    writer.write(&mut file).unwrap();
    file
}

/// Every kind of metadata, and tensors of a few types.
fn model() -> GgufWriter<'static> {
    let mut writer = GgufWriter::new("test");
    writer.set("a.number", 7_u32).set("a.text", "some text").set("a.flag", true).set("a.float", 1.5_f64);
    writer.set("a.types", vec![1_i32, 2, 3]).set("a.texts", vec!["one".to_owned(), String::new()]);
    writer.set("a.nested", vec![Array::Array(vec![Array::U8(vec![1, 2])]), Array::Bool(vec![true, false])]);
    let kinds = [
        TensorType::F32,
        TensorType::F16,
        TensorType::BF16,
        TensorType::Q8_0,
        TensorType::Q4_0,
        TensorType::Q4K,
        TensorType::Q5K,
        TensorType::Q6K,
        TensorType::Q3K,
        TensorType::Q2K,
        TensorType::IQ4XS,
        TensorType::IQ4NL,
    ];
    for kind in kinds {
        let length = kind.bytes_for(256).unwrap();
        let data: Vec<u8> = (0..length).map(|index| (index * 37 % 251) as u8).collect();
        writer.add_tensor_bytes(kind.name(), &[256], kind, data).unwrap();
    }
    writer
}

fn shards() -> Vec<u8> {
    let mut writer = GgufWriter::new("test");
    writer.add_tensor_bytes("one", &[8], TensorType::F32, vec![1; 32]).unwrap();
    writer.add_tensor_bytes("other", &[32], TensorType::Q8_0, vec![2; 34]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let paths =
        writer.write_shards(&folder.path().join("m.gguf"), ShardLimit::Tensors(std::num::NonZeroUsize::MIN)).unwrap();
    let files: Vec<Vec<u8>> = paths.iter().map(|path| std::fs::read(path).unwrap()).collect();
    join(&[&files[0], &files[1]])
}

fn vocabulary() -> GgufWriter<'static> {
    let mut writer = GgufWriter::new("test");
    writer.set("tokenizer.ggml.model", "gpt2").set("tokenizer.ggml.pre", "qwen35");
    let tokens = ["a", "b", "ab", "<|im_end|>", "[PAD4]", "<think>", "Ġ", "Ġa"].map(str::to_owned).to_vec();
    writer.set("tokenizer.ggml.tokens", tokens);
    writer.set("tokenizer.ggml.token_type", vec![1_i32, 1, 1, 3, 5, 4, 1, 1]);
    writer.set("tokenizer.ggml.merges", vec!["a b".to_owned(), "Ġ a".to_owned()]);
    writer.set("tokenizer.ggml.eos_token_id", 3_u32);
    writer
}

/// An activated adapter, in two types of numbers.
fn lora() -> GgufWriter<'static> {
    let mut writer = GgufWriter::new("qwen35");
    writer.set("general.type", "adapter").set("adapter.type", "lora").set("adapter.lora.alpha", 4.0_f32);
    writer.set("adapter.alora.invocation_tokens", vec![5_u32, 6]);
    for (name, dims, kind) in [
        ("blk.0.attn_q.weight.lora_a", [4, 2], TensorType::F32),
        ("blk.0.attn_q.weight.lora_b", [2, 4], TensorType::F16),
        ("blk.1.attn_qkv.weight.lora_a", [4, 2], TensorType::BF16),
        ("blk.1.attn_qkv.weight.lora_b", [2, 8], TensorType::F32),
    ] {
        let length = kind.bytes_for(dims[0] * dims[1]).unwrap();
        let data: Vec<u8> = (0..64_u8).cycle().take(length as usize).collect();
        writer.add_tensor_bytes(name, &dims, kind, data).unwrap();
    }
    writer
}

fn weights(rank: usize) -> Vec<u8> {
    let prefix = "base_model.model.model.layers";
    let mut tensors = BTreeMap::new();
    let data: Vec<u8> = (0..64_u8).cycle().take(256).collect();
    for (name, shape) in [
        ("0.self_attn.q_proj.lora_A.weight", vec![rank, 4]),
        ("0.self_attn.q_proj.lora_B.weight", vec![4, rank]),
        ("1.linear_attn.in_proj_qkv.lora_A.weight", vec![rank, 4]),
        ("1.linear_attn.in_proj_qkv.lora_B.weight", vec![8, rank]),
    ] {
        let length = 4 * shape.iter().product::<usize>();
        tensors.insert(format!("{prefix}.{name}"), TensorView::new(Dtype::F32, shape, &data[..length]).unwrap());
    }
    safetensors::serialize(tensors, None).unwrap()
}
