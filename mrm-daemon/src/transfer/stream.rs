//! Copying past the processor's caches: what is copied once and read by others later would only push
//! out of them what is needed now, and each line would first be fetched to be overwritten.

/// Copies all of `from` to the beginning of `to`, which is at least as long.
#[cfg(target_arch = "x86_64")]
pub(super) fn copy(from: &[u8], to: &mut [u8]) {
    use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_sfence, _mm_stream_si128};
    const LANE: usize = size_of::<__m128i>();
    let to = &mut to[..from.len()];
    let head = to.as_ptr().align_offset(LANE).min(to.len());
    let lanes = (to.len() - head) / LANE;
    let tail = head + lanes * LANE;
    to[..head].copy_from_slice(&from[..head]);
    to[tail..].copy_from_slice(&from[tail..]);
    let source = from[head..tail].as_ptr().cast::<__m128i>();
    let target = to[head..tail].as_mut_ptr().cast::<__m128i>();
    for lane in 0..lanes {
        // SAFETY: both ranges are `lanes * LANE` bytes long, by the slices that they were taken
        // from, and do not overlap, since one is borrowed mutably. `target` is aligned: `head` bytes
        // from the beginning of `to` is a multiple of `LANE`, or `lanes` is 0. The load takes any
        // alignment. SSE2, which has both instructions, is part of every x86-64.
        unsafe { _mm_stream_si128(target.add(lane), _mm_loadu_si128(source.add(lane))) };
    }
    // SAFETY: it has no operands. Without it, who is told on another core that the bytes are there
    // might not see those that are still on their way past the caches.
    unsafe { _mm_sfence() };
}

/// Copies all of `from` to the beginning of `to`, which is at least as long.
#[cfg(not(target_arch = "x86_64"))]
pub(super) fn copy(from: &[u8], to: &mut [u8]) {
    to[..from.len()].copy_from_slice(from);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_and_alignment_is_copied_and_nothing_beside_it() {
        let from: Vec<u8> = (0..=255).cycle().take(300).collect();
        for start in 0..17 {
            for length in (0..40).chain([128, 255, 283]) {
                let mut to = vec![7; 320];
                copy(&from[start..start + length], &mut to[start..]);
                assert!(to[..start].iter().all(|&byte| byte == 7));
                assert_eq!(to[start..start + length], from[start..start + length]);
                assert!(to[start + length..].iter().all(|&byte| byte == 7));
            }
        }
    }
}
