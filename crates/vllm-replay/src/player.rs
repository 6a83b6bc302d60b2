//! Plays a transcript.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use consort_core::Result;
use serde_json::json;

use crate::answer::{Answer, Asked, GrpcCode, Piece, Protocol};
use crate::key::Key;
use crate::server::{Answers, Server, ServerConfig};
use crate::transcript::{Conversation, Transcript};

/// Whether recorded pauses are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pauses {
    /// Everything comes at once.
    #[default]
    Skipped,
    /// As they were recorded (rounded).
    Kept,
}

/// How a transcript is played.
#[derive(Debug, Clone, Default)]
pub struct PlayerConfig {
    /// Whether pauses are kept.
    pub pauses: Pauses,
    /// Ports, faults, certificate.
    pub server: ServerConfig,
}

/// A request that the transcript does not have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stranger {
    /// Its key.
    pub key: String,
    /// The nearest recorded key; empty if the transcript is.
    pub nearest: String,
    /// Where the two differ first.
    pub difference: String,
}

/// A running player.
///
/// A key that was recorded several times is answered in the recorded order, and then with the last answer again.
pub struct Player {
    server: Server,
    cast: Arc<Cast>,
}

impl Player {
    /// Plays a transcript.
    ///
    /// # Errors
    ///
    /// [`Io`](consort_core::ErrorKind::Io) if its ports cannot be listened on.
    pub fn start(transcript: Transcript, config: &PlayerConfig) -> Result<Self> {
        let mut parts: HashMap<String, Part> = HashMap::new();
        for (place, conversation) in transcript.conversations.iter().enumerate() {
            parts.entry(conversation.key.text()).or_default().places.push(place);
        }
        let cast =
            Arc::new(Cast { transcript, pauses: config.pauses, parts: Mutex::new(parts), strangers: Mutex::default() });
        let server = Server::start(Arc::clone(&cast) as Arc<dyn Answers>, &config.server)?;
        Ok(Self { server, cast })
    }

    /// Its ports, counts and faults.
    #[must_use]
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// The requests that were not in the transcript, in the order of arrival.
    #[must_use]
    pub fn strangers(&self) -> Vec<Stranger> {
        self.cast.strangers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The keys of conversations that were not asked for, sorted: one entry for each answer that was not given.
    #[must_use]
    pub fn unused(&self) -> Vec<String> {
        let parts = self.cast.parts.lock().unwrap_or_else(PoisonError::into_inner);
        let mut unused: Vec<String> = parts
            .iter()
            .flat_map(|(key, part)| std::iter::repeat_n(key.clone(), part.places.len().saturating_sub(part.asked)))
            .collect();
        unused.sort();
        unused
    }
}

/// The recorded answers of one key.
#[derive(Default)]
struct Part {
    places: Vec<usize>,
    asked: usize,
}

struct Cast {
    transcript: Transcript,
    pauses: Pauses,
    parts: Mutex<HashMap<String, Part>>,
    strangers: Mutex<Vec<Stranger>>,
}

impl Cast {
    fn play(&self, conversation: &Conversation, protocol: Protocol) -> Answer {
        let reply = &conversation.reply;
        let pauses = match self.pauses {
            Pauses::Kept => reply.pauses.clone(),
            Pauses::Skipped => Vec::new(),
        };
        let pauses = pauses.into_iter().chain(std::iter::repeat(0));
        let pieces = reply.events.clone().into_iter().zip(pauses);
        let pieces = pieces.map(|(bytes, pause)| Piece { pause: Duration::from_millis(pause.into()), bytes });
        Answer {
            status: reply.status,
            headers: reply.headers.clone(),
            length: (reply.sized && protocol == Protocol::Http)
                .then(|| reply.events.iter().map(|event| event.len() as u64).sum()),
            pieces: Box::new(pieces),
            ending: reply.ending,
            trailers: reply.trailers.clone(),
            // A refusal does not wait for the engine.
            pausable: !reply.events.is_empty()
                && reply.status == 200
                && ["generate", "completions"]
                    .iter()
                    .any(|word| conversation.key.ask.to_ascii_lowercase().contains(word)),
        }
    }

    fn turn_away(&self, key: &Key, text: String, protocol: Protocol) -> Answer {
        let nearest = self.transcript.conversations.iter().min_by_key(|conversation| key.distance(&conversation.key));
        let stranger = match nearest {
            Some(nearest) => {
                Stranger { difference: key.first_difference(&nearest.key), nearest: nearest.key.text(), key: text }
            }
            None => Stranger { key: text, nearest: String::new(), difference: "the transcript is empty".into() },
        };
        let answer = match protocol {
            Protocol::Http => Answer::json(
                599,
                &json!({"error": {
                    "message": format!("this request was not recorded: {}", stranger.difference),
                    "type": "not_recorded", "key": stranger.key, "nearest": stranger.nearest,
                }}),
            ),
            Protocol::Grpc => {
                let nearest: String = stranger.nearest.chars().take(2000).collect();
                let message = format!("this request was not recorded: {} (nearest: {nearest})", stranger.difference);
                Answer::refusal(GrpcCode::FAILED_PRECONDITION, &message)
            }
        };
        self.strangers.lock().unwrap_or_else(PoisonError::into_inner).push(stranger);
        answer
    }
}

impl Answers for Cast {
    fn key(&self, asked: &Asked) -> String {
        Key::of(asked, &self.transcript.rules).text()
    }

    fn answer(&self, asked: &Asked) -> Answer {
        let key = Key::of(asked, &self.transcript.rules);
        let text = key.text();
        let place = {
            let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
            parts.get_mut(&text).and_then(|part| {
                let place = part.places.get(part.asked).or(part.places.last()).copied();
                part.asked += 1;
                place
            })
        };
        match place.and_then(|place| self.transcript.conversations.get(place)) {
            Some(conversation) => self.play(conversation, asked.protocol),
            None => self.turn_away(&key, text, asked.protocol),
        }
    }
}
