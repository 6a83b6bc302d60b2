//! `/v1/load_lora_adapter` and `/v1/unload_lora_adapter`, in vLLM's form.

use std::path::Path;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};

use crate::adapters::Replace;
use crate::app::Shared;
use crate::body;
use crate::error::Failure;

/// Loads an adapter from a path in the configured folders. Its name is then a model's name.
pub(crate) async fn load(State(app): State<Arc<Shared>>, request: Request) -> Result<Response, Failure> {
    let mut fields = body::json(&app, request).await?;
    let (name, path): (String, String) = (fields.require("lora_name")?, fields.require("lora_path")?);
    let replace = if fields.get::<bool>("load_inplace")?.unwrap_or(false) { Replace::InPlace } else { Replace::Refuse };
    fields.finish()?;
    app.load_adapter(&name, Path::new(&path), replace).await?;
    Ok(format!("Success: LoRA adapter '{name}' added successfully.").into_response())
}

/// Forgets an adapter. Replies that run keep it.
pub(crate) async fn unload(State(app): State<Arc<Shared>>, request: Request) -> Result<Response, Failure> {
    let mut fields = body::json(&app, request).await?;
    let name: String = fields.require("lora_name")?;
    fields.unsupported(&["lora_int_id"], "adapters have names")?;
    fields.finish()?;
    app.unload_adapter(&name).await?;
    Ok(format!("Success: LoRA adapter '{name}' removed successfully.").into_response())
}
