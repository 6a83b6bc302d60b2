//! Where a persona may be answered, and whether that can be.

use consort_core::{Device, ModelBackend, PlacementRule};

/// Where a model is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sides {
    /// Here alone.
    Local,
    /// On servers alone.
    Remote,
    /// Here, and on servers what this side cannot take.
    Both,
}

impl Sides {
    /// Those of a backend.
    pub fn of(backend: &dyn ModelBackend) -> Self {
        match (backend.sides(), backend.evidence().device) {
            (Some(_), _) => Self::Both,
            (None, Device::Remote) => Self::Remote,
            (None, _) => Self::Local,
        }
    }

    /// Whether a persona can be answered where it says.
    ///
    /// # Errors
    /// The side that it names is not there; the message says what to do.
    pub fn admit(self, rule: PlacementRule) -> Result<(), &'static str> {
        match (rule, self) {
            (PlacementRule::Any, _)
            | (_, Self::Both)
            | (PlacementRule::Local, Self::Local)
            | (PlacementRule::Remote | PlacementRule::PreferRemote, Self::Remote) => Ok(()),
            (PlacementRule::Remote | PlacementRule::PreferRemote, Self::Local) => {
                Err("there is no remote side: name its servers (`urls` under `[remote]`), beside `model.backend`")
            }
            (PlacementRule::Local, Self::Remote) => {
                Err("nothing is computed here, but all of it on servers: name an engine here (`model.backend`)")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_can_be_is_admitted() {
        use PlacementRule::{Any, Local, PreferRemote, Remote};
        for (sides, admitted) in [
            (Sides::Local, &[Any, Local][..]),
            (Sides::Remote, &[Any, PreferRemote, Remote]),
            (Sides::Both, &[Any, Local, PreferRemote, Remote]),
        ] {
            for rule in [Any, Local, PreferRemote, Remote] {
                assert_eq!(sides.admit(rule).is_ok(), admitted.contains(&rule), "{sides:?} {rule:?}");
            }
        }
    }
}
