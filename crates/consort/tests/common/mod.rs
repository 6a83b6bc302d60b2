//! The command, started as a person or a script starts it.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use consort_gguf::{GgufWriter, TensorType, quantize};
use consort_peft::{Linear, Naming, Network, PeftAdapter};
use serde_json::Value;

/// The path of the command.
pub const CONSORT: &str = env!("CARGO_BIN_EXE_consort");

/// The repository's root, where every command is started.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

pub fn consort(args: &[&str]) -> Output {
    consort_with_input(args, "")
}

/// Starts the command with `input` in its standard input, which is a pipe.
pub fn consort_with_input(args: &[&str], input: &str) -> Output {
    let mut child = Command::new(CONSORT)
        .args(args)
        .current_dir(repository())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    // Beside the reading, so that no full pipe makes both sides wait. A command that ends early leaves it unread.
    let writer = std::thread::spawn(move || drop(stdin.write_all(input.as_bytes())));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// The standard output of a command that succeeds.
pub fn succeed(args: &[&str]) -> String {
    let output = consort(args);
    assert!(output.status.success(), "{args:?}: {}", stderr(&output));
    stdout(&output)
}

pub fn json(args: &[&str]) -> Value {
    serde_json::from_str(&succeed(args)).unwrap()
}

/// The exit code of a command, and what it says on stderr.
pub fn failure(args: &[&str]) -> (i32, String) {
    let output = consort(args);
    (output.status.code().unwrap(), stderr(&output))
}

/// The bundled adapter `pirate` as one GGUF file, as llama.cpp's converter writes it. etude has one key head, so that value
/// heads stand in one order.
pub fn pirate_as_gguf(folder: &Path) -> PathBuf {
    let deltas = PeftAdapter::open(&repository().join("models/etude/adapters/pirate")).unwrap().into_deltas();
    let mut writer = GgufWriter::new("qwen35");
    writer.set("general.type", "adapter").set("adapter.type", "lora");
    writer.set("adapter.lora.alpha", deltas[0].scale * deltas[0].rank as f32);
    for delta in &deltas {
        let linear = Linear::parse(delta.path(), Naming::Transformers, Network::Dense).unwrap();
        let name = linear.name(Naming::Gguf, Network::Dense).unwrap();
        let name = format!("blk.{}.{name}", delta.layer.unwrap());
        let (rank, inputs, outputs) = (delta.rank as u64, delta.in_features as u64, delta.out_features as u64);
        let bytes = |values: &[f32]| quantize(TensorType::F32, values, None).unwrap();
        writer.add_tensor_bytes(format!("{name}.lora_a"), &[inputs, rank], TensorType::F32, bytes(&delta.a)).unwrap();
        writer.add_tensor_bytes(format!("{name}.lora_b"), &[rank, outputs], TensorType::F32, bytes(&delta.b)).unwrap();
    }
    let path = folder.join("pirate-lora.gguf");
    writer.write_to(&path).unwrap();
    path
}
