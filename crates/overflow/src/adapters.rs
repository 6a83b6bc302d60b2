//! One name for one adapter on both sides.
//!
//! Each load goes to the sides under a name of its own, and what requests name is switched over in one moment, when every
//! side has the new weights. So there is no moment in which one side answers with old weights and the other with new ones,
//! and undoing is unloading what nobody has ever named. Old weights stay on both sides as long as a request that named them
//! may yet begin anew on the other one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use consort_core::{
    AdapterFiles, AdapterInfo, AdapterKey, AdapterMode, AdapterStatus, AdapterUse, Error, ErrorKind, ModelBackend,
    Residency, Result,
};

use crate::NAME;
use crate::route::Side;
use crate::sides::Sides;

/// Whoever is pinned and may be paged out for a moment is the last to go.
const LAST_TO_GO: Residency = Residency::Paged { priority: i32::MAX };

/// One load of an adapter.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Version {
    /// Under which name the sides know it.
    inner: String,
    local: bool,
    remote: bool,
}

impl Version {
    /// Whether a side has it.
    pub(crate) fn is_on(&self, side: Side) -> bool {
        match side {
            Side::Local => self.local,
            Side::Remote => self.remote,
        }
    }

    /// The side that tells of it.
    fn told_by(&self) -> Side {
        if self.local { Side::Local } else { Side::Remote }
    }
}

#[derive(Debug)]
struct Entry {
    info: AdapterInfo,
    version: Arc<Version>,
}

/// What requests can name.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    entries: BTreeMap<String, Entry>,
    generation: u64,
}

impl Registry {
    /// What a request names, as it is now.
    pub(crate) fn bind(&self, uses: &[AdapterUse]) -> Result<Vec<Arc<Version>>> {
        let find = |wanted: &AdapterUse| match self.entries.get(&wanted.id) {
            Some(entry) => Ok(Arc::clone(&entry.version)),
            None => Err(not_found(&wanted.id).with_operation("overflow::generate")),
        };
        uses.iter().map(find).collect()
    }

    fn put(&mut self, id: &str, version: Version, info: AdapterInfo) -> (AdapterInfo, Option<Arc<Version>>) {
        self.generation += 1;
        let info = AdapterInfo { key: AdapterKey { id: Arc::from(id), generation: self.generation }, ..info };
        let entry = Entry { info: info.clone(), version: Arc::new(version) };
        (info, self.entries.insert(id.into(), entry).map(|before| before.version))
    }
}

fn not_found(id: &str) -> Error {
    Error::new(ErrorKind::NotFound, "no adapter is loaded under this name")
        .with_backend(NAME)
        .with_context("adapter", id)
}

/// What a request uses, as the sides know it.
pub(crate) fn inner_uses(uses: &[AdapterUse], bound: &[Arc<Version>]) -> Vec<AdapterUse> {
    let inner =
        |(wanted, version): (&AdapterUse, &Arc<Version>)| AdapterUse { id: version.inner.clone(), scale: wanted.scale };
    uses.iter().zip(bound).map(inner).collect()
}

fn does_adapters(backend: &dyn ModelBackend) -> bool {
    backend.capability().adapter_mode != AdapterMode::None
}

/// What a side may still hold and nobody can name any more.
#[derive(Debug, Clone)]
struct Leftover {
    side: Side,
    inner: String,
    /// Requests that named it share this.
    version: Option<Arc<Version>>,
}

/// The adapters of both sides.
#[derive(Debug, Default)]
pub(crate) struct Library {
    registry: RwLock<Registry>,
    /// One change at a time.
    turn: futures_util::lock::Mutex<()>,
    /// Unloaded when nobody needs it, and tried again with each change.
    leftovers: Mutex<Vec<Leftover>>,
}

/// A load that may end halfway: by an error, or because nobody waits for it any more.
struct Unfinished<'a> {
    library: &'a Library,
    inner: &'a str,
    done: bool,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if !self.done {
            self.library.leave(self.inner, None);
        }
    }
}

impl Library {
    /// Takes over what the sides have loaded already.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`] when both have other weights under one name.
    pub(crate) fn adopt(sides: &Sides) -> Result<Self> {
        let listed = |side: Side| -> BTreeMap<String, AdapterStatus> {
            let all = sides.get(side).adapters().into_iter();
            all.map(|status| (status.info.key.id.to_string(), status)).collect()
        };
        let (local, mut remote) = (listed(Side::Local), listed(Side::Remote));
        let mut registry = Registry::default();
        for (id, here) in local {
            let there = remote.remove(&id);
            if let Some(there) = &there {
                let others = matches!((here.digest, there.digest), (Some(one), Some(other)) if one != other);
                if others || here.info.invocation_tokens != there.info.invocation_tokens {
                    return Err(Error::new(
                        ErrorKind::InvalidConfig,
                        "the local and the remote backend have other weights under one name: unload it on one of them",
                    )
                    .with_operation("overflow::new")
                    .with_context("adapter", id));
                }
            }
            registry.put(&id, Version { inner: id.clone(), local: true, remote: there.is_some() }, here.info);
        }
        for (id, there) in remote {
            registry.put(&id, Version { inner: id.clone(), local: false, remote: true }, there.info);
        }
        Ok(Self { registry: RwLock::new(registry), ..Self::default() })
    }

    /// What a request names, as it is now. It stays loaded on both sides until the last clone of it is gone.
    pub(crate) fn bind(&self, uses: &[AdapterUse]) -> Result<Vec<Arc<Version>>> {
        if uses.is_empty() { Ok(Vec::new()) } else { self.read().bind(uses) }
    }

    fn read(&self) -> RwLockReadGuard<'_, Registry> {
        // Nothing panics while it holds the lock.
        self.registry.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut Registry) -> T) -> T {
        change(&mut self.registry.write().unwrap_or_else(PoisonError::into_inner))
    }

    fn leftovers(&self) -> MutexGuard<'_, Vec<Leftover>> {
        self.leftovers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn leave(&self, inner: &str, version: Option<&Arc<Version>>) {
        let on = |side| Leftover { side, inner: inner.to_owned(), version: version.cloned() };
        self.leftovers().extend([on(Side::Local), on(Side::Remote)]);
    }

    /// What nobody needs any more.
    fn unneeded(&self) -> Vec<Leftover> {
        let leftovers = self.leftovers();
        let needed = |left: &&Leftover| {
            // Its own two, one a side: whoever else shares it is a request.
            let own = leftovers.iter().filter(|other| other.inner == left.inner && other.version.is_some()).count();
            left.version.as_ref().is_some_and(|version| Arc::strong_count(version) > own)
        };
        leftovers.iter().filter(|left| !needed(left)).map(|left| Leftover { version: None, ..left.clone() }).collect()
    }

    /// Whether there is something to [`tidy`](Self::tidy).
    pub(crate) fn is_untidy(&self) -> bool {
        !self.leftovers().is_empty() && !self.unneeded().is_empty()
    }

    /// Unloads what nobody can name any more, as soon as nobody needs it.
    async fn retire(&self, sides: &Sides, old: Arc<Version>) {
        self.leave(&old.inner, Some(&old));
        if old.local && residency_of(sides, &old) == Residency::Pinned {
            // Whoever still needs it can wait for it: nothing pins the room of weights that have no name.
            let unpinned = sides.get(Side::Local).set_adapter_residency(&old.inner, Residency::default()).await;
            if let Err(error) = unpinned {
                tracing::warn!(adapter = old.inner, %error, "old weights stay pinned until they are unloaded");
            }
        }
        drop(old);
        self.sweep(sides).await;
    }

    /// Unloads what nobody can name and nobody needs.
    pub(crate) async fn tidy(&self, sides: &Sides) {
        let _turn = self.turn.lock().await;
        self.sweep(sides).await;
    }

    /// The same, for whoever has the turn. What a side does not give up now is tried again before the next change.
    async fn sweep(&self, sides: &Sides) {
        let all = self.unneeded();
        // All are asked before one is awaited: who waits may go away.
        let asked: Vec<_> = all
            .iter()
            .map(|left| {
                let backend = sides.get(left.side);
                does_adapters(backend).then(|| backend.unload_adapter(&left.inner))
            })
            .collect();
        for (Leftover { side, inner, .. }, asked) in all.iter().zip(asked) {
            let gone = match asked {
                None => Ok(()),
                Some(gone) => gone.await,
            };
            match gone.map_err(|error| (error.kind(), error)) {
                Ok(()) | Err((ErrorKind::NotFound | ErrorKind::Unsupported, _)) => {
                    self.leftovers().retain(|left| (left.side, &left.inner) != (*side, inner));
                }
                Err((_, error)) => {
                    tracing::warn!(side = side.as_str(), adapter = inner, %error, "old weights stay for now");
                }
            }
        }
    }

    /// A name that no side knows: the id itself where it is free, so that the sides' errors and logs speak of it.
    fn fresh_name(&self, id: &str) -> String {
        let registry = self.read();
        let leftovers = self.leftovers();
        let is_free = |name: &str| {
            !registry.entries.values().any(|entry| entry.version.inner == name)
                && !leftovers.iter().any(|left| left.inner == name)
        };
        if is_free(id) {
            return id.to_owned();
        }
        // One of so many is free.
        let most = registry.entries.len() + leftovers.len() + 1;
        (2..most + 3).map(|number| format!("{id}~{number}")).find(|name| is_free(name)).unwrap_or_else(|| id.to_owned())
    }

    fn version(&self, id: &str) -> Option<Arc<Version>> {
        self.read().entries.get(id).map(|entry| Arc::clone(&entry.version))
    }

    pub(crate) async fn load(&self, sides: &Sides, id: &str, files: AdapterFiles) -> Result<AdapterInfo> {
        let _turn = self.turn.lock().await;
        self.sweep(sides).await;
        let inner = self.fresh_name(id);
        let mut unfinished = Unfinished { library: self, inner: &inner, done: false };
        let before = self.version(id).filter(|version| version.local);
        let residency = before.as_ref().map_or(Residency::default(), |version| residency_of(sides, version));
        let mut way = Way { sides, before: before.as_deref(), residency, made: false };
        let (version, info) = match load_as(sides, &inner, &files, &mut way).await {
            Ok(loaded) => loaded,
            Err(error) => {
                drop(unfinished);
                self.sweep(sides).await;
                way.undo().await;
                return Err(error);
            }
        };
        let (info, old) = self.change(|registry| registry.put(id, version, info));
        unfinished.done = true;
        if let Some(old) = old {
            drop(before);
            self.retire(sides, old).await;
        }
        Ok(info)
    }

    pub(crate) async fn unload(&self, sides: &Sides, id: &str) -> Result<()> {
        let _turn = self.turn.lock().await;
        let entry = self.change(|registry| registry.entries.remove(id));
        let entry = entry.ok_or_else(|| not_found(id).with_operation("overflow::unload_adapter"))?;
        self.retire(sides, entry.version).await;
        Ok(())
    }

    pub(crate) async fn set_residency(&self, sides: &Sides, id: &str, residency: Residency) -> Result<()> {
        let _turn = self.turn.lock().await;
        let version =
            self.version(id).ok_or_else(|| not_found(id).with_operation("overflow::set_adapter_residency"))?;
        sides.get(version.told_by()).set_adapter_residency(&version.inner, residency).await
    }

    pub(crate) fn status(&self, sides: &Sides) -> Vec<AdapterStatus> {
        let registry = self.read();
        let listed = |side: Side| -> BTreeMap<String, AdapterStatus> {
            let all = sides.get(side).adapters().into_iter();
            all.map(|status| (status.info.key.id.to_string(), status)).collect()
        };
        let mut local = listed(Side::Local);
        // Asked only when somebody needs it.
        let remote_alone = registry.entries.values().any(|entry| !entry.version.local);
        let mut remote = if remote_alone { listed(Side::Remote) } else { BTreeMap::new() };
        let tell = |entry: &Entry| {
            let of_side = match entry.version.told_by() {
                Side::Local => local.remove(&entry.version.inner),
                Side::Remote => remote.remove(&entry.version.inner),
            };
            match of_side {
                Some(status) => AdapterStatus { info: entry.info.clone(), ..status },
                // Somebody unloaded it behind our back.
                None => AdapterStatus {
                    info: entry.info.clone(),
                    residency: Residency::default(),
                    resident: false,
                    digest: None,
                },
            }
        };
        registry.entries.values().map(tell).collect()
    }
}

fn residency_of(sides: &Sides, version: &Version) -> Residency {
    let all = sides.get(Side::Local).adapters();
    all.iter().find(|status| *status.info.key.id == *version.inner).map_or(Residency::default(), |one| one.residency)
}

/// Loads under a fresh name, in the place of what was there before.
async fn load_as(
    sides: &Sides,
    inner: &str,
    files: &AdapterFiles,
    way: &mut Way<'_>,
) -> Result<(Version, AdapterInfo)> {
    let (version, info) = load_both(sides, inner, files, way).await?;
    way.settle_in(&version).await?;
    Ok((version, info))
}

/// Loads on every side that does adapters. What a side declares not to support leaves it without them; any other refusal is
/// everybody's.
async fn load_both(
    sides: &Sides,
    inner: &str,
    files: &AdapterFiles,
    way: &mut Way<'_>,
) -> Result<(Version, AdapterInfo)> {
    let (mut here, mut there, mut cannot) = (None, None, None);
    for (side, info) in [(Side::Local, &mut here), (Side::Remote, &mut there)] {
        let backend = sides.get(side);
        if !does_adapters(backend) {
            continue;
        }
        let mut result = backend.load_adapter(inner, files.clone()).await;
        if side == Side::Local && result.as_ref().is_err_and(|error| error.kind() == ErrorKind::OutOfMemory) {
            // The old weights are pinned, and the new ones will be: they need not both have room.
            if way.make().await? {
                result = backend.load_adapter(inner, files.clone()).await;
            }
        }
        match result {
            Ok(loaded) => *info = Some(loaded),
            Err(error) if error.kind() == ErrorKind::Unsupported => cannot = cannot.or(Some(error)),
            Err(error) => return Err(error.with_context("side", side.as_str())),
        }
    }
    if let (Some(local), Some(remote)) = (&here, &there)
        && local.invocation_tokens != remote.invocation_tokens
    {
        // A side that does not know activated adapters would apply it to every token.
        let knows = |side: Side| sides.get(side).capability().activated_adapters;
        match (knows(Side::Local), knows(Side::Remote)) {
            (true, false) => there = unloaded(sides, Side::Remote, inner).await?,
            (false, true) => here = unloaded(sides, Side::Local, inner).await?,
            _ => {
                return Err(Error::new(
                    ErrorKind::InvalidAdapter,
                    "the two sides do not agree on the tokens that invoke this adapter",
                )
                .with_backend(NAME)
                .with_operation("overflow::load_adapter")
                .with_context("local", format!("{:?}", local.invocation_tokens))
                .with_context("remote", format!("{:?}", remote.invocation_tokens)));
            }
        }
    }
    let version = Version { inner: inner.to_owned(), local: here.is_some(), remote: there.is_some() };
    match here.or(there) {
        Some(info) => Ok((version, info)),
        None => Err(cannot.unwrap_or_else(|| Error::unsupported(NAME, "load_adapter"))),
    }
}

async fn unloaded(sides: &Sides, side: Side, inner: &str) -> Result<Option<AdapterInfo>> {
    sides.get(side).unload_adapter(inner).await.map(|()| None)
}

/// How new weights take the place of old ones on the local side, where old and new may not fit beside each other.
struct Way<'a> {
    sides: &'a Sides,
    before: Option<&'a Version>,
    /// What was said of the old weights, and holds for the new ones.
    residency: Residency,
    /// The old ones, which were pinned, may be paged out for now.
    made: bool,
}

impl Way<'_> {
    async fn reside(&self, inner: &str, residency: Residency) -> Result<()> {
        self.sides.get(Side::Local).set_adapter_residency(inner, residency).await
    }

    /// Lets pinned old weights be paged out. `false` where there are none, or where they may be already.
    async fn make(&mut self) -> Result<bool> {
        match self.before {
            Some(before) if self.residency == Residency::Pinned && !self.made => {
                self.reside(&before.inner, LAST_TO_GO).await?;
                self.made = true;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// Says of the new weights what was said of the old.
    async fn settle_in(&mut self, version: &Version) -> Result<()> {
        if !version.local || self.residency == Residency::default() {
            return Ok(());
        }
        match self.reside(&version.inner, self.residency).await {
            Err(error) if error.kind() == ErrorKind::OutOfMemory && self.make().await? => {
                self.reside(&version.inner, self.residency).await
            }
            result => result,
        }
    }

    /// Pins the old weights again.
    async fn undo(&self) {
        if let Some(before) = self.before.filter(|_| self.made)
            && let Err(error) = self.reside(&before.inner, Residency::Pinned).await
        {
            tracing::warn!(adapter = before.inner, %error, "it was pinned, and no longer is");
        }
    }
}
