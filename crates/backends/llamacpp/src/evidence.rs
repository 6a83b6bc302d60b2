//! Where the model was seen to compute: every operation of a warm-up, with the memory in which its result lies.

use std::collections::{BTreeMap, BTreeSet};

use consort_core::{Device, DeviceEvidence, Placement, Proof};

use crate::engine::NAME;
use crate::ffi::Seen;

/// What a warm-up showed.
#[derive(Debug, Default)]
pub(crate) struct Observed {
    pub(crate) text: Vec<Seen>,
    pub(crate) vision: Vec<Seen>,
}

/// What is said of the device.
pub(crate) fn evidence(device: Device, device_name: String, observed: &Observed) -> DeviceEvidence {
    let mut placements = placements(device, &observed.text, "");
    placements.extend(placements_of_vision(device, &observed.vision));
    DeviceEvidence { backend: NAME.into(), device, device_name, placements, established_by: Proof::GraphSplitAudit }
}

fn placements_of_vision(device: Device, seen: &[Seen]) -> Vec<Placement> {
    placements(device, seen, "vision: ")
}

/// The input embedding look-up: the table may stay with the processor, which reads a row a token.
fn is_lookup(seen: &Seen) -> bool {
    seen.op == "GET_ROWS" && seen.operand.starts_with("token_embd")
}

/// The layer of a node, where its name or its weights tell it.
fn layer(seen: &Seen) -> Option<usize> {
    let of_node = seen.node.rsplit_once('-').map(|(_, number)| number);
    let of_weights =
        || seen.operand.strip_prefix("blk.").or_else(|| seen.operand.strip_prefix("v.blk."))?.split('.').next();
    of_node.and_then(|number| number.parse().ok()).or_else(|| of_weights()?.parse().ok())
}

/// One line for what is where it should be, layers together; one for each kind of operation that is not.
fn placements(device: Device, seen: &[Seen], prefix: &str) -> Vec<Placement> {
    let place = |seen: &Seen| if seen.on_host { Device::Cpu } else { device };
    let mut layers = BTreeSet::new();
    let (mut in_layers, mut others, mut lookup) = (0_usize, BTreeMap::<&str, usize>::new(), None);
    let mut strays = BTreeMap::<&str, (usize, &str)>::new();
    for node in seen {
        if is_lookup(node) {
            lookup = Some(place(node));
        } else if place(node) != device {
            strays.entry(&node.op).or_insert((0, &node.node)).0 += 1;
        } else if let Some(layer) = layer(node) {
            layers.insert(layer);
            in_layers += 1;
        } else {
            *others.entry(&node.op).or_default() += 1;
        }
    }
    let mut all = Vec::new();
    let mut add = |component: String, device, allowed| {
        all.push(Placement { component: format!("{prefix}{component}"), device, allowed });
    };
    if let Some(place) = lookup {
        add("token_embd look-up".into(), place, true);
    }
    if let (Some(first), Some(last)) = (layers.first(), layers.last()) {
        add(format!("blk.{first}-{last} ({in_layers} operations)"), device, false);
    }
    if !others.is_empty() {
        let names: Vec<&str> = others.keys().copied().collect();
        add(format!("outside of layers: {}", names.join(", ")), device, false);
    }
    for (op, (count, example)) in strays {
        add(format!("{op} ({count} times, such as {example})"), Device::Cpu, false);
    }
    all
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use consort_core::DevicePolicy;

    use super::*;

    fn seen(op: &str, node: &str, operand: &str, on_host: bool) -> Seen {
        let memory = if on_host { "CPU" } else { "Vulkan0" };
        Seen { op: op.into(), node: node.into(), operand: operand.into(), on_host, memory: memory.into() }
    }

    #[test]
    fn a_stray_operation_is_named_and_the_look_up_is_allowed() {
        let mut observed = Observed {
            text: vec![
                seen("GET_ROWS", "model.input_embed", "token_embd.weight", true),
                seen("MUL_MAT", "linear_attn_qkv_mixed-0", "blk.0.attn_qkv.weight", false),
                seen("MUL_MAT", "Kcur-3", "blk.3.attn_k.weight", false),
                seen("MUL_MAT", "result_output", "output.weight", false),
            ],
            vision: Vec::new(),
        };
        let told = evidence(Device::Vulkan(0), "a GPU".into(), &observed);
        DevicePolicy::AcceleratedOnly.admit(&told).unwrap();
        assert!(told.placements.iter().any(|place| place.component.starts_with("blk.0-3")), "{told:?}");
        observed.text.push(seen("SSM_CONV", "conv_output-1", "", true));
        let error = DevicePolicy::AcceleratedOnly.admit(&evidence(Device::Vulkan(0), "a GPU".into(), &observed));
        assert!(error.unwrap_err().to_string().contains("SSM_CONV"));
    }
}
