//! Bounded reads below a root directory.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

/// Nothing that is read here is longer. (/proc/cpuinfo of a 512-thread server has about 900 KiB.)
const MAX_FILE_BYTES: u64 = 4 << 20;
/// No folder that is listed here has more entries.
const MAX_ENTRIES: usize = 8192;

/// Where `/proc`, `/sys`, `/dev`, ... are, and whether they are this machine's.
#[derive(Debug, Clone)]
pub(crate) struct Root {
    base: PathBuf,
    /// Whether the running processor and operating system may be asked too.
    pub(crate) live: bool,
}

impl Root {
    pub(crate) fn machine() -> Self {
        Self { base: PathBuf::from("/"), live: true }
    }

    pub(crate) fn tree(base: &Path) -> Self {
        Self { base: base.to_path_buf(), live: false }
    }

    fn path(&self, relative: &str) -> PathBuf {
        self.base.join(relative.trim_start_matches('/'))
    }

    /// The text of a file, with what is not UTF-8 replaced. `None` when it cannot be read.
    pub(crate) fn read(&self, relative: &str) -> Option<String> {
        let mut bytes = Vec::new();
        File::open(self.path(relative)).ok()?.take(MAX_FILE_BYTES).read_to_end(&mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The trimmed text of a small file. `None` when there is none or it is empty.
    pub(crate) fn line(&self, relative: &str) -> Option<String> {
        self.read(relative).map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
    }

    /// A number in a small file.
    pub(crate) fn number(&self, relative: &str) -> Option<u64> {
        self.line(relative)?.parse().ok()
    }

    /// The names in a folder, sorted; none when it cannot be read.
    pub(crate) fn names(&self, relative: &str) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.path(relative)) else { return Vec::new() };
        let mut names: Vec<String> =
            entries.take(MAX_ENTRIES).filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
        names.sort();
        names
    }

    pub(crate) fn exists(&self, relative: &str) -> bool {
        self.path(relative).exists()
    }
}

/// The value of `key` in lines of `key: value` (or with tabs before the colon, as /proc has them).
pub(crate) fn field<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        (name.trim() == key).then(|| value.trim())
    })
}

/// The numbers of a list such as `0-3,8,10-11`. A malformed part is left out.
pub(crate) fn number_list(text: &str) -> Vec<u32> {
    let mut numbers = Vec::new();
    for part in text.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.trim().parse::<u32>(), last.trim().parse::<u32>()) {
            numbers.extend((first..=last).take(MAX_ENTRIES.saturating_sub(numbers.len())));
        }
    }
    numbers.sort_unstable();
    numbers.dedup();
    numbers
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn lists_of_processors_are_read_and_bounded() {
        assert_eq!(number_list("0-3,8,10-11\n"), [0, 1, 2, 3, 8, 10, 11]);
        assert_eq!(number_list(""), [0u32; 0]);
        assert_eq!(number_list("x,5,3-,7-6"), [5]);
        assert_eq!(number_list("0-4294967295").len(), MAX_ENTRIES);
    }

    #[test]
    fn fields_are_found_whatever_the_padding() {
        let text = "processor\t: 0\nmodel name\t: A B: C\nempty:\n";
        assert_eq!(field(text, "model name"), Some("A B: C"));
        assert_eq!(field(text, "empty"), Some(""));
        assert_eq!(field(text, "absent"), None);
    }
}
