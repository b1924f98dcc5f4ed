//! The segments of the world's store, as the product's readers ask for them: by name, and by range. Nothing can be put here.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use farside_store::{Backend, Created, GroupNames, ObjectName, Page, PartName, Result, StoreError};

use crate::receiver::layer_key;
use crate::world::World;

/// See the head of the file.
#[derive(Debug)]
pub(crate) struct Shelf(BTreeMap<String, Bytes>);

impl Shelf {
    /// All that is there now.
    pub(crate) fn of(world: &World) -> Arc<dyn Backend> {
        let names = group_names(world);
        let store = world.store.borrow();
        let object = |name: &crate::world::SegmentKey| {
            let part = PartName { layer: layer_key(world, name), number: name.3 };
            let content = store.segment(name).expect("it was just listed").to_vec();
            (names.segment(&world.names.volumes[name.0], &part).as_str().to_owned(), Bytes::from(content))
        };
        Arc::new(Self(store.names().map(object).collect()))
    }

    fn find(&self, name: &ObjectName) -> Result<&Bytes> {
        let missing = || StoreError::NotFound { name: name.to_string(), path: Path::new(name.as_str()).to_owned() };
        self.0.get(name.as_str()).ok_or_else(missing)
    }
}

/// The group, as stores know it.
pub(crate) fn group_names(world: &World) -> GroupNames {
    GroupNames::new(world.names.source.clone(), world.names.group.clone())
}

#[async_trait]
impl Backend for Shelf {
    async fn create(&self, _: &ObjectName, _: Bytes) -> Result<Created> {
        unreachable!("readers put nothing")
    }

    async fn adopt(&self, _: &ObjectName, _: &Path) -> Result<Created> {
        unreachable!("readers put nothing")
    }

    async fn get(&self, name: &ObjectName, _: u64) -> Result<Option<Bytes>> {
        Ok(self.0.get(name.as_str()).cloned())
    }

    async fn get_range(&self, name: &ObjectName, offset: u64, len: u64) -> Result<Bytes> {
        let all = self.find(name)?;
        let at = |byte: u64| usize::try_from(byte).unwrap_or(usize::MAX).min(all.len());
        Ok(all.slice(at(offset)..at(offset.saturating_add(len))))
    }

    async fn size(&self, name: &ObjectName) -> Result<Option<u64>> {
        Ok(self.0.get(name.as_str()).map(|all| all.len() as u64))
    }

    async fn list(&self, _: Option<&ObjectName>, _: Option<&ObjectName>, _: usize) -> Result<Page> {
        Ok(Page::default())
    }

    async fn delete(&self, _: &ObjectName) -> Result<()> {
        unreachable!("readers delete nothing")
    }

    async fn sync(&self, _: &ObjectName) -> Result<()> {
        Ok(())
    }

    async fn folders(&self, _: &ObjectName) -> Result<BTreeSet<String>> {
        Ok(BTreeSet::new())
    }

    async fn put_right(&self, _: &ObjectName, _: Bytes) -> Result<()> {
        unreachable!("readers put nothing")
    }

    fn place(&self) -> String {
        "the simulator".to_owned()
    }

    /// One after the other: there is one thread.
    fn requests_at_once(&self) -> Option<usize> {
        Some(1)
    }
}
