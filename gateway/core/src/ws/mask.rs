//! The XOR mask of client frames (RFC 6455 section 5.3), eight bytes a step: the compiler makes vector code of it.

/// Applies `mask` in place (masking and unmasking are the same), where `bytes` begins `phase` bytes into the payload.
pub(super) fn apply(bytes: &mut [u8], mask: [u8; 4], phase: usize) {
    let key: [u8; 4] = std::array::from_fn(|i| mask[(phase + i) & 3]);
    let [a, b, c, d] = key;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (chunks, tail) = bytes.as_chunks_mut::<8>();
    for chunk in chunks {
        *chunk = (u64::from_ne_bytes(*chunk) ^ wide).to_ne_bytes();
    }
    for (i, byte) in tail.iter_mut().enumerate() {
        *byte ^= key[i & 3];
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::apply;

    proptest! {
        /// The law of the RFC, byte by byte, from any offset into the payload.
        #[test]
        fn is_byte_i_xor_mask_i_mod_4(bytes in proptest::collection::vec(any::<u8>(), 0..70), mask: [u8; 4], phase in 0_usize..9) {
            let mut got = bytes.clone();
            apply(&mut got, mask, phase);
            let want: Vec<u8> = bytes.iter().enumerate().map(|(i, b)| b ^ mask[(phase + i) % 4]).collect();
            prop_assert_eq!(got, want);
        }
    }
}
