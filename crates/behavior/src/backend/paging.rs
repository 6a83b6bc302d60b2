//! Adapters beyond the engine's room: paged out and in, pinned, and come and gone while others speak.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use consort_core::{AdapterFiles, AdapterStatus, AdapterUse, ErrorKind, GenerateRequest, Residency, block_on};

use super::client::{Client, Reply, adapter, collect, refusal, request, text};
use super::{BackendFixture, BackendSetup, List, Need};
use crate::activation::{contents, edited};
use crate::case::{Outcome, ensure};
use crate::fixture::Random;
use crate::rig::Rig;

pub(super) fn add(list: &mut List) {
    let needs = [Need::HotSwap, Need::Paging];
    list.add("more_adapters_than_there_is_room_for", &needs, more_than_room);
    list.add("a_pinned_adapter_stays", &needs, pinned);
    list.add("the_priority_decides_who_is_paged_out", &needs, priority);
    list.add("pinning_what_is_away_brings_it_back", &needs, pinned_away);
    list.add("what_cannot_fit_is_told", &needs, cannot_fit);
    list.add("requests_wait_for_room_and_all_are_served", &[Need::HotSwap], all_served);
    list.add("a_kept_past_outlives_its_adapters_absence", &[Need::HotSwap, Need::Paging, Need::Pasts], past_stays);
    list.add("files_that_changed_are_not_paged_in", &needs, changed_files);
    list.add("a_gguf_file_comes_and_goes", &[Need::HotSwap, Need::Paging, Need::Twins], gguf_file);
    list.add("replaced_and_unloaded_while_away", &needs, replaced_away);
    list.add("adapters_come_and_go_while_eight_streams_speak", &[Need::HotSwap, Need::EightSequences], eight_streams);
    list.add("adapters_at_random_against_a_model", &[Need::HotSwap], at_random);
}

const LOW: Residency = Residency::Paged { priority: 0 };

/// The files of the persona of this number, an ordinary adapter; all take the same room.
fn files(fixture: &BackendFixture, number: usize) -> Outcome<AdapterFiles> {
    let files = &fixture.engine.adapters[0].files;
    let (config, _) = contents(files)?;
    let config: serde_json::Value = serde_json::from_slice(&config).map_err(|error| error.to_string())?;
    let alpha = config["lora_alpha"].as_f64().unwrap_or(1.0) * (1.0 + 0.23 * number as f64);
    edited(files, &[("lora_alpha", alpha.into())])
}

/// What one of them takes in the engine.
fn bytes_of_one(fixture: &BackendFixture) -> Outcome<u64> {
    Ok(Rig::new(&fixture.engine)?.load("one", &files(fixture, 0)?)?.bytes)
}

/// A backend with room for so many of them and half of one more; a server has the room that it has.
fn with_room(fixture: &BackendFixture, count: u64) -> Outcome<Client<'_>> {
    if !fixture.nature.pages_adapters {
        return Client::new(fixture);
    }
    let one = bytes_of_one(fixture)?;
    let setup = BackendSetup { adapter_bytes: Some(count * one + one / 2), ..BackendSetup::default() };
    Client::with(fixture, setup)
}

fn name(number: usize) -> String {
    format!("persona-{number}")
}

fn load(client: &Client<'_>, number: usize) -> Outcome {
    client.load_files(&name(number), &files(client.fixture, number)?).map(|_| ())
}

fn reside(client: &Client<'_>, number: usize, residency: Residency) -> consort_core::Result<()> {
    block_on(client.backend.set_adapter_residency(&name(number), residency))
}

fn asked(fixture: &BackendFixture, number: usize) -> GenerateRequest {
    GenerateRequest { adapters: adapter(&name(number), 1.0), ..request(text(&fixture.engine.prompt(30, 3000)), 5) }
}

fn status(client: &Client<'_>) -> BTreeMap<String, AdapterStatus> {
    let all = client.backend.adapters().into_iter();
    all.map(|status| (status.info.key.id.to_string(), status)).collect()
}

fn resident(client: &Client<'_>) -> Vec<usize> {
    let status = status(client);
    (0..16).filter(|number| status.get(&name(*number)).is_some_and(|status| status.resident)).collect()
}

/// What each persona says in a backend with room for all of them.
fn expected(fixture: &BackendFixture, count: usize) -> Outcome<Vec<Reply>> {
    let client = Client::new(fixture)?;
    let mut replies = Vec::new();
    for number in 0..count {
        load(&client, number)?;
        replies.push(client.anew(&asked(fixture, number))?);
    }
    for (index, one) in replies.iter().enumerate() {
        for other in &replies[..index] {
            ensure!(one.ids != other.ids || one.logprobs != other.logprobs, "two personas say the same");
        }
    }
    Ok(replies)
}

/// The books, the adapters' states and the engine's own memory agree, and the budget is kept, where adapters are paged here.
fn check_books(client: &Client<'_>, budget: u64) -> Outcome {
    if !client.fixture.nature.pages_adapters {
        return Ok(());
    }
    let mut tries = 0;
    loop {
        let metrics = client.settle()?;
        let here = status(client).values().filter(|status| status.resident).count() as u64;
        let held = block_on(client.backend.memory())?.adapters;
        // What was replaced leaves, and the books are brought up to date, in the turn after the change.
        let agree = metrics.adapters == here && held == metrics.adapter_bytes && held <= budget;
        tries += 1;
        if agree || tries > 400 {
            ensure!(metrics.adapters == here, "{} adapters are held, and {here} say that they are", metrics.adapters);
            ensure!(held <= budget, "the engine holds {held} bytes of adapters, of {budget}");
            ensure!(held == metrics.adapter_bytes, "the engine holds {held} bytes, not {}", metrics.adapter_bytes);
            return Ok(());
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

fn more_than_room(fixture: &BackendFixture) -> Outcome {
    let expected = expected(fixture, 5)?;
    let one = bytes_of_one(fixture)?;
    let client = with_room(fixture, 2)?;
    for number in 0..5 {
        load(&client, number)?;
        check_books(&client, 2 * one)?;
    }
    ensure!(resident(&client) == [3, 4], "after loading, {:?} are in the engine", resident(&client));
    for (number, status) in status(&client).values().enumerate() {
        ensure!(status.residency == LOW, "a new adapter is {:?}", status.residency);
        let (config, weights) = contents(&files(fixture, number)?)?;
        let mut hasher = blake3::Hasher::new();
        hasher.update(&(config.len() as u64).to_le_bytes()).update(&config).update(&weights);
        ensure!(status.digest == Some(*hasher.finalize().as_bytes()), "the digest of {number} is another");
    }
    let before = client.settle()?;
    for round in 0..2 {
        for (number, expected) in expected.iter().enumerate() {
            let reply = client.anew(&asked(fixture, number))?;
            client.same(
                &reply,
                expected,
                &format!("persona {number}, round {round}, paged in against never paged out"),
            )?;
            check_books(&client, 2 * one)?;
            ensure!(resident(&client).contains(&number), "persona {number} spoke and is not in the engine");
        }
    }
    let after = client.settle()?;
    let (ins, outs) =
        (after.adapter_page_ins - before.adapter_page_ins, after.adapter_page_outs - before.adapter_page_outs);
    ensure!((ins, outs) == (10, 10), "ten uses in turns paged {ins} in and {outs} out");
    Ok(())
}

fn pinned(fixture: &BackendFixture) -> Outcome {
    let client = with_room(fixture, 2)?;
    load(&client, 0)?;
    reside(&client, 0, Residency::Pinned)?;
    for number in 1..4 {
        load(&client, number)?;
    }
    for number in [1, 2, 3, 1, 2] {
        client.anew(&asked(fixture, number))?;
        ensure!(resident(&client) == [0, number], "{:?} are in the engine, and 0 is pinned", resident(&client));
    }
    ensure!(status(&client)[&name(0)].residency == Residency::Pinned, "it does not say that it is pinned");
    // New weights under the name stay pinned, and once it is no longer, it goes like the others.
    load(&client, 0)?;
    ensure!(status(&client)[&name(0)].residency == Residency::Pinned, "new weights are not pinned");
    reside(&client, 0, LOW)?;
    client.anew(&asked(fixture, 1))?;
    client.anew(&asked(fixture, 2))?;
    ensure!(resident(&client) == [1, 2], "{:?} are in the engine", resident(&client));
    Ok(())
}

fn priority(fixture: &BackendFixture) -> Outcome {
    let client = with_room(fixture, 2)?;
    for number in 0..4 {
        load(&client, number)?;
    }
    client.anew(&asked(fixture, 0))?;
    reside(&client, 0, Residency::Paged { priority: 1 })?;
    for number in [1, 2, 3, 1] {
        client.anew(&asked(fixture, number))?;
        ensure!(resident(&client) == [0, number], "{:?} are in the engine, and 0 is worth more", resident(&client));
    }
    reside(&client, 1, Residency::Paged { priority: 2 })?;
    client.anew(&asked(fixture, 3))?;
    ensure!(resident(&client) == [1, 3], "{:?} are in the engine, and 1 is worth most", resident(&client));
    Ok(())
}

fn pinned_away(fixture: &BackendFixture) -> Outcome {
    let client = with_room(fixture, 2)?;
    for number in 0..4 {
        load(&client, number)?;
    }
    ensure!(resident(&client) == [2, 3], "{:?} are in the engine", resident(&client));
    reside(&client, 0, Residency::Pinned)?;
    ensure!(resident(&client) == [0, 3], "0 was pinned, and {:?} are in the engine", resident(&client));
    reside(&client, 1, Residency::Pinned)?;
    ensure!(resident(&client) == [0, 1], "0 and 1 were pinned, and {:?} are in the engine", resident(&client));
    check_books(&client, 2 * bytes_of_one(fixture)?)
}

fn cannot_fit(fixture: &BackendFixture) -> Outcome {
    let one = bytes_of_one(fixture)?;
    let numbers = |error: &consort_core::Error, budget: u64| -> Outcome {
        let told = error.to_string();
        ensure!(error.kind() == ErrorKind::OutOfMemory, "it must be out of memory: {told}");
        ensure!(told.contains(&one.to_string()), "it must name what is wanted, {one}: {told}");
        ensure!(told.contains(&budget.to_string()), "it must name the budget, {budget}: {told}");
        Ok(())
    };
    let small = Client::with(fixture, BackendSetup { adapter_bytes: Some(one - 1), ..BackendSetup::default() })?;
    let Err(error) = block_on(small.backend.load_adapter("large", files(fixture, 0)?)) else {
        return Err("an adapter larger than all room was loaded".into());
    };
    numbers(&error, one - 1)?;
    check_books(&small, 0)?;

    let client = with_room(fixture, 2)?;
    let budget = 2 * one + one / 2;
    for number in 0..3 {
        load(&client, number)?;
    }
    reside(&client, 0, Residency::Pinned)?;
    reside(&client, 1, Residency::Pinned)?;
    let Err(error) = reside(&client, 2, Residency::Pinned) else {
        return Err("three adapters were pinned in room for two".into());
    };
    numbers(&error, budget)?;
    let Err(error) = block_on(client.backend.load_adapter("another", files(fixture, 3)?)) else {
        return Err("an adapter was loaded that can never come into the engine".into());
    };
    numbers(&error, budget)?;
    numbers(&refusal(&client, asked(fixture, 2), ErrorKind::OutOfMemory, "one that cannot come in")?, budget)?;
    // The pinned ones speak, and one more can when one of them may go.
    client.anew(&asked(fixture, 0))?;
    reside(&client, 1, LOW)?;
    client.anew(&asked(fixture, 2))?;
    let together = |numbers: [usize; 3]| GenerateRequest {
        adapters: numbers.map(|number| AdapterUse { id: name(number), scale: 1.0 }).to_vec(),
        ..asked(fixture, 0)
    };
    refusal(&client, together([0, 1, 2]), ErrorKind::OutOfMemory, "three adapters at once in room for two")?;
    let error = reside(&client, 9, Residency::Pinned).err().ok_or("an adapter was pinned that is not there")?;
    ensure!(error.kind() == ErrorKind::NotFound, "it must be not found: {error}");
    check_books(&client, 2 * one)
}

/// Many requests at once, alone and stacked, in room for two adapters.
fn all_served(fixture: &BackendFixture) -> Outcome {
    let voices: Vec<Vec<AdapterUse>> = (0..12)
        .map(|index| match index % 4 {
            3 if fixture.nature.stacks_adapters => vec![
                AdapterUse { id: name(index % 3), scale: 1.0 },
                AdapterUse { id: name((index + 1) % 3), scale: 0.5 },
            ],
            2 => Vec::new(),
            _ => adapter(&name(index % 5), 1.0),
        })
        .collect();
    let ask = |voice: &Vec<AdapterUse>| GenerateRequest { adapters: voice.clone(), ..asked(fixture, 0) };
    let roomy = Client::new(fixture)?;
    let client = with_room(fixture, 2)?;
    for number in 0..5 {
        load(&roomy, number)?;
        load(&client, number)?;
    }
    let expected = voices.iter().map(|voice| roomy.anew(&ask(voice))).collect::<Outcome<Vec<_>>>()?;
    for round in 0..2 {
        let streams = voices.iter().map(|voice| client.start(ask(voice))).collect::<Outcome<Vec<_>>>()?;
        for (index, stream) in streams.into_iter().enumerate() {
            let reply = collect(stream)?;
            client.same(&reply, &expected[index], &format!("request {index} of twelve, round {round}"))?;
        }
        check_books(&client, 2 * bytes_of_one(fixture)?)?;
    }
    Ok(())
}

fn past_stays(fixture: &BackendFixture) -> Outcome {
    let client = with_room(fixture, 1)?;
    for number in 0..2 {
        load(&client, number)?;
    }
    let whole = fixture.engine.prompt(90, 3010);
    let long = |number: usize, length: usize| GenerateRequest {
        adapters: adapter(&name(number), 1.0),
        ..request(text(&whole[..length]), 4)
    };
    client.ask(long(0, 60))?;
    client.settle()?;
    client.ask(long(1, 60))?;
    client.settle()?;
    ensure!(resident(&client) == [1], "{:?} are in the engine", resident(&client));
    let reply = client.ask(long(0, 90))?;
    ensure!(reply.usage.reused_tokens >= 40, "of 60 tokens {} were reused", reply.usage.reused_tokens);
    let anew = client.anew(&long(0, 90))?;
    client.same(&reply, &anew, "on a past whose adapter was away, against anew")
}

/// A folder that is gone when this is dropped.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Outcome<Self> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("consort-paging-{}-{count}", std::process::id()));
        fs::create_dir_all(&path).map_err(|error| error.to_string())?;
        Ok(Self(path))
    }

    fn write(&self, files: &AdapterFiles) -> Outcome<AdapterFiles> {
        let (config, weights) = contents(files)?;
        for (name, bytes) in [("adapter_config.json", config), ("adapter_model.safetensors", weights)] {
            fs::write(self.0.join(name), bytes).map_err(|error| error.to_string())?;
        }
        Ok(AdapterFiles::Directory(self.0.clone()))
    }

    /// Writes a GGUF adapter, always under the same name.
    fn write_gguf(&self, files: &AdapterFiles) -> Outcome<AdapterFiles> {
        let AdapterFiles::Gguf(bytes) = files else { return Err("this adapter is not GGUF in memory".into()) };
        let path = self.0.join("lora.gguf");
        fs::write(&path, bytes).map_err(|error| error.to_string())?;
        Ok(AdapterFiles::File(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn changed_files(fixture: &BackendFixture) -> Outcome {
    let expected = expected(fixture, 3)?;
    let folder = Folder::new()?;
    let client = with_room(fixture, 1)?;
    client.load_files(&name(0), &folder.write(&files(fixture, 0)?)?)?;
    load(&client, 1)?;
    // As they were, they come back.
    client.same(&client.anew(&asked(fixture, 0))?, &expected[0], "paged in from a folder")?;
    client.anew(&asked(fixture, 1))?;
    let changed = folder.write(&files(fixture, 2)?)?;
    let error = refusal(&client, asked(fixture, 0), ErrorKind::InvalidAdapter, "an adapter whose files changed")?;
    ensure!(error.to_string().contains("load it again"), "the error must say what to do: {error}");
    // The others go on, and so does it once it is loaded again.
    client.same(&client.anew(&asked(fixture, 1))?, &expected[1], "another persona")?;
    fs::remove_file(folder.0.join("adapter_model.safetensors")).map_err(|error| error.to_string())?;
    refusal(&client, asked(fixture, 0), ErrorKind::NotFound, "an adapter whose files are gone")?;
    ensure!(reside(&client, 0, Residency::Pinned).is_err(), "an adapter without files was pinned");
    folder.write(&files(fixture, 2)?)?;
    client.load_files(&name(0), &changed)?;
    client.same(&client.anew(&asked(fixture, 0))?, &expected[2], "loaded again with new weights")?;
    check_books(&client, bytes_of_one(fixture)?)
}

/// A GGUF file is loaded, paged out and in, held to what it was, replaced and unloaded.
fn gguf_file(fixture: &BackendFixture) -> Outcome {
    let [one, other, ..] = fixture.engine.adapter_twins.as_slice() else { return Err("there are too few".into()) };
    let roomy = Client::new(fixture)?;
    let in_peft = |files: &AdapterFiles| -> Outcome<Reply> {
        roomy.load_files(&name(0), files)?;
        roomy.anew(&asked(fixture, 0))
    };
    let expected = [in_peft(&one.peft)?, in_peft(&other.peft)?];
    let away = in_peft(&files(fixture, 1)?)?;

    let folder = Folder::new()?;
    let client = with_room(fixture, 1)?;
    let file = folder.write_gguf(&one.gguf)?;
    client.load_files(&name(0), &file)?;
    let path = file.path().ok_or("a file without a path")?;
    let digest = blake3::hash(&fs::read(path).map_err(|error| error.to_string())?);
    ensure!(status(&client)[&name(0)].digest == Some(*digest.as_bytes()), "the digest is not the file's");
    client.same(&client.anew(&asked(fixture, 0))?, &expected[0], "as a GGUF file against PEFT's format")?;
    load(&client, 1)?;
    ensure!(resident(&client) == [1], "{:?} are in the engine", resident(&client));
    client.same(&client.anew(&asked(fixture, 0))?, &expected[0], "paged in from a GGUF file")?;
    client.same(&client.anew(&asked(fixture, 1))?, &away, "the persona in PEFT's format beside it")?;

    // Another adapter in the same place is not paged in under the old one's name.
    folder.write_gguf(&other.gguf)?;
    let error = refusal(&client, asked(fixture, 0), ErrorKind::InvalidAdapter, "an adapter whose file changed")?;
    ensure!(error.to_string().contains("load it again"), "the error must say what to do: {error}");
    client.load_files(&name(0), &file)?;
    client.same(&client.anew(&asked(fixture, 0))?, &expected[1], "replaced by the file's new contents")?;
    client.anew(&asked(fixture, 1))?;
    fs::remove_file(path).map_err(|error| error.to_string())?;
    refusal(&client, asked(fixture, 0), ErrorKind::NotFound, "an adapter whose file is gone")?;
    // In memory it needs no file.
    client.load_files(&name(0), &one.gguf)?;
    client.anew(&asked(fixture, 1))?;
    client.same(&client.anew(&asked(fixture, 0))?, &expected[0], "paged in from memory")?;
    block_on(client.backend.unload_adapter(&name(0)))?;
    refusal(&client, asked(fixture, 0), ErrorKind::NotFound, "an unloaded adapter")?;
    check_books(&client, bytes_of_one(fixture)?)
}

fn replaced_away(fixture: &BackendFixture) -> Outcome {
    let expected = expected(fixture, 3)?;
    let client = with_room(fixture, 1)?;
    for number in 0..3 {
        load(&client, number)?;
    }
    ensure!(resident(&client) == [2], "{:?} are in the engine", resident(&client));
    // Replaced while it was away, it means the new weights; unloaded while it was away, nothing.
    client.load_files(&name(0), &files(fixture, 2)?)?;
    client.same(&client.anew(&asked(fixture, 0))?, &expected[2], "replaced while it was away")?;
    block_on(client.backend.unload_adapter(&name(1)))?;
    refusal(&client, asked(fixture, 1), ErrorKind::NotFound, "unloaded while it was away")?;
    check_books(&client, bytes_of_one(fixture)?)
}

/// No stream notices what happens to the others' adapters, or to the name of its own.
fn eight_streams(fixture: &BackendFixture) -> Outcome {
    let long = |number: usize| GenerateRequest { max_tokens: Some(40), ..asked(fixture, number) };
    let expected = {
        let client = Client::new(fixture)?;
        for number in 0..8 {
            load(&client, number)?;
        }
        (0..8).map(|number| client.anew(&long(number))).collect::<Outcome<Vec<_>>>()?
    };
    let client = Client::new(fixture)?;
    for number in 0..8 {
        load(&client, number)?;
    }
    let streams = (0..8).map(|number| client.start(long(number))).collect::<Outcome<Vec<_>>>()?;
    for round in 0..3 {
        for number in 0..8 {
            match (number + round) % 3 {
                0 => client.load_files(&name(number), &files(fixture, number + 8)?).map(|_| ())?,
                1 => drop(block_on(client.backend.unload_adapter(&name(number)))),
                _ => client.load_files(&format!("guest-{number}"), &files(fixture, number + 3)?).map(|_| ())?,
            }
        }
    }
    for (number, stream) in streams.into_iter().enumerate() {
        client.same(&collect(stream)?, &expected[number], &format!("stream {number} of eight, among changes"))?;
    }
    client.settle()?;
    // Whoever names one now gets what it is now.
    load(&client, 3)?;
    client.same(&client.anew(&long(3))?, &expected[3], "after all changes")
}

/// Loads, replacements, unloadings, pins and requests in any order, in room for two, against a table of what each name means.
fn at_random(fixture: &BackendFixture) -> Outcome {
    const WEIGHTS: usize = 4;
    let meant = expected(fixture, WEIGHTS)?;
    let base = Client::new(fixture)?.anew(&GenerateRequest { adapters: Vec::new(), ..asked(fixture, 0) })?;
    for seed in 0..4 {
        let mut random = Random::new(seed);
        let client = with_room(fixture, 2)?;
        let mut table: BTreeMap<usize, usize> = BTreeMap::new();
        let mut pinned: Option<usize> = None;
        let mut streams = Vec::new();
        for step in 0..40 {
            let number = random.below(5);
            match random.below(8) {
                0 | 1 => {
                    let weights = random.below(WEIGHTS);
                    let done = block_on(client.backend.load_adapter(&name(number), files(fixture, weights)?));
                    // What is pinned must come in at once, and those in use may leave no room.
                    ensure!(done.is_ok() || pinned == Some(number), "loading {number}: {done:?}");
                    if done.is_ok() {
                        table.insert(number, weights);
                    }
                }
                2 => {
                    let done = block_on(client.backend.unload_adapter(&name(number)));
                    ensure!(done.is_ok() == table.remove(&number).is_some(), "unloading {number}: {done:?}");
                    pinned = pinned.filter(|pinned| *pinned != number);
                }
                3 if fixture.nature.pages_adapters && pinned.is_none() && table.contains_key(&number) => {
                    // In use, others may leave no room for it.
                    if reside(&client, number, Residency::Pinned).is_ok() {
                        pinned = Some(number);
                    }
                }
                4 => {
                    if let Some(number) = pinned.take() {
                        reside(&client, number, Residency::Paged { priority: random.below(3) as i32 })?;
                    }
                }
                _ => match table.get(&number) {
                    Some(weights) => streams.push((client.start(asked(fixture, number))?, &meant[*weights])),
                    None if step % 2 == 0 => {
                        let plain = GenerateRequest { adapters: Vec::new(), ..asked(fixture, 0) };
                        streams.push((client.start(plain)?, &base));
                    }
                    None => {
                        refusal(&client, asked(fixture, number), ErrorKind::NotFound, "a name that means nothing")?;
                    }
                },
            }
            if streams.len() > 5 {
                let (stream, meant) = streams.remove(random.below(streams.len()));
                client.same(&collect(stream)?, meant, &format!("seed {seed}, step {step}"))?;
            }
        }
        for (stream, meant) in streams {
            client.same(&collect(stream)?, meant, &format!("seed {seed}, at the end"))?;
        }
        check_books(&client, 2 * bytes_of_one(fixture)?)?;
        let names: Vec<String> = table.keys().map(|number| name(*number)).collect();
        ensure!(status(&client).into_keys().collect::<Vec<_>>() == names, "seed {seed}: other names are listed");
        if let Some(number) = pinned {
            ensure!(resident(&client).contains(&number), "seed {seed}: {number} is pinned and not in the engine");
        }
    }
    Ok(())
}
