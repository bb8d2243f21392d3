//! HMAC-SHA256 as RFC 2104 writes it, so that what hookgate takes for signed is judged by other code than its own.

use sha2::{Digest, Sha256};

const BLOCK: usize = 64;

/// The tag of a body. Keys are at most a block long here.
pub(crate) fn hmac_sha256(key: &[u8], body: &[u8]) -> [u8; 32] {
    assert!(key.len() <= BLOCK);
    let pad = |with: u8| {
        let mut block = [with; BLOCK];
        block.iter_mut().zip(key).for_each(|(byte, key)| *byte ^= key);
        block
    };
    let inner = Sha256::new().chain_update(pad(0x36)).chain_update(body).finalize();
    Sha256::new().chain_update(pad(0x5c)).chain_update(inner).finalize().into()
}
