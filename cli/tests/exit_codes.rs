//! The program as a script sees it: exit codes, what goes to which stream, and JSON.

use std::process::{Command, Output};

fn farside(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_farside"))
        .args(args)
        .env_remove("FARSIDE_SOCKET")
        .stdin(std::process::Stdio::null())
        .output()
        .expect("it starts")
}

fn code(output: &Output) -> i32 {
    output.status.code().expect("it ends by itself")
}

#[test]
fn an_unreachable_daemon_is_three_and_says_what_to_do() {
    let output = farside(&["status", "--socket", "/nonexistent/farside.sock"]);
    assert_eq!(code(&output), 3);
    assert!(output.stdout.is_empty());
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(words.contains("/nonexistent/farside.sock") && words.contains("systemctl start"), "{words}");
}

#[test]
fn errors_are_json_where_json_was_asked_for() {
    let output = farside(&["volume", "list", "--json", "--socket", "/nonexistent/farside.sock"]);
    assert_eq!(code(&output), 3);
    let error: serde_json::Value = serde_json::from_slice(&output.stderr).expect("JSON");
    assert_eq!(error["error"]["exit_code"], 3);
    assert!(error["error"]["what_to_do"].as_str().is_some_and(|text| !text.is_empty()), "{error}");
}

#[test]
fn wrong_usage_is_json_too_where_json_was_asked_for() {
    for args in [&["--json", "status", "extra"][..], &["frobnicate", "--json"], &["restore", "--json"]] {
        let output = farside(args);
        assert_eq!(code(&output), 2, "{args:?}");
        let error: serde_json::Value = serde_json::from_slice(&output.stderr).expect("JSON");
        assert_eq!(error["error"]["exit_code"], 2);
        let words = [&error["error"]["message"], &error["error"]["what_to_do"]].map(|w| w.as_str().expect("words").to_owned());
        assert!(!words[0].starts_with("error") && words[1].starts_with("Usage: "), "{error}");
    }
    let help = farside(&["--json", "--help"]);
    assert!(code(&help) == 0 && String::from_utf8_lossy(&help.stdout).contains("Usage:"));
}

#[test]
fn a_socket_in_the_environment_is_used_and_not_called_required() {
    let with = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_farside"));
        command.args(args).env("FARSIDE_SOCKET", "/nonexistent/receiver.sock").output().expect("it starts")
    };
    let usage = with(&["restore"]);
    assert!(code(&usage) == 2 && !String::from_utf8_lossy(&usage.stderr).contains("--socket"), "{usage:?}");
    let asked = with(&["status"]);
    let words = String::from_utf8_lossy(&asked.stderr).into_owned();
    assert_eq!(code(&asked), 3);
    assert!(words.contains("/nonexistent/receiver.sock") && words.contains("systemctl start farside-receiver"), "{words}");
}

#[test]
fn nonsense_is_two() {
    for args in [
        &["restore", "data", "--point", "yesterday", "--to", "/nonexistent/x"][..],
        &["point", "show", "5"],
        &["volume", "remove", "data", "--socket", "/nonexistent/farside.sock"],
        &["unpair", "--socket", "/nonexistent/farside.sock"],
        &["point", "show", "data", "yesterday"],
        &["demo", "--size", "1KiB"],
        &["frobnicate"],
    ] {
        let output = farside(args);
        assert_eq!(code(&output), 2, "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn a_store_that_is_not_there_is_five_and_a_bucket_without_keys_is_refused() {
    let missing = farside(&["point", "list", "data", "--store", "/nonexistent/store"]);
    assert_eq!(code(&missing), 5, "{}", String::from_utf8_lossy(&missing.stderr));
    let nonsense = farside(&["store", "check", "ftp://bucket/prefix"]);
    assert_eq!(code(&nonsense), 2, "{}", String::from_utf8_lossy(&nonsense.stderr));
    let mut keyless = std::process::Command::new(env!("CARGO_BIN_EXE_farside"));
    let keyless = keyless.env_clear().env("FARSIDE_STORE_CREDENTIALS", "/nonexistent/credentials");
    let keyless = keyless.args(["store", "check", "s3://bucket/prefix"]).output().expect("runs");
    let words = String::from_utf8_lossy(&keyless.stderr);
    assert!(code(&keyless) == 4 && words.contains("/nonexistent/credentials"), "{}: {words}", code(&keyless));
}

#[test]
fn help_has_examples_and_exit_codes() {
    let help = farside(&["--help"]);
    assert_eq!(code(&help), 0);
    let text = String::from_utf8_lossy(&help.stdout);
    assert!(text.contains("Examples:") && text.contains("Exit codes:"), "{text}");
    for command in [
        &["demo"][..],
        &["pair"],
        &["unpair"],
        &["status"],
        &["reload"],
        &["metrics"],
        &["group", "set"],
        &["volume", "add"],
        &["point", "list"],
        &["point", "show"],
        &["restore"],
        &["store", "init"],
        &["store", "check"],
        &["store", "recover"],
    ] {
        let help = farside(&[command, &["--help"]].concat());
        let text = String::from_utf8_lossy(&help.stdout);
        assert!(code(&help) == 0 && text.contains("Example"), "{command:?}: {text}");
    }
}

#[test]
fn what_is_not_open_cannot_be_closed_and_a_folder_needs_a_reason() {
    let nothing = farside(&["point", "close", "/nonexistent/data.nbd"]);
    assert_eq!(code(&nothing), 5);
    assert!(String::from_utf8_lossy(&nothing.stderr).contains("farside point opened"), "{nothing:?}");
    let listed = farside(&["point", "opened", "--json"]);
    assert!(code(&listed) == 0 && serde_json::from_slice::<serde_json::Value>(&listed.stdout).is_ok_and(|all| all.is_array()));
    let folder =
        |more: &[&str]| code(&farside(&[&["point", "open", "data", "latest", "--overlay", "/nonexistent/x"], more].concat()));
    assert_eq!(folder(&[]), 2, "nothing is written or filled");
    for more in [&["--writable"][..], &["--hydrate", "x"], &["--writable", "--hydrate", "x"]] {
        let more = [more, &["--store", "/nonexistent/store"]].concat();
        assert_eq!(folder(&more), 5, "{more:?}: it is the store that is not there");
    }
}
