//! Operators that cannot be made to run away.
//!
//! The template engine bounds the work of a template by fuel, and a list that is added to itself forty times over costs
//! next to none: it is one list, which stands in another twice, and so on. Whatever then looks through it (a comparison, a
//! filter, an addition) meets 2⁴⁰ items. And a namespace may hold itself, so that looking through it never ends.
//!
//! So the compiled program is changed before it runs, instruction for instruction: what makes lists and mappings, compares
//! them or applies filters to them is replaced by a function of ours. It looks through the values that it is given, pays
//! for each item however often it is met, and refuses namespaces inside of values. No value is then larger, looked through,
//! than what was paid for.

use minijinja::machinery::{Instruction, Instructions};
use minijinja::value::{Kwargs, Rest, Tuple, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, context};

use super::python;

// The blank in these names keeps them apart from all that a template can spell.
const ADD: &str = "operator add";
const MUL: &str = "operator mul";
const CONCAT: &str = "operator concat";
const LIST: &str = "operator list";
const TUPLE: &str = "operator tuple";
const MAP: &str = "operator map";
const DICT: &str = "operator dict";
const EQ: &str = "operator eq";
const NE: &str = "operator ne";
const LT: &str = "operator lt";
const LE: &str = "operator le";
const GT: &str = "operator gt";
const GE: &str = "operator ge";
const IN: &str = "operator in";

macro_rules! prefixed {
    ($prefix:literal: $($name:literal)*) => { [$(($name, concat!($prefix, " ", $name))),*] };
}

/// The filters that there are, and the functions that stand for them.
const FILTERS: [(&str, &str); 48] = prefixed!("filter":
    "safe" "escape" "e" "lower" "upper" "title" "capitalize" "replace" "length" "count" "dictsort" "items" "reverse"
    "trim" "join" "split" "lines" "default" "d" "round" "abs" "int" "float" "attr" "first" "last" "min" "max" "sort"
    "list" "string" "bool" "batch" "slice" "sum" "indent" "select" "reject" "selectattr" "rejectattr" "map" "groupby"
    "unique" "chain" "zip" "pprint" "format" "tojson");

/// Filters that do not look into items, or pay for it themselves, and make nothing large.
const SHALLOW: [&str; 12] =
    ["length", "count", "first", "last", "trim", "string", "tojson", "join", "default", "d", "items", "safe"];

/// Tests that compare.
const TESTS: [(&str, &str); 18] = prefixed!("test":
    "eq" "equalto" "==" "ne" "!=" "lt" "lessthan" "<" "le" "<=" "gt" "greaterthan" ">" "ge" ">=" "in" "sameas"
    "startingwith");

/// Adds the functions to which [`rewrite`] refers.
pub(super) fn add_functions(environment: &mut Environment<'static>) {
    environment.add_function(ADD, add);
    environment.add_function(MUL, mul);
    environment.add_function(CONCAT, concat);
    environment.add_function(LIST, list);
    environment.add_function(TUPLE, tuple);
    environment.add_function(MAP, map);
    environment.add_function(DICT, dict);
    environment.add_function(EQ, |state: &State, a: Value, b: Value| compared(state, &a, &b).map(|()| a == b));
    environment.add_function(NE, |state: &State, a: Value, b: Value| compared(state, &a, &b).map(|()| a != b));
    environment.add_function(LT, |state: &State, a: Value, b: Value| compared(state, &a, &b).map(|()| a < b));
    environment.add_function(LE, |state: &State, a: Value, b: Value| compared(state, &a, &b).map(|()| a <= b));
    environment.add_function(GT, |state: &State, a: Value, b: Value| compared(state, &a, &b).map(|()| a > b));
    environment.add_function(GE, |state: &State, a: Value, b: Value| compared(state, &a, &b).map(|()| a >= b));
    environment.add_function(IN, |state: &mut State, value: Value, container: Value| {
        compared(state, &value, &container)?;
        state.perform_test("in", &[value, container])
    });
    for (name, function) in FILTERS {
        environment.add_function(function, move |state: &mut State, args: Rest<Value>, kwargs: Kwargs| {
            let args = all(args, kwargs);
            if let Some(text) = args.first().and_then(Value::as_str) {
                python::charge(state, text.len())?;
            }
            let shallow = SHALLOW.contains(&name);
            for arg in &args {
                if shallow { refuse_namespace(arg)? } else { measure(state, arg)? }
            }
            let result = state.apply_filter(name, &args)?;
            if !shallow {
                measure(state, &result)?;
            }
            Ok(result)
        });
    }
    for (name, function) in TESTS {
        environment.add_function(function, move |state: &mut State, args: Rest<Value>, kwargs: Kwargs| {
            let args = all(args, kwargs);
            args.iter().try_for_each(|arg| measure(state, arg))?;
            state.perform_test(name, &args)
        });
    }
}

/// All arguments, as the engine passes them on: those with names are one value, the last.
fn all(args: Rest<Value>, kwargs: Kwargs) -> Vec<Value> {
    let mut args = args.0;
    if kwargs.args().next().is_some() {
        args.push(Value::from(kwargs));
    }
    args
}

/// Replaces what could run away.
///
/// # Errors
/// A syntax error for what there is no replacement for.
pub(super) fn rewrite(instructions: &mut Instructions<'_>) -> Result<(), Error> {
    let (mut chained, mut stored, mut at) = (false, false, 0);
    while let Some(instruction) = instructions.get_mut(at) {
        let replaced = match *instruction {
            Instruction::Add => Some((ADD, Some(2))),
            Instruction::Mul => Some((MUL, Some(2))),
            Instruction::StringConcat => Some((CONCAT, Some(2))),
            Instruction::BuildList(Some(count)) => Some((LIST, Some(count))),
            Instruction::BuildTuple(Some(count)) => Some((TUPLE, Some(count))),
            Instruction::BuildMap(pairs) => Some((MAP, Some(pairs.saturating_mul(2)))),
            Instruction::Eq => Some((EQ, Some(2))),
            Instruction::Ne => Some((NE, Some(2))),
            Instruction::Lt => Some((LT, Some(2))),
            Instruction::Lte => Some((LE, Some(2))),
            Instruction::Gt => Some((GT, Some(2))),
            Instruction::Gte => Some((GE, Some(2))),
            Instruction::In => Some((IN, Some(2))),
            Instruction::CallFunction("dict", count) => Some((DICT, count.map(usize::from))),
            Instruction::ApplyFilter(name, count, _) => {
                let function = FILTERS.iter().find(|(filter, _)| *filter == name).map(|(_, function)| *function);
                let function = function.ok_or_else(|| refused(format!("the filter {name} is unknown")))?;
                Some((function, count.map(usize::from)))
            }
            Instruction::PerformTest(name, count, _) => {
                let function = TESTS.iter().find(|(test, _)| *test == name).map(|(_, function)| *function);
                function.map(|function| (function, count.map(usize::from)))
            }
            Instruction::CompareAndPreserve(_) => {
                chained = true;
                None
            }
            Instruction::SetAttr(_) => {
                stored = true;
                None
            }
            _ => None,
        };
        if let Some((function, count)) = replaced {
            let count = count.map(u16::try_from).transpose().map_err(|_| refused("a literal has too many items"))?;
            *instruction = Instruction::CallFunction(function, count);
        }
        at += 1;
    }
    if stored && chained {
        return Err(refused("comparisons in a chain (a < b < c) are not supported beside namespaces"));
    }
    Ok(())
}

fn refused(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::SyntaxError, message.into())
}

fn is_namespace(value: &Value) -> bool {
    value.as_object().is_some_and(|object| object.type_name().ends_with("::Namespace"))
}

fn refuse_namespace(value: &Value) -> Result<(), Error> {
    if is_namespace(value) {
        return Err(Error::new(ErrorKind::InvalidOperation, "a namespace is used as a value"));
    }
    Ok(())
}

/// Looks through a value and pays for each item, however often it is met.
pub(super) fn measure(state: &State, value: &Value) -> Result<(), Error> {
    let mut items = 0;
    measure_from(state, value, 0, &mut items)
}

fn measure_from(state: &State, value: &Value, depth: usize, items: &mut u32) -> Result<(), Error> {
    *items += 1;
    if items.is_multiple_of(4) {
        state.consume_fuel(1)?;
    }
    match value.kind() {
        ValueKind::Seq | ValueKind::Iterable | ValueKind::Map => {
            refuse_namespace(value)?;
            if depth >= python::MAX_DEPTH {
                return Err(Error::new(ErrorKind::InvalidOperation, "a value is nested too deeply"));
            }
            for item in value.try_iter()?.checked() {
                let item = item?;
                if value.kind() == ValueKind::Map {
                    measure_from(state, &value.get_item(&item)?, depth + 1, items)?;
                }
                measure_from(state, &item, depth + 1, items)?;
            }
        }
        _ => {}
    }
    Ok(())
}

fn compared(state: &State, a: &Value, b: &Value) -> Result<(), Error> {
    measure(state, a)?;
    measure(state, b)
}

/// What the engine itself makes of two values, both of which were measured.
fn evaluate(state: &State, expression: &'static str, a: &Value, b: &Value) -> Result<Value, Error> {
    state.env().compile_expression(expression)?.eval(context! { a, b })
}

#[allow(clippy::needless_pass_by_value)] // What the engine calls takes its arguments so.
fn add(state: &State, a: Value, b: Value) -> Result<Value, Error> {
    if let (Some(a), Some(b)) = (a.as_str(), b.as_str()) {
        return Ok(Value::from(format!("{a}{b}")));
    }
    compared(state, &a, &b)?;
    evaluate(state, "a + b", &a, &b)
}

#[allow(clippy::needless_pass_by_value)]
fn mul(state: &State, a: Value, b: Value) -> Result<Value, Error> {
    compared(state, &a, &b)?;
    for (repeated, times) in [(&a, &b), (&b, &a)] {
        if let (Some(length), Some(times)) = (repeated.len(), times.as_usize()) {
            if let Some(text) = repeated.as_str() {
                python::charge(state, text.len().saturating_mul(times))?;
            } else if times > 1 && length > 0 {
                // Each repetition is looked through, so that none is free.
                for _ in 0..times {
                    state.consume_fuel(1)?;
                    measure(state, repeated)?;
                }
            }
        }
    }
    evaluate(state, "a * b", &a, &b)
}

#[allow(clippy::needless_pass_by_value)]
fn concat(state: &State, a: Value, b: Value) -> Result<Value, Error> {
    let mut text = python::to_str(state, &a)?;
    text.push_str(&python::to_str(state, &b)?);
    Ok(Value::from(text))
}

fn list(state: &State, items: Rest<Value>) -> Result<Value, Error> {
    items.iter().try_for_each(|item| measure_inside(state, item))?;
    Ok(Value::from(items.0))
}

fn tuple(state: &State, items: Rest<Value>) -> Result<Value, Error> {
    items.iter().try_for_each(|item| measure_inside(state, item))?;
    Ok(Value::from(Tuple::from(items.0)))
}

fn map(state: &State, items: Rest<Value>) -> Result<Value, Error> {
    let mut pairs = Vec::with_capacity(items.len() / 2);
    let mut items = items.0.into_iter();
    while let (Some(key), Some(value)) = (items.next(), items.next()) {
        measure_inside(state, &key)?;
        measure_inside(state, &value)?;
        pairs.push((key, value));
    }
    Ok(Value::from_pairs(pairs))
}

/// As [`measure`], for what is put into another value.
fn measure_inside(state: &State, value: &Value) -> Result<(), Error> {
    let mut items = 0;
    measure_from(state, value, 1, &mut items)
}

fn dict(state: &mut State, args: Rest<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    let args = all(args, kwargs);
    args.iter().try_for_each(|arg| measure_inside(state, arg))?;
    let function = state.lookup("dict").ok_or_else(|| Error::from(ErrorKind::UnknownFunction))?;
    function.call(state, &args)
}
