//! How this process takes memory from the system.

/// Largest block that comes from the heap: the largest that glibc allows.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const MMAP_THRESHOLD: i32 = 32 << 20;

/// Free memory at the heap's end that is kept, bytes.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const TRIM_THRESHOLD: i32 = 256 << 20;

/// Keeps the buffers of record batches, some megabytes each, on the heap. By default glibc maps and unmaps each of
/// them, and the kernel clears every page anew: a quarter of a scan's time. Settings in the environment
/// (`MALLOC_MMAP_THRESHOLD_` and others, <https://man7.org/linux/man-pages/man3/mallopt.3.html>) win.
pub fn keep_buffers() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        const M_TRIM_THRESHOLD: i32 = -1;
        const M_MMAP_THRESHOLD: i32 = -3;
        unsafe extern "C" {
            fn mallopt(parameter: i32, value: i32) -> i32;
        }
        let set = |parameter, variable: &str, value| {
            if std::env::var_os(variable).is_none() {
                // SAFETY: glibc's function, which takes its own lock; a refused value changes nothing.
                #[expect(unsafe_code, reason = "the allocator is libc's")]
                let _ = unsafe { mallopt(parameter, value) };
            }
        };
        set(M_MMAP_THRESHOLD, "MALLOC_MMAP_THRESHOLD_", MMAP_THRESHOLD);
        set(M_TRIM_THRESHOLD, "MALLOC_TRIM_THRESHOLD_", TRIM_THRESHOLD);
    }
}
