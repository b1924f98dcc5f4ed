//! `farside doctor`: what this host lacks to protect its volumes, and what a running farsided says of them; on a machine that is only a gateway,
//! the same of that.

use std::path::Path;
use std::time::Duration;

use farside_control::client::Daemon;
use farside_control::receiver::ReceiverStatus;
use farside_control::source::VolumeStatus;
use farside_control::{Client, Reason, Severity};
use farside_daemon::config::Config;
use farside_daemon::doctor::{Finding, Verdict, examine, examine_gateway};

use crate::args::Global;
use crate::failure::{Exit, Failure, OrFail as _};
use crate::hosts::Hosts;
use crate::print::{self, Look};
use crate::status;

/// Where farsided has its configuration, unless it was told otherwise.
const HOST_CONFIG: &str = "/etc/farside/farsided.toml";
/// A daemon that hangs should be said to.
const PATIENCE: Duration = Duration::from_secs(5);

/// Looks, mends if told to, asks the daemon if it runs, and shows it all.
pub(crate) fn run(global: &Global, named: Option<&Path>, fix: bool) -> Result<(), Failure> {
    let config = named.unwrap_or(Path::new(HOST_CONFIG));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().or_fail("cannot start")?;
    let default = Path::new(farside_receiver::config::DEFAULT_PATH);
    let gateway = named.unwrap_or(default);
    let hosts = Hosts::new(global);
    let asked = hosts.named().map(|socket| runtime.block_on(identified(socket)));
    let is_gateway = match &asked {
        Some(Ok(client)) => client.daemon() == Daemon::Receiver,
        _ => {
            let is_gateway = is_gateway_only(Path::new(HOST_CONFIG), default, Daemon::Receiver.socket());
            named.map_or(is_gateway, |named| is_of_gateway(named, is_gateway))
        }
    };
    let mut findings = if is_gateway { examine_gateway(fix) } else { examine(config, fix) };
    findings.extend(match asked {
        Some(Err(error)) => {
            let finding = Finding::new("--socket", Verdict::Missing, error);
            vec![finding.mend("systemctl status farsided farside-receiver")]
        }
        _ if is_gateway => runtime.block_on(of_gateway(gateway, hosts.named())),
        _ => runtime.block_on(of_daemon(hosts.source_of(config), config)),
    });
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

/// Who listens there, or why that is not known.
async fn identified(socket: &Path) -> Result<Client, String> {
    let identified = tokio::time::timeout(PATIENCE, Client::identify(socket)).await;
    let late = |_| format!("who listens on {} does not answer within {} s", socket.display(), PATIENCE.as_secs());
    identified.map_err(late)?.map_err(|error| error.to_string())
}

/// Whether there is a farside-receiver here, and no farsided.
fn is_gateway_only(config: &Path, gateway: &Path, socket: &Path) -> bool {
    !config.exists() && (gateway.exists() || socket.exists())
}

/// Whether a file that somebody named is of farside-receiver. `is_gateway`: so is this machine.
fn is_of_gateway(named: &Path, is_gateway: bool) -> bool {
    Config::load(named).is_err() && (is_gateway || farside_receiver::Config::load(named).is_ok())
}

/// What a gateway has: its configuration, and what a running farside-receiver says of itself.
async fn of_gateway(config: &Path, named: Option<&Path>) -> Vec<Finding> {
    let loaded = farside_receiver::Config::load(config);
    let mut valid = vec![of_configuration(config, &loaded)];
    valid.extend(loaded.as_ref().ok().and_then(|config| of_place(farside_receiver::check_place(config))));
    let loaded = loaded.map(|config| config.api_socket);
    let Some(socket) = named.map(Path::to_owned).or(loaded.ok()) else { return valid };
    let found = match Client::new(Daemon::Receiver, &socket).with_timeout(PATIENCE).receiver_status().await {
        Ok(status) => of_receiver(&status),
        Err(error) => {
            let finding = Finding::new("farside-receiver", Verdict::Missing, format!("it does not answer: {error}"));
            vec![finding.mend("systemctl start farside-receiver")]
        }
    };
    [valid, found].concat()
}

/// What is wrong with where the store is.
fn of_place<E: std::fmt::Display>(looked: Result<bool, E>) -> Option<Finding> {
    let found = |verdict, words| Finding::new("store's file system", verdict, words);
    match looked {
        Ok(true) => None,
        Ok(false) => {
            let silent = found(Verdict::Missing, "it does not answer: nothing is known of it".to_owned());
            Some(silent.mend("see to the file system of `store` (of a bucket: `staging`) in receiver.toml"))
        }
        // One that runs may be of a version that took it.
        Err(error) => {
            let refused = found(Verdict::Missing, error.to_string());
            Some(refused.mend("move it before farside-receiver is started again, then set `store` or `staging` in receiver.toml"))
        }
    }
}

/// What came of loading it. The default file may be absent.
fn of_configuration<T>(config: &Path, loaded: &Result<T, farside_receiver::config::ConfigError>) -> Finding {
    match loaded {
        Ok(_) if !config.exists() => {
            let found = format!("there is no {}: what drop-ins say and else the defaults hold", config.display());
            Finding::new("configuration", Verdict::Good, found)
        }
        Ok(_) => Finding::new("configuration", Verdict::Good, format!("{} is valid", config.display())),
        Err(error) => {
            let finding = Finding::new("configuration", Verdict::Missing, error.to_string());
            finding.mend(format!("farside-receiver run --check --config {}", config.display()))
        }
    }
}

/// A gateway that runs: what is wrong with it itself. What is wrong with its sources is `farside status`'s.
fn of_receiver(status: &ReceiverStatus) -> Vec<Finding> {
    let store = status.store.path.display();
    let runs = Finding::new("farside-receiver", Verdict::Good, format!("it listens on {}", status.listen));
    let store = match status.store.writable {
        true => Finding::new("store", Verdict::Good, format!("{store} takes what comes")),
        false => Finding::new("store", Verdict::Missing, format!("{store} takes nothing now")).mend("farside status"),
    };
    let of_reason = |reason: &Reason| {
        let verdict = if reason.severity == Severity::Error { Verdict::Missing } else { Verdict::Warning };
        Finding::new("farside-receiver", verdict, reason.message.clone()).mend(format!("farside explain {}", reason.code))
    };
    let wrong = status.reasons.iter().filter(|reason| reason.severity >= Severity::Warning).map(of_reason);
    [runs, store].into_iter().chain(wrong).collect()
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
    fn a_gateway_that_is_no_host_is_looked_at_as_one() {
        let dir = tempfile::tempdir().expect("temp dir");
        let [host, gateway, socket] = ["farsided.toml", "receiver.toml", "receiver.sock"].map(|name| dir.path().join(name));
        let is_gateway = || is_gateway_only(&host, &gateway, &socket);
        assert!(!is_gateway(), "neither: it is to be a host");
        std::fs::write(&gateway, "").expect("written");
        assert!(is_gateway());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        std::fs::write(&gateway, format!("[receiver]\napi_socket = '{}'\n", socket.display())).expect("written");
        let findings = runtime.block_on(of_gateway(&gateway, None));
        let [valid, away] = &findings[..] else { panic!("{findings:?}") };
        assert_eq!((valid.verdict, away.verdict), (Verdict::Good, Verdict::Missing));
        assert_eq!(away.mend.as_deref(), Some("systemctl start farside-receiver"));
        // Who names a file means that one.
        assert!(is_of_gateway(&gateway, false) && is_of_gateway(&gateway, true));
        assert_eq!(of_configuration(&gateway, &Ok(())).found, format!("{} is valid", gateway.display()));
        let absent = of_configuration(&dir.path().join("none.toml"), &Ok(()));
        assert!(absent.verdict == Verdict::Good && absent.found.contains("there is no ") && !absent.found.contains("valid"));
        assert!(of_place(Ok::<_, String>(true)).is_none());
        let silent = of_place(Ok::<_, String>(false)).expect("it is said");
        assert!(silent.verdict == Verdict::Missing && silent.found.contains("does not answer"));
        // Who names a socket means that one.
        let named = dir.path().join("other.sock");
        let findings = runtime.block_on(of_gateway(&gateway, Some(&named)));
        assert!(findings[1].found.contains("other.sock"), "{findings:?}");
        std::fs::write(&host, "[source]\n").expect("written");
        assert!(!is_of_gateway(&host, true), "farsided's");
        assert!(!is_gateway(), "a host is looked at, whatever else it is");
        let mut status = ReceiverStatus::default();
        status.store.writable = true;
        assert!(of_receiver(&status).iter().all(|finding| finding.verdict == Verdict::Good));
        status.reasons.push(Reason::new(Severity::Error, farside_control::Code::StoreFailed, "away", ""));
        status.store.writable = false;
        let verdicts: Vec<Verdict> = of_receiver(&status).iter().map(|finding| finding.verdict).collect();
        assert_eq!(verdicts, [Verdict::Good, Verdict::Missing, Verdict::Missing]);
    }

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
