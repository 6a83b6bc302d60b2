//! Chat templates: Jinja programs from model files, rendered as transformers renders them, within limits.

mod guarded;
mod input;
mod python;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use consort_core::{ChatMessage, ChatPrompt, Error, ErrorKind, Result, Role, Thinking};
use minijinja::machinery::{self, CodeGenerator, Instructions};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value};
use minijinja::{AutoEscape, Environment, State};

pub use self::input::ChatTemplateInput;
use crate::ReplyStart;

const NAME: &str = "chat_template";

/// The most work that any limits allow; beyond it the stack would be too large to reserve.
const MAX_FUEL: u64 = 8_000_000;

/// Bytes of stack for each unit of fuel. One more level of nesting costs about one and a half units, and dropping it takes
/// a few hundred bytes in an unoptimised build.
const STACK_PER_FUEL: usize = 512;

/// What a template may use. Templates come with model files, and so from strangers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateLimits {
    /// Longest source, in bytes.
    pub source_bytes: usize,
    /// Longest rendering, in bytes.
    pub output_bytes: usize,
    /// Work per rendering, beside what the conversation's own size pays for: an instruction, or 64 bytes of text created
    /// or copied, is one unit. It bounds time and memory.
    pub fuel: u64,
    /// Units of work for each byte of text and each value of the conversation.
    pub fuel_per_input: u64,
    /// Depth of nested macro calls, blocks and the like.
    pub recursion: usize,
}

impl Default for TemplateLimits {
    /// Several times what the family's template needs; a runaway template ends within about a second.
    fn default() -> Self {
        Self { source_bytes: 1 << 18, output_bytes: 8 << 20, fuel: 200_000, fuel_per_input: 4, recursion: 100 }
    }
}

/// A compiled chat template. Cheap to clone.
///
/// What transformers gives to templates is there: the methods of Python's strings and dicts, `tojson` that writes what
/// Python's `json.dumps(..., ensure_ascii=False)` writes, `raise_exception`, `strftime_now`, `namespace`, `break` and
/// `continue`; `trim_blocks` and `lstrip_blocks` are on, HTML escaping is off. Nothing else is: no files, no includes,
/// no network. Work, memory, output and nesting are bounded ([`TemplateLimits`]); that holds for lists that stand in
/// themselves many times over, and for namespaces that hold themselves, too: operators and filters pay for every item that
/// they could meet.
///
/// ```
/// use consort_text::{ChatTemplate, ChatTemplateInput};
/// use serde_json::json;
///
/// let template = ChatTemplate::new("{% for m in messages %}{{ m.role.upper() }}: {{ m.content | trim }}\n{% endfor %}")?;
/// let input = ChatTemplateInput::new(vec![json!({ "role": "user", "content": "  Good morning  " })]);
/// assert_eq!(template.render(&input)?, "USER: Good morning\n");
/// # Ok::<(), consort_core::Error>(())
/// ```
#[derive(Clone)]
pub struct ChatTemplate {
    environment: Arc<Environment<'static>>,
    source: Arc<str>,
    limits: TemplateLimits,
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatTemplate").field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl ChatTemplate {
    /// Compiles a template within the default limits.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidTemplate`]: the source does not parse, or is too long.
    pub fn new(source: &str) -> Result<Self> {
        Self::with_limits(source, TemplateLimits::default())
    }

    /// Compiles a template within `limits`.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_limits(source: &str, limits: TemplateLimits) -> Result<Self> {
        if source.len() > limits.source_bytes {
            return Err(Error::new(ErrorKind::InvalidTemplate, "the template's source is too long")
                .with_operation("text::template")
                .with_context("bytes", source.len().to_string())
                .with_context("limit", limits.source_bytes.to_string()));
        }
        let mut environment = Environment::new();
        environment.set_syntax(syntax()?);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_recursion_limit(limits.recursion);
        environment.set_unknown_method_callback(python::method);
        environment.set_formatter(python::format);
        environment.add_filter("tojson", python::to_json_filter);
        environment.add_filter("trim", python::trim_filter);
        environment.add_filter("string", python::string_filter);
        environment.add_test("sequence", python::is_sequence);
        environment.add_function("raise_exception", raise_exception);
        environment.remove_global("debug");
        guarded::add_functions(&mut environment);
        compile(source)?;
        Ok(Self { environment: Arc::new(environment), source: source.into(), limits })
    }

    /// Renders a conversation.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidTemplate`]: the template raises an exception (its message is in the error's context under
    /// `raised`), uses what is not there, or exceeds a limit. [`ErrorKind::InvalidRequest`]: the input is nested too
    /// deeply.
    pub fn render(&self, input: &ChatTemplateInput) -> Result<String> {
        let (context, size) = input.to_context()?;
        let work = self.limits.fuel_per_input.saturating_mul(size as u64);
        let fuel = self.limits.fuel.saturating_add(work).min(MAX_FUEL);
        let now = input.now.unwrap_or_else(SystemTime::now);
        // A template can nest values as deeply as its fuel lasts, and dropping them takes stack for each level: a thread
        // of its own, whose stack is long enough (and hardly ever touched), is the only place where that cannot abort.
        let stack = usize::try_from(fuel).unwrap_or(usize::MAX).saturating_mul(STACK_PER_FUEL).max(4 << 20);
        std::thread::scope(|scope| {
            std::thread::Builder::new()
                .name("chat-template".into())
                .stack_size(stack)
                .spawn_scoped(scope, move || self.render_here(context, now, fuel))
                .map_err(|source| {
                    Error::new(ErrorKind::Overloaded, "no thread could be started for the chat template")
                        .with_operation("text::template")
                        .with_source(source)
                })?
                .join()
                .unwrap_or_else(|_| Err(Error::new(ErrorKind::Unexpected, "the template engine panicked")))
        })
    }

    /// How replies begin in this mode, seen by rendering a question: the template may open the model's reasoning. Without a
    /// rendering, [`ReplyStart::Undecided`], which any reply can be read with.
    #[must_use]
    pub fn reply_start(&self, thinking: Thinking) -> ReplyStart {
        let question =
            ChatPrompt { messages: vec![ChatMessage::text(Role::User, "?")], thinking, ..ChatPrompt::default() };
        let rendered = ChatTemplateInput::from_prompt(&question).and_then(|input| self.render(&input));
        rendered.map_or(ReplyStart::Undecided, |prompt| ReplyStart::after(&prompt))
    }

    fn render_here(&self, context: Value, now: SystemTime, fuel: u64) -> Result<String> {
        let context = minijinja::context! {
            strftime_now => Value::from_function(move |format: &str| python::strftime(now, format)),
            ..context
        };
        let mut environment = (*self.environment).clone();
        environment.set_fuel(Some(fuel));
        // A program borrows its source, and takes a fraction of a rendering's time to compile.
        let instructions = compile(&self.source)?;
        let mut output = String::new();
        machinery::eval(
            &environment,
            &instructions,
            context,
            &BTreeMap::new(),
            &mut machinery::make_string_output(&mut output),
            AutoEscape::None,
        )
        .map_err(|error| template_error(&error))?;
        // What was written was paid for, so it is not much longer than this.
        if output.len() > self.limits.output_bytes {
            return Err(Error::new(ErrorKind::InvalidTemplate, "the rendering is too long")
                .with_operation("text::template")
                .with_context("limit", self.limits.output_bytes.to_string()));
        }
        Ok(output)
    }
}

fn syntax() -> Result<SyntaxConfig> {
    SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .build()
        .map_err(|source| Error::new(ErrorKind::Unexpected, "the syntax settings are refused").with_source(source))
}

/// Compiles a template into a program whose operators are bounded.
fn compile(source: &str) -> Result<Instructions<'_>> {
    let tree = machinery::parse(source, NAME, syntax()?).map_err(|error| template_error(&error))?;
    let mut generator = CodeGenerator::new(NAME, source);
    generator.compile_stmt(&tree);
    let (mut instructions, _) = generator.finish();
    guarded::rewrite(&mut instructions).map_err(|error| template_error(&error))?;
    Ok(instructions)
}

/// What a template raised, so that it can be told from the engine's own errors.
#[derive(Debug)]
struct Raised(String);

impl std::fmt::Display for Raised {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

#[allow(clippy::needless_pass_by_value)] // What the engine calls takes its arguments so.
fn raise_exception(state: &State, message: Value, _: Kwargs) -> Result<Value, minijinja::Error> {
    Err(minijinja::Error::new(minijinja::ErrorKind::InvalidOperation, "the template raised an exception")
        .with_source(Raised(python::to_str(state, &message)?)))
}

fn template_error(error: &minijinja::Error) -> Error {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(current) = cause {
        if let Some(Raised(message)) = current.downcast_ref::<Raised>() {
            return Error::new(ErrorKind::InvalidTemplate, "the chat template refuses the conversation")
                .with_operation("text::template")
                .with_context("raised", shorten(message));
        }
        cause = current.source();
    }
    let message = match error.kind() {
        minijinja::ErrorKind::OutOfFuel => "the chat template does too much work",
        minijinja::ErrorKind::SyntaxError => "the chat template does not parse",
        _ => "rendering the chat template failed",
    };
    let mut typed = Error::new(ErrorKind::InvalidTemplate, message)
        .with_operation("text::template")
        .with_context("detail", shorten(&error.to_string()));
    if let Some(line) = error.line() {
        typed = typed.with_context("line", line.to_string());
    }
    typed
}

/// Messages may hold text of the template or of the conversation, as long as it likes.
fn shorten(text: &str) -> String {
    if text.chars().count() <= 300 { text.to_owned() } else { text.chars().take(300).chain(['…']).collect() }
}
