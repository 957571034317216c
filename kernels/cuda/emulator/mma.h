// What mma.cuh offers, on the CPU: lanes show each other their fragments through their slots.
#pragma once

#include "emulator.h"

namespace emulator {

template <int matrices, bool transposed>
void load_matrices(uint32_t* to, const void* row) {
  if (self->linear % 32 < matrices * 8 && reinterpret_cast<uintptr_t>(row) % 16 != 0) {
    fail("ldmatrix of an address that is not a multiple of 16");
  }
  std::memcpy(block->slots[self->linear].bytes, &row, sizeof row);
  wait_as(State::kAtWarpBarrier);
  const int lane = self->linear % 32;
  for (int m = 0; m < matrices; m++) {
    const auto at = [m](int r, int c) {
      const char* start;
      std::memcpy(&start, warp_slots()[m * 8 + r].bytes, sizeof start);
      uint16_t value;
      std::memcpy(&value, start + 2 * c, 2);
      return static_cast<uint32_t>(value);
    };
    const int i = lane / 4, j = lane % 4 * 2;
    to[m] = transposed ? at(j, i) | at(j + 1, i) << 16 : at(i, j) | at(i, j + 1) << 16;
  }
  wait_as(State::kAtWarpBarrier);
}

// d += A · B, each word of a fragment holding 4 / sizeof(T) values; `wide` turns one into what is multiplied.
template <class T, class D, class Wide>
void multiply(D (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Wide wide) {
  struct Fragments {
    uint32_t a[4], b[2];
  } mine = {{a[0], a[1], a[2], a[3]}, {b0, b1}};
  std::memcpy(block->slots[self->linear].bytes, &mine, sizeof mine);
  wait_as(State::kAtWarpBarrier);
  Fragments all[32];
  for (int l = 0; l < 32; l++) std::memcpy(&all[l], warp_slots()[l].bytes, sizeof mine);
  constexpr int per_word = 4 / sizeof(T);
  const auto value = [&wide](uint32_t word, int i) {
    T narrow;
    std::memcpy(&narrow, reinterpret_cast<const char*>(&word) + i * sizeof(T), sizeof(T));
    return wide(narrow);
  };
  const int lane = self->linear % 32;
  for (int i = 0; i < 4; i++) {
    const int row = lane / 4, high = i / 2, column = lane % 4 * 2 + i % 2;
    for (int half = 0; half < 2; half++) {
      for (int t = 0; t < 4; t++) {
        const uint32_t from_a = all[row * 4 + t].a[half * 2 + high], from_b = all[column * 4 + t].b[half];
        for (int e = 0; e < per_word; e++) d[i] += value(from_a, e) * value(from_b, e);
      }
    }
  }
  wait_as(State::kAtWarpBarrier);
}

// e4m3: sign, 4 bits of exponent (bias 7), 3 of fraction; no infinities, all ones are NaN.
inline float f32_of_e4m3(uint8_t bits) {
  static const std::array<float, 256> values = [] {
    std::array<float, 256> all;
    for (int i = 0; i < 256; i++) {
      const int exponent = i >> 3 & 15, fraction = i & 7;
      const float size = exponent == 0 ? std::ldexp(float(fraction), -9) : std::ldexp(float(8 + fraction), exponent - 10);
      all[i] = (i & 0x7f) == 0x7f ? NAN : i & 0x80 ? -size : size;
    }
    return all;
  }();
  return values[bits];
}

inline uint8_t e4m3_of_f32(float x) {
  const uint8_t sign = std::signbit(x) ? 0x80 : 0;
  if (x != x) return sign | 0x7f;
  const float size = std::min(std::fabs(x), 448.0f);
  int exponent;
  std::frexp(size, &exponent);
  // Values from 2^-6 on have 3 bits of fraction below their first one, smaller ones are multiples of 2^-9.
  const int step = std::max(exponent - 4, -9);
  const int count = static_cast<int>(std::nearbyint(std::ldexp(size, -step)));
  return sign | static_cast<uint8_t>(count + (step + 9) * 8);
}

}  // namespace emulator

inline uint32_t e4m3_pair(float low, float high) {
  return emulator::e4m3_of_f32(low) | static_cast<uint32_t>(emulator::e4m3_of_f32(high)) << 8;
}

inline void ldmatrix(uint32_t (&to)[1], const void* row) { emulator::load_matrices<1, false>(to, row); }
inline void ldmatrix(uint32_t (&to)[2], const void* row) { emulator::load_matrices<2, false>(to, row); }
inline void ldmatrix(uint32_t (&to)[4], const void* row) { emulator::load_matrices<4, false>(to, row); }
inline void ldmatrix_transposed(uint32_t (&to)[1], const void* row) { emulator::load_matrices<1, true>(to, row); }
inline void ldmatrix_transposed(uint32_t (&to)[2], const void* row) { emulator::load_matrices<2, true>(to, row); }
inline void ldmatrix_transposed(uint32_t (&to)[4], const void* row) { emulator::load_matrices<4, true>(to, row); }

inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  emulator::multiply<bf16>(d, a, b0, b1, [](bf16 x) { return f32(x); });
}
inline void mma_int8(int (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  emulator::multiply<int8_t>(d, a, b0, b1, [](int8_t x) { return static_cast<int>(x); });
}
inline void mma_e4m3(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  emulator::multiply<uint8_t>(d, a, b0, b1, emulator::f32_of_e4m3);
}
