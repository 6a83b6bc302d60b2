//! Prompts as the suite hands them to engines: pieces of text and images, with the position of every token.

use std::ops::Range;

use consort_core::{ImageHandle, Position, SeqId, Step, StepInput, TokenId, Want};

/// A piece of a script.
#[derive(Debug, Clone)]
enum Piece {
    Text(Vec<TokenId>),
    Image(ImageHandle),
}

impl Piece {
    fn len(&self) -> usize {
        match self {
            Self::Text(tokens) => tokens.len(),
            Self::Image(image) => image.tokens(),
        }
    }
}

/// What a sequence is to read.
#[derive(Debug, Clone, Default)]
pub(crate) struct Script {
    pieces: Vec<Piece>,
    positions: Vec<Position>,
    next: u32,
}

impl Script {
    /// Text from position 0.
    pub(crate) fn text(tokens: &[TokenId]) -> Self {
        Self::default().then_text(tokens)
    }

    /// Nothing yet; what is added begins at position `next`.
    pub(crate) fn at(next: u32) -> Self {
        Self { next, ..Self::default() }
    }

    pub(crate) fn then_text(mut self, tokens: &[TokenId]) -> Self {
        for index in 0..tokens.len() {
            self.positions.push(Position::text(self.next + index as u32));
        }
        self.next += tokens.len() as u32;
        self.pieces.push(Piece::Text(tokens.to_vec()));
        self
    }

    /// An image's tokens share a time and carry their row and column; what follows stands at the largest component + 1.
    /// (Source: `get_rope_index` of transformers' Qwen3.5 model.)
    pub(crate) fn then_image(mut self, image: &ImageHandle) -> Self {
        let grid = image.grid();
        let merge = grid.merge.max(1);
        let (rows, columns) = (grid.h / merge, grid.w / merge);
        let start = self.next;
        for t in 0..grid.t {
            for h in 0..rows {
                for w in 0..columns {
                    self.positions.push(Position { t: start + t, h: start + h, w: start + w });
                }
            }
        }
        self.next = start + grid.t.max(rows).max(columns);
        self.pieces.push(Piece::Image(image.clone()));
        self
    }

    pub(crate) fn len(&self) -> usize {
        self.positions.len()
    }

    /// Where the next token would stand.
    pub(crate) fn next(&self) -> u32 {
        self.next
    }

    pub(crate) fn positions(&self) -> &[Position] {
        &self.positions
    }

    /// The same content at other positions.
    pub(crate) fn with_positions(mut self, positions: Vec<Position>) -> Self {
        debug_assert_eq!(positions.len(), self.positions.len());
        self.next = positions.iter().map(|position| position.max_component() + 1).max().unwrap_or(0);
        self.positions = positions;
        self
    }

    /// The tokens of `range` as chunks, none of which crosses a piece's border or is longer than `most`.
    pub(crate) fn chunks(&self, range: Range<usize>, most: usize) -> Vec<Chunk> {
        let mut chunks = Vec::new();
        let mut offset = 0;
        for piece in &self.pieces {
            let length = piece.len();
            let mut from = range.start.clamp(offset, offset + length);
            let to = range.end.clamp(offset, offset + length);
            while from < to {
                let end = to.min(from + most.max(1));
                let within = from - offset..end - offset;
                let content = match piece {
                    Piece::Text(tokens) => Content::Text(tokens[within].to_vec()),
                    Piece::Image(image) => Content::Image(image.clone(), within),
                };
                chunks.push(Chunk { content, positions: self.positions[from..end].to_vec() });
                from = end;
            }
            offset += length;
        }
        chunks
    }

    /// All of it as one chunk, which must be of one piece.
    pub(crate) fn chunk(&self) -> Chunk {
        self.chunks(0..self.len(), usize::MAX / 2).swap_remove(0)
    }
}

#[derive(Debug, Clone)]
pub(crate) enum Content {
    Text(Vec<TokenId>),
    Image(ImageHandle, Range<usize>),
}

/// What one step appends.
#[derive(Debug, Clone)]
pub(crate) struct Chunk {
    pub(crate) content: Content,
    pub(crate) positions: Vec<Position>,
}

impl Chunk {
    pub(crate) fn step<'a>(&'a self, seq: SeqId, want: Want<'a>) -> Step<'a> {
        let input = match &self.content {
            Content::Text(tokens) => StepInput::Tokens(tokens),
            Content::Image(image, tokens) => StepInput::Image { image, tokens: tokens.clone() },
        };
        Step { seq, input, positions: &self.positions, want }
    }

    pub(crate) fn len(&self) -> usize {
        self.positions.len()
    }
}
