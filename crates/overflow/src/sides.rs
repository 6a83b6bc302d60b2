//! The two backends.

use std::sync::Arc;

use consort_core::ModelBackend;

use crate::adapters::Version;
use crate::combine;
use crate::route::{Needs, Side};

pub(crate) struct Sides {
    pub(crate) local: Arc<dyn ModelBackend>,
    pub(crate) remote: Arc<dyn ModelBackend>,
}

impl Sides {
    pub(crate) fn get(&self, side: Side) -> &dyn ModelBackend {
        match side {
            Side::Local => &*self.local,
            Side::Remote => &*self.remote,
        }
    }

    /// Whether the other side takes longer prompts.
    pub(crate) fn other_is_longer(&self, side: Side) -> bool {
        combine::room(self.get(side.other())) > combine::room(self.get(side))
    }

    /// Whether a side declares what is needed, and has the adapters.
    pub(crate) fn is_able(&self, side: Side, needs: &Needs, adapters: &[Arc<Version>]) -> bool {
        let backend = self.get(side);
        let capability = backend.capability();
        let declared = [
            (needs.images, capability.image_input),
            (needs.structure, capability.structured_output),
            (needs.logprobs, capability.logprobs),
            (needs.prompt_logprobs, capability.prompt_logprobs),
            (needs.embeddings, capability.embeddings),
        ];
        declared.iter().all(|(needed, declared)| !needed || *declared)
            && needs.tokens < combine::room(backend)
            && adapters.iter().all(|version| version.is_on(side))
    }
}
