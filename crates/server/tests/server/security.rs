//! docs/SECURITY.md is held to the sources.

use std::fs;
use std::path::Path;

/// What stands between backticks.
fn quoted(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

#[test]
fn every_line_of_the_threat_model_has_its_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let text = fs::read_to_string(root.join("docs/SECURITY.md")).unwrap();
    let rows = text.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| threat"));
    let mut count = 0;
    for row in rows {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").collect();
        let [_, _, tests] = cells[..] else { panic!("not three cells: {row}") };
        let (mut source, mut named) = (String::new(), 0);
        for word in quoted(tests) {
            if word.ends_with(".rs") {
                source = fs::read_to_string(root.join(word)).unwrap_or_else(|error| panic!("{word}: {error}"));
                continue;
            }
            // It is there, and it is run.
            let at = source.find(&format!("fn {word}(")).unwrap_or_else(|| panic!("no test `{word}`: {row}"));
            let before = source[..at].trim_end().trim_end_matches("async").trim_end();
            let is_test = before.ends_with("#[test]") || before.ends_with("#[tokio::test]") || before.ends_with(")]");
            // Within `proptest!`, comments may stand between.
            assert!(is_test || source.contains("proptest!"), "`{word}` is no test");
            named += 1;
        }
        assert!(named > 0, "no test: {row}");
        count += 1;
    }
    assert!(count >= 30, "{count} lines");
}
