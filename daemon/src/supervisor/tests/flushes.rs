//! What a daemon knows of flushes that failed in this boot.

use super::*;
use crate::flush_note::FlushNote;

/// The note of a failed flush went with the volume, as its map did: one that was added again over the same disk was called clean in the same boot, while the
/// drive's cache may still have shown what it had lost.
#[tokio::test(flavor = "multi_thread")]
async fn t14_a_volume_that_is_removed_and_added_again_in_one_boot_remembers_that_a_flush_failed() {
    for has_failed in [false, true] {
        let running = Running::new().await;
        let (run, id) = (running.at.join("run"), running.id);
        let dir = running.end().await;
        if has_failed {
            FlushNote::open(&run, id).expect("a note").failed();
        }
        let running = Running::begin(dir, "name='h1'", Backings::of).await.expect("data is served");
        let text = running.take_data_out();
        Running::remove(&running.daemon, "data").await;
        assert_eq!(running.daemon.volumes.served(), 0);
        std::fs::write(running.at.join("farsided.toml"), text).expect("written");
        running.daemon.reload().await.expect("read");
        let served = async {
            while running.daemon.volumes.served() == 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, served).await.expect("it is served");
        assert_eq!(FlushNote::open(&run, id).expect("a note").any(), has_failed);
        let stopped = if has_failed { Stopped::Unclean } else { Stopped::Clean };
        assert_eq!(running.daemon.stop_groups().await, stopped, "failed: {has_failed}");
    }
}
