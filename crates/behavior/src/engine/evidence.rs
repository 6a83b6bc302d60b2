//! What the engine says of itself, and whether it can be true.

use consort_core::{Device, DevicePolicy, ErrorKind, Proof, Want};

use super::List;
use crate::case::{Failure, Outcome, ensure};
use crate::fixture::{EngineFixture, Setup};
use crate::rig::{Rig, fails};
use crate::script::Script;
use crate::witness;

pub(super) fn add(list: &mut List) {
    list.add("evidence_is_of_the_named_device", &[], named_device);
    list.add("evidence_has_a_witness", &[], witnessed);
    list.add("evidence_is_complete", &[], complete);
    list.add("accelerated_only_admits_accelerators_alone", &[], accelerated_only);
    list.add("another_device_is_refused", &[], another_device);
    list.add("capability_is_consistent", &[], consistent_capability);
    list.add("model_info_is_consistent", &[], consistent_info);
}

fn named_device(fixture: &EngineFixture) -> Outcome {
    let rig = Rig::new(fixture)?;
    let evidence = rig.engine.evidence();
    ensure!(
        evidence.device == fixture.device,
        "{} was named, and the evidence tells of {}",
        fixture.device,
        evidence.device
    );
    DevicePolicy::Named(fixture.device).admit(&evidence)?;
    Ok(())
}

/// The process itself is asked, because an engine that lies about its device lies here too.
fn witnessed(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    if fixture.capability.logprobs {
        rig.fresh_text(&fixture.prompt(3, 1))?;
    }
    let evidence = rig.engine.evidence();
    let places = evidence.placements.iter().map(|placement| (placement.device, placement.component.as_str()));
    for (device, component) in std::iter::once((evidence.device, "the bulk")).chain(places) {
        witness::sees(device).map_err(|why| {
            Failure::new(format!("{component} is said to run on {device}, and nothing bears that out: {why}"))
        })?;
    }
    Ok(())
}

fn complete(fixture: &EngineFixture) -> Outcome {
    let rig = Rig::new(fixture)?;
    let evidence = rig.engine.evidence();
    ensure!(!evidence.device_name.is_empty(), "the device has no name");
    ensure!(evidence.backend == rig.engine.name(), "the evidence is of the backend {:?}", evidence.backend);
    ensure!(evidence.placements.iter().any(|placement| !placement.allowed), "no part of the model is placed anywhere");
    ensure!(
        (evidence.established_by == Proof::RemoteReport) == (evidence.device == Device::Remote),
        "a remote device is known by a remote report, and nothing else is"
    );
    Ok(())
}

fn accelerated_only(fixture: &EngineFixture) -> Outcome {
    let made = (fixture.make)(&Setup { policy: DevicePolicy::AcceleratedOnly, ..fixture.setup() });
    if fixture.device.is_accelerator() {
        made?;
    } else {
        let made = made.map(|engine| engine.evidence().device);
        let error = fails(made, ErrorKind::DevicePolicy, "loading on the processor unasked")?;
        ensure!(error.to_string().contains("--device cpu"), "the error must say what to do: {error}");
    }
    Ok(())
}

fn another_device(fixture: &EngineFixture) -> Outcome {
    // No engine of one kind runs on both, so one of the two is certainly another.
    let other = if fixture.device == Device::Metal { Device::Cuda(7) } else { Device::Metal };
    let made = (fixture.make)(&Setup { policy: DevicePolicy::Named(other), ..fixture.setup() });
    fails(
        made.map(|engine| engine.evidence().device),
        ErrorKind::DevicePolicy,
        "loading for a device that is not used",
    )?;
    Ok(())
}

fn consistent_capability(fixture: &EngineFixture) -> Outcome {
    let mut rig = Rig::new(fixture)?;
    let capability = rig.engine.capability();
    ensure!(capability == fixture.capability, "two engines of one kind declare different things");
    ensure!(capability.max_sequences >= 1, "no sequence can be open");
    ensure!(capability.max_sequence_tokens >= 1, "a sequence can hold no token");
    ensure!(capability.max_batch_tokens >= capability.max_sequences.min(8), "a batch cannot hold a token a sequence");
    ensure!(capability.fork || !capability.fork_is_shallow, "forks are shallow, and there are none");
    ensure!(
        capability.logit_tolerance.is_finite() && capability.logit_tolerance >= 0.0,
        "the tolerance is no tolerance: {}",
        capability.logit_tolerance
    );
    let seq = rig.open()?;
    let script = Script::text(&fixture.prompt(1, 2));
    if capability.logprobs {
        rig.step(script.chunk().step(seq, Want::Last))?;
    }
    ensure!(rig.engine.capability() == capability, "the capability changed by use");
    Ok(())
}

fn consistent_info(fixture: &EngineFixture) -> Outcome {
    let rig = Rig::new(fixture)?;
    let info = rig.engine.info();
    ensure!(info.vocab_size > 0, "the vocabulary is empty");
    ensure!(!info.architecture.is_empty(), "the architecture has no name");
    let stranger = info.stop_tokens.iter().find(|token| **token as usize >= info.vocab_size);
    ensure!(stranger.is_none(), "the stop token {stranger:?} is beyond the vocabulary");
    ensure!(!info.stop_tokens.is_empty(), "no token ends a reply");
    ensure!(
        fixture.capability.image_input == info.image_token.is_some(),
        "a model that sees has an image token, and another has none"
    );
    ensure!(
        rig.engine.capability().max_sequence_tokens <= info.context_length,
        "sequences may be longer than the model was made for"
    );
    ensure!(fixture.tokens.end as usize <= info.vocab_size, "the fixture's tokens are beyond the vocabulary");
    let memory = rig.engine.memory();
    ensure!(memory.weights > 0, "the weights take no memory");
    Ok(())
}
