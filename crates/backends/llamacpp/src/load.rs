//! From files to an engine's parts.

use std::io::Write;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::rc::Rc;

use consort_core::{Device, DeviceEvidence, Error, ErrorKind, ModelInfo, Result, TokenId};
use consort_gguf::{Gguf, ShardName};
use tempfile::NamedTempFile;

use crate::check::{TextShape, VisionShape};
use crate::config::{LlamacppConfig, ModelSource};
use crate::device::{Chosen, choose};
use crate::engine::NAME;
use crate::evidence::{Observed, evidence};
use crate::ffi::{self, Context, ContextParams, Input, Model, ModelParams, Row, Verdict, Vision, VisionParams, Watch};

/// Above this many threads a processor's memory is busy anyway; it also bounds what a configuration can ask for.
const MAX_THREADS: usize = 64;
/// Tokens of the warm-up whose graphs are watched: a prompt, and one more.
const WARM_UP: u32 = 33;

/// A model, opened.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) info: ModelInfo,
    pub(crate) shape: TextShape,
    /// The text model's file, whose embedding table is read where a token stands at a position of several components.
    pub(crate) file: Gguf,
    /// Bytes of all tensors.
    pub(crate) bytes: u64,
    pub(crate) context: Context,
    pub(crate) vision: Option<(Vision, VisionShape)>,
    pub(crate) model: Rc<Model>,
    pub(crate) evidence: DeviceEvidence,
    /// Files of models that are part of the program; they go with the engine.
    _files: Vec<NamedTempFile>,
}

/// A file as our reader has it and as the library is to open it.
struct Opened {
    file: Gguf,
    path: PathBuf,
    temporary: Option<NamedTempFile>,
}

/// A temporary file with what `write` writes.
pub(crate) fn temporary(write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<NamedTempFile> {
    let failed = |error| Error::io(&std::env::temp_dir(), error);
    let mut file = NamedTempFile::new().map_err(failed)?;
    let mut buffered = std::io::BufWriter::new(file.as_file_mut());
    write(&mut buffered)?;
    buffered.flush().map_err(failed)?;
    drop(buffered);
    Ok(file)
}

fn open(source: &ModelSource) -> Result<Opened> {
    match source {
        ModelSource::Path(path) => {
            let first = ShardName::parse(path).map(|name| name.sibling(1));
            Ok(Opened { file: Gguf::open(path)?, path: first.unwrap_or_else(|| path.clone()), temporary: None })
        }
        ModelSource::Static(bytes) => {
            let file = Gguf::from_static(bytes)?;
            let written = temporary(|to| to.write_all(bytes).map_err(|error| Error::io(&std::env::temp_dir(), error)))?;
            Ok(Opened { file, path: written.path().to_owned(), temporary: Some(written) })
        }
    }
}

/// Opens the files, holds them against each other and against what the library can take, and loads them.
pub(crate) fn load(config: &LlamacppConfig) -> Result<Loaded> {
    config.check()?;
    let text = open(&config.text)?;
    let shape = TextShape::read(&text.file).map_err(|error| error.with_context("file", "text model"))?;
    let in_tower = |error: Error| error.with_context("file", "vision tower");
    let tower = config.vision.as_ref().map(open).transpose().map_err(in_tower)?;
    let tower_shape =
        tower.as_ref().map(|tower| VisionShape::read(&tower.file, shape.hidden)).transpose().map_err(in_tower)?;

    ffi::init();
    let missing = ffi::missing_instructions();
    if !missing.is_empty() {
        return Err(Error::new(
            ErrorKind::InvalidConfig,
            format!(
                "llama.cpp was compiled without {}, which this processor has, and would be several times slower: build with \
                 CMAKE_C_FLAGS and CMAKE_CXX_FLAGS set to \"-march=native -fPIC\", as .cargo/config.toml of this \
                 repository does",
                missing.join(", ")
            ),
        ));
    }
    let chosen = choose(config.policy, &ffi::devices())?;
    let cores = || std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let threads = config.threads.map_or_else(cores, NonZeroUsize::get).clamp(1, MAX_THREADS) as i32;
    let model = Model::load(&ModelParams { file: &text.path, device: chosen.gpu.as_ref(), mapped: true })?;
    if (model.vocabulary(), model.hidden()) != (shape.vocab, shape.hidden) {
        return Err(Error::new(
            ErrorKind::InvalidModel,
            "llama.cpp reads other dimensions from this file than it says",
        ));
    }

    let params = |cells: usize, batch: usize, sequences: usize, watch| ContextParams {
        cells: cells.min(i32::MAX as usize) as u32,
        batch: batch.min(cells) as u32,
        sequences: sequences as u32,
        threads,
        cache: config.cache,
        offload: chosen.gpu.is_some(),
        watch,
    };
    // Watched graphs run in a context of their own, which is small and goes: a callback would make every later step wait.
    let watch = Rc::new(Watch::default());
    let mut observed = Observed {
        text: watched(&model, &params(256, 64, 1, Some(Rc::clone(&watch))), &watch)?,
        ..Observed::default()
    };
    let vision = match (&tower, tower_shape) {
        (Some(tower), Some(tower_shape)) => {
            let mut vision = Vision::load(
                &model,
                &VisionParams {
                    file: &tower.path,
                    device: chosen.gpu.as_ref(),
                    threads,
                    cache: config.cache,
                    max_tokens: config.max_image_patches.div_ceil(tower_shape.merge * tower_shape.merge) as i32,
                    watch: Rc::clone(&watch),
                },
            )
            .map_err(in_tower)?;
            let side = (2 * tower_shape.merge * tower_shape.patch) as u32;
            watch.start();
            let grey = vec![128; 3 * (side * side) as usize];
            vision.encode(&[grey], (side, side)).map_err(|error| in_model(&error)).map_err(in_tower)?;
            observed.vision = watch.stop();
            Some((vision, tower_shape))
        }
        _ => None,
    };
    let evidence = evidence(chosen.device, device_name(&chosen, threads), &observed);
    config.policy.admit(&evidence)?;
    let cells = config.max_total_tokens.max(config.max_batch_tokens);
    let context =
        Context::new(&model, &params(cells, config.max_batch_tokens, config.max_sequences + config.max_parked, None))?;

    let files: Vec<&Gguf> = std::iter::once(&text.file).chain(tower.as_ref().map(|tower| &tower.file)).collect();
    let info = info(&files, &shape)?;
    let sum = |of: fn(&consort_gguf::TensorInfo) -> u64| {
        files.iter().flat_map(|file| file.tensors()).fold(0_u64, |sum, info| sum.saturating_add(of(info)))
    };
    let bytes = sum(consort_gguf::TensorInfo::byte_len);
    let info = ModelInfo { parameters: sum(consort_gguf::TensorInfo::elements), ..info };
    tracing::info!(
        name = info.name,
        layers = info.layers,
        hidden = info.hidden_size,
        weights = info.weight_type,
        vision = vision.is_some(),
        device = evidence.device_name,
        "opened a model"
    );
    let temporaries = [text.temporary, tower.and_then(|tower| tower.temporary)];
    Ok(Loaded {
        info,
        shape,
        bytes,
        context,
        vision,
        model,
        evidence,
        _files: temporaries.into_iter().flatten().collect(),
        file: text.file,
    })
}

/// A tower that cannot encode a grey square is a bad file, and not a bad image.
fn in_model(error: &Error) -> Error {
    Error::new(ErrorKind::InvalidModel, format!("the vision tower does not encode a grey square: {}", error.message()))
}

/// Runs a prompt and one token more, and tells what was computed where.
fn watched(model: &Rc<Model>, params: &ContextParams, watch: &Watch) -> Result<Vec<ffi::Seen>> {
    let mut context = Context::new(model, params)?;
    let row =
        |index: u32| Row { slot: 0, input: Input::Token(0), position: [index as i32; 3], output: index + 1 >= WARM_UP };
    watch.start();
    let rows: Vec<Row<'_>> = (0..WARM_UP).map(row).collect();
    let verdicts = [context.decode(&rows), context.decode(&[row(WARM_UP)])];
    let seen = watch.stop();
    if verdicts != [Verdict::Done; 2] || seen.is_empty() {
        return Err(Error::new(
            ErrorKind::InvalidModel,
            format!("llama.cpp does not run this model ({verdicts:?}): {}", ffi::complaint()),
        ));
    }
    Ok(seen)
}

fn device_name(chosen: &Chosen, threads: i32) -> String {
    let version = ffi::version();
    match (&chosen.gpu, chosen.device) {
        (Some(gpu), _) => {
            format!("{} ({}, {} MiB), llama.cpp {version}", gpu.description, gpu.name, gpu.memory >> 20)
        }
        (None, device) => {
            let processor = ffi::devices().into_iter().find(|found| found.kind == ffi::DeviceKind::Processor);
            let name = processor.map_or_else(|| Device::to_string(&device), |found| found.description);
            format!("{name}, llama.cpp {version}, {threads} threads")
        }
    }
}

fn info(files: &[&Gguf], shape: &TextShape) -> Result<ModelInfo> {
    let Some(file) = files.first() else {
        return Err(Error::new(ErrorKind::InvalidConfig, "there is no model").with_backend(NAME));
    };
    let mut hasher = blake3::Hasher::new();
    for file in files {
        hasher.update(&file.digest());
    }
    let tokens = file.metadata().array_of_strings("tokenizer.ggml.tokens")?;
    let find = |text: &str| {
        let index = tokens.iter().position(|token| token == text);
        index.and_then(|index| TokenId::try_from(index).ok())
    };
    Ok(ModelInfo {
        name: file.metadata().get_str("general.name")?.unwrap_or("unnamed").to_owned(),
        architecture: shape.architecture.to_owned(),
        vocab_size: shape.vocab,
        hidden_size: shape.hidden,
        layers: shape.layers.len(),
        context_length: shape.context,
        parameters: 0,
        weight_type: file.bulk_type().to_string(),
        digest: *hasher.finalize().as_bytes(),
        stop_tokens: stops(file, find, shape.vocab)?,
        image_token: if files.len() > 1 { find("<|image_pad|>") } else { None },
    })
}

/// What ends a reply: what the metadata say, and the family's two tokens.
fn stops(file: &Gguf, find: impl Fn(&str) -> Option<TokenId>, vocab: usize) -> Result<Vec<TokenId>> {
    let mut stops = Vec::new();
    for key in ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"] {
        if let Some(token) = file.metadata().get_u32(key)? {
            if token as usize >= vocab {
                let message = format!("token {token} is beyond the vocabulary of {vocab}");
                return Err(Error::new(ErrorKind::InvalidModel, message)
                    .with_operation("llamacpp::load")
                    .with_context("key", key));
            }
            stops.push(token);
        }
    }
    stops.extend(["<|im_end|>", "<|endoftext|>"].iter().filter_map(|text| find(text)));
    stops.sort_unstable();
    stops.dedup();
    Ok(stops)
}
