//! `farside doctor`: what this host lacks to protect its volumes.

use std::path::Path;

use farside_control::Severity;
use farside_daemon::doctor::{Finding, Verdict, examine};

use crate::args::Global;
use crate::failure::{Exit, Failure};
use crate::print::{self, Look};

/// Looks, mends if told to, and shows it.
pub(crate) fn run(global: &Global, config: &Path, fix: bool) -> Result<(), Failure> {
    let findings = examine(config, fix);
    let missing = findings.iter().filter(|finding| finding.verdict == Verdict::Missing).count();
    match global.json {
        true => print::json(&findings)?,
        false => print::out(&findings.iter().map(|finding| show(finding, Look::of_stdout())).collect::<String>())?,
    }
    match missing {
        0 => Ok(()),
        _ => Err(Failure::new(Exit::Attention, format!("{missing} of {} are not as they must be", findings.len()), "")),
    }
}

fn show(finding: &Finding, look: Look) -> String {
    let (severity, mark) = match finding.verdict {
        Verdict::Good => (None, "ok     "),
        Verdict::Warning => (Some(Severity::Warning), "warning"),
        Verdict::Missing => (Some(Severity::Error), "missing"),
    };
    let mend = finding.mend.as_ref().map_or_else(String::new, |command| format!("         {command}\n"));
    format!("{}  {}: {}\n{mend}", look.paint(severity, mark), finding.subject, finding.found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_shown_with_its_command() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("none.toml");
        std::fs::write(&path, "x = 1\n").expect("written");
        let findings = examine(&path, false);
        let wrong = findings.iter().find(|f| f.subject == "configuration").expect("looked at");
        let shown = show(wrong, Look::PLAIN);
        assert!(shown.starts_with("missing  configuration: ") && shown.ends_with(&format!("--config {}\n", path.display())));
    }
}
