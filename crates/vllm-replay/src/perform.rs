//! An answer with what goes wrong with it: the steps that a server takes.

use std::time::Duration;

use bytes::Bytes;
use serde_json::json;

use crate::answer::{Answer, Asked, Ending, GrpcCode, Piece, framed, status_trailers};
use crate::fault::{After, Cut, ErrorShape, Fault, FrontEnd, is_grpc};
use crate::proto;

/// One thing that a server does.
pub(crate) enum Step {
    /// Sends a piece. For gRPC it is put into a frame.
    Piece(Piece),
    /// Sends bytes as they are.
    Raw(Piece),
    /// Waits until the server is not paused.
    Gate,
    /// Waits until the client leaves.
    Silence,
    /// Breaks off.
    Cut(Cut),
    /// Sends trailers, which end the answer.
    Trailers(Vec<(String, String)>),
}

/// What stands before the body.
pub(crate) enum Head {
    /// Status, headers and the announced length.
    Answer { status: u16, headers: Vec<(String, String)>, length: Option<u64> },
    /// Nothing, ever.
    Silence,
    /// The connection breaks.
    Cut(Cut),
}

type Steps = Box<dyn Iterator<Item = Step> + Send>;

/// What a server does for one request.
pub(crate) struct Performance {
    pub(crate) head: Head,
    /// Whether a pause holds the head back too.
    pub(crate) gated: bool,
    pub(crate) steps: Steps,
}

/// Plans an answer with its faults.
pub(crate) fn plan(asked: &Asked, answer: Answer, faults: Vec<Fault>) -> Performance {
    let grpc = is_grpc(asked);
    let mut answer = answer;
    let mut rest = Vec::new();
    for fault in faults {
        match instead(&fault, grpc) {
            Some(other) => answer = other,
            None => rest.push(fault),
        }
    }
    let gated = answer.pausable && answer.length.is_some();
    let mut head = Head::Answer { status: answer.status, headers: answer.headers, length: answer.length };
    let mut ending = match answer.ending {
        Ending::Complete if grpc => vec![Step::Trailers(answer.trailers)],
        Ending::Complete => Vec::new(),
        Ending::Cut => vec![Step::Cut(Cut::Close)],
        Ending::Silence | Ending::Unanswered => vec![Step::Silence],
    };
    if answer.ending == Ending::Unanswered {
        head = Head::Silence;
    }
    let mut steps: Steps = Box::new(answer.pieces.map(Step::Piece));
    let mut chunking = Vec::new();
    for fault in rest {
        match fault {
            Fault::Cut { after: After::Nothing, how } => head = Head::Cut(how),
            Fault::Silence { after: After::Nothing } => head = Head::Silence,
            Fault::Cut { after: After::Pieces(n), how } => (steps, ending) = (upto(steps, n), vec![Step::Cut(how)]),
            Fault::Silence { after: After::Pieces(n) } => (steps, ending) = (upto(steps, n), vec![Step::Silence]),
            Fault::Status { after, code, message } => {
                steps = upto(steps, after);
                ending = if grpc {
                    vec![Step::Trailers(status_trailers(code, &message))]
                } else {
                    vec![Step::Cut(Cut::Close)]
                };
            }
            Fault::ErrorEvent { after, front_end, message } => {
                steps = upto(steps, after);
                if grpc {
                    ending = vec![Step::Trailers(status_trailers(GrpcCode::INTERNAL, &message))];
                } else {
                    let event = format!("data: {}\n\n", server_error(front_end, &message));
                    let tail = [Piece::now(event), Piece::now("data: [DONE]\n\n")];
                    steps = Box::new(steps.chain(tail.map(Step::Piece)));
                    ending = Vec::new();
                }
            }
            Fault::Gigantic { after, bytes } => {
                steps = Box::new(upto(steps, after).chain(gigantic(grpc, bytes)));
            }
            Fault::Garbage { after } => {
                // A field of length 100 of which one byte is there; JSON that ends in a string.
                let garbage: &'static [u8] =
                    if grpc { &[0x0a, 100, 1] } else { b"data: {\"choices\":[{\"text\":\"\n\n" };
                steps = Box::new(upto(steps, after).chain(std::iter::once(Step::Piece(Piece::now(garbage)))));
            }
            Fault::Slow { pause } => steps = Box::new(steps.map(move |step| paused(step, pause))),
            Fault::NoFinish => {
                let method = asked.route().to_owned();
                steps =
                    Box::new(steps.filter(
                        move |step| !matches!(step, Step::Piece(piece) if finishes(grpc, &method, &piece.bytes)),
                    ));
            }
            Fault::NoDone if !grpc => {
                steps =
                    Box::new(steps.filter(
                        |step| !matches!(step, Step::Piece(piece) if piece.bytes.trim_ascii() == b"data: [DONE]"),
                    ));
            }
            Fault::Comments if !grpc => steps = Box::new(steps.enumerate().map(|(nth, step)| commented(step, nth))),
            Fault::CarriageReturns if !grpc => steps = Box::new(steps.map(with_carriage_returns)),
            Fault::Split { .. } | Fault::SplitAt { .. } | Fault::Glue => chunking.push(fault),
            // Those that have no form in this protocol, and those that took the answer's place above.
            _ => {}
        }
    }
    // A body that was changed or broken has another length than the true one announced, and a break must be one.
    if let Head::Answer { length, .. } = &mut head
        && grpc
    {
        *length = None;
    }
    if grpc {
        steps = Box::new(steps.map(in_frame));
    }
    for fault in chunking {
        steps = chunked(steps, &fault);
    }
    let gate = (answer.pausable && !gated).then_some(Step::Gate);
    Performance { head, gated, steps: Box::new(gate.into_iter().chain(steps).chain(ending)) }
}

/// The first `n` pieces.
fn upto(steps: Steps, n: u64) -> Steps {
    Box::new(steps.take(usize::try_from(n).unwrap_or(usize::MAX)))
}

/// The answer of a fault that takes the true one's place.
fn instead(fault: &Fault, grpc: bool) -> Option<Answer> {
    let retry = |answer: Answer, seconds: &Option<u32>| match seconds {
        Some(seconds) => answer.with_header("retry-after", seconds.to_string()),
        None => answer,
    };
    Some(match fault {
        Fault::Unavailable { retry_after } if grpc => {
            retry(Answer::refusal(GrpcCode::UNAVAILABLE, "the server is starting"), retry_after)
        }
        Fault::Unavailable { retry_after } => {
            retry(Answer::whole(503, "text/plain; charset=utf-8", "Service Unavailable"), retry_after)
        }
        Fault::TooMany { retry_after } if grpc => {
            retry(Answer::refusal(GrpcCode::RESOURCE_EXHAUSTED, "too many requests"), retry_after)
        }
        Fault::TooMany { retry_after } => {
            let body = json!({"error": {"message": "Too many requests", "type": "rate_limit_error", "param": null, "code": 429}});
            retry(Answer::json(429, &body), retry_after)
        }
        Fault::Unauthorized if grpc => Answer::refusal(GrpcCode::UNAUTHENTICATED, "Unauthorized"),
        Fault::Unauthorized => Answer::json(401, &json!({"error": "Unauthorized"})),
        Fault::NoModel { model, .. } if grpc => {
            Answer::refusal(GrpcCode::NOT_FOUND, &format!("The model `{model}` does not exist."))
        }
        Fault::NoModel { front_end, model } => no_model(*front_end, model),
        Fault::BadRequest { message, .. } if grpc => Answer::refusal(GrpcCode::INVALID_ARGUMENT, message),
        Fault::BadRequest { shape, message } => bad_request(*shape, message),
        Fault::ServerError { message } if grpc => Answer::refusal(GrpcCode::INTERNAL, message),
        Fault::ServerError { message } => {
            Answer::whole(500, "application/json", server_error(FrontEnd::Python, message))
        }
        Fault::Instead { status, content_type, body } => Answer::whole(*status, content_type, body.clone()),
        _ => return None,
    })
}

/// vLLM's 404 for a model.
pub(crate) fn no_model(front_end: FrontEnd, model: &str) -> Answer {
    let body = match front_end {
        FrontEnd::Python => json!({"error": {
            "message": format!("The model `{model}` does not exist."), "type": "NotFoundError", "param": "model", "code": 404,
        }}),
        FrontEnd::Rust => json!({"error": {
            "message": format!("The model `{model}` does not exist."), "type": "invalid_request_error", "param": "model",
            "code": "model_not_found",
        }}),
    };
    Answer::json(404, &body)
}

/// A 400 in one of the forms that a client meets.
pub(crate) fn bad_request(shape: ErrorShape, message: &str) -> Answer {
    match shape {
        ErrorShape::NumberCode => Answer::json(
            400,
            &json!({"error": {"message": message, "type": "BadRequestError", "param": null, "code": 400}}),
        ),
        ErrorShape::TextCode => Answer::json(
            400,
            &json!({"error": {"message": message, "type": "invalid_request_error", "param": null, "code": "invalid_request_error"}}),
        ),
        ErrorShape::Detail => Answer::json(400, &json!({"detail": message})),
        ErrorShape::Text => Answer::whole(400, "text/plain; charset=utf-8", message.to_owned()),
        ErrorShape::Html => {
            let page = format!(
                "<html><head><title>400 Bad Request</title></head><body><h1>400</h1><p>{message}</p></body></html>"
            );
            Answer::whole(400, "text/html", page)
        }
        ErrorShape::Empty => Answer::whole(400, "", Bytes::new()),
        ErrorShape::BrokenJson => Answer::whole(400, "application/json", "{\"error\":{\"message\":\""),
    }
}

/// The error that stands in an event or in a 500.
fn server_error(front_end: FrontEnd, message: &str) -> String {
    let code = match front_end {
        FrontEnd::Python => json!(500),
        FrontEnd::Rust => json!("internal_error"),
    };
    json!({"error": {"message": message, "type": "InternalServerError", "param": null, "code": code}}).to_string()
}

fn paused(step: Step, pause: Duration) -> Step {
    match step {
        Step::Piece(piece) => Step::Piece(Piece { pause, ..piece }),
        other => other,
    }
}

/// Whether a piece says that its reply is finished.
fn finishes(grpc: bool, method: &str, bytes: &[u8]) -> bool {
    if grpc {
        return proto::answer_to_json(method, bytes)
            .is_some_and(|message| message.pointer("/outputs/finish_info").is_some());
    }
    bytes.windows(b"\"finish_reason\":\"".len()).any(|window| window == b"\"finish_reason\":\"")
}

/// An event with everything around it that a reader of events must skip.
fn commented(step: Step, nth: usize) -> Step {
    let Step::Piece(piece) = step else { return step };
    let mut bytes = format!(": keep-alive {nth}\n\nevent: message\nid: {nth}\nretry: 1000\n").into_bytes();
    bytes.extend_from_slice(&piece.bytes);
    Step::Piece(Piece { bytes: bytes.into(), ..piece })
}

fn with_carriage_returns(step: Step) -> Step {
    let Step::Piece(piece) = step else { return step };
    let mut bytes = Vec::with_capacity(piece.bytes.len() + 2);
    for byte in &piece.bytes {
        if *byte == b'\n' {
            bytes.push(b'\r');
        }
        bytes.push(*byte);
    }
    Step::Piece(Piece { bytes: bytes.into(), ..piece })
}

fn in_frame(step: Step) -> Step {
    match step {
        Step::Piece(piece) => Step::Raw(Piece { bytes: framed(&piece.bytes), ..piece }),
        other => other,
    }
}

/// An event or a message of so many bytes, in parts.
fn gigantic(grpc: bool, bytes: u64) -> impl Iterator<Item = Step> + Send {
    const PART: usize = 64 << 10;
    let part = Bytes::from(vec![b'a'; PART]);
    let start = if grpc {
        // The frame, and a field of text as long as the rest of the message would be.
        let mut frame = vec![0];
        frame.extend_from_slice(&u32::try_from(bytes).unwrap_or(u32::MAX).to_be_bytes());
        frame
    } else {
        b"data: {\"choices\":[{\"index\":0,\"text\":\"".to_vec()
    };
    let mut left = bytes;
    let parts = std::iter::from_fn(move || {
        let size = usize::try_from(left).unwrap_or(usize::MAX).min(PART);
        left -= size as u64;
        (size > 0).then(|| Step::Raw(Piece::now(part.slice(..size))))
    });
    let end = (!grpc).then(|| Step::Raw(Piece::now("\"}]}\n\n")));
    std::iter::once(Step::Raw(Piece::now(start))).chain(parts).chain(end)
}

/// A body in other chunks than those of its pieces.
fn chunked(steps: Steps, fault: &Fault) -> Steps {
    const MOST: usize = 64 << 20;
    match *fault {
        Fault::Split { bytes } => Box::new(steps.flat_map(move |step| split(step, bytes.max(1)))),
        Fault::SplitAt { at } => {
            let mut left = at;
            Box::new(steps.flat_map(move |step| match step {
                Step::Piece(piece) | Step::Raw(piece) if left > 0 && left < piece.bytes.len() => {
                    let mut rest = piece.bytes;
                    let first = rest.split_to(left);
                    left = 0;
                    vec![Step::Raw(Piece { pause: piece.pause, bytes: first }), Step::Raw(Piece::now(rest))]
                }
                Step::Piece(piece) | Step::Raw(piece) => {
                    left = left.saturating_sub(piece.bytes.len());
                    vec![Step::Raw(piece)]
                }
                other => vec![other],
            }))
        }
        _ => {
            let mut steps = steps.peekable();
            Box::new(std::iter::from_fn(move || {
                let mut glued = Vec::new();
                while let Some(Step::Piece(piece) | Step::Raw(piece)) =
                    steps.next_if(|step| matches!(step, Step::Piece(_) | Step::Raw(_)))
                {
                    glued.extend_from_slice(&piece.bytes);
                    if glued.len() >= MOST {
                        break;
                    }
                }
                if glued.is_empty() { steps.next() } else { Some(Step::Raw(Piece::now(glued))) }
            }))
        }
    }
}

fn split(step: Step, bytes: usize) -> Vec<Step> {
    match step {
        Step::Piece(piece) | Step::Raw(piece) => {
            let mut pause = piece.pause;
            let mut rest = piece.bytes;
            let mut parts = Vec::with_capacity(rest.len().div_ceil(bytes));
            while !rest.is_empty() {
                let part = rest.split_to(bytes.min(rest.len()));
                parts.push(Step::Raw(Piece { pause: std::mem::take(&mut pause), bytes: part }));
            }
            parts
        }
        other => vec![other],
    }
}
