//! From a structure to a matcher.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use consort_core::{Error, ErrorKind, Result, Structure};
use llguidance::api::{GrammarInit, GrammarWithLexer, ParserLimits, TopLevelGrammar};
use llguidance::{JsonCompileOptions, Logger};
use serde_json::{Value, json};

use crate::check::{check, invalid, kind};
use crate::matcher::Matcher;
use crate::{GrammarLimits, Vocabulary};

/// The stack on which a grammar within the limits of depth is compiled, in bytes.
const STACK: usize = 32 << 20;
/// Between two parts of a JSON text: nothing, a blank, or a line's end and some indentation.
const BLANKS: &str = r"\x20|\n\x20{0,40}";

/// Compiles structures for one model, and keeps what it compiled. Cheap to clone; usable from any thread.
#[derive(Debug, Clone)]
pub struct Compiler {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    vocabulary: Vocabulary,
    limits: GrammarLimits,
    /// Matchers that matched nothing yet, the last used one first.
    cache: Mutex<VecDeque<(blake3::Hash, Matcher)>>,
}

impl Compiler {
    /// For a model with this vocabulary.
    #[must_use]
    pub fn new(vocabulary: Vocabulary, limits: GrammarLimits) -> Self {
        Self { inner: Arc::new(Inner { vocabulary, limits, cache: Mutex::default() }) }
    }

    /// The model's tokens.
    #[must_use]
    pub fn vocabulary(&self) -> &Vocabulary {
        &self.inner.vocabulary
    }

    /// A matcher at the beginning of this structure. What was compiled of late is copied.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidGrammar`] that names the kind of structure, and what and where where that is known: it does not
    /// parse, nothing satisfies it, it uses what is not supported, or it passes a limit.
    pub fn compile(&self, structure: &Structure) -> Result<Matcher> {
        check(structure, &self.inner.limits)?;
        let key = key(structure)?;
        if let Some(found) = self.find(key) {
            return Ok(found);
        }
        let fresh = self.on_a_thread(structure)?;
        let mut cache = self.cache();
        cache.retain(|(other, _)| *other != key);
        cache.push_front((key, fresh.fork()));
        cache.truncate(self.inner.limits.cached);
        Ok(fresh)
    }

    fn cache(&self) -> MutexGuard<'_, VecDeque<(blake3::Hash, Matcher)>> {
        // Whole at each end of the lock.
        self.inner.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, key: blake3::Hash) -> Option<Matcher> {
        let mut cache = self.cache();
        let place = cache.iter().position(|(other, _)| *other == key)?;
        let entry = cache.remove(place)?;
        let found = entry.1.fork();
        cache.push_front(entry);
        Some(found)
    }

    /// Parsers of grammars recurse, and a caller's stack may be small.
    fn on_a_thread(&self, structure: &Structure) -> Result<Matcher> {
        std::thread::scope(|scope| {
            let build = std::thread::Builder::new().name("consort-grammar".into()).stack_size(STACK);
            let thread = build.spawn_scoped(scope, || self.build(structure)).map_err(|source| {
                Error::new(ErrorKind::Unexpected, "no thread could be started to compile a grammar").with_source(source)
            })?;
            thread.join().unwrap_or_else(|_| Err(invalid(kind(structure), "it cannot be compiled")))
        })
    }

    fn build(&self, structure: &Structure) -> Result<Matcher> {
        let kind = kind(structure);
        let factory = self.inner.vocabulary.factory()?;
        let grammar = grammar(structure)?;
        let limits = &self.inner.limits;
        let bounds = ParserLimits {
            initial_lexer_fuel: limits.build_fuel,
            step_lexer_fuel: limits.step_fuel,
            step_max_items: limits.step_items,
            max_lexer_states: limits.lexer_states,
            max_grammar_size: limits.grammar_symbols,
            verbose_errors: false,
            ..ParserLimits::default()
        };
        let caps = toktrie::InferenceCapabilities::default();
        let parser = factory
            .create_parser_from_init_ext(GrammarInit::Serialized(grammar), Logger::new(0, 0), caps, bounds)
            .map_err(|error| invalid(kind, first_lines(&format!("{error:#}"))))?;
        let mut matcher = Matcher::new(llguidance::Matcher::new(Ok(parser)), self.inner.vocabulary.clone(), kind);
        // A grammar that admits no first token is a grammar that admits nothing.
        let mask = matcher.mask()?;
        if mask.count() == 0 && !matcher.may_end()? {
            return Err(invalid(kind, "no text satisfies it, as this model's tokens spell"));
        }
        Ok(matcher)
    }
}

fn grammar(structure: &Structure) -> Result<TopLevelGrammar> {
    Ok(match structure {
        Structure::JsonObject => TopLevelGrammar::from_json_schema(with_options(json!({ "type": "object" }))),
        Structure::JsonSchema(schema) => match schema.as_ref() {
            Value::Object(_) => TopLevelGrammar::from_json_schema(with_options(schema.as_ref().clone())),
            Value::Bool(true) => TopLevelGrammar::from_json_schema(with_options(json!({}))),
            Value::Bool(false) => return Err(invalid(kind(structure), "nothing satisfies the schema `false`")),
            _ => return Err(invalid(kind(structure), "a JSON Schema is an object or a boolean")),
        },
        Structure::Regex(regex) => TopLevelGrammar::from_regex(regex),
        Structure::Lark(lark) => TopLevelGrammar::from_lark(lark.clone()),
        Structure::Choice(choices) => {
            let escaped: Vec<String> = choices.iter().map(|choice| escape(choice)).collect();
            TopLevelGrammar::from_grammar(GrammarWithLexer::from_regex(&escaped.join("|")))
        }
        _ => return Err(invalid(kind(structure), "this kind of structure is not known here")),
    })
}

/// A text as a regular expression that matches it alone.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len() + 8);
    for character in text.chars() {
        if character.is_alphanumeric() || character == ' ' || character == '_' {
            escaped.push(character);
        } else {
            escaped.push_str(&format!("\\x{{{:x}}}", u32::from(character)));
        }
    }
    if escaped.is_empty() { "()".into() } else { escaped }
}

/// How JSON is written is ours to say; a schema that says it is overruled.
fn with_options(mut schema: Value) -> Value {
    let options = JsonCompileOptions { whitespace_pattern: Some(BLANKS.into()), ..JsonCompileOptions::default() };
    options.apply_to(&mut schema);
    schema
}

fn key(structure: &Structure) -> Result<blake3::Hash> {
    let text = serde_json::to_vec(structure)
        .map_err(|source| invalid(kind(structure), "it cannot be written as JSON").with_source(source))?;
    Ok(blake3::hash(&text))
}

/// What an error says, without traces and dumps of states.
pub(crate) fn first_lines(message: &str) -> String {
    let end = ["\n<backtrace>", "\n<state>", "\n<non-verbose", "<non-verbose"]
        .iter()
        .filter_map(|mark| message.find(mark))
        .min()
        .unwrap_or(message.len());
    let text: String = message.get(..end).unwrap_or(message).chars().take(600).collect();
    text.trim().replace('\n', "; ")
}
