// What happens to the sums of a matrix product before they are stored:
//
//   y = activation((sum · row scale · column scale + bias) · gate + residual)
//
// in the order and with the roundings of the CPU's `gemm::Finish`: products and sums are rounded one by one, in f32.
#pragma once

#include "activation.cuh"
#include "gpu.cuh"

// Passed by value; its twin in Rust is `linear::cuda::Epilogue`.
struct Epilogue {
  const float* bias;           // [n], or null
  const float* gates;          // [groups, n], or null
  const float* row_scales;     // [m], or null: then there are no column scales either
  const float* column_scales;  // [n]
  int m, n;
  int rows_per_gate;  // rows of a group that share a gate
  int adds;           // whether y is added to what is stored (f32 only)
  int activation;
  float slope;
};

DEVICE float finished(const Epilogue& e, float sum, int row, int column, float residual) {
  if (e.row_scales != nullptr) sum = __fmul_rn(__fmul_rn(sum, e.row_scales[row]), e.column_scales[column]);
  if (e.bias != nullptr) sum += e.bias[column];
  if (e.gates != nullptr) {
    sum = __fmul_rn(sum, e.gates[static_cast<long long>(row / e.rows_per_gate) * e.n + column]);
  }
  return activated(sum + residual, e.activation, e.slope);
}

DEVICE void store_four(float* to, const float (&v)[4]) { *reinterpret_cast<float4*>(to) = {v[0], v[1], v[2], v[3]}; }
DEVICE void store_four(bf16* to, const float (&v)[4]) {
  *reinterpret_cast<uint2*>(to) = {bf16_pair(v[0], v[1]), bf16_pair(v[2], v[3])};
}
DEVICE void load_four(const float* from, float (&v)[4]) {
  const float4 four = *reinterpret_cast<const float4*>(from);
  v[0] = four.x, v[1] = four.y, v[2] = four.z, v[3] = four.w;
}

// Stores y of row `row` and of the columns `column` .. `column` + 3 (a multiple of 4; those past n are left out).
template <class T>
DEVICE void finish_four(const Epilogue& e, T* out, const float (&sums)[4], int row, int column) {
  if (row >= e.m || column >= e.n) return;
  T* to = out + static_cast<long long>(row) * e.n + column;
  if (e.n % 4 != 0) {
    for (int i = 0; i < 4 && column + i < e.n; i++) {
      to[i] = rounded<T>(finished(e, sums[i], row, column + i, e.adds ? f32(to[i]) : 0.0f));
    }
    return;
  }
  float v[4], part[4], residual[4] = {};
  if (e.adds) {
    if constexpr (sizeof(T) == 4) load_four(to, residual);
  }
#pragma unroll
  for (int i = 0; i < 4; i++) v[i] = sums[i];
  if (e.row_scales != nullptr) {
    const float scale = e.row_scales[row];
    load_four(e.column_scales + column, part);
#pragma unroll
    for (int i = 0; i < 4; i++) v[i] = __fmul_rn(__fmul_rn(v[i], scale), part[i]);
  }
  if (e.bias != nullptr) {
    load_four(e.bias + column, part);
#pragma unroll
    for (int i = 0; i < 4; i++) v[i] += part[i];
  }
  if (e.gates != nullptr) {
    load_four(e.gates + static_cast<long long>(row / e.rows_per_gate) * e.n + column, part);
#pragma unroll
    for (int i = 0; i < 4; i++) v[i] = __fmul_rn(v[i], part[i]);
  }
#pragma unroll
  for (int i = 0; i < 4; i++) v[i] = activated(v[i] + residual[i], e.activation, e.slope);
  store_four(to, v);
}

// Stores `rows` rows (from `row` on) of `columns` columns (from `column` on, a multiple of 4) that one warp has in shared
// memory, `pitch` floats (a multiple of 4) apart. Tiles go this way because the lanes' own fragments are pieces of 8 bytes.
template <class T, int rows, int columns, int pitch>
DEVICE void finish_slab(const Epilogue& e, T* out, const float* slab, int row, int column) {
  constexpr int fours = columns / 4;
#pragma unroll 1
  for (int i = lane(); i < rows * fours; i += kWarp) {
    float sums[4];
    load_four(slab + i / fours * pitch + i % fours * 4, sums);
    finish_four(e, out, sums, row + i / fours, column + i % fours * 4);
  }
}
