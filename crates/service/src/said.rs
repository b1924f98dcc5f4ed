//! What a file of the configuration said once, and what gives way only to a word.
//!
//! † A file that is not there for a moment (an editor or a tool puts another in its place, a folder is not mounted yet) says nothing, and what is
//! deleted for that does not come back.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The value of a key that is in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept<T> {
    /// It.
    pub value: T,
    /// Which said it.
    pub file: PathBuf,
    /// What all files said of that key then.
    said: BTreeMap<PathBuf, T>,
}

impl<T: Clone + PartialEq> Kept<T> {
    /// What is in force now that the files say `said`, in their order, the last of which counts; and whether that is what was `before`, beside what they
    /// say. Less counts if the file that said more is there and says so, or if any file says it anew. `union`: what is enough for both.
    pub fn next(
        before: Option<Self>,
        (said, default): (Vec<(&Path, T)>, T),
        is_there: impl Fn(&Path) -> bool,
        union: impl Fn(&T, &T) -> T,
    ) -> (Option<Self>, bool) {
        let now = said.last().map(|(file, value)| (file.to_path_buf(), value.clone()));
        let said = said.into_iter().map(|(file, value)| (file.to_owned(), value)).collect();
        if let Some(before) = before {
            let value = now.as_ref().map_or(&default, |(_, value)| value);
            let falls = union(&before.value, value) != *value;
            let is_said_anew = now.as_ref().is_some_and(|(file, value)| before.said.get(file) != Some(value));
            if falls && !is_there(&before.file) && !is_said_anew {
                return (Some(before), true);
            }
        }
        (now.map(|(file, value)| Self { value, file, said }), false)
    }
}
