//! From a status to our error.

use std::error::Error as _;
use std::sync::Arc;

use consort_core::{Error, ErrorKind, ErrorStatus};
use tonic::{Code, ConnectError, Status};

use crate::call::Call;
use crate::http::{bad, shortened};
use crate::transport::UNREACHED;
use crate::trials::ADAPTERS_BROKEN;

/// How vLLM's front end begins what it says of pictures that it cannot read. Its status is that of a defect.
const OF_PICTURES: &str = "multimodal preprocessing error";
/// How tonic begins what it says of a message beyond the limit.
const TOO_LONG: &str = "Error, decoded message length too large";

/// Whether a status was made because no connection came about. A connection that is silent has the same code.
fn is_unreached(status: &Status) -> bool {
    let mut next = status.source();
    while let Some(error) = next {
        if error.is::<ConnectError>() {
            return true;
        }
        next = error.source();
    }
    false
}

/// What a status is about.
#[derive(Debug, Clone)]
pub(super) struct About {
    pub(super) endpoint: Arc<str>,
    /// Never stands in a message, whatever the server says.
    pub(super) secret: Option<Arc<str>>,
    pub(super) call: Option<Arc<Call>>,
}

impl About {
    /// The error that a status is.
    pub(super) fn of_status(&self, status: Status) -> Error {
        let message = self.words(&status);
        let call = self.call.as_deref();
        let said = |text: &str| if message.is_empty() { text.to_owned() } else { format!("{text}: {message}") };
        if let Some(why) = crate::tls::refusal(&status) {
            let text = format!(
                "the server's certificate is not accepted: {why}; check the address, or name its authority with `ca_file`"
            );
            return self.finished(ErrorKind::InvalidConfig, text).with_source(status);
        }
        if status.source().is_some() {
            // Not said by the server, but made of what became of the connection.
            let error = if is_unreached(&status) {
                self.finished(ErrorKind::Remote, "the server cannot be reached".into()).with_operation(UNREACHED)
            } else {
                self.finished(ErrorKind::Remote, "the connection was cut, or this is no gRPC".into())
            };
            return error.with_source(status);
        }
        let shows_pictures = call.is_some_and(Call::has_pictures);
        match status.code() {
            Code::InvalidArgument => self.finished(bad(&message, call), said("the server refuses the request")),
            Code::Internal if shows_pictures && message.contains(OF_PICTURES) => {
                self.finished(ErrorKind::InvalidImage, said("the server cannot read the picture"))
            }
            Code::Unauthenticated | Code::PermissionDenied => self.finished(
                ErrorKind::InvalidConfig,
                said("the server does not accept the API key; set `api_key_env` or `api_key_file`"),
            ),
            Code::NotFound => self.finished(ErrorKind::NotFound, said("the server does not know this")),
            Code::Unimplemented => self.finished(ErrorKind::Unsupported, said("the server does not do this")),
            Code::ResourceExhausted => {
                self.finished(ErrorKind::Overloaded, said("the server takes no more requests now"))
            }
            Code::OutOfRange if message.starts_with(TOO_LONG) => self
                .finished(ErrorKind::Remote, said("the server's answer is too long"))
                .with_status(ErrorStatus::Permanent),
            Code::OutOfRange | Code::AlreadyExists => {
                self.finished(ErrorKind::InvalidRequest, said("the server refuses the request"))
            }
            Code::Unavailable => self.finished(ErrorKind::Remote, said("the server is not available")),
            Code::DeadlineExceeded => self.finished(ErrorKind::Remote, said("the server took too long")),
            Code::Internal | Code::Unknown | Code::Aborted | Code::Cancelled => {
                self.finished(ErrorKind::Remote, said("the server failed"))
            }
            Code::FailedPrecondition | Code::DataLoss | Code::Ok => self
                .finished(ErrorKind::Remote, said("the server does not answer this"))
                .with_status(ErrorStatus::Permanent),
        }
        .with_context("code", format!("{:?}", status.code()))
    }

    /// The error of loading an adapter.
    pub(super) fn of_adapter(&self, status: Status) -> Error {
        let message = self.words(&status);
        let off = "the server loads no adapters while it runs; start vLLM with `--enable-lora`, and with \
                   VLLM_RUNTIME_LORA_ALLOWED_PATH_PREFIXES set to the folder as the server sees it";
        match status.code() {
            Code::InvalidArgument if message.contains("ALLOWED_PATH_PREFIXES") => {
                self.finished(ErrorKind::Unsupported, format!("{off}: {message}"))
            }
            Code::Unimplemented | Code::FailedPrecondition => {
                self.finished(ErrorKind::Unsupported, format!("{off}: {message}"))
            }
            Code::Internal if message.contains(ADAPTERS_BROKEN) => self.finished(
                ErrorKind::Unsupported,
                format!(
                    "this server's front end and engine do not agree on how an adapter is named; vLLM 0.32 loads adapters \
                     only by its Python front end: {message}"
                ),
            ),
            Code::InvalidArgument if message.contains("must exist") => {
                self.finished(ErrorKind::NotFound, format!("the server does not see the adapter's folder: {message}"))
            }
            Code::InvalidArgument => {
                self.finished(ErrorKind::InvalidAdapter, format!("the server refuses the adapter: {message}"))
            }
            _ => return self.of_status(status),
        }
        .with_operation("load_adapter")
    }

    /// A failure of the server that is no status.
    pub(super) fn remote(&self, message: String) -> Error {
        self.finished(ErrorKind::Remote, message)
    }

    fn finished(&self, kind: ErrorKind, message: String) -> Error {
        Error::new(kind, message).with_backend(crate::NAME).with_context("endpoint", &*self.endpoint)
    }

    fn words(&self, status: &Status) -> String {
        match &self.secret {
            Some(secret) => shortened(&status.message().replace(&**secret, "…")),
            None => shortened(status.message()),
        }
    }
}
