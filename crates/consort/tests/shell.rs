//! `consort completions` and `consort man`.
#![allow(clippy::unwrap_used)]

mod common;

use std::process::Command;

use common::{consort, succeed};

const COMMANDS: [&str; 11] =
    ["demo", "run", "chat", "tokenize", "perplexity", "kld", "inspect", "doctor", "convert", "bench", "completions"];

/// The output of a tool on this machine; `None` when it is not installed.
fn tool(program: &str, args: &[&str]) -> Option<std::process::Output> {
    match Command::new(program).args(args).output() {
        Ok(output) => Some(output),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => panic!("{program}: {error}"),
    }
}

#[test]
fn every_shell_knows_every_command() {
    let folder = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = succeed(&["completions", shell]);
        for command in COMMANDS {
            assert!(script.contains(command), "{shell} does not know {command}");
        }
        for flag in ["top-n-sigma", "against", "persona"] {
            assert!(script.contains(flag), "{shell} does not know --{flag}");
        }
        let path = folder.path().join(shell);
        std::fs::write(&path, script).unwrap();
        // Where the shell is at hand, it says whether the script is one.
        if let Some(checked) =
            tool(shell, &["-n", path.to_str().unwrap()]).filter(|_| shell != "powershell" && shell != "elvish")
        {
            assert!(checked.status.success(), "{shell}: {}", String::from_utf8_lossy(&checked.stderr));
        }
    }
    assert_eq!(consort(&["completions", "tcsh"]).status.code(), Some(2));
}

#[test]
fn there_is_a_page_for_every_command() {
    let folder = tempfile::tempdir().unwrap();
    let pages = folder.path().join("man1");
    succeed(&["man", pages.to_str().unwrap()]);
    let named = |command: &str| pages.join(format!("consort-{command}.1"));
    for command in COMMANDS {
        let page = std::fs::read_to_string(named(command)).unwrap();
        assert!(page.contains(".TH") && page.contains(&format!("consort\\-{command}")), "{command}:\n{page}");
    }
    assert!(named("bench-decode").exists());
    let main = std::fs::read_to_string(pages.join("consort.1")).unwrap();
    assert_eq!(main, succeed(&["man"]));
    for entry in std::fs::read_dir(&pages).unwrap() {
        let path = entry.unwrap().path();
        // groff names what it does not understand, and formats on.
        if let Some(formatted) = tool("groff", &["-man", "-Kutf8", "-Tutf8", "-ww", path.to_str().unwrap()]) {
            assert!(
                formatted.status.success() && formatted.stderr.is_empty(),
                "{}: {}",
                path.display(),
                String::from_utf8_lossy(&formatted.stderr)
            );
            // Its header names the page; words in the text may be overstruck to be bold.
            let name = path.file_stem().unwrap().to_str().unwrap();
            assert!(String::from_utf8_lossy(&formatted.stdout).contains(&format!("{name}(1)")), "{}", path.display());
        }
    }
}
