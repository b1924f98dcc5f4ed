//! `farside doctor`: what this host lacks to protect its volumes, and what a running farsided says of them.

use std::path::Path;
use std::time::Duration;

use farside_control::source::VolumeStatus;
use farside_control::{Client, Severity};
use farside_daemon::config::Config;
use farside_daemon::doctor::{Finding, Verdict, examine};

use crate::args::Global;
use crate::failure::{Exit, Failure, OrFail as _};
use crate::hosts::Hosts;
use crate::print::{self, Look};
use crate::status;

/// A daemon that hangs should be said to.
const PATIENCE: Duration = Duration::from_secs(5);

/// Looks, mends if told to, asks the daemon if it runs, and shows it all.
pub(crate) fn run(global: &Global, config: &Path, fix: bool) -> Result<(), Failure> {
    let mut findings = examine(config, fix);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().or_fail("cannot start")?;
    findings.extend(runtime.block_on(of_daemon(Hosts::new(global).source_of(config), config)));
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

/// What farsided says of what it serves; nothing where there is none, which was said already.
async fn of_daemon(client: Client, config: &Path) -> Vec<Finding> {
    match client.with_timeout(PATIENCE).source_status().await {
        Ok(status) => status.groups.iter().flat_map(|group| &group.volumes).map(of_volume).collect(),
        Err(_) if !Config::load(config).is_ok_and(|config| config.source.api_socket.exists()) => Vec::new(),
        Err(error) => {
            let found = format!("it does not answer: {error}");
            vec![Finding::new("farsided", Verdict::Warning, found).mend("systemctl status farsided")]
        }
    }
}

/// A volume that is served: its state, where its host finds it, and what is wrong with it.
fn of_volume(volume: &VolumeStatus) -> Finding {
    let path = volume.tap.data_path.as_ref().map_or_else(String::new, |path| format!(", {} ({})", path.name, path.why));
    let mut found = format!("{}; its host uses {}{path}", status::state(&volume.state), volume.tap.address);
    volume.reasons.iter().for_each(|reason| found += &format!("; {}", reason.message));
    let verdict = match volume.reasons.iter().map(|reason| reason.severity).max() {
        None | Some(Severity::Info) => Verdict::Good,
        Some(Severity::Warning) => Verdict::Warning,
        Some(Severity::Error) => Verdict::Missing,
    };
    let finding = Finding::new(format!("service of {}", volume.name), verdict, found);
    if verdict == Verdict::Good { finding } else { finding.mend(format!("farside volume show {}", volume.name)) }
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
