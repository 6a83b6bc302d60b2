//! Positions of text and images for multimodal rotary embedding (M-RoPE).
//!
//! Source: `get_rope_index` of transformers' Qwen3.5 model. Text advances the temporal, height and width components
//! together. The tokens of an image share the temporal component at which it begins and carry their row and column from
//! there; what follows continues from the largest component + 1, which is less than the number of tokens passed.

use consort_core::{Error, ErrorKind, PatchGrid, Position, Result};

/// A stretch of a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Segment {
    /// So many text tokens, the image's start and end tokens among them.
    Text(usize),
    /// The tokens of an image with this grid.
    Image(PatchGrid),
}

/// Most tokens that one builder yields: far beyond any context, and it bounds the memory of a malformed request.
const MAX_TOKENS: usize = 1 << 24;

/// Yields the position of every token of a sequence, stretch by stretch.
///
/// ```
/// use consort_core::{PatchGrid, Position};
/// use consort_vision::{MropeBuilder, Segment};
///
/// let grid = PatchGrid { t: 1, h: 4, w: 6, merge: 2 };
/// let mut builder = MropeBuilder::new();
/// for segment in [Segment::Text(2), Segment::Image(grid), Segment::Text(1)] {
///     builder.push(segment)?;
/// }
/// let positions = builder.positions();
/// assert_eq!(positions[1], Position::text(1));
/// assert_eq!(positions[2], Position { t: 2, h: 2, w: 2 }); // the image's first token
/// assert_eq!(positions[7], Position { t: 2, h: 3, w: 4 }); // its last: 2 rows of 3
/// assert_eq!(positions[8], Position::text(5)); // the text after it
/// assert_eq!(builder.next_position(), Position::text(6));
/// # Ok::<(), consort_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MropeBuilder {
    positions: Vec<Position>,
    next: u32,
}

impl MropeBuilder {
    /// Begins at position 0.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Continues a sequence whose next text token stands at `next`
    /// ([`next_position`](Self::next_position) of the builder before).
    #[must_use]
    pub fn starting_at(next: Position) -> Self {
        Self { positions: Vec::new(), next: next.max_component() }
    }

    /// Appends a stretch.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidRequest`] when an image's grid is empty or no multiple of its merge size, or the sequence grows
    /// beyond 2^24 tokens; [`ErrorKind::Unsupported`] for video (more than one temporal patch). Nothing was appended then.
    pub fn push(&mut self, segment: Segment) -> Result<()> {
        let tokens = match segment {
            Segment::Text(tokens) => Some(tokens),
            Segment::Image(grid) => {
                check(grid)?;
                (grid.h as usize / grid.merge as usize).checked_mul(grid.w as usize / grid.merge as usize)
            }
        };
        let total = tokens.and_then(|tokens| tokens.checked_add(self.positions.len()));
        let end = tokens.and_then(|tokens| u32::try_from(tokens).ok()).and_then(|tokens| tokens.checked_add(self.next));
        let (Some(..=MAX_TOKENS), Some(end)) = (total, end) else {
            let message = format!("a sequence of more than {MAX_TOKENS} tokens has no positions");
            return Err(Error::new(ErrorKind::InvalidRequest, message).with_operation("vision::MropeBuilder"));
        };
        match segment {
            Segment::Text(_) => {
                self.positions.extend((self.next..end).map(Position::text));
                self.next = end;
            }
            // An image never advances further than it has tokens, so `end` bounds these sums too.
            Segment::Image(grid) => {
                let (rows, columns, start) = (grid.h / grid.merge, grid.w / grid.merge, self.next);
                let tokens = (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column)));
                self.positions.extend(tokens.map(|(row, column)| Position {
                    t: start,
                    h: start + row,
                    w: start + column,
                }));
                self.next = start + rows.max(columns);
            }
        }
        Ok(())
    }

    /// The positions of all tokens so far, in the order of the sequence.
    #[must_use]
    pub fn positions(&self) -> &[Position] {
        &self.positions
    }

    /// Where the next text token stands.
    #[must_use]
    pub fn next_position(&self) -> Position {
        Position::text(self.next)
    }

    /// The positions, by value.
    #[must_use]
    pub fn into_positions(self) -> Vec<Position> {
        self.positions
    }
}

fn check(grid: PatchGrid) -> Result<()> {
    let named = |error: Error| {
        error.with_operation("vision::MropeBuilder").with_context("grid", format!("{}x{}x{}", grid.t, grid.h, grid.w))
    };
    if grid.t > 1 {
        return Err(named(Error::new(ErrorKind::Unsupported, "video is not supported: send single frames as images")));
    }
    let whole = |side: u32| side > 0 && side.is_multiple_of(grid.merge.max(1));
    if grid.merge == 0 || grid.t == 0 || !whole(grid.h) || !whole(grid.w) {
        let message = format!("each side of the grid must be a positive multiple of the merge size, {}", grid.merge);
        return Err(named(Error::new(ErrorKind::InvalidRequest, message)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn continuing_is_the_same_as_all_at_once() {
        let grid = PatchGrid { t: 1, h: 6, w: 4, merge: 2 };
        let segments =
            [Segment::Text(5), Segment::Image(grid), Segment::Image(grid), Segment::Text(0), Segment::Text(3)];
        let mut whole = MropeBuilder::new();
        segments.iter().for_each(|segment| whole.push(*segment).unwrap());
        for cut in 0..segments.len() {
            let mut first = MropeBuilder::new();
            segments[..cut].iter().for_each(|segment| first.push(*segment).unwrap());
            let mut second = MropeBuilder::starting_at(first.next_position());
            segments[cut..].iter().for_each(|segment| second.push(*segment).unwrap());
            assert_eq!(second.next_position(), whole.next_position());
            let joined: Vec<_> = first.into_positions().into_iter().chain(second.into_positions()).collect();
            assert_eq!(joined, whole.positions());
        }
    }

    #[test]
    fn video_and_malformed_grids_are_refused_and_leave_the_builder_as_it_was() {
        let mut builder = MropeBuilder::starting_at(Position::text(u32::MAX - 3));
        let grid = |t, h, w, merge| Segment::Image(PatchGrid { t, h, w, merge });
        assert_eq!(builder.push(grid(2, 2, 2, 2)).unwrap_err().kind(), ErrorKind::Unsupported);
        for segment in [
            grid(0, 2, 2, 2),
            grid(1, 0, 2, 2),
            grid(1, 2, 3, 2),
            grid(1, 2, 2, 0),
            grid(1, u32::MAX, u32::MAX, 1),
            grid(1, 2, 2, 1),
            Segment::Text(4),
            Segment::Text(usize::MAX),
        ] {
            assert_eq!(builder.push(segment).unwrap_err().kind(), ErrorKind::InvalidRequest, "{segment:?}");
        }
        assert!(builder.positions().is_empty());
        builder.push(Segment::Text(3)).unwrap();
        assert_eq!(builder.next_position(), Position::text(u32::MAX));
    }
}
