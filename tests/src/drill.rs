//! A drill, as `farside drill start --json` opens it and says.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::{Process, Site, program};

/// One that is ready.
#[derive(Debug)]
pub struct Drill {
    /// Who serves it; it ends with him.
    pub owner: Process,
    /// What he said.
    pub said: Value,
}

impl Drill {
    /// Of a group, `HOST/GROUP`, with what drills keep in `dir`; waits until it is ready.
    ///
    /// # Panics
    /// When it does not come to be.
    pub fn start(site: &Site, group: &str, dir: &Path, more: &[&str]) -> Self {
        let mut command = program("farside");
        command.args(["drill", "start", group, "--store"]).arg(site.store()).args(more);
        Self::of(command, dir)
    }

    /// As a command says it.
    ///
    /// # Panics
    /// When it does not come to be.
    pub fn of(mut command: Command, dir: &Path) -> Self {
        command.arg("--json").arg("--dir").arg(dir);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("it starts");
        let (mut said, mut output) = (String::new(), BufReader::new(child.stdout.take().expect("piped")));
        while serde_json::from_str::<Value>(&said).is_err() {
            assert!(output.read_line(&mut said).expect("text") > 0, "it ended and said {said:?}");
        }
        Self { owner: Process::new(child, "farside drill start"), said: serde_json::from_str(&said).expect("JSON") }
    }

    /// By which it is stopped.
    ///
    /// # Panics
    /// Where none was said.
    pub fn id(&self) -> &str {
        self.said["id"].as_str().expect("an id")
    }

    /// Where a volume of it is served.
    ///
    /// # Panics
    /// Where it has no such volume.
    pub fn socket(&self, volume: &str) -> PathBuf {
        let volumes = self.said["volumes"].as_array().expect("a list");
        let device = volumes.iter().find(|device| device["volume"] == volume).expect("all of the group");
        device["socket"].as_str().expect("a path").into()
    }
}
