//! Replies taken apart: what the templates write reads back, nothing is lost, and no cut changes anything.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::time::{Duration, Instant};

use consort_core::{ChatMessage, ChatPrompt, Role, Thinking, ToolCall};
use consort_text::{
    CallDelivery, ChatTemplate, ChatTemplateInput, MalformedReason, ParsedReply, PromptRenderer, ReasoningEnd,
    ReplyEnd, ReplyEvent, ReplyLimits, ReplyOptions, ReplyParser, ReplyPiece, ReplyStart, Tokenizer, parse_reply,
};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

fn tools() -> Vec<Value> {
    let types = [
        ("text", json!({ "type": "string" })),
        ("count", json!({ "type": "integer" })),
        ("share", json!({ "type": "number" })),
        ("flag", json!({ "type": "boolean" })),
        ("list", json!({ "type": "array" })),
        ("map", json!({ "type": "object" })),
        ("nothing", json!({ "type": ["string", "null"] })),
    ];
    let properties: Map<String, Value> = types.into_iter().map(|(key, schema)| (key.to_owned(), schema)).collect();
    vec![
        json!({ "type": "function", "function": { "name": "act", "parameters": { "type": "object", "properties": properties } } }),
        json!({ "name": "clock", "parameters": {} }),
    ]
}

fn options(start: ReplyStart, calls: CallDelivery) -> ReplyOptions {
    ReplyOptions { start, tools: tools(), calls, ..ReplyOptions::default() }
}

/// The pieces of a reply that comes in these parts, neighbours of one kind joined.
fn read<'a>(parts: impl IntoIterator<Item = &'a str>, options: &ReplyOptions) -> (Vec<ReplyPiece>, ReasoningEnd) {
    let mut parser = ReplyParser::new(options);
    let mut all: Vec<ReplyPiece> = parts.into_iter().flat_map(|part| parser.push(part)).collect();
    let ReplyEnd { pieces, reasoning } = parser.finish();
    all.extend(pieces);
    let mut joined: Vec<ReplyPiece> = Vec::new();
    for piece in all {
        let last = joined.last_mut();
        match (last, &piece.event) {
            (Some(last), ReplyEvent::Content | ReplyEvent::Reasoning | ReplyEvent::Markup)
                if last.event == piece.event =>
            {
                last.raw.push_str(&piece.raw);
            }
            (
                Some(ReplyPiece { raw, event: ReplyEvent::Arguments { index, json } }),
                ReplyEvent::Arguments { index: next, json: more },
            ) if index == next => {
                raw.push_str(&piece.raw);
                json.push_str(more);
            }
            (
                Some(ReplyPiece { raw, event: ReplyEvent::Malformed { text, reason, .. } }),
                ReplyEvent::Malformed { withdraws: None, text: more, reason: next },
            ) if reason == next => {
                raw.push_str(&piece.raw);
                text.push_str(more);
            }
            _ => joined.push(piece),
        }
    }
    (joined, reasoning)
}

fn raw(pieces: &[ReplyPiece]) -> String {
    pieces.iter().map(|piece| piece.raw.as_str()).collect()
}

/// What holds for any reply, however it is cut.
fn check(reply: &str, cuts: &[usize], options: &ReplyOptions) {
    let whole = read([reply], options);
    assert_eq!(raw(&whole.0), reply);
    let each: Vec<String> = reply.chars().map(String::from).collect();
    assert_eq!(read(each.iter().map(String::as_str), options), whole);
    for &cut in cuts {
        if let Some((one, other)) = reply.split_at_checked(cut) {
            assert_eq!(read([one, other], options), whole, "cut at {cut}");
        }
    }
    check_calls(&whole.0);
}

/// Calls come in their order, and the parts of each are its arguments.
fn check_calls(pieces: &[ReplyPiece]) {
    let (mut open, mut next) = (None, 0);
    for ReplyPiece { event, .. } in pieces {
        match event {
            ReplyEvent::CallBegun { index, name, tool } => {
                assert!(open.is_none() && *index == next);
                next += 1;
                open = Some((*index, name.clone(), *tool, String::new()));
            }
            ReplyEvent::Arguments { index, json } => {
                let open = open.as_mut().unwrap();
                assert_eq!(open.0, *index);
                open.3.push_str(json);
            }
            ReplyEvent::CallFinished { index, call, tool } => {
                let (begun, name, known, json) = open.take().unwrap();
                assert_eq!((begun, &name, known), (*index, &call.name, *tool));
                assert_eq!(serde_json::from_str::<Value>(&json).unwrap(), call.arguments);
            }
            ReplyEvent::Malformed { withdraws, .. } => assert_eq!(*withdraws, open.take().map(|open| open.0)),
            ReplyEvent::Content | ReplyEvent::Reasoning => assert!(open.is_none()),
            ReplyEvent::Markup => {}
        }
    }
    assert!(open.is_none());
}

const CALLS: &str = "I look.\n\n<tool_call>\n<function=act>\n<parameter=text>\n\"Guten\nTag\" </b>\\ 世界\n</parameter>\n\
    <parameter=count>\n-7\n</parameter>\n<parameter=flag>\nTrue\n</parameter>\n</function>\n</tool_call>\n\
    <tool_call>\n<function=clock>\n</function>\n</tool_call>";

const SAMPLES: [&str; 15] = [
    "",
    "Just text, 1 < 2 <b>\n\n",
    "I think.\n</think>\n\nHello.\n",
    "\n\n<think>\nAgain.\n\n</think>\n\n\nHello.",
    "No end of it\n\n</thin",
    "Half a tag <tool_ca",
    CALLS,
    "<think>\n<tool_call>\n<function=act>\n</function>\n</tool_call>\n</think>\n\n<think>text</think>",
    "<tool_call>\n<function=act>\n<parameter=text>\nno end",
    "<tool_call>\nfunction\n</tool_call>\n<tool_call><function=clock></function></tool_call>\n\n",
    "a\n<tool_call><function=mystery><parameter=x>1</parameter></function></tool_call> b\n\n",
    "<tool_call>\n<function=act>\nwhat?\n</function>\n</tool_call>\n\n<tool_call>\n<function=clock>\n</function>\n</tool_call>",
    "<tool_call>\n<function=act>\n<parameter=text>\nopen\n</function>\n</tool_call>\n<tool_call>\n<function=clock>\n</function>\n</tool_call>",
    "<tool_call>\n<function=act>\n<parameter=list>\n[1]\n</parameter>\n<parameter=list>\n[2]\n</parameter>\n</function>\n</tool_call>!",
    "<tool_call>\n<function=act>\n<parameter=text>\n</parameter></parameter>\n</function\n</parameter>\n</function>\n</tool_call>",
];

#[test]
fn every_cut_gives_the_same() {
    for sample in SAMPLES {
        let cuts: Vec<usize> = (0..=sample.len()).collect();
        for start in [ReplyStart::Undecided, ReplyStart::Reasoning, ReplyStart::Content] {
            for calls in [CallDelivery::Streamed, CallDelivery::Whole, CallDelivery::AsText] {
                check(sample, &cuts, &options(start, calls));
            }
        }
    }
}

fn parse(reply: &str, start: ReplyStart) -> ParsedReply {
    parse_reply(reply, &options(start, CallDelivery::Streamed))
}

#[test]
fn reasoning_is_told_from_the_answer() {
    use ReasoningEnd::{Closed, None as NoReasoning, Unfinished};
    use ReplyStart::{Content, Reasoning, Undecided};
    for (reply, start, reasoning, content, end) in [
        ("Hm.\n</think>\n\nYes.", Reasoning, Some("Hm."), "Yes.", Closed),
        ("\n</think>\n\nYes.", Reasoning, None, "Yes.", Closed),
        ("<think>\nHm.\n</think>\n\nYes.", Reasoning, Some("Hm."), "Yes.", Closed),
        ("<think>\nHm.\n</think>\n\nYes.", Undecided, Some("Hm."), "Yes.", Closed),
        ("\n<think>Hm.</think>Yes.", Content, Some("Hm."), "Yes.", Closed),
        ("Hm. <tool_call>\n", Reasoning, Some("Hm. <tool_call>\n"), "", Unfinished),
        ("", Reasoning, None, "", Unfinished),
        ("<thi", Undecided, None, "<thi", NoReasoning),
        ("Yes. <think>No.</think>", Undecided, None, "Yes. <think>No.</think>", NoReasoning),
        ("\nYes.", Undecided, None, "\nYes.", NoReasoning),
        ("\n\nYes.\n", Content, None, "Yes.\n", NoReasoning),
        ("a <think> b</think>c</think>d", Reasoning, Some("a <think> b"), "c</think>d", Closed),
    ] {
        let parsed = parse(reply, start);
        let got = (parsed.reasoning.as_deref(), parsed.content.as_str(), parsed.reasoning_end);
        assert_eq!(got, (reasoning, content, end), "{reply:?} {start:?}");
    }
}

#[test]
fn calls_have_typed_arguments() {
    let parsed = parse(CALLS, ReplyStart::Content);
    assert_eq!(parsed.content, "I look.");
    assert_eq!(parsed.tool_calls.len(), 2);
    let wanted = json!({ "text": "\"Guten\nTag\" </b>\\ 世界", "count": -7, "flag": true });
    assert_eq!(parsed.tool_calls[0].arguments, wanted);
    assert_eq!((parsed.tool_calls[1].name.as_str(), &parsed.tool_calls[1].arguments), ("clock", &json!({})));
    assert!(parsed.malformed.is_empty() && parsed.unknown_tools.is_empty());
    // Without tools there are no types.
    let parsed = parse_reply(CALLS, &ReplyOptions::default());
    assert_eq!(parsed.tool_calls[0].arguments["count"], json!("-7"));
    // Keys keep their order.
    let keys: Vec<&String> = parsed.tool_calls[0].arguments.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["text", "count", "flag"]);

    let parsed = parse(SAMPLES[10], ReplyStart::Content);
    assert_eq!((parsed.content.as_str(), parsed.unknown_tools.as_slice()), ("a b\n\n", [0].as_slice()));
    assert_eq!(parsed.tool_calls[0].arguments, json!({ "x": "1" }));
    assert_eq!(
        parse(SAMPLES[14], ReplyStart::Content).tool_calls[0].arguments["text"],
        "</parameter></parameter>\n</function"
    );
}

#[test]
fn a_text_argument_streams() {
    let mut parser = ReplyParser::new(&options(ReplyStart::Content, CallDelivery::Streamed));
    let mut deltas = |text: &str| -> Vec<String> {
        let pieces = parser.push(text).into_iter();
        pieces
            .filter_map(|piece| match piece.event {
                ReplyEvent::CallBegun { index, name, tool } => Some(format!("{index} {name} {tool:?}")),
                ReplyEvent::Arguments { json, .. } => Some(json),
                ReplyEvent::CallFinished { .. } => Some("finished".into()),
                _ => None,
            })
            .collect()
    };
    assert_eq!(deltas("<tool_call>\n<function=act"), [""; 0]);
    assert_eq!(deltas(">\n"), ["0 act Offered"]);
    assert_eq!(deltas("<parameter=text>\nOnce \"upon\"\n"), [r#"{"text":""#, r#"Once \"upon\""#]);
    assert_eq!(deltas("a time </par"), [r"\na time "]);
    assert_eq!(deltas("ty>\n</parameter>"), ["</party>"]);
    assert_eq!(deltas("\n<parameter=list>\n[1,\n2]"), [r#"","list":"#, ""]);
    assert_eq!(deltas("\n</parameter>\n</function>\n</tool_call>"), ["[1,2]}", "finished"]);
}

#[test]
fn what_is_malformed_comes_back_as_text() {
    use MalformedReason::*;
    let long = format!("<tool_call>\n<function=act>\n<parameter=text>\n{}", "é".repeat(600_000));
    let many = "<tool_call><function=clock></function></tool_call>".repeat(129);
    for (reply, reason, calls) in [
        (SAMPLES[8], Unfinished, 0),
        (SAMPLES[9], NoFunction, 1),
        (SAMPLES[11], UnexpectedText, 1),
        (SAMPLES[12], UnfinishedValue, 1),
        (SAMPLES[13], DuplicateParameter, 0),
        ("<tool_call>\n<function=act>\n</function>", Unfinished, 0),
        ("<tool_call>\n<func", Unfinished, 0),
        ("<tool_call>\n{\"name\": \"act\", \"arguments\": {}}\n</tool_call>", NoFunction, 0),
        (&long, TooLong, 0),
        (&many, TooMany, 128),
    ] {
        let parsed = parse(reply, ReplyStart::Content);
        let shown: String = reply.chars().take(80).collect();
        assert_eq!(parsed.malformed.len(), 1, "{shown}");
        assert_eq!((parsed.malformed[0].1, parsed.tool_calls.len()), (reason, calls), "{shown}");
        assert!(parsed.content.contains(&parsed.malformed[0].0));
        // All that is no call is in the text, but for line breaks between.
        if calls == 0 {
            assert_eq!(parsed.content, reply);
        }
    }
    // Streamed, the call is withdrawn, and its text is whole.
    let (pieces, _) = read([SAMPLES[11]], &options(ReplyStart::Content, CallDelivery::Streamed));
    let withdrawn = pieces.iter().find_map(|piece| match &piece.event {
        ReplyEvent::Malformed { withdraws, text, .. } => Some((*withdraws, text.as_str())),
        _ => None,
    });
    let text = "<tool_call>\n<function=act>\nwhat?\n</function>\n</tool_call>";
    assert_eq!(withdrawn, Some((Some(0), text)));
}

#[test]
fn limits_are_those_that_were_given() {
    let options = ReplyOptions { limits: ReplyLimits { calls: 1, call_bytes: 80 }, ..ReplyOptions::default() };
    let call = |text: &str| format!("<tool_call><function=f><parameter=x>{text}</parameter></function></tool_call>");
    let room = 80 - call("").len();
    assert_eq!(parse_reply(&call(&"x".repeat(room)), &options).tool_calls.len(), 1);
    let over = call(&"x".repeat(room + 1));
    assert_eq!(parse_reply(&over, &options).malformed, [(over.clone(), MalformedReason::TooLong)]);
    let two = call("") + &call("");
    let parsed = parse_reply(&two, &options);
    assert_eq!((parsed.tool_calls.len(), parsed.malformed[0].1), (1, MalformedReason::TooMany));
    assert_eq!(parsed.content, call(""));
    for reply in [over, two] {
        check(&reply, &[], &options);
    }
}

#[test]
fn long_hostile_replies_are_quick() {
    let begin = Instant::now();
    for fragment in [
        "<",
        "\n",
        "<tool_call>",
        "\n\n<tool_call>\n<function=",
        "<tool_call><function=a>",
        "<tool_call><function=a></function></tool_call>",
        "<tool_call><function=a><parameter=b>",
        "</parameter>",
        "</parameter>                                                          ",
        "</parameter></function></tool_call",
        "</parameter><parameter=b>",
        "</function></tool_call><tool_call><function=b><parameter=c>",
        "</think>",
    ] {
        for opening in ["", "<tool_call><function=a><parameter=b>", "<think>"] {
            let reply = format!("{opening}{}", fragment.repeat((1 << 18) / fragment.len()));
            for calls in [CallDelivery::Streamed, CallDelivery::Whole] {
                let options = options(ReplyStart::Undecided, calls);
                assert_eq!(raw(&read([reply.as_str()], &options).0), reply);
                let bytes: Vec<&str> = (0..reply.len()).map(|at| &reply[at..=at]).collect();
                assert_eq!(raw(&read(bytes, &options).0).len(), reply.len());
            }
        }
    }
    assert!(begin.elapsed() < Duration::from_secs(60), "{:?}", begin.elapsed());
}

fn templates() -> Vec<ChatTemplate> {
    let mut sources = vec![include_str!("../../../models/etude/chat_template.jinja").to_owned()];
    if let Some(folder) = std::env::var_os("CONSORT_FAMILY_DATA") {
        sources.push(std::fs::read_to_string(std::path::Path::new(&folder).join("Qwen3.5-4B.jinja")).unwrap());
    } else {
        eprintln!("CONSORT_FAMILY_DATA is not set: replies were not rendered with the family's template");
    }
    sources.iter().map(|source| ChatTemplate::new(source).unwrap()).collect()
}

/// What the model would have had to generate so that the conversation is this one.
fn reply_text(template: &ChatTemplate, reply: &ChatMessage) -> String {
    let mut chat =
        ChatPrompt { messages: vec![ChatMessage::text(Role::User, "Go on.")], tools: tools(), ..ChatPrompt::default() };
    let prompt = template.render(&ChatTemplateInput::from_prompt(&chat).unwrap()).unwrap();
    assert_eq!(ReplyStart::after(&prompt), ReplyStart::Reasoning);
    chat.messages.push(reply.clone());
    let mut input = ChatTemplateInput::from_prompt(&chat).unwrap();
    input.add_generation_prompt = false;
    let text = template.render(&input).unwrap();
    text.strip_prefix(&prompt).unwrap().strip_suffix("<|im_end|>\n").unwrap().to_owned()
}

#[test]
fn the_generation_prompt_tells_where_a_reply_begins() {
    let tokenizer = Tokenizer::from_json(&consort_text::doc_tokenizer_json(), None).unwrap();
    for template in templates() {
        let renderer = PromptRenderer::new(template, tokenizer.clone());
        for (thinking, start) in [
            (Thinking::TemplateDefault, ReplyStart::Reasoning),
            (Thinking::On, ReplyStart::Reasoning),
            (Thinking::Off, ReplyStart::Content),
        ] {
            let messages = vec![ChatMessage::text(Role::User, "<think>")];
            let chat = ChatPrompt { messages, thinking, ..ChatPrompt::default() };
            let mut input = ChatTemplateInput::from_prompt(&chat).unwrap();
            assert_eq!(renderer.render(&input).unwrap().reply_start, start);
            input.add_generation_prompt = false;
            assert_eq!(renderer.render(&input).unwrap().reply_start, ReplyStart::Undecided);
        }
    }
}

/// Text of tags, blanks and letters.
fn fragments() -> impl Strategy<Value = String> {
    let fragment = prop_oneof![
        4 => prop::sample::select(vec![
            "<think>", "</think>", "<tool_call>", "</tool_call>", "<function=act>", "<function=", "</function>",
            "<parameter=text>", "<parameter=count>", "<parameter=", "</parameter>", "\n", "\n\n", " ", "<", ">", "=", "/",
            "<tool_call>\n<function=act>\n", "\n</parameter>\n", "</function>\n</tool_call>", "act", "5", "\"", "\\", "{}",
        ]).prop_map(str::to_owned),
        1 => "\\PC{0,4}",
    ];
    prop::collection::vec(fragment, 0..24).prop_map(|parts| parts.concat())
}

/// Whether a value cannot be told from its own end.
fn ends_itself(value: &str) -> bool {
    let dense: String = value.split_ascii_whitespace().collect();
    ["</parameter><parameter=", "</parameter></function></tool_call>", "</function></tool_call><tool_call><function="]
        .iter()
        .any(|end| dense.contains(end))
}

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (-1e18..1e18_f64).prop_map(Value::from),
        fragments().prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::hash_map("[a-z\"<世]{0,3}", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

fn arguments() -> impl Strategy<Value = Value> {
    let optional = prop::option::of::<BoxedStrategy<Value>>;
    (
        optional(fragments().prop_map(Value::from).boxed()),
        optional(prop_oneof![any::<i64>().prop_map(Value::from), any::<u64>().prop_map(Value::from)].boxed()),
        optional(
            any::<f64>().prop_filter("JSON has no other", |number| number.is_finite()).prop_map(Value::from).boxed(),
        ),
        optional(any::<bool>().prop_map(Value::from).boxed()),
        optional(prop::collection::vec(json_value(), 0..3).prop_map(Value::from).boxed()),
        optional(
            prop::collection::hash_map("[a-z]{0,3}", json_value(), 0..3)
                .prop_map(|map| Value::Object(map.into_iter().collect()))
                .boxed(),
        ),
        optional(prop_oneof![Just(Value::Null), "[a-m]{0,5}".prop_map(Value::from)].boxed()),
        optional(fragments().prop_map(Value::from).boxed()),
    )
        .prop_map(|(text, count, share, flag, list, map, nothing, other)| {
            let values = [text, count, share, flag, list, map, nothing, other];
            let keys = ["text", "count", "share", "flag", "list", "map", "nothing", "not listed ü"];
            let pairs = keys.into_iter().zip(values).filter_map(|(key, value)| Some((key.to_owned(), value?)));
            Value::Object(pairs.collect())
        })
}

fn shown(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn what_the_templates_write_reads_back(
        calls in prop::collection::vec(("[a-zA-Z0-9_.-]{1,12}", arguments(), any::<bool>()), 0..4),
        content in "(\\PC{0,9}[a-z.\n<>é]{0,9}){0,3}",
        reasoning in "([a-z.\n <>é]{0,9}|<tool_call>\n<function=act>){0,3}",
    ) {
        let tool_calls: Vec<ToolCall> = calls
            .into_iter()
            .map(|(name, arguments, known)| {
                let (id, name) = (None, if known { "act".to_owned() } else { name });
                ToolCall { id, name, arguments }
            })
            // Without a schema, what is no text cannot be told from it.
            .filter(|call| call.name == "act" || call.arguments.as_object().unwrap().values().all(Value::is_string))
            .collect();
        let values = tool_calls.iter().flat_map(|call| call.arguments.as_object().unwrap().values());
        prop_assume!(!values.map(shown).any(|value| ends_itself(&value)));
        let mut message = ChatMessage::text(Role::Assistant, content.trim());
        message.reasoning = Some(reasoning.clone());
        message.tool_calls = tool_calls.clone();
        for template in templates() {
            let reply = reply_text(&template, &message);
            let parsed = parse(&reply, ReplyStart::Reasoning);
            prop_assert_eq!(&parsed.tool_calls, &tool_calls, "{}", reply);
            prop_assert_eq!(parsed.reasoning.as_deref().unwrap_or_default(), reasoning.trim());
            prop_assert_eq!(&parsed.content, content.trim());
            prop_assert_eq!(parsed.reasoning_end, ReasoningEnd::Closed);
            prop_assert!(parsed.malformed.is_empty());
            for delivery in [CallDelivery::Streamed, CallDelivery::Whole] {
                check(&reply, &[reply.len() / 2], &options(ReplyStart::Reasoning, delivery));
            }
            // And once more around.
            prop_assert_eq!(reply_text(&template, &parsed.into_message()), reply);
        }
    }

    #[test]
    fn garbage_is_kept_whole(reply in fragments(), cuts in prop::collection::vec(0..200_usize, 3)) {
        for start in [ReplyStart::Undecided, ReplyStart::Reasoning, ReplyStart::Content] {
            for delivery in [CallDelivery::Streamed, CallDelivery::Whole, CallDelivery::AsText] {
                for limits in [ReplyLimits::default(), ReplyLimits { calls: 1, call_bytes: 70 }] {
                    check(&reply, &cuts, &ReplyOptions { limits, ..options(start, delivery) });
                }
            }
            let parsed = parse(&reply, start);
            prop_assert!(parsed.unknown_tools.iter().all(|&index| parsed.tool_calls[index].name != "act"));
            prop_assert!(parsed.malformed.iter().all(|(text, _)| parsed.content.contains(text)));
        }
    }
}
