//! Checksums of a file by blocks, so that a range of it can be read and believed without the rest.

use tfos_core::checkpoint::Blocks;

use super::Written;

/// Bytes of a block of the files that are written here: small beside what one node reads of a part, large beside its
/// own four bytes in the manifest.
pub(crate) const BLOCK_BYTES: u64 = 4 << 20;

/// CRC-32C of a file and of each of its blocks, fed in any pieces, in order.
#[derive(Debug, Clone)]
pub(crate) struct BlockCrc {
    block: u64,
    whole: u32,
    done: Vec<u32>,
    /// Of the block under way, and how much of it there is.
    current: u32,
    filled: u64,
}

impl BlockCrc {
    pub(crate) fn new() -> Self {
        Self::of(BLOCK_BYTES)
    }

    /// With blocks of another size, at least 1.
    pub(crate) fn of(block: u64) -> Self {
        Self { block: block.max(1), whole: 0, done: vec![], current: 0, filled: 0 }
    }

    pub(crate) fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min((self.block - self.filled) as usize));
            // One pass over the bytes: the whole file's checksum follows from those of the blocks.
            self.current = crc32c::crc32c_append(self.current, now);
            self.filled += now.len() as u64;
            bytes = later;
            if self.filled == self.block {
                self.close();
            }
        }
    }

    fn close(&mut self) {
        self.whole = crc32c::crc32c_combine(self.whole, self.current, self.filled as usize);
        self.done.push(self.current);
        (self.current, self.filled) = (0, 0);
    }

    /// Bytes so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.done.len() as u64 * self.block + self.filled
    }

    /// What there is to know of the whole file.
    pub(crate) fn written(self) -> Written {
        let bytes = self.bytes();
        let (crc32c, blocks) = self.finish();
        Written { bytes, crc32c, blocks }
    }

    /// The checksum of the whole file, and those of its blocks.
    pub(crate) fn finish(mut self) -> (u32, Blocks) {
        if self.filled > 0 {
            self.close();
        }
        (self.whole, Blocks { bytes: self.block, crc32c: self.done })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_any_size_give_the_checksums_of_whole_and_blocks() {
        let file: Vec<u8> = (0..1000u32).map(|i| (i * 31 % 251) as u8).collect();
        for block in [1, 7, 64, 500, 1000, 1001] {
            for piece in [1, 13, 64, 999, 1000] {
                let mut crc = BlockCrc::of(block);
                file.chunks(piece).for_each(|part| crc.update(part));
                let (whole, blocks) = crc.finish();
                assert_eq!(whole, crc32c::crc32c(&file), "blocks of {block}, pieces of {piece}");
                let expected: Vec<u32> = file.chunks(block as usize).map(crc32c::crc32c).collect();
                assert_eq!(blocks, Blocks { bytes: block, crc32c: expected });
            }
        }
        assert_eq!(BlockCrc::new().finish(), (0, Blocks { bytes: BLOCK_BYTES, crc32c: vec![] }));
    }
}
