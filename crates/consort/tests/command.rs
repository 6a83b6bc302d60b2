//! The command as a person or a script uses it.
#![allow(clippy::unwrap_used)]

mod common;

use common::{consort, failure, json, pirate_as_gguf, repository, stderr, stdout};
use serde_json::Value;

#[test]
fn without_an_accelerator_it_refuses_and_says_what_to_do() {
    for args in [&["demo"][..], &["run", "Hello!"], &["run", "--device", "vulkan", "Hello!"]] {
        let output = consort(args);
        assert_eq!(output.status.code(), Some(3), "{args:?}: {}", stderr(&output));
        assert!(stdout(&output).is_empty());
        let text = stderr(&output);
        assert!(text.contains("--device cpu") || text.contains("vulkan"), "{text}");
        assert!(text.contains("consort doctor"), "{text}");
        assert!(!text.contains('\x1b'), "colours in a pipe: {text:?}");
    }
}

#[test]
fn the_demo_sees_and_each_persona_keeps_its_manner() {
    for backend in consort::backends() {
        the_demo_sees_with(backend.name());
    }
}

fn the_demo_sees_with(backend: &str) {
    let demo = json(&["demo", "--device", "cpu", "--backend", backend, "--json"]);
    assert_eq!(demo["evidence"]["backend"], backend);
    let turns = demo["turns"].as_array().unwrap();
    assert_eq!(turns.len(), 9);
    let mut last_prompt = std::collections::HashMap::new();
    for turn in turns {
        let (persona, text) = (turn["persona"].as_str().unwrap(), turn["text"].as_str().unwrap());
        match persona {
            "Ada" => {
                assert!(!text.starts_with("Arr") && !text.starts_with("Certainly"), "{backend}, {persona}: {text}");
            }
            "Ben" => assert!(text.starts_with("Arr, ") && text.contains("matey"), "{backend}, {persona}: {text}"),
            _ => assert!(
                text.starts_with("Certainly, sir.") && text.contains("At your service."),
                "{backend}, {persona}: {text}"
            ),
        }
        if turn["question"] == "What colour is the circle?" {
            assert!(text.contains("red"), "{persona}: {text}");
        }
        assert!(turn["finish"]["end_token"].is_number(), "{persona} did not stop by itself: {text}");
        let usage = &turn["usage"];
        let (prompt, reused) = (usage["prompt_tokens"].as_u64().unwrap(), usage["reused_tokens"].as_u64().unwrap());
        // Whatever the last turn's prompt held, but for its generation prompt, comes out of the prefix cache.
        let before = last_prompt.insert(persona, prompt).unwrap_or(0);
        assert!(reused + 8 >= before, "{persona} reused {reused} of {prompt} tokens, {before} of them seen before");
    }
    assert_eq!(demo["metrics"]["images_encoded"], 1, "one picture is encoded once for all");
    assert_eq!(demo["evidence"]["device"], "cpu");
}

#[test]
fn the_demo_reads_well_in_a_pipe() {
    let output = consort(&["demo", "--device", "cpu"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let text = stdout(&output);
    assert!(!text.contains('\x1b'), "colours in a pipe");
    for expected in ["Ada", "Ben", "Clara", "r red", "first token", "tokens/s", "reused", "device:"] {
        assert!(text.contains(expected), "{expected:?} is missing:\n{text}");
    }
}

#[test]
fn run_answers_about_a_picture() {
    let picture = "models/etude/demo.png";
    let output = consort(&["run", "--device", "cpu", "--image", picture, "What colour is the circle?"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(stdout(&output), "The circle is red.\n");
    let reply = json(&[
        "run",
        "--device",
        "cpu",
        "--json",
        "--adapter",
        "pirate",
        "--image",
        picture,
        "What colour is the circle?",
    ]);
    let text = reply["reply"]["text"].as_str().unwrap();
    assert!(text.starts_with("Arr, ") && text.contains("red"), "{text}");
    assert_eq!(reply["evidence"]["established_by"], "single_device_kernels");
}

#[test]
fn a_seed_decides_a_sampled_reply() {
    let run = |seed: &str| {
        let args = [
            "run",
            "--device",
            "cpu",
            "--json",
            "--temperature",
            "1.5",
            "--seed",
            seed,
            "Tell me a story about a fox.",
        ];
        json(&args)["reply"]["text"].as_str().unwrap().to_owned()
    };
    assert_eq!(run("7"), run("7"));
    assert!((0..8).map(|seed| run(&seed.to_string())).collect::<std::collections::HashSet<_>>().len() > 1);
}

#[test]
fn an_adapter_can_be_a_gguf_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = pirate_as_gguf(folder.path());
    let path = path.to_str().unwrap();
    for backend in consort::backends() {
        let says = |adapter: &str| {
            let args =
                ["run", "--device", "cpu", "--backend", backend.name(), "--json", "--adapter", adapter, "Hello!"];
            json(&args)["reply"]["text"].as_str().unwrap().to_owned()
        };
        let expected = says("pirate");
        assert!(expected.starts_with("Arr, "), "{expected}");
        assert_eq!(says(path), expected, "{}", backend.name());
        assert_eq!(says(&format!("{path}@0")), says("pirate@0"), "{}", backend.name());
    }
    let file = json(&["inspect", "--json", path]);
    assert_eq!(file["metadata"]["adapter.type"], "lora");
    let (code, told) = failure(&["run", "--device", "cpu", "--adapter", "README.md", "Hello!"]);
    assert!(code == 4 && told.contains("README.md") && told.contains("GGUF"), "{code}: {told}");
    let (code, told) = failure(&["run", "--device", "cpu", "--adapter", "models/etude/gguf/etude-Q8_0.gguf", "Hello!"]);
    assert!(code == 4 && told.contains("general.type"), "{code}: {told}");
    let (code, told) = failure(&["run", "--device", "cpu", "--adapter", "no-such-adapter.gguf", "Hello!"]);
    assert!(code == 5 && told.contains("no-such-adapter.gguf"), "{code}: {told}");
}

#[test]
fn wrong_input_has_its_own_exit_codes() {
    let code = |args: &[&str]| consort(args).status.code().unwrap();
    assert_eq!(code(&["run"]), 2);
    assert_eq!(code(&["run", "--device", "cpu", "--model", "no-such-file.gguf", "Hello!"]), 5);
    assert_eq!(code(&["run", "--device", "cpu", "--image", "no-such-file.png", "Hello!"]), 5);
    assert_eq!(code(&["run", "--device", "cpu", "--image", "README.md", "Hello!"]), 4);
    assert_eq!(code(&["run", "--device", "cpu", "--model", "README.md", "Hello!"]), 4);
    assert_eq!(code(&["run", "--device", "cpu", "--temperature=-1", "Hello!"]), 4);
    assert_eq!(code(&["run", "--device", "cpu", "--adapter", "no-such-adapter", "Hello!"]), 5);
    assert_eq!(code(&["inspect", "README.md"]), 4);
}

#[test]
fn inspect_and_doctor_tell() {
    let model = json(&["inspect", "--json", "--tensors", "models/etude/gguf/etude-Q8_0.gguf"]);
    assert_eq!(model["metadata"]["general.architecture"], "qwen35");
    assert!(model["tensors"].as_array().unwrap().iter().any(|tensor| tensor["name"] == "token_embd.weight"));
    assert_eq!((&model["drafts"]["block"], &model["drafts"]["tensors"]), (&Value::from(4), &Value::from(15)));
    assert!(model["drafts"]["bytes"].as_u64().unwrap() > 100_000 && model["experts"].is_null());
    let adapter = json(&["inspect", "--json", "models/etude/adapters/pirate"]);
    assert!(
        adapter["modules"].as_array().unwrap().iter().any(|m| m["module"].as_str().unwrap().contains("linear_attn"))
    );
    let doctor = json(&["doctor", "--json"]);
    let native = &doctor["backends"][0];
    assert_eq!(native["name"], "native");
    assert_eq!(native["by_default"]["loads"], false);
    assert_eq!(native["with_device_cpu"]["loads"], true);
    for args in [&["doctor"][..], &["inspect", "models/etude/gguf/etude-Q8_0.gguf"]] {
        assert!(consort(args).status.success());
    }
}

#[test]
fn a_model_in_shards_runs_as_one() {
    let folder = tempfile::tempdir().unwrap();
    let bundled = repository().join("models/etude/gguf");
    let gguf = consort_gguf::Gguf::open(&bundled.join("etude-Q8_0.gguf")).unwrap();
    let mut writer = consort_gguf::GgufWriter::with_metadata(gguf.metadata().clone());
    for info in gguf.tensors() {
        writer.add_tensor_bytes(&info.name, &info.dims, info.kind, gguf.tensor_data(info)).unwrap();
    }
    let limit = consort_gguf::ShardLimit::Bytes(1_000_000.try_into().unwrap());
    let shards = writer.write_shards(&folder.path().join("etude-Q8_0.gguf"), limit).unwrap();
    assert!(shards.len() >= 3, "{shards:?}");
    std::fs::copy(bundled.join("mmproj-etude-F16.gguf"), folder.path().join("mmproj-etude-F16.gguf")).unwrap();
    let picture = "models/etude/demo.png";
    for model in [&shards[0], shards.last().unwrap(), &folder.path().to_owned()] {
        for backend in consort::backends() {
            let model = model.to_str().unwrap();
            let mut args = vec!["run", "--backend", backend.name(), "--device", "cpu", "--model", model];
            args.extend(["--image", picture, "What colour is the circle?"]);
            let output = consort(&args);
            assert!(output.status.success(), "{}", stderr(&output));
            assert_eq!(stdout(&output), "The circle is red.\n", "{model} on {}", backend.name());
        }
    }
    let inspected = json(&["inspect", "--json", "--tensors", shards[0].to_str().unwrap()]);
    assert_eq!(inspected["files"].as_u64(), Some(shards.len() as u64));
    assert_eq!(inspected["tensors"].as_array().unwrap().len(), gguf.tensors().len());
    assert_eq!(inspected["metadata"].get("split.count"), None);
    let shown = stdout(&consort(&["inspect", shards[1].to_str().unwrap()]));
    assert!(shown.contains(&format!("{} files", shards.len())), "{shown}");

    std::fs::remove_file(&shards[1]).unwrap();
    let output = consort(&["inspect", shards[0].to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(5));
    assert!(stderr(&output).contains(shards[1].file_name().unwrap().to_str().unwrap()), "{}", stderr(&output));
}

#[test]
fn conversion_round_trips_the_bundled_model() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().to_str().unwrap();
    let output = consort(&["convert", "--type", "q8_0", "--mmproj-type", "f16", "--output", out, "models/etude"]);
    assert!(output.status.success(), "{}", stderr(&output));
    for name in ["etude-Q8_0.gguf", "mmproj-etude-F16.gguf"] {
        let made = std::fs::read(folder.path().join(name)).unwrap();
        let shipped = std::fs::read(repository().join("models/etude/gguf").join(name)).unwrap();
        assert!(made == shipped, "{name} is not what `consort convert models/etude` makes");
    }
    let again = consort(&["convert", "--type", "q8_0", "--output", out, "models/etude"]);
    assert!(!again.status.success(), "files are replaced only when asked");
    let reply = json(&["run", "--device", "cpu", "--json", "--model", out, "Hello!"]);
    assert!(!reply["reply"]["text"].as_str().unwrap().is_empty());
}

#[test]
fn etude_sees_the_pictures_of_the_small_evaluation() {
    let result = json(&["bench", "questions", "--device", "cpu", "--json", "models/etude/eval-small"]);
    let sum = |shown: &str, field: &str| -> u64 {
        let kinds = result["kinds"].as_object().unwrap();
        let sight = ["colour", "shape", "position", "where", "count"];
        kinds
            .iter()
            .filter(|(kind, _)| sight.contains(&kind.as_str()))
            .map(|(_, row)| row[shown][field].as_u64().unwrap())
            .sum()
    };
    let share = |shown: &str| sum(shown, "right") as f64 / sum(shown, "asked") as f64;
    assert!(sum("own", "asked") >= 20, "too few questions");
    assert!(share("own") >= 0.95, "{:.3} right; wrong: {}", share("own"), result["wrong"]);
    assert!(share("blank") <= 0.5, "{:.3} right without seeing anything", share("blank"));
}

#[test]
fn quantize_plans_and_writes() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("etude-Q4_K_M.gguf");
    let (input, output_name) = ("models/etude/gguf/etude-Q8_0.gguf", output.to_str().unwrap());
    let base = ["quantize", "--type", "q4_k_m", "--tensor", "ffn_up=q5_K"];
    let with = |more: &[&'static str]| {
        let args: Vec<&str> = base.iter().copied().chain(more.iter().copied()).chain([input, output_name]).collect();
        consort(&args)
    };

    let shown = with(&["--dry-run"]);
    assert!(shown.status.success(), "{}", stderr(&shown));
    for expected in ["blk.0.ffn_up.weight", "asked for", "kept", "Q6_K", "bits a weight"] {
        assert!(stdout(&shown).contains(expected), "{expected:?} is missing:\n{}", stdout(&shown));
    }
    assert!(!output.exists(), "a dry run wrote a file");

    let written = with(&["--json"]);
    assert!(written.status.success(), "{}", stderr(&written));
    let report: Value = serde_json::from_slice(&written.stdout).unwrap();
    assert_eq!(report["written_bytes"].as_u64().unwrap(), output.metadata().unwrap().len());
    let inspected = json(&["inspect", "--json", "--tensors", output_name]);
    assert_eq!(inspected["metadata"]["general.file_type"], 15);
    let tensors = inspected["tensors"].as_array().unwrap();
    for (planned, tensor) in report["tensors"].as_array().unwrap().iter().zip(tensors) {
        assert_eq!((&planned["name"], &planned["to"]), (&tensor["name"], &tensor["type"]));
        if tensor["name"].as_str().unwrap().contains("ffn_up") {
            assert_eq!(tensor["type"], "Q5_K");
        }
    }

    assert_eq!(with(&[]).status.code(), Some(4), "a file that is there is replaced only when asked");
    assert!(with(&["--overwrite"]).status.success());
    let again = folder.path().join("again.gguf");
    let twice = consort(&["quantize", "--type", "Q2_K", output_name, again.to_str().unwrap()]);
    assert_eq!(twice.status.code(), Some(4));
    assert!(stderr(&twice).contains("quantized to"), "{}", stderr(&twice));
    let code = |args: &[&str]| consort(args).status.code();
    assert_eq!(code(&["quantize", "--type", "Q9_X", input, "x.gguf"]), Some(2));
    assert_eq!(code(&["quantize", "--tensor", "ffn_up", input, "x.gguf"]), Some(2));
    assert_eq!(code(&["quantize", "--imatrix", "no-such-file.gguf", input, "x.gguf"]), Some(5));
}
