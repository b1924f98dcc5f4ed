//! `farside completions DIR`: what shells need to complete the command line, made of the definitions that parse it.

use std::path::Path;

use clap::CommandFactory as _;
use clap_complete::{Shell, generate_to};

use crate::args::Cli;
use crate::failure::{Failure, OrFail as _};

/// Writes `farside.bash`, `_farside` (zsh) and `farside.fish`.
pub(crate) fn write(dir: &Path) -> Result<(), Failure> {
    std::fs::create_dir_all(dir).or_fail(format!("cannot make {}", dir.display()))?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        generate_to(shell, &mut Cli::command(), "farside", dir).or_fail(format!("cannot write into {}", dir.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shell_is_told_about_the_commands() {
        let dir = tempfile::tempdir().expect("temp dir");
        write(dir.path()).expect("written");
        for file in ["farside.bash", "_farside", "farside.fish"] {
            let text = std::fs::read_to_string(dir.path().join(file)).unwrap_or_else(|e| panic!("{file}: {e}"));
            assert!(text.contains("restore") && text.contains("allow-degraded"), "{file}");
        }
    }
}
