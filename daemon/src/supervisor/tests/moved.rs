//! A volume that a person moves to another group.

use super::*;

/// The device that it had stayed without a daemon, and whoever used it waited for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_was_moved_to_another_group_is_served_when_its_device_of_before_is_gone() {
    let running = Running::new().await;
    let before = running.folder("data");
    let dir = running.end().await;
    let at = dir.path().canonicalize().expect("there");
    // By this a device is found; here there is nobody who could end one, as where it is used.
    let token = before.join("ublk");
    std::fs::write(&token, "0000000000000007\n").expect("written");
    let (daemon, _noticed) = not_begun(&at, "name='h1'", Backings::of);
    let data: Name = "data".parse().expect("a name");
    let group: Name = "db".parse().expect("a name");
    locked(&daemon.config).volumes.get_mut(&data).expect("configured").group = group.clone();
    daemon.start_all().join_all().await;
    assert_eq!(daemon.volumes.served(), 0);
    let said = daemon.status().await.reasons.into_iter().find(|reason| reason.code == Code::NotServed.word()).expect("why");
    assert!(
        said.message.contains("it was in group default") && said.message.contains("put `group = \"default\"` back"),
        "{said:?}"
    );
    let now = daemon.state.volume_path(&group, &data);
    assert!(!now.exists(), "nothing was begun there");
    // It is gone; the volume is tried again by itself.
    std::fs::remove_file(&token).expect("there");
    let served = async {
        while daemon.volumes.served() == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, served).await.expect("it is served");
    assert_eq!(daemon.find("data").expect("served").1, group);
    end(daemon).await;
}
