//! What `consort convert` and `consort quantize` write, in llama.cpp.
#![cfg(feature = "llamacpp")]
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod common;

use common::{json, succeed};

/// The same file in both engines, on the same tokens: the distributions are the same but for how each rounds.
#[test]
fn quantized_files_say_the_same_in_llamacpp() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    succeed(&["convert", "--type", "f32", "--output", &path(""), "models/etude"]);
    for kind in ["Q8_0", "Q4_K_M", "Q3_K_M", "Q6_K", "Q4_0", "IQ4_XS"] {
        let file = path(&format!("etude-{kind}.gguf"));
        succeed(&["quantize", "--type", kind, &path("etude-F32.gguf"), &file]);
        agree(&file, kind, 1e-3, 0.97);
    }
    // Nothing is rounded but attention's keys and values, which llama.cpp keeps in half precision.
    agree(&path("etude-F32.gguf"), "F32", 1e-5, 0.995);
}

fn agree(file: &str, kind: &str, most: f64, least_top: f64) {
    let found = json(&[
        "kld",
        "--device",
        "cpu",
        "--builtin",
        "--max-tokens",
        "1200",
        "--context",
        "128",
        "--backend",
        "llamacpp",
        "--model",
        file,
        "--against-backend",
        "native",
        "--against",
        file,
        "--json",
    ]);
    assert_eq!(
        (&found["evidence"]["model"]["backend"], &found["evidence"]["against"]["backend"]),
        (&"llamacpp".into(), &"native".into())
    );
    let (kl, top) =
        (found["result"]["kl"]["mean"].as_f64().unwrap(), found["result"]["top1_agreement"].as_f64().unwrap());
    println!("{kind}: llama.cpp against native, mean KL divergence {kl:.2e}, same first choice {:.2}%", 100.0 * top);
    assert!(kl <= most, "{kind}: {kl}");
    assert!(top >= least_top, "{kind}: {top}");
}

#[test]
fn nothing_is_said_that_nobody_asked_for() {
    let output = common::consort(&["run", "--device", "cpu", "--backend", "llamacpp", "Hello!"]);
    assert!(output.status.success());
    let said = common::stderr(&output);
    assert!(!said.contains("WARN"), "{said}");
}
