// Attention: softmax(q·kᵀ·scale + bias)·v per head.
//
// inputs         q [queries, heads·d], k, v [keys, heads·d] bf16 or f32, heads side by side; bias f32 [heads, queries,
//                keys] or null
// outputs        out [queries, heads·d] of the same dtype, not aliased
// preconditions  1 ≤ visible ≤ keys; heads ≤ 65535. attention_mma_W: d ≤ W, grid (queries / kRows<W> rounded up,
//                heads), 128 threads, kSharedBytes<W> of dynamic shared memory; without "_biased" the scale is above 0
//                and there is no bias. attention_fma: any d, grid (queries / 64 rounded up, heads, d / 128 rounded up),
//                256 threads
// reference      attention::reference; relative RMSE ≤ 1e-2 (bf16: weights and result are rounded), ≤ 1e-4 (f32)
// bound by       attention_mma: the tensor cores, 4·queries·visible·heads·d FLOP, and the exponentials,
//                queries·visible·heads of 16 a cycle and multiprocessor; attention_fma: f32 arithmetic, the same FLOP
// benchmark      attention
//
// Nothing of size queries × keys is ever stored: scores of a tile of keys become weights at once, relative to the
// largest score so far, and what was summed under a smaller one is rescaled (Dao 2023, arXiv:2307.08691).
#include "mma.cuh"
#include "softmax.cuh"

// Arguments of every kernel here.
struct Attention {
  int queries, keys, visible, heads, head_dim;
  float scale;
};

// Where row `row` of a head begins in a tensor of `heads` heads side by side.
DEVICE long long head_row(const Attention& a, int row) {
  return (static_cast<long long>(row) * a.heads + blockIdx.y) * a.head_dim;
}
DEVICE const float* bias_row(const Attention& a, const float* bias, int query) {
  return bias + (static_cast<long long>(blockIdx.y) * a.queries + query) * a.keys;
}

// ---- bf16 on tensor cores ----
//
// Each of four warps has 16 or 32 queries. Tiles of keys and of values follow each other through two buffers: while one
// is used, the copies into the other are under way. Tiles go from the last, which may be partly masked, to the first.

constexpr int kMmaThreads = 128;

template <int width>
struct Tiling {
  // Tiles of 16 queries of a warp: as many as the registers hold with sums [16, width] each.
  static constexpr int kTiles = width <= 128 ? 2 : 1;
  static constexpr int kRows = kMmaThreads / kWarp * 16 * kTiles;
  static constexpr int kKeys = width <= 64 ? 64 : 32;
  // Chunks of 8 columns of a row in shared memory: a power of two for the swizzle.
  static constexpr int kChunks = width <= 32 ? 4 : width <= 64 ? 8 : width <= 128 ? 16 : 32;
  static constexpr int kSharedBytes = (kRows + 2 * kKeys) * kChunks * 16;
};

// The four sums that one mma adds to.
template <int n>
DEVICE float (&sums_of(float (&all)[n], int j))[4] {
  return *reinterpret_cast<float(*)[4]>(&all[4 * j]);
}

// Starts to copy rows of a head into a tile, zeros beyond `end` and beyond the head's columns.
template <int width, int rows>
DEVICE void load_rows(unsigned char* tile, const bf16* __restrict__ from, const Attention& a, int first, int end) {
  constexpr int kChunks = Tiling<width>::kChunks;
  for (int i = threadIdx.x; i < rows * (width / 8); i += kMmaThreads) {
    const int row = i / (width / 8), chunk = i % (width / 8);
    const bool inside = first + row < end;
    const bf16* at = from + head_row(a, inside ? first + row : 0) + chunk * 8;
    auto* to = reinterpret_cast<bf16*>(tile + swizzled<kChunks>(row, chunk));
    if (a.head_dim % 8 == 0) {
      cp_async16(to, at, inside && chunk * 8 < a.head_dim);
      continue;
    }
#pragma unroll
    for (int j = 0; j < 8; j++) to[j] = inside && chunk * 8 + j < a.head_dim ? at[j] : rounded<bf16>(0.0f);
  }
}

// Scores of a warp's queries against a tile of keys.
template <int width>
DEVICE void score(float (&s)[Tiling<width>::kTiles][Tiling<width>::kKeys / 2], const unsigned char* q,
                  const unsigned char* k) {
  using T = Tiling<width>;
#pragma unroll
  for (int tile = 0; tile < T::kTiles; tile++) {
#pragma unroll
    for (int i = 0; i < T::kKeys / 2; i++) s[tile][i] = 0.0f;
  }
#pragma unroll
  for (int step = 0; step < width / 16; step++) {
    uint32_t left[T::kTiles][4];
#pragma unroll
    for (int tile = 0; tile < T::kTiles; tile++) {
      load_a<T::kChunks>(left[tile], q, (warp() * T::kTiles + tile) * 16, step * 2);
    }
#pragma unroll
    for (int pair = 0; pair < T::kKeys / 16; pair++) {
      uint32_t right[4];
      load_b<T::kChunks>(right, k, pair * 16, step * 2);
#pragma unroll
      for (int tile = 0; tile < T::kTiles; tile++) {
        mma_bf16(sums_of(s[tile], 2 * pair), left[tile], right[0], right[1]);
        mma_bf16(sums_of(s[tile], 2 * pair + 1), left[tile], right[2], right[3]);
      }
    }
  }
}

// Adds the values of a tile under their weights.
template <int width>
DEVICE void add_values(float (&sums)[Tiling<width>::kTiles][width / 2],
                       const float (&weights)[Tiling<width>::kTiles][Tiling<width>::kKeys / 2], const unsigned char* v) {
  using T = Tiling<width>;
#pragma unroll
  for (int step = 0; step < T::kKeys / 16; step++) {
    uint32_t left[T::kTiles][4];
#pragma unroll
    for (int tile = 0; tile < T::kTiles; tile++) left_operand(left[tile], weights[tile], step);
#pragma unroll
    for (int pair = 0; pair < width / 16; pair++) {
      uint32_t right[4];
      load_b_transposed<T::kChunks>(right, v, step * 16, pair * 2);
#pragma unroll
      for (int tile = 0; tile < T::kTiles; tile++) {
        mma_bf16(sums_of(sums[tile], 2 * pair), left[tile], right[0], right[1]);
        mma_bf16(sums_of(sums[tile], 2 * pair + 1), left[tile], right[2], right[3]);
      }
    }
  }
}

// Scales the scores of 16 queries from `query` on and adds their bias, in units of ln 2.
template <int n>
DEVICE void add_bias(float (&s)[n], const Attention& a, const float* __restrict__ bias, int query, int first_key) {
#pragma unroll
  for (int i = 0; i < n; i++) {
    const int row = query + lane() / 4 + i / 2 % 2 * 8, key = first_key + i / 4 * 8 + lane() % 4 * 2 + i % 2;
    s[i] *= a.scale * kLog2E;
    if (bias != nullptr && row < a.queries && key < a.visible) s[i] = fmaf(bias_row(a, bias, row)[key], kLog2E, s[i]);
  }
}

// Divides the sums of 16 queries from `query` on by their totals and writes them.
template <int width>
DEVICE void write_rows(bf16* __restrict__ out, const float (&sums)[width / 2], const Running& running, const Attention& a,
                       int query) {
#pragma unroll
  for (int row = 0; row < 2; row++) {
    const float inverse = 1.0f / quad_sum(running.total[row]);
    const int at = query + lane() / 4 + 8 * row;
    if (at >= a.queries) continue;
    bf16* to = out + head_row(a, at);
#pragma unroll
    for (int j = 0; j < width / 8; j++) {
      const int column = j * 8 + lane() % 4 * 2;
      const float low = sums[4 * j + 2 * row] * inverse, high = sums[4 * j + 2 * row + 1] * inverse;
      if (a.head_dim % 2 == 0) {
        if (column < a.head_dim) *reinterpret_cast<uint32_t*>(to + column) = bf16_pair(low, high);
      } else {
        if (column < a.head_dim) to[column] = rounded<bf16>(low);
        if (column + 1 < a.head_dim) to[column + 1] = rounded<bf16>(high);
      }
    }
  }
}

template <int width, bool biased>
DEVICE void attend(const bf16* __restrict__ q, const bf16* __restrict__ k, const bf16* __restrict__ v,
                   const float* __restrict__ bias, bf16* __restrict__ out, const Attention& a) {
  using T = Tiling<width>;
  DYNAMIC_SHARED(unsigned char, q_tile);
  unsigned char* k_tile = q_tile + T::kRows * T::kChunks * 16;
  unsigned char* v_tile = k_tile + T::kKeys * T::kChunks * 16;
  const int first_query = blockIdx.x * T::kRows, tiles = (a.visible + T::kKeys - 1) / T::kKeys;
  const float unit = biased ? 1.0f : a.scale * kLog2E;
  float scores[T::kTiles][T::kKeys / 2], sums[T::kTiles][width / 2];
  Running running[T::kTiles];
#pragma unroll
  for (int tile = 0; tile < T::kTiles; tile++) {
#pragma unroll
    for (int i = 0; i < width / 2; i++) sums[tile][i] = 0.0f;
  }
  load_rows<width, T::kRows>(q_tile, q, a, first_query, a.queries);
  load_rows<width, T::kKeys>(k_tile, k, a, (tiles - 1) * T::kKeys, a.visible);
  cp_async_commit();
  for (int at = tiles - 1; at >= 0; at--) {
    const int first_key = at * T::kKeys;
    cp_async_wait<0>();
    __syncthreads();
    load_rows<width, T::kKeys>(v_tile, v, a, first_key, a.visible);
    cp_async_commit();
    score<width>(scores, q_tile, k_tile);
#pragma unroll
    for (int tile = 0; tile < T::kTiles; tile++) {
      if constexpr (biased) {
        add_bias(scores[tile], a, bias, first_query + (warp() * T::kTiles + tile) * 16, first_key);
      }
      if (first_key + T::kKeys > a.visible) mask_columns(scores[tile], a.visible - first_key);
      float factor[2];
      soften(running[tile], scores[tile], unit, factor);
      rescale(sums[tile], factor);
    }
    cp_async_wait<0>();
    __syncthreads();
    if (at > 0) {
      load_rows<width, T::kKeys>(k_tile, k, a, first_key - T::kKeys, a.visible);
      cp_async_commit();
    }
    add_values<width>(sums, scores, v_tile);
  }
#pragma unroll
  for (int tile = 0; tile < T::kTiles; tile++) {
    write_rows<width>(out, sums[tile], running[tile], a, first_query + (warp() * T::kTiles + tile) * 16);
  }
}

#define ATTENTION_MMA(name, width, biased)                                                                                 \
  KERNEL(kMmaThreads)                                                                                                      \
  name(const bf16* __restrict__ q, const bf16* __restrict__ k, const bf16* __restrict__ v, const float* __restrict__ bias, \
       bf16* __restrict__ out, Attention a) {                                                                              \
    attend<width, biased>(q, k, v, bias, out, a);                                                                          \
  }                                                                                                                        \
  EXPORT(name)

ATTENTION_MMA(attention_mma_32_bf16, 32, false)
ATTENTION_MMA(attention_mma_64_bf16, 64, false)
ATTENTION_MMA(attention_mma_80_bf16, 80, false)
ATTENTION_MMA(attention_mma_96_bf16, 96, false)
ATTENTION_MMA(attention_mma_128_bf16, 128, false)
ATTENTION_MMA(attention_mma_192_bf16, 192, false)
ATTENTION_MMA(attention_mma_256_bf16, 256, false)
ATTENTION_MMA(attention_mma_32_biased_bf16, 32, true)
ATTENTION_MMA(attention_mma_64_biased_bf16, 64, true)
ATTENTION_MMA(attention_mma_80_biased_bf16, 80, true)
ATTENTION_MMA(attention_mma_96_biased_bf16, 96, true)
ATTENTION_MMA(attention_mma_128_biased_bf16, 128, true)
ATTENTION_MMA(attention_mma_192_biased_bf16, 192, true)
ATTENTION_MMA(attention_mma_256_biased_bf16, 256, true)

// ---- f32 arithmetic: f32 tensors, and bf16 heads too wide for the registers above ----
//
// A block has 64 queries and 128 columns of the values; each thread holds 4 × 4 scores and 4 × 8 sums. Operands lie in
// shared memory with a row per column of theirs, so that four neighbours are one load.

constexpr int kFmaThreads = 256;
constexpr int kSide = 64;
// Rows of shared memory are 4 floats longer than they need be: stores down a column then meet fewer banks twice.
constexpr int kPitch = kSide + 4;
constexpr int kDepth = 32;
constexpr int kColumns = 128;

struct alignas(16) Four {
  float at[4];
};
DEVICE Four four(const float* from) { return *reinterpret_cast<const Four*>(from); }

// The largest and the sum over the 16 threads that share four queries.
DEVICE float group_max(float x) {
#pragma unroll
  for (int mask = 8; mask > 0; mask /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, mask));
  return x;
}
DEVICE float group_sum(float x) {
#pragma unroll
  for (int mask = 8; mask > 0; mask /= 2) x += __shfl_xor_sync(~0u, x, mask);
  return x;
}

// Columns [depth, depth + 32) of 64 rows of a head, transposed; zeros beyond the ends.
template <class T>
DEVICE void load_transposed(float* to, const T* __restrict__ from, const Attention& a, int first, int end, int depth) {
  for (int i = threadIdx.x; i < kSide * kDepth; i += kFmaThreads) {
    const int row = i / kDepth, column = i % kDepth;
    const bool inside = first + row < end && depth + column < a.head_dim;
    to[column * kPitch + row] = inside ? f32(from[head_row(a, first + row) + depth + column]) : 0.0f;
  }
}

// Columns [column, column + 128) of 32 rows of a head; zeros beyond the ends.
template <class T>
DEVICE void load_values(float* to, const T* __restrict__ from, const Attention& a, int first, int column) {
  for (int i = threadIdx.x; i < kDepth * kColumns; i += kFmaThreads) {
    const int row = first + i / kColumns, at = column + i % kColumns;
    to[i] = row < a.visible && at < a.head_dim ? f32(from[head_row(a, row) + at]) : 0.0f;
  }
}

template <class T>
DEVICE void attend_fma(const T* __restrict__ q, const T* __restrict__ k, const T* __restrict__ v,
                       const float* __restrict__ bias, T* __restrict__ out, const Attention& a) {
  // A piece of q and one of k, or of v.
  SHARED(Four, operands, [2 * kDepth * kPitch / 4]);
  SHARED(Four, weights_at, [kSide * kPitch / 4]);
  float* left = reinterpret_cast<float*>(operands);
  float* right = left + kDepth * kPitch;
  float* weights = reinterpret_cast<float*>(weights_at);
  const int x = threadIdx.x % 16, y = threadIdx.x / 16;
  const int first_query = blockIdx.x * kSide, first_column = blockIdx.z * kColumns;
  float sums[4][8] = {}, total[4] = {}, largest[4];
#pragma unroll
  for (int i = 0; i < 4; i++) largest[i] = -INFINITY;

  for (int first_key = 0; first_key < a.visible; first_key += kSide) {
    float scores[4][4] = {};
    for (int depth = 0; depth < a.head_dim; depth += kDepth) {
      __syncthreads();
      load_transposed(left, q, a, first_query, a.queries, depth);
      load_transposed(right, k, a, first_key, a.visible, depth);
      __syncthreads();
#pragma unroll 8
      for (int d = 0; d < kDepth; d++) {
        const Four of_q = four(left + d * kPitch + 4 * y), of_k = four(right + d * kPitch + 4 * x);
#pragma unroll
        for (int i = 0; i < 4; i++) {
#pragma unroll
          for (int j = 0; j < 4; j++) scores[i][j] = fmaf(of_q.at[i], of_k.at[j], scores[i][j]);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int query = first_query + 4 * y + i;
      float most = largest[i];
#pragma unroll
      for (int j = 0; j < 4; j++) {
        const int key = first_key + 4 * x + j;
        scores[i][j] *= a.scale * kLog2E;
        if (bias != nullptr && query < a.queries && key < a.visible) {
          scores[i][j] = fmaf(bias_row(a, bias, query)[key], kLog2E, scores[i][j]);
        }
        if (key >= a.visible) scores[i][j] = -INFINITY;
        most = fmaxf(most, scores[i][j]);
      }
      most = group_max(most);
      const float shift = most == -INFINITY ? 0.0f : most;
      const float factor = exp2_fast(largest[i] - shift);
      largest[i] = most;
      float sum = 0.0f;
#pragma unroll
      for (int j = 0; j < 4; j++) {
        scores[i][j] = exp2_fast(scores[i][j] - shift);
        sum += scores[i][j];
        weights[(4 * x + j) * kPitch + 4 * y + i] = scores[i][j];
      }
      total[i] = fmaf(total[i], factor, group_sum(sum));
#pragma unroll
      for (int j = 0; j < 8; j++) sums[i][j] *= factor;
    }
    for (int half = 0; half < kSide; half += kDepth) {
      __syncthreads();
      load_values(left, v, a, first_key + half, first_column);
      __syncthreads();
#pragma unroll 8
      for (int key = 0; key < kDepth; key++) {
        const Four weight = four(weights + (half + key) * kPitch + 4 * y);
        const Four low = four(left + key * kColumns + 4 * x), high = four(left + key * kColumns + kColumns / 2 + 4 * x);
#pragma unroll
        for (int i = 0; i < 4; i++) {
#pragma unroll
          for (int j = 0; j < 4; j++) {
            sums[i][j] = fmaf(weight.at[i], low.at[j], sums[i][j]);
            sums[i][4 + j] = fmaf(weight.at[i], high.at[j], sums[i][4 + j]);
          }
        }
      }
    }
  }
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const int query = first_query + 4 * y + i;
    const float inverse = 1.0f / total[i];
#pragma unroll
    for (int j = 0; j < 8; j++) {
      const int column = first_column + j / 4 * (kColumns / 2) + 4 * x + j % 4;
      if (query < a.queries && column < a.head_dim) out[head_row(a, query) + column] = rounded<T>(sums[i][j] * inverse);
    }
  }
}

KERNEL(kFmaThreads)
attention_fma_f32(const float* __restrict__ q, const float* __restrict__ k, const float* __restrict__ v,
                  const float* __restrict__ bias, float* __restrict__ out, Attention a) {
  attend_fma(q, k, v, bias, out, a);
}
EXPORT(attention_fma_f32)

KERNEL(kFmaThreads)
attention_fma_bf16(const bf16* __restrict__ q, const bf16* __restrict__ k, const bf16* __restrict__ v,
                   const float* __restrict__ bias, bf16* __restrict__ out, Attention a) {
  attend_fma(q, k, v, bias, out, a);
}
EXPORT(attention_fma_bf16)
