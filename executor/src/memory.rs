//! How this process takes memory from the system, and how much it has.

/// Largest block that comes from the heap: the largest that glibc allows.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const MMAP_THRESHOLD: i32 = 32 << 20;

/// Free memory at the heap's end that is kept, bytes.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const TRIM_THRESHOLD: i32 = 256 << 20;

/// Smallest block that is mapped by itself, where the memory of a buffer is to be gone when the buffer is.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const EXACT_THRESHOLD: i32 = 128 << 10;

/// Keeps the buffers of record batches, some megabytes each, on the heap. By default glibc maps and unmaps each of
/// them, and the kernel clears every page anew: a quarter of a scan's time. Settings in the environment
/// (`MALLOC_MMAP_THRESHOLD_` and others, <https://man7.org/linux/man-pages/man3/mallopt.3.html>) win.
pub fn keep_buffers() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        set("MALLOC_MMAP_THRESHOLD_", MMAP_THRESHOLD);
        set("MALLOC_TRIM_THRESHOLD_", TRIM_THRESHOLD);
    }
}

/// Whether buffers are mapped each by itself, which takes exactly as much memory as there are buffers, or come from the
/// heap, which is faster and keeps some tens of megabytes. Changes only what is allocated from now on.
pub(crate) fn map_buffers(exactly: bool) {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        use std::sync::atomic::{AtomicBool, Ordering};
        static EXACTLY: AtomicBool = AtomicBool::new(false);
        if EXACTLY.swap(exactly, Ordering::Relaxed) != exactly {
            set("MALLOC_MMAP_THRESHOLD_", if exactly { EXACT_THRESHOLD } else { MMAP_THRESHOLD });
            if exactly {
                trim();
            }
        }
    }
}

/// Sets a parameter of glibc's allocator that the environment does not.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn set(variable: &str, value: i32) {
    const M_TRIM_THRESHOLD: i32 = -1;
    const M_MMAP_THRESHOLD: i32 = -3;
    unsafe extern "C" {
        fn mallopt(parameter: i32, value: i32) -> i32;
    }
    let parameter = if variable == "MALLOC_TRIM_THRESHOLD_" { M_TRIM_THRESHOLD } else { M_MMAP_THRESHOLD };
    if std::env::var_os(variable).is_none() {
        // SAFETY: glibc's function, which takes its own lock; a refused value changes nothing.
        #[expect(unsafe_code, reason = "the allocator is libc's")]
        let _ = unsafe { mallopt(parameter, value) };
    }
}

/// Gives pages that the heap keeps, and nobody uses, back to the system.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn trim() {
    unsafe extern "C" {
        fn malloc_trim(pad: usize) -> i32;
    }
    // SAFETY: glibc's function, which takes its own locks.
    #[expect(unsafe_code, reason = "the allocator is libc's")]
    let _ = unsafe { malloc_trim(0) };
}

/// The most memory of this process that was resident at one time, bytes: `VmHWM` of
/// <https://man7.org/linux/man-pages/man5/proc_pid_status.5.html>; 0 where the system does not tell.
pub(crate) fn resident_peak() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.map_or(0, |kib| kib * 1024)
}
