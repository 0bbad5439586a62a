//! `f32` slices seen as the bytes they lie in: the only unsafe code of the crate outside `transport` and `memory`.

/// The little-endian bytes of `floats`, without a copy.
pub(crate) fn bytes(floats: &[f32]) -> &[u8] {
    // SAFETY: every byte of an f32 is initialised, u8 has alignment 1, the length in bytes is that of the same
    // allocation, and the lifetime is that of the borrow.
    unsafe { std::slice::from_raw_parts(floats.as_ptr().cast::<u8>(), size_of_val(floats)) }
}

/// The bytes of `floats` to be written over, without a copy.
pub fn bytes_mut(floats: &mut [f32]) -> &mut [u8] {
    // SAFETY: as in `bytes`; the borrow is exclusive, and every bit pattern is a valid f32.
    unsafe { std::slice::from_raw_parts_mut(floats.as_mut_ptr().cast::<u8>(), size_of_val(floats)) }
}

/// Words of any bits as they are sent.
pub(crate) fn floats(words: &[u32]) -> &[f32] {
    // SAFETY: size and alignment of both are the same, every bit pattern is a valid f32, the borrow is the same.
    unsafe { std::slice::from_raw_parts(words.as_ptr().cast::<f32>(), words.len()) }
}

/// Words of any bits to be received.
pub(crate) fn floats_mut(words: &mut [u32]) -> &mut [f32] {
    // SAFETY: as in `floats`; the borrow is exclusive, and every bit pattern is a valid u32.
    unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast::<f32>(), words.len()) }
}

#[cfg(test)]
mod tests {
    #[test]
    fn bytes_are_little_endian_and_writable() {
        let mut floats = [1.0f32, -2.5];
        assert_eq!(super::bytes(&floats)[4..], (-2.5f32).to_le_bytes());
        super::bytes_mut(&mut floats)[..4].copy_from_slice(&7.0f32.to_le_bytes());
        assert_eq!(floats, [7.0, -2.5]);
    }
}
