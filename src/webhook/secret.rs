//! The shared secret of a webhook: never printed, never compared, never empty, cleared from memory on drop.

use std::fmt;

use zeroize::Zeroizing;

/// The fewest bytes that a secret has unless its entry says `allow_short = true`.
pub const MIN_LEN: usize = 16;

/// A webhook's secret as Pulumi uses it: the bytes of the text, not decoded from hex or base64.
///
/// There is no `PartialEq`: a secret is only ever a key.
#[derive(Clone)]
pub struct Secret(Zeroizing<Vec<u8>>);

/// Why bytes cannot be a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// There is nothing in it.
    #[error("the secret is empty")]
    Empty,
    /// Shorter than [`MIN_LEN`] bytes.
    #[error("the secret has {len} bytes, fewer than {MIN_LEN}")]
    Short {
        /// How many bytes it has.
        len: usize,
    },
}

impl Secret {
    /// Takes the bytes as they are.
    ///
    /// # Errors
    ///
    /// [`SecretError::Empty`], and [`SecretError::Short`] unless `allow_short`.
    pub fn try_new(bytes: Vec<u8>, allow_short: bool) -> Result<Self, SecretError> {
        let bytes = Zeroizing::new(bytes);
        match bytes.len() {
            0 => Err(SecretError::Empty),
            len if len < MIN_LEN && !allow_short => Err(SecretError::Short { len }),
            _ => Ok(Self(bytes)),
        }
    }

    /// Takes the content of a file or variable: one trailing `\n` or `\r\n` is not part of the secret, everything else is.
    ///
    /// # Errors
    ///
    /// As [`Secret::try_new`].
    pub fn from_content(mut bytes: Vec<u8>, allow_short: bool) -> Result<Self, SecretError> {
        if bytes.last() == Some(&b'\n') {
            bytes.pop();
            if bytes.last() == Some(&b'\r') {
                bytes.pop();
            }
        }
        Self::try_new(bytes, allow_short)
    }

    /// The key. Only for handing to a MAC.
    #[must_use]
    pub fn as_key(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(content: &str) -> Vec<u8> {
        Secret::from_content(content.into(), true).unwrap().as_key().to_vec()
    }

    #[test]
    fn one_trailing_newline_is_the_editors() {
        assert_eq!(file("abc\n"), b"abc");
        assert_eq!(file("abc\r\n"), b"abc");
        assert_eq!(file("abc\n\n"), b"abc\n");
        assert_eq!(file("abc\r"), b"abc\r");
        assert_eq!(file(" abc \t\n"), b" abc \t");
    }

    #[test]
    fn empty_and_short_are_refused() {
        assert_eq!(Secret::try_new(vec![], true).unwrap_err(), SecretError::Empty);
        assert_eq!(Secret::from_content(b"\r\n".to_vec(), true).unwrap_err(), SecretError::Empty);
        assert_eq!(Secret::try_new(vec![b'a'; 15], false).unwrap_err(), SecretError::Short { len: 15 });
        assert!(Secret::try_new(vec![b'a'; 15], true).is_ok());
        assert!(Secret::try_new(vec![b'a'; 16], false).is_ok());
    }

    #[test]
    fn it_never_prints_itself() {
        let secret = Secret::try_new(b"pulumi-webhook-test-secret".to_vec(), false).unwrap();
        assert_eq!(format!("{secret:?} {:?}", Some(&secret)), "Secret(..) Some(Secret(..))");
    }
}
