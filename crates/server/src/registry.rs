//! Who can be asked: the model as it is, personas, and adapters by their own names.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use consort_core::{Priority, Residency};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::Failure;
use crate::identity::now;
use crate::metrics::{Counts, Meter};
use crate::persona::{Persona, PersonaAdapter};

/// One who can be asked. It never changes: another persona under the same name is another member, and replies that run
/// keep the one that they began with.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) persona: Persona,
    pub(crate) created: u64,
    pub(crate) meter: Arc<Meter>,
    share: Option<Arc<Semaphore>>,
}

/// A sequence of a member's share, given back when this is dropped.
#[derive(Debug)]
pub(crate) struct Seat {
    _permit: Option<OwnedSemaphorePermit>,
}

impl Member {
    fn new(persona: Persona, sequences: usize, meter: Arc<Meter>) -> Arc<Self> {
        let share = persona.memory_share.map(|share| {
            let most = (f64::from(share) * sequences as f64).floor().max(1.0);
            Arc::new(Semaphore::new((most as usize).min(Semaphore::MAX_PERMITS)))
        });
        Arc::new(Self { persona, created: now(), meter, share })
    }

    /// Takes a sequence of the member's share.
    ///
    /// # Errors
    /// All of it is taken.
    pub(crate) fn sit(&self) -> Result<Seat, Failure> {
        let permit = match &self.share {
            None => None,
            Some(share) => Some(Arc::clone(share).try_acquire_owned().map_err(|_| {
                self.meter.refused();
                let name = &self.persona.name;
                Failure::overloaded(format!(
                    "`{name}` takes its share of memory already (memory_share); try again when a reply has ended"
                ))
            })?),
        };
        Ok(Seat { _permit: permit })
    }
}

/// Everybody.
#[derive(Debug)]
pub(crate) struct Registry {
    model: Arc<Member>,
    /// How many sequences the engine holds.
    sequences: usize,
    most: usize,
    members: RwLock<Members>,
}

#[derive(Debug, Default)]
struct Members {
    personas: BTreeMap<String, Arc<Member>>,
    /// Adapters that were asked for by their own names.
    adapters: BTreeMap<String, Arc<Member>>,
}

impl Registry {
    /// The model as it is, alone.
    pub(crate) fn new(model: &str, sequences: usize, most: usize) -> Self {
        let model = Member::new(Persona::new(model), sequences, Arc::default());
        Self { model, sequences, most, members: RwLock::default() }
    }

    fn read(&self) -> RwLockReadGuard<'_, Members> {
        self.members.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Members> {
        self.members.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The model as it is.
    pub(crate) fn model(&self) -> &Arc<Member> {
        &self.model
    }

    /// Who has this name: a persona, then the model itself, then an adapter, if `is_adapter` says that there is one.
    pub(crate) fn find(&self, name: &str, is_adapter: impl FnOnce() -> bool) -> Option<Arc<Member>> {
        if let Some(member) = self.read().personas.get(name) {
            return Some(Arc::clone(member));
        }
        if name == self.model.persona.name {
            return Some(Arc::clone(&self.model));
        }
        if !is_adapter() {
            return None;
        }
        let adapters = vec![PersonaAdapter { name: name.to_owned(), scale: 1.0 }];
        let mut members = self.write();
        let member = members
            .adapters
            .entry(name.to_owned())
            .or_insert_with(|| Member::new(Persona { adapters, ..Persona::new(name) }, self.sequences, Arc::default()));
        Some(Arc::clone(member))
    }

    /// The persona of this name.
    pub(crate) fn persona(&self, name: &str) -> Option<Arc<Member>> {
        self.read().personas.get(name).cloned()
    }

    /// All personas, by name.
    pub(crate) fn personas(&self) -> Vec<Arc<Member>> {
        self.read().personas.values().cloned().collect()
    }

    /// Adds a persona, or puts it in another's place. Its numbers go on.
    ///
    /// # Errors
    /// It has the model's name, or there are too many.
    pub(crate) fn put(&self, persona: Persona) -> Result<Placed, Failure> {
        if persona.name == self.model.persona.name {
            return Err(Failure::value("name", "the model itself has this name"));
        }
        let mut members = self.write();
        let before = members.personas.get(&persona.name).cloned();
        if before.is_none() && members.personas.len() >= self.most {
            let message = format!("there are {} personas already; no more are taken", self.most);
            return Err(Failure::invalid("too_many_personas", message));
        }
        let meter = before.as_ref().map(|before| Arc::clone(&before.meter)).unwrap_or_default();
        let member = Member::new(persona, self.sequences, meter);
        members.personas.insert(member.persona.name.clone(), Arc::clone(&member));
        Ok(Placed { member, before })
    }

    /// Puts all of `put` and takes away of `remove` who is still what is written there, at once: whoever asks finds all of
    /// the old or all of the new. Somebody who is put as it is already stays the same member.
    ///
    /// # Errors
    /// One has the model's name, or there would be too many. Nothing is changed then.
    pub(crate) fn apply(&self, put: Vec<Persona>, remove: &[Persona]) -> Result<PersonaChanges, Failure> {
        if put.iter().any(|persona| persona.name == self.model.persona.name) {
            return Err(Failure::value("persona", "the model itself has this name"));
        }
        let mut members = self.write();
        let mut after = members.personas.clone();
        let mut changes = PersonaChanges::default();
        for gone in remove {
            match after.get(&gone.name) {
                Some(member) if member.persona == *gone => {
                    after.remove(&gone.name);
                    changes.removed.push(gone.name.clone());
                }
                // It was put in the file's place over HTTP.
                Some(_) | None => {}
            }
        }
        let named: BTreeSet<String> = put.iter().map(|persona| persona.name.clone()).collect();
        for persona in put {
            let name = persona.name.clone();
            let kind = match after.get(&name) {
                Some(member) if member.persona == persona => {
                    changes.unchanged.push(name);
                    continue;
                }
                Some(_) => &mut changes.replaced,
                None => &mut changes.added,
            };
            kind.push(name.clone());
            let meter = after.get(&name).map(|before| Arc::clone(&before.meter)).unwrap_or_default();
            after.insert(name, Member::new(persona, self.sequences, meter));
        }
        if after.len() > self.most {
            let message = format!("there would be {} personas; at most {} are taken", after.len(), self.most);
            return Err(Failure::invalid("too_many_personas", message).with_param("limits.personas"));
        }
        changes.kept = after.keys().filter(|name| !named.contains(*name)).cloned().collect();
        members.personas = after;
        Ok(changes)
    }

    /// Takes a persona away. Replies that run go on.
    pub(crate) fn remove(&self, name: &str) -> Option<Arc<Member>> {
        self.write().personas.remove(name)
    }

    /// Forgets that an adapter was asked for by its own name.
    pub(crate) fn forget_adapter(&self, name: &str) {
        self.write().adapters.remove(name);
    }

    /// Whose persona uses this adapter.
    pub(crate) fn user_of(&self, adapter: &str) -> Option<String> {
        let members = self.read();
        let user = members.personas.values().find(|member| uses(member, adapter));
        user.map(|member| member.persona.name.clone())
    }

    /// Whether an adapter may be paged out: not if a persona that uses it is pinned, else by the highest priority of those.
    pub(crate) fn residency(&self, adapter: &str) -> Residency {
        let members = self.read();
        let users = members.personas.values().filter(|member| uses(member, adapter));
        users.map(|member| residency_for(&member.persona)).fold(Residency::default(), stronger)
    }

    /// Everybody's numbers.
    pub(crate) fn counts(&self) -> Vec<(String, Counts)> {
        let members = self.read();
        let adapters = members.adapters.iter().filter(|(name, _)| !members.personas.contains_key(*name));
        let all =
            std::iter::once(&self.model).chain(members.personas.values()).chain(adapters.map(|(_, member)| member));
        all.map(|member| (member.persona.name.clone(), member.meter.counts())).collect()
    }
}

/// What came of putting a persona.
#[derive(Debug)]
pub(crate) struct Placed {
    /// As it was put. By now somebody else may have replaced it or taken it away.
    pub(crate) member: Arc<Member>,
    /// Whom it replaced.
    pub(crate) before: Option<Arc<Member>>,
}

/// What became of personas when a file was read again.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct PersonaChanges {
    /// They are new.
    pub added: Vec<String>,
    /// Another one stands in their place. Replies that run keep the one that they began with.
    pub replaced: Vec<String>,
    /// The file names them no more.
    pub removed: Vec<String>,
    /// They are as they were.
    pub unchanged: Vec<String>,
    /// They were put over HTTP, and the file does not name them.
    pub kept: Vec<String>,
}

fn uses(member: &Arc<Member>, adapter: &str) -> bool {
    member.persona.adapters.iter().any(|used| used.name == adapter)
}

/// What a persona wants for its adapters.
fn residency_for(persona: &Persona) -> Residency {
    if persona.pinned {
        return Residency::Pinned;
    }
    let priority = match persona.priority {
        Priority::Batch => 0,
        Priority::Background => 1,
        Priority::Interactive => 2,
        Priority::Realtime => 3,
    };
    Residency::Paged { priority }
}

fn stronger(one: Residency, other: Residency) -> Residency {
    match (one, other) {
        (Residency::Paged { priority: a }, Residency::Paged { priority: b }) => Residency::Paged { priority: a.max(b) },
        _ => Residency::Pinned,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn persona(name: &str, adapter: &str) -> Persona {
        Persona { adapters: vec![PersonaAdapter { name: adapter.into(), scale: 1.0 }], ..Persona::new(name) }
    }

    #[test]
    fn a_persona_shadows_an_adapter_and_none_is_the_model() {
        let registry = Registry::new("etude", 4, 2);
        assert!(registry.put(persona("pirate", "butler")).unwrap().before.is_none());
        assert_eq!(registry.find("pirate", || true).unwrap().persona.adapters[0].name, "butler");
        assert_eq!(registry.find("etude", || false).unwrap().persona.name, "etude");
        assert_eq!(registry.find("butler", || true).unwrap().persona.adapters[0].name, "butler");
        assert!(registry.find("nobody", || false).is_none());
        assert_eq!(registry.put(Persona::new("etude")).unwrap_err().param(), Some("name"));
        registry.put(Persona::new("ben")).unwrap();
        assert_eq!(registry.put(Persona::new("eve")).unwrap_err().code(), "too_many_personas");
    }

    #[test]
    fn replies_keep_the_persona_that_they_began_with() {
        let registry = Registry::new("etude", 4, 2);
        registry.put(persona("ada", "pirate")).unwrap();
        let running = registry.find("ada", || false).unwrap();
        assert!(registry.put(persona("ada", "butler")).unwrap().before.is_some());
        let later = registry.find("ada", || false).unwrap();
        assert_eq!((&*running.persona.adapters[0].name, &*later.persona.adapters[0].name), ("pirate", "butler"));
        assert!(Arc::ptr_eq(&running.meter, &later.meter), "the numbers go on");
    }

    #[test]
    fn a_file_is_applied_as_a_whole_or_not_at_all() {
        let registry = Registry::new("etude", 4, 3);
        let (ada, ben) = (persona("ada", "pirate"), persona("ben", "pirate"));
        registry.apply(vec![ada.clone(), ben.clone()], &[]).unwrap();
        registry.put(Persona::new("guest")).unwrap();
        let (same, running) = (registry.persona("ada").unwrap(), registry.persona("ben").unwrap());
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        // One more than may be, and one that is the model: nothing happens.
        let more = vec![ada.clone(), persona("ben", "butler"), Persona::new("eve")];
        assert_eq!(registry.apply(more, &[]).unwrap_err().code(), "too_many_personas");
        assert!(registry.apply(vec![Persona::new("etude")], std::slice::from_ref(&ada)).is_err());
        assert!(Arc::ptr_eq(&registry.persona("ben").unwrap(), &running) && registry.persona("ada").is_some());
        let changes = registry.apply(vec![ada.clone(), persona("ben", "butler")], &[]).unwrap();
        let expected = PersonaChanges {
            replaced: names(&["ben"]),
            unchanged: names(&["ada"]),
            kept: names(&["guest"]),
            ..PersonaChanges::default()
        };
        assert_eq!(changes, expected);
        assert!(Arc::ptr_eq(&registry.persona("ada").unwrap(), &same), "who did not change is the same");
        assert!(Arc::ptr_eq(&registry.persona("ben").unwrap().meter, &running.meter), "the numbers go on");
        // Somebody put another ada over HTTP: the file's leaves, and this one stays.
        registry.put(Persona::new("ada")).unwrap();
        let changes = registry.apply(vec![Persona::new("eve")], &[ada, persona("ben", "butler")]).unwrap();
        assert_eq!((changes.added, changes.removed), (names(&["eve"]), names(&["ben"])));
        assert_eq!(changes.kept, names(&["ada", "guest"]));
    }

    #[test]
    fn a_share_is_a_number_of_sequences() {
        let registry = Registry::new("etude", 5, 9);
        registry.put(Persona { memory_share: Some(0.5), ..Persona::new("ada") }).unwrap();
        let ada = registry.find("ada", || false).unwrap();
        let seats = (ada.sit().unwrap(), ada.sit().unwrap());
        assert_eq!(ada.sit().unwrap_err().status().as_u16(), 429);
        drop(seats.0);
        ada.sit().unwrap();
        assert_eq!(ada.meter.counts().refused, 1);
    }

    #[test]
    fn the_strongest_wish_decides_about_an_adapter() {
        let registry = Registry::new("etude", 4, 9);
        assert_eq!(registry.residency("pirate"), Residency::Paged { priority: 0 });
        registry.put(persona("a", "pirate")).unwrap();
        registry.put(Persona { priority: Priority::Realtime, ..persona("b", "pirate") }).unwrap();
        assert_eq!(registry.residency("pirate"), Residency::Paged { priority: 3 });
        registry.put(Persona { pinned: true, ..persona("c", "pirate") }).unwrap();
        assert_eq!(registry.residency("pirate"), Residency::Pinned);
        registry.remove("c").unwrap();
        assert_eq!(registry.residency("pirate"), Residency::Paged { priority: 3 });
        assert_eq!(registry.user_of("pirate").unwrap(), "a");
    }
}
