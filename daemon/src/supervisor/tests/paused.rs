//! A volume that a person paused stays so until he says otherwise.

use super::*;

/// A failback takes all away that a volume has of its history. Given up, it had the volume replicate again.
#[tokio::test(flavor = "multi_thread")]
async fn a_failback_that_is_given_up_leaves_a_volume_paused() {
    let running = Running::new().await;
    let (daemon, data) = (running.daemon.clone(), running.data.clone());
    daemon.ask(&data, |id, reply| Ask::Pause(id, true, reply)).await.expect("paused");
    let config = locked(&daemon.config).volumes[&data].clone();
    let folder = daemon.volume_path(&config);
    crate::failback::hold_as_it_is(&daemon, &config);
    daemon.take_up_failbacks().expect("read");
    daemon.take_for_failback(&config.group, &data).await.expect("nobody uses it");
    assert!(!daemon.volumes.is_served(&data) && !folder.exists(), "nothing of its history is kept");
    daemon.go_on_with_failbacks();
    let abort = FailbackRequest { group: "default".to_owned(), step: FailbackStep::Abort, ..FailbackRequest::default() };
    daemon.failback(&abort).await.expect("it is given up");
    let over = async {
        while !daemon.show_failbacks().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, over).await.expect("it is served");
    assert_eq!(daemon.volume_state(&config.group, &data).await, Some(VolumeState::Paused));
    daemon.stop_groups().await;
}
