//! The places in a prompt that a prefix cache keeps.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use consort_core::{ChatMessage, ChatPrompt, ContentPart, ErrorKind, ImageInput, Role, Thinking, ToolCall};
use consort_gguf::Gguf;
use consort_text::{ChatTemplate, ChatTemplateInput, PromptRenderer, SpecialText, Tokenizer};
use serde_json::json;

/// Ours, with the family's two habits: earlier reasoning is dropped, and the model's turn is opened with `<think>`.
const TEMPLATE: &str = "\
{%- set last = namespace(user=0) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set last.user = loop.index0 %}{% endif %}{% endfor %}
{%- for m in messages %}
    {{- '<|im_start|>' + m.role + '\\n' }}
    {%- if m.role == 'assistant' and loop.index0 > last.user %}{{ '<think>\\n' + (m.reasoning_content or '') + '\\n</think>\\n\\n' }}{% endif %}
    {%- if m.content is string %}{{ m.content | trim }}{% else %}
        {%- for part in m.content %}{{ '[image]' if part.type == 'image' else part.text }}{% endfor %}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n<think>\\n' }}
    {%- if enable_thinking is false %}{{ '\\n</think>\\n\\n' }}{% endif %}
{%- endif %}";

fn own() -> PromptRenderer {
    let tokenizer = Tokenizer::from_json(&consort_text::doc_tokenizer_json(), None).unwrap();
    PromptRenderer::new(ChatTemplate::new(TEMPLATE).unwrap(), tokenizer)
}

fn family() -> Option<PromptRenderer> {
    let Some(folder) = std::env::var_os("CONSORT_FAMILY_DATA").map(std::path::PathBuf::from) else {
        eprintln!("CONSORT_FAMILY_DATA is not set: the prefixes of the family's template were not checked");
        return None;
    };
    let source = std::fs::read_to_string(folder.join("Qwen3.5-4B.jinja")).unwrap();
    let gguf = Gguf::open(&folder.join("ggml-vocab-qwen35.gguf")).unwrap();
    Some(PromptRenderer::new(ChatTemplate::new(&source).unwrap(), Tokenizer::from_gguf(&gguf).unwrap()))
}

fn conversation() -> ChatPrompt {
    let image = ContentPart::Image(ImageInput::Encoded(vec![0].into()));
    let mut reply = ChatMessage::text(Role::Assistant, "A cat, I think.");
    reply.reasoning = Some("Whiskers.".into());
    ChatPrompt {
        messages: vec![
            ChatMessage::text(Role::System, "Be kind."),
            ChatMessage::new(Role::User, vec![image, ContentPart::Text("What is it?".into())]),
            reply,
        ],
        ..ChatPrompt::default()
    }
}

fn check(renderer: &PromptRenderer) {
    let text = |ids: &[u32]| renderer.tokenizer().decode(ids, SpecialText::Show);
    let full = conversation();

    for thinking in [Thinking::TemplateDefault, Thinking::On, Thinking::Off] {
        // Before the reply: the border of the generation prompt.
        let mut open = full.clone();
        open.thinking = thinking;
        open.messages.pop();
        let prompt = renderer.render(&ChatTemplateInput::from_prompt(&open).unwrap()).unwrap();
        assert!(text(&prompt.tokens[..prompt.generation_border]).ends_with("What is it?<|im_end|>\n"));
        assert!(text(&prompt.tokens[prompt.generation_border..]).starts_with("<|im_start|>assistant\n<think>\n"));
    }

    // After the reply: what every next turn begins with. The reasoning is not in it.
    let prefix = renderer.next_turn_prefix(&ChatTemplateInput::from_prompt(&full).unwrap()).unwrap();
    assert!(text(&prefix).ends_with("<|im_start|>assistant\nA cat, I think.<|im_end|>\n"), "{:?}", text(&prefix));
    assert!(!text(&prefix).contains("Whiskers"));
    for next in ["A", "7", " ", "And?", "<|im_start|>", "\n\n", "世"] {
        for thinking in [Thinking::On, Thinking::Off] {
            let mut longer = full.clone();
            longer.thinking = thinking;
            longer.messages.push(ChatMessage::text(Role::User, next));
            let prompt = renderer.render(&ChatTemplateInput::from_prompt(&longer).unwrap()).unwrap();
            assert!(prompt.tokens.starts_with(&prefix), "{next:?}");
            assert!(prompt.generation_border >= prefix.len());
        }
    }
}

#[test]
fn places_in_our_template() {
    check(&own());
}

#[test]
fn places_in_the_familys_template() {
    if let Some(renderer) = family() {
        check(&renderer);
    }
}

#[test]
fn a_conversation_that_cannot_go_on_has_no_prefix() {
    let template = ChatTemplate::new("{% if messages | length > 1 %}{{ raise_exception('no') }}{% endif %}x").unwrap();
    let renderer = PromptRenderer::new(template, own().tokenizer().clone());
    let input = ChatTemplateInput::new(vec![json!({ "role": "user", "content": "a" })]);
    assert!(renderer.next_turn_prefix(&input).unwrap().is_empty());
    assert_eq!(renderer.render(&input).unwrap().generation_border, 1);
}

#[test]
fn tool_calls_of_both_forms_are_objects_to_the_template() {
    let template = ChatTemplate::new("{{ messages[0].tool_calls | tojson }}").unwrap();
    let render = |arguments| {
        let mut message = ChatMessage::new(Role::Assistant, vec![]);
        message.tool_calls = vec![ToolCall { id: Some("1".into()), name: "f".into(), arguments }];
        let prompt = ChatPrompt { messages: vec![message], ..ChatPrompt::default() };
        ChatTemplateInput::from_prompt(&prompt).and_then(|input| template.render(&input))
    };
    let wanted = r#"[{"id": "1", "type": "function", "function": {"name": "f", "arguments": {"b": 1, "a": 2.0}}}]"#;
    assert_eq!(render(json!({ "b": 1, "a": 2.0 })).unwrap(), wanted);
    assert_eq!(render(json!(r#"{"b": 1, "a": 2.0}"#)).unwrap(), wanted);
    assert_eq!(render(json!([1])).unwrap_err().kind(), ErrorKind::InvalidRequest);
    assert_eq!(render(json!("{")).unwrap_err().kind(), ErrorKind::InvalidRequest);
}
