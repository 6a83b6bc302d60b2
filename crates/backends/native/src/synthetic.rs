//! Random-weight models of given dimensions, for benchmarks and tests.
//!
//! They say nothing sensible, but take the time and the memory that a real model of their dimensions takes. A model is a
//! function of its [`SyntheticConfig`] alone.
//!
//! ```
//! use consort_core::{Device, DevicePolicy, Engine};
//! use consort_native::{ModelSource, NativeConfig, NativeEngine, synthetic::SyntheticConfig};
//!
//! # fn main() -> consort_core::Result<()> {
//! let file = SyntheticConfig::tiny().text()?;
//! let config = NativeConfig {
//!     policy: DevicePolicy::Named(Device::Cpu),
//!     ..NativeConfig::new(ModelSource::Static(file.leak()))
//! };
//! assert_eq!(NativeEngine::load(config)?.info().layers, 4);
//! # Ok(())
//! # }
//! ```

mod vocabulary;

use std::collections::BTreeMap;
use std::path::Path;

use consort_core::Result;
use consort_gguf::{GgufWriter, TensorType, quantize};

pub use vocabulary::SyntheticTokenizer;

/// Numbers that are drawn once and then repeated, each tensor beginning elsewhere: drawing a billion would take longer than
/// writing them. A prime, so that rows differ.
const DRAWN: usize = 999_983;
/// Blocks of 256 numbers that are quantized once and then repeated: searching scales for a billion numbers would take
/// minutes. A prime.
const BLOCKS: usize = 1021;

/// Dimensions of a model.
#[derive(Debug, Clone)]
pub struct SyntheticConfig {
    /// How matrices are stored: in any type that [`quantize`] writes. Rows that are not whole blocks of it fall back to the
    /// type that llama.cpp gives them, and at last to F16. Vectors are F32.
    pub weight_type: TensorType,
    /// Matrices of these names are stored in these types instead, as a mix such as Q4_K_M has it.
    pub types: BTreeMap<String, TensorType>,
    /// What `general.file_type` says, the number of a mix in llama.cpp's table; it is for people.
    pub file_type: Option<u32>,
    /// The same seed gives the same model.
    pub seed: u64,
    /// Rows of the embedding table.
    pub vocab: u32,
    /// Width of the hidden state.
    pub hidden: u32,
    /// Width of the MLP.
    pub mlp: u32,
    /// Decoder layers.
    pub layers: u32,
    /// Every how many layers one is full attention.
    pub full_attention_interval: u32,
    /// Query heads.
    pub heads: u32,
    /// Key and value heads.
    pub kv_heads: u32,
    /// Numbers per attention head.
    pub head_dim: u32,
    /// How many of them are rotated.
    pub rotary: u32,
    /// How many rotated pairs time, height and width govern.
    pub sections: [u32; 3],
    /// Key heads of the delta net.
    pub key_heads: u32,
    /// Value heads of the delta net.
    pub value_heads: u32,
    /// Numbers per head of the delta net.
    pub linear_dim: u32,
    /// The longest sequence, in tokens.
    pub context: u32,
    /// What the head is.
    pub head: SyntheticHead,
    /// The vision tower, if there is one.
    pub vision: Option<SyntheticVision>,
    /// The tokenizer, if there is one. Without it the model takes and gives token ids only.
    pub tokenizer: Option<SyntheticTokenizer>,
}

/// What turns hidden states into logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyntheticHead {
    /// The embedding table.
    Tied,
    /// A matrix of its own.
    Untied,
}

/// Dimensions of a vision tower.
#[derive(Debug, Clone)]
pub struct SyntheticVision {
    /// Width.
    pub hidden: u32,
    /// Width of the MLP.
    pub mlp: u32,
    /// Blocks.
    pub blocks: u32,
    /// Heads.
    pub heads: u32,
    /// Side of a patch in pixels.
    pub patch: u32,
    /// Side of the square of learned positions.
    pub side: u32,
}

impl SyntheticConfig {
    /// A quarter of a megabyte, with every kind of part: two kinds of layer, more value heads than key heads, a vision
    /// tower.
    #[must_use]
    pub fn tiny() -> Self {
        Self {
            weight_type: TensorType::F32,
            types: BTreeMap::new(),
            file_type: None,
            seed: 1,
            vocab: 96,
            hidden: 32,
            mlp: 64,
            layers: 4,
            full_attention_interval: 4,
            heads: 4,
            kv_heads: 2,
            head_dim: 32,
            rotary: 16,
            sections: [3, 3, 2],
            key_heads: 2,
            value_heads: 4,
            linear_dim: 32,
            context: 4096,
            head: SyntheticHead::Tied,
            vision: Some(SyntheticVision { hidden: 32, mlp: 64, blocks: 2, heads: 2, patch: 4, side: 3 }),
            tokenizer: None,
        }
    }

    /// The dimensions of Qwen3.5-0.8B, text only, in F16 (1.5 GB).
    #[must_use]
    pub fn qwen35_0_8b() -> Self {
        Self {
            weight_type: TensorType::F16,
            types: BTreeMap::new(),
            file_type: None,
            seed: 1,
            vocab: 248_320,
            hidden: 1024,
            mlp: 3584,
            layers: 24,
            full_attention_interval: 4,
            heads: 8,
            kv_heads: 2,
            head_dim: 256,
            rotary: 64,
            sections: [11, 11, 10],
            key_heads: 16,
            value_heads: 16,
            linear_dim: 128,
            context: 262_144,
            head: SyntheticHead::Tied,
            vision: None,
            tokenizer: None,
        }
    }

    /// The dimensions of a dense model of the family by its size (`0.8b`, `2b`, `4b`, `9b`), in F16, with its vision tower.
    ///
    /// Those of the 0.8B's text model and of the 4B's are read off published configurations. Not confirmed are the linear
    /// heads and the tied head of the 0.8B, heads, MLP and head of the 2B, the head of the 9B, and the towers' widths of
    /// the 4B and the 9B.
    #[must_use]
    pub fn family(size: &str) -> Option<Self> {
        let tower =
            |hidden, mlp, blocks, heads| Some(SyntheticVision { hidden, mlp, blocks, heads, patch: 16, side: 48 });
        let small = Self::qwen35_0_8b();
        Some(match size.to_ascii_lowercase().as_str() {
            "0.8b" => Self { vision: tower(768, 3072, 12, 12), ..small },
            "2b" => Self { hidden: 2048, mlp: 6144, vision: tower(1024, 4096, 24, 16), ..small },
            "4b" => Self {
                hidden: 2560,
                mlp: 9216,
                layers: 32,
                heads: 16,
                kv_heads: 4,
                value_heads: 32,
                vision: tower(1024, 4096, 24, 16),
                ..small
            },
            "9b" => Self {
                hidden: 4096,
                mlp: 12288,
                layers: 32,
                heads: 16,
                kv_heads: 4,
                value_heads: 32,
                head: SyntheticHead::Untied,
                vision: tower(1152, 4304, 27, 16),
                ..small
            },
            _ => return None,
        })
    }

    /// The names and dimensions of the text model's tensors, `dims[0]` being the contiguous one.
    ///
    /// # Errors
    /// As [`text`](Self::text).
    pub fn shapes(&self) -> Result<Vec<(String, Vec<u64>)>> {
        Ok(self.text_maker(&[])?.shapes)
    }

    /// Writes the text model to `path`.
    ///
    /// # Errors
    /// Those of [`GgufWriter::write_to`]; a weight type that [`quantize`] does not write.
    pub fn write_text(&self, path: &Path) -> Result<()> {
        let drawn = random(self.seed, DRAWN);
        self.text_maker(&drawn)?.writer.write_to(path)
    }

    /// Writes the vision tower to `path`, if there is one, and tells whether there was.
    ///
    /// # Errors
    /// As [`write_text`](Self::write_text).
    pub fn write_vision(&self, path: &Path) -> Result<bool> {
        let Some(vision) = &self.vision else { return Ok(false) };
        let drawn = random(self.seed ^ 0xeeee, DRAWN);
        self.vision_writer(vision, &drawn)?.write_to(path)?;
        Ok(true)
    }

    /// The text model's file.
    ///
    /// # Errors
    /// A weight type that [`quantize`] does not write.
    pub fn text(&self) -> Result<Vec<u8>> {
        let (drawn, mut file) = (random(self.seed, DRAWN), Vec::new());
        self.text_maker(&drawn)?.writer.write(&mut file)?;
        Ok(file)
    }

    /// The vision tower's file ("mmproj"), if there is one.
    ///
    /// # Errors
    /// A weight type that [`quantize`] does not write.
    pub fn vision(&self) -> Result<Option<Vec<u8>>> {
        let Some(vision) = &self.vision else { return Ok(None) };
        let (drawn, mut file) = (random(self.seed ^ 0xeeee, DRAWN), Vec::new());
        self.vision_writer(vision, &drawn)?.write(&mut file)?;
        Ok(Some(file))
    }

    fn text_maker<'a>(&self, drawn: &'a [f32]) -> Result<Maker<'a>> {
        let mut file = Maker::new("qwen35", self.weight_type, self.types.clone(), drawn);
        let [t, h, w] = self.sections;
        let values = self.value_heads * self.linear_dim;
        for (key, value) in [
            ("block_count", self.layers),
            ("context_length", self.context),
            ("embedding_length", self.hidden),
            ("feed_forward_length", self.mlp),
            ("attention.head_count", self.heads),
            ("attention.head_count_kv", self.kv_heads),
            ("attention.key_length", self.head_dim),
            ("attention.value_length", self.head_dim),
            ("full_attention_interval", self.full_attention_interval),
            ("rope.dimension_count", self.rotary),
            ("ssm.conv_kernel", 4),
            ("ssm.state_size", self.linear_dim),
            ("ssm.group_count", self.key_heads),
            ("ssm.time_step_rank", self.value_heads),
            ("ssm.inner_size", values),
        ] {
            file.writer.set(&format!("qwen35.{key}"), value);
        }
        file.writer.set("general.type", "model");
        file.writer.set("general.name", "synthetic");
        file.writer.set("general.description", "random weights: the time and the memory of a model, and no sense");
        if let Some(file_type) = self.file_type {
            file.writer.set("general.file_type", file_type);
            file.writer.set("general.quantization_version", 2_u32);
        }
        file.writer.set("qwen35.attention.layer_norm_rms_epsilon", 1e-6_f32);
        file.writer.set("qwen35.rope.freq_base", 1e7_f32);
        file.writer.set("qwen35.rope.dimension_sections", vec![t, h, w, 0]);

        if let Some(tokenizer) = &self.tokenizer {
            tokenizer.write(self.vocab, &mut file.writer)?;
        }
        file.matrix("token_embd.weight", self.vocab, self.hidden, 1.0)?;
        if self.head == SyntheticHead::Untied {
            file.matrix("output.weight", self.vocab, self.hidden, 1.0)?;
        }
        file.vector("output_norm.weight", &[self.hidden], 1.0, 0.2)?;
        let (queries, keys) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let channels = 2 * self.key_heads * self.linear_dim + values;
        for layer in 0..self.layers {
            let name = |name: &str| format!("blk.{layer}.{name}");
            file.vector(&name("attn_norm.weight"), &[self.hidden], 1.0, 0.2)?;
            file.vector(&name("post_attention_norm.weight"), &[self.hidden], 1.0, 0.2)?;
            file.matrix(&name("ffn_gate.weight"), self.mlp, self.hidden, 1.0)?;
            file.matrix(&name("ffn_up.weight"), self.mlp, self.hidden, 1.0)?;
            file.matrix(&name("ffn_down.weight"), self.hidden, self.mlp, 0.7)?;
            if (layer + 1).is_multiple_of(self.full_attention_interval) {
                file.matrix(&name("attn_q.weight"), 2 * queries, self.hidden, 1.0)?;
                file.matrix(&name("attn_k.weight"), keys, self.hidden, 1.0)?;
                file.matrix(&name("attn_v.weight"), keys, self.hidden, 1.0)?;
                file.matrix(&name("attn_output.weight"), self.hidden, queries, 0.7)?;
                file.vector(&name("attn_q_norm.weight"), &[self.head_dim], 1.0, 0.2)?;
                file.vector(&name("attn_k_norm.weight"), &[self.head_dim], 1.0, 0.2)?;
            } else {
                file.matrix(&name("attn_qkv.weight"), channels, self.hidden, 1.0)?;
                file.matrix(&name("attn_gate.weight"), values, self.hidden, 1.0)?;
                file.matrix(&name("ssm_alpha.weight"), self.value_heads, self.hidden, 1.0)?;
                file.matrix(&name("ssm_beta.weight"), self.value_heads, self.hidden, 1.0)?;
                file.matrix(&name("ssm_out.weight"), self.hidden, values, 0.7)?;
                file.vector(&name("ssm_conv1d.weight"), &[4, channels], 0.3, 0.5)?;
                file.vector(&name("ssm_a"), &[self.value_heads], -1.5, 0.8)?;
                file.vector(&name("ssm_dt.bias"), &[self.value_heads], -3.0, 1.0)?;
                file.vector(&name("ssm_norm.weight"), &[self.linear_dim], 1.0, 0.2)?;
            }
        }
        Ok(file)
    }

    fn vision_writer<'a>(&self, vision: &SyntheticVision, drawn: &'a [f32]) -> Result<GgufWriter<'a>> {
        let mut file = Maker::new("clip", self.weight_type, BTreeMap::new(), drawn);
        let SyntheticVision { hidden, mlp, blocks, heads, patch, side } = *vision;
        for (key, value) in [
            ("image_size", side * patch),
            ("patch_size", patch),
            ("embedding_length", hidden),
            ("feed_forward_length", mlp),
            ("block_count", blocks),
            ("attention.head_count", heads),
            ("projection_dim", self.hidden),
            ("spatial_merge_size", 2),
        ] {
            file.writer.set(&format!("clip.vision.{key}"), value);
        }
        file.writer.set("clip.vision.attention.layer_norm_epsilon", 1e-6_f32);
        file.writer.set("general.type", "mmproj");
        file.writer.set("general.name", "synthetic");
        file.writer.set("clip.vision.image_mean", vec![0.5_f32; 3]);
        file.writer.set("clip.vision.image_std", vec![0.5_f32; 3]);
        file.writer.set("clip.vision.is_deepstack_layers", vec![false; blocks as usize]);
        // The family's own limits, said aloud: engines have other defaults.
        file.writer.set("clip.vision.image_min_pixels", 65_536_u32);
        file.writer.set("clip.vision.image_max_pixels", 16_777_216_u32);
        file.writer.set("clip.projector_type", "qwen3vl_merger");
        file.writer.set("clip.has_vision_encoder", true);
        file.writer.set("clip.use_gelu", true);

        for name in ["v.patch_embd.weight", "v.patch_embd.weight.1"] {
            file.tensor(name, &[patch, patch, 3, hidden], TensorType::F32, 0.0, 0.1)?;
        }
        file.vector("v.patch_embd.bias", &[hidden], 0.0, 0.1)?;
        file.vector("v.position_embd.weight", &[hidden, side * side], 0.0, 0.5)?;
        for block in 0..blocks {
            let name = |name: &str| format!("v.blk.{block}.{name}");
            for norm in ["ln1", "ln2"] {
                file.norm(&name(norm), hidden)?;
            }
            file.linear(&name("attn_qkv"), 3 * hidden, hidden)?;
            file.linear(&name("attn_out"), hidden, hidden)?;
            file.linear(&name("ffn_up"), mlp, hidden)?;
            file.linear(&name("ffn_down"), hidden, mlp)?;
        }
        file.norm("v.post_ln", hidden)?;
        file.linear("mm.0", 4 * hidden, 4 * hidden)?;
        file.linear("mm.2", self.hidden, 4 * hidden)?;
        Ok(file.writer)
    }
}

/// So many numbers of mean 0 and standard deviation 1 (uniform), from a seed: what synthetic weights are made of.
#[must_use]
pub fn random(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        // xorshift64*
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        let bits = state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 40;
        (bits as f32 / (1 << 23) as f32 - 1.0) * 3_f32.sqrt()
    };
    (0..count).map(|_| next()).collect()
}

/// A file in the making.
struct Maker<'a> {
    writer: GgufWriter<'a>,
    weight_type: TensorType,
    types: BTreeMap<String, TensorType>,
    shapes: Vec<(String, Vec<u64>)>,
    drawn: &'a [f32],
    /// Where the next tensor begins among the drawn numbers.
    at: usize,
}

impl<'a> Maker<'a> {
    fn new(architecture: &str, weight_type: TensorType, types: BTreeMap<String, TensorType>, drawn: &'a [f32]) -> Self {
        Self { writer: GgufWriter::new(architecture), weight_type, types, shapes: Vec::new(), drawn, at: 0 }
    }

    /// A matrix that keeps the scale of unit vectors, times `gain`.
    fn matrix(&mut self, name: &str, rows: u32, cols: u32, gain: f32) -> Result<()> {
        let kind = self.types.get(name).copied().unwrap_or(self.weight_type);
        self.tensor(name, &[cols, rows], kind, 0.0, gain / (cols as f32).sqrt())
    }

    fn vector(&mut self, name: &str, dims: &[u32], mean: f32, deviation: f32) -> Result<()> {
        self.tensor(name, dims, TensorType::F32, mean, deviation)
    }

    fn norm(&mut self, name: &str, width: u32) -> Result<()> {
        self.vector(&format!("{name}.weight"), &[width], 1.0, 0.2)?;
        self.vector(&format!("{name}.bias"), &[width], 0.0, 0.1)
    }

    fn linear(&mut self, name: &str, rows: u32, cols: u32) -> Result<()> {
        self.matrix(&format!("{name}.weight"), rows, cols, 1.0)?;
        self.vector(&format!("{name}.bias"), &[rows], 0.0, 0.1)
    }

    fn tensor(&mut self, name: &str, dims: &[u32], kind: TensorType, mean: f32, deviation: f32) -> Result<()> {
        self.at = (self.at + 7919) % DRAWN;
        let (drawn, start) = (self.drawn, self.at);
        let dims: Vec<u64> = dims.iter().map(|&dim| u64::from(dim)).collect();
        let (row, count) = (dims[0], dims.iter().product::<u64>());
        self.shapes.push((name.to_owned(), dims.clone()));
        let kind = fallback(kind, row);
        if kind.block_len() > 1 {
            return self.quantized(name, &dims, kind, deviation);
        }
        self.writer.add_tensor(name, &dims, kind, move |sink| {
            let mut numbers = drawn.iter().cycle().skip(start).map(|x| mean + deviation * x);
            let mut values = vec![0.0; row as usize];
            for _ in 0..count / row {
                for value in &mut values {
                    *value = numbers.next().unwrap_or(0.0);
                }
                sink.write(&quantize(kind, &values, None)?)?;
            }
            Ok(())
        })?;
        Ok(())
    }

    /// A tensor of mean 0 in blocks: some are quantized, and repeated.
    fn quantized(&mut self, name: &str, dims: &[u64], kind: TensorType, deviation: f32) -> Result<()> {
        let (drawn, start) = (self.drawn, self.at);
        let count: u64 = dims.iter().product();
        self.writer.add_tensor(name, dims, kind, move |sink| {
            let numbers = drawn.iter().cycle().skip(start).map(|x| deviation * x);
            let values: Vec<f32> = numbers.take(BLOCKS.min(count.div_ceil(256) as usize) * 256).collect();
            let blocks = quantize(kind, &values, None)?;
            let mut left = kind.bytes_for(count).unwrap_or(0) as usize;
            while left > 0 {
                let part = &blocks[..left.min(blocks.len())];
                sink.write(part)?;
                left -= part.len();
            }
            Ok(())
        })?;
        Ok(())
    }
}

/// The type that rows of `width` numbers get where `kind` is asked for.
fn fallback(kind: TensorType, width: u64) -> TensorType {
    if width.is_multiple_of(kind.block_len()) {
        return kind;
    }
    match kind {
        _ if !width.is_multiple_of(32) => TensorType::F16,
        TensorType::Q2K | TensorType::Q3K | TensorType::IQ4XS => TensorType::IQ4NL,
        TensorType::Q4K => TensorType::Q5_0,
        TensorType::Q5K => TensorType::Q5_1,
        _ => TensorType::Q8_0,
    }
}
