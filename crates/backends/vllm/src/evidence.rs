//! What is known of the device: what servers say.

use consort_core::{Device, DeviceEvidence, Placement, Proof};

use crate::replica::ReplicaStatus;

/// Remote, as reported.
pub(crate) fn reported(replicas: &[ReplicaStatus]) -> DeviceEvidence {
    let place = |replica: &ReplicaStatus| {
        let what = match &replica.facts {
            Some(facts) => {
                format!("{} ({} front end {}, model {})", replica.endpoint, facts.front_end, facts.version, facts.model)
            }
            None => format!("{} (not reached yet)", replica.endpoint),
        };
        Placement { component: what, device: Device::Remote, allowed: true }
    };
    let versions: std::collections::BTreeSet<_> =
        replicas.iter().filter_map(|replica| Some(replica.facts.as_ref()?.version.clone())).collect();
    let versions = versions.into_iter().collect::<Vec<_>>().join(", ");
    DeviceEvidence {
        backend: crate::NAME.into(),
        device: Device::Remote,
        device_name: format!(
            "vLLM {versions}, as reported by {} of {} servers",
            replicas.iter().filter(|r| r.facts.is_some()).count(),
            replicas.len()
        ),
        placements: replicas.iter().map(place).collect(),
        established_by: Proof::RemoteReport,
    }
}
