//! Engines behind the scheduler.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use consort_behavior::backend::{BackendFixture, BackendNature, BackendSetup, Made, MakeBackend, UserTurn};
use consort_behavior::fixture::EngineFixture;
use consort_behavior::saboteur::{Fault, Saboteur};
use consort_behavior::toy::HashEngine;
use consort_core::{ChatMessage, ChatPrompt, Device, DevicePolicy, Engine, Error, ErrorKind, Result, Role};
use consort_scheduler::{FrontEnd, Scheduled, SchedulerConfig};
use consort_text::{ChatTemplate, ChatTemplateInput, Tokenizer};

use super::{folder, native};

/// How long a case waits for what was begun.
const PATIENCE: Duration = Duration::from_secs(60);

fn config(setup: &BackendSetup) -> SchedulerConfig {
    let default = SchedulerConfig::default();
    SchedulerConfig {
        max_queued: setup.max_queued.unwrap_or(default.max_queued),
        max_running: setup.max_running.unwrap_or(default.max_running),
        adapter_bytes: setup.adapter_bytes.unwrap_or(default.adapter_bytes),
        // Small, so that a reader who does not read is noticed soon.
        event_buffer: 16,
        ..default
    }
}

/// Makes backends of what `engine` makes, on the thread that will own it.
fn make<E: Engine + 'static>(
    front_end: FrontEnd,
    engine: impl Fn() -> Result<E> + Clone + Send + Sync + 'static,
) -> MakeBackend {
    Arc::new(move |setup| {
        let scheduled = Arc::new(Scheduled::spawn(engine.clone(), front_end.clone(), config(setup))?);
        let waiting = Arc::clone(&scheduled);
        Ok(Made { backend: scheduled, settle: Arc::new(move || waiting.wait_idle(PATIENCE)) })
    })
}

/// The goldens' tokenizer and template.
fn front_end() -> Result<FrontEnd> {
    let read = |name: &str| {
        let path = folder("golden/tokenizer").join(name);
        fs::read(&path).map_err(|error| Error::io(&path, error))
    };
    let template = String::from_utf8_lossy(&read("chat_template.jinja")?).into_owned();
    let processor = fs::read(folder("golden/images/preprocessor_config.json")).unwrap_or_default();
    Ok(FrontEnd {
        tokenizer: Some(Tokenizer::from_json(&read("tokenizer.json")?, Some(&read("tokenizer_config.json")?))?),
        template: Some(ChatTemplate::new(&template)?),
        image_processor: Some(consort_vision::ImageProcessor::new(consort_vision::ImageProcessorConfig::from_json(
            &processor,
        )?)?),
    })
}

/// As the goldens' template writes it.
fn user_turn(text: &str) -> String {
    format!("<|im_start|>user{text}<|im_end|><|im_start|>assistant")
}

fn fixture(make: MakeBackend, engine: EngineFixture, user_turn: Option<UserTurn>) -> Result<BackendFixture> {
    Ok(BackendFixture { user_turn, ..BackendFixture::new(make, BackendNature::SCHEDULED, engine)? })
}

/// The parrot, without a tokenizer.
pub fn parrot() -> Result<BackendFixture> {
    let engine = super::parrot()?;
    let lesson = super::lesson();
    let make =
        make(FrontEnd::default(), move || super::parrot::Parrot::new(64, &lesson, DevicePolicy::Named(Device::Cpu)));
    fixture(make, engine, None)
}

/// The toy's vocabulary and special tokens, as the goldens' tokenizer has them.
fn toy(setup: &consort_behavior::fixture::Setup) -> Result<HashEngine> {
    Ok(HashEngine::new(320, setup)?.with_special_tokens(308, 312))
}

/// The toy with the goldens' tokenizer.
pub fn hash(fault: Option<Fault>) -> Result<BackendFixture> {
    let mut engine = super::hash()?;
    engine.make = Arc::new(|setup| Ok(Box::new(toy(setup)?) as Box<dyn Engine>));
    engine.tokens = 0..256;
    let setup = engine.setup();
    let make = match fault {
        None => make(front_end()?, move || toy(&setup)),
        Some(fault) => make(front_end()?, move || Ok(Saboteur::new(Box::new(toy(&setup)?), fault))),
    };
    fixture(make, engine, Some(Arc::new(user_turn)))
}

/// The native engine with a configuration of the goldens.
pub fn native(model: &str) -> Result<BackendFixture> {
    let files = native::converted(model, consort_forge::OutputType::F32)?;
    let engine: EngineFixture = native::fixture(model, model, &files, 1)?;
    let setup = engine.setup();
    let make = make(front_end()?, move || native::load(&files, 1, &setup));
    fixture(make, engine, Some(Arc::new(user_turn)))
}

/// llama.cpp with a configuration of the goldens.
#[cfg(feature = "llamacpp")]
pub fn llamacpp(model: &str) -> Result<BackendFixture> {
    let files = native::converted(model, consort_forge::OutputType::F32)?;
    let engine = super::llamacpp::fixture(model, model, &files, 1)?;
    let setup = engine.setup();
    let make = make(front_end()?, move || super::llamacpp::load(&files, 1, &setup));
    fixture(make, engine, Some(Arc::new(user_turn)))
}

/// The native engine with the study model, its own tokenizer and template. `None` before it has goldens.
pub fn etude() -> Option<Result<BackendFixture>> {
    let engine = match native::etude()? {
        Ok(engine) => engine,
        Err(error) => return Some(Err(error)),
    };
    Some(study(engine))
}

/// A conversation of one turn is that turn: the study model's template adds no system message of its own.
pub fn turn_of(template: ChatTemplate) -> UserTurn {
    Arc::new(move |text: &str| {
        let messages = vec![ChatMessage::text(Role::User, text)];
        let input = ChatTemplateInput::from_prompt(&ChatPrompt { messages, ..ChatPrompt::default() }).unwrap();
        template.render(&input).unwrap()
    })
}

fn study(engine: EngineFixture) -> Result<BackendFixture> {
    let files = native::etude_files(consort_forge::OutputType::F32)?;
    let gguf = consort_gguf::Gguf::open(&files.text)?;
    let tokenizer = Tokenizer::from_gguf(&gguf)?;
    let missing = || Error::new(ErrorKind::InvalidTemplate, "the study model has no chat template");
    let template = ChatTemplate::new(tokenizer.chat_template().ok_or_else(missing)?)?;
    let user_turn = turn_of(template.clone());
    let front_end = FrontEnd { tokenizer: Some(tokenizer), template: Some(template), image_processor: None };
    let setup = engine.setup();
    let make = make(front_end, move || native::load(&files, 1, &setup));
    fixture(make, engine, Some(user_turn))
}
