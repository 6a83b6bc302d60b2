//! Where pictures stand in a rendered prompt.

use consort_core::{Error, ErrorKind, Result, TokenId};

/// A piece of a rendered and tokenized prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenPart {
    /// Token ids, without image tokens. Never empty.
    Tokens(Vec<TokenId>),
    /// The image of this index, in the order of the conversation.
    Image(usize),
}

/// Cuts a prompt at its image tokens (`<|image_pad|>`), each of which stands for one whole image.
///
/// # Errors
/// [`ErrorKind::InvalidRequest`] when there are not exactly `images` image tokens: the template drops images, or somebody
/// wrote the token as text.
///
/// ```
/// use consort_text::{TokenPart, split_at_images};
///
/// let parts = split_at_images(&[5, 9, 6, 7], 9, 1)?;
/// assert_eq!(parts, [TokenPart::Tokens(vec![5]), TokenPart::Image(0), TokenPart::Tokens(vec![6, 7])]);
/// # Ok::<(), consort_core::Error>(())
/// ```
pub fn split_at_images(ids: &[TokenId], image_token: TokenId, images: usize) -> Result<Vec<TokenPart>> {
    let found = ids.iter().filter(|&&id| id == image_token).count();
    if found != images {
        return Err(Error::new(
            ErrorKind::InvalidRequest,
            "the rendered prompt has not one image token for each image; is the token written in a message's text, or does \
             the template leave images out?",
        )
        .with_operation("text::split_at_images")
        .with_context("images", images.to_string())
        .with_context("image tokens", found.to_string()));
    }
    let mut parts = Vec::with_capacity(2 * images + 1);
    for (index, run) in ids.split(|&id| id == image_token).enumerate() {
        if index > 0 {
            parts.push(TokenPart::Image(index - 1));
        }
        if !run.is_empty() {
            parts.push(TokenPart::Tokens(run.to_vec()));
        }
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn images_stand_where_the_template_put_them() {
        use TokenPart::{Image, Tokens};
        assert_eq!(split_at_images(&[], 9, 0).unwrap(), []);
        assert_eq!(split_at_images(&[9, 9], 9, 2).unwrap(), [Image(0), Image(1)]);
        assert_eq!(
            split_at_images(&[1, 9, 2, 9], 9, 2).unwrap(),
            [Tokens(vec![1]), Image(0), Tokens(vec![2]), Image(1)]
        );
        assert_eq!(split_at_images(&[1, 9], 9, 2).unwrap_err().kind(), ErrorKind::InvalidRequest);
        assert_eq!(split_at_images(&[1, 9], 9, 0).unwrap_err().kind(), ErrorKind::InvalidRequest);
    }
}
