//! Every saboteur is caught by the cases that are there to catch it.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;

use common::forgetful::{Forgets, forgetful};
use consort_behavior::fixture::EngineFixture;
use consort_behavior::harness::caught;
use consort_behavior::saboteur::{Fault, sabotaged};
use consort_behavior::{backend_cases, engine_cases, witness};
use consort_core::Device;

/// The cases that must catch a fault: each of these, whatever else does.
fn catchers(fault: Fault) -> &'static [&'static str] {
    match fault {
        Fault::IgnoreAdapters => &["every_adapter_changes_the_logits", "an_adapter_touches_every_token"],
        Fault::IgnoreScale => &["the_scale_matters"],
        Fault::KeepOldWeights => &["the_same_name_with_new_weights", "the_same_name_after_unloading"],
        Fault::ShiftPositions => &["chunks_of_65_after_64", "positions_are_taken_from_the_caller"],
        Fault::CountPositions => &["positions_matter", "rows_and_columns_matter"],
        Fault::LeakAnotherPast => &["two_parked_pasts_do_not_mix", "parked_pasts_take_no_slot"],
        Fault::LeakStaleState => &["a_past_is_as_it_was_when_parked"],
        Fault::DropImage => &["an_image_is_seen", "two_images_in_one_prompt"],
        Fault::BlankImage => &["an_image_is_seen"],
        Fault::ReuseFirstImage => &["an_image_is_seen", "the_order_of_two_images_matters"],
        Fault::RestartImage => &["an_image_in_chunks", "an_image_token_by_token"],
        Fault::NeighbourLogits => &["a_batch_of_8_against_each_alone", "eight_sequences_with_three_adapters"],
        Fault::LieAboutDevice => &["another_device_is_refused", "accelerated_only_admits_accelerators_alone"],
        Fault::ForkSharesWrites => &["fork_after_64", "many_forks_in_one_batch"],
        Fault::ReleaseNothing => &["slots_are_bounded", "release_gives_memory_back", "a_released_id_is_stale"],
        Fault::LoseChunkEnd => &["chunks_of_seven", "an_adapter_in_chunks"],
        Fault::RefusedStepAdvances => {
            &["a_bad_token_at_the_end_is_refused_alone", "a_refused_step_leaves_its_sequence"]
        }
        Fault::UnloadDropsRunning => &["unloading_while_a_sequence_runs"],
        Fault::ActFromTheStart => &["before_it_acts_the_base_model_speaks", "an_activation_while_generating"],
        Fault::ActAtOnce => &["forking_into_a_persona_before_it_acts", "forking_back_to_the_base_model"],
        Fault::KeepOwnAdapters => &["forking_into_personas", "one_parked_scene_for_two_personas"],
    }
}

/// Goldens that must catch a fault beside those, where there are goldens.
fn golden_catchers(fault: Fault) -> &'static [&'static str] {
    match fault {
        Fault::IgnoreAdapters => &["golden::lora-all::logits", "golden::only-out_proj::logits"],
        Fault::IgnoreScale => &["golden::lora-all-half::logits"],
        Fault::ShiftPositions => &["golden::text-24::greedy"],
        Fault::CountPositions => &["golden::image-square::logits"],
        Fault::DropImage | Fault::BlankImage => &["golden::image-square::logits", "golden::two-images::logits"],
        Fault::ReuseFirstImage | Fault::RestartImage => &[],
        Fault::LoseChunkEnd => &[],
        Fault::ActFromTheStart => &["golden::activated-middle::logits", "golden::activated-twice::logits"],
        _ => &[],
    }
}

/// Runs the cases that `chosen` lets through and gives the names of those that fail, with the number that ran.
fn failing(fixture: &EngineFixture, chosen: impl Fn(&str) -> bool) -> (BTreeSet<String>, usize) {
    let cases = engine_cases(fixture);
    let mut ran = 0;
    let failed = cases
        .iter()
        .filter(|case| case.missing().is_none() && chosen(case.name()))
        .inspect(|_| ran += 1)
        .filter(|case| caught(case).is_err())
        .map(|case| case.name().to_owned())
        .collect();
    (failed, ran)
}

#[test]
fn every_fault_of_the_toy_is_caught() {
    let fixture = common::hash().unwrap();
    assert_eq!(failing(&fixture, |_| true).0, BTreeSet::new(), "the toy itself must pass");
    for fault in Fault::ALL {
        let (failed, _) = failing(&sabotaged(&fixture, fault), |_| true);
        for catcher in catchers(fault) {
            assert!(failed.contains(*catcher), "{fault:?} passes {catcher}; what fails: {failed:?}");
        }
    }
}

/// On real numerics, where a fault may change little: only the cases that must catch it, which the engine itself passes.
#[test]
fn every_fault_of_the_native_engine_is_caught() {
    let model = "grouped2";
    let files = common::native::converted(model, consort_forge::OutputType::F32).unwrap();
    let fixture = common::native::fixture(model, model, &files, 1).unwrap();
    let mut problems = Vec::new();
    for fault in Fault::ALL {
        let wanted: Vec<&str> = catchers(fault).iter().chain(golden_catchers(fault)).copied().collect();
        let chosen = |name: &str| wanted.contains(&name);
        let (failed, ran) = failing(&fixture, chosen);
        if !failed.is_empty() || ran < wanted.len() {
            problems.push(format!("{fault:?}: of {wanted:?} {ran} apply, and without the fault {failed:?} fail"));
        }
        let (failed, _) = failing(&sabotaged(&fixture, fault), chosen);
        problems.extend(
            wanted.iter().filter(|name| !failed.contains(**name)).map(|name| format!("{fault:?} passes {name}")),
        );
    }
    assert!(problems.is_empty(), "{problems:#?}");
}

/// The backend suite catches what shows behind the scheduler too.
#[test]
fn faults_behind_the_scheduler_are_caught() {
    let caught_by: &[(Fault, &[&str])] = &[
        (Fault::IgnoreAdapters, &["an_adapter_is_the_engines_own", "adapters_never_reach_each_others_cache"]),
        (Fault::IgnoreScale, &["an_adapter_is_the_engines_own", "adapters_never_reach_each_others_cache"]),
        (Fault::KeepOldWeights, &["the_same_name_with_new_weights"]),
        (Fault::ShiftPositions, &["greedy_is_the_engines_own"]),
        (Fault::CountPositions, &["images_are_the_engines_own"]),
        (Fault::LeakAnotherPast, &["adapters_never_reach_each_others_cache"]),
        (Fault::BlankImage, &["images_are_told_apart", "images_are_the_engines_own"]),
        (Fault::DropImage, &["images_are_told_apart", "images_are_the_engines_own"]),
        (Fault::ReuseFirstImage, &["images_are_told_apart"]),
        (Fault::NeighbourLogits, &["several_streams_are_each_alone", "personas_at_once_over_one_prompt"]),
        (Fault::LieAboutDevice, &["what_it_is"]),
        (Fault::LoseChunkEnd, &["a_long_prompt_is_the_engines_own"]),
        (Fault::ActFromTheStart, &["a_room_of_eight_reads_its_scene_once", "an_activated_adapter_is_the_engines_own"]),
        (Fault::KeepOwnAdapters, &["a_room_of_eight_reads_its_scene_once", "personas_that_come_one_after_another"]),
    ];
    let mut problems = Vec::new();
    for (fault, wanted) in caught_by {
        let failing = |fault| {
            let fixture = common::scheduled::hash(fault).unwrap();
            let cases = backend_cases(&fixture);
            let chosen: Vec<_> = cases.iter().filter(|case| wanted.contains(&case.name())).collect();
            assert_eq!(chosen.len(), wanted.len(), "a case of {wanted:?} is missing");
            let failed = chosen.into_iter().filter(|case| caught(case).is_err());
            failed.map(|case| case.name().to_owned()).collect::<Vec<_>>()
        };
        let honest = failing(None);
        if !honest.is_empty() {
            problems.push(format!("without {fault:?} {honest:?} fail"));
        }
        let failed = failing(Some(*fault));
        problems.extend(
            wanted
                .iter()
                .filter(|name| !failed.iter().any(|other| other == *name))
                .map(|name| format!("{fault:?} passes {name}")),
        );
    }
    assert!(problems.is_empty(), "{problems:#?}");
}

/// What a backend forgets of a request is missed by the cases of sampling and structure.
#[test]
fn what_a_backend_forgets_is_missed() {
    let wanted: &[(Forgets, &[&str])] = &[
        (
            Forgets::Structure,
            &[
                "a_regular_expression_is_obeyed",
                "a_choice_is_one_of_its_texts",
                "a_json_schema_is_obeyed",
                "a_grammar_is_obeyed",
            ],
        ),
        (Forgets::Seed, &["a_seed_repeats_itself", "a_structure_is_repeated_by_its_seed"]),
        (Forgets::Bias, &["a_logit_bias_forbids_and_forces"]),
        (Forgets::Penalties, &["penalties_change_a_repetition", "penalties_are_those_of_the_engines_own_logits"]),
        (Forgets::MinTokens, &["min_tokens_hold_the_end_back"]),
        (Forgets::EndTokens, &["ignored_end_tokens_are_tokens_like_others"]),
    ];
    let honest = common::scheduled::hash(None).unwrap();
    for (forgets, wanted) in wanted {
        for (fixture, fails) in [(honest.clone(), false), (forgetful(&honest, *forgets), true)] {
            let cases = backend_cases(&fixture);
            for name in *wanted {
                let case = cases.iter().find(|case| case.name() == *name).unwrap();
                assert_eq!(caught(case).is_err(), fails, "{name} with a backend that forgets {forgets:?}: {fails}");
            }
        }
    }
}

/// An engine that lies for an accelerator's fixture has nothing to show for it in the process.
#[test]
fn a_lie_about_an_accelerator_has_no_witness() {
    let fixture = common::hash().unwrap();
    if witness::sees(Device::Cuda(0)).is_ok() {
        // Here the lie could be true, and this case cannot tell.
        return;
    }
    let mut lying = sabotaged(&fixture, Fault::LieAboutDevice);
    lying.device = Device::Cuda(0);
    let (failed, _) = failing(&lying, |name| name.starts_with("evidence"));
    assert_eq!(failed.into_iter().collect::<Vec<_>>(), ["evidence_has_a_witness"]);
}
