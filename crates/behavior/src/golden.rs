//! What the reference implementation computed: `golden.json` and `golden.safetensors` of one configuration.
//!
//! `golden/README.md` documents the format.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use consort_core::{ContentHash, Error, ErrorKind, ImageSource, PatchGrid, Position, Result, RgbView, TokenId};
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

/// Rows of numbers, `[rows, width]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Rows {
    width: usize,
    values: Vec<f32>,
}

impl Rows {
    /// One row after the other.
    pub fn iter(&self) -> impl Iterator<Item = &[f32]> {
        self.values.chunks_exact(self.width.max(1))
    }

    /// All values, `[rows, width]`.
    #[must_use]
    pub fn values(&self) -> &[f32] {
        &self.values
    }
}

/// An adapter of a case.
#[derive(Debug, Clone, Deserialize)]
pub struct GoldenAdapter {
    /// Its folder's name.
    pub name: String,
    /// The factor on its own scale.
    pub scale: f32,
    /// The first token that it touches, as the reference found it; `None` for an activated adapter that is not invoked.
    #[serde(default = "from_the_start")]
    pub active_from: Option<usize>,
}

// Serde asks for a function.
#[allow(clippy::unnecessary_wraps)]
fn from_the_start() -> Option<usize> {
    Some(0)
}

/// An image in a case's tokens.
#[derive(Debug, Clone, Deserialize)]
pub struct ImageAt {
    /// Its name.
    pub image: String,
    /// The index of its first token.
    pub at: usize,
    /// How many tokens it takes.
    pub tokens: usize,
}

/// Logits at some places of a prompt.
#[derive(Debug, Clone, Deserialize)]
pub struct LogitsAt {
    /// Indices of tokens.
    pub at: Vec<usize>,
    tensor: String,
}

/// A greedy continuation.
#[derive(Debug, Clone, Deserialize)]
pub struct Continuation {
    /// Its tokens.
    pub tokens: Vec<TokenId>,
    last_logits: String,
}

/// The case on the base model with which a case with adapters is compared.
#[derive(Debug, Clone, Deserialize)]
pub struct Base {
    /// That case's name.
    pub case: String,
}

/// One prompt and what the reference makes of it.
#[derive(Debug, Clone, Deserialize)]
pub struct GoldenCase {
    /// The case's name.
    pub name: String,
    /// Token ids, an image's places included.
    pub tokens: Vec<TokenId>,
    /// The images, in order.
    #[serde(default)]
    pub images: Vec<ImageAt>,
    positions: Option<Vec<Vec<u32>>>,
    /// Where the next token stands.
    pub next_position: u32,
    /// The adapters in effect.
    #[serde(default)]
    pub adapters: Vec<GoldenAdapter>,
    /// Logits of the prompt.
    pub logits: LogitsAt,
    /// The same prompt without the adapters.
    pub base: Option<Base>,
    /// What comes after it.
    pub greedy: Option<Continuation>,
}

impl GoldenCase {
    /// The position of every token.
    #[must_use]
    pub fn positions(&self) -> Vec<Position> {
        match self.positions.as_deref() {
            Some([t, h, w]) => t.iter().zip(h).zip(w).map(|((t, h), w)| Position { t: *t, h: *h, w: *w }).collect(),
            _ => (0..self.tokens.len()).map(|index| Position::text(index as u32)).collect(),
        }
    }
}

#[derive(Debug, Deserialize)]
struct ImageEntry {
    embeddings: String,
}

#[derive(Debug, Deserialize)]
struct File {
    format: u32,
    #[serde(default)]
    images: BTreeMap<String, ImageEntry>,
    cases: Vec<GoldenCase>,
}

/// The goldens of one configuration.
#[derive(Debug)]
pub struct Golden {
    file: File,
    tensors: BTreeMap<String, Rows>,
}

/// The format that this crate reads.
const FORMAT: u32 = 1;

fn invalid(message: impl Into<String>, path: &Path) -> Error {
    Error::new(ErrorKind::InvalidConfig, message)
        .with_operation("golden::read")
        .with_context("path", path.display().to_string())
}

pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|error| Error::io(path, error))
}

impl Golden {
    /// Reads a configuration's folder.
    ///
    /// # Errors
    /// When a file is missing, of another format, or lacks a tensor that a case names.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("golden.json");
        let file: File = serde_json::from_slice(&read(&path)?).map_err(|error| invalid(error.to_string(), &path))?;
        if file.format != FORMAT {
            return Err(invalid(format!("format {} is not the known format {FORMAT}", file.format), &path));
        }
        let path = folder.join("golden.safetensors");
        let bytes = read(&path)?;
        let tensors = SafeTensors::deserialize(&bytes).map_err(|error| invalid(error.to_string(), &path))?;
        let tensors: BTreeMap<String, Rows> = tensors
            .tensors()
            .into_iter()
            .filter(|(_, view)| view.dtype() == Dtype::F32)
            .map(|(name, view)| {
                let values = view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
                (name, Rows { width: view.shape().last().copied().unwrap_or(1), values: values.collect() })
            })
            .collect();
        let golden = Self { file, tensors };
        for case in golden.cases() {
            let continuation = case.greedy.as_ref().map(|greedy| &greedy.last_logits);
            for name in std::iter::once(&case.logits.tensor).chain(continuation) {
                if !golden.tensors.contains_key(name) {
                    return Err(invalid(format!("the tensor {name} is missing"), &path));
                }
            }
        }
        Ok(golden)
    }

    /// Both, for one configuration: those of its activated adapters are kept apart. No two cases have the same name.
    #[must_use]
    pub fn with(mut self, other: Self) -> Self {
        self.file.cases.extend(other.file.cases);
        self.file.images.extend(other.file.images);
        self.tensors.extend(other.tensors);
        self
    }

    /// The cases, in order.
    #[must_use]
    pub fn cases(&self) -> &[GoldenCase] {
        &self.file.cases
    }

    /// The case of this name.
    #[must_use]
    pub fn case(&self, name: &str) -> Option<&GoldenCase> {
        self.file.cases.iter().find(|case| case.name == name)
    }

    /// A case's logits: one row for each of `logits.at`.
    #[must_use]
    pub fn logits(&self, case: &GoldenCase) -> Option<&Rows> {
        self.tensors.get(&case.logits.tensor)
    }

    /// The logits from which the last token of a case's continuation was chosen.
    #[must_use]
    pub fn last_logits(&self, continuation: &Continuation) -> Option<&[f32]> {
        self.tensors.get(&continuation.last_logits)?.iter().next()
    }

    /// The names of the images that have embeddings.
    pub fn images(&self) -> impl Iterator<Item = &str> {
        self.file.images.keys().map(String::as_str)
    }

    /// An image's embedding, `[tokens, hidden]`.
    #[must_use]
    pub fn embeddings(&self, image: &str) -> Option<&Rows> {
        self.tensors.get(&self.file.images.get(image)?.embeddings)
    }
}

#[derive(Debug, Deserialize)]
struct PictureEntry {
    file: Option<String>,
    grid: [u32; 3],
}

/// An image of the goldens, with the patches that the reference's processor made of it.
pub struct GoldenPicture {
    name: String,
    encoded: Option<Vec<u8>>,
    grid: PatchGrid,
    side: usize,
    frames: usize,
    /// `[patches, channels, 1 or frames, side, side]`.
    bytes: Vec<u8>,
    stored_frames: usize,
    pixels: Vec<u8>,
}

impl GoldenPicture {
    /// The image's name in the goldens.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Reads all images of a folder (`images.json`, `patches.safetensors`, PNG files).
    ///
    /// # Errors
    /// When a file is missing or malformed.
    pub fn read_all(folder: &Path) -> Result<Vec<Arc<Self>>> {
        let path = folder.join("images.json");
        let entries: BTreeMap<String, PictureEntry> =
            serde_json::from_slice(&read(&path)?).map_err(|error| invalid(error.to_string(), &path))?;
        Self::read_entries(folder, entries)
    }

    /// Reads the images of a configuration that brings its own (`golden.json`, `patches.safetensors`). Of an image that
    /// lies with the model there are the patches and not the file.
    ///
    /// # Errors
    /// When a file is missing or malformed.
    pub fn read_own(folder: &Path) -> Result<Vec<Arc<Self>>> {
        #[derive(Deserialize)]
        struct Own {
            images: BTreeMap<String, PictureEntry>,
        }
        let path = folder.join("golden.json");
        let own: Own = serde_json::from_slice(&read(&path)?).map_err(|error| invalid(error.to_string(), &path))?;
        Self::read_entries(folder, own.images)
    }

    fn read_entries(folder: &Path, entries: BTreeMap<String, PictureEntry>) -> Result<Vec<Arc<Self>>> {
        let path = folder.join("patches.safetensors");
        let bytes = read(&path)?;
        let tensors = SafeTensors::deserialize(&bytes).map_err(|error| invalid(error.to_string(), &path))?;
        let mut pictures = Vec::new();
        for (name, entry) in entries {
            let view = tensors.tensor(&name).map_err(|error| invalid(error.to_string(), &path))?;
            let &[patches, channels, stored_frames, side, other] = view.shape() else {
                return Err(invalid(format!("the patches of {name} have the wrong shape"), &path));
            };
            let [t, h, w] = entry.grid;
            let grid = PatchGrid { t, h, w, merge: 2 };
            if patches != grid.patches() || channels != 3 || side != other || stored_frames == 0 {
                return Err(invalid(format!("the patches of {name} have the wrong shape"), &path));
            }
            let encoded = entry.file.map(|file| read(&folder.join(file))).transpose()?;
            let mut picture = Self {
                name,
                encoded,
                grid,
                side,
                frames: 2,
                bytes: view.data().to_vec(),
                stored_frames,
                pixels: Vec::new(),
            };
            picture.pixels = picture.assemble();
            pictures.push(Arc::new(picture));
        }
        Ok(pictures)
    }

    fn byte(&self, patch: usize, channel: usize, frame: usize, at: usize) -> u8 {
        let plane = self.side * self.side;
        let frame = frame.min(self.stored_frames - 1);
        self.bytes[((patch * 3 + channel) * self.stored_frames + frame) * plane + at]
    }

    /// Puts the first frame's patches back into a picture. Patches lie in merge-block order.
    fn assemble(&self) -> Vec<u8> {
        let (rows, columns, merge) = (self.grid.h as usize, self.grid.w as usize, self.grid.merge as usize);
        let width = columns * self.side;
        let mut pixels = vec![0; rows * columns * self.side * self.side * 3];
        for patch in 0..rows * columns {
            let (block, within) = (patch / (merge * merge), patch % (merge * merge));
            let row = block / (columns / merge) * merge + within / merge;
            let column = block % (columns / merge) * merge + within % merge;
            for at in 0..self.side * self.side {
                let (y, x) = (row * self.side + at / self.side, column * self.side + at % self.side);
                for channel in 0..3 {
                    pixels[(y * width + x) * 3 + channel] = self.byte(patch, channel, 0, at);
                }
            }
        }
        pixels
    }
}

impl fmt::Debug for GoldenPicture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GoldenPicture").field("name", &self.name).field("grid", &self.grid).finish_non_exhaustive()
    }
}

impl ImageSource for GoldenPicture {
    fn content_hash(&self) -> ContentHash {
        ContentHash(*blake3::hash(&self.bytes).as_bytes())
    }

    fn encoded(&self) -> Option<&[u8]> {
        self.encoded.as_deref()
    }

    fn rgb(&self) -> RgbView<'_> {
        let side = self.side as u32;
        RgbView { width: self.grid.w * side, height: self.grid.h * side, pixels: &self.pixels }
    }

    fn grid(&self) -> PatchGrid {
        self.grid
    }

    /// By x / 127.5 − 1, the family's mean and deviation of one half.
    fn patches(&self) -> Result<Vec<f32>> {
        let plane = self.side * self.side;
        let mut values = Vec::with_capacity(self.grid.patches() * 3 * self.frames * plane);
        for patch in 0..self.grid.patches() {
            for channel in 0..3 {
                for frame in 0..self.frames {
                    for at in 0..plane {
                        values.push(f32::from(self.byte(patch, channel, frame, at)) / 127.5 - 1.0);
                    }
                }
            }
        }
        Ok(values)
    }
}
