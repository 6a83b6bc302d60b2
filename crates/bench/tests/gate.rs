//! Each verdict of the gate, and that nothing is accepted which was not shown.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use consort_bench::accept::*;
use consort_bench::live::*;
use consort_bench::report::*;
use consort_bench::{Divergence, Perplexity, Spread};
use consort_core::ErrorKind;

fn about(name: &str) -> About {
    About {
        name: name.into(),
        transport: Transport::InProcess,
        engine: name.into(),
        model: Some(ModelAbout {
            name: "Qwen3.5-4B".into(),
            architecture: "qwen35".into(),
            layers: 32,
            hidden_size: 2560,
            vocab_size: 248_320,
            parameters: 4_000_000_000,
            weight_type: "Q4_K".into(),
            source: "Qwen3.5-4B-Q4_K_M.gguf".into(),
        }),
        evidence: Some(Evidence {
            device: "metal".into(),
            device_name: "Apple M5 Pro".into(),
            accelerator: true,
            strays: Vec::new(),
            established_by: "graph_split_audit".into(),
        }),
        settings: BTreeMap::new(),
    }
}

fn quality() -> Quality {
    let spread = Spread { mean: 0.001, standard_error: None, median: 0.0, p90: 0.0, p99: 0.0, p99_9: 0.1, max: 0.2 };
    let perplexity =
        Perplexity { perplexity: 9.0, perplexity_error: None, nll: 2.2, nll_error: None, scored: 1000, windows: 4 };
    Quality {
        reference: "llamacpp".into(),
        other: "new".into(),
        model: "m".into(),
        text: "t".into(),
        tokens: 1000,
        divergence: Divergence {
            kl: spread,
            top1_agreement: 0.99,
            top1_agreement_error: None,
            top_probability_change: 0.0,
            top_probability_change_error: None,
            reference: perplexity,
            other: perplexity,
            perplexity_ratio: 1.0,
            perplexity_ratio_error: None,
        },
    }
}

/// Figures of three blocks: the new one's are `factor` times as good.
fn rows(metric: Metric, group: &str, factor: f64) -> [Row; 2] {
    let row = |target: &str, scale: f64| Row {
        target: target.into(),
        group: group.into(),
        metric,
        summary: Summary::of([100.0, 104.0, 98.0].map(|value| Some(value * scale)).to_vec()).unwrap(),
    };
    let scale = if metric.better() == Better::Higher { factor } else { 1.0 / factor };
    [row("new", scale), row("llamacpp", 1.0)]
}

fn empty(settings: Settings, title: &str) -> Report {
    let workload = Workload::generate(settings, 1, 3).unwrap();
    let circumstances = Circumstances {
        title: title.into(),
        command: String::new(),
        notes: Vec::new(),
        searches: Vec::new(),
        quality: Vec::new(),
    };
    let mut report = Report::new(&workload, vec![about("new"), about("llamacpp")], Vec::new(), circumstances);
    report.optimised = true;
    report
}

/// Everything that is needed: every figure of the new one is `factor` times as good.
fn reports(factor: f64) -> Vec<Report> {
    let mut room = empty(Settings::Room(RoomConfig::default()), "room");
    for group in ["room, warm", "room, cold"] {
        for metric in [
            Metric::FirstTokenP50,
            Metric::FirstTokenP95,
            Metric::InterTokenP50,
            Metric::InterTokenP95,
            Metric::AggregateRate,
        ] {
            room.rows.extend(rows(metric, group, factor));
        }
    }
    room.rows.extend(rows(Metric::ModelMemory, WHOLE_BLOCK, factor));
    room.quality.push(quality());
    let mut neighbour = empty(Settings::Neighbour(NeighbourConfig::default()), "neighbour");
    neighbour.rows.push(Row {
        target: "new".into(),
        group: "room beside a neighbour, warm".into(),
        metric: Metric::FairShareKept,
        summary: Summary::of(vec![Some(0.9)]).unwrap(),
    });
    vec![room, neighbour]
}

fn suite() -> BehaviorResults {
    BehaviorResults::parse(
        "Running tests/backends.rs (x)\ntest profile::new (475 of 475 cases executed, at least 475; 0 do not apply) ... ok",
    )
}

fn judge_with(reports: &[Report], behavior: Option<&BehaviorResults>, statement: Option<&Statement>) -> Acceptance {
    let case = Case { backend: "new", against: "llamacpp", reports, behavior, statement };
    judge(&Rules::seed().unwrap(), &case).unwrap()
}

fn axis(name: &str) -> Statement {
    Statement { axis: name.into(), trade_off: "a scene is read more slowly".into() }
}

fn broken(found: &Acceptance) -> Vec<&str> {
    found
        .conditions
        .iter()
        .filter(|rule| rule.required && rule.outcome != Outcome::Kept)
        .map(|rule| rule.rule.as_str())
        .collect()
}

#[test]
fn as_good_everywhere_is_accepted() {
    for factor in [0.96, 1.0, 1.3] {
        let found = judge_with(&reports(factor), Some(&suite()), None);
        assert_eq!(found.verdict, Verdict::Accepted, "{}", found.markdown());
        assert!(found.provisional.is_empty() && found.headline() == "accepted");
        assert!(found.parity.iter().all(|rule| rule.outcome == Outcome::Kept));
    }
}

#[test]
fn worse_is_rejected() {
    let found = judge_with(&reports(0.8), Some(&suite()), None);
    assert_eq!((found.verdict.clone(), broken(&found).len()), (Verdict::Rejected, 0));
    assert!(found.parity[0].figure.starts_with("0.80×"), "{:?}", found.parity[0]);
}

/// Worse at reading a scene, much better in a running room.
fn lopsided() -> Vec<Report> {
    let mut all = reports(1.3);
    all[0].rows.retain(|row| row.group != "room, cold");
    all[0].rows.extend(rows(Metric::FirstTokenP50, "room, cold", 0.6));
    all
}

#[test]
fn better_on_an_axis_needs_the_trade_off_in_words() {
    let all = lopsided();
    assert_eq!(judge_with(&all, Some(&suite()), None).verdict, Verdict::Rejected);
    let found = judge_with(&all, Some(&suite()), Some(&axis("latency")));
    assert!(matches!(&found.verdict, Verdict::BetterOnAxis { axis, .. } if axis == "latency"), "{:?}", found.verdict);
    assert!(found.markdown().contains("The trade-off: a scene is read more slowly"));
    // As good is not clearly better.
    let mut even = lopsided();
    even[0].rows.retain(|row| row.metric != Metric::InterTokenP50);
    even[0].rows.extend(rows(Metric::InterTokenP50, "room, warm", 1.05));
    assert_eq!(judge_with(&even, Some(&suite()), Some(&axis("latency"))).verdict, Verdict::Rejected);
}

#[test]
fn what_is_stated_may_not_cost_everything() {
    let stated = axis("programmability");
    let verdict = |factor| judge_with(&reports(factor), Some(&suite()), Some(&stated)).verdict;
    assert!(matches!(verdict(0.6), Verdict::BetterOnAxis { .. }));
    assert_eq!(verdict(0.4), Verdict::Rejected);
}

#[test]
fn elsewhere_a_verdict_is_provisional() {
    let changes: [fn(&mut About); 4] = [
        |about| about.evidence.as_mut().unwrap().device_name = "Apple M1".into(),
        |about| about.evidence.as_mut().unwrap().device = "vulkan:0".into(),
        |about| about.model.as_mut().unwrap().layers = 24,
        |about| about.model.as_mut().unwrap().source = "synthetic:4b:Q4_K_M".into(),
    ];
    for change in changes {
        let mut all = reports(1.0);
        for report in &mut all {
            report.targets.iter_mut().for_each(change);
        }
        // The envelope says something of the seed's machine only, so it may be missing.
        all.truncate(1);
        let found = judge_with(&all, Some(&suite()), None);
        assert_eq!(
            (found.headline().as_str(), found.provisional.len()),
            ("accepted (provisional)", 1),
            "{}",
            found.markdown()
        );
    }
}

#[test]
fn what_is_not_shown_is_not_kept() {
    type Change = fn(&mut Vec<Report>);
    let changes: [(&str, Change); 9] = [
        ("compiled with optimisation", |all| all[1].optimised = false),
        ("the same model file", |all| all[0].targets[0].model = None),
        ("the same model file", |all| all[0].targets[0].model.as_mut().unwrap().weight_type = "Q3_K".into()),
        ("accelerated only", |all| all[0].targets[0].evidence = None),
        ("accelerated only", |all| all[0].targets[0].evidence.as_mut().unwrap().accelerator = false),
        ("accelerated only", |all| {
            all[0].targets[0].evidence.as_mut().unwrap().strays = vec!["SSM_CONV on cpu".into()];
        }),
        ("quality: KL divergence, mean", |all| all[0].quality[0].divergence.kl.mean = 0.1),
        ("quality: same first choice", |all| all[0].quality[0].divergence.top1_agreement = 0.5),
        ("envelope: fair share kept beside other work", |all| all.truncate(1)),
    ];
    for (rule, change) in changes {
        let mut all = reports(2.0);
        change(&mut all);
        let found = judge_with(&all, Some(&suite()), None);
        assert_eq!(found.verdict, Verdict::Rejected, "{rule}");
        assert!(broken(&found).contains(&rule), "{rule}: {:?}", broken(&found));
    }
    let mut all = reports(2.0);
    all[0].quality.clear();
    let found = judge_with(&all, Some(&suite()), None);
    assert_eq!((found.verdict.clone(), broken(&found).len()), (Verdict::Rejected, 4));
    // A figure that is missing, or scatters, shows no parity.
    let mut all = reports(2.0);
    all[0].rows.retain(|row| row.metric != Metric::InterTokenP95);
    assert_eq!(judge_with(&all, Some(&suite()), None).verdict, Verdict::Rejected);
    let mut all = reports(2.0);
    let row = all[0].rows.iter_mut().find(|row| row.metric == Metric::InterTokenP95 && row.target == "new").unwrap();
    row.summary = Summary::of([10.0, 100.0, 50.0].map(Some).to_vec()).unwrap();
    let found = judge_with(&all, Some(&suite()), None);
    assert_eq!(found.verdict, Verdict::Rejected);
    assert!(found.parity.iter().any(|rule| rule.figure.starts_with("too uncertain")), "{}", found.markdown());
}

#[test]
fn the_behaviour_suite_must_have_run_and_be_green() {
    let parse = |text: &str| BehaviorResults::parse(&format!("Running tests/backends.rs (x)\n{text}"));
    for behavior in [
        None,
        Some(BehaviorResults::default()),
        Some(parse("test profile::other (475 of 475 cases executed, at least 475; 0 do not apply) ... ok")),
        Some(parse("test profile::new (475 of 475 cases executed, at least 475; 0 do not apply) ... FAILED")),
        Some(parse("test profile::new (474 of 475 cases executed, at least 475; 0 do not apply) ... ok")),
        Some(parse("test profile::new (99 of 99 cases executed, at least 9; 0 do not apply) ... ok")),
        Some(parse(
            "test new::plain::cancel ... FAILED\ntest profile::new (475 of 475 cases executed, at least 475; 0 do not apply) ... ok",
        )),
    ] {
        let found = judge_with(&reports(2.0), behavior.as_ref(), None);
        assert_eq!(found.verdict, Verdict::Rejected, "{behavior:?}");
        assert_eq!(broken(&found), ["behaviour suite `backends` green"]);
    }
}

#[test]
fn what_cannot_be_compared_is_refused() {
    let kind = |reports: &[Report], against: &str, statement: Option<&Statement>| {
        let case = Case { backend: "new", against, reports, behavior: None, statement };
        judge(&Rules::seed().unwrap(), &case).unwrap_err().kind()
    };
    assert_eq!(kind(&reports(1.0), "nobody", None), ErrorKind::InvalidRequest);
    assert_eq!(kind(&[], "llamacpp", None), ErrorKind::InvalidRequest);
    let mut mixed = reports(1.0);
    mixed[0].targets[1].transport = Transport::Http;
    assert_eq!(kind(&mixed, "llamacpp", None), ErrorKind::InvalidRequest);
    let silent = Statement { axis: "latency".into(), trade_off: " ".into() };
    assert_eq!(kind(&reports(1.0), "llamacpp", Some(&silent)), ErrorKind::InvalidRequest);
    assert_eq!(kind(&reports(1.0), "llamacpp", Some(&axis("beauty"))), ErrorKind::InvalidRequest);
}

#[test]
fn the_verdict_is_written_in_both_forms() {
    let folder = tempfile::tempdir().unwrap();
    let found = judge_with(&lopsided(), None, Some(&axis("latency")));
    let [json, markdown] = found.save(folder.path()).unwrap();
    assert!(json.ends_with("accept-new-against-llamacpp.json"));
    let back: Acceptance = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
    assert_eq!(back, found);
    let text = std::fs::read_to_string(markdown).unwrap();
    for part in ["**rejected**", "**not shown**", "**not kept**", "0.60×", "| accelerated only | Apple M5 Pro | kept |"]
    {
        assert!(text.contains(part), "{part:?} is missing:\n{text}");
    }
}
