//! All that somebody needs who has to read a point when nothing else is left of its store.

use farside_region::Slot;

use crate::backend::{ObjectName, block_on, list_all};
use crate::error::{Result, StoreError};
use crate::keys;
use crate::names::{GroupNames, GroupObject};
use crate::reader::StoreReader;
use crate::replay::parallel;
use crate::store::read_group_description;

impl StoreReader {
    /// Asks for every object by which a point is found and read: the store's and the group's descriptions, wrapped keys, all roots of checkpoints, the
    /// ledger as whoever opens the point reads it, and as who lists it, and every object in which a part of the point lies. Whoever stands
    /// between, and notes what is asked for, knows what must not be lost (`farside store lock`).
    ///
    /// # Errors
    /// [`StoreError::NoSuchPoint`]; [`StoreError::NotFound`], [`StoreError::Damaged`]: a part is missing, or shorter than it was; what the service says.
    pub fn ask_for_all_of(&self, names: &GroupNames, point: Slot) -> Result<()> {
        let backend = &**self.backend();
        read_group_description(backend, names)?;
        keys::wrappings(backend, names)?;
        let mut roots = Vec::new();
        list_all(backend, Some(&names.checkpoints()), |listed| {
            if let Some(GroupObject::Checkpoint(_)) = names.parse(&listed.name) {
                roots.push(listed.name);
            }
        })?;
        self.group_as_listed(names)?;
        let group = self.group_to_open(names)?;
        let mut objects = group.objects_of(point)?;
        objects.extend(roots.into_iter().map(|name| (name, 0)));
        let objects: Vec<(ObjectName, u64)> = objects.into_iter().collect();
        for asked in parallel(backend, &objects, |object| block_on(backend.size(&object.0)).map(|size| (object.clone(), size))) {
            let ((name, needed), size) = asked?;
            let size = size.ok_or_else(|| StoreError::NotFound { name: name.to_string(), path: backend.place().into() })?;
            if size < needed {
                let why = format!("it has {size} bytes of the {needed} that were published");
                return Err(StoreError::Damaged { path: format!("{}/{name}", backend.place()).into(), why });
            }
        }
        Ok(())
    }
}
