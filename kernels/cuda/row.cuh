// Teams of threads that hold a row in registers: each thread kHeld groups of it, the team's groups side by side.
//
// A launch's `team_log2` says how large teams are: 2^team_log2 ≤ 32 threads, then a block has several rows; or below 0 all
// threads of the block, whole warps of them. Rows have kRowMax values at most.
#pragma once

#include "vector.cuh"

// 16 or 32 values a thread: enough bytes in flight to hide the memory's latency, few enough registers for many blocks.
constexpr int kHeld = 4;
constexpr int kRowMax = 16384;

// Threads of a block at most: what a row of kRowMax needs.
template <class I, class O>
constexpr int kTeamMax = kRowMax / kHeld / kGroupOf<I, O>;

struct Team {
  int size;
  // This thread's place in it.
  int at;
  // Its row, which may be past the last one: all threads of a block take part in sums.
  int row;
};
DEVICE Team own_team(int team_log2) {
  const int thread = threadIdx.x, block = blockIdx.x;
  if (team_log2 < 0) return {static_cast<int>(blockDim.x), thread, block};
  const int size = 1 << team_log2;
  return {size, thread & (size - 1), block * static_cast<int>(blockDim.x >> team_log2) + (thread >> team_log2)};
}

// The sum over a team, in each of its threads. All threads of the block call it together, once for each `part`, which
// is shared memory for kWarp floats.
DEVICE float team_sum(const Team& team, float x, float* part) {
  if (team.size <= kWarp) {
    for (int mask = team.size / 2; mask > 0; mask /= 2) x += __shfl_xor_sync(~0u, x, mask);
    return x;
  }
  x = warp_sum(x);
  if (lane() == 0) part[warp()] = x;
  __syncthreads();
  float sum = 0.0f;
  for (int w = 0; w < team.size / kWarp; w++) sum += part[w];
  return sum;
}

// The column at which this thread's group `i` starts.
template <int n>
DEVICE int column(const Team& team, int i) {
  return (i * team.size + team.at) * n;
}

// A row of `d` values; zeros past its end.
template <class T, int n>
DEVICE void load_row(const Team& team, const T* row, int d, float (&v)[kHeld][n]) {
  const bool whole = d % n == 0;
#pragma unroll
  for (int i = 0; i < kHeld; i++) load_up_to(row + column<n>(team, i), d - column<n>(team, i), whole, v[i]);
}

// Σ v over the row.
template <int n>
DEVICE float row_sum(const Team& team, const float (&v)[kHeld][n], float* part) {
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kHeld; i++) {
#pragma unroll
    for (int j = 0; j < n; j++) sum += v[i][j];
  }
  return team_sum(team, sum, part);
}

// Σ v² over the row.
template <int n>
DEVICE float row_square(const Team& team, const float (&v)[kHeld][n], float* part) {
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kHeld; i++) {
#pragma unroll
    for (int j = 0; j < n; j++) sum = fmaf(v[i][j], v[i][j], sum);
  }
  return team_sum(team, sum, part);
}

// Takes `centre` off the row's values; past its end stay zeros.
template <int n>
DEVICE void shift_row(const Team& team, float (&v)[kHeld][n], int d, float centre) {
#pragma unroll
  for (int i = 0; i < kHeld; i++) {
    const int left = d - column<n>(team, i);
#pragma unroll
    for (int j = 0; j < n; j++) {
      if (left >= n || j < left) v[i][j] -= centre;
    }
  }
}
