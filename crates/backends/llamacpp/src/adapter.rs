//! Adapters, in PEFT's format or as GGUF, turned into what llama.cpp loads.
//!
//! The library sees only a file that we wrote, of what was checked: handed a stranger's, it would pass over norms, and leave
//! bounds and numbers unchecked.

use std::rc::Rc;

use consort_core::{AdapterInfo, AdapterSource, Error, ErrorKind, Result};
use consort_gguf::{GgufWriter, TensorType};
use consort_peft::{ModelAdapter, Place, TensorDelta};

use crate::check::TextShape;
use crate::ffi::{Lora, Model};
use crate::memory::{Counted, Kind, Ledger};

/// One generation of an adapter's weights, in the library. Sequences that opened with it keep it.
#[derive(Debug)]
pub(crate) struct Adapter {
    pub(crate) info: AdapterInfo,
    pub(crate) lora: Rc<Lora>,
    _counted: Counted,
}

impl Adapter {
    /// Reads an adapter, holds it against the model, and hands it to the library.
    pub(crate) fn load(
        source: &AdapterSource,
        model: &Rc<Model>,
        shape: &TextShape,
        ledger: &Rc<Ledger>,
    ) -> Result<Self> {
        let adapter = ModelAdapter::load(&source.files, &shape.dimensions())?;
        if let Some(delta) = adapter.deltas().find(|delta| delta.place == Place::Head && !shape.untied) {
            return Err(Error::new(
                ErrorKind::InvalidAdapter,
                "this model's head is its embedding table, and llama.cpp would adapt both: leave lm_head out of the adapter",
            )
            .with_context("layer", &*delta.origin));
        }
        let info = adapter.info(source.key.clone());
        // The library reads adapters from files only. The numbers are in its memory when the file goes.
        let file = write(adapter.into_deltas(), shape)?;
        let lora = Rc::new(Lora::load(model, file.path())?);
        let counted = Counted::new(ledger, Kind::Adapter, info.bytes);
        Ok(Self { info, lora, _counted: counted })
    }
}

/// The adapter as the library's format has it, in F32. The scale is in the numbers: without `adapter.lora.alpha` the library
/// multiplies by a binding's scale alone.
fn write(deltas: Vec<TensorDelta>, shape: &TextShape) -> Result<tempfile::NamedTempFile> {
    let mut writer = GgufWriter::new(shape.architecture);
    writer.set("general.type", "adapter");
    writer.set("adapter.type", "lora");
    for delta in deltas {
        let bytes = |values: &[f32], scale: f32| -> Vec<u8> {
            values.iter().flat_map(|value| (scale * value).to_le_bytes()).collect()
        };
        let (rank, inputs, outputs) = (delta.rank as u64, delta.inputs() as u64, delta.outputs() as u64);
        let (a, b) = (bytes(&delta.a, 1.0), bytes(&delta.b, delta.scale));
        writer.add_tensor_bytes(format!("{}.lora_a", delta.tensor), &[inputs, rank], TensorType::F32, a)?;
        writer.add_tensor_bytes(format!("{}.lora_b", delta.tensor), &[rank, outputs], TensorType::F32, b)?;
    }
    crate::load::temporary(|file| writer.write(file))
}
