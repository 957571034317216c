// Four or eight successive values of a tensor as f32: what one thread of a pointwise kernel moves at a time. Eight bf16 or
// four f32 are one access of 16 bytes; four bf16 beside four f32 one of 8, so that neighbours touch neighbouring bytes.
#pragma once

#include "gpu.cuh"

constexpr int kGroup = 8;

// Values in a group of a kernel that reads I and writes O.
template <class I, class O>
constexpr int kGroupOf = sizeof(I) == 2 && sizeof(O) == 2 ? kGroup : 4;

// From and to addresses that are multiples of the group's bytes, 16 at most.
template <int n>
DEVICE void load_group(const float* from, float (&v)[n]) {
#pragma unroll
  for (int at = 0; at < n; at += 4) {
    const float4 four = *reinterpret_cast<const float4*>(from + at);
    v[at] = four.x, v[at + 1] = four.y, v[at + 2] = four.z, v[at + 3] = four.w;
  }
}
DEVICE void unpack(uint32_t word, float& low, float& high) {
  low = __uint_as_float(word << 16);
  high = __uint_as_float(word & 0xffff0000u);
}
DEVICE void load_group(const bf16* from, float (&v)[8]) {
  const uint4 words = *reinterpret_cast<const uint4*>(from);
  unpack(words.x, v[0], v[1]), unpack(words.y, v[2], v[3]), unpack(words.z, v[4], v[5]), unpack(words.w, v[6], v[7]);
}
DEVICE void load_group(const bf16* from, float (&v)[4]) {
  const uint2 words = *reinterpret_cast<const uint2*>(from);
  unpack(words.x, v[0], v[1]), unpack(words.y, v[2], v[3]);
}
template <int n>
DEVICE void store_group(float* to, const float (&v)[n]) {
#pragma unroll
  for (int at = 0; at < n; at += 4) *reinterpret_cast<float4*>(to + at) = {v[at], v[at + 1], v[at + 2], v[at + 3]};
}
DEVICE void store_group(bf16* to, const float (&v)[8]) {
  *reinterpret_cast<uint4*>(to) = {bf16_pair(v[0], v[1]), bf16_pair(v[2], v[3]), bf16_pair(v[4], v[5]),
                                   bf16_pair(v[6], v[7])};
}
DEVICE void store_group(bf16* to, const float (&v)[4]) {
  *reinterpret_cast<uint2*>(to) = {bf16_pair(v[0], v[1]), bf16_pair(v[2], v[3])};
}

// The first `count` values (all of them when it is more, none below 1), zeros behind them. `whole` says that addresses
// are multiples of the group's bytes and that a group has all its values or none.
template <class T, int n>
DEVICE void load_up_to(const T* from, long long count, bool whole, float (&v)[n]) {
  if (whole && count > 0) {
    load_group(from, v);
    return;
  }
#pragma unroll
  for (int i = 0; i < n; i++) v[i] = i < count ? f32(from[i]) : 0.0f;
}
template <class T, int n>
DEVICE void store_up_to(T* to, long long count, bool whole, const float (&v)[n]) {
  if (whole && count > 0) {
    store_group(to, v);
    return;
  }
#pragma unroll
  for (int i = 0; i < n; i++) {
    if (i < count) to[i] = rounded<T>(v[i]);
  }
}
