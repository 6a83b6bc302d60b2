//! HTTP over any [`ModelBackend`](consort_core::ModelBackend): OpenAI's and Anthropic's APIs, personas as models, rooms, a page,
//! operations.
//!
//! ```
//! use std::sync::Arc;
//!
//! use consort_core::{ModelBackend, Result};
//! use consort_server::{AdapterLibrary, App, Config, Keys, Listen, Parts, Server, TextFloor};
//!
//! /// Serves a model as the persona `ada` until the process is asked to end.
//! async fn serve(backend: Arc<dyn ModelBackend>, text: TextFloor) -> Result<()> {
//!     let config = Config::parse("[[persona]]\nname = \"ada\"\nsystem = \"You are Ada.\"\n")?;
//!     let adapters = AdapterLibrary::new([], &config.adapters.folders)?;
//!     let listen = Listen { tcp: Some(config.server.listen), socket: None };
//!     let app = App::open(Parts { backend, text, config, keys: Keys::none(), adapters }).await?;
//!     Server::bind(app, &listen).await?.run().await;
//!     Ok(())
//! }
//! ```
//!
//! # Floors
//!
//! The server knows the outer seam and the text floor: a backend is an `Arc<dyn ModelBackend>`, whatever computes behind
//! it. It reads replies with `consort_text::ReplyParser`, and asks for forms (`consort_core::Structure`) that the backend
//! compiles.
//!
//! # How a request goes
//!
//! `router` (log, count, name) → `guard` and `auth` → `body` (limits) → a protocol's reader, in which **every field is
//! understood, named as harmless, or refused** (`fields`) → `registry` (which persona) → `adapters` (there before they are
//! needed) → `speak` (one [`GenerateRequest`](consort_core::GenerateRequest) for each reply) → `reply` (events taken apart
//! and counted) → a protocol's writer, at once or as server-sent events (`sse`).
//!
//! `rooms` keeps conversations of several personas and lets them answer by the same way, from `registry` on; `page` is what
//! shows them, three files that are part of the program, and `status` tells it about the engine.
//!
//! Protocols are thin: all of OpenAI's stands in `openai`, all of Anthropic's in `anthropic`, over what is beside them. When a client goes
//! away, its stream is dropped, and with it the request: the engine's slot is free within one step.
//!
//! # What it promises
//!
//! - A persona is a model's name. It never changes under a reply that runs; another one in its place is another member.
//! - Nothing outside of the configured folders is read, and no address is fetched that the operator has not allowed.
//! - No prompt and no reply stands in a log. Errors tell clients no path.
//! - On SIGTERM nobody new is let in; replies that run have their time, and what is cut then ends with what it has.
#![forbid(unsafe_code)]

mod adapter_list;
mod adapters;
mod anthropic;
mod app;
mod ask;
mod auth;
mod body;
mod config;
mod conversation;
mod delta;
mod error;
mod fields;
mod guard;
mod identity;
mod image;
mod metrics;
mod openai;
mod openapi;
mod operations;
mod page;
mod persona;
mod personas;
mod pictures;
mod placement;
mod registry;
mod reload;
mod remote;
mod reply;
mod rooms;
mod router;
mod sampling;
mod script;
mod serve;
mod shutdown;
#[cfg(unix)]
mod socket;
mod speak;
mod sse;
mod stamp;
mod status;
mod telemetry;
mod text;

pub use adapters::{AdapterChanges, AdapterLibrary};
pub use app::{App, Parts};
pub use ask::{Answered, Inside};
pub use auth::Keys;
pub use config::{
    AdaptersConfig, Config, DeviceName, Limits, ModelConfig, OverflowSettings, PriorityPlacements, RemoteFailureRule,
    RemoteSettings, SchedulerSettings, ServerConfig, TEMPLATE,
};
pub use error::{Failure, FailureKind};
pub use openapi::openapi;
pub use persona::{Persona, PersonaAdapter};
pub use placement::Sides;
pub use registry::PersonaChanges;
pub use reload::{Fresh, Reloaded, Source};
pub use router::Transport;
pub use sampling::SamplingSettings;
pub use serve::{Listen, Server};
pub use shutdown::asked_to_end;
pub use telemetry::TelemetryConfig;
pub use text::TextFloor;
