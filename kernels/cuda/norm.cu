// Normalisations of rows: y = activation((x − mean) · factor · weight + bias).
//
// inputs         x [rows, d] f32 or bf16; weight, bias f32 [d] or [g, d] for g groups of successive rows; absent: 1 and
// 0 outputs        y [rows, d] f32 or bf16, not x's memory preconditions  0 < d ≤ 16384, rows < 2³¹ − 256; launch
// shapes as in row.cuh; memory starts at multiples of 16 bytes reference      norm/reference.rs; relative RMSE ≤ 1e-4
// (f32), ≤ 1e-2 (bf16: the result is rounded) bound by       memory: x is read once and kept in registers, y is written
// once; weights come from the caches benchmark      layer_norm_modulate, rms_norm, channel_norm_silu
#include "activation.cuh"
#include "row.cuh"

// y = v · factor · (weight + weight_offset) + bias for a row in registers, already centred.
template <class O, int n>
DEVICE void store_scaled(const Team& team, const float (&v)[kHeld][n], float factor, const float* weight,
                         float weight_offset, const float* bias, int activation, O* y, int d) {
  const bool whole = d % n == 0;
#pragma unroll
  for (int i = 0; i < kHeld; i++) {
    const int at = column<n>(team, i);
    if (at >= d) return;
    float w[n], b[n], out[n];
    if (weight != nullptr) load_up_to(weight + at, d - at, whole, w);
    if (bias != nullptr) load_up_to(bias + at, d - at, whole, b);
#pragma unroll
    for (int j = 0; j < n; j++) {
      float value = v[i][j] * factor;
      if (weight != nullptr) value *= w[j] + weight_offset;
      if (bias != nullptr) value += b[j];
      out[j] = activated(value, activation, 0.0f);
    }
    store_up_to(y + at, d - at, whole, out);
  }
}

// factor = 1 / √(variance + eps). `weight_offset` is 1 for a modulation's scale.
template <class I, class O>
DEVICE void layer_norm(const I* x, const float* weight, float weight_offset, const float* bias, O* y, int rows, int d,
                       int group_rows, float eps, int team_size) {
  constexpr int n = kGroupOf<I, O>;
  SHARED(float, part, [kWarp]);
  const Team team = own_team(team_size);
  const int row = team.row;
  const bool is_row = row < rows;
  float v[kHeld][n];
  load_row(team, x + static_cast<long long>(is_row ? row : 0) * d, d, v);
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kHeld; i++) {
#pragma unroll
    for (int j = 0; j < n; j++) sum += v[i][j];
  }
  const float mean = team_sum(team, sum, part) / d;
  const float factor = rsqrtf(squared_distance(team, v, d, mean, part) / d + eps);
  if (!is_row) return;
#pragma unroll
  for (int i = 0; i < kHeld; i++) {
#pragma unroll
    for (int j = 0; j < n; j++) v[i][j] -= mean;
  }
  const long long group = static_cast<long long>(row / group_rows) * d;
  store_scaled(team, v, factor, weight == nullptr ? nullptr : weight + group, weight_offset,
               bias == nullptr ? nullptr : bias + group, kIdentity, y + static_cast<long long>(row) * d, d);
}

// factor = 1 / √(mean square + eps).
template <class I, class O>
DEVICE void rms_norm(const I* x, const float* weight, O* y, int rows, int d, float eps, int team_size) {
  SHARED(float, part, [kWarp]);
  const Team team = own_team(team_size);
  const int row = team.row;
  float v[kHeld][kGroupOf<I, O>];
  load_row(team, x + static_cast<long long>(row < rows ? row : 0) * d, d, v);
  const float factor = rsqrtf(squared_distance(team, v, d, 0.0f, part) / d + eps);
  if (row < rows)
    store_scaled(team, v, factor, weight, 0.0f, nullptr, kIdentity, y + static_cast<long long>(row) * d, d);
}

// factor = √d / max(‖x‖₂, 1e-12): Wan VAE's norm over the channels of a pixel, with the activation behind it.
template <class T>
DEVICE void channel_norm(const T* x, const float* gamma, T* y, int rows, int d, int activation, int team_size) {
  SHARED(float, part, [kWarp]);
  const Team team = own_team(team_size);
  const int row = team.row;
  float v[kHeld][kGroupOf<T, T>];
  load_row(team, x + static_cast<long long>(row < rows ? row : 0) * d, d, v);
  const float length = sqrtf(squared_distance(team, v, d, 0.0f, part));
  const float factor = sqrtf(static_cast<float>(d)) / fmaxf(length, 1e-12f);
  if (row < rows)
    store_scaled(team, v, factor, gamma, 0.0f, nullptr, activation, y + static_cast<long long>(row) * d, d);
}

#define NORMS(I, O, suffix)                                                                                           \
  KERNEL(kTeamMax<I, O>)                                                                                              \
  layer_norm_##suffix(const I* x, const float* weight, float weight_offset, const float* bias, O* y, int rows, int d, \
                      int group_rows, float eps, int team) {                                                          \
    layer_norm(x, weight, weight_offset, bias, y, rows, d, group_rows, eps, team);                                    \
  }                                                                                                                   \
  EXPORT(layer_norm_##suffix)                                                                                         \
  KERNEL(kTeamMax<I, O>)                                                                                              \
  rms_norm_##suffix(const I* x, const float* weight, O* y, int rows, int d, float eps, int team) {                    \
    rms_norm(x, weight, y, rows, d, eps, team);                                                                       \
  }                                                                                                                   \
  EXPORT(rms_norm_##suffix)

NORMS(float, float, f32_f32)
NORMS(float, bf16, f32_bf16)
NORMS(bf16, float, bf16_f32)
NORMS(bf16, bf16, bf16_bf16)

#define CHANNEL_NORM(T, suffix)                                                                           \
  KERNEL(kTeamMax<T, T>)                                                                                  \
  channel_norm_silu_##suffix(const T* x, const float* gamma, T* y, int rows, int d, int silu, int team) { \
    channel_norm(x, gamma, y, rows, d, silu != 0 ? kSilu : kIdentity, team);                              \
  }                                                                                                       \
  EXPORT(channel_norm_silu_##suffix)

CHANNEL_NORM(float, f32)
CHANNEL_NORM(bf16, bf16)
