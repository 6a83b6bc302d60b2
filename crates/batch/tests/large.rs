//! A long file in little memory.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::File;
use std::io::{BufRead as _, BufReader, BufWriter, Write as _};

use common::{echo, here, line, run, settings};
use consort_batch::{End, Files, Input};
use serde_json::json;

const LINES: usize = 100_000;

/// The most memory that this process ever had, in bytes, where the system tells.
fn most_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()? << 10)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_thousand_requests_take_little_memory() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("in.jsonl");
    let padding = "x".repeat(1000);
    let mut file = BufWriter::new(File::create(&path).unwrap());
    for index in 0..LINES {
        file.write_all(line(&format!("r{index}"), &json!({ "n": index, "padding": padding })).as_bytes()).unwrap();
    }
    drop(file.into_inner().unwrap());
    let bytes = std::fs::metadata(&path).unwrap().len();
    assert!(bytes > 100 << 20);
    let files =
        Files { input: Input::File(path), output: folder.path().join("out"), errors: folder.path().join("err") };
    let before = most_memory();
    // One in a thousand is slow, so that the window fills.
    let target = here(|request| async move {
        if request.number % 1000 == 0 {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
        Ok(echo(&request))
    });
    let (end, figures) = run(&files, target, &settings(32)).await.unwrap();
    assert!(matches!(end, End::Complete));
    assert_eq!((figures.succeeded, figures.failed(), figures.input_bytes), (LINES as u64, 0, bytes));
    assert!(figures.most_in_window <= 128 && figures.most_in_flight <= 32, "{figures:?}");
    assert!(figures.most_held_bytes < 1 << 20, "{figures:?}");
    let mut next = 0;
    for line in BufReader::new(File::open(&files.output).unwrap()).lines() {
        assert!(line.unwrap().contains(&format!("\"custom_id\":\"r{next}\"")), "line {next}");
        next += 1;
    }
    assert_eq!(next, LINES);
    // The names' hashes, the window, and buffers: far from the 100 MiB that went through.
    if let (Some(before), Some(after)) = (before, most_memory()) {
        assert!(after - before < 24 << 20, "{} KiB more", (after - before) >> 10);
    }
    assert_eq!(
        consort_batch::count(&match files.input {
            Input::File(path) => path,
            Input::Stdin => panic!(),
        })
        .unwrap(),
        LINES as u64
    );
}
