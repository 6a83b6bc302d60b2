//! Loading, replacing and unloading adapters while others run.

use std::sync::{PoisonError, RwLockWriteGuard};

use consort_core::{AdapterFiles, AdapterInfo, AdapterKey, AdapterSource, Engine, Error, ErrorKind, Result};

use super::Worker;

impl<E: Engine> Worker<E> {
    fn registry(&self) -> RwLockWriteGuard<'_, std::collections::BTreeMap<String, AdapterInfo>> {
        self.shared.adapters.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn require_hot_swap(&self) -> Result<()> {
        if self.shared.capability.adapter_hot_swap || (self.running.is_empty() && self.queue.is_empty()) {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Overloaded, "this engine changes adapters only while no request runs; try again")
            .with_backend(self.shared.name))
    }

    /// Loads under a new generation, then lets the name mean it. A failure leaves what was there.
    pub(super) fn load_adapter(&mut self, id: &str, files: AdapterFiles) -> Result<AdapterInfo> {
        self.require_hot_swap()?;
        self.generation += 1;
        let key = AdapterKey { id: id.into(), generation: self.generation };
        let info = self.engine.load_adapter(&AdapterSource { key: key.clone(), files })?;
        if info.invocation_tokens.is_some() && !self.shared.capability.activated_adapters {
            self.engine.unload_adapter(&key)?;
            return Err(Error::new(
                ErrorKind::InvalidAdapter,
                "the adapter is an activated one (aLoRA), which this engine does not support",
            )
            .with_backend(self.shared.name)
            .with_context("key", "alora_invocation_tokens")
            .with_context("adapter", id));
        }
        let bytes = self.engine.memory().adapters;
        self.books(|books| {
            books.metrics.adapters += 1;
            books.metrics.adapter_bytes = bytes;
        });
        let before = self.registry().insert(id.to_owned(), info.clone());
        self.retiring.extend(before.map(|before| before.key));
        Ok(info)
    }

    pub(super) fn unload_adapter(&mut self, id: &str) -> Result<()> {
        self.require_hot_swap()?;
        let before = self.registry().remove(id).ok_or_else(|| {
            Error::new(ErrorKind::NotFound, "no adapter is loaded under this name").with_context("adapter", id)
        })?;
        self.retiring.push(before.key);
        Ok(())
    }

    /// Unloads what nobody can need any more. Requests are bound and sent under the registry's lock, so after the inbox
    /// was emptied every request that was bound before the change is in the queue or running.
    pub(super) fn retire_adapters(&mut self) {
        if self.retiring.is_empty() {
            return;
        }
        for key in std::mem::take(&mut self.retiring) {
            let needed = self
                .queue
                .iter()
                .chain(&self.running)
                .any(|job| job.adapters.bindings().iter().any(|binding| binding.key == key));
            if needed {
                self.retiring.push(key);
                continue;
            }
            self.cache.purge(&key);
            if let Err(error) = self.engine.unload_adapter(&key) {
                tracing::warn!(%error, adapter = &*key.id, "an adapter could not be unloaded");
            }
            let bytes = self.engine.memory().adapters;
            self.books(|books| {
                books.metrics.adapters = books.metrics.adapters.saturating_sub(1);
                books.metrics.adapter_bytes = bytes;
            });
        }
    }
}
