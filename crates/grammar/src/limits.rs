//! What a grammar may cost.

/// Bounds on grammars, which come from strangers. What passes one is refused by its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrammarLimits {
    /// The longest regular expression, in bytes.
    pub regex_bytes: usize,
    /// The longest Lark grammar, in bytes.
    pub lark_bytes: usize,
    /// The largest JSON Schema, in bytes of its JSON text.
    pub schema_bytes: usize,
    /// How deep brackets may stand in a regular expression or grammar, and values in a schema.
    pub depth: usize,
    /// The most texts of a choice.
    pub choices: usize,
    /// Bytes of all texts of a choice.
    pub choice_bytes: usize,
    /// Symbols of the compiled grammar.
    pub grammar_symbols: usize,
    /// Work to build the automata, in llguidance's fuel, of which some 50,000 take a millisecond.
    pub build_fuel: u64,
    /// Work of the lexer for one mask, in the same fuel, of which some 14,000 take a millisecond.
    pub step_fuel: u64,
    /// Items of the parser for one mask, of which some 20,000 take a millisecond.
    pub step_items: usize,
    /// States of the lexer, of one to two KiB each.
    pub lexer_states: usize,
    /// How many compiled grammars are kept.
    pub cached: usize,
}

impl Default for GrammarLimits {
    fn default() -> Self {
        Self {
            regex_bytes: 16 << 10,
            lark_bytes: 256 << 10,
            schema_bytes: 1 << 20,
            depth: 64,
            choices: 10_000,
            choice_bytes: 256 << 10,
            grammar_symbols: 200_000,
            build_fuel: 1_000_000,
            step_fuel: 200_000,
            step_items: 50_000,
            lexer_states: 50_000,
            cached: 64,
        }
    }
}
