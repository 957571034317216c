//! AMX: 16×16 tiles of f32 sums of bf16 products and of i32 sums of int8 products (Intel, from Sapphire Rapids on).
//!
//! The compiler has no stable intrinsics for it, so every instruction is a line of assembly. Tile registers are touched
//! nowhere else in the program: the compiler never allocates them, and the kernel saves them per thread.
#![allow(unsafe_code, reason = "inline assembly")]

use std::arch::asm;
use std::sync::OnceLock;

/// Rows of a tile, and words in a row of it.
pub(crate) const TILE: usize = 16;

/// Whether the processor has AMX-BF16 and AMX-INT8 and the operating system lets this process use it.
pub(super) fn is_available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| has_instructions() && request_permission())
}

fn has_instructions() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    const BF16: u32 = 1 << 22;
    const TILES: u32 = 1 << 24;
    const INT8: u32 = 1 << 25;
    let leaves = __cpuid(0).eax;
    leaves >= 7 && __cpuid_count(7, 0).edx & (BF16 | TILES | INT8) == BF16 | TILES | INT8
}

/// Linux enables the 8 KiB of tile state per process, on request (`arch_prctl(ARCH_REQ_XCOMP_PERM, XTILEDATA)`).
#[cfg(target_os = "linux")]
fn request_permission() -> bool {
    const SYS_ARCH_PRCTL: isize = 158;
    const ARCH_REQ_XCOMP_PERM: usize = 0x1023;
    const XTILEDATA: usize = 18;
    let mut result = SYS_ARCH_PRCTL;
    // SAFETY: the call reads no memory; a kernel that does not know the code returns an error.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XTILEDATA,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack)
        );
    }
    result == 0
}

#[cfg(not(target_os = "linux"))]
fn request_permission() -> bool {
    false
}

/// The operand of `ldtilecfg`.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// Sets the shapes of the tiles for `rows` rows and zeroes them. Sums 0 and 1 and A in 4 hold the first 16 rows, sums 2 and 3
/// and A in 5 the others; B in 6 and 7 is always whole.
///
/// # Safety
/// AMX must be available; rows in 1..=32.
#[inline(always)]
pub(crate) unsafe fn configure(rows: usize) {
    let mut config = Config { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
    let upper = rows.min(TILE) as u8;
    // A shape of no rows is not allowed; with up to 16 rows the lower tiles are not used.
    let lower = rows.saturating_sub(TILE).max(1) as u8;
    config.rows[..8].copy_from_slice(&[upper, upper, lower, lower, upper, lower, TILE as u8, TILE as u8]);
    config.row_bytes[..8].copy_from_slice(&[4 * TILE as u16; 8]);
    // SAFETY: the configuration is well-formed for palette 1.
    unsafe { asm!("ldtilecfg [{0}]", in(reg) &raw const config, options(nostack)) }
}

/// Gives the tiles up, so that a switch of threads need not save their 8 KiB.
///
/// # Safety
/// AMX must be available.
#[inline(always)]
pub(crate) unsafe fn release() {
    // SAFETY: the caller's contract.
    unsafe { asm!("tilerelease", options(nostack, nomem)) }
}

/// Loads tile `T` from rows `stride` words apart.
///
/// # Safety
/// The configured shape must be readable.
#[inline(always)]
pub(crate) unsafe fn load<const T: u8>(from: *const u32, stride: usize) {
    // SAFETY: the caller's contract.
    unsafe {
        asm!("tileloadd tmm{t}, [{0} + {1}*1]", in(reg) from, in(reg) stride * 4, t = const T, options(nostack, readonly));
    }
}

/// [`load`] for what is read once: it does not enter the first-level cache.
///
/// # Safety
/// The configured shape must be readable.
#[inline(always)]
pub(crate) unsafe fn load_streaming<const T: u8>(from: *const u32, stride: usize) {
    // SAFETY: the caller's contract.
    unsafe {
        asm!("tileloaddt1 tmm{t}, [{0} + {1}*1]", in(reg) from, in(reg) stride * 4, t = const T, options(nostack, readonly));
    }
}

/// Clears tile `T`.
///
/// # Safety
/// The tiles must be configured.
#[inline(always)]
pub(crate) unsafe fn clear<const T: u8>() {
    // SAFETY: the caller's contract.
    unsafe { asm!("tilezero tmm{t}", t = const T, options(nostack, nomem)) }
}

/// Tile `C` += tile `A` · tile `B` in bf16.
///
/// # Safety
/// The tiles must be configured.
#[inline(always)]
pub(crate) unsafe fn dot_bf16<const C: u8, const A: u8, const B: u8>() {
    // SAFETY: the caller's contract.
    unsafe {
        asm!("tdpbf16ps tmm{c}, tmm{a}, tmm{b}", c = const C, a = const A, b = const B, options(nostack, nomem));
    }
}

/// Tile `C` += tile `A` · tile `B` in int8, A's bytes unsigned and B's signed.
///
/// # Safety
/// The tiles must be configured.
#[inline(always)]
pub(crate) unsafe fn dot_int8<const C: u8, const A: u8, const B: u8>() {
    // SAFETY: the caller's contract.
    unsafe {
        asm!("tdpbusd tmm{c}, tmm{a}, tmm{b}", c = const C, a = const A, b = const B, options(nostack, nomem));
    }
}

/// Stores tile `T` to rows `stride` floats apart.
///
/// # Safety
/// There must be room for the configured shape.
#[inline(always)]
pub(crate) unsafe fn store<const T: u8>(to: *mut f32, stride: usize) {
    // SAFETY: the caller's contract.
    unsafe {
        asm!("tilestored [{0} + {1}*1], tmm{t}", in(reg) to, in(reg) stride * 4, t = const T, options(nostack));
    }
}
