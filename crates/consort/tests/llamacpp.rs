//! The bundled model on llama.cpp, through the facade: it sees the picture, and three personas answer at once.
#![cfg(feature = "llamacpp")]
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use consort::core::{
    AdapterUse, ChatMessage, ChatPrompt, ContentPart, Device, DevicePolicy, ErrorKind, Event, GenerateRequest,
    ImageInput, ModelBackend, Prompt, Role, Thinking, block_on,
};
use consort::{Backend, LoadConfig, ModelFiles, bundled};

fn load(backend: Backend, policy: DevicePolicy) -> consort::core::Result<Arc<dyn ModelBackend>> {
    consort::load(LoadConfig { backend: Some(backend), policy, ..LoadConfig::new(ModelFiles::Bundled) })
}

/// What each of these personas says of the demo's picture, all at once.
fn answers(backend: &dyn ModelBackend) -> Vec<String> {
    let mut adapters = vec![Vec::new()];
    for adapter in bundled::ADAPTERS {
        block_on(backend.load_adapter(adapter.name, adapter.files())).unwrap();
        adapters.push(vec![AdapterUse { id: adapter.name.into(), scale: 1.0 }]);
    }
    let streams: Vec<_> = adapters
        .into_iter()
        .map(|adapters| {
            let picture = ContentPart::Image(ImageInput::Encoded(bundled::DEMO_PICTURE.into()));
            let question = ContentPart::Text("What colour is the circle?".into());
            let message = ChatMessage::new(Role::User, vec![picture, question]);
            let prompt = ChatPrompt { messages: vec![message], thinking: Thinking::Off, ..ChatPrompt::default() };
            backend
                .generate(GenerateRequest {
                    adapters,
                    max_tokens: Some(24),
                    ..GenerateRequest::new(Prompt::Chat(prompt))
                })
                .unwrap()
        })
        .collect();
    let text = |event| match event {
        Ok(Event::Tokens { text, .. }) => text,
        Ok(_) => String::new(),
        Err(error) => panic!("{error}"),
    };
    streams.into_iter().map(|stream| stream.blocking().map(text).collect()).collect()
}

#[test]
fn three_personas_see_the_same_picture() {
    let backend = load(Backend::Llamacpp, DevicePolicy::Named(Device::Cpu)).unwrap();
    let answers = answers(&*backend);
    assert!(answers.iter().all(|answer| answer.contains("red")), "{answers:?}");
    assert!(answers[0] != answers[1] && answers[1] != answers[2], "the adapters say the same: {answers:?}");
    assert_eq!(backend.evidence().device, Device::Cpu);
}

#[test]
#[cfg(not(any(feature = "metal", feature = "cuda", feature = "vulkan")))]
fn a_build_for_the_processor_refuses_unless_it_is_named() {
    let error = load(Backend::Llamacpp, DevicePolicy::default()).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::DevicePolicy);
    assert!(error.to_string().contains("--device cpu") && error.to_string().contains("vulkan"), "{error}");
}
