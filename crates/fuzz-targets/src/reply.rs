//! Replies, taken apart as they stream.

use consort_text::{
    CallDelivery, ReasoningEnd, ReplyEvent, ReplyLimits, ReplyOptions, ReplyParser, ReplyPiece, ReplyStart, parse_reply,
};
use serde_json::{Value, json};

/// Two parts: up to four bytes of options (start, delivery, limits, length of the pieces), and the reply.
///
/// # Panics
/// When something is lost, depends on how the reply was cut, or a call contradicts its own parts.
pub fn reply(data: &[u8]) {
    let [choices, text] = crate::parts(data);
    let choice = |index: usize| choices.get(index).copied().unwrap_or(0);
    let text = String::from_utf8_lossy(text);
    let options = ReplyOptions {
        start: [ReplyStart::Undecided, ReplyStart::Reasoning, ReplyStart::Content][usize::from(choice(0) % 3)],
        calls: [CallDelivery::Streamed, CallDelivery::Whole, CallDelivery::AsText][usize::from(choice(1) % 3)],
        limits: match choice(2) {
            0 => ReplyLimits::default(),
            small => ReplyLimits { calls: usize::from(small % 4), call_bytes: usize::from(small) * 2 },
        },
        tools: vec![json!({ "name": "act", "parameters": { "properties": {
            "text": { "type": "string" }, "count": { "type": "integer" }, "list": { "type": ["array", "null"] },
        } } })],
    };
    let whole = read(std::iter::once(&*text), &options);
    let chars: Vec<(usize, char)> = text.char_indices().collect();
    let pieces = chars.chunks(usize::from(choice(3)) + 1).map(|chunk| {
        let end = chunk.last().map_or(0, |(at, symbol)| at + symbol.len_utf8());
        &text[chunk[0].0..end]
    });
    assert!(whole == read(pieces, &options), "the pieces depend on the cuts");
    let parsed = parse_reply(&text, &options);
    assert!(parsed.malformed.iter().all(|(text, _)| parsed.content.contains(text)));
}

/// What a listener puts together.
#[derive(PartialEq)]
struct Heard {
    texts: Vec<(&'static str, String)>,
    calls: Vec<(usize, String)>,
    end: ReasoningEnd,
}

fn read<'a>(pieces: impl Iterator<Item = &'a str>, options: &ReplyOptions) -> Heard {
    let mut parser = ReplyParser::new(options);
    let (mut sent, mut raw) = (String::new(), String::new());
    let mut heard = Heard { texts: Vec::new(), calls: Vec::new(), end: ReasoningEnd::None };
    let mut json = String::new();
    let mut hear = |piece: ReplyPiece, raw: &mut String| {
        raw.push_str(&piece.raw);
        let (kind, text) = match piece.event {
            ReplyEvent::Content => ("content", piece.raw),
            ReplyEvent::Reasoning => ("reasoning", piece.raw),
            ReplyEvent::Markup => ("markup", piece.raw),
            ReplyEvent::Malformed { text, reason, .. } => (reason.as_str(), text),
            ReplyEvent::CallBegun { name, .. } => {
                json.clear();
                ("call", name)
            }
            ReplyEvent::Arguments { json: part, .. } => {
                json.push_str(&part);
                return;
            }
            ReplyEvent::CallFinished { index, call, .. } => {
                assert_eq!(serde_json::from_str::<Value>(&json).unwrap(), call.arguments);
                heard.calls.push((index, call.name));
                return;
            }
        };
        match heard.texts.last_mut() {
            Some((last, joined)) if *last == kind => joined.push_str(&text),
            _ => heard.texts.push((kind, text)),
        }
    };
    for piece in pieces {
        sent.push_str(piece);
        parser.push(piece).into_iter().for_each(|piece| hear(piece, &mut raw));
    }
    let end = parser.finish();
    end.pieces.into_iter().for_each(|piece| hear(piece, &mut raw));
    heard.end = end.reasoning;
    assert_eq!(raw, sent, "something was lost");
    heard
}
