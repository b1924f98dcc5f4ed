//! What the command line takes, and what it does not.

use clap::CommandFactory as _;
use jiff::SignedDuration;

use super::*;

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn points_that_look_like_options_are_points() {
    let cli = Cli::try_parse_from(["farside", "restore", "data", "--point", "-5m", "--to", "/x"]).expect("valid");
    let Command::Restore(args) = cli.command else { panic!("restore") };
    assert_eq!(args.point, PointRef::Ago(SignedDuration::from_secs(300)));
    let which = |words: &[&str]| {
        let cli = Cli::try_parse_from([&["farside", "point", "show"], words].concat()).map_err(|e| e.to_string())?;
        let Command::Point(PointCommand::Show { which, .. }) = cli.command else { panic!("show") };
        which.resolve()
    };
    let hour = PointRef::Ago(SignedDuration::from_hours(1));
    let data: Address = "web/data".parse().expect("an address");
    assert_eq!(which(&["-1h", "--of", "web/data"]), Ok((hour, Some(data.clone()))));
    assert_eq!(which(&["--of", "web/data", "-1h"]), Ok((hour, Some(data.clone()))));
    assert_eq!(which(&["web/data", "-1h"]), Ok((hour, Some(data))), "as in `restore` and `list`");
    assert_eq!(which(&["latest"]), Ok((PointRef::Latest, None)));
    assert!(which(&["data", "yesterday"]).is_err() && which(&["data", "latest", "--of", "data"]).is_err());
}

#[test]
fn sizes_mean_what_storage_people_expect() {
    for (text, bytes) in [("1GiB", 1 << 30), ("512M", 512 << 20), ("4096", 4096), ("1tb", 1_000_000_000_000), ("2KiB", 2048)] {
        assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
    }
    for bad in ["", "GiB", "1.5GiB", "-1", "1xb", "99999999999TiB"] {
        assert!(parse_bytes(bad).is_err(), "{bad}");
    }
}

#[test]
fn nonsense_is_a_usage_error() {
    for line in [
        &["farside", "group", "set", "g"][..],
        &["farside", "group", "set", "g", "--epoch", "fast"],
        &["farside", "group", "set", "g", "--epoch", "1ms"],
        &["farside", "group", "set", "g", "--span", "-1h"],
        &["farside", "group", "set", "g", "--span", "9999999999999999d"],
        &["farside", "limit", "set", "--rate", "20"],
        &["farside", "limit", "set"],
        &["farside", "restore", "data", "--point", "yesterday", "--to", "/x"],
        &["farside", "point", "list", "a/b/c/d"],
        &["farside", "volume", "resync", "x", "--accept", "anything"],
    ] {
        let error = Cli::try_parse_from(line).expect_err("nonsense");
        assert_eq!(error.exit_code(), 2, "{line:?}");
    }
}
