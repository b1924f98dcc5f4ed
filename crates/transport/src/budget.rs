//! A pool of bytes that several connections share.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError};

/// A bounded number of bytes that may be held at once, for example of parts received and not yet landed. First come, first
/// served: a large request is not starved by small ones.
#[derive(Clone, Debug)]
pub struct Budget {
    pool: Arc<Semaphore>,
    total_bytes: u32,
}

/// Bytes taken out of a [`Budget`]; they go back when this is dropped.
#[derive(Debug)]
#[must_use = "dropping a grant gives its bytes back"]
pub struct Grant {
    permit: OwnedSemaphorePermit,
}

impl Budget {
    /// What a receiver takes when nothing else is configured: 64 MiB.
    pub const DEFAULT_BYTES: u32 = 64 << 20;

    /// A full pool of `total_bytes`.
    pub fn new(total_bytes: u32) -> Self {
        Self { pool: Arc::new(Semaphore::new(total_bytes as usize)), total_bytes }
    }

    /// The size of the pool.
    pub fn total_bytes(&self) -> u32 {
        self.total_bytes
    }

    /// Bytes that nobody holds now.
    pub fn free_bytes(&self) -> u32 {
        u32::try_from(self.pool.available_permits()).unwrap_or(u32::MAX)
    }

    /// Waits until `bytes` are free and takes them. More than the pool holds is cut to the pool, so that it ends.
    ///
    /// # Panics
    /// Never: the pool is not closed while a handle to it exists.
    pub async fn take(&self, bytes: u32) -> Grant {
        let permit = Arc::clone(&self.pool).acquire_many_owned(bytes.min(self.total_bytes)).await;
        Grant { permit: permit.expect("the pool is never closed") }
    }

    /// Takes `bytes` if they are free now and nobody waits.
    ///
    /// # Panics
    /// Never: the pool is not closed while a handle to it exists.
    pub fn try_take(&self, bytes: u32) -> Option<Grant> {
        match Arc::clone(&self.pool).try_acquire_many_owned(bytes) {
            Ok(permit) => Some(Grant { permit }),
            Err(TryAcquireError::NoPermits) => None,
            Err(TryAcquireError::Closed) => unreachable!("the pool is never closed"),
        }
    }
}

impl Grant {
    /// How many bytes this holds.
    pub fn bytes(&self) -> u32 {
        u32::try_from(self.permit.num_permits()).unwrap_or(u32::MAX)
    }

    /// Gives back all but `bytes`.
    pub fn shrink_to(&mut self, bytes: u32) {
        let surplus = self.bytes().saturating_sub(bytes);
        drop(self.permit.split(surplus as usize));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_taken_comes_back() {
        let budget = Budget::new(100);
        let mut first = budget.take(60).await;
        assert_eq!(budget.free_bytes(), 40);
        assert!(budget.try_take(41).is_none());
        first.shrink_to(10);
        assert_eq!((first.bytes(), budget.free_bytes()), (10, 90));
        let all = tokio::spawn({
            let budget = budget.clone();
            async move { budget.take(u32::MAX).await.bytes() }
        });
        drop(first);
        assert_eq!(all.await.expect("joined"), 100);
        assert_eq!(budget.free_bytes(), 100);
    }
}
