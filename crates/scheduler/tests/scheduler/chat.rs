//! Conversations: rendering, text, and turns that are kept as the next prompt will contain them.

use std::sync::Arc;

use consort_core::*;
use consort_scheduler::{FrontEnd, SchedulerConfig};
use consort_text::{ChatTemplate, Tokenizer};

use crate::engine::Setup;
use crate::support::*;

/// Like the family's: reasoning is dropped from earlier turns, and the model's turn opens with it.
const TEMPLATE: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n\
    {% if m.content is string %}{{ m.content.split('</think>')[-1].lstrip('\n') }}\
    {% else %}{% for part in m.content %}{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>\
    {% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}\
    {% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}";

fn front_end() -> FrontEnd {
    let mut json: serde_json::Value = serde_json::from_slice(&consort_text::doc_tokenizer_json()).unwrap();
    let added = json["added_tokens"].as_array_mut().unwrap();
    for (id, content) in [(258, "<|vision_start|>"), (259, "<|image_pad|>"), (260, "<|vision_end|>")] {
        added.push(serde_json::json!({ "id": id, "content": content, "special": true }));
    }
    FrontEnd {
        tokenizer: Some(Tokenizer::from_json(json.to_string().as_bytes(), None).unwrap()),
        template: Some(ChatTemplate::new(TEMPLATE).unwrap()),
        image_processor: None,
    }
}

/// A model that says this, as bytes, whatever it heard; its other logits depend on the whole past.
fn rig(says: &str) -> Rig {
    let tokenizer = front_end().tokenizer.unwrap();
    let script = tokenizer.encode(says, SpecialTokens::Parse).unwrap();
    let setup = Setup { script: Some(script), vocab: 261, image_token: Some(259), ..Setup::default() };
    Rig::with(setup, SchedulerConfig::default(), front_end())
}

fn chat(messages: &[ChatMessage]) -> GenerateRequest {
    let prompt = ChatPrompt { messages: messages.to_vec(), ..ChatPrompt::default() };
    GenerateRequest { logprobs: Some(5), ..request(Prompt::Chat(prompt), 200) }
}

fn opening() -> Vec<ChatMessage> {
    let parts = vec![
        ContentPart::Image(ImageInput::Prepared(image(3))),
        ContentPart::Text("What is in this picture, and where?".into()),
    ];
    vec![
        ChatMessage::text(Role::System, "You are a parrot that sees, and you keep to what you see."),
        ChatMessage::new(Role::User, parts),
    ]
}

const THOUGHT: &str = "A circle, I think.\n</think>\n\nA red circle, à gauche.";

#[test]
fn the_next_turn_reads_its_new_tokens_only() {
    let rig = rig(THOUGHT);
    rig.load("a", b"weights");
    let with_a = |request| with_adapter(request, "a", 0.5);
    let mut messages = opening();
    let first = rig.say(with_a(chat(&messages)));
    assert_eq!((first.text.as_str(), &first.reason), (THOUGHT, &FinishReason::EndToken(0)));
    rig.idle();
    messages.push(ChatMessage::text(Role::Assistant, &*first.text));
    messages.push(ChatMessage::text(Role::User, "And now?"));
    let second = rig.say(with_a(chat(&messages)));
    let new = "<|im_start|>user\nAnd now?<|im_end|>\n<|im_start|>assistant\n<think>\n";
    let new = rig.backend.tokenize(new, SpecialTokens::Parse).unwrap().len();
    assert_eq!(second.usage.prompt_tokens - second.usage.reused_tokens, new);
    assert_eq!(rig.backend.metrics().images_encoded, 1);
    // The reply is the script's in any case; the log probabilities tell of the whole past.
    let bypass = GenerateRequest { prefix_reuse: PrefixReuse::Bypass, ..with_a(chat(&messages)) };
    let fresh = rig.say(bypass);
    assert_eq!((fresh.logprobs, fresh.usage.reused_tokens), (second.logprobs, 0));
    // Another question after the same first turn begins at the end of that turn as well.
    rig.idle();
    messages[3] = ChatMessage::text(Role::User, "Or this?");
    let other = rig.say(with_a(chat(&messages)));
    assert_eq!(other.usage.prompt_tokens - other.usage.reused_tokens, new);
    // Without the adapter nothing of it is reused.
    assert_eq!(rig.say(chat(&messages)).usage.reused_tokens, 0);
    rig.no_leak();
}

#[test]
fn a_turn_that_comes_before_the_last_was_kept_begins_where_that_one_is_or_at_its_prompt() {
    for hold in [false, true] {
        let rig = rig(THOUGHT);
        let mut messages = opening();
        let first = rig.say(chat(&messages));
        if hold {
            rig.control.hold();
        }
        messages.push(ChatMessage::text(Role::Assistant, &*first.text));
        messages.push(ChatMessage::text(Role::User, "And now?"));
        let stream = rig.backend.generate(chat(&messages)).unwrap();
        rig.control.release();
        let second = collect(stream).unwrap();
        let opened = "<|im_start|>assistant\n<think>\n".len() - "<|im_start|>".len() + 1;
        assert!(second.usage.reused_tokens >= first.usage.prompt_tokens - opened);
        let bypass = GenerateRequest { prefix_reuse: PrefixReuse::Bypass, ..chat(&messages) };
        assert_eq!(rig.say(bypass).logprobs, second.logprobs);
        rig.no_leak();
        assert_eq!(rig.backend.metrics().background, 0);
    }
}

#[test]
fn the_same_picture_answers_another_question_from_its_end() {
    let rig = rig("Yes.");
    let mut messages = opening();
    rig.say(chat(&messages));
    messages[1].content[1] = ContentPart::Text("Is there a square?".into());
    let reply = rig.say(chat(&messages));
    let before = "You are a parrot that sees, and you keep to what you see.".len() + "system\n\nuser\n".len() + 3 + 1;
    assert_eq!(reply.usage.reused_tokens, before + 24);
    rig.no_leak();
}

#[test]
fn stop_strings_end_the_text_across_tokens() {
    let rig = rig("Hello world. User: ...");
    let reply = |strings: &[&str]| {
        let strings = strings.iter().map(ToString::to_string).collect();
        let reply =
            rig.say(GenerateRequest { stop: StopRules { strings, ..StopRules::default() }, ..chat(&opening()) });
        (reply.text, reply.reason)
    };
    assert_eq!(reply(&["lo w", "User:"]), ("Hel".into(), FinishReason::StopString("lo w".into())));
    assert_eq!(reply(&["\nUser:", " User:"]), ("Hello world.".into(), FinishReason::StopString(" User:".into())));
    // What was held back is given at the end.
    assert_eq!(reply(&["...and so on"]), ("Hello world. User: ...".into(), FinishReason::EndToken(0)));
    let request = GenerateRequest { max_tokens: Some(7), ..chat(&opening()) };
    let stop = StopRules { strings: vec!["worm".into()], ..StopRules::default() };
    assert_eq!(rig.say(GenerateRequest { stop, ..request }).text, "Hello w");
}

#[test]
fn text_is_whole_characters_and_hides_special_tokens() {
    let rig = rig("é<|im_start|>世🦜<|im_end|>!");
    let mut texts = Vec::new();
    for event in rig.backend.generate(chat(&opening())).unwrap().blocking() {
        if let Event::Tokens { text, ids, .. } = event.unwrap() {
            assert_eq!(ids.len(), 1);
            texts.push(text);
        }
    }
    assert_eq!(texts.concat(), "é世🦜!");
    assert!(texts.iter().all(|text| !text.contains('\u{fffd}')));
    // Cut within a character: what is left of it cannot be shown as one.
    let reply = rig.say(GenerateRequest { max_tokens: Some(4), ..chat(&opening()) });
    assert_eq!(reply.text, "é\u{fffd}");
}

#[test]
fn what_the_front_end_refuses_is_refused_at_once() {
    let rig = rig("");
    let refused = |messages: &[ChatMessage]| rig.backend.generate(chat(messages)).unwrap_err().kind();
    let file = ImageInput::Encoded(Arc::from(&b"no picture"[..]));
    assert_eq!(refused(&[ChatMessage::new(Role::User, vec![ContentPart::Image(file)])]), ErrorKind::Unsupported);
    // The image token that somebody writes is text, and no image is missing for it.
    assert!(rig.backend.generate(chat(&[ChatMessage::text(Role::User, "<|image_pad|>")])).is_ok());
    assert_eq!(refused(&[ChatMessage::text(Role::User, "a".repeat(3000))]), ErrorKind::InvalidRequest);
    assert_eq!(rig.backend.detokenize(&[9999]).unwrap_err().kind(), ErrorKind::InvalidRequest);
    let ids = rig.backend.tokenize("<|im_end|>", SpecialTokens::Parse).unwrap();
    assert_eq!((ids.as_slice(), rig.backend.detokenize(&ids).unwrap().as_str()), (&[257][..], "<|im_end|>"));
    assert_eq!(rig.backend.tokenize("<|im_end|>", SpecialTokens::Plain).unwrap().len(), 10);
    rig.no_leak();
}

#[test]
fn a_reply_that_nobody_heard_to_its_end_is_not_kept() {
    let rig = rig(THOUGHT);
    rig.control.hold();
    let stream = rig.backend.generate(chat(&opening())).unwrap();
    rig.control.wait_begun(1);
    drop(stream);
    rig.control.release();
    rig.no_leak();
    assert_eq!((rig.backend.metrics().cancelled, rig.backend.metrics().background), (1, 0));
}
