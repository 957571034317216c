// Rotation of pairs: (a, b) becomes (a·cos − b·sin, a·sin + b·cos), on its own or behind an RMSNorm of the whole row.
//
// inputs         x [n·t, heads·hd] f32 or bf16 of n clips that follow each other; weight f32 [heads·hd];
//                angles f32 [t, hd]: cosine and sine of each pair in turn
// outputs        y [n·t, heads·hd] f32 or bf16, not x's memory
// preconditions  hd even, 0 < heads·hd ≤ 16384, rows < 2³¹ − 256; launch shapes as in row.cuh; memory starts at
//                multiples of 16 bytes
// reference      rope/reference.rs, behind norm/reference.rs; relative RMSE ≤ 1e-4 (f32), ≤ 1e-2 (bf16: the result is
//                rounded, nothing in between is)
// bound by       memory: x is read once and kept in registers, y is written once; the heads share a token's angles,
//                4·t·hd bytes
// benchmark      rope, rms_norm_rope
#include "row.cuh"

// Turns the group of the row that starts at column `at` of its head; no pair lies across two groups.
template <int n>
DEVICE void rotate(float (&v)[n], int at, const float* angles, int head_dim) {
  float turn[n];
  if (head_dim % n == 0) {
    load_group(angles + at, turn);
  } else {
#pragma unroll
    for (int j = 0; j < n; j += 2) {
      const float* pair = angles + (at + j) % head_dim;
      turn[j] = pair[0], turn[j + 1] = pair[1];
    }
  }
#pragma unroll
  for (int j = 0; j < n; j += 2) {
    const float a = v[j], b = v[j + 1], cosine = turn[j], sine = turn[j + 1];
    v[j] = fmaf(a, cosine, -(b * sine));
    v[j + 1] = fmaf(b, cosine, a * sine);
  }
}

// Rotates rows of x, which are normed first where there is a weight.
template <class I, class O, bool normed>
DEVICE void rotate_rows(const I* x, const float* weight, float eps, const float* angles, O* y, int rows, int d,
                        int head_dim, int tokens, int team_log2) {
  constexpr int n = kGroupOf<I, O>;
  SHARED(float, part, [kWarp]);
  const Team team = own_team(team_log2);
  const bool is_row = team.row < rows, whole = d % n == 0;
  float v[kHeld][n];
  load_row(team, x + static_cast<long long>(is_row ? team.row : 0) * d, d, v);
  const float factor = normed ? rsqrtf(__fdividef(row_square(team, v, part), d) + eps) : 1.0f;
  if (!is_row) return;
  const int token = team.row < tokens ? team.row : team.row % tokens;
  angles += static_cast<long long>(token) * head_dim;
  y += static_cast<long long>(team.row) * d;
  // Column of the head at which a group starts: one division for all groups.
  int in_head = column<n>(team, 0) % head_dim;
  const int step = team.size * n % head_dim;
#pragma unroll
  for (int i = 0; i < kHeld; i++) {
    const int at = column<n>(team, i);
    if (at >= d) return;
    if (normed) {
      float w[n];
      load_up_to(weight + at, d - at, whole, w);
#pragma unroll
      for (int j = 0; j < n; j++) v[i][j] = v[i][j] * factor * w[j];
    }
    rotate(v[i], in_head, angles, head_dim);
    store_up_to(y + at, d - at, whole, v[i]);
    in_head += step;
    if (in_head >= head_dim) in_head -= head_dim;
  }
}

#define ROPE(T, suffix)                                                                                            \
  KERNEL(kTeamMax<T, T>)                                                                                           \
  rope_##suffix(const T* x, const float* angles, T* y, int rows, int d, int head_dim, int tokens, int team_log2) { \
    rotate_rows<T, T, false>(x, nullptr, 0.0f, angles, y, rows, d, head_dim, tokens, team_log2);                   \
  }                                                                                                                \
  EXPORT(rope_##suffix)

ROPE(float, f32)
ROPE(bf16, bf16)

#define NORMED_ROPE(I, O, suffix)                                                                                \
  KERNEL(kTeamMax<I, O>)                                                                                         \
  rms_norm_rope_##suffix(const I* x, const float* weight, float eps, const float* angles, O* y, int rows, int d, \
                         int head_dim, int tokens, int team_log2) {                                              \
    rotate_rows<I, O, true>(x, weight, eps, angles, y, rows, d, head_dim, tokens, team_log2);                    \
  }                                                                                                              \
  EXPORT(rms_norm_rope_##suffix)

NORMED_ROPE(float, float, f32_f32)
NORMED_ROPE(float, bf16, f32_bf16)
NORMED_ROPE(bf16, float, bf16_f32)
NORMED_ROPE(bf16, bf16, bf16_bf16)
