//! What the API and the configuration may say, and what holds without a word.

use farside_control::source::{GroupSettings, VolumeAdd};

use super::*;
use crate::config::default_group;

/// Who may use the API had a file of the configuration served, wrote a hook to it through the tap, and reloaded: that ran as root.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_ours_or_of_the_system_is_no_volume() {
    let running = Running::new().await;
    let daemon = running.daemon.clone();
    let drop_ins = locked(&daemon.config).drop_ins();
    std::fs::create_dir_all(&drop_ins).expect("made");
    let link = running.at.join("link");
    std::os::unix::fs::symlink(&drop_ins, &link).expect("link");
    for folder in [drop_ins, link, daemon.state.path().to_owned()] {
        std::fs::write(folder.join("x.toml"), vec![b'\n'; 1 << 20]).expect("written");
        let add = VolumeAdd { backing: folder.join("x.toml"), ..running.add("late") };
        let error = daemon.add_volume(&add).await.expect_err("refused");
        assert!(error.message.contains("is no volume's data"), "{error:?}");
        std::fs::remove_file(folder.join("x.toml")).expect("removed");
    }
    assert!(daemon.find("late").is_err());
    daemon.stop_groups().await;
}

/// The gateway was told to keep less, and gave points up at once, because a drop-in was away for the moment of a reload.
#[tokio::test(flavor = "multi_thread")]
async fn a_reload_without_a_groups_file_lets_the_gateway_keep_no_less() {
    let running = Running::new().await;
    let daemon = running.daemon.clone();
    let name = default_group();
    let year = GroupSettings { span_ms: Some(365 * 86_400_000), keep: Some(50), ..GroupSettings::default() };
    daemon.set_group(name.as_str(), &year).await.expect("taken");
    let said = locked(&daemon.config).group(&name);
    let path = locked(&daemon.config).drop_ins().join(format!("group-{name}.toml"));
    let text = std::fs::read_to_string(&path).expect("written");
    let holds = async || daemon.status().await.reasons.iter().filter(|reason| reason.message.contains("holds on")).count();
    for away in [None, Some("")] {
        match away {
            Some(blank) => std::fs::write(&path, blank).expect("written"),
            None => std::fs::remove_file(&path).expect("removed"),
        }
        let reloaded = daemon.reload().await.expect("valid");
        assert_eq!((locked(&daemon.config).group(&name), reloaded.changed.len()), (said.clone(), 0), "{reloaded:?}");
        assert_eq!(holds().await, 2);
        std::fs::write(&path, &text).expect("written");
        daemon.reload().await.expect("valid");
        assert_eq!(holds().await, 0);
    }
    std::fs::remove_file(&path).expect("removed");
    daemon.reload().await.expect("valid");
    let day = GroupSettings { span_ms: Some(86_400_000), ..GroupSettings::default() };
    daemon.set_group(name.as_str(), &day).await.expect("taken");
    daemon.reload().await.expect("valid");
    let now = || locked(&daemon.config).group(&name);
    assert_eq!((now().span().as_secs(), now().keep, holds().await), (86_400, 50, 0), "the fifty points are written down again");

    // Nor by what is said of something else, while nobody has noticed that the file is away.
    daemon.set_group(name.as_str(), &year).await.expect("taken");
    std::fs::remove_file(&path).expect("removed");
    let rate = GroupSettings { keep: Some(60), ..GroupSettings::default() };
    daemon.set_group(name.as_str(), &rate).await.expect("taken");
    daemon.reload().await.expect("valid");
    assert_eq!((now().span().as_secs(), now().keep, holds().await), (365 * 86_400, 60, 0));

    // What another file said gives way to the same words as before.
    daemon.set_group(name.as_str(), &day).await.expect("taken");
    let other = path.with_file_name("x.toml");
    std::fs::write(&other, format!("[[group]]\nname = \"{name}\"\nspan = \"30d\"\n")).expect("written");
    daemon.reload().await.expect("valid");
    std::fs::remove_file(&other).expect("removed");
    daemon.reload().await.expect("valid");
    assert_eq!((now().span().as_secs(), holds().await), (30 * 86_400, 1));
    daemon.set_group(name.as_str(), &GroupSettings { keep: Some(60), ..GroupSettings::default() }).await.expect("taken");
    assert_eq!((now().span().as_secs(), holds().await), (30 * 86_400, 1));
    daemon.set_group(name.as_str(), &day).await.expect("taken");
    assert_eq!((now().span().as_secs(), holds().await), (86_400, 0));
    daemon.reload().await.expect("valid");
    assert_eq!((now().span().as_secs(), holds().await), (86_400, 0));
    // And a later file goes on winning.
    std::fs::write(&other, format!("[[group]]\nname = \"{name}\"\nspan = \"30d\"\n")).expect("written");
    let settings = daemon.set_group(name.as_str(), &day).await.expect("taken");
    assert_eq!((settings.span_ms, now().span().as_secs()), (Some(30 * 86_400_000), 30 * 86_400));
    daemon.stop_groups().await;
}

/// A host that was to stand in for another after its volume had begun was told to call itself what it was called.
#[tokio::test(flavor = "multi_thread")]
async fn a_volume_from_before_its_host_stood_in_for_another_is_said_to_be_that() {
    let dir = Running::new().await.end().await;
    std::fs::create_dir_all(dir.path().join("farsided.d")).expect("made");
    std::fs::write(dir.path().join("farsided.d/group.toml"), "[[group]]\nname = \"default\"\nstand_in_for = \"web9\"\n")
        .expect("written");
    let Err((_dir, why)) = Running::begin(dir, "name='h1'", Backings::of).await else { panic!("it is served as another's") };
    assert!(why.contains("from before it was to stand in for web9") && why.contains("take `stand_in_for` out"), "{why}");
}
