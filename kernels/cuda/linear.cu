// Linear layers: y = activation(x · Wᵀ + b) and residual += gate · (x · Wᵀ + b), with bf16, int8, e4m3 and f32 products.
//
// Inputs
//   x       [m, chunks · 16 bytes]  bf16, int8, e4m3 or f32, row-major; zeros from k to the end of a row
//   w       [n, chunks · 16 bytes]  the same type, a row per output (torch's layout), zeros from k to the end of a row
//   e       the epilogue's vectors (epilogue.cuh): bias f32 [n]; gates f32 [groups, n]; scales f32 [m] and [n], of int8 and
//           e4m3 only; m, n and what is done
// Outputs
//   out     [m, n] f32 or bf16, row-major, dense; the residual itself where e.adds (f32 only), else aliasing nothing
// Preconditions: pointers are multiples of 16; chunks ≥ 1; k ≤ 2^17 for int8; m and n are any. The launch gives one block
//   per tile (x: tiles in the order of `tile_place`) and the tiles' memory; `linear_rows*`: x = n / 16, y = m / rows.
// Reference: linear::reference. bf16: relative RMSE ≤ 1e-2; f32 (fused multiply-adds, no TF32) ≤ 1e-4; int8: sums are exact
//   and the epilogue rounds as the CPU does; e4m3 ≤ 1e-2 (the tensor cores of sm_89 and sm_90 add up in less than f32).
// Bound by arithmetic, 2·m·n·k FLOP, except `linear_rows*` (m up to 64): by reading W, n·k values, once.
// Benchmark: `linear`
#include "linear_tile.cuh"
#include "vector.cuh"

using LargeTile = TileShape<128, 256, 64, 64, 4>;
using MediumTile = TileShape<128, 128, 64, 32, 3>;
using SmallTile = TileShape<64, 64, 32, 32, 4>;

#define TILES(name, Product, Shape, T, blocks)                                                                        \
  KERNEL(Shape::threads, blocks) name(const void* x, const void* w, T* out, Epilogue e, int chunks) {                 \
    DYNAMIC_SHARED(char, tiles);                                                                                      \
    tile_product<Product, Shape>(tiles, static_cast<const char*>(x), static_cast<const char*>(w), out, e, chunks);    \
  }                                                                                                                   \
  EXPORT(name)

#define ROWS(name, Product, count, T)                                                                                 \
  KERNEL(kRowsWarps * kWarp) name(const void* x, const void* w, T* out, Epilogue e, int chunks) {                     \
    SHARED(Product::Sum, parts, [kRowsWarps * kRowsOutputs * count]);                                                 \
    rows_product<Product, count / 8>(parts, static_cast<const char*>(x), static_cast<const char*>(w), out, e, chunks); \
  }                                                                                                                   \
  EXPORT(name)

// Blocks on a multiprocessor at once: from sm_90 on mma.sync has no e4m3 of its own (only wgmma and tcgen05 have), the compiler
// widens the operands there and needs the registers for it.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
constexpr int kE4m3Medium = 1, kE4m3Small = 2;
#else
constexpr int kE4m3Medium = 2, kE4m3Small = 4;
#endif

#define LINEAR(kind, Product, suffix, T, medium, small)                  \
  TILES(linear_##kind##_medium_##suffix, Product, MediumTile, T, medium) \
  TILES(linear_##kind##_small_##suffix, Product, SmallTile, T, small)    \
  ROWS(linear_##kind##_rows8_##suffix, Product, 8, T)                    \
  ROWS(linear_##kind##_rows32_##suffix, Product, 32, T)

TILES(linear_bf16_large_f32, Bf16Product, LargeTile, float, 1)
TILES(linear_bf16_large_bf16, Bf16Product, LargeTile, bf16, 1)
TILES(linear_int8_large_f32, Int8Product, LargeTile, float, 1)
TILES(linear_int8_large_bf16, Int8Product, LargeTile, bf16, 1)
LINEAR(bf16, Bf16Product, f32, float, 2, 4)
LINEAR(bf16, Bf16Product, bf16, bf16, 2, 4)
LINEAR(int8, Int8Product, f32, float, 2, 4)
LINEAR(int8, Int8Product, bf16, bf16, 2, 4)
LINEAR(e4m3, E4m3Product, f32, float, kE4m3Medium, kE4m3Small)
LINEAR(e4m3, E4m3Product, bf16, bf16, kE4m3Medium, kE4m3Small)

// f32: each of 256 threads computes 8 × 8 sums by fused multiply-adds, rows 16 apart and columns 16 apart, so that lanes
// that read at once read neighbouring rows of the swizzled tiles.
using F32Tile = TileShape<128, 128, 64, 32, 3>;

template <class T>
DEVICE void tile_product_f32(char* tiles, const char* x, const char* w, T* out, const Epilogue& e, int chunks) {
  constexpr int pitch = F32Tile::columns + 16;
  const Place place = tile_place<F32Tile>(e.m, e.n);
  const int down = threadIdx.x / 16, across = threadIdx.x % 16;
  float sums[8][8] = {};
  over_pieces<F32Tile>(tiles, x, w, e, chunks, place, [&](const char* x_tile, const char* w_tile) {
#pragma unroll 1
    for (int pair = 0; pair < 8; pair++) {
      const auto two = [&](const char* tile, int row) {
        return *reinterpret_cast<const float2*>(tile + swizzled<4>(row, pair / 2) + pair % 2 * 8);
      };
      float2 a[8];
#pragma unroll
      for (int i = 0; i < 8; i++) a[i] = two(x_tile, down + 16 * i);
#pragma unroll
      for (int j = 0; j < 8; j++) {
        const float2 b = two(w_tile, across + 16 * j);
#pragma unroll
        for (int i = 0; i < 8; i++) sums[i][j] = fmaf(a[i].y, b.y, fmaf(a[i].x, b.x, sums[i][j]));
      }
    }
  });
  // A warp has two rows of every 16.
  float* slab = reinterpret_cast<float*>(tiles) + warp() * 2 * pitch;
#pragma unroll
  for (int i = 0; i < 8; i++) {
#pragma unroll
    for (int j = 0; j < 8; j++) slab[down % 2 * pitch + across + 16 * j] = sums[i][j];
    __syncwarp();
    finish_slab<T, 2, F32Tile::columns, pitch>(e, out, slab, place.row + 16 * i + 2 * warp(), place.column);
    __syncwarp();
  }
}

#define TILES_F32(name, T)                                                                                      \
  KERNEL(F32Tile::threads, 2) name(const void* x, const void* w, T* out, Epilogue e, int chunks) {              \
    DYNAMIC_SHARED(char, tiles);                                                                                \
    tile_product_f32(tiles, static_cast<const char*>(x), static_cast<const char*>(w), out, e, chunks);          \
  }                                                                                                             \
  EXPORT(name)

TILES_F32(linear_f32_f32, float)
TILES_F32(linear_f32_bf16, bf16)

// Rows as bytes with a scale each: scale = max |x| / largest, byte = x / scale rounded to nearest even.
//
// Inputs: x [m, k] f32 or bf16, row-major; `divides` says how x / scale is computed: as x · (1 / scale), which is how weights
//   are made int8, or as x · (largest / max |x|). Outputs: to [m, pitch] int8 or e4m3, zeros from k on; scales f32 [m], zero
//   for rows of (nearly) zeros, not finite for rows that are not. Preconditions: pitch is k rounded up to a multiple of 16;
//   one block of 256 threads per row.
// Reference: gemm::QuantisedRows and PackedLinear::int8 (int8), linear::e4m3; exact. Bound by memory: x read and to written once (the second pass
//   over a row finds it in the cache). Benchmark: `linear` (part of every int8 and e4m3 case)
constexpr int kQuantiseThreads = 256;
// Rows whose largest value is smaller are taken as zeros: their inverse scale would not be finite.
constexpr float kSmallest = 1e-30f;
// The smallest normal number.
constexpr float kNormal = 1.17549435e-38f;

struct Int8Bytes {
  static constexpr float largest = 127.0f;
  static DEVICE uint32_t four(float a, float b, float c, float d) {
    const auto byte = [](float x) { return static_cast<uint32_t>(__float2int_rn(x)) & 0xff; };
    return byte(a) | byte(b) << 8 | byte(c) << 16 | byte(d) << 24;
  }
};
struct E4m3Bytes {
  static constexpr float largest = 448.0f;
  static DEVICE uint32_t four(float a, float b, float c, float d) { return e4m3_pair(a, b) | e4m3_pair(c, d) << 16; }
};

template <class Bytes, class T>
DEVICE void quantise(float* part, const T* x, void* to, float* scales, int k, int pitch, int divides) {
  const T* row = x + static_cast<long long>(blockIdx.x) * k;
  const bool whole = k % kGroup == 0;
  float largest = 0.0f, odd = 0.0f;
  for (int at = threadIdx.x * kGroup; at < k; at += kQuantiseThreads * kGroup) {
    float v[kGroup];
    load_up_to(row + at, k - at, whole, v);
#pragma unroll
    for (int i = 0; i < kGroup; i++) {
      largest = fmaxf(largest, fabsf(v[i]));
      // Zero, unless a value is not finite.
      odd = fmaf(v[i], 0.0f, odd);
    }
  }
  largest = block_max(largest, part);
  odd = block_sum(odd, part);
  const bool some = divides || largest >= kSmallest;
  const float scale = some ? largest / Bytes::largest : 0.0f;
  const float reciprocal = scale < kNormal ? 0.0f : 1.0f / scale;
  const float inverse = divides ? reciprocal : some ? Bytes::largest / largest : 0.0f;
  if (threadIdx.x == 0) scales[blockIdx.x] = scale + odd;
  for (int at = threadIdx.x * kGroup; at < pitch; at += kQuantiseThreads * kGroup) {
    float v[kGroup];
    load_up_to(row + at, k - at, whole, v);
#pragma unroll
    for (int i = 0; i < kGroup; i++) v[i] *= inverse;
    char* bytes = static_cast<char*>(to) + static_cast<long long>(blockIdx.x) * pitch + at;
    *reinterpret_cast<uint2*>(bytes) = {Bytes::four(v[0], v[1], v[2], v[3]), Bytes::four(v[4], v[5], v[6], v[7])};
  }
}

#define QUANTISE(name, Bytes, T)                                                                    \
  KERNEL(kQuantiseThreads) name(const T* x, void* to, float* scales, int k, int pitch, int divides) { \
    SHARED(float, part, [kWarp]);                                                                   \
    quantise<Bytes>(part, x, to, scales, k, pitch, divides);                                                 \
  }                                                                                                 \
  EXPORT(name)

QUANTISE(quantise_int8_f32, Int8Bytes, float)
QUANTISE(quantise_int8_bf16, Int8Bytes, bf16)
QUANTISE(quantise_e4m3_f32, E4m3Bytes, float)
QUANTISE(quantise_e4m3_bf16, E4m3Bytes, bf16)

// Rows in another dtype or of another length: to[row] = x[row], then zeros up to the pitch.
//
// Inputs: x [m, k] f32 or bf16, row-major. Outputs: to [m, pitch] f32 or bf16. Preconditions: pitch ≥ k is a multiple of 16
//   bytes; blocks of 256 threads with a thread per 8 values of the output's rows.
// Reference: Tensor::to_dtype; exact. Bound by memory: x read and to written once. Benchmark: `linear` (odd k)
template <class S, class T>
DEVICE void copy_rows(const S* x, T* to, int m, int k, int pitch) {
  const int groups = (pitch + kGroup - 1) / kGroup;
  const long long group = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (group >= static_cast<long long>(m) * groups) return;
  const long long row = group / groups, at = group % groups * kGroup;
  float v[kGroup];
  load_up_to(x + row * k + at, k - at, k % kGroup == 0, v);
  store_up_to(to + row * pitch + at, pitch - at, pitch % kGroup == 0, v);
}

#define COPY_ROWS(name, S, T)                                                     \
  KERNEL(256) name(const S* x, T* to, int m, int k, int pitch) {                  \
    copy_rows(x, to, m, k, pitch);                                                \
  }                                                                               \
  EXPORT(name)

COPY_ROWS(copy_rows_f32_to_f32, float, float)
COPY_ROWS(copy_rows_f32_to_bf16, float, bf16)
COPY_ROWS(copy_rows_bf16_to_f32, bf16, float)
COPY_ROWS(copy_rows_bf16_to_bf16, bf16, bf16)

// The epilogue alone, for products that a library has left in f32.
//
// Inputs: sums f32 [m, n], row-major, and the epilogue. Outputs: out [m, n] as of the products above. Preconditions: blocks
//   of 256 threads with a thread per 4 columns.
// Reference: linear::reference's last lines. Bound by memory: sums read and out written once, read too where it is added to.
// Benchmark: `linear`
template <class T>
DEVICE void finish(const float* sums, T* out, const Epilogue& e) {
  const int fours = (e.n + 3) / 4;
  const long long at = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (at >= static_cast<long long>(e.m) * fours) return;
  const int row = static_cast<int>(at / fours), column = static_cast<int>(at % fours) * 4;
  const float* from = sums + static_cast<long long>(row) * e.n + column;
  float v[4] = {};
  if (e.n % 4 == 0) {
    load_four(from, v);
  } else {
    for (int i = 0; i < 4 && column + i < e.n; i++) v[i] = from[i];
  }
  finish_four(e, out, v, row, column);
}

KERNEL(256) linear_finish_f32(const float* sums, float* out, Epilogue e) { finish(sums, out, e); }
EXPORT(linear_finish_f32)
KERNEL(256) linear_finish_bf16(const float* sums, bf16* out, Epilogue e) { finish(sums, out, e); }
EXPORT(linear_finish_bf16)
