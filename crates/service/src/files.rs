//! Configuration files: `NAME.toml` and the drop-ins `NAME.d/*.toml` beside it, in the order of their names.
//!
//! Invariant: whatever is wrong in them is said with file, line and key. What the keys mean is their daemon's business.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use toml::de::{DeTable, DeValue};

/// Why files cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// One cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why not. Part of the sentence, so not a source of its own.
        source: SystemError,
    },
    /// One is not TOML, or a key is unknown, of the wrong type, or out of range.
    #[error("{}, line {line}: {what}", path.display())]
    Content {
        /// Which.
        path: PathBuf,
        /// Where, from 1.
        line: usize,
        /// Which key, and what is wrong with it.
        what: String,
    },
}

/// What the system said; displays like it, and has no further cause.
#[derive(Debug)]
pub struct SystemError(io::Error);

impl SystemError {
    /// Its kind.
    pub fn kind(&self) -> io::ErrorKind {
        self.0.kind()
    }
}

impl std::fmt::Display for SystemError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for SystemError {}

/// One file, with what it says.
#[derive(Debug)]
pub struct File<T> {
    /// Which.
    pub path: PathBuf,
    /// What it says.
    pub content: T,
    text: String,
}

/// A step on the way to a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step<'a> {
    /// The key of a table.
    Key(&'a str),
    /// An element of an array.
    At(usize),
}

impl<T> File<T> {
    /// Whether there is not a word in it, as there is none in a file that is being written anew.
    pub fn is_blank(&self) -> bool {
        self.text.trim().is_empty()
    }

    /// What is wrong with the value at `way`, with its line.
    pub fn fault(&self, way: &[Step<'_>], what: impl Into<String>) -> FileError {
        let line = self.span(way).map_or(1, |span| line_of(&self.text, span.start));
        let key = way.iter().rev().find_map(|step| match step {
            Step::Key(key) => Some(*key),
            Step::At(_) => None,
        });
        let what = key.map_or_else(|| "".into(), |key| format!("{key}: ")) + &what.into();
        FileError::Content { path: self.path.clone(), line, what }
    }

    /// Where the value at `way` is, or the last thing on the way to it that there is.
    fn span(&self, way: &[Step<'_>]) -> Option<Range<usize>> {
        let table = DeTable::parse(&self.text).ok()?;
        let mut here = None;
        let mut table = Some(table.get_ref());
        let mut array: Option<&toml::de::DeArray<'_>> = None;
        for step in way {
            let value = match step {
                Step::Key(key) => table.and_then(|table| table.get(*key)),
                Step::At(index) => array.and_then(|array| array.get(*index)),
            };
            let Some(value) = value else { break };
            here = Some(value.span());
            (table, array) = match value.get_ref() {
                DeValue::Table(table) => (Some(table), None),
                DeValue::Array(array) => (None, Some(array)),
                _ => (None, None),
            };
        }
        here
    }
}

/// The folder of the drop-ins: `farsided.toml` has `farsided.d`.
pub fn drop_ins(main: &Path) -> PathBuf {
    main.with_extension("d")
}

/// Reads the main file (which `may_be_missing`) and its drop-ins.
///
/// # Errors
/// [`FileError`]; then none of them counts.
pub fn read<T: DeserializeOwned>(main: &Path, may_be_missing: bool) -> Result<Vec<File<T>>, FileError> {
    let mut files = Vec::new();
    match read_one(main) {
        Err(FileError::Io { source, .. }) if may_be_missing && source.kind() == io::ErrorKind::NotFound => {}
        file => files.push(file?),
    }
    let folder = drop_ins(main);
    let failed = |source| FileError::Io { path: folder.clone(), source: SystemError(source) };
    let mut paths: Vec<PathBuf> = match std::fs::read_dir(&folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        entries => entries.and_then(|entries| entries.map(|entry| entry.map(|entry| entry.path())).collect()).map_err(failed)?,
    };
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    paths.sort();
    for path in paths {
        files.push(read_one(&path)?);
    }
    Ok(files)
}

fn read_one<T: DeserializeOwned>(path: &Path) -> Result<File<T>, FileError> {
    let text =
        std::fs::read_to_string(path).map_err(|source| FileError::Io { path: path.to_owned(), source: SystemError(source) })?;
    let content = toml::from_str(&text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        let key = key_of(&text, at);
        let what = error.message().replace('\n', "; ");
        // Serde names an unknown key itself.
        let what = if key.is_empty() || what.contains(&format!("`{key}`")) { what } else { format!("{key}: {what}") };
        FileError::Content { path: path.to_owned(), line: line_of(&text, at), what }
    })?;
    Ok(File { path: path.to_owned(), content, text })
}

fn line_of(text: &str, at: usize) -> usize {
    1 + text.as_bytes()[..at.min(text.len())].iter().filter(|byte| **byte == b'\n').count()
}

/// The key on the line of `at`, if there is one.
fn key_of(text: &str, at: usize) -> &str {
    let line = text.lines().nth(line_of(text, at) - 1).unwrap_or_default();
    line.split_once('=').map_or("", |(key, _)| key.trim())
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Default, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Text {
        limits: Limits,
        volume: Vec<Limits>,
    }

    #[derive(Debug, Default, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Limits {
        depth: u32,
    }

    fn load(main: &str, more: &[(&str, &str)]) -> Result<Vec<File<Text>>, String> {
        let dir = tempfile::tempdir().expect("temp dir");
        std::fs::write(dir.path().join("x.toml"), main).expect("written");
        std::fs::create_dir(dir.path().join("x.d")).expect("made");
        for (name, text) in more {
            std::fs::write(dir.path().join("x.d").join(name), text).expect("written");
        }
        // The folder's name is not the test's business.
        read(&dir.path().join("x.toml"), false).map_err(|e| e.to_string().replace(&format!("{}/", dir.path().display()), ""))
    }

    #[test]
    fn every_fault_has_file_line_and_key() {
        for (main, more, words) in [
            ("\n[limits]\ndpth = 1", "", "x.toml, line 3: unknown field `dpth`, expected `depth`"),
            ("[limits]\n\ndepth = \"deep\"", "", "x.toml, line 3: depth: invalid type: string \"deep\", expected u32"),
            ("[limits]\ndepth = 1\n[limits]", "", "x.toml, line 3: "),
            ("", "[limits]\ndepth = -1", "x.d/a.toml, line 2: depth: invalid value: integer `-1`, expected u32"),
            ("", "[limits", "x.d/a.toml, line 1: "),
        ] {
            let error = load(main, &[("a.toml", more)]).expect_err(main);
            assert!(error.starts_with(words), "{error}");
        }
    }

    #[test]
    fn a_value_that_cannot_work_is_found_again() {
        let files = load("[limits]\ndepth = 1\n\n[[volume]]\n[[volume]]\ndepth = 7", &[]).expect("valid");
        let fault = |way: &[Step<'_>]| {
            let text = files[0].fault(way, "no").to_string();
            text.split_once(", ").expect("a path").1.to_owned()
        };
        use Step::{At, Key};
        assert_eq!(fault(&[Key("limits"), Key("depth")]), "line 2: depth: no");
        assert_eq!(fault(&[Key("volume"), At(1), Key("depth")]), "line 6: depth: no");
        assert_eq!(fault(&[Key("volume"), At(1), Key("missing")]), "line 5: missing: no");
    }

    #[test]
    fn only_toml_files_of_its_own_folder_are_read_in_order() {
        let files = load("", &[("b.toml", "[limits]\ndepth = 2"), ("a.toml", "[limits]\ndepth = 1"), ("c.bak", "[[[")]);
        let depths: Vec<u32> = files.expect("valid").iter().map(|file| file.content.limits.depth).collect();
        assert_eq!(depths, [0, 1, 2]);
        assert!(read::<Text>(Path::new("/nowhere/x.toml"), true).expect("missing is allowed").is_empty());
        assert!(read::<Text>(Path::new("/nowhere/x.toml"), false).expect_err("missing").to_string().contains("/nowhere/x.toml"));
    }
}
