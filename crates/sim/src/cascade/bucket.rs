//! The world's store as a bucket: what is in it by the names that the product gives things.

use std::collections::BTreeSet;

use bytes::Bytes;
use farside_region::{LayerKey, Slot};
use farside_store::{Created, Listed, ObjectName, Page, PartName, STORE_VERSION};

use super::process::{Answer, Ask};
use crate::shelf::group_names;
use crate::world::{SegmentKey, World};
use farside_store::GroupObject;

/// Few, so that every listing of leases has some.
const PAGE: usize = 3;
/// The store's id.
const STORE: [u8; 16] = [9; 16];

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn description(world: &World) -> String {
    let (id, names) = (world.names.group_id, group_names(world));
    let (source, group) = (names.source, names.group);
    format!(r#"{{"format":"farside group","version":{STORE_VERSION},"id":"{id}","source":"{source}","group":"{group}"}}"#)
}

/// Which segment that is.
pub(super) fn segment_of(world: &World, name: &ObjectName) -> Option<(SegmentKey, PartName)> {
    let GroupObject::Segment { volume, term, seq, number } = group_names(world).parse(name)? else { return None };
    let no = world.names.volumes.iter().position(|of| *of == volume)?;
    let layer = LayerKey { volume: world.names.ids[no], term, seq };
    Some(((no, term.0, seq.0, number), PartName { layer, number }))
}

fn find(world: &World, name: &ObjectName) -> Option<Bytes> {
    if name.as_str() == "farside-store.json" {
        return Some(format!(r#"{{"format":"farside store","version":{STORE_VERSION},"id":"{}"}}"#, hex(&STORE)).into());
    }
    let store = world.store.borrow();
    match group_names(world).parse(name)? {
        GroupObject::Description => Some(description(world).into()),
        GroupObject::Record(Slot(slot)) => store.record_object(slot).map(Bytes::copy_from_slice),
        GroupObject::Segment { .. } => store.segment(&segment_of(world, name)?.0).map(Bytes::copy_from_slice),
        _ => store.other(name.as_str()).map(|other| Bytes::from(other.bytes.clone())),
    }
}

fn list(world: &World, prefix: &ObjectName, after: Option<&ObjectName>, limit: usize) -> Page {
    let (store, names) = (world.store.borrow(), group_names(world));
    let listed = |name: &str, bytes: usize, created_ms| Listed {
        name: ObjectName::new(name).expect("it has that name"),
        bytes: bytes as u64,
        created_ms,
    };
    if prefix.as_str().starts_with(names.ledger().as_str()) {
        let from = match after.and_then(|after| names.parse(after)) {
            Some(GroupObject::Record(slot)) => slot.0 + 1,
            _ => 0,
        };
        let slots = (from..store.ledger().len() as u64).filter_map(|slot| Some((slot, store.record_object(slot)?.len())));
        let objects: Vec<Listed> =
            slots.take(limit).map(|(slot, len)| listed(names.record(Slot(slot)).as_str(), len, 0)).collect();
        return Page { more: objects.len() == limit, objects, strange: false };
    }
    let mut below = store.others_below(&format!("{prefix}/"), after.map(ObjectName::as_str));
    let more = below.len() > limit.min(PAGE);
    below.truncate(limit.min(PAGE));
    let objects = below.into_iter().map(|(name, other)| listed(name, other.bytes.len(), other.created_ms)).collect();
    Page { objects, more, strange: false }
}

/// What the service does, if it does anything.
pub(super) fn answer(world: &World, ask: &Ask) -> Answer {
    match ask {
        Ask::Get(name) => Answer::Bytes(find(world, name)),
        Ask::Range(name, offset, len) => {
            let clip = |all: Bytes| {
                let at = |byte: u64| usize::try_from(byte).unwrap_or(usize::MAX).min(all.len());
                all.slice(at(*offset)..at(offset.saturating_add(*len)))
            };
            Answer::Bytes(find(world, name).map(clip))
        }
        Ask::Size(name) => Answer::Size(find(world, name).map(|all| all.len() as u64)),
        Ask::List(prefix, after, limit) => {
            let folder = group_names(world).folder();
            Answer::Page(list(world, prefix.as_ref().unwrap_or(&folder), after.as_ref(), *limit))
        }
        Ask::Folders(prefix) => {
            let has_any = *prefix == group_names(world).ledger() && !world.store.borrow().ledger().is_empty();
            Answer::Folders(if has_any { BTreeSet::from(["0".to_owned()]) } else { BTreeSet::new() })
        }
        Ask::Create(name, content) => {
            let new = world.store.borrow_mut().create_other(name.as_str(), content.to_vec(), world.service_ms());
            Answer::Created(if new { Created::New } else { Created::AlreadyExists })
        }
        Ask::Delete(name) => {
            world.store.borrow_mut().delete_other(name.as_str());
            Answer::Go { thorough: false }
        }
        Ask::Disk | Ask::Rest(_) | Ask::Looked(_) => Answer::Go { thorough: false },
    }
}
