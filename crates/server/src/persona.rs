//! A persona: what makes one model many.

use std::num::NonZeroU32;

use consort_core::{AdapterUse, PlacementRule, Priority, Thinking};
use serde::{Deserialize, Serialize};

use crate::sampling::SamplingSettings;

/// The longest name, in bytes.
const MAX_NAME: usize = 128;
/// The longest system prompt, in bytes.
const MAX_SYSTEM: usize = 1 << 20;
/// The most adapters of one persona.
const MAX_ADAPTERS: usize = 16;

/// What makes one model a persona. To every client it is a model of its name.
///
/// ```
/// use consort_server::Persona;
///
/// let ada: Persona = serde_json::from_str(r#"{ "name": "ada", "system": "You are Ada.", "priority": "realtime" }"#)?;
/// assert!(ada.adapters.is_empty());
/// assert!(serde_json::from_str::<Persona>(r#"{ "name": "ada", "sistem": "?" }"#).is_err());
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Persona {
    /// The name by which clients ask for it.
    pub name: String,
    /// Instructions that stand before every conversation, and before the client's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// Adapters that act on every reply.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub adapters: Vec<PersonaAdapter>,
    /// Whose turn it is when not all fit.
    #[serde(default)]
    pub priority: Priority,
    /// Where its replies are computed, where an engine here and servers share the work.
    #[serde(default)]
    pub placement: PlacementRule,
    /// The most of the engine's sequences that its requests take, running or waiting, as a share of all: above 0 and at
    /// most 1. One more is refused. `None`: whatever is free.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_share: Option<f32>,
    /// Whether its adapters stay in the engine.
    #[serde(default)]
    pub pinned: bool,
    /// Whether it thinks before it answers, where the request does not say it. `None`: as the template has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thinking: Option<bool>,
    /// The most tokens of a reply, where the request does not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<NonZeroU32>,
    /// How tokens are chosen, where the request does not say it.
    #[serde(default)]
    pub sampling: SamplingSettings,
    /// Its colour on the page, as `#rrggbb`. `None`: one that goes with its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub color: Option<String>,
}

/// An adapter of a persona.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PersonaAdapter {
    /// Its name.
    pub name: String,
    /// Factor on its own scale; 1 is as trained.
    #[serde(default = "one")]
    pub scale: f32,
}

fn one() -> f32 {
    1.0
}

impl Persona {
    /// The model as it is, under a name.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            system: None,
            adapters: Vec::new(),
            priority: Priority::default(),
            placement: PlacementRule::default(),
            memory_share: None,
            pinned: false,
            thinking: None,
            max_tokens: None,
            sampling: SamplingSettings::default(),
            color: None,
        }
    }

    /// Its adapters, as a request names them.
    pub(crate) fn adapter_uses(&self) -> Vec<AdapterUse> {
        let uses = self.adapters.iter().map(|adapter| AdapterUse { id: adapter.name.clone(), scale: adapter.scale });
        uses.collect()
    }

    /// Whether it thinks, where the request does not say it.
    pub(crate) fn thinking(&self) -> Thinking {
        match self.thinking {
            None => Thinking::TemplateDefault,
            Some(true) => Thinking::On,
            Some(false) => Thinking::Off,
        }
    }

    /// The field that has no meaning, and why.
    pub(crate) fn check(&self) -> Result<(), (String, String)> {
        let wrong = |field: &str, message: &str| Err((field.to_owned(), message.to_owned()));
        check_name(&self.name).map_err(|message| ("name".to_owned(), message))?;
        if self.name.eq_ignore_ascii_case("user") {
            return wrong("name", "a persona cannot have the user's name");
        }
        if self.color.as_ref().is_some_and(|color| !is_color(color)) {
            return wrong("color", "a colour is `#` and six digits of base 16, such as #3d7dd8");
        }
        if self.system.as_ref().is_some_and(|system| system.len() > MAX_SYSTEM) {
            return wrong("system", &format!("may have {MAX_SYSTEM} bytes"));
        }
        if self.adapters.len() > MAX_ADAPTERS {
            return wrong("adapters", &format!("may be {MAX_ADAPTERS} at most"));
        }
        for (index, adapter) in self.adapters.iter().enumerate() {
            check_name(&adapter.name).map_err(|message| (format!("adapters[{index}].name"), message))?;
            if !adapter.scale.is_finite() {
                return wrong(&format!("adapters[{index}].scale"), "must be a number");
            }
            if self.adapters.iter().take(index).any(|other| other.name == adapter.name) {
                return wrong(&format!("adapters[{index}].name"), "the persona has this adapter already");
            }
        }
        if self.memory_share.is_some_and(|share| !(share > 0.0 && share <= 1.0)) {
            return wrong("memory_share", "must be above 0 and at most 1");
        }
        self.sampling.check().map_err(|(field, message)| (format!("sampling.{field}"), message))
    }
}

fn is_color(text: &str) -> bool {
    text.strip_prefix('#').is_some_and(|digits| digits.len() == 6 && digits.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// Whether something can be a model's or an adapter's name: it stands in addresses, logs and file names.
pub(crate) fn check_name(name: &str) -> Result<(), String> {
    let fits = |symbol: char| !symbol.is_control() && !matches!(symbol, '/' | '\\' | '"');
    let whole = !name.is_empty() && name.len() <= MAX_NAME && name.trim() == name && !name.starts_with('.');
    if whole && name.chars().all(fits) {
        Ok(())
    } else {
        Err(format!(
            "a name has 1 to {MAX_NAME} bytes, no slash, quote or control character, and does not begin with a dot"
        ))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_are_names() {
        for name in ["ada", "Zoë", "llama-3.1:8b", "a b"] {
            check_name(name).unwrap();
        }
        for name in ["", " a", "../x", "a/b", "a\\b", "a\nb", &"x".repeat(129)] {
            check_name(name).unwrap_err();
        }
    }

    #[test]
    fn what_has_no_meaning_is_named() {
        let wrong = |change: fn(&mut Persona)| {
            let mut persona = Persona::new("ada");
            change(&mut persona);
            persona.check().unwrap_err().0
        };
        let adapter = |name: &str, scale| PersonaAdapter { name: name.into(), scale };
        assert_eq!(wrong(|p| p.name.clear()), "name");
        assert_eq!(wrong(|p| p.memory_share = Some(1.1)), "memory_share");
        assert_eq!(wrong(|p| p.sampling.top_p = Some(0.0)), "sampling.top_p");
        assert_eq!(wrong(|p| p.name = "User".into()), "name");
        for color in ["", "red", "#12345", "#1234567", "#12345g", "#é1234"] {
            let persona = Persona { color: Some(color.into()), ..Persona::new("ada") };
            assert_eq!(persona.check().unwrap_err().0, "color", "{color}");
        }
        Persona { color: Some("#3D7dd8".into()), ..Persona::new("ada") }.check().unwrap();
        let mut persona = Persona::new("ada");
        persona.adapters = vec![adapter("a", 1.0), adapter("a", 0.5)];
        assert_eq!(persona.check().unwrap_err().0, "adapters[1].name");
        persona.adapters = vec![adapter("../a", 1.0)];
        assert_eq!(persona.check().unwrap_err().0, "adapters[0].name");
        Persona::new("ada").check().unwrap();
    }
}
