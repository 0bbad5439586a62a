//! Copies past the caches, for memory that is not read again soon.
//!
//! A plain store first reads the line that it changes. What a snapshot makes an update write elsewhere would so cost half
//! as much again as the update itself; written past the caches it costs less than twice an update in place.

/// Copies `from` to `to`, up to the shorter of the two. Not ordered with what
/// this thread writes elsewhere.
#[cfg(target_arch = "x86_64")]
pub fn stream(from: &[f32], to: &mut [f32]) {
    let len = from.len().min(to.len());
    let (from, to) = (&from[..len], &mut to[..len]);
    // Whole lines, so that none is written in two parts; the ends as usual.
    let head = to.as_ptr().align_offset(64).min(len);
    let lines = (len - head) / LINE * LINE;
    let (first, rest) = to.split_at_mut(head);
    let (middle, last) = rest.split_at_mut(lines);
    first.copy_from_slice(&from[..head]);
    last.copy_from_slice(&from[head + lines..]);
    let from = &from[head..head + lines];
    if std::arch::is_x86_feature_detected!("avx512f") {
        // SAFETY: this processor has the instructions.
        #[expect(unsafe_code, reason = "the compiler does not know for which processor it is called")]
        unsafe {
            at_once(from, middle);
        }
    } else {
        in_parts(from, middle);
    }
}

/// Elements of a line of the caches.
#[cfg(target_arch = "x86_64")]
const LINE: usize = 16;

/// A line with one store, which can be twice as fast as with four. Both are whole lines; `to` begins with one.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn at_once(from: &[f32], to: &mut [f32]) {
    use std::arch::x86_64::{_mm512_loadu_ps, _mm512_stream_ps};
    for (to, from) in to.chunks_exact_mut(LINE).zip(from.chunks_exact(LINE)) {
        // SAFETY: both are a line's elements, and `to` is aligned to one.
        #[expect(unsafe_code, reason = "there is no safe name for such a store")]
        unsafe {
            _mm512_stream_ps(to.as_mut_ptr(), _mm512_loadu_ps(from.as_ptr()));
        }
    }
}

/// As `at_once`, on any processor.
#[cfg(target_arch = "x86_64")]
fn in_parts(from: &[f32], to: &mut [f32]) {
    use std::arch::x86_64::{_mm_loadu_ps, _mm_stream_ps};
    for (to, from) in to.chunks_exact_mut(4).zip(from.chunks_exact(4)) {
        // SAFETY: SSE is part of x86-64. Both are 4 elements; `to` is aligned to 16 bytes.
        #[expect(unsafe_code, reason = "there is no safe name for such a store")]
        unsafe {
            _mm_stream_ps(to.as_mut_ptr(), _mm_loadu_ps(from.as_ptr()));
        }
    }
}

/// Copies `from` to `to`, up to the shorter of the two.
#[cfg(not(target_arch = "x86_64"))]
pub fn stream(from: &[f32], to: &mut [f32]) {
    let len = from.len().min(to.len());
    to[..len].copy_from_slice(&from[..len]);
}

/// After this, what this thread has streamed comes before whatever it writes.
pub(crate) fn fence() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE is part of x86-64.
    #[expect(unsafe_code, reason = "the fences of the library are not for such stores")]
    unsafe {
        std::arch::x86_64::_mm_sfence();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_place_and_length_is_copied_and_nothing_else() {
        let from: Vec<f32> = (0..200).map(|i| i as f32).collect();
        for start in 0..20 {
            for len in [0, 1, 15, 16, 17, 63, 64, 100] {
                let mut to = vec![-1.0; 200];
                stream(&from[start + 3..start + 3 + len], &mut to[start..start + len]);
                fence();
                for (i, value) in to.iter().enumerate() {
                    let expected = if (start..start + len).contains(&i) { (i + 3) as f32 } else { -1.0 };
                    assert_eq!(*value, expected, "{start} {len} {i}");
                }
            }
        }
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn lines_in_parts_are_the_same() {
        let arena = crate::memory::Arena::new().unwrap();
        // Begins with a page.
        let mut to = arena.floats(64).unwrap();
        let from: Vec<f32> = (0..64).map(|i| i as f32).collect();
        in_parts(&from, &mut to);
        fence();
        assert_eq!(from, *to);
    }
}
