//! `farside man DIR`: the manual pages that units and help refer to, made of the definitions that parse the command lines.

use std::path::Path;

use clap::{Command, CommandFactory as _};

use crate::args::Cli;
use crate::failure::{Failure, OrFail as _};

/// Writes `farside.1` with a page for each command, `farsided.8` and `farside-receiver.8`.
pub(crate) fn write(dir: &Path) -> Result<(), Failure> {
    std::fs::create_dir_all(dir).or_fail(format!("cannot make {}", dir.display()))?;
    pages(dir, Cli::command(), "farside", "1")?;
    pages(dir, farside_daemon::command_line(), "farsided", "8")?;
    pages(dir, farside_receiver::command_line(), "farside-receiver", "8")
}

fn pages(dir: &Path, command: Command, name: &'static str, section: &str) -> Result<(), Failure> {
    let mut command = command.name(name).disable_help_subcommand(true);
    command.build();
    one(dir, &command, name, section)?;
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        let name = format!("{name}-{}", sub.get_name());
        one(dir, sub, &name, section)?;
        for leaf in sub.get_subcommands().filter(|sub| !sub.is_hide_set()) {
            one(dir, leaf, &format!("{name}-{}", leaf.get_name()), section)?;
        }
    }
    Ok(())
}

fn one(dir: &Path, command: &Command, name: &str, section: &str) -> Result<(), Failure> {
    let mut text = Vec::new();
    let man = clap_mangen::Man::new(command.clone()).title(name.to_uppercase()).section(section).manual("Farside");
    man.render(&mut text).or_fail("a page cannot be made")?;
    let path = dir.join(format!("{name}.{section}"));
    std::fs::write(&path, text).or_fail(format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_that_a_unit_names_is_made() {
        let dir = tempfile::tempdir().expect("temp dir");
        write(dir.path()).expect("written");
        for unit in [
            include_str!("../../daemon/systemd/farsided.service"),
            include_str!("../../receiver/systemd/farside-receiver.service"),
            include_str!("../systemd/farside-follow@.service"),
        ] {
            let named: Vec<&str> = unit.split("man:").skip(1).filter_map(|rest| rest.split_whitespace().next()).collect();
            assert!(!named.is_empty(), "the unit names its manual");
            for page in named {
                let file = page.replace('(', ".").replace(')', "");
                let text = std::fs::read_to_string(dir.path().join(&file)).unwrap_or_else(|e| panic!("{file}: {e}"));
                assert!(text.contains("Exit codes"), "{file}: {text}");
            }
        }
        assert!(dir.path().join("farside-volume-add.1").exists());
    }
}
