//! What a run promises, with a model that is a function.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{echo, files, here, ids, line, read, run, run_until, settings};
use consort_batch::{Answer, AtFailure, Batch, End, Fault, FaultKind, Place, Rules, RunSettings, Start};
use consort_core::ErrorKind;
use proptest::prelude::*;
use serde_json::{Value, json};

/// Requests of which some fail, and lines that are none.
fn mixed(count: usize) -> String {
    let one = |index: usize| match index % 7 {
        3 => line(&format!("r{index}"), &json!({ "fail": 400 })),
        5 => format!("{{ broken {index}\n"),
        6 => format!("\n{}", line(&format!("r{}", index - 1), &json!({ "stream": true }))),
        _ => line(&format!("r{index}"), &json!({ "n": index })),
    };
    (0..count).map(one).collect()
}

#[tokio::test]
async fn answers_stand_in_the_order_of_the_input_whatever_finishes_first() {
    let folder = tempfile::tempdir().unwrap();
    let input: String = (0..200).map(|index| line(&format!("r{index}"), &json!({ "n": index }))).collect();
    let files = files(folder.path(), &input);
    let order = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&order);
    let target = here(move |request| {
        let seen = Arc::clone(&seen);
        async move {
            // Something that differs from line to line, and not with its number.
            let delay = u64::from(request.id.name().bytes().last().unwrap() % 8);
            tokio::time::sleep(Duration::from_millis(delay)).await;
            seen.lock().unwrap().push(request.number);
            Ok(echo(&request))
        }
    });
    let (end, figures) = run(&files, target, &settings(16)).await.unwrap();
    assert!(matches!(end, End::Complete), "{end:?}");
    assert!(!order.lock().unwrap().is_sorted(), "they finished in another order");
    let expected: Vec<String> = (0..200).map(|index| format!("r{index}")).collect();
    assert_eq!(ids(&files.output), expected);
    assert!(!files.errors.exists(), "there is no file of failures without one");
    assert_eq!((figures.succeeded, figures.prompt_tokens, figures.completion_tokens), (200, 400, 600));
    assert_eq!(figures.most_in_flight, 16);
    let first = &read(&files.output)[0];
    assert_eq!(first["response"]["body"]["said"], json!({ "n": 0 }));
    assert_eq!((&first["response"]["status_code"], &first["error"]), (&json!(200), &Value::Null));
}

#[tokio::test]
async fn what_is_wrong_with_a_line_is_written_and_the_rest_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let files = files(folder.path(), &mixed(14));
    let (end, figures) = run(&files, here(|request| async move { Ok(echo(&request)) }), &settings(3)).await.unwrap();
    assert!(matches!(end, End::Complete));
    assert_eq!(ids(&files.output), ["r0", "r1", "r2", "r4", "r7", "r8", "r9", "r11"]);
    assert_eq!(ids(&files.errors), ["r3", "-", "r5", "r10", "-", "r12"]);
    let errors = read(&files.errors);
    assert_eq!(errors[0]["response"]["status_code"], 400);
    assert_eq!(errors[0]["response"]["body"]["error"]["code"], "invalid_value");
    assert_eq!((&errors[1]["error"]["code"], &errors[1]["error"]["line"]), (&json!("invalid_json_line"), &json!(6)));
    assert_eq!((&errors[2]["error"]["param"], &errors[2]["error"]["line"]), (&json!("body.stream"), &json!(8)));
    let failures: Vec<_> = figures.failures.into_iter().collect();
    let expected = [("invalid_json_line", 2), ("invalid_value", 2), ("stream_not_supported", 2)];
    assert_eq!(failures, expected.map(|(code, count)| (code.to_owned(), count)));
    // Once more: everything is answered, and nobody is asked.
    let batch = Batch::open(&files, Start::Resume, Rules::model(1 << 20)).unwrap();
    assert!(batch.is_done());
    assert_eq!((batch.before().succeeded, batch.before().failed), (8, 6));
    assert_eq!(batch.before().failures["invalid_value"], 2);
}

#[tokio::test]
async fn a_slow_request_holds_the_reading_back() {
    let folder = tempfile::tempdir().unwrap();
    let input: String = (0..500).map(|index| line(&format!("r{index}"), &json!({ "n": index }))).collect();
    let files = files(folder.path(), &input);
    let (asked, open) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let (count, opened) = (Arc::clone(&asked), Arc::clone(&open));
    let target = here(move |request| {
        let (count, opened) = (Arc::clone(&count), Arc::clone(&opened));
        async move {
            count.fetch_add(1, Ordering::Relaxed);
            while request.number == 1 && !opened.load(Ordering::Relaxed) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            Ok(echo(&request))
        }
    });
    let settings = RunSettings { window: 20, ..settings(4) };
    let running = async {
        while asked.load(Ordering::Relaxed) < 20 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // All but the first are answered, and nothing more is begun.
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(asked.load(Ordering::Relaxed), 20);
        assert_eq!(std::fs::metadata(&files.output).unwrap().len(), 0);
        open.store(true, Ordering::Relaxed);
    };
    let (outcome, ()) = tokio::join!(run(&files, target.clone(), &settings), running);
    let (_, figures) = outcome.unwrap();
    assert_eq!((figures.succeeded, figures.most_in_window, figures.most_in_flight), (500, 20, 4));

    // The same by bytes.
    std::fs::remove_file(&files.output).unwrap();
    let settings = RunSettings { window: 1000, held_bytes: 2000, ..settings };
    asked.store(0, Ordering::Relaxed);
    open.store(false, Ordering::Relaxed);
    let running = async {
        while asked.load(Ordering::Relaxed) < 5 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        open.store(true, Ordering::Relaxed);
    };
    let (outcome, ()) = tokio::join!(run(&files, target, &settings), running);
    let (_, figures) = outcome.unwrap();
    assert_eq!(figures.succeeded, 500);
    assert!((1000..4000).contains(&figures.most_held_bytes), "{figures:?}");
}

/// The files of a run that was not interrupted, and the same bytes in the order in which they were written.
struct Whole {
    input: String,
    output: Vec<u8>,
    errors: Vec<u8>,
    /// Of each line in the order of the input: whether it is a failure, and how long it is.
    written: Vec<(bool, usize)>,
}

fn whole() -> Whole {
    let folder = tempfile::tempdir().unwrap();
    let input = mixed(18);
    let files = files(folder.path(), &input);
    finish(&files);
    let (output, errors) = (std::fs::read(&files.output).unwrap(), std::fs::read(&files.errors).unwrap());
    let lengths = |bytes: &[u8]| bytes.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::len).collect::<Vec<_>>();
    let (mut good, mut bad) = (lengths(&output).into_iter(), lengths(&errors).into_iter());
    let written = (0..18).map(|index| {
        let failure = matches!(index % 7, 3 | 5 | 6);
        (failure, if failure { bad.next().unwrap() } else { good.next().unwrap() })
    });
    Whole { written: written.collect(), input, output, errors }
}

/// Runs to the end, whatever stands there: how many were asked, and what was cut off.
fn finish(files: &consort_batch::Files) -> (usize, u64) {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let target = here(move |request| {
        count.fetch_add(1, Ordering::Relaxed);
        async move { Ok(echo(&request)) }
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (end, figures) = runtime.block_on(run(files, target, &settings(3))).unwrap();
    assert!(matches!(end, End::Complete));
    assert_eq!(figures.done(), 18);
    (asked.load(Ordering::Relaxed), figures.before.cut_bytes)
}

#[test]
fn a_run_that_was_killed_at_any_byte_goes_on_from_there() {
    let whole = whole();
    let folder = tempfile::tempdir().unwrap();
    let files = files(folder.path(), &whole.input);
    let (mut good, mut bad) = (0, 0);
    for (index, (failure, length)) in whole.written.iter().enumerate() {
        // Broken off after none of the line, some of it, all but its line break, and all of it.
        for part in [0, 1, 17, length / 2, length - 1, *length] {
            let (good, bad) = if *failure { (good, bad + part) } else { (good + part, bad) };
            std::fs::write(&files.output, &whole.output[..good]).unwrap();
            std::fs::write(&files.errors, &whole.errors[..bad]).unwrap();
            let (asked, cut) = finish(&files);
            assert_eq!(std::fs::read(&files.output).unwrap(), whole.output, "line {index}, {part} bytes");
            assert_eq!(std::fs::read(&files.errors).unwrap(), whole.errors, "line {index}, {part} bytes");
            // What was written whole is not asked again; lines that are no requests never were.
            let done = index + usize::from(part == *length);
            let left = (done..18).filter(|index| !matches!(index % 7, 5 | 6)).count();
            assert_eq!(asked, left, "line {index}, {part} bytes");
            assert_eq!(cut, if part == *length { 0 } else { part as u64 });
        }
        *if *failure { &mut bad } else { &mut good } += length;
    }
}

#[test]
fn a_torn_line_that_is_longer_than_its_answer_leaves_nothing_behind() {
    let whole = whole();
    let folder = tempfile::tempdir().unwrap();
    let files = files(folder.path(), &whole.input);
    let torn = format!("{{\"id\":\"batch_req_{}", "x".repeat(20_000));
    for (output, errors) in [("", torn.as_str()), (torn.as_str(), ""), (torn.as_str(), torn.as_str())] {
        std::fs::write(&files.output, [&whole.output, output.as_bytes()].concat()).unwrap();
        std::fs::write(&files.errors, [&whole.errors, errors.as_bytes()].concat()).unwrap();
        assert_eq!(finish(&files), (0, (output.len() + errors.len()) as u64));
        assert_eq!(std::fs::read(&files.output).unwrap(), whole.output);
        assert_eq!(std::fs::read(&files.errors).unwrap(), whole.errors);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    /// When the system itself goes down, each file keeps what it keeps.
    #[test]
    fn whatever_two_files_have_kept_they_end_the_same(output in 0.0_f64..=1.0, errors in 0.0_f64..=1.0) {
        let whole = whole();
        let folder = tempfile::tempdir().unwrap();
        let files = files(folder.path(), &whole.input);
        let part = |bytes: &[u8], share: f64| bytes[..(bytes.len() as f64 * share) as usize].to_vec();
        std::fs::write(&files.output, part(&whole.output, output)).unwrap();
        std::fs::write(&files.errors, part(&whole.errors, errors)).unwrap();
        finish(&files);
        prop_assert_eq!(std::fs::read(&files.output).unwrap(), whole.output);
        prop_assert_eq!(std::fs::read(&files.errors).unwrap(), whole.errors);
    }
}

#[test]
fn a_changed_input_is_refused_and_an_appended_one_goes_on() {
    let whole = whole();
    let folder = tempfile::tempdir().unwrap();
    let files = files(folder.path(), &whole.input);
    finish(&files);
    let consort_batch::Input::File(path) = &files.input else { panic!() };
    let open = || Batch::open(&files, Start::Resume, Rules::model(1 << 20));
    let lines: Vec<&str> = whole.input.split_inclusive('\n').collect();
    let without = |index: usize| [&lines[..index], &lines[index + 1..]].concat().concat();
    let changed = whole.input.replacen("\"n\":2", "\"n\":3", 1);
    for (input, line) in [
        (changed.clone(), "3"),
        (without(4), "5"),
        (lines[..5].concat(), "the end"),
        (String::new(), "the end"),
        (format!("{}{}", lines[1], whole.input), "1"),
    ] {
        std::fs::write(path, input).unwrap();
        let error = open().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidConfig);
        let named: HashMap<_, _> = error.context().collect();
        assert_eq!(named["input line"], line, "{error}");
        assert!(named["output"].contains("out.jsonl, line "), "{error}");
        assert_eq!(std::fs::read(&files.output).unwrap(), whole.output, "nothing is touched");
        assert_eq!(std::fs::read(&files.errors).unwrap(), whole.errors, "nothing is touched");
    }
    // Blank lines say nothing, and more requests are more requests.
    std::fs::write(path, format!("\n\n{}{}", whole.input, line("new", &json!({})))).unwrap();
    let batch = open().unwrap();
    assert_eq!((batch.is_done(), batch.before().succeeded + batch.before().failed), (false, 18));
    drop(batch);
    // A name that was answered by an earlier run is taken.
    std::fs::write(path, format!("{}{}", whole.input, line("r4", &json!({})))).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let target = here(|request| async move { Ok(echo(&request)) });
    let (_, figures) = runtime.block_on(run(&files, target, &settings(3))).unwrap();
    assert_eq!((figures.failures["duplicate_custom_id"], figures.succeeded), (1, 0));
    std::fs::write(path, changed).unwrap();
    let batch = Batch::open(&files, Start::Anew, Rules::model(1 << 20)).unwrap();
    assert_eq!(batch.before(), &consort_batch::Before::default());
    assert_eq!(std::fs::metadata(&files.output).unwrap().len(), 0);
    assert_eq!(std::fs::metadata(&files.errors).unwrap().len(), 0);
}

#[test]
fn what_is_no_output_is_never_touched() {
    let folder = tempfile::tempdir().unwrap();
    let files = files(folder.path(), &mixed(3));
    let rules = Rules::model(1 << 20);
    for other in ["dear diary", "dear diary\n", "{\"id\":\"chatcmpl-1\",\"response\":null}\n", "\0\0\0\0", "[]\n"] {
        for path in [&files.output, &files.errors] {
            std::fs::write(path, other).unwrap();
            for start in [Start::Resume, Start::Anew] {
                let error = Batch::open(&files, start, rules).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{other:?} {start:?}");
                assert_eq!(std::fs::read_to_string(path).unwrap(), other);
            }
            std::fs::remove_file(path).unwrap();
        }
    }
    let consort_batch::Input::File(input) = files.input.clone() else { panic!() };
    for (output, errors) in [(&input, &files.errors), (&files.output, &input), (&files.output, &files.output)] {
        let same = consort_batch::Files { output: output.clone(), errors: errors.clone(), ..files.clone() };
        assert_eq!(Batch::open(&same, Start::Resume, rules).unwrap_err().kind(), ErrorKind::InvalidConfig);
    }
    assert_eq!(std::fs::read_to_string(&input).unwrap(), mixed(3));
    // Two runs at once would write into each other.
    let first = Batch::open(&files, Start::Resume, rules).unwrap();
    assert_eq!(Batch::open(&files, Start::Resume, rules).unwrap_err().kind(), ErrorKind::Overloaded);
    drop(first);
    Batch::open(&files, Start::Resume, rules).unwrap();
}

#[tokio::test]
async fn who_asks_to_stop_finds_what_is_finished_written_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let input: String = (0..50).map(|index| line(&format!("r{index}"), &json!({ "n": index }))).collect();
    let files = files(folder.path(), &input);
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let stop = Arc::new(Mutex::new(Some(stop)));
    let target = here(move |request| {
        let stop = Arc::clone(&stop);
        async move {
            if request.number == 20 {
                drop(stop.lock().unwrap().take());
            }
            // One never ends: it must not keep the run.
            if request.number == 18 {
                std::future::pending::<()>().await;
            }
            Ok(echo(&request))
        }
    });
    let stopped = async { drop(stopped.await) };
    let (end, figures) = run_until(&files, target, &settings(8), stopped).await.unwrap();
    assert!(matches!(end, End::Stopped), "{end:?}");
    let written = ids(&files.output).len();
    assert!(written <= 17 && figures.succeeded as usize == written, "{written}");
    // The reader's thread has let go of nothing that the next run needs.
    let (end, figures) = run(&files, here(|request| async move { Ok(echo(&request)) }), &settings(8)).await.unwrap();
    assert!(matches!(end, End::Complete));
    assert_eq!((figures.before.succeeded as usize, figures.done()), (written, 50));
    assert_eq!(ids(&files.output), (0..50).map(|index| format!("r{index}")).collect::<Vec<_>>());
}

#[tokio::test]
async fn the_first_failure_ends_a_run_that_is_to_fail_fast() {
    let folder = tempfile::tempdir().unwrap();
    let files = files(folder.path(), &mixed(18));
    let settings = RunSettings { at_failure: AtFailure::Stop, ..settings(8) };
    let echoing = || here(|request| async move { Ok(echo(&request)) });
    let (end, figures) = run(&files, echoing(), &settings).await.unwrap();
    assert!(matches!(end, End::Failed));
    assert_eq!(
        (ids(&files.output), ids(&files.errors)),
        (vec!["r0".into(), "r1".into(), "r2".into()], vec!["r3".into()])
    );
    assert_eq!((figures.succeeded, figures.failed()), (3, 1));
    let (end, figures) = run(&files, echoing(), &settings).await.unwrap();
    assert!(matches!(end, End::Failed));
    assert_eq!(
        (figures.before.failed, figures.succeeded, figures.failed()),
        (1, 1, 2),
        "it goes on behind the failure"
    );
}

#[tokio::test]
async fn what_is_too_much_at_once_waits_and_what_never_fits_fails() {
    let folder = tempfile::tempdir().unwrap();
    let mut input: String = (0..30).map(|index| line(&format!("r{index}"), &json!({ "n": index }))).collect();
    input.push_str(&line("never", &json!({ "never": true })));
    let files = files(folder.path(), &input);
    let busy = Arc::new(AtomicUsize::new(0));
    let target = here(move |request| {
        let busy = Arc::clone(&busy);
        async move {
            let overloaded = || {
                Ok(Answer { status: 429, body: b"{\"error\":{\"code\":\"overloaded\"}}".to_vec(), ..Answer::default() })
            };
            // Two at once, and one of them takes its time.
            if request.body.starts_with(b"{\"never") {
                return overloaded();
            }
            if busy.fetch_add(1, Ordering::Relaxed) >= 2 {
                busy.fetch_sub(1, Ordering::Relaxed);
                return overloaded();
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
            busy.fetch_sub(1, Ordering::Relaxed);
            Ok(echo(&request))
        }
    });
    let (end, figures) = run(&files, target, &settings(12)).await.unwrap();
    assert!(matches!(end, End::Complete), "{end:?}");
    assert_eq!((figures.succeeded, ids(&files.errors)), (30, vec!["never".to_owned()]));
    assert!(figures.waits >= 10 && figures.retries == 0, "{figures:?}");
    assert_eq!(figures.failures["overloaded"], 1);
}

#[tokio::test]
async fn a_request_that_fails_for_a_time_is_asked_again_and_one_that_fails_for_good_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let input: String = (0..20).map(|index| line(&format!("r{index}"), &json!({ "n": index }))).collect();
    let files = files(folder.path(), &input);
    let times = Arc::new(Mutex::new(HashMap::<u64, u32>::new()));
    let asked = Arc::clone(&times);
    let reply = move |request: consort_batch::Request| {
        let count = {
            let mut times = times.lock().unwrap();
            let count = times.entry(request.number).or_default();
            *count += 1;
            *count
        };
        async move {
            let status = |status| Ok(Answer { status, body: b"{}".to_vec(), ..Answer::default() });
            match request.number {
                // The third time goes well.
                2 if count < 3 => status(503),
                4 if count < 3 => {
                    Err(Fault { kind: FaultKind::Unreachable, code: "connection_error", message: "reset".into() })
                }
                // These never do.
                6 => status(500),
                8 => Err(Fault { kind: FaultKind::Late, code: "timeout", message: "late".into() }),
                // And here asking again is of no use.
                10 => status(404),
                12 => Err(Fault { kind: FaultKind::Permanent, code: "answer_too_large", message: "large".into() }),
                _ => Ok(echo(&request)),
            }
        }
    };
    let target = Arc::new(common::Fake { place: Place::There, reply });
    let (end, figures) = run(&files, target, &settings(4)).await.unwrap();
    assert!(matches!(end, End::Complete), "{end:?}");
    assert_eq!(ids(&files.errors), ["r5", "r7", "r9", "r11"]);
    let errors = read(&files.errors);
    assert_eq!((&errors[0]["response"]["status_code"], &errors[1]["error"]["code"]), (&json!(500), &json!("timeout")));
    let times = asked.lock().unwrap();
    assert_eq!([2, 4, 6, 8, 10, 12, 1].map(|number| times[&number]), [3, 3, 4, 4, 1, 1, 1]);
    assert_eq!(figures.retries, 2 + 2 + 3 + 3);
}

#[tokio::test]
async fn a_server_that_answers_nobody_costs_no_request() {
    let folder = tempfile::tempdir().unwrap();
    let input: String = (0..40).map(|index| line(&format!("r{index}"), &json!({ "n": index }))).collect();
    let files = files(folder.path(), &input);
    let there = |status_after_ten: u16, budget: Option<u64>| {
        let settings = settings(4);
        let settings = RunSettings { retry: consort_batch::RetryPolicy { budget, ..settings.retry }, ..settings };
        let target = Arc::new(common::Fake {
            place: Place::There,
            reply: move |request: consort_batch::Request| async move {
                let status = if request.number > 10 { status_after_ten } else { 200 };
                Ok(if status == 200 { echo(&request) } else { Answer { status, ..Answer::default() } })
            },
        });
        (target, settings)
    };
    for (status, kind) in [(503, ErrorKind::Remote), (401, ErrorKind::InvalidConfig)] {
        let (target, settings) = there(status, None);
        let (end, figures) = run(&files, target, &settings).await.unwrap();
        let End::Halted(error) = end else { panic!("{end:?}") };
        assert_eq!(error.kind(), kind);
        assert!(error.message().contains("goes on from there"), "{error}");
        assert_eq!((figures.done(), figures.failed(), ids(&files.output).len()), (10, 0, 10));
        assert!(!files.errors.exists());
    }
    // A budget of retries ends a run that would fail slowly.
    let (target, settings) = there(500, Some(2));
    let (end, figures) = run(&files, target, &settings).await.unwrap();
    assert!(matches!(end, End::Halted(_)));
    assert_eq!((figures.retries, figures.failed()), (2, 0));
    let (target, settings) = there(200, None);
    let (end, figures) = run(&files, target, &settings).await.unwrap();
    assert!(matches!(end, End::Complete));
    assert_eq!((figures.before.succeeded, figures.succeeded, ids(&files.output).len()), (10, 30, 40));
}
