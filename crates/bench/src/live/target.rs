//! What is measured: anything that answers a conversation with a stream of tokens.

use std::collections::BTreeMap;
use std::sync::Arc;

use consort_core::{
    AdapterFiles, AdapterUse, ChatMessage, ChatPrompt, ContentPart, EndTokens, Error, ErrorKind, Event,
    GenerateRequest, ImageInput, ModelBackend, Prompt, Result, StopRules, Thinking, block_on,
};
use serde::{Deserialize, Serialize};

use super::workload::{Ask, Part};

/// How a target is reached. Figures of the two are never compared without saying so: HTTP costs time of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    /// By a call, in this process.
    InProcess,
    /// By an OpenAI-compatible URL.
    Http,
}

impl Transport {
    /// In words.
    #[must_use]
    pub fn describe(self) -> &'static str {
        match self {
            Self::InProcess => "in process",
            Self::Http => "HTTP",
        }
    }
}

/// What a target is, as far as it is known.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct About {
    /// The name by which the report calls it.
    pub name: String,
    /// How it is reached.
    pub transport: Transport,
    /// The engine (`native`, `llamacpp`), or what the server says of itself.
    pub engine: String,
    /// The model, where it can be looked at.
    pub model: Option<ModelAbout>,
    /// What was seen of the device, where it can be known.
    pub evidence: Option<Evidence>,
    /// Settings that were chosen: threads, a command line, variables of a search.
    pub settings: BTreeMap<String, String>,
}

/// The model of a target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelAbout {
    /// Its own name.
    pub name: String,
    /// The architecture (`qwen35`).
    pub architecture: String,
    /// Decoder layers.
    pub layers: usize,
    /// Width of the hidden state.
    pub hidden_size: usize,
    /// Rows of the output projection.
    pub vocab_size: usize,
    /// Weights, in number.
    pub parameters: u64,
    /// How most of them are stored (`Q4_K`).
    pub weight_type: String,
    /// What the user named: a path's last part, or `synthetic:...`.
    pub source: String,
}

/// Device evidence, as a report keeps it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    /// Where the bulk of the model computed (`cpu`, `metal`, `cuda:0`).
    pub device: String,
    /// The device's own name.
    pub device_name: String,
    /// Whether that is an accelerator.
    pub accelerator: bool,
    /// Parts that were seen elsewhere than on the device and are not on the short list of what may.
    pub strays: Vec<String>,
    /// How this is known.
    pub established_by: String,
}

impl Evidence {
    fn of(found: &consort_core::DeviceEvidence) -> Self {
        let strays = found.placements.iter().filter(|place| !place.allowed && place.device != found.device);
        let proof = serde_json::to_value(found.established_by).ok();
        Self {
            device: found.device.to_string(),
            device_name: found.device_name.clone(),
            accelerator: found.device.is_accelerator(),
            strays: strays.map(|place| format!("{} on {}", place.component, place.device)).collect(),
            established_by: proof.as_ref().and_then(|value| value.as_str()).unwrap_or("unknown").to_owned(),
        }
    }
}

/// A sign of life of a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beat {
    /// Tokens came. A server may send several at once, and not say how many: then it is 1, and the end corrects it.
    Tokens(u32),
    /// The reply has ended by itself. Nothing follows.
    End(Counted),
}

/// Tokens as the target counts them; `None` where it does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counted {
    /// Of the prompt.
    pub prompt: Option<u64>,
    /// Of these, from a cache.
    pub reused: Option<u64>,
    /// Of the reply.
    pub completion: Option<u64>,
}

/// A reply as it comes. An `Err` is the last item. Dropping it cancels.
pub type Beats = Box<dyn Iterator<Item = Result<Beat>>>;

/// Where a target's memory and processor time can be seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Process {
    /// In this process, with all other in-process targets.
    Own,
    /// In a child of ours.
    Child(u32),
    /// Nowhere: somebody else started it.
    Elsewhere,
}

/// Anything that answers a conversation with a stream of tokens.
pub trait Target: Send + Sync {
    /// What it is.
    fn about(&self) -> &About;

    /// Asks, and gives the reply as it comes. `pictures` are the workload's, as PNG.
    ///
    /// # Errors
    /// What can be told at once; later errors are the reply's last item.
    fn ask(&self, ask: &Ask, pictures: &[Arc<[u8]>]) -> Result<Beats>;

    /// Where its memory and time can be seen.
    fn process(&self) -> Process;

    /// Bytes that it holds for the model, its sequences and its caches, where it tells.
    fn model_memory(&self) -> Option<u64> {
        None
    }
}

/// A backend in this process.
pub struct InProcess {
    about: About,
    backend: Arc<dyn ModelBackend>,
    adapters: Vec<String>,
}

impl std::fmt::Debug for InProcess {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InProcess").field("about", &self.about).finish_non_exhaustive()
    }
}

impl InProcess {
    /// A backend under a name. `source` is what the user called the model, `settings` what was chosen.
    #[must_use]
    pub fn new(
        name: impl Into<String>,
        source: impl Into<String>,
        settings: BTreeMap<String, String>,
        backend: Arc<dyn ModelBackend>,
    ) -> Self {
        let info = backend.info();
        let about = About {
            name: name.into(),
            transport: Transport::InProcess,
            engine: backend.name().to_owned(),
            model: Some(ModelAbout {
                name: info.name.clone(),
                architecture: info.architecture.clone(),
                layers: info.layers,
                hidden_size: info.hidden_size,
                vocab_size: info.vocab_size,
                parameters: info.parameters,
                weight_type: info.weight_type.clone(),
                source: source.into(),
            }),
            evidence: Some(Evidence::of(&backend.evidence())),
            settings,
        };
        Self { about, backend, adapters: Vec::new() }
    }

    /// Loads the adapters that the workload names by index.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn load_adapters(&mut self, adapters: &[(String, AdapterFiles)]) -> Result<()> {
        for (id, files) in adapters {
            block_on(self.backend.load_adapter(id, files.clone()))?;
            self.adapters.push(id.clone());
        }
        Ok(())
    }
}

impl Target for InProcess {
    fn about(&self) -> &About {
        &self.about
    }

    fn ask(&self, ask: &Ask, pictures: &[Arc<[u8]>]) -> Result<Beats> {
        let mut messages = Vec::with_capacity(ask.messages.len());
        for message in &ask.messages {
            let part = |part: &Part| match part {
                Part::Text(text) => Ok(ContentPart::Text(text.clone())),
                Part::Picture(index) => {
                    Ok(ContentPart::Image(ImageInput::Encoded(Arc::clone(picture(pictures, *index)?))))
                }
            };
            let content = message.parts.iter().map(part).collect::<Result<_>>()?;
            messages.push(ChatMessage::new(message.role.into(), content));
        }
        let mut adapters = Vec::new();
        if let Some(index) = ask.adapter {
            adapters.push(AdapterUse { id: adapter(&self.adapters, index)?.clone(), scale: 1.0 });
        }
        let request = GenerateRequest {
            adapters,
            stop: StopRules { end_tokens: EndTokens::Ignore, ..StopRules::default() },
            max_tokens: Some(ask.max_tokens),
            ..GenerateRequest::new(Prompt::Chat(ChatPrompt {
                messages,
                thinking: Thinking::Off,
                ..ChatPrompt::default()
            }))
        };
        let events = self.backend.generate(request)?.blocking();
        Ok(Box::new(events.filter_map(|event| {
            Some(match event {
                Ok(Event::Tokens { ids, .. }) => {
                    Ok(Beat::Tokens(u32::try_from(ids.len()).ok().filter(|count| *count > 0)?))
                }
                Ok(Event::Finished { usage, .. }) => Ok(Beat::End(Counted {
                    prompt: Some(usage.prompt_tokens as u64),
                    reused: Some(usage.reused_tokens as u64),
                    completion: Some(usage.completion_tokens as u64),
                })),
                Ok(_) => return None,
                Err(error) => Err(error),
            })
        })))
    }

    fn process(&self) -> Process {
        Process::Own
    }

    fn model_memory(&self) -> Option<u64> {
        block_on(self.backend.memory()).ok().map(|report| report.total())
    }
}

pub(super) fn picture(pictures: &[Arc<[u8]>], index: usize) -> Result<&Arc<[u8]>> {
    pictures.get(index).ok_or_else(|| missing("picture", index))
}

pub(super) fn adapter(adapters: &[String], index: usize) -> Result<&String> {
    adapters.get(index).ok_or_else(|| missing("adapter", index))
}

fn missing(what: &'static str, index: usize) -> Error {
    Error::new(ErrorKind::InvalidConfig, "the workload needs more pictures or adapters than the target was given")
        .with_operation("bench::target")
        .with_context(what, index.to_string())
}
