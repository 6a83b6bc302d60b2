//! The backend suite, for every engine of this workspace behind the scheduler.

mod common;

use std::process::ExitCode;

use common::overflow::{Answers, overflow};
use common::scheduled;
use consort_behavior::backend::BackendFixture;
use consort_behavior::backend_cases;
use consort_behavior::harness::{Registered, SuiteKind, run};
use consort_core::Result;

fn register(fixture: Result<BackendFixture>) -> Result<Registered, String> {
    let fixture = fixture.map_err(|error| error.to_string())?;
    Ok(Registered {
        subject: fixture.engine.engine.clone(),
        model: fixture.engine.model.clone(),
        capability: fixture.engine.capability,
        cases: backend_cases(&fixture),
    })
}

/// The study model: its conversations and its goldens.
fn etude() -> Option<Result<Registered, String>> {
    let registered = register(scheduled::etude()?).map(|mut registered| {
        let of_interest = ["the_second_turn", "a_conversation", "greedy_of_the_goldens", "a_room_of_eight_reads"];
        registered.cases.retain(|case| of_interest.iter().any(|name| case.name().starts_with(name)));
        registered
    });
    Some(registered)
}

/// A local and a remote side that answer in turns. Left out is what counts what one side has done, kept or refused; the two
/// others, where one side answers all, run these cases.
fn in_turns() -> Result<Registered, String> {
    const OF_ONE_SIDE: [&str; 32] = [
        "what_it_is",
        "metrics_add_up",
        "metrics_add_up_whatever_happens",
        "cancelling_frees_the_slot",
        "cancelling_in_the_queue",
        "an_overload_is_refused_at_once",
        "a_deadline_that_passes_in_the_queue",
        "a_deadline_that_passes_in_the_middle_of_a_reply",
        "the_higher_priority_leaves_the_queue_first",
        "the_same_prompt_again_is_reused",
        "a_prompt_that_goes_on_is_reused",
        "an_adapter_has_its_own_cache",
        "a_room_of_eight_reads_its_scene_once",
        "a_room_of_eight_sees_its_picture_once",
        "personas_that_come_one_after_another",
        "the_base_model_shares_a_room",
        "a_persona_with_new_weights_keeps_the_scene",
        "a_scene_outlives_its_personas",
        "personas_over_an_ordinary_adapter",
        "a_persona_in_a_conversation",
        "more_adapters_than_there_is_room_for",
        "a_pinned_adapter_stays",
        "the_priority_decides_who_is_paged_out",
        "what_cannot_fit_is_told",
        "a_kept_past_outlives_its_adapters_absence",
        "files_that_changed_are_not_paged_in",
        "another_question_about_an_image_reuses_it",
        "another_short_question_about_an_image_reuses_it",
        "a_hostile_image_is_refused_and_the_neighbour_unharmed",
        "the_second_turn_prefills_what_is_new",
        "the_second_turn_after_an_image",
        "the_second_turn_with_image_and_adapter",
    ];
    let mut registered = register(overflow(scheduled::hash(None), Answers::InTurns))?;
    registered.cases.retain(|case| !OF_ONE_SIDE.contains(&case.name()));
    Ok(registered)
}

fn main() -> ExitCode {
    let profile = common::profile();
    let mut backends = vec![register(scheduled::parrot()), register(scheduled::hash(None))];
    backends.extend(["plain", "grouped2", "deep", "moe"].map(|model| register(scheduled::native(model))));
    backends.extend(etude());
    backends.extend([Answers::Local, Answers::Remote].map(|who| register(overflow(scheduled::hash(None), who))));
    backends.push(in_turns());
    #[cfg(feature = "llamacpp")]
    backends.extend(["plain", "grouped2", "deep", "moe"].map(|model| register(scheduled::llamacpp(model))));
    run(SuiteKind::Backends, profile, backends)
}
