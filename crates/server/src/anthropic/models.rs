//! `/v1/models` in the API's form.

use axum::response::Response;
use serde_json::{Value, json};

use crate::app::Shared;
use crate::error::Failure;
use crate::openai::json_response;
use crate::openai::models::{Entry, max_tokens};

/// How many models a page has, where nobody says it, and at most.
const PAGE: usize = 20;
const LONGEST_PAGE: usize = 1000;

/// A page of everybody who can be asked.
pub(crate) fn list(app: &Shared, all: &[Entry], query: Option<&str>) -> Result<Response, Failure> {
    let page = Page::read(query.unwrap_or_default())?;
    let place = |id: &str, param| {
        let found = all.iter().position(|entry| entry.name == id);
        found.ok_or_else(|| Failure::value(param, "there is no model of this name"))
    };
    let (begin, end) = match (&page.after, &page.before) {
        (Some(_), Some(_)) => return Err(Failure::value("before_id", "`after_id` and `before_id` exclude each other")),
        (Some(after), None) => {
            let begin = place(after, "after_id")? + 1;
            (begin, all.len().min(begin + page.limit))
        }
        (None, Some(before)) => {
            let end = place(before, "before_id")?;
            (end.saturating_sub(page.limit), end)
        }
        (None, None) => (0, all.len().min(page.limit)),
    };
    let shown = all.get(begin..end).unwrap_or_default();
    // More in the direction in which it was asked.
    let more = if page.before.is_some() { begin > 0 } else { end < all.len() };
    Ok(json_response(&json!({
        "data": shown.iter().map(|entry| model(app, entry)).collect::<Vec<_>>(),
        "has_more": more,
        "first_id": shown.first().map(|entry| &entry.name),
        "last_id": shown.last().map(|entry| &entry.name),
    })))
}

/// One of them.
pub(crate) fn model(app: &Shared, entry: &Entry) -> Value {
    let most = max_tokens(app);
    json!({
        "type": "model",
        "id": entry.name,
        "display_name": entry.name,
        "created_at": date(entry.created),
        "lifecycle": "active",
        "deprecated_at": null,
        "retires_at": null,
        "max_input_tokens": most,
        "max_tokens": app.config.limits.reply_tokens.map_or(most, |own| most.min(own.get() as usize)),
    })
}

#[derive(Debug, PartialEq, Eq)]
struct Page {
    limit: usize,
    after: Option<String>,
    before: Option<String>,
}

impl Page {
    fn read(query: &str) -> Result<Self, Failure> {
        let mut page = Self { limit: PAGE, after: None, before: None };
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            match &*name {
                "limit" => {
                    let limit = value.parse().ok().filter(|limit| (1..=LONGEST_PAGE).contains(limit));
                    let wrong = || Failure::value("limit", format!("`limit` is from 1 to {LONGEST_PAGE}"));
                    page.limit = limit.ok_or_else(wrong)?;
                }
                "after_id" => page.after = Some(value.into_owned()),
                "before_id" => page.before = Some(value.into_owned()),
                // The client's word for its own beta endpoints.
                "beta" => {}
                other => {
                    let shown: String = other.chars().take(80).collect();
                    let message = format!("unknown parameter: `{shown}`");
                    return Err(Failure::invalid("unknown_parameter", message).with_param(shown));
                }
            }
        }
        Ok(page)
    }
}

/// A second since 1970 as RFC 3339 has it, in UTC. The calendar is Howard Hinnant's `civil_from_days`.
fn date(seconds: u64) -> String {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Eras of 400 years, which begin in March.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", second / 3600, second / 60 % 60, second % 60)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (1_767_225_600, "2026-01-01T00:00:00Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(date(seconds), expected);
        }
    }

    #[test]
    fn pages_are_asked_for_in_the_address() {
        let page = Page::read("limit=5&after_id=Qwen%203.5").unwrap();
        assert_eq!(page, Page { limit: 5, after: Some("Qwen 3.5".into()), before: None });
        assert_eq!(Page::read("").unwrap().limit, 20);
        for (query, param) in
            [("limit=0", "limit"), ("limit=1001", "limit"), ("limit=x", "limit"), ("colour=red", "colour")]
        {
            assert_eq!(Page::read(query).unwrap_err().param(), Some(param));
        }
    }
}
