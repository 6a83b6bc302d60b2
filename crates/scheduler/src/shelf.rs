//! Which adapters the engine holds, and which leaves first when others need the room.

use std::collections::BTreeMap;

use consort_core::{AdapterFiles, AdapterKey, Residency};

/// Where an adapter's weights are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// In the engine.
    Here,
    /// On the way into the engine; its room is kept.
    Coming,
    /// In its files alone.
    Away,
}

/// Who needs an adapter, from the point of view of somebody who needs room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Need {
    Nobody,
    /// Somebody whose turn comes later.
    Later,
    /// The same, and no new request can name it: what replaced it may have taken its files' place.
    Replaced,
    /// Somebody who runs, or whose turn comes before.
    Now,
}

/// One generation of an adapter.
#[derive(Debug, Clone)]
pub(crate) struct Volume {
    pub(crate) files: AdapterFiles,
    pub(crate) digest: [u8; 32],
    /// What it takes in the engine.
    pub(crate) bytes: u64,
    pub(crate) residency: Residency,
    pub(crate) place: Place,
    /// Place in the order of use.
    stamp: u64,
}

/// All generations that somebody can still need.
#[derive(Debug, Default)]
pub(crate) struct Shelf {
    volumes: BTreeMap<AdapterKey, Volume>,
    stamp: u64,
    budget: u64,
    pub(crate) page_ins: u64,
    pub(crate) page_outs: u64,
}

impl Shelf {
    /// `budget`: the most bytes that may be in the engine.
    pub(crate) fn new(budget: u64) -> Self {
        Self { budget, ..Self::default() }
    }

    pub(crate) fn budget(&self) -> u64 {
        self.budget
    }

    pub(crate) fn get(&self, key: &AdapterKey) -> Option<&Volume> {
        self.volumes.get(key)
    }

    pub(crate) fn get_mut(&mut self, key: &AdapterKey) -> Option<&mut Volume> {
        self.volumes.get_mut(key)
    }

    /// Puts up an adapter that the engine has just loaded.
    pub(crate) fn insert(
        &mut self,
        key: AdapterKey,
        files: AdapterFiles,
        digest: [u8; 32],
        bytes: u64,
        residency: Residency,
    ) {
        self.stamp += 1;
        let volume = Volume { files, digest, bytes, residency, place: Place::Here, stamp: self.stamp };
        self.volumes.insert(key, volume);
    }

    pub(crate) fn remove(&mut self, key: &AdapterKey) -> Option<Volume> {
        self.volumes.remove(key)
    }

    /// Notes that adapters are used.
    pub(crate) fn touch<'k>(&mut self, keys: impl Iterator<Item = &'k AdapterKey>) {
        self.stamp += 1;
        for key in keys {
            if let Some(volume) = self.volumes.get_mut(key) {
                volume.stamp = self.stamp;
            }
        }
    }

    fn bytes_of(&self, counts: impl Fn(&AdapterKey, &Volume) -> bool) -> u64 {
        let counted = self.volumes.iter().filter(|(key, volume)| counts(key, volume));
        counted.fold(0, |sum, (_, volume)| sum.saturating_add(volume.bytes))
    }

    /// How many are in the engine, and what they and those that are coming take.
    pub(crate) fn held(&self) -> (u64, u64) {
        let here = self.volumes.values().filter(|volume| volume.place == Place::Here).count();
        (here as u64, self.bytes_of(|_, volume| volume.place != Place::Away))
    }

    /// What stays whoever comes: all that is pinned, but for `except`.
    pub(crate) fn pinned(&self, except: impl Fn(&AdapterKey) -> bool) -> u64 {
        self.bytes_of(|key, volume| volume.residency == Residency::Pinned && !except(key))
    }

    /// Who must leave so that `bytes` more fit: of those that nobody needs now the least valuable first, which is whom
    /// nobody needs later either, then the lowest priority, then the least recently used. `None`: there is not enough to leave.
    pub(crate) fn leavers(&self, bytes: u64, need: impl Fn(&AdapterKey) -> Need) -> Option<Vec<AdapterKey>> {
        let mut excess = self.held().1.saturating_add(bytes).saturating_sub(self.budget);
        if excess == 0 {
            return Some(Vec::new());
        }
        let candidate = |(key, volume): (&AdapterKey, &Volume)| {
            let Residency::Paged { priority } = volume.residency else { return None };
            let need = need(key);
            let leaves = volume.place == Place::Here && need != Need::Now;
            leaves.then(|| ((need, priority, volume.stamp), key.clone(), volume.bytes))
        };
        let mut candidates: Vec<_> = self.volumes.iter().filter_map(candidate).collect();
        candidates.sort_by_key(|(value, ..)| *value);
        let mut leavers = Vec::new();
        for (_, key, bytes) in candidates {
            if excess == 0 {
                break;
            }
            excess = excess.saturating_sub(bytes);
            leavers.push(key);
        }
        (excess == 0).then_some(leavers)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::path::PathBuf;

    use proptest::prelude::*;

    use super::*;

    fn key(id: u64) -> AdapterKey {
        AdapterKey { id: format!("a{id}").into(), generation: id }
    }

    fn shelf(budget: u64, volumes: &[(u64, u64, Residency, Place)]) -> Shelf {
        let mut shelf = Shelf::new(budget);
        for (id, bytes, residency, place) in volumes {
            shelf.insert(key(*id), AdapterFiles::Directory(PathBuf::new()), [0; 32], *bytes, *residency);
            shelf.get_mut(&key(*id)).unwrap().place = *place;
        }
        shelf
    }

    const LOW: Residency = Residency::Paged { priority: 0 };
    const HIGH: Residency = Residency::Paged { priority: 1 };

    #[test]
    fn the_least_valuable_leaves_first() {
        let mut shelf = shelf(
            40,
            &[
                (1, 10, LOW, Place::Here),
                (2, 10, HIGH, Place::Here),
                (3, 10, LOW, Place::Here),
                (4, 10, Residency::Pinned, Place::Here),
                (5, 10, LOW, Place::Away),
            ],
        );
        let nobody = |_: &AdapterKey| Need::Nobody;
        assert_eq!(shelf.leavers(0, nobody), Some(vec![]));
        assert_eq!(shelf.leavers(10, nobody), Some(vec![key(1)]));
        shelf.touch([key(1)].iter());
        assert_eq!(shelf.leavers(1, nobody), Some(vec![key(3)]));
        assert_eq!(shelf.leavers(30, nobody), Some(vec![key(3), key(1), key(2)]));
        assert_eq!(shelf.leavers(31, nobody), None);
        // What somebody needs later leaves after what nobody needs, whatever its priority; what runs stays.
        let needed = |wanted: &AdapterKey| match wanted.generation {
            3 => Need::Later,
            1 => Need::Now,
            _ => Need::Nobody,
        };
        assert_eq!(shelf.leavers(10, needed), Some(vec![key(2)]));
        assert_eq!(shelf.leavers(20, needed), Some(vec![key(2), key(3)]));
        assert_eq!(shelf.leavers(21, needed), None);
        assert_eq!((shelf.held(), shelf.pinned(|_| false), shelf.pinned(|other| *other == key(4))), ((4, 40), 10, 0));
    }

    #[test]
    fn what_is_coming_keeps_its_room() {
        let shelf = shelf(20, &[(1, 10, LOW, Place::Coming), (2, 10, LOW, Place::Here)]);
        assert_eq!(shelf.leavers(10, |_| Need::Nobody), Some(vec![key(2)]));
        assert_eq!(shelf.leavers(11, |_| Need::Nobody), None);
    }

    proptest! {
        /// Whoever leaves may leave, it is enough, nobody leaves in vain, and nobody less valuable stays.
        #[test]
        fn leavers_are_the_least_valuable_and_enough(
            volumes in prop::collection::vec((0..50_u64, 0..5_i32, 0..3_u8, 0..4_u8), 0..12),
            budget in 0..200_u64,
            bytes in 0..100_u64,
        ) {
            let places = [Place::Here, Place::Coming, Place::Away];
            let made: Vec<_> = volumes.iter().enumerate().map(|(id, &(bytes, priority, place, _))| {
                let residency = if priority == 4 { Residency::Pinned } else { Residency::Paged { priority } };
                (id as u64, bytes, residency, places[place as usize])
            }).collect();
            let shelf = shelf(budget, &made);
            let need = |key: &AdapterKey| [Need::Nobody, Need::Later, Need::Replaced, Need::Now][volumes[key.generation as usize].3 as usize];
            let value = |id: u64| (need(&key(id)), volumes[id as usize].1, id);
            let may = |id: u64| {
                let (_, _, residency, place) = made[id as usize];
                place == Place::Here && residency != Residency::Pinned && need(&key(id)) != Need::Now
            };
            let held: u64 = made.iter().filter(|made| made.3 != Place::Away).map(|made| made.1).sum();
            let can: u64 = made.iter().filter(|made| may(made.0)).map(|made| made.1).sum();
            match shelf.leavers(bytes, need) {
                None => prop_assert!(held + bytes > budget + can),
                Some(leavers) => {
                    let gone: u64 = leavers.iter().map(|key| made[key.generation as usize].1).sum();
                    prop_assert!(held + bytes <= budget + gone);
                    prop_assert!(leavers.iter().all(|key| may(key.generation)));
                    if let Some(last) = leavers.last() {
                        prop_assert!(held + bytes > budget + gone - made[last.generation as usize].1);
                        for id in (0..made.len() as u64).filter(|id| may(*id) && !leavers.contains(&key(*id))) {
                            prop_assert!(value(id) > value(last.generation));
                        }
                    }
                }
            }
        }
    }
}
