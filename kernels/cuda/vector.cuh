// Eight successive values of a tensor as f32: what one thread of a pointwise kernel moves at a time, 16 bytes of bf16 or
// twice 16 of f32.
#pragma once

#include "gpu.cuh"

constexpr int kGroup = 8;

// From and to addresses that are multiples of 16.
DEVICE void load_group(const float* from, float (&v)[kGroup]) {
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const float4 four = reinterpret_cast<const float4*>(from)[half];
    v[4 * half] = four.x, v[4 * half + 1] = four.y, v[4 * half + 2] = four.z, v[4 * half + 3] = four.w;
  }
}
DEVICE void load_group(const bf16* from, float (&v)[kGroup]) {
  const uint4 packed = *reinterpret_cast<const uint4*>(from);
  const uint32_t words[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
  for (int i = 0; i < 4; i++) {
    v[2 * i] = __uint_as_float(words[i] << 16);
    v[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
  }
}
DEVICE void store_group(float* to, const float (&v)[kGroup]) {
#pragma unroll
  for (int half = 0; half < 2; half++) {
    reinterpret_cast<float4*>(to)[half] = {v[4 * half], v[4 * half + 1], v[4 * half + 2], v[4 * half + 3]};
  }
}
DEVICE void store_group(bf16* to, const float (&v)[kGroup]) {
  *reinterpret_cast<uint4*>(to) = {bf16_pair(v[0], v[1]), bf16_pair(v[2], v[3]), bf16_pair(v[4], v[5]),
                                   bf16_pair(v[6], v[7])};
}

// The first `n` (also more than kGroup, or below 0) of a group, zeros behind them. `whole` says that addresses are multiples
// of 16 and that groups have all their values or none.
template <class T>
DEVICE void load_up_to(const T* from, long long n, bool whole, float (&v)[kGroup]) {
  if (whole && n > 0) {
    load_group(from, v);
    return;
  }
#pragma unroll
  for (int i = 0; i < kGroup; i++) v[i] = i < n ? f32(from[i]) : 0.0f;
}
template <class T>
DEVICE void store_up_to(T* to, long long n, bool whole, const float (&v)[kGroup]) {
  if (whole && n > 0) {
    store_group(to, v);
    return;
  }
#pragma unroll
  for (int i = 0; i < kGroup; i++) {
    if (i < n) to[i] = rounded<T>(v[i]);
  }
}
