//! From what was asked to replies, for every protocol.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use consort_core::{
    ChatMessage, ContentPart, Deadlines, Error, EventStream, GenerateRequest, PrefixReuse, Priority, Prompt, Role,
    StopRules, Structure, TokenId,
};

use crate::app::Shared;
use crate::error::Failure;
use crate::registry::Member;
use crate::reply::{Reading, Reply};
use crate::sampling::SamplingSettings;

/// What a request says of its replies, the prompt aside.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wish {
    pub(crate) sampling: SamplingSettings,
    pub(crate) logit_bias: Vec<(TokenId, f32)>,
    pub(crate) stop: StopRules,
    pub(crate) max_tokens: Option<u32>,
    pub(crate) logprobs: Option<u32>,
    pub(crate) prompt_logprobs: Option<u32>,
    pub(crate) structure: Option<Structure>,
    pub(crate) priority: Option<Priority>,
    pub(crate) prefix_reuse: PrefixReuse,
}

/// A prompt, and how often it is answered.
#[derive(Debug)]
pub(crate) struct Ask {
    pub(crate) prompt: Prompt,
    pub(crate) choices: usize,
}

impl Shared {
    /// Begins the replies to some prompts, in their order. They are all accepted, or none is.
    ///
    /// # Errors
    /// What can be told at once: too much at once, something that the model cannot do, a wrong value.
    pub(crate) async fn speak(
        &self,
        member: &Arc<Member>,
        asks: Vec<Ask>,
        wish: &Wish,
        reading: &Reading,
        arrived: Instant,
    ) -> Result<Vec<Reply>, Failure> {
        let mut requests = Vec::new();
        for ask in asks {
            let base = self.request(member, ask.prompt, wish)?;
            let seed = base.sampling.seed;
            for choice in 0..ask.choices {
                let mut request = base.clone();
                // Choices differ by their seeds alone.
                request.sampling.seed = seed.wrapping_add(choice as u64);
                requests.push(request);
            }
        }
        let seats = requests.iter().map(|_| member.sit()).collect::<Result<Vec<_>, _>>()?;
        for adapter in &member.persona.adapters {
            self.adapters.need(&adapter.name, self.registry.residency(&adapter.name)).await?;
        }
        let backend = Arc::clone(&self.backend);
        // Rendering, tokenizing, decoding pictures and compiling grammars take their time, on this thread.
        let accept = move || -> Result<Vec<EventStream>, Error> {
            requests.into_iter().map(|request| backend.generate(request)).collect()
        };
        let streams = tokio::task::spawn_blocking(accept).await.map_err(|_| Failure::internal())?;
        let streams = streams.map_err(|error| {
            let failure = Failure::from(error);
            if failure.status() == StatusCode::TOO_MANY_REQUESTS {
                member.meter.refused();
            }
            failure
        })?;
        let begin = |(stream, seat)| {
            let cut = self.shutdown.reached(crate::shutdown::Phase::Cut);
            Reply::new(stream, reading, member.meter.reply(&member.persona.name, arrived), cut, seat)
        };
        Ok(streams.into_iter().zip(seats).map(begin).collect())
    }

    /// How tokens are chosen: as the request says it, or the persona, or the file.
    pub(crate) fn settings(&self, member: &Member, wish: &Wish) -> SamplingSettings {
        wish.sampling.or(member.persona.sampling).or(self.config.sampling)
    }

    fn request(&self, member: &Member, prompt: Prompt, wish: &Wish) -> Result<GenerateRequest, Failure> {
        let (persona, limits) = (&member.persona, &self.config.limits);
        let mut sampling = self.settings(member, wish).sampling();
        sampling.logit_bias.clone_from(&wish.logit_bias);
        let most = limits.reply_tokens.map(std::num::NonZero::get);
        if let (Some(wanted), Some(most)) = (wish.max_tokens, most)
            && wanted > most
        {
            return Err(Failure::value("max_tokens", format!("a reply has at most {most} tokens here")));
        }
        let own = persona.max_tokens.map(std::num::NonZero::get);
        let seconds = |seconds: std::num::NonZeroU64| Duration::from_secs(seconds.get());
        Ok(GenerateRequest {
            adapters: persona.adapter_uses(),
            sampling,
            stop: wish.stop.clone(),
            max_tokens: wish.max_tokens.or(own.map(|own| most.map_or(own, |most| own.min(most)))).or(most),
            logprobs: wish.logprobs,
            prompt_logprobs: wish.prompt_logprobs,
            structure: wish.structure.clone(),
            priority: wish.priority.unwrap_or(persona.priority).min(limits.priority),
            prefix_reuse: wish.prefix_reuse,
            deadlines: Deadlines {
                first_token: limits.first_token_seconds.map(seconds),
                total: Some(seconds(limits.reply_seconds)),
            },
            placement: persona.placement,
            ..GenerateRequest::new(prompt)
        })
    }
}

/// A conversation as a persona hears it: its own instructions first, then those of the client in the same message, as the
/// family's template has one system message and has it first.
pub(crate) fn as_heard(member: &Member, messages: Vec<ChatMessage>) -> Vec<ChatMessage> {
    let own = member.persona.system.iter().map(|text| ContentPart::Text(text.clone()));
    let mut heard = Vec::with_capacity(messages.len() + 1);
    let mut instructions: Vec<ContentPart> = own.collect();
    let mut messages = messages.into_iter().peekable();
    while let Some(message) = messages.next_if(|message| message.role == Role::System) {
        if !instructions.is_empty() && !message.content.is_empty() {
            instructions.push(ContentPart::Text("\n\n".into()));
        }
        instructions.extend(message.content);
    }
    if !instructions.is_empty() {
        heard.push(ChatMessage::new(Role::System, joined(instructions)));
    }
    heard.extend(messages);
    heard
}

/// Neighbouring texts as one: templates treat a message of one text best.
pub(crate) fn joined(parts: Vec<ContentPart>) -> Vec<ContentPart> {
    let mut joined: Vec<ContentPart> = Vec::with_capacity(parts.len());
    for part in parts {
        match (joined.last_mut(), part) {
            (Some(ContentPart::Text(before)), ContentPart::Text(text)) => before.push_str(&text),
            (_, part) => joined.push(part),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::persona::Persona;
    use crate::registry::Registry;

    fn text(message: &ChatMessage) -> &str {
        match message.content.as_slice() {
            [ContentPart::Text(text)] => text,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_persona_hears_its_own_instructions_first() {
        let registry = Registry::new("m", 1, 9);
        registry.put(Persona { system: Some("You are Ada.".into()), ..Persona::new("ada") }).unwrap();
        let ada = registry.persona("ada").unwrap();
        let say = |role, text: &str| ChatMessage::text(role, text);
        let all =
            as_heard(&ada, vec![say(Role::System, "Be kind."), say(Role::System, "Be brief."), say(Role::User, "Hi")]);
        assert_eq!((text(&all[0]), text(&all[1])), ("You are Ada.\n\nBe kind.\n\nBe brief.", "Hi"));
        let all = as_heard(&ada, vec![say(Role::User, "Hi")]);
        assert_eq!((text(&all[0]), all.len()), ("You are Ada.", 2));
        let all = as_heard(registry.model(), vec![say(Role::User, "Hi"), say(Role::System, "late")]);
        assert_eq!((all.len(), all[1].role), (2, Role::System));
    }
}
