//! `consort inspect`: what a model file or an adapter folder holds.

use std::collections::BTreeMap;

use consort_core::Result;
use consort_gguf::{Array, Gguf, TensorInfo, Value};
use consort_peft::PeftAdapter;
use serde_json::json;

use crate::args::InspectArgs;
use crate::output::{self, HEADING, Table, printable, styled};

/// The most characters of a value that are shown.
const MAX_VALUE: usize = 72;

/// Runs the command.
pub fn run(args: &InspectArgs) -> Result<()> {
    if args.path.is_dir() {
        return adapter(args);
    }
    let gguf = Gguf::open(&args.path)?;
    let mut kinds: BTreeMap<&str, (usize, u64, u64)> = BTreeMap::new();
    for tensor in gguf.tensors() {
        let entry = kinds.entry(tensor.kind.name()).or_default();
        entry.0 += 1;
        entry.1 += tensor.elements();
        entry.2 += tensor.byte_len();
    }
    if args.json {
        let metadata: serde_json::Map<_, _> =
            gguf.metadata().iter().map(|(key, value)| (key.to_owned(), json_value(value))).collect();
        let mut object = json!({
            "file": args.path.display().to_string(),
            "version": gguf.version(),
            "files": gguf.file_count(),
            "bytes": gguf.file_len(),
            "metadata": metadata,
            "experts": experts(&gguf)?.map(|(used, count, bytes)| json!({ "used": used, "count": count, "bytes": bytes })),
            "drafts": drafts(&gguf)?.map(|(block, tensors, bytes)| json!({ "block": block, "tensors": tensors, "bytes": bytes })),
            "types": kinds.iter().map(|(name, (tensors, elements, bytes))| json!({
                "type": name, "tensors": tensors, "elements": elements, "bytes": bytes,
            })).collect::<Vec<_>>(),
        });
        if args.tensors {
            object["tensors"] = gguf
                .tensors()
                .map(|tensor| json!({
                    "name": tensor.name, "dims": tensor.dims, "type": tensor.kind.name(), "bytes": tensor.byte_len(),
                    "file": tensor.file(),
                }))
                .collect();
        }
        anstream::println!("{object:#}");
        return Ok(());
    }
    let files = match gguf.file_count() {
        1 => String::new(),
        count => format!(", {count} files"),
    };
    anstream::println!(
        "{} GGUF version {}{files}, {}, {} tensors",
        styled(HEADING, &args.path.display().to_string()),
        gguf.version(),
        output::bytes(gguf.file_len()),
        gguf.tensors().len()
    );
    anstream::println!("\n{}", styled(HEADING, "metadata"));
    for (key, value) in gguf.metadata().iter() {
        anstream::println!("  {key} = {}", shorten(&show(value)));
    }
    let mut table = Table::new(["type", "tensors", "weights", "bytes"]);
    for (name, (tensors, elements, bytes)) in &kinds {
        table.row([(*name).to_owned(), tensors.to_string(), elements.to_string(), output::bytes(*bytes)]);
    }
    anstream::print!("\n{}", table.render());
    if let Some((used, count, bytes)) = experts(&gguf)? {
        anstream::println!(
            "\nexperts: {used} of {count} a token and a shared one; {} are theirs",
            output::bytes(bytes)
        );
    }
    if let Some((block, tensors, bytes)) = drafts(&gguf)? {
        anstream::println!("\nmulti-token prediction: block {block}, {tensors} tensors, {}", output::bytes(bytes));
    }
    if args.tensors {
        let mut table = Table::new(["tensor", "type", "shape (contiguous first)", "bytes"]);
        for tensor in gguf.tensors() {
            table.row([
                printable(&tensor.name),
                tensor.kind.name().to_owned(),
                format!("{:?}", tensor.dims),
                output::bytes(tensor.byte_len()),
            ]);
        }
        anstream::print!("\n{}", table.render());
    }
    Ok(())
}

/// Of a mixture of experts: how many of how many a token goes through, and the bytes of all of them.
fn experts(gguf: &Gguf) -> Result<Option<(u32, u32, u64)>> {
    let (architecture, metadata) =
        (gguf.metadata().get_str("general.architecture")?.unwrap_or_default(), gguf.metadata());
    let number = |key: &str| metadata.get_u32(&format!("{architecture}.{key}"));
    let (Some(used), Some(count)) = (number("expert_used_count")?, number("expert_count")?) else { return Ok(None) };
    let routed = gguf.tensors().filter(|tensor| tensor.name.ends_with("_exps.weight"));
    Ok(Some((used, count, routed.map(TensorInfo::byte_len).sum())))
}

/// Of a model with a multi-token prediction block: its index, and how many tensors and bytes it has.
fn drafts(gguf: &Gguf) -> Result<Option<(u32, usize, u64)>> {
    let (architecture, metadata) =
        (gguf.metadata().get_str("general.architecture")?.unwrap_or_default(), gguf.metadata());
    let number = |key: &str| metadata.get_u32(&format!("{architecture}.{key}"));
    let count = number("nextn_predict_layers")?.unwrap_or(0);
    let block = number("block_count")?.and_then(|blocks| blocks.checked_sub(count));
    let Some(block) = block.filter(|_| count > 0) else { return Ok(None) };
    let prefix = format!("blk.{block}.");
    let own: Vec<u64> =
        gguf.tensors().filter(|tensor| tensor.name.starts_with(&prefix)).map(TensorInfo::byte_len).collect();
    Ok(Some((block, own.len(), own.iter().sum())))
}

fn adapter(args: &InspectArgs) -> Result<()> {
    let adapter = PeftAdapter::open(&args.path)?;
    let mut modules = Vec::new();
    for delta in adapter.deltas() {
        modules.push(json!({
            "module": delta.module.to_string(),
            "rank": delta.rank,
            "in": delta.in_features,
            "out": delta.out_features,
            "scale": delta.scale,
        }));
    }
    if args.json {
        let object = json!({ "folder": args.path.display().to_string(), "modules": modules });
        anstream::println!("{object:#}");
        return Ok(());
    }
    anstream::println!(
        "{} PEFT LoRA adapter, {} linear layers",
        styled(HEADING, &args.path.display().to_string()),
        modules.len()
    );
    let mut table = Table::new(["module", "rank", "in", "out", "scale"]);
    for delta in adapter.deltas() {
        table.row([
            printable(&delta.module.to_string()),
            delta.rank.to_string(),
            delta.in_features.to_string(),
            delta.out_features.to_string(),
            delta.scale.to_string(),
        ]);
    }
    anstream::print!("{}", table.render());
    Ok(())
}

/// A value in one line.
fn show(value: &Value) -> String {
    match value {
        Value::String(text) => format!("{text:?}"),
        Value::Array(array) => show_array(array),
        other => json_value(other).to_string(),
    }
}

fn show_array(array: &Array) -> String {
    let items = json_array(array);
    let shown: Vec<_> = items.iter().take(8).map(ToString::to_string).collect();
    let more = if items.len() > shown.len() { ", …" } else { "" };
    format!("[{} × {}] [{}{more}]", array.len(), array.type_name(), shown.join(", "))
}

fn shorten(text: &str) -> String {
    let text = printable(text);
    if text.chars().count() <= MAX_VALUE {
        return text;
    }
    let mut short: String = text.chars().take(MAX_VALUE).collect();
    short.push('…');
    short
}

fn json_value(value: &Value) -> serde_json::Value {
    match value {
        Value::U8(v) => json!(v),
        Value::I8(v) => json!(v),
        Value::U16(v) => json!(v),
        Value::I16(v) => json!(v),
        Value::U32(v) => json!(v),
        Value::I32(v) => json!(v),
        Value::U64(v) => json!(v),
        Value::I64(v) => json!(v),
        Value::F32(v) => json!(v),
        Value::F64(v) => json!(v),
        Value::Bool(v) => json!(v),
        Value::String(v) => json!(v),
        Value::Array(array) => serde_json::Value::Array(json_array(array)),
    }
}

fn json_array(array: &Array) -> Vec<serde_json::Value> {
    fn all<T: serde::Serialize>(items: &[T]) -> Vec<serde_json::Value> {
        items.iter().map(|item| json!(item)).collect()
    }
    match array {
        Array::U8(v) => all(v),
        Array::I8(v) => all(v),
        Array::U16(v) => all(v),
        Array::I16(v) => all(v),
        Array::U32(v) => all(v),
        Array::I32(v) => all(v),
        Array::U64(v) => all(v),
        Array::I64(v) => all(v),
        Array::F32(v) => all(v),
        Array::F64(v) => all(v),
        Array::Bool(v) => all(v),
        Array::String(v) => all(v),
        Array::Array(v) => v.iter().map(|inner| serde_json::Value::Array(json_array(inner))).collect(),
    }
}
