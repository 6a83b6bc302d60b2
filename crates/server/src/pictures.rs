//! The pictures of one request, counted.

use consort_core::ContentPart;

use crate::config::Limits;
use crate::error::Failure;
use crate::image;

/// Reads pictures, as many as a request may have.
#[derive(Debug)]
pub(crate) struct Pictures<'a> {
    limits: &'a Limits,
    seen: usize,
}

impl<'a> Pictures<'a> {
    pub(crate) fn new(limits: &'a Limits) -> Self {
        Self { limits, seen: 0 }
    }

    /// The picture at an address that stands at `param`.
    ///
    /// # Errors
    /// One too many, and those of [`image::from_url`].
    pub(crate) fn at(&mut self, url: &str, param: &str) -> Result<ContentPart, Failure> {
        self.count(param)?;
        Ok(ContentPart::Image(image::from_url(url, param, self.limits.image_bytes.get())?))
    }

    /// The picture that is written in base64 at `param`.
    ///
    /// # Errors
    /// One too many, and those of [`image::from_base64`].
    pub(crate) fn written(&mut self, data: &str, param: &str) -> Result<ContentPart, Failure> {
        self.count(param)?;
        Ok(ContentPart::Image(image::from_base64(data, param, self.limits.image_bytes.get())?))
    }

    fn count(&mut self, param: &str) -> Result<(), Failure> {
        self.seen += 1;
        let most = self.limits.images;
        if self.seen > most {
            Err(Failure::value(param, format!("a request may have {most} pictures")))
        } else {
            Ok(())
        }
    }
}
