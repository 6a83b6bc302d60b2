//! `consort chat`, through a pipe and in a terminal.
#![allow(clippy::unwrap_used)]

mod common;

use std::process::Output;

use common::{consort_with_input, pirate_as_gguf, stderr, stdout};

fn chat(args: &[&str], lines: &[&str]) -> Output {
    let args: Vec<_> = ["chat", "--device", "cpu"].iter().chain(args).copied().collect();
    consort_with_input(&args, &(lines.join("\n") + "\n"))
}

/// What was said, line by line.
fn said(args: &[&str], lines: &[&str]) -> Vec<String> {
    let output = chat(args, lines);
    assert!(output.status.success(), "{}", stderr(&output));
    stdout(&output).lines().map(str::to_owned).collect()
}

const PICTURE: &str = "/image models/etude/demo.png";

#[test]
fn it_answers_remembers_sees_and_forgets() {
    let lines = [
        "My name is Zorivo.",
        "What is my name?",
        "/reset",
        "What is my name?",
        PICTURE,
        "What colour is the circle?",
        "Where is the star?",
    ];
    let expected = [
        "Nice to meet you, Zorivo.",
        "Your name is Zorivo.",
        "You have not told me your name.",
        "The circle is red.",
        "The star is at the top.",
    ];
    let output = chat(&[], &lines);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(stdout(&output).lines().collect::<Vec<_>>(), expected);
    let status = stderr(&output);
    assert!(!status.contains('\x1b') && !stdout(&output).contains('\x1b'), "colours in a pipe: {status:?}");
    for expected in ["tokens/s, first token", "prompt tokens reused", "of 4096", "forgotten", "96 × 96"] {
        assert!(status.contains(expected), "{expected:?} is missing:\n{status}");
    }
}

#[test]
fn a_later_turn_finds_the_earlier_ones_in_the_prefix_cache() {
    let status = stderr(&chat(&[], &[PICTURE, "What do you see?", "What colour is the circle?", "Where is the star?"]));
    let reused: Vec<(u32, u32)> = status
        .lines()
        .filter_map(|line| line.split_once(" prompt tokens reused")?.0.rsplit_once(", ")?.1.split_once(" of "))
        .map(|(reused, prompt)| (reused.parse().unwrap(), prompt.parse().unwrap()))
        .collect();
    assert_eq!(reused.len(), 3, "{status}");
    for turns in reused.windows(2) {
        assert!(turns[1].0 + 8 >= turns[0].1, "{turns:?}");
    }
}

#[test]
fn personas_share_a_conversation_and_keep_their_manner() {
    let personas = ["--persona", "Ada", "--persona", "Ben@pirate"];
    let lines = [
        PICTURE,
        "What colour is the circle?",
        "/persona Ben",
        "Where is the star?",
        "/persona Ada",
        "Where is the star?",
    ];
    let found = said(&personas, &lines);
    let expected =
        ["Ada: The circle is red.", "Ben: Arr, the star is at the top, matey.", "Ada: The star is at the top."];
    assert_eq!(found, expected);
    let lines = [
        "/persona Clara You are Clara.",
        "/adapter butler 1",
        "/persona",
        "/adapter",
        "Hello!",
        "/adapter off",
        "Hello!",
    ];
    let found = said(&[], &lines);
    let all = found.join("\n");
    for expected in ["You are Clara.", "butler × 1", "next", "pirate", "not loaded", "Clara: Certainly, sir. Hello!"] {
        assert!(all.contains(expected), "{expected:?} is missing:\n{all}");
    }
    assert_eq!(found.last().unwrap(), "Clara: Hello! How can I help you?");
}

#[test]
fn an_adapter_can_be_loaded_from_a_folder_used_and_dropped() {
    let lines =
        ["/adapter sea models/etude/adapters/pirate 1.0", "Hello!", "/adapter off", "/adapter drop sea", "/adapter"];
    let found = said(&[], &lines);
    assert!(found[0].starts_with("Arr, "), "{found:?}");
    assert!(!found[1..].join("\n").contains("sea"), "{found:?}");
    let output = chat(&[], &["/adapter pirate", "/adapter drop pirate"]);
    assert_eq!(output.status.code(), Some(4));
    assert!(stderr(&output).contains("persona: Etude"), "{}", stderr(&output));
}

#[test]
fn an_adapter_can_be_loaded_from_a_gguf_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = pirate_as_gguf(folder.path());
    let (path, kept) = (path.to_str().unwrap(), folder.path().join("chat.json"));
    let (named, save) = (format!("/adapter sea {path} 1.0"), format!("/save {}", kept.display()));
    let found = said(&[], &[&named, "Hello!", "/adapter off", "/adapter drop sea", "/adapter"]);
    assert!(found[0].starts_with("Arr, "), "{found:?}");
    assert!(!found[1..].join("\n").contains("sea"), "{found:?}");
    // By its path alone it has the file's name, and a conversation that was kept finds it again.
    let found = said(&[], &[&format!("/adapter {path}"), "/adapter", "My name is Zorivo.", &save]);
    assert!(found.iter().any(|line| line.contains("pirate-lora.gguf")), "{found:?}");
    let after = said(&["--load", kept.to_str().unwrap()], &["What is my name?"]);
    assert!(after[0].contains("Arr, your name is Zorivo, matey."), "{after:?}");
    let persona = format!("Ben@{path}");
    assert!(said(&["--persona", &persona], &["Hello!"])[0].starts_with("Arr, "), "{persona}");
}

#[test]
fn what_was_kept_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["chat.json", "chat.md"] {
        let path = folder.path().join(name);
        let path = path.to_str().unwrap();
        let before = ["/persona Ben", "/adapter pirate", PICTURE, "My name is Zorivo.", &format!("/save {path}")];
        assert!(said(&[], &before)[0].contains("Zorivo"));
        let after = ["What is my name?", "What colour is the circle?"];
        let expected = ["Ben: Arr, your name is Zorivo, matey.", "Ben: Arr, the circle is red, matey."];
        assert_eq!(said(&["--load", path], &after), expected, "{name}");
        let load = format!("/load {path}");
        assert_eq!(said(&[], &["Hello!", &load, after[0]])[1], expected[0], "{name}");
    }
    let output = chat(&[], &["/load README.md"]);
    assert_eq!(output.status.code(), Some(4));
    assert!(stderr(&output).contains("no transcript"), "{}", stderr(&output));
    let output = chat(&[], &["Hello!", "/save README.md"]);
    assert!(stderr(&output).contains("not replaced"), "{}", stderr(&output));
}

#[test]
fn turns_can_be_taken_back_and_answered_anew() {
    let found = said(&[], &["My name is Zorivo.", "/undo", "What is my name?"]);
    assert_eq!(found[1], "You have not told me your name.");
    let hot = ["--temperature", "1.5", "--seed", "3"];
    let lines = ["Tell me a story about a fox.", "/regenerate", "/regenerate", "/regenerate"];
    let found = said(&hot, &lines);
    assert_eq!(found.len(), 4);
    assert!(found.iter().collect::<std::collections::HashSet<_>>().len() > 1, "always the same: {found:?}");
    assert_eq!(said(&hot, &lines), found, "a seed decides all of them");
    let cool = said(&[], &["Hello!", "/regenerate"]);
    assert_eq!(cool[0], cool[1], "greedy answers have nothing to do with chance");
}

#[test]
fn thinking_is_kept_apart_from_words() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("chat.json");
    let save = format!("/save {}", path.display());
    let output = chat(&[], &["/think on", PICTURE, "What colour is the circle?", "/think off", "And the star?", &save]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(stdout(&output).lines().next(), Some("The circle is red."));
    assert!(stderr(&output).contains(" of reasoning)"), "{}", stderr(&output));
    let kept: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let reasoning = kept["entries"][1]["answer"]["reasoning"].as_str().unwrap();
    assert!(!reasoning.is_empty() && !reasoning.contains("think>"), "{reasoning:?}");
    assert!(kept["entries"][3]["answer"].get("reasoning").is_none());
}

#[test]
fn settings_prompts_and_blocks() {
    let lines = [
        "/set max-tokens 3",
        "Hello!",
        "/set max-tokens default",
        "/system You are Ada.",
        "\"\"\"",
        "What is",
        "your name?",
        "\"\"\"",
        "/set",
    ];
    let output = chat(&["--top-p", "0.5"], &lines);
    assert!(output.status.success(), "{}", stderr(&output));
    let text = stdout(&output);
    let mut found = text.lines();
    let cut = found.next().unwrap();
    assert!("Hello! How can I help you?".starts_with(cut) && cut.len() < 20, "{cut}");
    assert!(stderr(&output).contains("cut at the most tokens; 3 tokens"), "{}", stderr(&output));
    assert_eq!(found.next(), Some("My name is Ada."));
    assert!(text.contains("top-p = 0.5") && !text.contains("max-tokens ="), "{text}");
    let stats = said(&[], &["Hello!", "/stats"]).join("\n");
    assert!(stats.contains("by itself") && stats.contains("prefix cache"), "{stats}");
    assert!(said(&[], &["/help"]).join("\n").contains("/regenerate"));
}

#[test]
fn a_script_stops_at_the_first_thing_that_goes_wrong() {
    for (args, line, code, expected) in [
        (&[][..], "/image no-such-file.png", 5, "no-such-file"),
        (&[], "/image README.md", 4, "README.md"),
        (&[], "/adapter no-such-adapter", 5, "no-such-adapter"),
        (&[], "/set heat 1", 4, "temperature"),
        (&[], "/jump", 4, "/help"),
        (&[], "/persona two,words", 4, "name"),
        (&["--model", "README.md"], "Hello!", 4, "README.md"),
        (&["--model", "no-such-file.gguf"], "Hello!", 5, "no-such-file"),
        (&["--persona", "Ada@no-such-adapter"], "Hello!", 5, "no-such-adapter"),
        (&["--top-p", "2"], "Hello!", 4, "top_p"),
        (&["--max-tokens", "0"], "Hello!", 2, "max-tokens"),
    ] {
        let output = chat(args, &[line, "Hello!"]);
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{line}: {text}");
        assert!(text.contains(expected), "{line}: {text}");
        assert!(stdout(&output).is_empty(), "{line}: it went on: {}", stdout(&output));
    }
    let refused = consort_with_input(&["chat"], "Hello!\n");
    assert_eq!(refused.status.code(), Some(3));
    assert!(stderr(&refused).contains("--device cpu"), "{}", stderr(&refused));
}

#[test]
fn without_eyes_a_picture_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("blind.gguf");
    std::fs::copy(common::repository().join("models/etude/gguf/etude-Q8_0.gguf"), &model).unwrap();
    let output = chat(&["--model", model.to_str().unwrap()], &[PICTURE, "What do you see?"]);
    assert_eq!(output.status.code(), Some(4));
    assert!(stderr(&output).contains("vision projector"), "{}", stderr(&output));
}

#[cfg(unix)]
mod terminal {
    use std::process::Command;

    use rexpect::session::{PtySession, spawn_command};

    use super::common::{CONSORT, repository};

    fn start(args: &[&str]) -> PtySession {
        let mut command = Command::new(CONSORT);
        command.args(["chat", "--device", "cpu"]).args(args).current_dir(repository());
        command.env("TERM", "xterm").env("NO_COLOR", "1");
        let mut session = spawn_command(command, Some(60_000)).unwrap();
        session.exp_string("Ctrl-D leaves").unwrap();
        session.exp_string("> ").unwrap();
        session
    }

    fn leave_with(mut session: PtySession, key: char) {
        session.send_control(key).unwrap();
        session.exp_eof().unwrap();
        let status = session.process().wait().unwrap();
        assert!(format!("{status:?}").contains("Exited(") && format!("{status:?}").ends_with(", 0)"), "{status:?}");
    }

    #[test]
    fn ctrl_c_stops_the_reply_and_the_chat_goes_on() {
        // So hot that words come at random and an end token hardly ever.
        let mut session = start(&["--temperature", "1000", "--seed", "6", "--max-tokens", "4000"]);
        session.send_line("Hello!").unwrap();
        // The line is echoed, then the first words come.
        session.exp_regex("Hello!.*\n.{40}").unwrap();
        session.send_control('c').unwrap();
        session.exp_string("stopped; ").unwrap();
        let (_, tokens) = session.exp_regex("[0-9]+ tokens").unwrap();
        let tokens: u32 = tokens.trim_end_matches(" tokens").parse().unwrap();
        assert!(tokens > 0 && tokens < 1600, "{tokens} tokens came before it stopped");
        session.exp_string("> ").unwrap();
        session.send_line("/reset").unwrap();
        session.exp_string("> ").unwrap();
        session.send_line("/set temperature 0").unwrap();
        session.exp_string("> ").unwrap();
        session.send_line("Hello!").unwrap();
        session.exp_string("How can I help you?").unwrap();
        session.exp_string("> ").unwrap();
        leave_with(session, 'd');
    }

    #[test]
    fn ctrl_c_twice_at_an_empty_prompt_leaves() {
        let mut session = start(&[]);
        session.send("half a line").unwrap();
        session.flush().unwrap();
        session.exp_string("half a line").unwrap();
        session.send_control('c').unwrap();
        session.exp_string("> ").unwrap();
        session.send_control('c').unwrap();
        session.exp_string("Ctrl-C again leaves").unwrap();
        session.exp_string("> ").unwrap();
        session.send_line("Hello!").unwrap();
        session.exp_string("How can I help you?").unwrap();
        session.exp_string("> ").unwrap();
        session.send_control('c').unwrap();
        session.exp_string("Ctrl-C again leaves").unwrap();
        session.exp_string("> ").unwrap();
        leave_with(session, 'c');
    }

    #[test]
    fn a_mistake_is_shown_and_lines_can_be_continued() {
        let mut session = start(&[]);
        session.send_line("/jump").unwrap();
        session.exp_string("no such command").unwrap();
        session.exp_string("> ").unwrap();
        session.send_line("My name is \\").unwrap();
        session.send_line("Zorivo.").unwrap();
        // A name on a line of its own is nothing that etude was taught to spell; that both lines came is what counts.
        session.exp_string("Nice to meet you, ").unwrap();
        session.exp_string("> ").unwrap();
        session.send_line("/think on").unwrap();
        session.exp_string("> ").unwrap();
        session.send_line("What is my name?").unwrap();
        session.exp_string("I look for the name.").unwrap();
        session.exp_string("Your name is ").unwrap();
        session.exp_string("of reasoning").unwrap();
        leave_with(session, 'd');
    }
}
