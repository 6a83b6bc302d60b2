//! Adapters come and go while others run: loading, replacing, unloading, and paging within a budget.

use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLockWriteGuard};

use consort_core::{
    AdapterFiles, AdapterInfo, AdapterKey, AdapterSource, AdapterStatus, Engine, Error, ErrorKind, Residency, Result,
};
use consort_peft::AdapterBytes;

use super::{Closing, Place, Worker, repeated};
use crate::events::Answerer;
use crate::library::{Contents, Delivery, Errand};
use crate::sequence::Job;
use crate::shelf::{self, Need};

/// Whether a job's adapters are in the engine.
pub(super) enum AtHand {
    Yes,
    /// They are on their way, or there is no room for them yet.
    Waits,
    /// They cannot come: the job has left the queue.
    Left,
}

fn uses(job: &Job, key: &AdapterKey) -> bool {
    job.adapters.bindings().iter().any(|binding| binding.key == *key)
}

impl<E: Engine> Worker<E> {
    fn registry(&self) -> RwLockWriteGuard<'_, BTreeMap<String, AdapterStatus>> {
        self.shared.adapters.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what the library sends.
    pub(super) fn receive(&mut self, delivery: Delivery) {
        match delivery {
            Delivery::Load(id, files, read, answer) => {
                let loaded = read.and_then(|contents| self.load_adapter(&id, files, &contents));
                // Whoever waits for the answer may read the metrics next.
                self.publish();
                answer.answer(loaded);
            }
            Delivery::Unload(id, answer) => answer.answer(self.unload_adapter(&id)),
            Delivery::Reside(id, residency, answer) => self.reside(&id, residency, answer),
            Delivery::Page(key, read) => self.arrive(&key, read),
        }
    }

    fn require_hot_swap(&self) -> Result<()> {
        if self.shared.capability.adapter_hot_swap || (self.running.is_empty() && self.queue.is_empty()) {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Overloaded, "this engine changes adapters only while no request runs; try again")
            .with_backend(self.shared.name))
    }

    fn missing(id: &str) -> Error {
        Error::new(ErrorKind::NotFound, "no adapter is loaded under this name").with_context("adapter", id)
    }

    fn no_room(&self, what: &str) -> Error {
        let budget = self.shelf.budget();
        let help = "unload or unpin others, or raise adapter_bytes";
        Error::new(ErrorKind::OutOfMemory, format!("{what}, of {budget} for all adapters: {help}"))
            .with_backend(self.shared.name)
    }

    /// Gives the engine an adapter's files.
    fn hand_over(&mut self, key: &AdapterKey, files: &AdapterFiles, bytes: &AdapterBytes) -> Result<AdapterInfo> {
        let source = AdapterSource { key: key.clone(), files: bytes.clone().into_files() };
        self.engine.load_adapter(&source).map_err(|error| match files.path() {
            Some(path) => error.with_context("path", path.display().to_string()),
            None => error,
        })
    }

    /// Loads under a new generation, then lets the name mean it. A failure leaves what was there.
    fn load_adapter(&mut self, id: &str, files: AdapterFiles, contents: &Contents) -> Result<AdapterInfo> {
        self.require_hot_swap()?;
        self.generation += 1;
        let key = AdapterKey { id: id.into(), generation: self.generation };
        let info = self.hand_over(&key, &files, &contents.bytes)?;
        let residency = self.registry().get(id).map(|status| status.residency).unwrap_or_default();
        let stays = match self.make_room_for(&info, residency) {
            Ok(stays) => stays,
            Err(error) => {
                self.engine.unload_adapter(&key)?;
                return Err(error);
            }
        };
        self.shelf.insert(key.clone(), files, contents.digest, info.bytes, residency);
        let status = AdapterStatus { info: info.clone(), residency, resident: true, digest: Some(contents.digest) };
        let before = self.registry().insert(id.to_owned(), status);
        if let Some(before) = before {
            self.retire(before.info.key);
        }
        if !stays {
            self.page_out(&key);
        }
        Ok(info)
    }

    /// Makes room for an adapter that the engine has just loaded, now that its size is known. Whether it can stay there
    /// until it is used.
    fn make_room_for(&mut self, info: &AdapterInfo, residency: Residency) -> Result<bool> {
        let AdapterInfo { key, bytes, .. } = info;
        if info.invocation_tokens.is_some() && !self.shared.capability.activated_adapters {
            return Err(Error::new(
                ErrorKind::InvalidAdapter,
                "the adapter is an activated one (aLoRA), which this engine does not support",
            )
            .with_backend(self.shared.name)
            .with_context("key", "alora_invocation_tokens")
            .with_context("adapter", &*key.id));
        }
        // The generation that it replaces goes.
        let pinned = self.shelf.pinned(|other| other.id == key.id);
        if bytes.saturating_add(pinned) > self.shelf.budget() {
            let what = format!("the adapter takes {bytes} bytes beside {pinned} that are pinned");
            return Err(self.no_room(&what).with_context("adapter", &*key.id));
        }
        let hot = self.shared.capability.adapter_hot_swap;
        let leavers = self.shelf.leavers(*bytes, |other| if hot { self.need(other, None) } else { Need::Now });
        if let Some(leavers) = leavers {
            leavers.iter().for_each(|leaver| self.page_out(leaver));
            return Ok(true);
        }
        if hot && residency != Residency::Pinned {
            return Ok(false);
        }
        let held = self.shelf.held().1;
        let what = format!("the adapter takes {bytes} bytes beside {held} that are in use or cannot leave");
        Err(self.no_room(&what).with_context("adapter", &*key.id))
    }

    fn unload_adapter(&mut self, id: &str) -> Result<()> {
        self.require_hot_swap()?;
        let before = self.registry().remove(id).ok_or_else(|| Self::missing(id))?;
        self.retire(before.info.key);
        Ok(())
    }

    /// No new request can name it. A pin belongs to the name, so a generation that only runs out is pinned no more.
    fn retire(&mut self, key: AdapterKey) {
        if let Some(volume) = self.shelf.get_mut(&key) {
            volume.residency = Residency::default();
        }
        self.retiring.push(key);
        self.books(|books| books.unsettled = true);
    }

    fn reside(&mut self, id: &str, residency: Residency, answer: Answerer<()>) {
        let Some(key) = self.registry().get(id).map(|status| status.info.key.clone()) else {
            return answer.answer(Err(Self::missing(id)));
        };
        let Some((bytes, place)) = self.shelf.get(&key).map(|volume| (volume.bytes, volume.place)) else {
            return answer.answer(Err(Self::missing(id)));
        };
        let mut leavers = Vec::new();
        if residency == Residency::Pinned {
            let others = self.shelf.pinned(|other| *other == key);
            let wanted = if place == shelf::Place::Away { bytes } else { 0 };
            let found = self.shelf.leavers(wanted, |other| self.need(other, None));
            match found.filter(|_| bytes.saturating_add(others) <= self.shelf.budget()) {
                Some(found) => leavers = found,
                None => {
                    let held = self.shelf.held().1;
                    let what = format!(
                        "the adapter takes {bytes} bytes beside {others} that are pinned and {held} that are in the engine"
                    );
                    return answer.answer(Err(self.no_room(&what).with_context("adapter", id)));
                }
            }
        }
        self.set_residency(&key, residency);
        // Whom it was to displace can be itself no more.
        leavers.iter().filter(|leaver| **leaver != key).for_each(|leaver| self.page_out(leaver));
        match (residency, place) {
            (Residency::Pinned, shelf::Place::Away) => {
                self.bring(&key);
                self.pinning.push((key, answer));
            }
            (Residency::Pinned, shelf::Place::Coming) => self.pinning.push((key, answer)),
            _ => answer.answer(Ok(())),
        }
    }

    fn set_residency(&mut self, key: &AdapterKey, residency: Residency) {
        if let Some(volume) = self.shelf.get_mut(key) {
            volume.residency = residency;
        }
        if let Some(status) = self.registry().get_mut(&*key.id).filter(|status| status.info.key == *key) {
            status.residency = residency;
        }
    }

    fn set_place(&mut self, key: &AdapterKey, place: shelf::Place) {
        if let Some(volume) = self.shelf.get_mut(key) {
            volume.place = place;
        }
        if let Some(status) = self.registry().get_mut(&*key.id).filter(|status| status.info.key == *key) {
            status.resident = place == shelf::Place::Here;
        }
    }

    fn page_out(&mut self, key: &AdapterKey) {
        if let Err(error) = self.engine.unload_adapter(key) {
            tracing::warn!(%error, adapter = &*key.id, "an adapter could not be unloaded");
        }
        self.shelf.page_outs += 1;
        self.set_place(key, shelf::Place::Away);
        tracing::debug!(adapter = &*key.id, "paged out");
    }

    fn bring(&mut self, key: &AdapterKey) {
        let Some(files) = self.shelf.get(key).map(|volume| volume.files.clone()) else { return };
        self.set_place(key, shelf::Place::Coming);
        self.library.send(Errand::Page(key.clone(), files));
    }

    /// An adapter's files were read again: they must be what they were.
    fn arrive(&mut self, key: &AdapterKey, read: Result<Contents>) {
        let Some((files, digest)) = self.shelf.get(key).map(|volume| (volume.files.clone(), volume.digest)) else {
            return;
        };
        let arrived = read.and_then(|contents| {
            if contents.digest != digest {
                return Err(Error::new(
                    ErrorKind::InvalidAdapter,
                    "the adapter's files are not what they were when it was loaded: load it again",
                )
                .with_backend(self.shared.name)
                .with_context("adapter", &*key.id));
            }
            self.hand_over(key, &files, &contents.bytes).map(drop)
        });
        self.set_place(key, if arrived.is_ok() { shelf::Place::Here } else { shelf::Place::Away });
        match &arrived {
            Ok(()) => {
                self.shelf.page_ins += 1;
                self.shelf.touch(std::iter::once(key));
                tracing::debug!(adapter = &*key.id, "paged in");
            }
            Err(error) => {
                tracing::warn!(%error, adapter = &*key.id, "an adapter could not be paged in");
                while let Some(index) = self.queue.iter().position(|job| uses(job, key)) {
                    let job = self.queue.remove(index);
                    self.close(job, Place::Queued, Closing::Failed(repeated(error)));
                }
            }
        }
        self.publish();
        let (answered, waiting) = std::mem::take(&mut self.pinning).into_iter().partition(|(other, _)| other == key);
        self.pinning = waiting;
        let answered: Vec<(AdapterKey, Answerer<()>)> = answered;
        if arrived.is_err() && !answered.is_empty() {
            self.set_residency(key, Residency::default());
        }
        for (_, answer) in answered {
            answer.answer(arrived.as_ref().copied().map_err(repeated));
        }
    }

    /// Who needs an adapter, for the job at this place of the queue or, without one, for nobody in particular.
    fn need(&self, key: &AdapterKey, turn: Option<usize>) -> Need {
        let (before, after) = self.queue.split_at(turn.map_or(0, |turn| turn + 1).min(self.queue.len()));
        // One that waits for its own reader holds nobody up.
        let first = before.iter().any(|job| job.has_room() && uses(job, key));
        if first || self.running.iter().any(|job| uses(job, key)) {
            return Need::Now;
        }
        match (before.iter().chain(after).any(|job| uses(job, key)), self.retiring.contains(key)) {
            (true, true) => Need::Replaced,
            (true, false) => Need::Later,
            (false, _) => Need::Nobody,
        }
    }

    /// Sees to it that the adapters of the job at this place of the queue are, or come, into the engine.
    pub(super) fn adapters_at_hand(&mut self, index: usize) -> AtHand {
        let Some(job) = self.queue.get(index) else { return AtHand::Yes };
        let keys: Vec<AdapterKey> = job.adapters.bindings().iter().map(|binding| binding.key.clone()).collect();
        if keys.is_empty() {
            return AtHand::Yes;
        }
        let is_keep = job.is_keep();
        let (mut own, mut missing, mut coming, mut away) = (0_u64, 0_u64, false, Vec::new());
        for key in &keys {
            let Some(volume) = self.shelf.get(key) else { continue };
            own = own.saturating_add(volume.bytes);
            match volume.place {
                shelf::Place::Here => {}
                shelf::Place::Coming => coming = true,
                shelf::Place::Away => {
                    missing = missing.saturating_add(volume.bytes);
                    away.push(key.clone());
                }
            }
        }
        if away.is_empty() && !coming {
            // Who came first and waits for room is not kept waiting by who came later.
            if self.adapters_wait {
                return AtHand::Waits;
            }
            self.shelf.touch(keys.iter());
            return AtHand::Yes;
        }
        let pinned = self.shelf.pinned(|other| keys.contains(other));
        // Keeping a turn is not worth an adapter's way.
        if !is_keep && own.saturating_add(pinned) <= self.shelf.budget() {
            if !away.is_empty() && !self.adapters_wait {
                match self.shelf.leavers(missing, |key| self.need(key, Some(index))) {
                    Some(leavers) => {
                        leavers.iter().for_each(|leaver| self.page_out(leaver));
                        away.iter().for_each(|key| self.bring(key));
                    }
                    None => self.adapters_wait = true,
                }
            }
            return AtHand::Waits;
        }
        let closing = if is_keep {
            Closing::Finished(None)
        } else {
            let what = format!("the request's adapters take {own} bytes beside {pinned} that are pinned");
            Closing::Failed(self.no_room(&what))
        };
        let job = self.queue.remove(index);
        self.close(job, Place::Queued, closing);
        AtHand::Left
    }

    /// Unloads what nobody can need any more. Requests are bound and sent under the registry's lock, so after the inbox
    /// was emptied every request that was bound before the change is in the queue or running.
    pub(super) fn retire_adapters(&mut self) {
        if self.retiring.is_empty() {
            return;
        }
        for key in std::mem::take(&mut self.retiring) {
            let coming = self.shelf.get(&key).is_some_and(|volume| volume.place == shelf::Place::Coming);
            if coming || self.queue.iter().chain(&self.running).any(|job| uses(job, &key)) {
                self.retiring.push(key);
                continue;
            }
            self.cache.purge(&key);
            let here = self.shelf.remove(&key).is_none_or(|volume| volume.place == shelf::Place::Here);
            if let Some(error) = here.then(|| self.engine.unload_adapter(&key)).and_then(Result::err) {
                tracing::warn!(%error, adapter = &*key.id, "an adapter could not be unloaded");
            }
        }
    }
}
