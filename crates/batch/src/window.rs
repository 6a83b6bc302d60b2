//! Answers that wait for those before them.

use std::collections::VecDeque;

/// What is written of one request.
#[derive(Debug)]
pub(crate) struct Finished {
    /// The line.
    pub(crate) record: Vec<u8>,
    /// What went wrong, in a word. `None`: it is a good answer.
    pub(crate) failure: Option<String>,
    pub(crate) usage: crate::meter::Usage,
    /// Where the input's next line begins.
    pub(crate) end: u64,
}

/// The requests that were begun and not written, in the order of the input.
#[derive(Debug, Default)]
pub(crate) struct Window {
    slots: VecDeque<Option<Finished>>,
    /// How many have been taken out.
    taken: u64,
    held: usize,
}

impl Window {
    /// Adds a request at the end: its number.
    pub(crate) fn open(&mut self) -> u64 {
        self.slots.push_back(None);
        self.taken + self.slots.len() as u64 - 1
    }

    /// Puts an answer in its place.
    pub(crate) fn finish(&mut self, number: u64, finished: Finished) {
        let index = number.checked_sub(self.taken).and_then(|index| usize::try_from(index).ok());
        if let Some(slot) = index.and_then(|index| self.slots.get_mut(index)) {
            self.held += finished.record.len();
            *slot = Some(finished);
        }
    }

    /// Takes the first out, if it is answered.
    pub(crate) fn take(&mut self) -> Option<Finished> {
        let finished = self.slots.front_mut()?.take()?;
        self.slots.pop_front();
        self.taken += 1;
        self.held -= finished.record.len();
        Some(finished)
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    /// The bytes of answers that wait.
    pub(crate) fn held_bytes(&self) -> usize {
        self.held
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn whatever_finishes_first_comes_out_in_order() {
        let finished = |end: u64| Finished { record: vec![0; 10], failure: None, usage: Default::default(), end };
        let mut window = Window::default();
        let mut out = Vec::new();
        let numbers: Vec<u64> = (0..4).map(|_| window.open()).collect();
        for number in [2, 0, 3] {
            window.finish(numbers[number], finished(number as u64));
            out.extend(std::iter::from_fn(|| window.take()).map(|finished| finished.end));
        }
        assert_eq!((out.as_slice(), window.len(), window.held_bytes()), (&[0][..], 3, 20));
        let late = window.open();
        window.finish(late, finished(4));
        window.finish(numbers[1], finished(1));
        out.extend(std::iter::from_fn(|| window.take()).map(|finished| finished.end));
        assert_eq!((out.as_slice(), window.len(), window.held_bytes()), (&[0, 1, 2, 3, 4][..], 0, 0));
        assert!(window.take().is_none());
    }
}
