//! What is reused is what it should be, and nothing else ever is.

use std::sync::Arc;

use consort_core::*;
use consort_scheduler::SchedulerConfig;

use crate::engine::Setup;
use crate::support::*;

fn rig() -> Rig {
    Rig::new(Setup::default(), SchedulerConfig { min_border_gain: 4, ..SchedulerConfig::default() })
}

fn check(rig: &Rig, prompt: Prompt, reused: usize) {
    let want = expected(&prompt, &[], 6);
    let reply = rig.say(request(prompt, 6));
    assert_eq!(reply.ids, want);
    assert_eq!(reply.reason, FinishReason::Length);
    assert_eq!(reply.usage.reused_tokens, reused, "of {}", reply.usage.prompt_tokens);
}

#[test]
fn cached_is_uncached_at_every_border_of_chunks() {
    for length in [1, 2, 3, 63, 64, 65, 200] {
        let rig = rig();
        let prompt = tokens(1, length);
        check(&rig, parts(&prompt), 0);
        // The same again: all but the last token, which must be run to have logits.
        check(&rig, parts(&prompt), length - 1);
        // An extension: what is kept lies before the last token.
        let longer: Vec<_> = prompt.iter().copied().chain(tokens(2, 5)).collect();
        check(&rig, parts(&longer), length - 1);
        rig.no_leak();
    }
}

#[test]
fn step_sizes_change_nothing() {
    for step_tokens in [1, 2, 3, 7, 64] {
        let config = SchedulerConfig { step_tokens, ..SchedulerConfig::default() };
        let rig = Rig::new(Setup::default(), config);
        let prompt = seen(&tokens(1, 9), 3, &tokens(2, 4));
        check(&rig, prompt.clone(), 0);
        check(&rig, prompt, 9 + 24 + 3);
    }
}

#[test]
fn a_bypass_reads_nothing_and_leaves_nothing() {
    let rig = rig();
    let bypass = || GenerateRequest { prefix_reuse: PrefixReuse::Bypass, ..request(seen(&tokens(1, 50), 9, &[4]), 6) };
    let first = rig.say(bypass());
    let metrics = rig.backend.metrics();
    assert_eq!((metrics.cached_pasts, metrics.images_encoded), (0, 1));
    check(&rig, seen(&tokens(1, 50), 9, &[4]), 0);
    assert!(rig.backend.metrics().cached_pasts > 0);
    let second = rig.say(bypass());
    assert_eq!((second.ids, second.usage.reused_tokens), (first.ids, 0));
    let metrics = rig.backend.metrics();
    assert_eq!((metrics.images_encoded, metrics.images_reused), (3, 0));
    rig.no_leak();
}

#[test]
fn adapters_never_reach_each_other() {
    let rig = rig();
    rig.load("a", b"weights of a");
    rig.load("b", b"weights of b");
    let prompt = tokens(5, 70);
    let say = |id: &str, scale| {
        let reply = rig.say(with_adapter(ask(&prompt, 6), id, scale));
        (reply.ids, reply.usage.reused_tokens)
    };
    let of = |weights: &[u8], scale| expected(&parts(&prompt), &[(weights, scale)], 6);
    assert_eq!(say("a", 1.0), (of(b"weights of a", 1.0), 0));
    assert_eq!(say("b", 1.0), (of(b"weights of b", 1.0), 0));
    check(&rig, parts(&prompt), 0);
    assert_eq!(say("a", 1.0), (of(b"weights of a", 1.0), 69));
    // Another scale is another past; a scale of zero is none.
    assert_eq!(say("a", 0.5), (of(b"weights of a", 0.5), 0));
    assert_eq!(say("a", 0.0), (expected(&parts(&prompt), &[], 6), 69));
    // The same name with other weights; then the same weights under the same name once more.
    rig.load("a", b"other weights");
    assert_eq!(say("a", 1.0), (of(b"other weights", 1.0), 0));
    rig.load("a", b"weights of a");
    assert_eq!(say("a", 1.0), (of(b"weights of a", 1.0), 0));
    rig.no_leak();
    rig.wait_adapters(2);
    let both = with_adapter(with_adapter(ask(&prompt, 6), "b", 1.0), "a", 2.0);
    assert_eq!(rig.say(both).ids, expected(&parts(&prompt), &[(b"weights of a", 2.0), (b"weights of b", 1.0)], 6));
}

#[test]
fn requests_keep_the_weights_that_they_were_accepted_with() {
    let setup =
        Setup { capability: Capability { max_sequences: 1, ..Setup::default().capability }, ..Setup::default() };
    let rig = Rig::new(setup, SchedulerConfig::default());
    rig.load("a", b"old");
    rig.control.hold();
    let prompt = tokens(5, 10);
    let running = rig.backend.generate(with_adapter(ask(&prompt, 6), "a", 1.0)).unwrap();
    rig.control.wait_begun(1);
    let queued = rig.backend.generate(with_adapter(ask(&prompt, 6), "a", 1.0)).unwrap();
    let files = AdapterFiles::Bytes { config: Arc::from(&b""[..]), weights: Arc::from(&b"new"[..]) };
    let loading = rig.backend.load_adapter("a", files);
    rig.control.release();
    block_on(loading).unwrap();
    let later = rig.backend.generate(with_adapter(ask(&prompt, 6), "a", 1.0)).unwrap();
    let old = expected(&parts(&prompt), &[(b"old", 1.0)], 6);
    assert_eq!(collect(running).unwrap().ids, old);
    assert_eq!(collect(queued).unwrap().ids, old);
    assert_eq!(collect(later).unwrap().ids, expected(&parts(&prompt), &[(b"new", 1.0)], 6));
    block_on(rig.backend.unload_adapter("a")).unwrap();
    rig.no_leak();
    rig.wait_adapters(0);
    let gone = rig.backend.generate(with_adapter(ask(&prompt, 6), "a", 1.0)).unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::NotFound);
    assert_eq!(block_on(rig.backend.unload_adapter("a")).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn an_activated_adapter_is_refused_where_the_engine_has_none() {
    let rig = rig();
    rig.load("a", b"weights of a");
    let files = AdapterFiles::Bytes { config: Arc::from(&b"{}"[..]), weights: Arc::from(&b"activated"[..]) };
    let error = block_on(rig.backend.load_adapter("a", files)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidAdapter);
    assert!(error.to_string().contains("alora_invocation_tokens"), "{error}");
    // It left nothing, and the name means what it meant.
    rig.wait_adapters(1);
    let prompt = tokens(5, 10);
    let reply = rig.say(with_adapter(ask(&prompt, 6), "a", 1.0));
    assert_eq!(reply.ids, expected(&parts(&prompt), &[(b"weights of a", 1.0)], 6));
}

#[test]
fn adapters_in_room_for_one_take_turns() {
    let rig = Rig::new(Setup::default(), SchedulerConfig { adapter_bytes: 1, ..SchedulerConfig::default() });
    rig.load("a", b"weights of a");
    rig.load("b", b"weights of b");
    rig.wait_adapters(1);
    let prompt = tokens(5, 10);
    let voices: [(&str, &[u8]); 2] = [("a", b"weights of a"), ("b", b"weights of b")];
    let streams: Vec<_> = (0..6)
        .map(|index| rig.backend.generate(with_adapter(ask(&prompt, 6), voices[index % 2].0, 1.0)).unwrap())
        .collect();
    let plain = rig.say(ask(&prompt, 6));
    assert_eq!(plain.ids, expected(&parts(&prompt), &[], 6));
    for (index, stream) in streams.into_iter().enumerate() {
        assert_eq!(collect(stream).unwrap().ids, expected(&parts(&prompt), &[(voices[index % 2].1, 1.0)], 6));
    }
    rig.no_leak();
    rig.wait_adapters(1);
    let metrics = rig.backend.metrics();
    assert!(metrics.adapter_page_ins >= 2 && metrics.adapter_page_outs > metrics.adapter_page_ins, "{metrics:?}");
}

#[test]
fn a_gguf_file_is_loaded_replaced_paged_and_unloaded() {
    let rig = Rig::new(Setup::default(), SchedulerConfig { adapter_bytes: 1, ..SchedulerConfig::default() });
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lora.gguf");
    let load = || block_on(rig.backend.load_adapter("a", AdapterFiles::File(path.clone())));
    let (prompt, missing) = (tokens(5, 10), load().unwrap_err());
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    assert!(missing.to_string().contains("lora.gguf"), "{missing}");
    let says = |weights: &[u8]| expected(&parts(&prompt), &[(weights, 1.0)], 6);
    let ask_a = || with_adapter(ask(&prompt, 6), "a", 1.0);

    std::fs::write(&path, b"weights of a").unwrap();
    load().unwrap();
    assert_eq!(rig.say(ask_a()).ids, says(b"weights of a"));
    let status = rig.backend.adapters().remove(0);
    assert_eq!(status.digest, Some(*blake3::hash(b"weights of a").as_bytes()));
    // The same bytes in PEFT's format are another adapter's.
    rig.load("b", b"weights of a");
    let both = rig.backend.adapters();
    assert_ne!(both[0].digest, both[1].digest);
    assert_eq!(both.iter().map(|status| status.resident).collect::<Vec<_>>(), [false, true]);
    assert_eq!(rig.say(ask_a()).ids, says(b"weights of a"), "paged in from its file");

    rig.say(with_adapter(ask(&prompt, 6), "b", 1.0));
    std::fs::write(&path, b"other weights").unwrap();
    let changed = collect(rig.backend.generate(ask_a()).unwrap()).unwrap_err();
    assert_eq!(changed.kind(), ErrorKind::InvalidAdapter);
    assert!(changed.to_string().contains("load it again"), "{changed}");
    load().unwrap();
    assert_eq!(rig.say(ask_a()).ids, says(b"other weights"), "replaced");
    std::fs::write(&path, b"").unwrap();
    let empty = load().unwrap_err();
    assert!(empty.kind() == ErrorKind::InvalidAdapter && empty.to_string().contains("lora.gguf"), "{empty}");
    assert_eq!(rig.say(ask_a()).ids, says(b"other weights"), "a refused file leaves what was there");
    block_on(rig.backend.load_adapter("a", AdapterFiles::Gguf(Arc::from(&b"in memory"[..])))).unwrap();
    assert_eq!(rig.say(ask_a()).ids, says(b"in memory"));
    block_on(rig.backend.unload_adapter("a")).unwrap();
    assert_eq!(rig.backend.generate(ask_a()).unwrap_err().kind(), ErrorKind::NotFound);
    rig.no_leak();
}

#[test]
fn images_are_part_of_the_past_and_encoded_once() {
    let rig = rig();
    let scene = tokens(1, 10);
    check(&rig, seen(&scene, 1, &tokens(2, 20)), 0);
    // The same picture, another question: reused up to the picture's end.
    check(&rig, seen(&scene, 1, &tokens(3, 20)), 10 + 24);
    assert_eq!(rig.backend.metrics().images_encoded, 1);
    // Another picture in the same place shares the text before it, which is no place that was kept.
    check(&rig, seen(&scene, 2, &tokens(2, 20)), 0);
    // The picture elsewhere: its embedding is at hand, its past is not.
    check(&rig, seen(&tokens(9, 3), 1, &tokens(2, 20)), 0);
    let metrics = rig.backend.metrics();
    assert_eq!((metrics.images_encoded, metrics.images_reused), (2, 1));
    // Two pictures, one of them twice.
    let twice = Prompt::Parts(vec![
        PromptPart::Image(image(1)),
        PromptPart::Image(image(2)),
        PromptPart::Tokens(vec![5]),
        PromptPart::Image(image(1)),
        PromptPart::Tokens(vec![6, 7]),
    ]);
    check(&rig, twice.clone(), 0);
    check(&rig, twice, 24 + 24 + 1 + 24 + 1);
    rig.no_leak();
}

#[test]
fn the_shared_part_of_a_room_is_found_by_the_second_and_used_by_the_third() {
    let rig = rig();
    let scene = tokens(1, 100);
    let persona = |seed| parts(&scene.iter().copied().chain(tokens(seed, 20)).collect::<Vec<_>>());
    check(&rig, persona(11), 0);
    check(&rig, persona(12), 0);
    check(&rig, persona(13), 100);
    check(&rig, persona(14), 100);
    rig.no_leak();
}

#[test]
fn personas_that_ask_at_once_read_the_scene_once() {
    let rig = rig();
    let scene = tokens(1, 150);
    let persona = |seed| parts(&scene.iter().copied().chain(tokens(seed, 20)).collect::<Vec<_>>());
    rig.control.hold();
    let streams: Vec<_> = (0..4).map(|seed| rig.backend.generate(request(persona(20 + seed), 6)).unwrap()).collect();
    rig.control.release();
    let mut reused = 0;
    for (seed, stream) in streams.into_iter().enumerate() {
        let reply = collect(stream).unwrap();
        assert_eq!(reply.ids, expected(&persona(20 + seed as u64), &[], 6));
        reused += reply.usage.reused_tokens;
    }
    assert_eq!(reused, 3 * 150);
    assert_eq!(rig.backend.metrics().prefilled_tokens, 150 + 4 * 20);
    rig.no_leak();
}

#[test]
fn the_cache_keeps_to_its_bytes_and_recomputes_what_it_gave_up() {
    let setup = Setup { parked_bytes: 100, ..Setup::default() };
    let rig = Rig::new(setup, SchedulerConfig { cache_bytes: 350, ..SchedulerConfig::default() });
    for round in 0..3 {
        for seed in 0..5 {
            let prompt = parts(&tokens(seed, 40));
            assert_eq!(rig.say(request(prompt.clone(), 6)).ids, expected(&prompt, &[], 6), "{round}");
        }
    }
    let metrics = rig.backend.metrics();
    assert!(metrics.cached_bytes <= 350 && metrics.cached_pasts == 3 && metrics.evicted_pasts > 0);
    rig.no_leak();
}

#[test]
fn engines_that_cannot_park_and_empty_caches_serve_all_the_same() {
    let no_park = Setup { capability: Capability { park: false, ..Setup::default().capability }, ..Setup::default() };
    for (setup, cache_bytes) in [(no_park, 1 << 20), (Setup::default(), 0)] {
        let rig = Rig::new(setup, SchedulerConfig { cache_bytes, ..SchedulerConfig::default() });
        for _ in 0..2 {
            check(&rig, parts(&tokens(1, 90)), 0);
        }
        assert_eq!(rig.backend.metrics().cached_pasts, 0);
        rig.no_leak();
    }
}
