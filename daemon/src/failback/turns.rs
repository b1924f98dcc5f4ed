//! Whose turn it is: steps of one group's failback or cutover come one after the other, and hold up no other group's.
//!
//! Invariant: nobody waits without end for whoever is at a disk, a gateway or a helper that does not answer: he is told so, and nothing was changed.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use farside_control::{ApiError, ErrorCode};
use tokio::sync::{Mutex as AsyncMutex, MutexGuard, OwnedMutexGuard};

use crate::locked;

/// How long somebody else's step is waited for, or whoever writes to the disks.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// One step at a time, of each group.
#[derive(Debug, Default)]
pub(super) struct Turns(Mutex<BTreeMap<String, Arc<AsyncMutex<()>>>>);

impl Turns {
    /// This group's, as long as what comes is held.
    ///
    /// # Errors
    /// When somebody else's step takes longer than that.
    pub(super) async fn of(&self, group: &str, patience: Duration) -> Result<OwnedMutexGuard<()>, ApiError> {
        let turn = {
            let mut all = locked(&self.0);
            // Those that nobody has, or waits for.
            all.retain(|_, turn| Arc::strong_count(turn) > 1);
            all.entry(group.to_owned()).or_default().clone()
        };
        let message = || format!("another step of group {group} is at work, and takes long");
        tokio::time::timeout(patience, turn.lock_owned()).await.map_err(|_| busy(message()))
    }
}

/// Has whoever looks at `interrupt` stop as soon as he can, and takes his turn from him.
///
/// # Errors
/// When he does not stop: a disk may not answer.
pub(super) async fn interrupted<'t, T>(
    turn: &'t AsyncMutex<T>,
    interrupt: &AtomicU64,
    (group, patience): (&str, Duration),
) -> Result<MutexGuard<'t, T>, ApiError> {
    let _asked = Asked::new(interrupt);
    let message = || format!("what is being written to the disks of group {group} does not stop: one of them may not answer");
    tokio::time::timeout(patience, turn.lock()).await.map_err(|_| busy(message()))
}

/// Somebody waits, until this is dropped: also if he gives that up.
struct Asked<'i>(&'i AtomicU64);

impl<'i> Asked<'i> {
    fn new(interrupt: &'i AtomicU64) -> Self {
        interrupt.fetch_add(1, Ordering::SeqCst);
        Self(interrupt)
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn busy(message: String) -> ApiError {
    ApiError::new(
        ErrorCode::Busy,
        message,
        "nothing was changed: say the same again later; `farside failback --list` shows how far it is",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(20);

    /// A disk of one group never comes back: its own steps are told so, those of others do not wait.
    #[tokio::test]
    async fn a_group_whose_disk_hangs_holds_up_no_other() {
        let turns = Turns::default();
        let (disks, interrupt) = (AsyncMutex::new(()), AtomicU64::new(0));
        let _hangs = disks.lock().await;
        let hung = turns.of("a", SHORT).await.expect("free");
        let busy = interrupted(&disks, &interrupt, ("a", SHORT)).await.expect_err("it does not stop");
        assert!(busy.code == ErrorCode::Busy && busy.message.contains("group a does not stop"), "{busy:?}");
        assert_eq!(interrupt.load(Ordering::SeqCst), 0, "nobody waits any more");
        let busy = turns.of("a", SHORT).await.expect_err("it is taken");
        assert!(busy.code == ErrorCode::Busy && busy.message.contains("another step of group a"), "{busy:?}");
        drop(turns.of("b", SHORT).await.expect("it has nothing to do with it"));
        drop(hung);
        drop(turns.of("a", SHORT).await.expect("free again"));
        assert!(locked(&turns.0).len() <= 1, "what nobody waits for is forgotten");
    }

    #[tokio::test]
    async fn who_is_interrupted_hears_of_it_and_gives_way() {
        let (disks, interrupt) = (AsyncMutex::new(()), AtomicU64::new(0));
        let at_work = disks.lock().await;
        let gives_way = async {
            while interrupt.load(Ordering::SeqCst) == 0 {
                tokio::task::yield_now().await;
            }
            drop(at_work);
        };
        let (taken, ()) = tokio::join!(interrupted(&disks, &interrupt, ("a", PATIENCE)), gives_way);
        drop(taken.expect("it gave way"));
        assert_eq!(interrupt.load(Ordering::SeqCst), 0);
    }
}
