//! Replies written as events: what the streams of all protocols have in common.

use std::collections::VecDeque;

use axum::body::Bytes;
use axum::response::Response;
use futures_util::StreamExt as _;
use futures_util::stream::{BoxStream, SelectAll};

use crate::error::Failure;
use crate::reply::{Heard, Reply};
use crate::sse;

/// How a protocol writes replies.
pub(crate) trait Script: Send + 'static {
    /// Writes what a part of a reply adds. `index` is the reply's place.
    fn hear(&mut self, index: usize, heard: Heard, page: &mut Page);

    /// Writes that something failed. Nothing comes after it.
    fn fail(&mut self, failure: &Failure, page: &mut Page);

    /// Writes the end, after all replies have ended.
    fn end(&mut self, page: &mut Page);
}

/// Where a script writes.
#[derive(Debug, Default)]
pub(crate) struct Page {
    /// Events that wait to be sent.
    ready: VecDeque<Bytes>,
    over: bool,
}

impl Page {
    /// Writes an event.
    pub(crate) fn write(&mut self, event: Bytes) {
        self.ready.push_back(event);
    }

    /// Nothing comes after what was written. Replies that still run are cancelled with the stream.
    pub(crate) fn close(&mut self) {
        self.over = true;
    }
}

/// Sends replies as a script writes them, each as it comes.
pub(crate) fn perform(replies: Vec<Reply>, script: impl Script) -> Response {
    let numbered = |(index, reply): (usize, Reply)| reply.map(move |heard| (index, heard)).boxed();
    let replies = futures_util::stream::select_all(replies.into_iter().enumerate().map(numbered));
    let events = futures_util::stream::unfold(Performance { replies, script, page: Page::default() }, |mut it| async {
        let event = it.next().await?;
        Some((event, it))
    });
    sse::response(events)
}

/// A script that is being performed.
struct Performance<S> {
    replies: SelectAll<BoxStream<'static, (usize, Result<Heard, Failure>)>>,
    script: S,
    page: Page,
}

impl<S: Script> Performance<S> {
    async fn next(&mut self) -> Option<Bytes> {
        let Self { replies, script, page } = self;
        loop {
            if let Some(event) = page.ready.pop_front() {
                return Some(event);
            }
            if page.over {
                return None;
            }
            match replies.next().await {
                Some((index, Ok(heard))) => script.hear(index, heard, page),
                Some((_, Err(failure))) => {
                    script.fail(&failure, page);
                    page.close();
                }
                None => {
                    script.end(page);
                    page.close();
                }
            }
        }
    }
}
