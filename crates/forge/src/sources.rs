//! What a checkpoint has under each name, where the matrices of experts may be stored one by one.

use std::collections::BTreeMap;

use consort_core::Result;

use crate::checkpoint::{Source, invalid};

/// A tensor of the checkpoint, or the same matrix of every expert of a layer, which count as one tensor.
pub(crate) struct Found<'a> {
    /// Without the prefixes that differ between classes, and without the expert's number.
    pub(crate) name: String,
    /// One, or one for each expert, in their order.
    pub(crate) parts: Vec<Source<'a>>,
    /// Of the whole.
    pub(crate) shape: Vec<u64>,
}

fn shape(source: &Source<'_>) -> Vec<u64> {
    source.view.shape().iter().map(|&dim| dim as u64).collect()
}

impl<'a> Found<'a> {
    pub(crate) fn one((name, source): (String, Source<'a>)) -> Self {
        Self { name, shape: shape(&source), parts: vec![source] }
    }

    /// Its name in the checkpoint, or that of its first part.
    pub(crate) fn shown(&self) -> &str {
        self.parts.first().map_or(&self.name, |part| &part.name)
    }
}

/// One matrix of one expert: the name of all together, and the expert's number.
fn expert(name: &str) -> Option<(String, usize)> {
    let (layer, rest) = name.split_once(".mlp.experts.")?;
    let (number, matrix) = rest.split_once('.')?;
    let index = number.parse::<usize>().ok().filter(|index| index.to_string() == number)?;
    let matrix = matrix.strip_suffix(".weight")?;
    matches!(matrix, "down_proj" | "gate_proj" | "up_proj").then(|| (format!("{layer}.mlp.experts.{matrix}"), index))
}

/// Puts the experts of each layer together, at the place of the last of them, as the reference converter does.
pub(crate) fn gathered(sources: Vec<(String, Source<'_>)>) -> Result<Vec<Found<'_>>> {
    // How many matrices of experts each layer still has to come.
    let mut left: BTreeMap<String, usize> = BTreeMap::new();
    let layer = |name: &str| expert(name).and_then(|(all, _)| Some(all.rsplit_once('.')?.0.to_owned()));
    for layer in sources.iter().filter_map(|(name, _)| layer(name)) {
        *left.entry(layer).or_default() += 1;
    }
    let mut open: BTreeMap<String, BTreeMap<usize, Source<'_>>> = BTreeMap::new();
    let mut all = Vec::new();
    for (name, source) in sources {
        let (Some((stack, index)), Some(layer)) = (expert(&name), layer(&name)) else {
            all.push(Found::one((name, source)));
            continue;
        };
        open.entry(stack).or_default().insert(index, source);
        let left = left.entry(layer.clone()).or_default();
        *left = left.saturating_sub(1);
        if *left == 0 {
            for matrix in ["down_proj", "gate_proj", "up_proj"] {
                let name = format!("{layer}.{matrix}");
                if let Some(experts) = open.remove(&name) {
                    all.push(stacked(name, experts)?);
                }
            }
        }
    }
    Ok(all)
}

fn stacked(name: String, experts: BTreeMap<usize, Source<'_>>) -> Result<Found<'_>> {
    if let Some((missing, _)) = experts.keys().enumerate().find(|(place, index)| place != *index) {
        return Err(
            invalid(format!("the checkpoint lacks expert {missing} of this matrix")).with_context("tensor", name)
        );
    }
    let parts: Vec<Source<'_>> = experts.into_values().collect();
    let mut whole = vec![parts.len() as u64];
    if let Some(first) = parts.first() {
        whole.extend(shape(first));
    }
    if let Some(other) = parts.iter().find(|part| shape(part) != whole[1..]) {
        return Err(invalid(format!("this expert's shape is {:?}, the first one's {:?}", shape(other), &whole[1..]))
            .with_context("tensor", &other.name));
    }
    Ok(Found { name, parts, shape: whole })
}
