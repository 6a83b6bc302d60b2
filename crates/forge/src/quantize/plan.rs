//! Which tensor of a file gets which type: decided from the header alone, before anything is written.

use consort_core::{Error, ErrorKind, Result};
use consort_gguf::{Gguf, TensorInfo, TensorType, dequantize, quantize};

use super::importance::Importance;
use super::mix::{Mix, Place, Role, fitting, wanted};
use super::{QuantizeConfig, Requantize, Spread, invalid_config};

/// What will be done, tensor by tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuantizePlan {
    /// In the order of the file.
    pub tensors: Vec<PlannedTensor>,
}

/// What will be done with one tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedTensor {
    /// Its name.
    pub name: String,
    /// Its dimensions, the contiguous one first.
    pub dims: Vec<u64>,
    /// The type that it has.
    pub from: TensorType,
    /// The type that it gets.
    pub to: TensorType,
    /// Why that one.
    pub reason: Reason,
    /// Whether its columns are weighted by importance.
    pub weighted: bool,
    /// Its size in the input.
    pub bytes_before: u64,
    /// Its size in the output.
    pub bytes_after: u64,
}

/// Why a tensor gets its type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// It is a vector, a norm, a router, or something else that no mix touches.
    Kept,
    /// The mix says so.
    Mix,
    /// An override says so.
    Override,
    /// This one was wanted, but the rows are not whole blocks of it.
    Fallback(TensorType),
}

impl QuantizePlan {
    /// The size of all tensors in the input, in bytes.
    #[must_use]
    pub fn bytes_before(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor.bytes_before).sum()
    }

    /// The size of all tensors in the output, in bytes.
    #[must_use]
    pub fn bytes_after(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor.bytes_after).sum()
    }

    /// How many numbers the tensors hold.
    #[must_use]
    pub fn parameters(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor.dims.iter().product::<u64>()).sum()
    }

    /// Plans for an open file.
    ///
    /// # Errors
    /// Those that [`quantize`](super::quantize) documents for the plan.
    pub(super) fn new(gguf: &Gguf, config: &QuantizeConfig, importance: Option<&Importance>) -> Result<Self> {
        let tied = gguf.tensor("output.weight").is_none();
        let heads_per_key = heads_per_key(gguf);
        let roles: Vec<_> = gguf.tensors().map(|info| Role::of(&info.name, &info.dims, tied)).collect();
        let layers = gguf.tensors().filter_map(|info| layer(&info.name)).max().map_or(0, |last| last + 1);
        // Values of attention are counted in the order of layers, whatever the order of the file.
        let mut values: Vec<_> = gguf
            .tensors()
            .zip(&roles)
            .filter(|(_, role)| **role == Role::AttentionValue)
            .map(|(info, _)| (layer(&info.name), info.name.as_str()))
            .collect();
        values.sort_unstable();
        let mut used = vec![false; config.overrides.len()];
        let mut tensors = Vec::with_capacity(roles.len());
        for (info, role) in gguf.tensors().zip(roles) {
            let (index, count) = match role {
                Role::AttentionValue => {
                    let own = (layer(&info.name), info.name.as_str());
                    (values.binary_search(&own).unwrap_or(0), values.len())
                }
                _ => (layer(&info.name).unwrap_or(0), layers),
            };
            let place = Place { index, count, heads_per_key, weighted: importance.is_some() };
            let planned = planned(info, role, place, config, importance, &mut used)
                .map_err(|error| error.with_context("tensor", &info.name))?;
            tensors.push(planned);
        }
        if let Some((unused, _)) = config.overrides.iter().zip(used).find(|(_, used)| !used) {
            return Err(invalid_config("an override matches no tensor that is quantized")
                .with_context("override", unused.to_string()));
        }
        if importance.is_some() && !tensors.iter().any(|tensor| tensor.weighted) {
            return Err(invalid_config(
                "the importance matrix knows none of the tensors that are quantized: it is of another model",
            ));
        }
        Ok(Self { tensors })
    }
}

/// What `mix` gives to each of a model's tensors, by name and dimensions alone (`dims[0]` is the contiguous one), for models
/// that are written in their types at once. `None`: the tensor stays as it is. The choices are those of
/// [`quantize_plan`](super::quantize_plan).
#[must_use]
pub fn mix_types(mix: Mix, tensors: &[(String, Vec<u64>)], heads_per_key: u32) -> Vec<Option<TensorType>> {
    let tied = !tensors.iter().any(|(name, _)| name == "output.weight");
    let layers = tensors.iter().filter_map(|(name, _)| layer(name)).max().map_or(0, |last| last + 1);
    let roles: Vec<_> = tensors.iter().map(|(name, dims)| Role::of(name, dims, tied)).collect();
    let mut values: Vec<_> = tensors
        .iter()
        .zip(&roles)
        .filter(|(_, role)| **role == Role::AttentionValue)
        .map(|((name, _), _)| (layer(name), name.as_str()))
        .collect();
    values.sort_unstable();
    let chosen = |((name, dims), role): (&(String, Vec<u64>), Role)| {
        let (index, count) = match role {
            Role::Kept => return None,
            Role::AttentionValue => (values.binary_search(&(layer(name), name)).unwrap_or(0), values.len()),
            _ => (layer(name).unwrap_or(0), layers),
        };
        let place = Place { index, count, heads_per_key, weighted: false };
        Some(fitting(wanted(mix, role, place), dims.first().copied().unwrap_or(0)))
    };
    tensors.iter().zip(roles).map(chosen).collect()
}

fn planned(
    info: &TensorInfo,
    role: Role,
    place: Place,
    config: &QuantizeConfig,
    importance: Option<&Importance>,
    used: &mut [bool],
) -> Result<PlannedTensor> {
    let (to, reason) = if role == Role::Kept {
        (info.kind, Reason::Kept)
    } else {
        let mut chosen = match config.spread {
            Spread::Mixed => (wanted(config.mix, role, place), Reason::Mix),
            Spread::Uniform => (config.mix.base(), Reason::Mix),
        };
        // The first that matches decides; the others still count as used.
        for (rule, used) in config.overrides.iter().zip(used).rev() {
            if rule.matches(&info.name) {
                *used = true;
                chosen = (rule.kind(), Reason::Override);
            }
        }
        match fitting(chosen.0, info.row_len()) {
            fits if fits == chosen.0 => chosen,
            other => (other, Reason::Fallback(chosen.0)),
        }
    };
    let changes = to != info.kind;
    let is_block = |kind: TensorType| kind.block_len() > 1;
    if changes {
        // Both know the types that they cannot handle before they see any data.
        dequantize(info.kind, &[], &mut [])?;
        quantize(to, &[], None)?;
        let coarse = is_block(info.kind) && info.kind.block_bytes() * 8 < info.kind.block_len() * 8;
        if coarse && is_block(to) && config.requantize == Requantize::Refuse {
            return Err(invalid_config(format!(
                "the input is quantized to {} already, and would lose twice; quantize from an F16, BF16 or Q8_0 file, or \
                 allow it",
                info.kind
            )));
        }
    }
    let weighted = match importance {
        Some(importance) if changes && is_block(to) && to != TensorType::Q8_0 => {
            importance.of(&info.name, &info.dims)?.is_some()
        }
        _ => false,
    };
    let bytes_after = to.bytes_for(info.elements()).ok_or_else(|| {
        Error::new(ErrorKind::InvalidModel, format!("the tensor cannot be stored as {to}"))
            .with_operation("forge::quantize")
    })?;
    Ok(PlannedTensor {
        name: info.name.clone(),
        dims: info.dims.clone(),
        from: info.kind,
        to,
        reason,
        weighted,
        bytes_before: info.byte_len(),
        bytes_after,
    })
}

/// The number N in `blk.N.` of a name.
fn layer(name: &str) -> Option<usize> {
    let (_, rest) = name.split_once("blk.")?;
    // Bounded, so that a hostile name cannot make the arithmetic of places overflow.
    rest.split('.').next()?.parse().ok().filter(|&layer: &usize| layer < 1 << 20)
}

/// Query heads for each key head; 1 where the file does not say. Hybrids may say it layer by layer.
fn heads_per_key(gguf: &Gguf) -> u32 {
    let metadata = gguf.metadata();
    let Ok(Some(architecture)) = metadata.get_str("general.architecture") else { return 1 };
    let heads = |key: &str| {
        let key = format!("{architecture}.attention.{key}");
        let alone = metadata.get_u32(&key).ok().flatten();
        alone.or_else(|| metadata.array_of_u32(&key).ok()?.into_iter().max())
    };
    match (heads("head_count"), heads("head_count_kv")) {
        (Some(queries), Some(keys)) if keys > 0 => queries / keys,
        _ => 1,
    }
}
