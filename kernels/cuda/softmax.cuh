// The running softmax of attention, on scores as tensor cores leave them in registers.
//
// A thread holds two rows of a tile of scores (its lane is 4g + t): s[4j + i] is of row g + 8·(i / 2) and column
// 8j + 2t + i % 2, as mma.sync's and wgmma's sums are. The four lanes of a quad hold a row together.
#pragma once

#include "gpu.cuh"

// 1 / ln 2: exponents of 2 are cheaper than of e.
constexpr float kLog2E = 1.4426950408889634f;

DEVICE float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
  return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}
DEVICE float quad_sum(float x) {
  x += __shfl_xor_sync(~0u, x, 1);
  return x + __shfl_xor_sync(~0u, x, 2);
}

// What a thread remembers of its two rows between tiles of keys.
struct Running {
  // Of the scores, over the whole row; the total is of this lane's columns alone.
  float largest[2] = {-INFINITY, -INFINITY};
  float total[2] = {0.0f, 0.0f};
};

// Scores of columns at and after `visible`, counted from the tile's first, become −∞.
template <int n>
DEVICE void mask_columns(float (&s)[n], int visible) {
#pragma unroll
  for (int i = 0; i < n; i++) {
    if (i / 4 * 8 + lane() % 4 * 2 + i % 2 >= visible) s[i] = -INFINITY;
  }
}

// Turns a tile's scores into weights 2^((score − largest so far)·unit), `unit` > 0. What was summed for a row before
// has to be multiplied with its factor.
template <int n>
DEVICE void soften(Running& running, float (&s)[n], float unit, float (&factor)[2]) {
#pragma unroll
  for (int row = 0; row < 2; row++) {
    float largest = running.largest[row];
#pragma unroll
    for (int i = 2 * row; i < n; i += 4) largest = fmaxf(largest, fmaxf(s[i], s[i + 1]));
    largest = quad_max(largest);
    // A row of −∞ so far keeps a finite reference, so that no ∞ − ∞ arises.
    const float shift = largest == -INFINITY ? 0.0f : largest * unit;
    factor[row] = exp2_fast(fmaf(running.largest[row], unit, -shift));
    float even = 0.0f, odd = 0.0f;
#pragma unroll
    for (int i = 2 * row; i < n; i += 4) {
      s[i] = exp2_fast(fmaf(s[i], unit, -shift));
      s[i + 1] = exp2_fast(fmaf(s[i + 1], unit, -shift));
      even += s[i];
      odd += s[i + 1];
    }
    running.largest[row] = largest;
    running.total[row] = fmaf(running.total[row], factor[row], even + odd);
  }
}

// Multiplies the two rows of sums with their factors.
template <int n>
DEVICE void rescale(float (&sums)[n], const float (&factor)[2]) {
#pragma unroll
  for (int i = 0; i < n; i++) sums[i] *= factor[i / 2 % 2];
}

// The weights of 16 columns as the left operand of a product with the values.
template <int n>
DEVICE void left_operand(uint32_t (&a)[4], const float (&s)[n], int step) {
#pragma unroll
  for (int i = 0; i < 4; i++) a[i] = bf16_pair(s[8 * step + 2 * i], s[8 * step + 2 * i + 1]);
}
