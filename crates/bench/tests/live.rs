//! Each workload on etude, in process, twice the same engine: what must hold of any report.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use consort_bench::live::*;
use consort_bench::report::{Circumstances, Report, compare};
use consort_core::{AdapterFiles, Device, DevicePolicy, ModelBackend};
use consort_gguf::Gguf;
use consort_native::{NativeConfig, NativeEngine};
use consort_scheduler::{FrontEnd, Scheduled, SchedulerConfig};
use consort_text::{ChatTemplate, Tokenizer};

fn etude(file: &str) -> PathBuf {
    Path::new("../../models/etude").join(file)
}

fn backend() -> Arc<dyn ModelBackend> {
    let path = etude("gguf/etude-Q8_0.gguf");
    let gguf = Gguf::open(&path).unwrap();
    let tokenizer = Tokenizer::from_gguf(&gguf).unwrap();
    let template = tokenizer.chat_template().map(ChatTemplate::new).transpose().unwrap();
    let front_end = FrontEnd { tokenizer: Some(tokenizer), template, image_processor: None };
    let config = NativeConfig {
        policy: DevicePolicy::Named(Device::Cpu),
        threads: NonZeroUsize::new(1),
        ..NativeConfig::new(path.as_path())
    };
    let scheduled = Scheduled::spawn(move || NativeEngine::load(config), front_end, SchedulerConfig::default());
    Arc::new(scheduled.unwrap())
}

fn target(name: &str, adapters: usize) -> Box<dyn Target> {
    let settings = BTreeMap::from([("threads".to_owned(), "1".to_owned())]);
    let mut target = InProcess::new(name, "etude", settings, backend());
    let files = ["pirate", "butler"].map(|id| (id.to_owned(), AdapterFiles::Directory(etude("adapters").join(id))));
    target.load_adapters(&files[..adapters]).unwrap();
    Box::new(target)
}

/// Runs two blocks on two targets that are the same, and checks what holds of every run.
fn report(settings: Settings) -> Report {
    let workload = Workload::generate(settings, 11, 2).unwrap();
    let targets = vec![target("one", workload.adapters), target("two", workload.adapters)];
    let config = RunConfig { stream_bytes: Some(4 << 20), settle: Duration::from_millis(50) };
    let mut turns = Vec::new();
    let blocks = run(&workload, &targets, &config, &mut |step| {
        turns.push((step.target.to_owned(), step.warm_up));
    })
    .unwrap();
    let turns: Vec<_> = turns.iter().map(|(name, warm_up)| (name.as_str(), *warm_up)).collect();
    assert_eq!(turns, [("one", true), ("two", true), ("one", false), ("two", false), ("one", false), ("two", false)]);
    let abouts = targets.iter().map(|target| target.about().clone()).collect();
    let circumstances = Circumstances {
        title: "test".into(),
        command: "a test".into(),
        notes: Vec::new(),
        searches: Vec::new(),
        quality: Vec::new(),
    };
    let report = Report::new(&workload, abouts, blocks, circumstances);

    assert_eq!(report.blocks.len(), 4);
    for block in &report.blocks {
        let script = &workload.blocks[block.block];
        let asked = script.asks().count();
        let whole = &block.groups[WHOLE_BLOCK];
        assert_eq!(whole.finished + whole.cancelled, asked, "{whole:?}");
        assert_eq!(whole.failed, 0);
        let sum: u64 =
            block.groups.iter().filter(|(name, _)| *name != WHOLE_BLOCK).map(|(_, g)| g.completion_tokens).sum();
        assert_eq!(sum, whole.completion_tokens);
        let wanted: u64 =
            script.asks().filter(|ask| ask.cancel_after.is_none()).map(|ask| u64::from(ask.max_tokens)).sum();
        assert!(whole.completion_tokens >= wanted, "replies are as long as asked for");
        for group in block.groups.values() {
            assert!(group.reused_tokens.unwrap_or(0) <= group.prompt_tokens.unwrap_or(0));
            let of = |metric| group.figures.get(&metric).copied();
            for (less, more) in [
                (Metric::FirstTokenP50, Metric::FirstTokenP95),
                (Metric::InterTokenP50, Metric::InterTokenP95),
                (Metric::InterTokenP95, Metric::InterTokenP99),
            ] {
                assert!(of(less) <= of(more), "{group:?}");
            }
            assert!(group.figures.values().all(|value| value.is_finite() && *value >= 0.0), "{group:?}");
        }
        assert!(block.machine.stream_before.unwrap() > 0.0 && block.machine.model_memory.unwrap() > 0);
        #[cfg(target_os = "linux")]
        assert!(block.machine.cpu_seconds.unwrap() > 0.0 && block.machine.peak_memory.unwrap() > 1 << 20);
    }
    // Both read the same words with the same tokenizer.
    for pair in report.blocks.chunks(2) {
        let [one, two] = pair else { panic!("pairs") };
        for (name, group) in &one.groups {
            assert_eq!(group.prompt_tokens, two.groups[name].prompt_tokens, "{name}");
        }
    }
    // The report comes back from its file, and says something in each form.
    let folder = tempfile::tempdir().unwrap();
    let [json, markdown, chart] = report.save(folder.path()).unwrap();
    assert_eq!(Report::open(&json).unwrap(), report);
    let text = std::fs::read_to_string(markdown).unwrap();
    for part in ["## Targets", "in process", "one is better by, than two", "stream before / after", "whole block"] {
        assert!(text.contains(part), "{part:?} is missing:\n{text}");
    }
    let picture = std::fs::read_to_string(chart).unwrap();
    assert!(picture.contains("<svg") && picture.contains("prefers-color-scheme: dark") && !picture.contains("NaN"));
    assert!(!compare(&report, "one", &report, "two").is_empty());
    report
}

fn groups(report: &Report) -> Vec<&str> {
    report.blocks[0].groups.keys().map(String::as_str).filter(|name| *name != WHOLE_BLOCK).collect()
}

#[test]
fn solo_reads_cold_and_warm() {
    let config = SoloConfig { prompt_tokens: vec![96], decode_prompt: 16, decode_tokens: 24 };
    let report = report(Settings::Solo(config));
    assert_eq!(groups(&report), ["decode", "prefill 96, cold", "prefill 96, warm"]);
    for block in &report.blocks {
        assert_eq!(block.groups["prefill 96, cold"].reused_tokens, Some(0), "a cold prompt is cold");
        let warm = &block.groups["prefill 96, warm"];
        assert!(warm.reused_tokens.unwrap() * 2 > warm.prompt_tokens.unwrap(), "{warm:?}");
    }
    for metric in [Metric::StreamRate, Metric::AggregateRate, Metric::PrefillRate] {
        assert!(report.row("one", "decode", metric).unwrap().summary.median > 0.0);
    }
}

#[test]
fn room_grows_and_shares() {
    let config = RoomConfig {
        personas: 3,
        rounds: 2,
        scene_tokens: 64,
        turn_tokens: 8,
        reply_tokens: 6,
        ..RoomConfig::default()
    };
    let report = report(Settings::Room(config.clone()));
    assert_eq!(groups(&report), ["room, cold", "room, warm"]);
    for block in &report.blocks {
        let warm = &block.groups["room, warm"];
        assert_eq!(warm.finished, 3);
        assert!(warm.reused_tokens.unwrap() * 2 > warm.prompt_tokens.unwrap(), "the scene is read once: {warm:?}");
    }
}

#[test]
fn a_room_with_adapters() {
    let config = RoomConfig {
        personas: 2,
        rounds: 2,
        scene_tokens: 32,
        turn_tokens: 8,
        reply_tokens: 4,
        adapters: 2,
        ..RoomConfig::default()
    };
    let report = report(Settings::Room(config));
    assert_eq!(report.targets[0].evidence.as_ref().unwrap().device, "cpu");
}

#[test]
fn churn_cancels_and_serves_on() {
    let config = ChurnConfig {
        voices: 2,
        turns: 2,
        voice_prompt: 8,
        voice_tokens: 8,
        long_prompts: 1,
        long_tokens: 128,
        arrivals: 2,
        arrival_ms: 5,
        cancels: 9,
    };
    let report = report(Settings::Churn(config));
    for block in &report.blocks {
        assert_eq!((block.groups["cancelled at once"].cancelled, block.groups["arrival, cancelled"].cancelled), (9, 1));
        assert_eq!(block.groups["request, after 9 cancels"].finished, 1);
        assert!(block.groups["voice, beside churn"].figures.contains_key(&Metric::InterTokenP99));
    }
}

#[test]
fn neighbour_takes_its_share() {
    let room = RoomConfig {
        personas: 2,
        rounds: 2,
        scene_tokens: 32,
        turn_tokens: 8,
        reply_tokens: 16,
        ..RoomConfig::default()
    };
    let report = report(Settings::Neighbour(NeighbourConfig { room, threads: 1, pinned: true }));
    assert_eq!(
        groups(&report),
        ["room alone, cold", "room alone, warm", "room beside a neighbour, cold", "room beside a neighbour, warm"]
    );
    for metric in [Metric::FairShareKept, Metric::NeighbourSpeed] {
        let row = report.row("one", "room beside a neighbour, warm", metric).unwrap();
        assert!(row.summary.median > 0.0, "{row:?}");
    }
}
