// Hopper's own instructions (sm_90a): mbarriers, tensor copies (TMA), named barriers, register budgets and wgmma.
//
// Sources: PTX ISA 9.0, sections "mbarrier", "cp.async.bulk.tensor", "bar", "setmaxnreg" and "Asynchronous Warpgroup
// Level Matrix Multiply-Accumulate"; CUDA driver API, cuTensorMapEncodeTiled. The twins for the CPU are in
// emulator/hopper.h.
//
// Tiles in shared memory are panels of 64 bf16 (128 bytes) a row, rows dense, in the 128-byte swizzle: of an address,
// bits 4..6 (which 16 bytes of the row) are exclusive-ored with bits 7..9 (which row of eight). Tensor copies write so
// (CU_TENSOR_MAP_SWIZZLE_128B), wgmma reads so (descriptor's mode 1). Since the pattern repeats each 1024 bytes of the
// address itself, each panel starts at a multiple of 1024.
#pragma once

#include "gpu.cuh"

#if defined(ZOETROPE_EMULATOR)
#include "emulator/hopper.h"
#else

// Whether these instructions exist on the target. Where they do not, a kernel of them is built empty, and refuses.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
constexpr bool kHopperCode = true;
#else
constexpr bool kHopperCode = false;
#endif
// Ends the launch with an error.
DEVICE void refuse() { __trap(); }

// A CUtensorMap, made by the driver on the host and passed by value as a GRID_CONSTANT parameter.
struct alignas(128) TensorMap {
  uint64_t opaque[16];
};
#define GRID_CONSTANT __grid_constant__

// The address within the window of shared memory, as descriptors and instructions want it.
DEVICE uint32_t shared_address(const void* at) { return static_cast<uint32_t>(__cvta_generic_to_shared(at)); }

// An mbarrier of a phase that ends with `arrivals` arrivals and no announced bytes outstanding. One thread makes it,
// fences, and the block synchronises before others use it.
DEVICE void barrier_init(uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}
DEVICE void fence_barrier_init() { asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory"); }
DEVICE void barrier_arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(shared_address(barrier)) : "memory");
}
// Arrives and announces bytes that tensor copies will bring.
DEVICE void barrier_arrive_expect(uint64_t* barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}
// Waits for the end of the phase of this parity: the first is 0, then they alternate. A wait for parity 1 of a new
// barrier passes at once.
DEVICE void barrier_wait(uint64_t* barrier, int parity) {
  asm volatile(
      "{\n.reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra passed;\n"
      "bra again;\n"
      "passed:\n"
      "}\n" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}

DEVICE void tensor_prefetch(const TensorMap* map) {
  asm volatile("prefetch.tensormap [%0];\n" ::"l"(map) : "memory");
}
// Copies the map's box from [row, column] on to `to`, a multiple of 1024, zeros where the matrix ends. All of the box's
// bytes are taken from those that `barrier` expects once they have landed. One thread calls it.
DEVICE void tensor_load(void* to, const TensorMap* map, int column, int row, uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];\n" ::"r"(
          shared_address(to)),
      "l"(map), "r"(column), "r"(row), "r"(shared_address(barrier))
      : "memory");
}

// Hardware barriers 1 to 15 (0 is __syncthreads) of `threads` threads in whole warps: `sync` arrives and waits for the
// rest, `arrive` goes on.
DEVICE void named_sync(int id, int threads) { asm volatile("bar.sync %0, %1;\n" ::"r"(id), "r"(threads) : "memory"); }
DEVICE void named_arrive(int id, int threads) { asm volatile("bar.arrive %0, %1;\n" ::"r"(id), "r"(threads) : "memory"); }

// The registers of each thread of a warpgroup from here on. Raising waits until others of the block have lowered
// theirs.
template <int count>
DEVICE void registers_lower() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(count));
}
template <int count>
DEVICE void registers_raise() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(count));
}

// Products: A [64, 16] · B [16, n] + D [64, n], by the four warps of a warpgroup together, asynchronously.
//
// D: thread 32w + 4g + t holds in d[4j + i] row 16w + g + 8·(i / 2), column 8j + 2t + i % 2.
// A in registers: words 0 and 1 hold columns 2t, 2t + 1 of rows 16w + g and 16w + g + 8; words 2 and 3 hold columns
// 2t + 8, 2t + 9.
//
// Order: wgmma_fence after ordinary writes to d or a and before the first product of a group; products; wgmma_commit;
// wgmma_wait<n> until at most n groups are under way. Between, nobody touches d and a, nor the tiles in shared memory.
DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory"); }
DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory"); }
template <int newer>
DEVICE void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(newer) : "memory");
}
// Keeps the compiler from moving reads and writes of sums across this point: it does not know that products are
// asynchronous.
template <int n>
DEVICE void keep_in_registers(float (&d)[n]) {
#pragma unroll
  for (int i = 0; i < n; i++) asm volatile("" : "+f"(d[i])::"memory");
}
// The same of left operands.
template <int n>
DEVICE void keep_in_registers(const uint32_t (&a)[n][4]) {
#pragma unroll
  for (int i = 0; i < 4 * n; i++) asm volatile("" ::"r"(a[i / 4][i % 4]) : "memory");
}

#define SUMS4_(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define SUMS16_(i) SUMS4_(i), SUMS4_(i + 4), SUMS4_(i + 8), SUMS4_(i + 12)

// The immediates after the predicate: signs of A and B (1: as they are), then whether A and B (of A in registers, only
// B) have k along the rows (0) or down the columns (1).
DEVICE void wgmma_shared_(float (&d)[64], uint64_t a, uint64_t b, bool accumulate) {
  asm volatile(
      "{\n.reg .pred p;\n"
      "setp.ne.b32 p, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, "
      "%8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, "
      "%24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, "
      "%40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, "
      "%56, %57, %58, %59, %60, %61, %62, %63}, "
      "%64, %65, p, 1, 1, 0, 0;\n"
      "}\n"
      : SUMS16_(0), SUMS16_(16), SUMS16_(32), SUMS16_(48)
      : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)));
}
DEVICE void wgmma_registers_(float (&d)[64], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
  asm volatile(
      "{\n.reg .pred p;\n"
      "setp.ne.b32 p, %69, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, "
      "%8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, "
      "%24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, "
      "%40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, "
      "%56, %57, %58, %59, %60, %61, %62, %63}, "
      "{%64, %65, %66, %67}, %68, p, 1, 1, 1;\n"
      "}\n"
      : SUMS16_(0), SUMS16_(16), SUMS16_(32), SUMS16_(48)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(accumulate)));
}
DEVICE void wgmma_registers_(float (&d)[32], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
  asm volatile(
      "{\n.reg .pred p;\n"
      "setp.ne.b32 p, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, "
      "%8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, "
      "%24, %25, %26, %27, %28, %29, %30, %31}, "
      "{%32, %33, %34, %35}, %36, p, 1, 1, 1;\n"
      "}\n"
      : SUMS16_(0), SUMS16_(16)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(accumulate)));
}

#undef SUMS4_
#undef SUMS16_

// d = A · B, or += where `accumulate`: A [64, 16] and B [16, columns] by descriptors, both with k along the rows.
template <int columns>
DEVICE void wgmma_shared(float (&d)[columns / 2], uint64_t a, uint64_t b, bool accumulate) {
  wgmma_shared_(d, a, b, accumulate);
}
// The same with A in registers and B [16, columns] as it stands: a row per k.
template <int columns>
DEVICE void wgmma_registers(float (&d)[columns / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
  wgmma_registers_(d, a, b, accumulate);
}

#endif

// From here on, what both worlds share.

constexpr int kWarpgroup = 128;
// Columns of bf16 in a panel, and bytes of eight of its rows: after so many the swizzle repeats.
constexpr int kPanelColumns = 64;
constexpr int kPatternBytes = 1024;

DEVICE int warpgroup() { return threadIdx.x / kWarpgroup; }

// A wgmma descriptor of a tile in the 128-byte swizzle. Addresses and offsets are in units of 16 bytes:
//
//   bits  0..13  start address: (address & 0x3ffff) >> 4
//   bits 16..29  leading offset. k along the rows: not used by this swizzle (1 by convention). A row per k: from 64
//                columns to the next 64, that is from panel to panel
//   bits 32..45  stride offset. k along the rows: from eight rows to the next eight. A row per k: from eight k to the
//                next eight. In dense panels both are 1024 bytes
//   bits 49..51  base offset: 0, since all panels start at multiples of 1024
//   bits 62..63  swizzle: 1 is 128 bytes (0 none, 2 64 bytes, 3 32 bytes)
//
// With k along the rows, the next 16 of k are 32 bytes on in the same panel: the start address says so, and the
// swizzle, a function of the whole address, still fits. With a row per k they are two patterns of eight rows on.
DEVICE uint64_t descriptor(uint32_t address, int leading_bytes) {
  const uint64_t leading = leading_bytes == 0 ? 1 : leading_bytes >> 4;
  return (static_cast<uint64_t>(address & 0x3ffff) >> 4) | leading << 16 |
         static_cast<uint64_t>(kPatternBytes >> 4) << 32 | uint64_t{1} << 62;
}
