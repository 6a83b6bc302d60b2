//! Conversations: what a turn leaves behind, the next one finds.

use consort_core::{
    AdapterUse, ChatMessage, ChatPrompt, ContentPart, GenerateRequest, ImageInput, Prompt, Role, SpecialTokens,
};

use super::client::{Client, Reply, adapter};
use super::{BackendFixture, Kept, List, Need};
use crate::case::{Outcome, ensure};

/// How many tokens beyond the new ones a later turn may prefill.
const MORE: usize = 8;

pub(super) fn add(list: &mut List) {
    let text = [Need::Text];
    list.add("the_second_turn_prefills_what_is_new", &text, |fixture| turns(fixture, false, false));
    let image = [Need::Text, Need::Images];
    list.add("the_second_turn_after_an_image", &image, |fixture| turns(fixture, true, false));
    let both = [Need::Text, Need::Images, Need::Adapters];
    list.add("the_second_turn_with_image_and_adapter", &both, |fixture| turns(fixture, true, true));
    list.add("a_conversation_is_its_tokens", &[Need::Text], conversation_is_tokens);
    list.add("a_conversation_that_was_edited", &text, edited);
}

fn chat(messages: Vec<ChatMessage>, adapters: Vec<AdapterUse>) -> GenerateRequest {
    let chat = ChatPrompt { messages, ..ChatPrompt::default() };
    GenerateRequest { adapters, max_tokens: Some(10), logprobs: Some(1), ..GenerateRequest::new(Prompt::Chat(chat)) }
}

fn first(fixture: &BackendFixture, image: bool) -> ChatMessage {
    let mut content = Vec::new();
    if image {
        content.push(ContentPart::Image(ImageInput::Prepared(std::sync::Arc::clone(&fixture.engine.images[0]))));
    }
    content.push(ContentPart::Text("Look, and tell me in a few words what you see in this picture.".into()));
    ChatMessage::new(Role::User, content)
}

/// Three turns; each later one reuses all but its new tokens and a few where pasts are kept here, and says what it says when computed anew.
fn turns(fixture: &BackendFixture, image: bool, persona: bool) -> Outcome {
    let client = Client::new(fixture)?;
    client.load_if(persona)?;
    let voice = || if persona { adapter("persona", 1.0) } else { Vec::new() };
    let turn = fixture.user_turn.as_ref().ok_or("no chat template")?;
    let mut messages = vec![first(fixture, image)];
    let mut reply: Reply = client.ask(chat(messages.clone(), voice()))?;
    for question in ["And what else is there?", "Thank you. One more thing: which of them is the largest?"] {
        client.settle()?;
        messages.push(ChatMessage::text(Role::Assistant, reply.text.clone()));
        messages.push(ChatMessage::text(Role::User, question));
        let asked = chat(messages.clone(), voice());
        let before = client.backend.metrics();
        reply = client.ask(asked.clone())?;
        let new = client.backend.tokenize(&turn(question), SpecialTokens::Parse)?.len();
        let prefilled = reply.usage.prompt_tokens - reply.usage.reused_tokens;
        // Servers reuse whole blocks, which a short conversation does not fill.
        ensure!(
            prefilled <= new + MORE || fixture.nature.pasts != Kept::Here,
            "{prefilled} of {} tokens were prefilled, and {new} are new",
            reply.usage.prompt_tokens
        );
        let metrics = client.settle()?;
        ensure!(metrics.images_encoded == before.images_encoded, "the image was encoded again for a later turn");
        let anew = client.anew(&asked)?;
        client.same(&reply, &anew, "a later turn, cached against anew")?;
    }
    Ok(())
}

impl Client<'_> {
    fn load_if(&self, persona: bool) -> Outcome {
        if persona {
            self.load("persona", 0)?;
        }
        Ok(())
    }
}

fn conversation_is_tokens(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    let turn = fixture.user_turn.as_ref().ok_or("no chat template")?;
    let question = "What is the name of the tallest one?";
    let tokens = client.backend.tokenize(&turn(question), SpecialTokens::Parse)?;
    let asked = chat(vec![ChatMessage::text(Role::User, question)], Vec::new());
    let rendered = client.anew(&asked)?;
    let parts = GenerateRequest { prompt: Prompt::Parts(super::client::text(&tokens)), ..asked };
    let by_hand = client.anew(&parts)?;
    ensure!(
        rendered.usage.prompt_tokens == tokens.len(),
        "the template gives {} tokens, and by hand they are {}",
        rendered.usage.prompt_tokens,
        tokens.len()
    );
    client.same(&rendered, &by_hand, "a conversation against its tokens")
}

/// The last message is changed: what came before it is still good, and nothing of the old one is left.
fn edited(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    let mut messages = vec![first(fixture, false)];
    let reply = client.ask(chat(messages.clone(), Vec::new()))?;
    messages.push(ChatMessage::text(Role::Assistant, reply.text));
    for question in ["And what is behind it?", "And what is behind that?", "No. What is in front of it?"] {
        client.settle()?;
        let mut asked = messages.clone();
        asked.push(ChatMessage::text(Role::User, question));
        let asked = chat(asked, Vec::new());
        let reply = client.ask(asked.clone())?;
        let anew = client.anew(&asked)?;
        client.same(&reply, &anew, "an edited question, cached against anew")?;
    }
    Ok(())
}
