// Normalisations of rows: y = activation((x − mean) · factor · weight + bias).
//
// inputs         x [rows, d] f32 or bf16; weight, bias f32 [d] or [g, d] for g groups of successive rows; absent: 1 and 0
// outputs        y [rows, d] f32 or bf16, not x's memory
// preconditions  0 < d ≤ 16384, rows < 2³¹ − 256; launch shapes as in row.cuh; memory starts at multiples of 16 bytes
// reference      norm/reference.rs; relative RMSE ≤ 1e-4 (f32), ≤ 1e-2 (bf16: the result is rounded)
// bound by       memory: x is read once and kept in registers, y is written once; weights come from the caches
// benchmark      layer_norm_modulate, rms_norm, channel_norm_silu
#include "activation.cuh"
#include "row.cuh"

// What multiplies a value, and what is added to the product.
struct Affine {
  const float* weight;
  // Added to each weight.
  float weight_offset;
  const float* bias;
};

// y = activation(v · factor · (weight + weight_offset) + bias) for a row in registers, already centred. Weight and bias may
// be null where they are `optional`; otherwise there is a weight alone.
template <bool optional, class O, int n>
DEVICE void store_scaled(const Team& team, const float (&v)[kHeld][n], float factor, const Affine& affine,
                         int activation, O* y, int d) {
  const bool whole = d % n == 0;
#pragma unroll
  for (int i = 0; i < kHeld; i++) {
    const int at = column<n>(team, i);
    if (at >= d) return;
    float w[n], b[n], out[n];
#pragma unroll
    for (int j = 0; j < n; j++) w[j] = 1.0f, b[j] = 0.0f;
    if (!optional || affine.weight != nullptr) load_up_to(affine.weight + at, d - at, whole, w);
    if (optional && affine.bias != nullptr) load_up_to(affine.bias + at, d - at, whole, b);
#pragma unroll
    for (int j = 0; j < n; j++) {
      const float scaled = v[i][j] * factor;
      out[j] = activated(optional ? fmaf(scaled, w[j] + affine.weight_offset, b[j]) : scaled * w[j], activation, 0.0f);
    }
    store_up_to(y + at, d - at, whole, out);
  }
}

// factor = 1 / √(variance + eps). `weight_offset` is 1 for a modulation's scale.
template <class I, class O>
DEVICE void layer_norm(const I* x, Affine affine, O* y, int rows, int d, int group_rows, float eps, int team_log2) {
  constexpr int n = kGroupOf<I, O>;
  SHARED(float, part, [2][kWarp]);
  const Team team = own_team(team_log2);
  const bool is_row = team.row < rows;
  float v[kHeld][n];
  load_row(team, x + static_cast<long long>(is_row ? team.row : 0) * d, d, v);
  shift_row(team, v, d, __fdividef(row_sum(team, v, part[0]), d));
  const float factor = rsqrtf(__fdividef(row_square(team, v, part[1]), d) + eps);
  if (!is_row) return;
  if (group_rows < rows) {
    const long long group = static_cast<long long>(team.row / group_rows) * d;
    if (affine.weight != nullptr) affine.weight += group;
    if (affine.bias != nullptr) affine.bias += group;
  }
  store_scaled<true>(team, v, factor, affine, kIdentity, y + static_cast<long long>(team.row) * d, d);
}

// factor = 1 / √(mean square + eps).
template <class I, class O>
DEVICE void rms_norm(const I* x, const float* weight, O* y, int rows, int d, float eps, int team_log2) {
  SHARED(float, part, [kWarp]);
  const Team team = own_team(team_log2);
  const bool is_row = team.row < rows;
  float v[kHeld][kGroupOf<I, O>];
  load_row(team, x + static_cast<long long>(is_row ? team.row : 0) * d, d, v);
  const float factor = rsqrtf(__fdividef(row_square(team, v, part), d) + eps);
  if (!is_row) return;
  store_scaled<false>(team, v, factor, {weight, 0.0f, nullptr}, kIdentity, y + static_cast<long long>(team.row) * d, d);
}

// factor = √d / max(‖x‖₂, 1e-12): Wan VAE's norm over the channels of a pixel, with the activation behind it.
template <class T>
DEVICE void channel_norm(const T* x, const float* gamma, T* y, int rows, int d, int activation, int team_log2) {
  SHARED(float, part, [kWarp]);
  const Team team = own_team(team_log2);
  const bool is_row = team.row < rows;
  float v[kHeld][kGroupOf<T, T>];
  load_row(team, x + static_cast<long long>(is_row ? team.row : 0) * d, d, v);
  const float length = sqrtf(row_square(team, v, part));
  const float factor = __fdividef(sqrtf(static_cast<float>(d)), fmaxf(length, 1e-12f));
  if (!is_row) return;
  store_scaled<false>(team, v, factor, {gamma, 0.0f, nullptr}, activation, y + static_cast<long long>(team.row) * d, d);
}

#define NORMS(I, O, suffix)                                                                                           \
  KERNEL(kTeamMax<I, O>)                                                                                              \
  layer_norm_##suffix(const I* x, const float* weight, float weight_offset, const float* bias, O* y, int rows, int d, \
                      int group_rows, float eps, int team_log2) {                                                     \
    layer_norm(x, {weight, weight_offset, bias}, y, rows, d, group_rows, eps, team_log2);                             \
  }                                                                                                                   \
  EXPORT(layer_norm_##suffix)                                                                                         \
  KERNEL(kTeamMax<I, O>)                                                                                              \
  rms_norm_##suffix(const I* x, const float* weight, O* y, int rows, int d, float eps, int team_log2) {               \
    rms_norm(x, weight, y, rows, d, eps, team_log2);                                                                  \
  }                                                                                                                   \
  EXPORT(rms_norm_##suffix)

NORMS(float, float, f32_f32)
NORMS(float, bf16, f32_bf16)
NORMS(bf16, float, bf16_f32)
NORMS(bf16, bf16, bf16_bf16)

#define CHANNEL_NORM(T, suffix)                                                                                \
  KERNEL(kTeamMax<T, T>)                                                                                       \
  channel_norm_silu_##suffix(const T* x, const float* gamma, T* y, int rows, int d, int silu, int team_log2) { \
    channel_norm(x, gamma, y, rows, d, silu != 0 ? kSilu : kIdentity, team_log2);                              \
  }                                                                                                            \
  EXPORT(channel_norm_silu_##suffix)

CHANNEL_NORM(float, f32)
CHANNEL_NORM(bf16, bf16)
