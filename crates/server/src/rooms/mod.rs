//! Rooms: several personas in one conversation, which the server keeps.
//!
//! `layout` makes a persona's prompt of a room, `turn` lets personas answer and tells it as a stream, `http` is what clients
//! touch. Rooms live in memory, as long as the server does, and within its limits.
//!
//! A turn belongs to the stream of its answer: when the client goes away, the stream is dropped, and with it the replies.
//! What was said until then stays in the room.

pub(crate) mod http;
mod layout;
mod message;
mod opening;
mod picture;
mod turn;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::http::StatusCode;
use consort_core::ChatMessage;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::watch;

use self::message::{Ended, Message, Picture, Speaker};
use crate::config::Limits;
use crate::error::Failure;
use crate::identity;
use crate::persona::{Persona, PersonaAdapter};

/// The most characters of a room's title.
const TITLE: usize = 80;
/// The most participants of a room.
const MAX_PARTICIPANTS: usize = 64;

/// How personas answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Mode {
    /// All at once; none hears the others' answers before the next message.
    #[default]
    Together,
    /// One after another, each hearing those before it.
    InTurn,
}

/// All rooms.
#[derive(Debug)]
pub(crate) struct Rooms {
    limits: Limits,
    /// What all rooms hold, in bytes.
    held: Arc<AtomicUsize>,
    /// In the order of their making.
    rooms: Mutex<Vec<Arc<Room>>>,
}

/// One of them.
#[derive(Debug)]
pub(crate) struct Room {
    pub(crate) id: String,
    /// Seconds since 1970.
    created: u64,
    state: Mutex<State>,
    /// What all rooms hold.
    held: Arc<AtomicUsize>,
}

#[derive(Debug)]
struct State {
    participants: Vec<String>,
    scene: String,
    mode: Mode,
    messages: Vec<Message>,
    /// What this room holds.
    bytes: usize,
    turn: Option<Speaking>,
}

/// A turn that goes on.
#[derive(Debug)]
struct Speaking {
    id: u64,
    speakers: Vec<(String, watch::Sender<Asked>)>,
}

/// What is asked of somebody who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    /// To go on.
    Speak,
    /// To stop.
    Stop,
    /// Nothing more: it has ended.
    Over,
}

/// What changes in a room.
#[derive(Debug, Default)]
pub(crate) struct Change {
    pub(crate) participants: Option<Vec<String>>,
    pub(crate) scene: Option<String>,
    pub(crate) mode: Option<Mode>,
}

/// What the user says, and who is to answer.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) content: String,
    pub(crate) pictures: Vec<Picture>,
    /// `None`: all participants.
    pub(crate) respond: Option<Vec<String>>,
    pub(crate) mode: Option<Mode>,
}

/// A turn that begins.
#[derive(Debug)]
struct Begun {
    /// The user's message as clients see it. `None`: nothing was added.
    message: Option<Value>,
    speakers: Vec<(String, watch::Receiver<Asked>)>,
    mode: Mode,
    /// How many messages stand.
    standing: usize,
    hold: TurnHold,
}

impl Rooms {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self { limits: limits.clone(), held: Arc::default(), rooms: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Room>>> {
        self.rooms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a room.
    ///
    /// # Errors
    /// There are too many, or they hold too much.
    pub(crate) fn make(&self, change: Change) -> Result<Arc<Room>, Failure> {
        let state = State {
            participants: change.participants.unwrap_or_default(),
            scene: String::new(),
            mode: change.mode.unwrap_or_default(),
            messages: Vec::new(),
            bytes: 0,
            turn: None,
        };
        let room = Room {
            id: identity::name("room_"),
            created: identity::now(),
            state: Mutex::new(state),
            held: Arc::clone(&self.held),
        };
        let scene = change.scene.unwrap_or_default();
        room.lock().hold(scene.len(), &self.held, &self.limits)?;
        room.lock().scene = scene;
        let mut rooms = self.lock();
        if rooms.len() >= self.limits.rooms.get() {
            let message = format!("there are {} rooms already; delete one", rooms.len());
            return Err(Failure::invalid("too_many_rooms", message));
        }
        let room = Arc::new(room);
        rooms.push(Arc::clone(&room));
        Ok(room)
    }

    /// All of them, without their messages.
    pub(crate) fn listed(&self) -> Vec<Value> {
        self.lock().iter().map(|room| room.shown(Detail::Head)).collect()
    }

    /// The room of this name.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn find(&self, id: &str) -> Result<Arc<Room>, Failure> {
        self.lock().iter().find(|room| room.id == id).cloned().ok_or_else(unknown)
    }

    /// Takes a room away. Who speaks in it stops.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn remove(&self, id: &str) -> Result<(), Failure> {
        let mut rooms = self.lock();
        let at = rooms.iter().position(|room| room.id == id).ok_or_else(unknown)?;
        let room = rooms.remove(at);
        drop(rooms);
        room.stop(None);
        Ok(())
    }

    /// Changes a room.
    ///
    /// # Errors
    /// It speaks, or would hold too much.
    pub(crate) fn change(&self, room: &Room, change: Change) -> Result<(), Failure> {
        let mut state = room.lock();
        state.silent()?;
        if let Some(scene) = change.scene {
            state.hold(scene.len(), &self.held, &self.limits)?;
            let before = std::mem::replace(&mut state.scene, scene).len();
            state.give_back(before, &self.held);
        }
        if let Some(participants) = change.participants {
            state.participants = participants;
        }
        if let Some(mode) = change.mode {
            state.mode = mode;
        }
        Ok(())
    }

    /// Begins a turn: what the user says is part of the room from here on.
    ///
    /// # Errors
    /// Somebody speaks; somebody is asked who is not there; nothing was said yet; the room is full.
    fn begin(&self, room: &Arc<Room>, said: Said) -> Result<Begun, Failure> {
        let mut state = room.lock();
        state.silent()?;
        if let Some(stranger) = said.respond.iter().flatten().find(|name| !state.participants.contains(*name)) {
            return Err(Failure::value("respond", format!("`{stranger}` is not in this room")));
        }
        let adds = !said.content.is_empty() || !said.pictures.is_empty();
        if !adds && !state.messages.iter().any(|message| message.from == Speaker::User) {
            return Err(Failure::value("content", "nothing was said in this room yet: say something"));
        }
        let names = said.respond.unwrap_or_else(|| state.participants.clone());
        let most = self.limits.room_messages.get();
        if state.messages.len() + names.len() + usize::from(adds) > most {
            let message = format!("a room has at most {most} messages (limits.room_messages); begin another one");
            return Err(Failure::invalid("room_full", message));
        }
        let mut shown = None;
        if adds {
            let message = Message { content: said.content, pictures: said.pictures, ..Message::new(Speaker::User) };
            state.hold(message.bytes(), &self.held, &self.limits)?;
            shown = Some(message.shown());
            state.messages.push(message);
        }
        if let Some(mode) = said.mode {
            state.mode = mode;
        }
        let id = identity::random();
        let (speakers, ears) = names
            .into_iter()
            .map(|name| (name, watch::channel(Asked::Speak)))
            .map(|(name, (tell, hear))| ((name.clone(), tell), (name, hear)))
            .unzip();
        state.turn = Some(Speaking { id, speakers });
        let (mode, standing) = (state.mode, state.messages.len());
        drop(state);
        Ok(Begun { message: shown, speakers: ears, mode, standing, hold: TurnHold { room: Arc::clone(room), id } })
    }
}

fn unknown() -> Failure {
    Failure::not_found("room_not_found", "there is no such room")
}

/// How much of a room is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Detail {
    /// All but the messages.
    Head,
    Whole,
}

impl Room {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As clients see it.
    pub(crate) fn shown(&self, detail: Detail) -> Value {
        let state = self.lock();
        let messages: Vec<Value> = match detail {
            Detail::Head => Vec::new(),
            Detail::Whole => state.messages.iter().map(Message::shown).collect(),
        };
        let mut room = json!({
            "id": self.id,
            "object": "room",
            "participants": state.participants,
            "scene": state.scene,
            "mode": state.mode,
            "messages": messages,
            "created": self.created,
        });
        if let (Some(title), Some(fields)) = (state.title(), room.as_object_mut()) {
            fields.insert("title".into(), title.into());
        }
        room
    }

    /// Stops these, or all that speak or wait. Who is stopped by this.
    pub(crate) fn stop(&self, names: Option<&[String]>) -> Vec<String> {
        let state = self.lock();
        let speakers = state.turn.iter().flat_map(|turn| &turn.speakers);
        let meant = speakers.filter(|(name, _)| names.is_none_or(|names| names.contains(name)));
        let stop = |(name, tell): &(String, watch::Sender<Asked>)| {
            let speaks = |asked: &mut Asked| {
                *asked != Asked::Over && {
                    *asked = Asked::Stop;
                    true
                }
            };
            tell.send_if_modified(speaks).then(|| name.clone())
        };
        meant.filter_map(stop).collect()
    }

    /// A picture that was shown.
    pub(crate) fn picture(&self, id: &str) -> Option<Picture> {
        let state = self.lock();
        state.messages.iter().flat_map(|message| &message.pictures).find(|picture| picture.id == id).cloned()
    }

    /// What a persona is asked to go on with, of the first `standing` messages, or of all.
    fn conversation(&self, persona: &Persona, standing: Option<usize>) -> Vec<ChatMessage> {
        let state = self.lock();
        let messages = standing.and_then(|standing| state.messages.get(..standing)).unwrap_or(&state.messages);
        layout::conversation(&state.scene, &state.participants, messages, persona)
    }

    /// A persona begins to speak. Its message's name.
    fn speaks(&self, persona: &str, adapters: &[PersonaAdapter]) -> String {
        let message = Message { adapters: adapters.to_vec(), ..Message::new(Speaker::Persona(persona.to_owned())) };
        let id = message.id.clone();
        self.lock().messages.push(message);
        id
    }

    /// It goes on.
    fn says(&self, message: &str, content: &str, reasoning: &str) {
        let mut state = self.lock();
        // It is one of the last.
        if let Some(message) = state.messages.iter_mut().rev().find(|other| other.id == message) {
            message.content.push_str(content);
            message.reasoning.push_str(reasoning);
        }
    }

    /// It has ended. Without a message, it had not begun.
    fn ends(&self, persona: &str, message: Option<&str>, ended: Ended) {
        let mut state = self.lock();
        let found = message.and_then(|id| state.messages.iter_mut().rev().find(|other| other.id == id));
        if let Some(message) = found {
            message.content.truncate(message.content.trim_end().len());
            message.ended = Some(ended);
            let bytes = message.bytes();
            state.bytes += bytes;
            self.held.fetch_add(bytes, Ordering::Relaxed);
        }
        let speaker = state.turn.iter().flat_map(|turn| &turn.speakers).find(|(name, _)| name == persona);
        if let Some((_, tell)) = speaker {
            tell.send_replace(Asked::Over);
        }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let bytes = self.lock().bytes;
        self.held.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl State {
    /// # Errors
    /// Somebody speaks.
    fn silent(&self) -> Result<(), Failure> {
        match self.turn {
            None => Ok(()),
            Some(_) => Err(Failure::refused(
                StatusCode::CONFLICT,
                "room_busy",
                "the room still answers: wait until it is done, or stop it",
            )),
        }
    }

    /// Counts bytes that the room is to hold.
    ///
    /// # Errors
    /// It, or all rooms together, would hold too much. Then nothing is counted.
    fn hold(&mut self, bytes: usize, held: &AtomicUsize, limits: &Limits) -> Result<(), Failure> {
        let full = |what: &str, most: usize, key: &str, hint: &str| {
            Err(Failure::invalid("room_full", format!("{what} at most {most} bytes (limits.{key}); {hint}")))
        };
        let most = limits.room_bytes.get();
        if self.bytes.saturating_add(bytes) > most {
            return full("a room holds", most, "room_bytes", "begin another one");
        }
        let most = limits.rooms_bytes.get();
        if held.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes) > most {
            held.fetch_sub(bytes, Ordering::Relaxed);
            return full("all rooms together hold", most, "rooms_bytes", "delete one");
        }
        self.bytes += bytes;
        Ok(())
    }

    fn give_back(&mut self, bytes: usize, held: &AtomicUsize) {
        self.bytes -= bytes;
        held.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// The first characters of what the user said first, else of the scene.
    fn title(&self) -> Option<String> {
        let said = self.messages.iter().filter(|message| message.from == Speaker::User).map(|m| m.content.as_str());
        said.chain([self.scene.as_str()]).find_map(|text| {
            let mut title = String::new();
            for word in text.split_whitespace() {
                if !title.is_empty() {
                    title.push(' ');
                }
                title.push_str(word);
                if title.chars().nth(TITLE).is_some() {
                    break;
                }
            }
            let title: String = title.chars().take(TITLE).collect();
            (!title.is_empty()).then(|| title.trim_end().to_owned())
        })
    }
}

/// Who holds this has the room's word: no other turn begins until it is dropped.
#[derive(Debug)]
struct TurnHold {
    room: Arc<Room>,
    id: u64,
}

impl Drop for TurnHold {
    fn drop(&mut self) {
        let mut state = self.room.lock();
        state.turn = state.turn.take().filter(|turn| turn.id != self.id);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::num::NonZeroUsize;

    use super::*;

    fn some(value: usize) -> NonZeroUsize {
        NonZeroUsize::new(value).unwrap()
    }

    fn made(rooms: &Rooms, scene: &str) -> Result<Arc<Room>, Failure> {
        rooms.make(Change {
            participants: Some(vec!["ada".into(), "ben".into()]),
            scene: Some(scene.into()),
            mode: None,
        })
    }

    fn said(content: &str) -> Said {
        Said { content: content.into(), pictures: Vec::new(), respond: None, mode: None }
    }

    #[test]
    fn what_rooms_hold_is_counted_bounded_and_given_back() {
        let limits = Limits { rooms: some(2), room_bytes: some(2000), rooms_bytes: some(3000), ..Limits::default() };
        let rooms = Rooms::new(&limits);
        let held = || rooms.held.load(Ordering::Relaxed);
        let one = made(&rooms, &"x".repeat(1000)).unwrap();
        assert_eq!(held(), 1000);
        assert_eq!(rooms.begin(&one, said(&"x".repeat(600))).unwrap_err().code(), "room_full");
        assert_eq!((held(), one.shown(Detail::Whole)["messages"].as_array().unwrap().len()), (1000, 0));
        drop(rooms.begin(&one, said("x")).unwrap());
        assert_eq!(held(), 1513);
        rooms.change(&one, Change { scene: Some("y".into()), ..Change::default() }).unwrap();
        assert_eq!(held(), 514);
        rooms.change(&one, Change { scene: Some("y".repeat(1400)), ..Change::default() }).unwrap();
        assert_eq!(made(&rooms, &"x".repeat(1500)).unwrap_err().code(), "room_full");
        made(&rooms, "").unwrap();
        assert_eq!(made(&rooms, "").unwrap_err().code(), "too_many_rooms");
        let id = one.id.clone();
        drop(one);
        rooms.remove(&id).unwrap();
        assert_eq!((held(), rooms.find(&id).unwrap_err().code()), (0, "room_not_found"));
    }

    #[test]
    fn one_turn_at_a_time() {
        let rooms = Rooms::new(&Limits { room_messages: some(4), ..Limits::default() });
        let room = made(&rooms, "").unwrap();
        assert_eq!(rooms.begin(&room, said("")).unwrap_err().param(), Some("content"));
        let begun = rooms.begin(&room, said("Hello!")).unwrap();
        assert_eq!(rooms.begin(&room, said("Hello!")).unwrap_err().code(), "room_busy");
        assert_eq!(rooms.change(&room, Change::default()).unwrap_err().status().as_u16(), 409);
        let message = room.speaks("ada", &[]);
        room.says(&message, "Hi. ", "");
        room.ends(
            "ada",
            Some(&message),
            Ended { reason: message::Reason::Stop, figures: Default::default(), error: None },
        );
        assert_eq!(room.stop(None), ["ben"], "who has ended cannot be stopped");
        assert_eq!(room.shown(Detail::Whole)["messages"][1]["content"], "Hi.");
        drop(begun);
        assert_eq!(room.stop(None), [""; 0]);
        assert_eq!(rooms.begin(&room, said("Hello!")).unwrap_err().code(), "room_full");
        drop(rooms.begin(&room, said("")).unwrap());
        let ask = Said { respond: Some(vec!["eve".into()]), ..said("") };
        assert_eq!(rooms.begin(&room, ask).unwrap_err().param(), Some("respond"));
    }

    #[test]
    fn a_title_is_short_and_of_what_was_said_first() {
        let rooms = Rooms::new(&Limits::default());
        let room = made(&rooms, " \n ").unwrap();
        assert_eq!(room.shown(Detail::Head).get("title"), None);
        drop(rooms.begin(&room, said(&format!(" a\n\t b {}", "ö".repeat(100)))).unwrap());
        let title = room.shown(Detail::Head)["title"].as_str().unwrap().to_owned();
        assert_eq!((title.chars().count(), title.starts_with("a b öö")), (80, true));
        assert_eq!(made(&rooms, "An evening\nat sea").unwrap().shown(Detail::Head)["title"], "An evening at sea");
    }
}
