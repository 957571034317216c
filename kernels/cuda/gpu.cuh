// What every kernel includes: the device's intrinsics under names that the CPU emulator gives too.
//
// A kernel is written once. nvcc compiles it for GPUs; g++ with -DZOETROPE_EMULATOR compiles it into a stand-in for the
// CUDA driver (emulator/driver.cpp) that runs each thread of a block as a fiber. So kernels use only what this file (and
// mma.cuh) names, never an intrinsic of CUDA directly.
//
//   KERNEL(256) name(const float* x, float* y, int n) { ... }    an entry point, with its threads per block at most
//   EXPORT(name)                                                   after it: makes it known to the stand-in
//   SHARED(float, part, [8]);                                      static shared memory: not set before it is written
//   DYNAMIC_SHARED(bf16, tiles);                                   the launch's dynamic shared memory, 128-byte aligned
#pragma once

#if defined(ZOETROPE_EMULATOR)
#include "emulator/emulator.h"
#else

#include <cuda_bf16.h>

#include <cstdint>

using bf16 = __nv_bfloat16;

#define KERNEL(...) extern "C" __global__ void __launch_bounds__(__VA_ARGS__)
#define EXPORT(name)
#define DEVICE __device__ __forceinline__
#define SHARED(type, name, extents) __shared__ type name extents
#define DYNAMIC_SHARED(type, name)                                  \
  extern __shared__ __align__(128) unsigned char shared_bytes_[]; \
  type* name = reinterpret_cast<type*>(shared_bytes_)

DEVICE float f32(float x) { return x; }
DEVICE float f32(bf16 x) { return __bfloat162float(x); }

// a * b, rounded before anything is added to it.
DEVICE float product(float a, float b) { return __fmul_rn(a, b); }

// Two values as bf16 in one word, `low` in its low half.
DEVICE uint32_t bf16_pair(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;\n" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

// 2^x to 2 units in the last place; results below the normal range are 0, as is that of −∞.
DEVICE float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
}

// An atomic addition whose result nobody reads.
DEVICE void add_atomically(float* at, float value) { atomicAdd(at, value); }

// Copies 16 bytes (both addresses aligned to 16) from global to shared memory in the background; zeros where `valid` is
// false, and then `from` is not read. The bytes are there for this thread after cp_async_wait, for others after a barrier.
DEVICE void cp_async16(void* shared, const void* from, bool valid = true) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(address), "l"(from), "r"(bytes) : "memory");
}
// The same for 4, 8 or 16 bytes (addresses aligned to as many), through the first-level cache: for what neighbours read again.
template <int bytes>
DEVICE void cp_async_cached(void* shared, const void* from, bool valid = true) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;\n" ::"r"(address), "l"(from), "n"(bytes),
               "r"(valid ? bytes : 0)
               : "memory");
}
// Closes a group of copies.
DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
// Waits until at most `newer` of this thread's groups are still under way.
template <int newer>
DEVICE void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(newer) : "memory");
}

#endif

// From here on, what both worlds share.

template <class T>
DEVICE T rounded(float x);
template <>
DEVICE float rounded<float>(float x) {
  return x;
}
template <>
DEVICE bf16 rounded<bf16>(float x) {
  return __float2bfloat16(x);
}

constexpr int kWarp = 32;

DEVICE int lane() { return threadIdx.x % kWarp; }
DEVICE int warp() { return threadIdx.x / kWarp; }

// The sum over a warp, in every lane.
DEVICE float warp_sum(float x) {
#pragma unroll
  for (int mask = kWarp / 2; mask > 0; mask /= 2) x += __shfl_xor_sync(~0u, x, mask);
  return x;
}

// The largest over a warp, in every lane.
DEVICE float warp_max(float x) {
#pragma unroll
  for (int mask = kWarp / 2; mask > 0; mask /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, mask));
  return x;
}

// The sum over a block of whole warps, 1024 threads at most, in every thread. `part` is shared memory for 32 floats that
// the block uses for nothing else until its next barrier.
DEVICE float block_sum(float x, float* part) {
  x = warp_sum(x);
  __syncthreads();
  if (lane() == 0) part[warp()] = x;
  __syncthreads();
  const int warps = blockDim.x / kWarp;
  return warp_sum(lane() < warps ? part[lane()] : 0.0f);
}

// The largest over a block, as `block_sum`, of values that are not negative.
DEVICE float block_max(float x, float* part) {
  x = warp_max(x);
  __syncthreads();
  if (lane() == 0) part[warp()] = x;
  __syncthreads();
  const int warps = blockDim.x / kWarp;
  return warp_max(lane() < warps ? part[lane()] : 0.0f);
}

// Eight bf16 or four f32: what one thread moves at a time.
template <class T>
struct alignas(16) Pack {
  static constexpr int kCount = 16 / sizeof(T);
  T at[kCount];
};
