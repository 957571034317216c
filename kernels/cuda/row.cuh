// Teams of threads that hold a row in registers: each thread kHeld groups of it, the team's groups side by side.
//
// A launch's `team` is a power of two of threads within a warp, then a block has several rows; or it is all threads of
// the block, whole warps of them. Rows have kRowMax values at most.
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
DEVICE Team own_team(int size) {
  if (size > kWarp) return {size, static_cast<int>(threadIdx.x), static_cast<int>(blockIdx.x)};
  const int thread = threadIdx.x;
  return {size, thread % size, static_cast<int>(blockIdx.x * (blockDim.x / size)) + thread / size};
}

// The sum over a team, in each of its threads. All threads of the block call it together.
DEVICE float team_sum(const Team& team, float x, float* part) {
  if (team.size > kWarp) return block_sum(x, part);
  for (int mask = team.size / 2; mask > 0; mask /= 2) x += __shfl_xor_sync(~0u, x, mask);
  return x;
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

// Σ (v − centre)² over the row.
template <int n>
DEVICE float squared_distance(const Team& team, const float (&v)[kHeld][n], int d, float centre, float* part) {
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kHeld; i++) {
#pragma unroll
    for (int j = 0; j < n; j++) {
      const float distance = column<n>(team, i) + j < d ? v[i][j] - centre : 0.0f;
      sum = fmaf(distance, distance, sum);
    }
  }
  return team_sum(team, sum, part);
}
