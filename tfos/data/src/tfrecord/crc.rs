//! The masked CRC-32C of TFRecord: a plain CRC stored next to data that holds CRCs itself would be weak.

/// CRC-32C of `data`, rotated right by 15 bits plus a constant, as TFRecord stores it.
pub fn masked(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    #[test]
    fn known_value() {
        // CRC-32C("123456789") = 0xe3069283
        assert_eq!(super::masked(b"123456789"), 0xe306_9283_u32.rotate_right(15).wrapping_add(0xa282_ead8));
    }
}
