//! The key codec: parts that sort as their bytes do and whose prefixes can't collide.

use std::ops::Deref;

use gantry_errdefs::{Error, Result};

/// Ends a part. Escaping keeps it out of the parts, so that a key's parts are a prefix of another
/// key exactly when its bytes are.
const END: u8 = 0x00;
/// Begins an escaped byte.
const ESCAPE: u8 = 0x01;

/// A key made of parts: `Key::new().str("image").str("default")`.
///
/// Each part is written with its bytes 0x00 and 0x01 escaped (as 0x01 0x01 and 0x01 0x02) and
/// ended by 0x00. Keys sort part by part, each part by its bytes; the key of some parts is a
/// prefix of the keys that go on from them and of no others.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Vec<u8>);

impl Key {
    /// The empty key, prefix of all.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a text part.
    #[must_use]
    pub fn str(self, part: &str) -> Self {
        self.bytes(part.as_bytes())
    }

    /// Adds a part of any bytes.
    #[must_use]
    pub fn bytes(mut self, part: &[u8]) -> Self {
        self.0.reserve(part.len() + 1);
        for &byte in part {
            if byte <= ESCAPE {
                self.0.push(ESCAPE);
                self.0.push(byte + 1);
            } else {
                self.0.push(byte);
            }
        }
        self.0.push(END);
        self
    }

    /// Adds a number as a part; numbers sort by value.
    #[must_use]
    pub fn u64(self, part: u64) -> Self {
        self.bytes(&part.to_be_bytes())
    }

    /// The encoded bytes.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    /// Splits an encoded key into its parts.
    ///
    /// # Errors
    /// DataLoss when `key` was not made by this codec.
    pub fn parts(key: &[u8]) -> Result<Vec<Vec<u8>>> {
        let mut parts = Vec::new();
        let mut part = Vec::new();
        let mut bytes = key.iter();
        while let Some(&byte) = bytes.next() {
            match byte {
                END => parts.push(std::mem::take(&mut part)),
                ESCAPE => match bytes.next() {
                    Some(&escaped @ (1 | 2)) => part.push(escaped - 1),
                    _ => return Err(damaged(key)),
                },
                _ => part.push(byte),
            }
        }
        if part.is_empty() { Ok(parts) } else { Err(damaged(key)) }
    }

    /// Splits an encoded key into text parts.
    ///
    /// # Errors
    /// DataLoss when `key` was not made by this codec, or a part is no UTF-8.
    pub fn str_parts(key: &[u8]) -> Result<Vec<String>> {
        Self::parts(key)?
            .into_iter()
            .map(|part| String::from_utf8(part).map_err(|_| damaged(key)))
            .collect()
    }
}

impl Deref for Key {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl AsRef<[u8]> for Key {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

fn damaged(key: &[u8]) -> Error {
    Error::data_loss(format!("database key {:?} is damaged", String::from_utf8_lossy(key)))
}
