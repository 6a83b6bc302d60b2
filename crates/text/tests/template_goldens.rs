//! Renderings equal those of transformers, byte for byte. `golden/make_template_cases.py` wrote what is compared with.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use consort_core::ErrorKind;
use consort_text::{ChatTemplate, ChatTemplateInput};
use serde_json::Value;
use sha2::{Digest, Sha256};

fn cases(json: &str) -> Vec<Value> {
    serde_json::from_str(json).unwrap()
}

fn list(value: Option<&Value>) -> Vec<Value> {
    value.and_then(Value::as_array).cloned().unwrap_or_default()
}

fn input(case: &Value) -> ChatTemplateInput {
    let input = &case["input"];
    ChatTemplateInput {
        messages: list(input.get("messages")),
        tools: list(input.get("tools")),
        add_generation_prompt: input["add_generation_prompt"].as_bool().unwrap(),
        enable_thinking: input.get("enable_thinking").and_then(Value::as_bool),
        variables: input.get("variables").and_then(Value::as_object).cloned().unwrap_or_default(),
        now: None,
    }
}

fn sha256(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What differs from the expectation, or nothing.
fn check(template: &ChatTemplate, case: &Value) -> Option<String> {
    let expected = &case["expected"];
    let name = case["name"].as_str().unwrap();
    match template.render(&input(case)) {
        Ok(text) => {
            if let Some(wanted) = expected.get("text").and_then(Value::as_str) {
                (text != wanted).then(|| format!("{name}:\n got {text:?}\nwant {wanted:?}"))
            } else if let Some(wanted) = expected.get("sha256").and_then(Value::as_str) {
                let length = expected["bytes"].as_u64().unwrap();
                (sha256(&text) != wanted || text.len() as u64 != length)
                    .then(|| format!("{name}: {} bytes, want {length}:\n{text}", text.len()))
            } else {
                Some(format!("{name}: rendered {text:?}, but transformers fails: {expected}"))
            }
        }
        Err(error) => {
            if error.kind() != ErrorKind::InvalidTemplate {
                return Some(format!("{name}: {error}"));
            }
            let raised = error.context().find(|(key, _)| *key == "raised").map(|(_, message)| message.to_owned());
            let agrees = match (&expected.get("raised"), raised) {
                (Some(Value::String(wanted)), Some(raised)) => *wanted == raised,
                (Some(wanted), Some(raised)) => wanted["sha256"] == sha256(&raised).as_str(),
                (None, None) => expected.get("failed").is_some(),
                _ => false,
            };
            (!agrees).then(|| format!("{name}: {error:?}, want {expected}"))
        }
    }
}

fn check_all(template: &ChatTemplate, cases: &[Value]) {
    let wrong: Vec<String> = cases.iter().filter_map(|case| check(template, case)).collect();
    assert!(wrong.is_empty(), "{} of {} cases differ\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

#[test]
fn our_template_renders_as_in_transformers() {
    let cases = cases(include_str!("golden/own_cases.json"));
    assert_eq!(cases.len(), 12);
    check_all(&ChatTemplate::new(include_str!("golden/own.jinja")).unwrap(), &cases);
}

#[test]
fn the_familys_template_renders_as_in_transformers() {
    let cases = cases(include_str!("golden/family_cases.json"));
    assert_eq!(cases.len(), 59);
    let Some(folder) = std::env::var_os("CONSORT_FAMILY_DATA") else {
        eprintln!("CONSORT_FAMILY_DATA is not set: {} cases of the family's chat template were not run", cases.len());
        return;
    };
    let source = std::fs::read_to_string(std::path::Path::new(&folder).join("Qwen3.5-4B.jinja")).unwrap();
    check_all(&ChatTemplate::new(&source).unwrap(), &cases);
    eprintln!("{} cases of the family's chat template were run", cases.len());
}

#[test]
fn expressions_mean_what_they_mean_in_jinja2() {
    let cases = cases(include_str!("golden/expression_cases.json"));
    let mut wrong = Vec::new();
    for case in &cases {
        let source = case["template"].as_str().unwrap();
        let rendered = ChatTemplate::new(source).and_then(|template| {
            template.render(&ChatTemplateInput::new(vec![serde_json::json!({ "role": "user", "content": "x" })]))
        });
        let wanted = case["text"].as_str().unwrap();
        if rendered.as_ref().ok().map(String::as_str) != Some(wanted) {
            wrong.push(format!("{source:?}\n got {rendered:?}\nwant {wanted:?}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {} expressions differ\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}
