//! Files from strangers: broken at random and broken on purpose. Each ends in a typed error or in a working thing, soon.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use consort_core::{ErrorKind, SpecialTokens};
use consort_gguf::Metadata;
use consort_test_support::Random;
use consort_text::{ChatTemplate, ChatTemplateInput, SpecialText, TemplateLimits, Tokenizer};
use serde_json::{Value, json};

/// One to three flipped bits, a cut, a doubled or a deleted stretch.
fn broken(original: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = original.to_vec();
    match random.below(8) {
        0 => bytes.truncate(random.below(bytes.len())),
        1 => {
            let begin = random.below(bytes.len());
            let end = (begin + 1 + random.below(40)).min(bytes.len());
            bytes.drain(begin..end);
        }
        2 => {
            let begin = random.below(bytes.len());
            let end = (begin + 1 + random.below(40)).min(bytes.len());
            let copy = bytes[begin..end].to_vec();
            let at = random.below(bytes.len());
            bytes.splice(at..at, copy);
        }
        _ => {
            for _ in 0..=random.below(3) {
                let at = random.below(bytes.len());
                bytes[at] ^= 1 << random.below(8);
            }
        }
    }
    bytes
}

/// The small tokenizer with a few merges, as a file.
fn small_json() -> Value {
    let mut json: Value = serde_json::from_slice(&consort_text::doc_tokenizer_json()).unwrap();
    for (token, id) in [("he", 258), ("ll", 259), ("hell", 260), ("Ġw", 261)] {
        json["model"]["vocab"][token] = id.into();
    }
    json["model"]["merges"] = json!([["h", "e"], "l l", ["he", "ll"], ["Ġ", "w"]]);
    json
}

#[test]
fn the_unbroken_tokenizer_works() {
    let tokenizer = Tokenizer::from_json(small_json().to_string().as_bytes(), None).unwrap();
    assert_eq!(tokenizer.encode("hell wo", SpecialTokens::Plain).unwrap(), [260, 261, u32::from(b'o')]);
    // Decomposed letters are composed, as the file asks.
    assert_eq!(tokenizer.encode("e\u{301}", SpecialTokens::Plain).unwrap(), [0xc3, 0xa9]);
    assert_eq!(tokenizer.encode("<|im_end|>", SpecialTokens::Parse).unwrap(), [257]);
    assert_eq!(tokenizer.token_bytes(261), Some(b" w".as_slice()));
    assert_eq!(tokenizer.token_bytes(9999), None);
    assert_eq!((tokenizer.id_to_token(261), tokenizer.token_to_id("Ġw")), (Some("Ġw"), Some(261)));
}

#[test]
fn broken_tokenizer_files() {
    let original = small_json().to_string().into_bytes();
    let config = json!({ "eos_token": "<|im_end|>", "pad_token": { "content": "<|im_start|>" }, "chat_template": "x" });
    let config = config.to_string().into_bytes();
    let mut random = Random::seeded(1);
    let (mut refused, begin) = (0, Instant::now());
    for index in 0..3000 {
        let result = if index % 4 == 0 {
            Tokenizer::from_json(&original, Some(&broken(&config, &mut random)))
        } else {
            Tokenizer::from_json(&broken(&original, &mut random), Some(&config))
        };
        match result {
            Ok(tokenizer) => {
                if let Ok(ids) = tokenizer.encode("hello world 12 <|im_end|> é", SpecialTokens::Parse) {
                    assert!(tokenizer.decode(&ids, SpecialText::Show).len() < 1000);
                }
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::InvalidTokenizer, "{error}");
                refused += 1;
            }
        }
    }
    assert!(refused > 1500, "{refused} of 3000 were refused");
    assert!(begin.elapsed() < Duration::from_secs(300));
}

#[test]
fn tokenizer_files_broken_on_purpose() {
    let refused = |change: &dyn Fn(&mut Value), named: &str| {
        let mut json = small_json();
        change(&mut json);
        let error = Tokenizer::from_json(json.to_string().as_bytes(), None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidTokenizer);
        assert!(error.to_string().contains(named), "{error} does not name {named}");
    };
    // The foreign builder would index past its buffer.
    refused(&|j| j["model"]["merges"] = json!([["hell", "hell"]]), "hellhell");
    refused(&|j| j["model"]["merges"] = json!([["h", "nowhere"]]), "nowhere");
    refused(&|j| j["model"]["merges"] = json!(["hell"]), "hell");
    refused(&|j| j["model"]["vocab"]["he"] = 259.into(), "259");
    refused(&|j| j["model"]["vocab"]["far"] = u32::MAX.into(), "4294967296");
    refused(&|j| j["model"]["vocab"]["far"] = 2_000_000.into(), "2000001");
    refused(&|j| j["model"]["vocab"]["far"] = (-1).into(), "-1");
    refused(&|j| j["model"]["vocab"] = json!({}), "");
    refused(&|j| j["model"]["type"] = "Unigram".into(), "Unigram");
    refused(&|j| j["model"]["byte_fallback"] = true.into(), "byte_fallback");
    refused(&|j| j["model"]["dropout"] = 0.1.into(), "dropout");
    refused(&|j| j["model"]["continuing_subword_prefix"] = "##".into(), "continuing_subword_prefix");
    refused(&|j| j["normalizer"] = json!({ "type": "Lowercase" }), "Lowercase");
    refused(&|j| j["decoder"] = json!({ "type": "WordPiece" }), "WordPiece");
    refused(&|j| j["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "(a+)+$".into(), "(a+)+$");
    refused(&|j| j["pre_tokenizer"]["pretokenizers"][0]["behavior"] = "Removed".into(), "Isolated");
    refused(&|j| j["pre_tokenizer"] = Value::Null, "pre_tokenizer");
    refused(&|j| j["added_tokens"][0]["id"] = 257.into(), "257");
    refused(&|j| j["added_tokens"][0]["content"] = "<|im_end|>".into(), "im_end");
    refused(&|j| j["added_tokens"][0]["lstrip"] = true.into(), "lstrip");

    let deep = "[".repeat(100_000);
    assert!(Tokenizer::from_json(deep.as_bytes(), None).is_err());
    let config = json!({ "eos_token": "nowhere" }).to_string();
    let error = Tokenizer::from_json(small_json().to_string().as_bytes(), Some(config.as_bytes())).unwrap_err();
    assert!(error.to_string().contains("nowhere"), "{error}");
}

#[test]
fn a_byte_without_a_token_is_an_error_and_not_silence() {
    let mut json = small_json();
    json["model"]["vocab"].as_object_mut().unwrap().shift_remove("z");
    let tokenizer = Tokenizer::from_json(json.to_string().as_bytes(), None).unwrap();
    assert!(tokenizer.encode("hello", SpecialTokens::Plain).is_ok());
    let error = tokenizer.encode("zebra", SpecialTokens::Plain).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidTokenizer);
    assert!(error.to_string().contains("0x7a"), "{error}");
}

#[test]
fn a_text_that_is_too_long_is_refused() {
    let tokenizer = Tokenizer::from_json(small_json().to_string().as_bytes(), None).unwrap();
    let error = tokenizer.encode(&"a".repeat((8 << 20) + 1), SpecialTokens::Plain).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidRequest);
}

fn metadata() -> Metadata {
    let mut metadata = Metadata::new();
    metadata.insert("tokenizer.ggml.model", "gpt2");
    metadata.insert("tokenizer.ggml.pre", "qwen35");
    let tokens = ["a", "b", "ab", "<|im_end|>", "[PAD4]", "<think>"].map(str::to_owned).to_vec();
    metadata.insert("tokenizer.ggml.tokens", tokens);
    metadata.insert("tokenizer.ggml.token_type", vec![1_i32, 1, 1, 3, 5, 4]);
    metadata.insert("tokenizer.ggml.merges", vec!["a b".to_owned()]);
    metadata.insert("tokenizer.ggml.eos_token_id", 3_u32);
    metadata
}

#[test]
fn metadata_broken_on_purpose() {
    let tokenizer = Tokenizer::from_metadata(&metadata()).unwrap();
    assert_eq!(tokenizer.encode("abb<|im_end|><think>", SpecialTokens::Parse).unwrap(), [2, 1, 3, 5]);
    assert_eq!((tokenizer.end_tokens(), tokenizer.eos_token()), ([3].as_slice(), Some(3)));
    assert_eq!((tokenizer.is_special(3), tokenizer.is_special(5)), (true, false));
    assert_eq!(tokenizer.decode(&[0, 4, 77, 5], SpecialText::Hide), "a[PAD4]<think>");

    type Change = (&'static str, consort_gguf::Value);
    let changes: [Change; 10] = [
        ("tokenizer.ggml.model", "llama".into()),
        ("tokenizer.ggml.pre", "mystery".into()),
        ("tokenizer.ggml.pre", 3_u32.into()),
        ("tokenizer.ggml.tokens", vec!["a".to_owned(); 6].into()),
        ("tokenizer.ggml.tokens", Vec::<String>::new().into()),
        ("tokenizer.ggml.token_type", vec![1_i32].into()),
        ("tokenizer.ggml.token_type", vec![-1_i32; 6].into()),
        ("tokenizer.ggml.merges", vec!["ab ab".to_owned()].into()),
        ("tokenizer.ggml.merges", vec!["ab".to_owned()].into()),
        ("tokenizer.ggml.eos_token_id", 6_u32.into()),
    ];
    for (key, value) in changes {
        let mut metadata = metadata();
        metadata.insert(key, value);
        let error = Tokenizer::from_metadata(&metadata).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::InvalidTokenizer | ErrorKind::InvalidModel), "{key}: {error}");
    }
}

fn chat() -> ChatTemplateInput {
    let cases: Vec<Value> = serde_json::from_str(include_str!("golden/own_cases.json")).unwrap();
    let case = cases.iter().find(|case| case["name"] == "calls").unwrap();
    ChatTemplateInput {
        messages: case["input"]["messages"].as_array().unwrap().clone(),
        tools: vec![json!({ "name": "clock", "parameters": {} })],
        add_generation_prompt: true,
        ..ChatTemplateInput::default()
    }
}

#[test]
fn broken_templates() {
    let mut sources = vec![include_str!("golden/own.jinja").to_owned()];
    if let Some(folder) = std::env::var_os("CONSORT_FAMILY_DATA") {
        sources.push(std::fs::read_to_string(std::path::Path::new(&folder).join("Qwen3.5-4B.jinja")).unwrap());
    }
    let limits = TemplateLimits { fuel: 50_000, ..TemplateLimits::default() };
    let (input, mut random, begin) = (chat(), Random::seeded(2), Instant::now());
    let mut refused = 0;
    for source in &sources {
        for _ in 0..2000 {
            let source = String::from_utf8_lossy(&broken(source.as_bytes(), &mut random)).into_owned();
            let result =
                ChatTemplate::with_limits(&source, limits.clone()).and_then(|template| template.render(&input));
            if let Err(error) = result {
                assert_eq!(error.kind(), ErrorKind::InvalidTemplate, "{error}");
                refused += 1;
            }
        }
    }
    assert!(refused > 200 * sources.len(), "{refused} of {} were refused", 2000 * sources.len());
    assert!(begin.elapsed() < Duration::from_secs(300));
}

#[test]
fn templates_broken_on_purpose() {
    let deep = format!("{{{{ {}1{} }}}}", "(".repeat(5000), ")".repeat(5000));
    let sources = [
        // Endless work.
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{% set x = messages | tojson %}{% endfor %}",
        "{% for a in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}",
        // Endless memory: each of these would double or multiply a text.
        "{% set ns = namespace(x='x') %}{% for a in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x | length }}",
        "{% set ns = namespace(x='x') %}{% for a in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x | length }}",
        "{% set ns = namespace(x='xx') %}{% for a in range(99) %}{% set ns.x = ns.x.replace('x', ns.x) %}{% endfor %}",
        "{% set ns = namespace(x='xx') %}{% for a in range(99) %}{% set ns.x = ns.x | replace('x', ns.x) %}{% endfor %}",
        "{% set ns = namespace(x='xx') %}{% for a in range(99) %}{% set ns.x = ns.x.join([ns.x, ns.x]) %}{% endfor %}",
        "{% set ns = namespace(x='xx') %}{% for a in range(99) %}{% set ns.x = [ns.x, ns.x] | join %}{% endfor %}",
        "{% set ns = namespace(x='xx') %}{% for a in range(99) %}{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}{% endfor %}",
        "{% set ns = namespace(x=[1]) %}{% for a in range(99) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
        "{% set ns = namespace(x=[1]) %}{% for a in range(99) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x | tojson }}",
        "{% set ns = namespace(x=[1]) %}{% for a in range(99) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ','.join(ns.x) }}",
        "{% set ns = namespace(x=1) %}{% set ns.x = ns %}{% set ns.y = ns %}{{ ns }}",
        "{{ 'x' * 99999999999 }}",
        "{{ ('x' * 1000000) * 1000000 }}",
        "{{ '%99999999999d' | format(1) }}",
        "{{ '{:99999999999}'.format(1) }}",
        "{{ messages | tojson(indent=99999999999) }}",
        "{{ range(99999999999) | list }}",
        "{{ 'x' | center(99999999999) }}{{ 'x' | indent(99999999999) }}",
        "{{ strftime_now('%9999999999Y') }}",
        "{{ strftime_now('%!') }}",
        // What there is not.
        "{% include 'x' %}",
        "{% import '/etc/passwd' as x %}",
        "{{ messages.__class__.__mro__ }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ raise_exception() }}",
        deep.as_str(),
    ];
    for source in sources {
        let begin = Instant::now();
        let result = ChatTemplate::new(source).and_then(|template| template.render(&chat()));
        let shown = source.chars().take(100).collect::<String>();
        match result {
            Err(error) => assert_eq!(error.kind(), ErrorKind::InvalidTemplate, "{shown}: {error}"),
            Ok(text) => panic!("{shown} rendered {} bytes: {}", text.len(), text.chars().take(80).collect::<String>()),
        }
        assert!(begin.elapsed() < Duration::from_secs(60), "{shown} took {:?}", begin.elapsed());
    }
}

/// A list that stands in itself many times over is small, and endless for whoever looks through it. So is a namespace that
/// holds itself.
#[test]
fn small_values_that_are_endless() {
    let doubled = |step: &str| {
        format!(
            "{{% set ns = namespace(x=[1], y=[1]) %}}{{% for a in range(60) %}}{{% set ns.x = {step} %}}{{% endfor %}}\
             {{% for a in range(60) %}}{{% set ns.y = {step} %}}{{% endfor %}}"
        )
    };
    let mut sources = Vec::new();
    let steps = [
        "ns.x + ns.x",
        "[ns.x, ns.x]",
        "(ns.x, ns.x)",
        "{'a': ns.x, 'b': ns.x}",
        "dict(a=ns.x, b=ns.x)",
        "ns.x * 2",
        "ns.x | chain(ns.x)",
        "[ns.x] | zip([ns.x]) | list",
        "[1] | batch(3, ns.x) | list",
        "[1, 2] | slice(3, ns.x) | list",
        "[ns.nope, ns.nope] | map('default', ns.x) | list",
        "{'a': ns.x, 'b': ns.x}.items() | list",
    ];
    for step in steps {
        sources.push(doubled(step));
        for end in [
            "ns.x",
            "'a' ~ ns.x",
            "ns.x ~ 'a'",
            "ns.x in 'abc'",
            "ns.x in [ns.y]",
            "ns.x == ns.y",
            "ns.x != ns.y",
            "ns.x < ns.y",
            "ns.x is eq(ns.y)",
            "ns.x is in([ns.y])",
            "ns.x | upper",
            "ns.x | replace('a', 'b')",
            "ns.x | pprint",
            "'%s' | format(ns.x)",
            "'{}'.format(ns.x)",
            "[ns.y, ns.x] | unique | list | length",
            "[ns.y, ns.x] | sort | length",
            "[ns.y, ns.x] | min",
            "{ns.x: 1} | length",
            "[{'a': ns.x}] | selectattr('a', 'equalto', ns.y) | list",
            "[{'a': ns.x}, {'a': ns.y}] | groupby('a') | list",
            "ns.x | tojson(sort_keys=true)",
            "ns.x[99]",
            "ns.x | first",
            "ns.x | last",
            "ns.x | sum(start=[])",
            "ns.x[::-1]",
            "[ns.x].count(ns.y)",
            "{'a': 1}.get(ns.x)",
            "raise_exception(ns.x)",
            "debug()",
        ] {
            sources.push(format!("{}{{{{ {end} }}}}", doubled(step)));
        }
    }
    let cycle = "{% set ns = namespace(x=1) %}{% set ns.x = ns %}{% set n2 = namespace(x=1) %}{% set n2.x = n2 %}";
    for end in [
        "ns",
        "'a' ~ ns",
        "ns == n2",
        "ns != n2",
        "ns < n2",
        "1 < ns < n2",
        "ns in 'a'",
        "ns in [n2]",
        "[ns]",
        "{'a': ns}",
        "dict(a=ns)",
        "(ns,)",
        "ns | tojson",
        "ns | upper",
        "ns | list",
        "ns | pprint",
        "ns.items() | list",
        "ns.values()",
        "ns is eq(n2)",
        "ns is sameas(n2)",
        "[1] | map('default', ns) | list",
        "[1] | select('eq', ns) | list",
        "'%s' | format(ns)",
        "'{}'.format(ns)",
        "raise_exception(ns)",
        "ns + n2",
        "ns * 2",
        "{ns: 1}",
        "[1].count(ns)",
    ] {
        sources.push(format!("{cycle}{{{{ {end} }}}}"));
    }
    for source in sources {
        let begin = Instant::now();
        let end: String = source.chars().skip(source.chars().count().saturating_sub(140)).collect();
        let limits = TemplateLimits { fuel: 10_000, ..TemplateLimits::default() };
        // Some of them end soon after all: what is not looked through costs nothing.
        match ChatTemplate::with_limits(&source, limits).and_then(|template| template.render(&chat())) {
            Ok(text) => assert!(text.len() < 1000, "{end}"),
            Err(error) => assert_eq!(error.kind(), ErrorKind::InvalidTemplate, "{end}: {error}"),
        }
        assert!(begin.elapsed() < Duration::from_secs(10), "{end} took {:?}", begin.elapsed());
    }
}

#[test]
fn honest_lists_and_namespaces_work() {
    for (source, wanted) in [
        (
            "{% set ns = namespace(x=[]) %}{% for m in messages %}{% set ns.x = ns.x + [m.role] %}{% endfor %}{{ ns.x | length == messages | length }}",
            "True",
        ),
        ("{{ [1, 2] + [3] }}{{ (1, 2) + (3,) }}{{ 'a' + 'b' }}{{ 1 + 2.5 }}", "[1, 2, 3](1, 2, 3)ab3.5"),
        ("{{ [1] * 3 }}{{ 'ab' * 2 }}{{ 3 * 4 }}", "[1, 1, 1]abab12"),
        ("{{ 'a' ~ 1 ~ 2.0 ~ none ~ true ~ [1, 'x'] ~ nothing }}", "a12.0NoneTrue[1, 'x']"),
        ("{{ {'b': 1, 'a': [2]} | tojson }}{{ dict(x=1).x }}", "{\"b\": 1, \"a\": [2]}1"),
        ("{{ 1 < 2 <= 2 }}{{ 'a' in 'abc' }}{{ 1 not in [2] }}{{ nothing in [] }}", "TrueTrueTrueFalse"),
        ("{% set ns = namespace(a=1, n=namespace(b=2)) %}{{ ns.a + ns.n.b }}{{ ns is mapping }}", "3True"),
        ("{% macro m(n) %}{{ n.a }}{% endmacro %}{% set ns = namespace(a=1) %}{{ m(ns) }}", "1"),
    ] {
        let text = ChatTemplate::new(source).and_then(|template| template.render(&chat())).unwrap();
        assert_eq!(text, wanted, "{source}");
    }
}

#[test]
fn deeply_nested_values_overflow_nothing() {
    // A chain as long as the fuel lasts, then printed, serialized or just dropped. The largest fuel there is.
    let limits = TemplateLimits { fuel: u64::MAX, ..TemplateLimits::default() };
    let nested = format!("{}ns.x{}", "[".repeat(100), "]".repeat(100));
    for end in ["{{ ns.x }}", "{{ ns.x | tojson }}", "{{ ns.x | string }}", ""] {
        for rounds in [50, 99_999] {
            let source = format!(
                "{{% set ns = namespace(x=[]) %}}{{% for a in range({rounds}) %}}{{% set ns.x = {nested} %}}{{% endfor %}}{end}"
            );
            let result =
                ChatTemplate::with_limits(&source, limits.clone()).and_then(|template| template.render(&chat()));
            match result {
                Err(error) => assert_eq!(error.kind(), ErrorKind::InvalidTemplate, "{error}"),
                Ok(text) => assert_eq!((text.as_str(), rounds, end), ("", 50, "")),
            }
        }
    }
    // The same from the caller's side.
    let mut value = json!(1);
    for _ in 0..1000 {
        value = json!([value]);
    }
    let input = ChatTemplateInput::new(vec![json!({ "role": "user", "content": value })]);
    let error = ChatTemplate::new("{{ messages }}").unwrap().render(&input).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidRequest);
}

#[test]
fn limits_are_told() {
    let limits = TemplateLimits { source_bytes: 10, ..TemplateLimits::default() };
    let error = ChatTemplate::with_limits("12345678901", limits).unwrap_err();
    assert!(error.to_string().contains("too long"), "{error}");
    let limits = TemplateLimits { output_bytes: 10, ..TemplateLimits::default() };
    let error = ChatTemplate::with_limits("12345678901", limits).unwrap().render(&chat()).unwrap_err();
    assert!(error.to_string().contains("too long"), "{error}");
    let limits = TemplateLimits { fuel: 10, fuel_per_input: 0, ..TemplateLimits::default() };
    let error =
        ChatTemplate::with_limits("{% for a in range(50) %}{{ a }}{% endfor %}", limits).unwrap().render(&chat());
    assert!(error.unwrap_err().to_string().contains("too much work"));
}

#[test]
fn the_time_can_be_given() {
    let mut input = chat();
    input.now = Some(std::time::UNIX_EPOCH + Duration::from_secs(1_000_000_000));
    let text = ChatTemplate::new("{{ strftime_now('%Y-%m') }} {{ strftime_now(format='%d') }}");
    let text = text.unwrap().render(&input);
    assert!(text.as_ref().is_ok_and(|text| text.starts_with("2001-09")) || text.is_err(), "{text:?}");
    let text = ChatTemplate::new("{{ strftime_now('%Y-%m') }}").unwrap().render(&input).unwrap();
    assert_eq!(text, "2001-09");
}

#[test]
fn long_conversations_fit_into_the_default_limits() {
    let mut sources = vec![include_str!("golden/own.jinja").to_owned()];
    if let Some(folder) = std::env::var_os("CONSORT_FAMILY_DATA") {
        sources.push(std::fs::read_to_string(std::path::Path::new(&folder).join("Qwen3.5-4B.jinja")).unwrap());
    }
    for source in sources {
        let template = ChatTemplate::new(&source).unwrap();
        for (turns, words) in [(0, 200_000), (1500, 1), (1500, 100)] {
            let mut messages = vec![json!({ "role": "user", "content": "word ".repeat(words) })];
            for _ in 0..turns {
                messages.push(json!({ "role": "assistant", "content": "word ".repeat(words) }));
                messages.push(json!({ "role": "user", "content": "word ".repeat(words) }));
            }
            let text = template.render(&ChatTemplateInput::new(messages)).unwrap();
            assert!(text.len() > 5 * words * (2 * turns + 1));
        }
    }
}
