//! The live-chat bench and the gate, as a person uses them.
#![allow(clippy::unwrap_used)]

mod common;

use common::{consort, failure, json, repository, stderr, succeed};
use serde_json::Value;

fn read(path: &std::path::Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn a_room_is_measured_compared_and_judged() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().to_str().unwrap();
    let args = [
        "bench",
        "room",
        "--device",
        "cpu",
        "--personas",
        "2",
        "--rounds",
        "2",
        "--scene",
        "24",
        "--turn",
        "4",
        "--reply",
        "4",
        "--images",
        "1",
        "--image-side",
        "96",
        "--repeats",
        "2",
        "--backend",
        "native,threads=1",
        "--backend",
        "llamacpp=native,threads=1",
        "--adapter",
        "pirate",
        "--no-stream",
        "--quality",
        "--quality-tokens",
        "64",
        "--search",
        "native:threads=1,2",
        "--output",
        out,
        "--name",
        "room-test",
    ];
    let printed = succeed(&args);
    assert_eq!(printed.lines().count(), 3, "{printed}");
    let path = folder.path().join("room-test.json");
    let report = read(&path);
    assert_eq!((&report["schema"], &report["targets"][1]["name"]), (&"consort-bench/1".into(), &"llamacpp".into()));
    assert_eq!(report["blocks"].as_array().unwrap().len(), 4);
    let whole = &report["blocks"][3]["groups"]["whole block"];
    assert_eq!((&whole["finished"], &whole["failed"]), (&4.into(), &0.into()));
    assert_eq!(report["quality"][0]["divergence"]["kl"]["max"], 0.0, "the same engine, the same numbers");
    assert_eq!(report["searches"][0]["candidates"].as_array().unwrap().len(), 2);
    let text = std::fs::read_to_string(folder.path().join("room-test.md")).unwrap();
    for part in ["## Quality", "## Settings that were tried for native", "**chosen**", "without optimisation"] {
        assert_eq!(text.contains(part), part != "without optimisation" || cfg!(debug_assertions), "{part}:\n{text}");
    }
    assert!(!text.contains(repository().to_str().unwrap()), "no path of this machine");

    let path = path.to_str().unwrap();
    let compared = succeed(&["bench", "compare", path, path]);
    assert!(compared.contains("room, warm: first token p50, ms") && compared.contains("block by block"), "{compared}");
    // The processor is no accelerator, nobody showed the suite: the gate rejects, and says why.
    let verdict = succeed(&["bench", "accept", "--backend", "native", "--report", path, "--output", out]);
    assert!(verdict.starts_with("rejected (provisional)"), "{verdict}");
    let verdict = read(&folder.path().join("accept-native-against-llamacpp.json"));
    assert_eq!(verdict["verdict"], "rejected");
    let outcome = |rule: &str| {
        let rules = verdict["conditions"].as_array().unwrap();
        rules.iter().find(|judged| judged["rule"] == rule).unwrap()["outcome"].clone()
    };
    assert_eq!(
        (outcome("accelerated only"), outcome("behaviour suite `backends` green")),
        ("broken".into(), "not_shown".into())
    );
    assert_eq!(outcome("quality: KL divergence, mean"), "kept");
}

#[test]
fn the_gate_measures_what_it_is_not_given() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().to_str().unwrap();
    let args = "bench accept --backend native,threads=1 --against other=native,threads=1 --device cpu --repeats 1 \
                --personas 1 --rounds 2 --scene 24 --turn 4 --reply 4 --output";
    let args: Vec<&str> = args.split_whitespace().chain([out]).collect();
    let printed = succeed(&args);
    assert!(printed.contains("rejected (provisional)"), "{printed}");
    let verdict = read(&folder.path().join("accept-native-against-other.json"));
    let figure = |rule: &str| {
        let rules = verdict["conditions"].as_array().unwrap();
        rules.iter().find(|judged| judged["rule"] == rule).map(|judged| judged["outcome"].clone())
    };
    assert_eq!(figure("quality: KL divergence, mean"), Some("kept".into()), "{verdict:#}");
    for name in ["room", "neighbour"] {
        let report = read(&folder.path().join(format!("accept-native-against-other-{name}.json")));
        assert_eq!(report["workload"]["settings"].as_object().unwrap().keys().next().unwrap(), name);
    }
    let report = folder.path().join("accept-native-against-other-room.json");
    let (_, text) =
        failure(&["bench", "accept", "--backend", "native", "--device", "cpu", "--report", report.to_str().unwrap()]);
    assert!(text.contains("measured already"), "{text}");
}

#[test]
fn a_workload_is_saved_and_replayed_on_a_synthetic_model() {
    let folder = tempfile::tempdir().unwrap();
    let workload = folder.path().join("solo.json");
    let workload = workload.to_str().unwrap();
    let cache = folder.path().join("cache");
    let cache = cache.to_str().unwrap();
    succeed(&["bench", "workload", "solo", "--prompts", "16", "--tokens", "4", "--repeats", "1", "--output", workload]);
    let printed = succeed(&["bench", "synthetic", "synthetic:tiny:Q8_0", "--cache", cache]);
    assert!(std::path::Path::new(printed.trim()).exists());
    let text = succeed(&[
        "bench",
        "replay",
        workload,
        "--device",
        "cpu",
        "--model",
        "synthetic:tiny:Q8_0",
        "--cache",
        cache,
        "--no-stream",
    ]);
    assert!(text.contains("### prefill 16, cold") && text.contains("synthetic:tiny:Q8_0"), "{text}");
    // The words are tokens of the vocabulary: sixteen of them and the template around them.
    let line = text.lines().find(|line| line.contains("| prefill 16, cold | 1 |")).unwrap();
    let prompt: usize = line.split('|').nth(6).unwrap().trim().parse().unwrap();
    assert!((16..60).contains(&prompt), "{line}");
    assert!(!json(&["doctor", "--json"]).is_null());
}

#[test]
fn what_is_wrong_is_named() {
    for (args, words) in [
        (&["bench", "solo", "--device", "cpu", "--backend", "nobody"][..], "which has: native"),
        (&["bench", "solo", "--device", "cpu", "--model", "synthetic:7b:F16"], "sizes are"),
        (&["bench", "solo", "--url", "x=https://127.0.0.1:1"], "plain HTTP"),
        (&["bench", "solo", "--peer", "x=program"], "{port}"),
        (&["bench", "solo", "--device", "cpu", "--search", "x:threads=1,2"], "names no target"),
        (&["bench", "solo", "--device", "cpu", "--backend", "native", "--backend", "native"], "same name"),
        (&["bench", "room", "--device", "cpu", "--adapters", "1"], "--adapter"),
        (&["bench", "replay", "Cargo.toml", "--device", "cpu"], "no workload"),
        (&["bench", "compare", "Cargo.toml", "Cargo.toml"], "no report"),
        (&["bench", "workload", "churn"], "--output"),
    ] {
        let (code, text) = failure(args);
        assert!(code != 0 && text.contains(words), "{args:?}: {text}");
    }
    let output = consort(&["bench", "solo"]);
    assert_eq!(output.status.code(), Some(3), "accelerators only: {}", stderr(&output));
}

/// The cost of our path is measured beside a bare client's, on a server that costs nothing itself.
#[cfg(feature = "vllm")]
#[test]
fn our_path_is_measured_beside_a_bare_client() {
    use consort_vllm_replay::{Synthetic, SyntheticConfig};

    let server = Synthetic::start(SyntheticConfig::default()).unwrap();
    let http = server.server().http_url();
    let grpc = server.server().grpc_url().replace("http://", "grpc://");
    // What builds without gRPC measures HTTP alone.
    let at = if cfg!(feature = "vllm-grpc") { format!("at once={http},{grpc}") } else { format!("at once={http}") };
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().to_str().unwrap();
    let before = server.server().counts().requests;
    let args = "bench overhead --prompts 8,600 --streams 1,3 --tokens 6 --rounds 2 --name cost --output";
    let args: Vec<&str> = args.split_whitespace().chain([out, "--at", &at]).collect();
    let printed = succeed(&args);
    assert_eq!(printed.lines().count(), 2, "{printed}");
    let report = read(&folder.path().join("cost.json"));
    assert_eq!(report["schema"], "consort-overhead/1");
    let cells = report["cells"].as_array().unwrap();
    let seen: Vec<_> = cells.iter().map(|cell| (cell["prompt"].as_u64(), cell["streams"].as_u64())).collect();
    assert_eq!(seen, [(8, 1), (8, 3), (600, 1), (600, 3)].map(|(prompt, streams)| (Some(prompt), Some(streams))));
    let paths: &[&str] = if cfg!(feature = "vllm-grpc") { &["by HTTP", "by gRPC"] } else { &["by HTTP"] };
    for cell in cells {
        let ours = cell["ours"].as_array().unwrap();
        assert_eq!(ours.iter().map(|path| path[0]["name"].as_str().unwrap()).collect::<Vec<_>>(), paths);
        assert!(ours.iter().all(|path| path[1]["first"]["values"].as_array().unwrap().len() == 2), "{cell:#}");
        assert!(cell["bare"]["first"][0].as_f64().unwrap() > 0.0, "{cell:#}");
    }
    let verdicts = report["verdicts"].as_array().unwrap();
    assert_eq!(verdicts.len(), 2 * paths.len());
    assert!(verdicts.iter().all(|verdict| verdict["kept"].is_boolean() && verdict["found"].is_f64()));
    // Each path in each cell: once to warm up, and two rounds, of as many replies as run at once.
    let requests = (1 + paths.len() as u64) * 3 * (1 + 3 + 1 + 3);
    assert!(server.server().counts().requests - before >= requests);
    let generated: Vec<_> =
        server.server().asked().into_iter().filter(|asked| asked.route() == "/inference/v1/generate").collect();
    let body = |asked: &consort_vllm_replay::Asked| serde_json::from_slice::<Value>(&asked.body).unwrap();
    let long =
        |asked: &&consort_vllm_replay::Asked| body(asked)["token_ids"].as_array().is_some_and(|ids| ids.len() == 600);
    let long: Vec<Value> = generated.iter().filter(long).map(body).collect();
    // The same is asked by both: the fields that only name the request aside.
    let fields = |body: &Value| {
        let mut body = body.clone();
        for name in ["request_id", "token_ids", "cache_salt", "priority"] {
            body.as_object_mut().unwrap().remove(name);
        }
        body
    };
    let bare = long.iter().find(|body| body["cache_salt"] == "consort-bench").unwrap();
    let ours = long.iter().find(|body| body["cache_salt"] != "consort-bench").unwrap();
    assert_eq!(fields(bare), fields(ours));
    let text = std::fs::read_to_string(folder.path().join("cost.md")).unwrap();
    for part in ["by HTTP, to the first token:", "for each token:", "3 replies at once", "| bare client |", "cost.md"] {
        assert_eq!(text.contains(part), part != "cost.md", "{part}:\n{text}");
    }

    let (_, text) = failure(&["bench", "overhead", "--at", "x=http://127.0.0.1:1"]);
    assert!(text.contains("127.0.0.1:1"), "{text}");
    let (_, text) = failure(&["bench", "overhead", "--at", "x=grpc://127.0.0.1:1"]);
    assert!(text.contains("plain HTTP"), "{text}");
    let (_, text) = failure(&["bench", "overhead", "--at", &at, "--tokens", "1"]);
    assert!(text.contains("two tokens at least"), "{text}");
}
