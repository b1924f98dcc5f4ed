//! A disk that goes away under a volume that is served.

use farside_blockio::Presence;

use super::*;

/// It went unnoticed: nothing was counted any more as written past the tap, and the gateway heard that all was well. A disk without a cache is flushed with
/// success even then, and the volume was called clean.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_gone_is_said_and_its_volume_is_not_clean() {
    let running = Running::new().await;
    let (daemon, late) = (running.daemon.clone(), running.late());
    let shim = farside_shim::Group::new(&farside_shim::Limits::DEFAULT, farside_region::Geometry::GRANULE_BYTES);
    let folder = running.folder("late");
    let mut opened = Served::open(late.clone(), folder.clone(), &shim, &daemon.around, &running.inbox).expect("opened");
    // As it is in sysfs.
    let disk = running.at.join("259:7");
    std::fs::create_dir(&disk).expect("made");
    opened.0.presence = Presence::at(disk.clone());
    let (reply, answer) = oneshot::channel();
    running.inbox.send(Note::Opened(Box::new(opened), reply));
    answer.await.expect("answered").expect("added");
    let said = async || {
        let volumes = daemon.status().await.groups.remove(0).volumes;
        let reasons = volumes.into_iter().find(|volume| volume.name == late.name.as_str()).expect("served").reasons;
        reasons.into_iter().find(|reason| reason.code == Code::NotServed.word())
    };
    assert_eq!(said().await, None);
    std::fs::remove_dir(&disk).expect("empty");
    let reason = tokio::time::timeout(PATIENCE, async {
        loop {
            match said().await {
                Some(reason) => break reason,
                None => tokio::task::yield_now().await,
            }
        }
    });
    let reason = reason.await.expect("it is said");
    assert!(reason.message.contains("late is gone") && reason.severity == Severity::Error, "{reason:?}");
    // It is set aside, so that the group goes on without it; whatever comes back in its place is compared.
    let volumes = daemon.status().await.groups.remove(0).volumes;
    let is_lost =
        |name: &str| volumes.iter().find(|volume| volume.name == name).expect("served").state == VolumeState::TrackingLost;
    assert!(is_lost(late.name.as_str()) && !is_lost("data"), "{volumes:?}");
    assert!(Mark::TrackingLost.is_set(&folder).expect("read"));
    assert_eq!(daemon.stop_groups().await, Stopped::Unclean);
    assert!(!is_clean(&folder) && is_clean(&running.folder("data")));
}
