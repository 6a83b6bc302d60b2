//! The vision tower: patches to embeddings of the text model's width.

use std::ops::Range;
use std::sync::Arc;

use consort_core::{Error, ErrorKind, ImageSource, PatchGrid, Position, Result};
use consort_gguf::{Gguf, Metadata};

use rayon::prelude::*;

use super::batch::each_row;
use super::norm;
use super::rope::{Angles, Rope};
use crate::kernels::{Format, Matmul};
use crate::weights::{Compute, Matrix, vector};

/// Multiply-adds of one [`advance`](VisionModel::advance): a fraction of a second on one core.
const WORK_PER_CALL: usize = 4 << 30;
/// Rows that are worked on at once, rounded down to whole tokens.
const ROWS_PER_PART: usize = 256;
const MAX_BLOCKS: usize = 1024;

/// A linear layer with bias.
struct Linear {
    weight: Matrix,
    bias: Vec<f32>,
}

impl Linear {
    fn open(file: &Arc<Gguf>, name: &str, rows: usize, cols: usize) -> Result<Self> {
        Ok(Self {
            weight: Matrix::open(file, &format!("{name}.weight"), rows, cols)?,
            bias: vector(file, &format!("{name}.bias"), &[rows])?,
        })
    }

    fn forward(&self, compute: Compute, x: &[f32]) -> Vec<f32> {
        let mut out = self.weight.times(compute, x);
        for row in out.chunks_exact_mut(self.bias.len()) {
            for (out, bias) in row.iter_mut().zip(&self.bias) {
                *out += bias;
            }
        }
        out
    }
}

/// Weight and bias of a layer norm.
struct Norm {
    weight: Vec<f32>,
    bias: Vec<f32>,
}

impl Norm {
    fn open(file: &Gguf, name: &str, width: usize) -> Result<Self> {
        let part = |part: &str| vector(file, &format!("{name}.{part}"), &[width]);
        Ok(Self { weight: part("weight")?, bias: part("bias")? })
    }

    fn forward(&self, compute: Compute, x: &[f32], epsilon: f32) -> Vec<f32> {
        norm::layer_rows(compute.kernels, x, &self.weight, &self.bias, epsilon)
    }
}

struct Block {
    attention_norm: Norm,
    qkv: Linear,
    output: Linear,
    mlp_norm: Norm,
    up: Linear,
    down: Linear,
}

/// The vision tower's weights.
pub(crate) struct VisionModel {
    hidden: usize,
    mlp: usize,
    heads: usize,
    /// Side of a patch in pixels.
    patch: usize,
    /// Side of the square of patches that becomes one token.
    merge: usize,
    epsilon: f32,
    rope: Rope,
    /// One for each of the two frames that a patch spans; rows `[channel, y, x]`.
    frames: [Matrix; 2],
    patch_bias: Vec<f32>,
    /// `[side, side, hidden]`.
    positions: Vec<f32>,
    /// Side of the square of learned positions.
    side: usize,
    blocks: Vec<Block>,
    norm: Norm,
    merger: [Linear; 2],
}

/// An image on its way through the tower.
pub(crate) struct Encoding {
    grid: PatchGrid,
    /// `[patches, channel · frame · y · x]` until the first step has embedded them.
    patches: Vec<f32>,
    angles: Vec<Angles>,
    /// `[patches, hidden]`.
    x: Vec<f32>,
    /// Queries, keys, values of the current block, `[patches, 3 · hidden]`; queries and keys are rotated.
    qkv: Vec<f32>,
    /// `[tokens, text hidden]`, as far as they are.
    embeddings: Vec<f32>,
    /// Rows that are worked on at once: a multiple of the patches of a token.
    part: usize,
    stage: Stage,
}

/// What comes next, from which row on.
#[derive(Debug, Clone, Copy)]
enum Stage {
    Embed(usize),
    Project { block: usize, row: usize },
    Mix { block: usize, row: usize },
    Merge(usize),
}

impl Encoding {
    pub(crate) fn grid(&self) -> PatchGrid {
        self.grid
    }

    /// Rows `row..` of the next part.
    fn part(&self, row: usize) -> Range<usize> {
        row..(row + self.part).min(self.grid.patches())
    }
}

fn dimension(metadata: &Metadata, key: &str) -> Result<usize> {
    match metadata.require_u32(key)? as usize {
        value @ 1..=0x0010_0000 => Ok(value),
        value => Err(invalid(key, format!("{value} is no dimension of a vision tower"))),
    }
}

fn invalid(key: &str, message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidModel, message).with_operation("native::load").with_context("key", key)
}

impl VisionModel {
    /// Opens a tower whose tokens have the width `text_hidden`.
    pub(crate) fn open(file: &Arc<Gguf>, text_hidden: usize) -> Result<Self> {
        let metadata = file.metadata();
        for (key, wanted) in [("general.architecture", "clip"), ("clip.projector_type", "qwen3vl_merger")] {
            let found = metadata.require_str(key)?;
            if found != wanted {
                return Err(invalid(key, format!("this engine's vision tower is {wanted}, and the file's {found}")));
            }
        }
        let deepstack = "clip.vision.is_deepstack_layers";
        if metadata.contains(deepstack) && metadata.array_of_bools(deepstack)?.contains(&true) {
            return Err(Error::new(ErrorKind::Unsupported, "vision towers with deepstack layers are not supported")
                .with_operation("native::load")
                .with_context("key", deepstack));
        }
        let key = |name: &str| format!("clip.vision.{name}");
        let hidden = dimension(metadata, &key("embedding_length"))?;
        let mlp = dimension(metadata, &key("feed_forward_length"))?;
        let heads = dimension(metadata, &key("attention.head_count"))?;
        let patch = dimension(metadata, &key("patch_size"))?;
        let merge = metadata.u32_or(&key("spatial_merge_size"), 2)? as usize;
        let epsilon = metadata.f32_or(&key("attention.layer_norm_epsilon"), 1e-6)?;
        let count = dimension(metadata, &key("block_count"))?;
        if !hidden.is_multiple_of(heads) || !(hidden / heads).is_multiple_of(4) {
            return Err(invalid(
                &key("attention.head_count"),
                format!("{hidden} numbers cannot be split into {heads} heads of a multiple of 4"),
            ));
        }
        if !(1..=8).contains(&merge) || patch > 1024 || count > MAX_BLOCKS {
            return Err(invalid(&key("spatial_merge_size"), "merge size, patch size or block count is out of range"));
        }
        if dimension(metadata, &key("projection_dim"))? != text_hidden {
            return Err(invalid(
                &key("projection_dim"),
                format!("the vision tower does not belong to this text model, whose hidden size is {text_hidden}"),
            ));
        }
        if !(epsilon > 0.0 && epsilon < 1.0) {
            return Err(invalid(&key("attention.layer_norm_epsilon"), "this must lie between 0 and 1"));
        }
        let pixels = 3 * patch * patch;
        let frame = |name: &str| Matrix::open_as(file, name, &[patch, patch, 3, hidden], hidden, pixels);
        let block = |index: usize| {
            let name = |name: &str| format!("v.blk.{index}.{name}");
            Ok(Block {
                attention_norm: Norm::open(file, &name("ln1"), hidden)?,
                qkv: Linear::open(file, &name("attn_qkv"), 3 * hidden, hidden)?,
                output: Linear::open(file, &name("attn_out"), hidden, hidden)?,
                mlp_norm: Norm::open(file, &name("ln2"), hidden)?,
                up: Linear::open(file, &name("ffn_up"), mlp, hidden)?,
                down: Linear::open(file, &name("ffn_down"), hidden, mlp)?,
            })
        };
        let merged = hidden * merge * merge;
        let table = file.require_tensor("v.position_embd.weight")?;
        let side = usize::try_from(table.rows().isqrt()).unwrap_or(0);
        Ok(Self {
            hidden,
            mlp,
            heads,
            patch,
            merge,
            epsilon,
            rope: Rope::vision(hidden / heads),
            frames: [frame("v.patch_embd.weight")?, frame("v.patch_embd.weight.1")?],
            patch_bias: vector(file, "v.patch_embd.bias", &[hidden])?,
            // Not a square: the shape that is asked for then is not the tensor's, and the error says so.
            positions: vector(file, "v.position_embd.weight", &[hidden, side.saturating_mul(side)])?,
            side,
            blocks: (0..count).map(block).collect::<Result<_>>()?,
            norm: Norm::open(file, "v.post_ln", hidden)?,
            merger: [Linear::open(file, "mm.0", merged, merged)?, Linear::open(file, "mm.2", text_hidden, merged)?],
        })
    }

    /// Takes an image in. Nothing is computed yet.
    pub(crate) fn begin(&self, image: &dyn ImageSource, max_patches: usize) -> Result<Encoding> {
        let grid = image.grid();
        let merge = self.merge as u32;
        let refuse = |message: String| {
            Err(Error::new(ErrorKind::InvalidImage, message)
                .with_context("grid", format!("{} × {} × {}", grid.t, grid.h, grid.w)))
        };
        if grid.merge != merge || !grid.h.is_multiple_of(merge) || !grid.w.is_multiple_of(merge) {
            return refuse(format!(
                "the image was not prepared for this model, which merges {merge} × {merge} patches"
            ));
        }
        let patches = [grid.t, grid.h, grid.w].iter().try_fold(1_usize, |all, &side| all.checked_mul(side as usize));
        let Some(patches) = patches.filter(|patches| (1..=max_patches).contains(patches)) else {
            return refuse(format!("an image may have 1 to {max_patches} patches: make it smaller"));
        };
        let values = image.patches()?;
        let width = 6 * self.patch * self.patch;
        if values.len() != patches * width {
            return refuse(format!("{} values are not {patches} patches of {width}", values.len()));
        }
        if let Some(index) = values.iter().position(|value| !value.is_finite()) {
            return refuse(format!("value {} of patch {} is not a finite number", index % width, index / width));
        }
        Ok(Encoding {
            grid,
            patches: values,
            angles: (0..patches).map(|index| self.angles(grid, index)).collect(),
            x: Vec::with_capacity(patches * self.hidden),
            qkv: Vec::with_capacity(patches * 3 * self.hidden),
            embeddings: Vec::new(),
            part: ROWS_PER_PART / (self.merge * self.merge) * (self.merge * self.merge),
            stage: Stage::Embed(0),
        })
    }

    /// Row and column of a patch: patches come in blocks of merge × merge.
    fn place(&self, grid: PatchGrid, index: usize) -> (usize, usize) {
        let (h, w) = (grid.h as usize, grid.w as usize);
        let (index, merge) = (index % (h * w), self.merge);
        let (block, within) = (index / (merge * merge), index % (merge * merge));
        let blocks = w / merge;
        (block / blocks * merge + within / merge, block % blocks * merge + within % merge)
    }

    fn angles(&self, grid: PatchGrid, index: usize) -> Angles {
        let (row, column) = self.place(grid, index);
        self.rope.angles(Position { t: 0, h: row as u32, w: column as u32 })
    }

    /// Does a bounded part of the work. The embeddings `[tokens, text hidden]` when that was the last.
    pub(crate) fn advance(&self, compute: Compute, image: &mut Encoding) -> Option<Vec<f32>> {
        let mut left = WORK_PER_CALL;
        loop {
            let work = match image.stage {
                Stage::Embed(row) => self.embed(compute, image, row),
                Stage::Project { block, row } => self.project(compute, image, block, row),
                Stage::Mix { block, row } => self.mix(compute, image, block, row),
                Stage::Merge(row) if row == image.grid.patches() => return Some(std::mem::take(&mut image.embeddings)),
                Stage::Merge(row) => self.merge(compute, image, row),
            };
            left = left.checked_sub(work)?;
        }
    }

    /// Embeds some patches and adds their positions.
    fn embed(&self, compute: Compute, image: &mut Encoding, row: usize) -> usize {
        let rows = image.part(row);
        let frame = self.patch * self.patch;
        let patches = &image.patches[rows.start * 6 * frame..rows.end * 6 * frame];
        let mut x: Vec<f32> = rows.clone().flat_map(|index| self.position(image.grid, index)).collect();
        for row in x.chunks_exact_mut(self.hidden) {
            add(row, &self.patch_bias);
        }
        for (which, weights) in self.frames.iter().enumerate() {
            // A patch is [channel][frame][y][x]; the weights come by frame.
            let channels = patches.chunks_exact(2 * frame);
            let pixels: Vec<f32> = channels.flat_map(|channel| &channel[which * frame..][..frame]).copied().collect();
            add(&mut x, &weights.times(compute, &pixels));
        }
        image.x.extend_from_slice(&x);
        if rows.end == image.grid.patches() {
            image.patches = Vec::new();
            image.stage = Stage::Project { block: 0, row: 0 };
        } else {
            image.stage = Stage::Embed(rows.end);
        }
        rows.len() * 6 * frame * self.hidden
    }

    /// The learned position of a patch: the square of positions, stretched over the grid, corners on corners, bilinear.
    fn position(&self, grid: PatchGrid, index: usize) -> Vec<f32> {
        let (row, column) = self.place(grid, index);
        let axis = |at: usize, size: u32| {
            let source = at as f32 * (self.side - 1) as f32 / (size.saturating_sub(1)).max(1) as f32;
            let low = source.floor();
            let after = (low as usize + 1).min(self.side - 1);
            [(low as usize, 1.0 - (source - low)), (after, source - low)]
        };
        let mut out = vec![0.0; self.hidden];
        for (y, y_weight) in axis(row, grid.h) {
            for (x, x_weight) in axis(column, grid.w) {
                let learned = &self.positions[(y * self.side + x) * self.hidden..][..self.hidden];
                for (out, learned) in out.iter_mut().zip(learned) {
                    *out += learned * (y_weight * x_weight);
                }
            }
        }
        out
    }

    /// Queries, keys and values of some rows.
    fn project(&self, compute: Compute, image: &mut Encoding, block: usize, row: usize) -> usize {
        let Some(weights) = self.blocks.get(block) else {
            image.stage = Stage::Merge(0);
            return 0;
        };
        let rows = image.part(row);
        if row == 0 {
            image.qkv.clear();
        }
        let x = &image.x[rows.start * self.hidden..rows.end * self.hidden];
        let mut qkv = weights.qkv.forward(compute, &weights.attention_norm.forward(compute, x, self.epsilon));
        let dim = self.hidden / self.heads;
        for (row, angles) in qkv.chunks_exact_mut(3 * self.hidden).zip(&image.angles[rows.clone()]) {
            for head in row[..2 * self.hidden].chunks_exact_mut(dim) {
                angles.rotate(head);
            }
        }
        image.qkv.extend_from_slice(&qkv);
        image.stage = if rows.end == image.grid.patches() {
            Stage::Mix { block, row: 0 }
        } else {
            Stage::Project { block, row: rows.end }
        };
        rows.len() * 3 * self.hidden * self.hidden
    }

    /// Attention of some rows to all rows of their frame, and the rest of the block.
    fn mix(&self, compute: Compute, image: &mut Encoding, block: usize, row: usize) -> usize {
        let (hidden, dim) = (self.hidden, self.hidden / self.heads);
        let rows = image.part(row);
        let frame = image.grid.h as usize * image.grid.w as usize;
        let frames = rows.start / frame..(rows.end - 1) / frame + 1;
        let qkv = &image.qkv;
        // Of one head: `[rows, dim]`.
        let attend = |head: usize| -> Vec<f32> {
            let gather = |part: usize, rows: Range<usize>| -> Vec<f32> {
                let at = part * hidden + head * dim;
                rows.flat_map(|row| &qkv[row * 3 * hidden + at..][..dim]).copied().collect()
            };
            let frames = frames.clone().flat_map(|index| {
                let all = index * frame..(index + 1) * frame;
                let mine = rows.start.max(all.start)..rows.end.min(all.end);
                self.attend(compute, dim, &gather(0, mine), &gather(1, all.clone()), &gather(2, all))
            });
            frames.collect()
        };
        let heads: Vec<Vec<f32>> = if compute.is_parallel(rows.len() * frame * hidden) {
            (0..self.heads).into_par_iter().map(attend).collect()
        } else {
            (0..self.heads).map(attend).collect()
        };
        let mut mixed = vec![0.0; rows.len() * hidden];
        for (head, out) in heads.iter().enumerate() {
            for (row, out) in mixed.chunks_exact_mut(hidden).zip(out.chunks_exact(dim)) {
                row[head * dim..][..dim].copy_from_slice(out);
            }
        }
        let x = &mut image.x[rows.start * hidden..rows.end * hidden];
        if let Some(weights) = self.blocks.get(block) {
            add(x, &weights.output.forward(compute, &mixed));
            let mut up = weights.up.forward(compute, &weights.mlp_norm.forward(compute, x, self.epsilon));
            each_row(compute, up.len() * 16, &mut up, self.mlp, |_, up| compute.kernels.gelu_tanh(up));
            add(x, &weights.down.forward(compute, &up));
        }
        image.stage = if rows.end == image.grid.patches() {
            Stage::Project { block: block + 1, row: 0 }
        } else {
            Stage::Mix { block, row: rows.end }
        };
        rows.len() * hidden * (hidden + 2 * self.mlp + 2 * frame)
    }

    /// Attention of `queries` to all of `keys` and `values`, each `[rows, dim]`.
    fn attend(&self, compute: Compute, dim: usize, queries: &[f32], keys: &[f32], values: &[f32]) -> Vec<f32> {
        let (kernels, count, rows) = (compute.kernels, keys.len() / dim, queries.len() / dim);
        let times = |weights: &[f32], cols: usize, x: &[f32], stride: usize| -> Vec<f32> {
            let mut out = vec![0.0; rows * stride];
            let weights = bytemuck::cast_slice(weights);
            kernels.matmul(
                Format::F32,
                Matmul { weights, row_bytes: 4 * cols, x, cols, out: &mut out, stride, offset: 0 },
            );
            out
        };
        let mut weights = times(keys, dim, queries, count);
        let scale = 1.0 / (dim as f32).sqrt();
        for weights in weights.chunks_exact_mut(count) {
            weights.iter_mut().for_each(|weight| *weight *= scale);
            kernels.softmax(weights);
        }
        let mut columns = vec![0.0; values.len()];
        for (row, value) in values.chunks_exact(dim).enumerate() {
            for (column, x) in value.iter().enumerate() {
                columns[column * count + row] = *x;
            }
        }
        times(&columns, count, &weights, dim)
    }

    /// Merges squares of patches into tokens, for some rows.
    fn merge(&self, compute: Compute, image: &mut Encoding, row: usize) -> usize {
        let rows = image.part(row);
        let x = &image.x[rows.start * self.hidden..rows.end * self.hidden];
        // Patches of a square are neighbours, so `[patches, hidden]` is `[tokens, merge² · hidden]`.
        let mut wide = self.merger[0].forward(compute, &self.norm.forward(compute, x, self.epsilon));
        for x in &mut wide {
            // The exact GELU here, as the reference has it, and not the tanh form of the blocks.
            *x = 0.5 * *x * (1.0 + libm::erff(*x * std::f32::consts::FRAC_1_SQRT_2));
        }
        image.embeddings.extend_from_slice(&self.merger[1].forward(compute, &wide));
        image.stage = Stage::Merge(rows.end);
        let merged = self.merge * self.merge * self.hidden;
        wide.len() * (merged + self.merger[1].bias.len())
    }
}

fn add(x: &mut [f32], y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}
