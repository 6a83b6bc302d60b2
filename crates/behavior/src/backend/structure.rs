//! Replies held to a form, and the log probabilities of prompts.

use consort_core::{EndTokens, ErrorKind, FinishReason, GenerateRequest, Sampling, StopRules, Structure, TokenId};
use serde_json::{Value, json};

use super::client::{Client, Reply, collect, log_softmax, refusal, request, text};
use super::{BackendFixture, List, Need};
use crate::case::{Outcome, ensure};
use crate::rig::Rig;
use crate::script::Script;

pub(super) fn add(list: &mut List) {
    list.add("a_structure_needs_a_tokenizer", &[], declared);
    list.add("a_regular_expression_is_obeyed", &[Need::Text], regex);
    list.add("a_choice_is_one_of_its_texts", &[Need::Text], choice);
    list.add("a_grammar_is_obeyed", &[Need::Text], lark);
    list.add("a_json_schema_is_obeyed", &[Need::Text], schema);
    list.add("a_json_object_begins_as_one", &[Need::Text], object);
    list.add("structures_of_several_at_once_are_each_their_own", &[Need::Text], several);
    list.add("a_structure_is_repeated_by_its_seed", &[Need::Text], seeded);
    list.add("a_malformed_structure_is_refused_and_harms_nobody", &[Need::Text], refused);
    list.add("a_structure_ends_where_end_tokens_are_ignored", &[Need::Text], ignored_ends);
    list.add("a_structure_outlasts_min_tokens", &[Need::Text], min_tokens);
    list.add("prompt_logprobs_are_the_engines_own", &[], prompt_logprobs);
    list.add("prompt_logprobs_do_not_change_the_reply", &[], prompt_logprobs_beside);
}

fn warm(seed: u64) -> Sampling {
    Sampling { temperature: 1.0, seed, ..Sampling::default() }
}

fn asked(fixture: &BackendFixture, structure: Structure, seed: u64) -> GenerateRequest {
    GenerateRequest {
        sampling: warm(seed),
        structure: Some(structure),
        ..request(text(&fixture.engine.prompt(9, 900)), 200)
    }
}

fn whole(reply: &Reply, what: &str) -> Outcome {
    let ended = matches!(reply.reason, FinishReason::EndToken(_) | FinishReason::StructureComplete);
    ensure!(ended, "{what}: {:?} ended by {:?}", reply.text, reply.reason);
    Ok(())
}

fn declared(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    let asked = asked(fixture, Structure::JsonObject, 1);
    let can = client.backend.capability().structured_output;
    ensure!(can == fixture.user_turn.is_some(), "structured_output is declared as {can}");
    if !can {
        refusal(&client, asked, ErrorKind::Unsupported, "a structure that is not declared")?;
    }
    Ok(())
}

fn regex(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    for seed in 0..4 {
        let reply = client.ask(asked(fixture, Structure::Regex("[ab]{3,6}(-[0-9]{2}){1,2}!".into()), seed))?;
        whole(&reply, "a regular expression")?;
        let (letters, digits) = reply.text.split_once('-').ok_or_else(|| format!("{:?} has no '-'", reply.text))?;
        ensure!(
            (3..=6).contains(&letters.len()) && letters.bytes().all(|byte| byte == b'a' || byte == b'b'),
            "{:?} does not begin as it must",
            reply.text
        );
        let groups: Vec<&str> = digits.strip_suffix('!').unwrap_or("x").split('-').collect();
        let good = |group: &&str| group.len() == 2 && group.bytes().all(|byte| byte.is_ascii_digit());
        ensure!(groups.len() <= 2 && groups.iter().all(good), "{:?} does not end as it must", reply.text);
    }
    Ok(())
}

fn choice(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    let choices = ["yes", "no", "yes, but (not) today", "ça va? [*]"];
    let mut seen = Vec::new();
    for seed in 0..12 {
        let reply = client.ask(asked(fixture, Structure::Choice(choices.map(String::from).into()), seed))?;
        whole(&reply, "a choice")?;
        ensure!(choices.contains(&reply.text.as_str()), "{:?} is none of the choices", reply.text);
        if !seen.contains(&reply.text) {
            seen.push(reply.text);
        }
    }
    ensure!(seen.len() >= 2, "twelve seeds chose the same of four texts");
    Ok(())
}

fn lark(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    let grammar = "start: pair pair?\npair: \"(\" inner \")\"\ninner: pair | \"x\" | \"y\"\n";
    let mut ended = 0;
    for seed in 0..4 {
        let reply = client.ask(asked(fixture, Structure::Lark(grammar.into()), seed))?;
        // The grammar has no bound, so a reply may be cut.
        let is_cut = reply.reason == FinishReason::Length;
        ended += u32::from(!is_cut);
        let (mut depth, mut pairs) = (0i32, 0);
        for byte in reply.text.bytes() {
            depth += match byte {
                b'(' => 1,
                b')' => -1,
                b'x' | b'y' => 0,
                _ => return Err(format!("{:?} has what the grammar has not", reply.text).into()),
            };
            ensure!(depth >= 0, "{:?} closes what is not open", reply.text);
            pairs += i32::from(depth == 0);
        }
        let is_whole = depth == 0 && (1..=2).contains(&pairs);
        ensure!(is_cut || is_whole, "{:?} is not of the grammar", reply.text);
        ensure!(pairs <= 2, "{:?} has a pair too many", reply.text);
    }
    ensure!(ended > 0, "no reply of four ended");
    Ok(())
}

fn persona() -> Structure {
    Structure::json_schema(json!({
        "type": "object",
        "properties": {
            "mood": { "enum": ["calm", "cross"] },
            "age": { "type": "integer", "minimum": 3, "maximum": 120 },
            "likes": { "type": "array", "items": { "type": "boolean" }, "minItems": 1, "maxItems": 3 },
        },
        "required": ["mood", "age", "likes"],
        "additionalProperties": false,
    }))
}

fn is_persona(text: &str) -> Outcome {
    let value: Value = serde_json::from_str(text).map_err(|error| format!("{text:?} is no JSON: {error}"))?;
    let members = value.as_object().map_or(0, serde_json::Map::len);
    let mood = matches!(value["mood"].as_str(), Some("calm" | "cross"));
    let age = value["age"].as_i64().is_some_and(|age| (3..=120).contains(&age));
    let likes =
        value["likes"].as_array().is_some_and(|l| (1..=3).contains(&l.len()) && l.iter().all(Value::is_boolean));
    ensure!(members == 3 && mood && age && likes, "{text:?} is not valid");
    Ok(())
}

fn schema(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    for seed in 0..6 {
        let reply = client.ask(asked(fixture, persona(), seed))?;
        whole(&reply, "a schema")?;
        is_persona(&reply.text)?;
    }
    Ok(())
}

fn object(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    let reply = client.ask(GenerateRequest { max_tokens: Some(60), ..asked(fixture, Structure::JsonObject, 3) })?;
    ensure!(reply.text.starts_with('{'), "{:?} is no object", reply.text);
    if reply.reason != FinishReason::Length {
        let value: Value = serde_json::from_str(&reply.text).map_err(|error| format!("{:?}: {error}", reply.text))?;
        ensure!(value.is_object(), "{:?} is no object", reply.text);
    }
    Ok(())
}

fn several(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    let free = request(text(&fixture.engine.prompt(9, 900)), 40);
    let alone = client.anew(&free)?;
    let beside = client.start(free)?;
    let structures =
        [persona(), Structure::Regex("[0-9]{4}".into()), Structure::Choice(vec!["left".into()]), persona()];
    let streams: Vec<_> = structures
        .iter()
        .enumerate()
        .map(|(seed, structure)| client.start(asked(fixture, structure.clone(), seed as u64)))
        .collect::<Outcome<_>>()?;
    let mut replies = streams.into_iter().map(collect).collect::<Outcome<Vec<_>>>()?;
    client.same(&collect(beside)?, &alone, "beside four structures against alone")?;
    is_persona(&replies.remove(3).text)?;
    ensure!(replies[2].text == "left", "the only choice became {:?}", replies[2].text);
    let digits = &replies[1].text;
    ensure!(digits.len() == 4 && digits.bytes().all(|byte| byte.is_ascii_digit()), "{digits:?} is not four digits");
    is_persona(&replies[0].text)
}

fn seeded(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    let one = client.ask(asked(fixture, persona(), 5))?;
    let two = client.anew(&asked(fixture, persona(), 5))?;
    client.same(&one, &two, "one seed and one structure, twice")
}

fn refused(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    let neighbour = request(text(&fixture.engine.prompt(20, 901)), 60);
    let expected = client.anew(&neighbour)?;
    let stream = client.start(neighbour)?;
    let deep = (0..200).fold(json!({}), |inner, _| json!({ "properties": { "a": inner } }));
    let cases = [
        ("an open bracket", Structure::Regex("[a-z".into())),
        ("an assertion", Structure::Regex("(?=a)b".into())),
        ("a bottomless regular expression", Structure::Regex("(".repeat(4000) + &")".repeat(4000))),
        ("no grammar", Structure::Lark(" ".into())),
        ("a grammar without its start", Structure::Lark("other: \"x\"".into())),
        ("a grammar of a rule that is not there", Structure::Lark("start: missing".into())),
        ("nothing to choose from", Structure::Choice(Vec::new())),
        ("a schema of no type", Structure::json_schema(json!({ "type": "colour" }))),
        ("a schema that nothing satisfies", Structure::json_schema(json!(false))),
        ("a schema that is a number", Structure::json_schema(json!(3))),
        ("a bottomless schema", Structure::json_schema(deep)),
    ];
    for (what, structure) in cases {
        let error = refusal(&client, asked(fixture, structure, 1), ErrorKind::InvalidGrammar, what)?;
        ensure!(error.context().any(|(key, _)| key == "structure"), "{what}: the error names no structure: {error}");
    }
    client.same(&collect(stream)?, &expected, "beside structures of nonsense")
}

fn ignored_ends(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    let stop = StopRules { end_tokens: EndTokens::Ignore, ..StopRules::default() };
    let reply = client.ask(GenerateRequest { stop, ..asked(fixture, Structure::Regex("[ab]{5}".into()), 2) })?;
    whole(&reply, "a structure without end tokens")?;
    ensure!(reply.text.len() == 5, "{:?} is not five letters", reply.text);
    Ok(())
}

fn min_tokens(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    let stop = StopRules { min_tokens: 100, ..StopRules::default() };
    let open = Structure::Regex("[ab]{1,12}".into());
    let reply = client.ask(GenerateRequest { stop, ..asked(fixture, open, 2) })?;
    whole(&reply, "a structure of at most twelve letters")?;
    ensure!(reply.text.len() == 12, "{:?} ended before it had to", reply.text);
    Ok(())
}

fn prompt_logprobs(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    let tokens = fixture.engine.prompt(75, 902);
    let asked = GenerateRequest { prompt_logprobs: Some(2), ..request(text(&tokens), 3) };
    if !client.backend.capability().prompt_logprobs {
        refusal(&client, asked, ErrorKind::Unsupported, "prompt log probabilities that are not declared")?;
        return Ok(());
    }
    // What was read before must not be missing.
    client.ask(request(text(&tokens), 1))?;
    let reply = client.ask(asked)?;
    let entries = reply.prompt.as_ref().ok_or("no log probabilities of the prompt came")?;
    ensure!(entries.len() == tokens.len(), "{} entries for {} tokens", entries.len(), tokens.len());
    ensure!(entries[0].is_none(), "the first token has nothing before it");
    let tolerance = fixture.oracle_tolerance;
    for at in [1, 2, 31, 32, 33, 64, 74] {
        let mut rig = Rig::new(&fixture.engine)?;
        let row = log_softmax(&rig.fresh(&Script::text(&tokens[..at]))?);
        let entry = entries[at].as_ref().ok_or_else(|| format!("position {at} has no log probability"))?;
        ensure!(entry.chosen.token == tokens[at], "position {at} tells of another token");
        let distance = (entry.chosen.logprob - row[tokens[at] as usize]).abs();
        ensure!(distance <= tolerance, "position {at} is off by {distance}");
        ensure!(entry.top.len() == 2, "{} of the two most probable", entry.top.len());
        let best = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        ensure!((entry.top[0].logprob - best).abs() <= tolerance, "position {at}: not the most probable one");
    }
    Ok(())
}

fn prompt_logprobs_beside(fixture: &BackendFixture) -> Outcome {
    let client = Client::new(fixture)?;
    let tokens: Vec<TokenId> = fixture.engine.prompt(50, 903);
    let plain = client.anew(&request(text(&tokens), 12))?;
    if !client.backend.capability().prompt_logprobs {
        return Ok(());
    }
    let asked = GenerateRequest { prompt_logprobs: Some(0), ..request(text(&tokens), 12) };
    let beside = client.ask(asked)?;
    ensure!(beside.usage.reused_tokens == 0, "positions were reused, which have no logits");
    client.same(&beside, &plain, "with log probabilities of the prompt against without")
}
