// Tensor cores of one warp: ldmatrix, mma.sync and a layout of tiles in shared memory that neither meets bank conflicts on.
//
// A product of one instruction is A [16, k] · B [k, 8] + D [16, 8], k = 16 for bf16 and 32 for bytes. Lane l holds, with
// g = l / 4 and t = l % 4 (PTX ISA, "Matrix Fragments for mma.m16n8k16 / mma.m16n8k32"):
//
//   a[0] row g, a[1] row g + 8: the t-th word of 4 bytes of the first half of k; a[2], a[3] the same of the second half
//   b[0], b[1]: column g, the t-th word of the first and of the second half of k
//   d[0], d[1]: row g, columns 2t and 2t + 1; d[2], d[3]: row g + 8
//
// All functions are for whole warps: every lane calls them together.
#pragma once

#include "gpu.cuh"

#if defined(ZOETROPE_EMULATOR)
#include "emulator/mma.h"
#else

DEVICE uint32_t shared_address_(const void* shared) { return static_cast<uint32_t>(__cvta_generic_to_shared(shared)); }

// Loads 8×8 matrices of 2-byte values (or 8 rows of 16 bytes) from shared memory: lane 8·i + r gives the address of row r
// of matrix i, a multiple of 16. Lane l gets of each matrix the (l % 4)-th word of row l / 4.
DEVICE void ldmatrix(uint32_t (&to)[1], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];\n"
               : "=r"(to[0])
               : "r"(shared_address_(row))
               : "memory");
}
DEVICE void ldmatrix(uint32_t (&to)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];\n"
               : "=r"(to[0]), "=r"(to[1])
               : "r"(shared_address_(row))
               : "memory");
}
DEVICE void ldmatrix(uint32_t (&to)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared_address_(row))
               : "memory");
}
// The same, each matrix transposed: lane l gets the values of rows 2·(l % 4) and 2·(l % 4) + 1 in column l / 4.
DEVICE void ldmatrix_transposed(uint32_t (&to)[1], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];\n"
               : "=r"(to[0])
               : "r"(shared_address_(row))
               : "memory");
}
DEVICE void ldmatrix_transposed(uint32_t (&to)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];\n"
               : "=r"(to[0]), "=r"(to[1])
               : "r"(shared_address_(row))
               : "memory");
}
DEVICE void ldmatrix_transposed(uint32_t (&to)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared_address_(row))
               : "memory");
}

// d += A · B with k = 16 of bf16, sums in f32.
DEVICE void mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// d += A · B with k = 32 of signed bytes, sums in 32 bits.
DEVICE void mma_int8(int (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// d += A · B with k = 32 of e4m3, sums in f32 (narrower inside the units). Devices before sm_89 have no such units: the host
// does not offer these kernels there, and a launch all the same ends with an error.
DEVICE void mma_e4m3(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#if __CUDA_ARCH__ >= 890
  asm(
      "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
  __trap();
#endif
}

// Two values as e4m3 in the low half of a word, `low` in its lowest byte: rounded to nearest even, at most ±448. For devices
// that multiply e4m3.
DEVICE uint32_t e4m3_pair(float low, float high) {
#if __CUDA_ARCH__ >= 890
  uint16_t pair;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;\n" : "=h"(pair) : "f"(high), "f"(low));
  return pair;
#else
  __trap();
  return 0;
#endif
}

#endif

// From here on, what both worlds share.

// Where chunk `chunk` (16 bytes) of row `row` lies, in bytes, in a tile whose rows are `chunks` (a power of two) of them:
// rows are dense, and a row's chunks change places so that the same chunk of 8 successive rows meets all 32 banks. The tile
// starts at a multiple of 128 bytes.
template <int chunks>
DEVICE int swizzled(int row, int chunk) {
  static_assert((chunks & (chunks - 1)) == 0, "the exclusive or needs a power of two");
  constexpr int rows_per_line = chunks < 8 ? 8 / chunks : 1;
  constexpr int mask = (chunks < 8 ? chunks : 8) - 1;
  return (row * chunks + (chunk ^ ((row / rows_per_line) & mask))) * 16;
}

// A's fragment from such a tile: 16 rows from `row` on, 32 bytes (two chunks) from `chunk` on.
template <int chunks>
DEVICE void load_a(uint32_t (&a)[4], const void* tile, int row, int chunk) {
  const int l = lane();
  ldmatrix(a, static_cast<const char*>(tile) + swizzled<chunks>(row + l % 16, chunk + l / 16));
}
// B's fragments of 16 columns from a tile that holds B transposed (a row per column of B, as weights are): rows from `row`
// on, 32 bytes of k from `chunk` on. b[0], b[1] are of the first 8 columns, b[2], b[3] of the others.
template <int chunks>
DEVICE void load_b(uint32_t (&b)[4], const void* tile, int row, int chunk) {
  const int l = lane();
  ldmatrix(b, static_cast<const char*>(tile) + swizzled<chunks>(row + l / 16 * 8 + l % 8, chunk + l / 8 % 2));
}
// The same from a tile that holds B itself (a row per k, 2-byte values): 16 rows from `row` on, 16 columns from `chunk` on.
template <int chunks>
DEVICE void load_b_transposed(uint32_t (&b)[4], const void* tile, int row, int chunk) {
  const int l = lane();
  ldmatrix_transposed(b, static_cast<const char*>(tile) + swizzled<chunks>(row + l % 16, chunk + l / 16));
}

// The row and column that this lane's d[i] stands for.
DEVICE int d_row(int i) { return lane() / 4 + i / 2 * 8; }
DEVICE int d_column(int i) { return lane() % 4 * 2 + i % 2; }
