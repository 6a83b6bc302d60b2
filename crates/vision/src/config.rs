//! The settings of the family's image processor.

use consort_core::{Error, ErrorKind, Result};
use serde_json::Value;

/// Settings of the image processor: how an image becomes patches.
///
/// The default is what the family's published models carry. Other values come from a model's
/// `preprocessor_config.json` ([`from_json`](Self::from_json)) or from the metadata of its mmproj file
/// ([`from_projector`](Self::from_projector)).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ImageProcessorConfig {
    /// Side of a patch in pixels.
    pub patch_size: u32,
    /// Frames in a patch. A still image is repeated this often.
    pub temporal_patch_size: u32,
    /// Side of the square of patches that the vision tower merges into one token.
    pub merge_size: u32,
    /// Fewest pixels after resizing (`size.shortest_edge` of the file; an area in spite of its name).
    pub min_pixels: u64,
    /// Most pixels after resizing (`size.longest_edge` of the file; an area in spite of its name).
    pub max_pixels: u64,
    /// Mean of red, green and blue, on a scale of 0 to 1.
    pub image_mean: [f32; 3],
    /// Standard deviation of red, green and blue, on the same scale.
    pub image_std: [f32; 3],
    /// What an 8-bit level is multiplied with, before mean and deviation apply.
    pub rescale_factor: f64,
}

impl Default for ImageProcessorConfig {
    fn default() -> Self {
        Self {
            patch_size: 16,
            temporal_patch_size: 2,
            merge_size: 2,
            min_pixels: 65_536,
            max_pixels: 16_777_216,
            image_mean: [0.5; 3],
            image_std: [0.5; 3],
            rescale_factor: 1.0 / 255.0,
        }
    }
}

/// What the metadata of an mmproj file says of image processing. `None`: the file is silent, the family's default holds.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ProjectorValues {
    /// `clip.vision.patch_size`
    pub patch_size: Option<u32>,
    /// `clip.vision.spatial_merge_size`
    pub merge_size: Option<u32>,
    /// Temporal extent of the patch embedding: how many slices the file holds (`v.patch_embd.weight`, `.weight.1`).
    pub temporal_patch_size: Option<u32>,
    /// `clip.vision.image_mean`
    pub image_mean: Option<[f32; 3]>,
    /// `clip.vision.image_std`
    pub image_std: Option<[f32; 3]>,
    /// `clip.vision.image_min_pixels`
    pub min_pixels: Option<u64>,
    /// `clip.vision.image_max_pixels`
    pub max_pixels: Option<u64>,
}

/// Bytes of a `preprocessor_config.json` beyond which it is not one.
const MAX_JSON_BYTES: usize = 1 << 20;
/// 2^26 pixels after resizing are 262,144 patches of 16 x 16: far beyond the context of any model of the family.
const MAX_RESIZED_PIXELS: u64 = 1 << 26;

impl ImageProcessorConfig {
    /// Reads `preprocessor_config.json`, or a `processor_config.json` that holds the same under `image_processor`.
    ///
    /// What is absent has the family's default. `min_pixels` and `max_pixels` win over `size`, as in transformers.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`] with the offending key when a value has the wrong type or is out of range, or when the
    /// file asks for something that this processor does not do (another filter, no resize, no normalisation).
    pub fn from_json(bytes: &[u8]) -> Result<Self> {
        if bytes.len() > MAX_JSON_BYTES {
            return Err(bad("image_processor", "the file is larger than 1 MiB: it is no processor configuration"));
        }
        // serde_json bounds its own recursion.
        let root: Value = serde_json::from_slice(bytes)
            .map_err(|error| bad("image_processor", format!("the file is not JSON: {error}")).with_source(error))?;
        let root = root.get("image_processor").filter(|inner| inner.is_object()).unwrap_or(&root);
        if !root.is_object() {
            return Err(bad("image_processor", "the file must hold a JSON object"));
        }
        let known_filter = root.get("resample").is_none_or(|value| value.is_null() || value.as_u64() == Some(3));
        if !known_filter {
            return Err(bad("resample", "only 3 (bicubic), the family's filter, is supported"));
        }
        for key in ["do_resize", "do_rescale", "do_normalize", "do_convert_rgb"] {
            if root.get(key).is_some_and(|value| !value.is_null() && value.as_bool() != Some(true)) {
                return Err(bad(key, "only true is supported"));
            }
        }
        if let Some(kind) = root.get("image_processor_type").and_then(Value::as_str)
            && !["Qwen2VLImageProcessor", "Qwen2VLImageProcessorFast", "Qwen2VLImageProcessorPil"].contains(&kind)
        {
            return Err(bad("image_processor_type", format!("the processor {kind:?} is not of this family")));
        }
        let size = root.get("size").unwrap_or(&Value::Null);
        let default = Self::default();
        let config = Self {
            patch_size: side(root, "patch_size")?.unwrap_or(default.patch_size),
            temporal_patch_size: side(root, "temporal_patch_size")?.unwrap_or(default.temporal_patch_size),
            merge_size: side(root, "merge_size")?.unwrap_or(default.merge_size),
            min_pixels: integer(root, "min_pixels")?.or(integer(size, "shortest_edge")?).unwrap_or(default.min_pixels),
            max_pixels: integer(root, "max_pixels")?.or(integer(size, "longest_edge")?).unwrap_or(default.max_pixels),
            image_mean: triple(root, "image_mean")?.unwrap_or(default.image_mean),
            image_std: triple(root, "image_std")?.unwrap_or(default.image_std),
            rescale_factor: number(root, "rescale_factor")?.unwrap_or(default.rescale_factor),
        };
        config.validate()?;
        Ok(config)
    }

    /// From the metadata of an mmproj file; what it is silent about has the family's default.
    ///
    /// # Errors
    /// As [`validate`](Self::validate).
    pub fn from_projector(values: ProjectorValues) -> Result<Self> {
        let default = Self::default();
        let config = Self {
            patch_size: values.patch_size.unwrap_or(default.patch_size),
            temporal_patch_size: values.temporal_patch_size.unwrap_or(default.temporal_patch_size),
            merge_size: values.merge_size.unwrap_or(default.merge_size),
            min_pixels: values.min_pixels.unwrap_or(default.min_pixels),
            max_pixels: values.max_pixels.unwrap_or(default.max_pixels),
            image_mean: values.image_mean.unwrap_or(default.image_mean),
            image_std: values.image_std.unwrap_or(default.image_std),
            rescale_factor: default.rescale_factor,
        };
        config.validate()?;
        Ok(config)
    }

    /// Checks every value.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`] with the offending key.
    pub fn validate(&self) -> Result<()> {
        let sides = [
            ("patch_size", self.patch_size, 256),
            ("temporal_patch_size", self.temporal_patch_size, 16),
            ("merge_size", self.merge_size, 16),
        ];
        for (key, value, most) in sides {
            if value == 0 || value > most {
                return Err(bad(key, format!("{value} is not between 1 and {most}")));
            }
        }
        let least = u64::from(self.factor()) * u64::from(self.factor());
        if self.max_pixels < least || self.max_pixels > MAX_RESIZED_PIXELS {
            let range = format!("{least} (one token) and {MAX_RESIZED_PIXELS}");
            return Err(bad("max_pixels", format!("{} is not between {range}", self.max_pixels)));
        }
        if self.min_pixels == 0 || self.min_pixels > self.max_pixels {
            let most = self.max_pixels;
            return Err(bad("min_pixels", format!("{} is not between 1 and max_pixels, {most}", self.min_pixels)));
        }
        if !self.image_mean.iter().all(|value| value.is_finite()) {
            return Err(bad("image_mean", "every mean must be finite"));
        }
        if !self.image_std.iter().all(|value| value.is_finite() && *value > 0.0) {
            return Err(bad("image_std", "every deviation must be finite and greater than 0"));
        }
        if !(self.rescale_factor.is_finite() && self.rescale_factor > 0.0) {
            return Err(bad("rescale_factor", "it must be finite and greater than 0"));
        }
        Ok(())
    }

    /// Side in pixels of the square that becomes one token: patch side × merge side. Resized images are multiples of it.
    #[must_use]
    pub fn factor(&self) -> u32 {
        self.patch_size.saturating_mul(self.merge_size)
    }

    /// Length of one patch: channels (3) × temporal × patch × patch values.
    #[must_use]
    pub fn patch_len(&self) -> usize {
        3 * self.temporal_patch_size as usize * self.patch_size as usize * self.patch_size as usize
    }

    /// Feeds every setting, in an order that must never change, to the hash of an image's content.
    pub(crate) fn hash_into(&self, hasher: &mut blake3::Hasher) {
        for value in [self.patch_size, self.temporal_patch_size, self.merge_size] {
            hasher.update(&value.to_le_bytes());
        }
        for value in [self.min_pixels, self.max_pixels, self.rescale_factor.to_bits()] {
            hasher.update(&value.to_le_bytes());
        }
        for value in self.image_mean.iter().chain(&self.image_std) {
            hasher.update(&value.to_bits().to_le_bytes());
        }
    }

    /// The normalised value of every 8-bit level of a channel: (level − mean / rescale) / (std / rescale).
    ///
    /// transformers folds the rescale factor into mean and deviation and computes in 32-bit floats; so does this, and the
    /// values are the same to the bit.
    pub(crate) fn normalised_levels(&self, channel: usize) -> [f32; 256] {
        #[expect(clippy::cast_possible_truncation, reason = "the reference multiplies 32-bit tensors by this scalar")]
        let scale = (1.0 / self.rescale_factor) as f32;
        let mean = self.image_mean.get(channel).copied().unwrap_or_default() * scale;
        let deviation = self.image_std.get(channel).copied().unwrap_or(1.0) * scale;
        let mut level = -1.0f32;
        [(); 256].map(|()| {
            level += 1.0;
            (level - mean) / deviation
        })
    }
}

fn bad(key: &str, message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidConfig, message)
        .with_operation("vision::ImageProcessorConfig")
        .with_context("key", key)
}

fn integer(object: &Value, key: &str) -> Result<Option<u64>> {
    match object.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => value.as_u64().map(Some).ok_or_else(|| bad(key, format!("expected an integer, found {value}"))),
    }
}

fn side(object: &Value, key: &str) -> Result<Option<u32>> {
    let value = integer(object, key)?;
    value.map(|value| u32::try_from(value).map_err(|_| bad(key, format!("{value} is too large")))).transpose()
}

fn number(object: &Value, key: &str) -> Result<Option<f64>> {
    match object.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => value.as_f64().map(Some).ok_or_else(|| bad(key, format!("expected a number, found {value}"))),
    }
}

fn triple(object: &Value, key: &str) -> Result<Option<[f32; 3]>> {
    let values = match object.get(key) {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Array(values)) => values,
        Some(other) => return Err(bad(key, format!("expected three numbers, found {other}"))),
    };
    let mut triple = [0.0; 3];
    if values.len() != triple.len() {
        return Err(bad(key, format!("expected three numbers, found {}", values.len())));
    }
    for (slot, value) in triple.iter_mut().zip(values) {
        let value = value.as_f64().ok_or_else(|| bad(key, format!("expected a number, found {value}")))?;
        #[expect(clippy::cast_possible_truncation, reason = "the reference holds it in 32 bits")]
        let value = value as f32;
        *slot = value;
    }
    Ok(Some(triple))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_familys_file_is_the_default() {
        let file = br#"{"size": {"longest_edge": 16777216, "shortest_edge": 65536}, "patch_size": 16,
            "temporal_patch_size": 2, "merge_size": 2, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
            "processor_class": "Qwen3VLProcessor", "image_processor_type": "Qwen2VLImageProcessorFast"}"#;
        assert_eq!(ImageProcessorConfig::from_json(file).unwrap(), ImageProcessorConfig::default());
        assert_eq!(ImageProcessorConfig::from_json(b"{}").unwrap(), ImageProcessorConfig::default());
        let silent = ProjectorValues::default();
        assert_eq!(ImageProcessorConfig::from_projector(silent).unwrap(), ImageProcessorConfig::default());
    }

    #[test]
    fn pixels_named_directly_win_over_size_and_nesting_is_read() {
        let file = br#"{"image_processor": {"size": {"longest_edge": 9999, "shortest_edge": 55}, "min_pixels": 1024,
            "patch_size": 8}, "video_processor": {}}"#;
        let config = ImageProcessorConfig::from_json(file).unwrap();
        assert_eq!((config.min_pixels, config.max_pixels, config.patch_size), (1024, 9999, 8));
    }

    #[test]
    fn what_does_not_fit_is_refused_by_key() {
        let cases: [(&str, &str); 14] = [
            ("[]", "image_processor"),
            ("{", "image_processor"),
            (r#"{"resample": 2}"#, "resample"),
            (r#"{"do_resize": false}"#, "do_resize"),
            (r#"{"do_convert_rgb": 1}"#, "do_convert_rgb"),
            (r#"{"image_processor_type": "CLIPImageProcessor"}"#, "image_processor_type"),
            (r#"{"patch_size": 0}"#, "patch_size"),
            (r#"{"patch_size": -1}"#, "patch_size"),
            (r#"{"merge_size": 99999999999}"#, "merge_size"),
            (r#"{"max_pixels": 1000}"#, "max_pixels"),
            (r#"{"min_pixels": 0}"#, "min_pixels"),
            (r#"{"image_mean": [0.5, 0.5]}"#, "image_mean"),
            (r#"{"image_std": [0.5, 0.0, 0.5]}"#, "image_std"),
            (r#"{"rescale_factor": -1}"#, "rescale_factor"),
        ];
        for (file, key) in cases {
            let error = ImageProcessorConfig::from_json(file.as_bytes()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidConfig);
            assert!(error.context().any(|pair| pair == ("key", key)), "{file}: {error}");
        }
    }
}
