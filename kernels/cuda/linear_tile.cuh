// The tile product of linear layers on tensor cores, and its variant for few rows. See linear.cu for the contract.
#pragma once

#include "epilogue.cuh"
#include "mma.cuh"

// Kinds of products: the type of sums, and one instruction over 32 bytes of k.
struct Bf16Product {
  using Sum = float;
  static DEVICE void add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) { mma_bf16(d, a, b0, b1); }
};
struct Int8Product {
  using Sum = int;
  static DEVICE void add(int (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) { mma_int8(d, a, b0, b1); }
};
struct E4m3Product {
  using Sum = float;
  static DEVICE void add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) { mma_e4m3(d, a, b0, b1); }
};

// A block's tile is rows × columns, a warp's warp_rows × warp_columns of it; `stages` pieces of k are in shared memory.
template <int rows_, int columns_, int warp_rows_, int warp_columns_, int stages_>
struct TileShape {
  static constexpr int rows = rows_, columns = columns_, warp_rows = warp_rows_, warp_columns = warp_columns_;
  static constexpr int stages = stages_;
  static constexpr int warps = rows / warp_rows * (columns / warp_columns), threads = warps * kWarp;
  static constexpr int stage_bytes = (rows + columns) * 64;
};

// Where a block works: tiles are taken in groups of 8 tile rows, so that blocks that run together share rows and columns
// in the L2 cache.
struct Place {
  int row, column;
};
template <class Shape>
DEVICE Place tile_place(int m, int n) {
  constexpr int group = 8;
  const int down = (m + Shape::rows - 1) / Shape::rows, across = (n + Shape::columns - 1) / Shape::columns;
  const int first = static_cast<int>(blockIdx.x) / (group * across) * group;
  const int within = static_cast<int>(blockIdx.x) % (group * across), height = min(group, down - first);
  return {(first + within % height) * Shape::rows, within / height * Shape::columns};
}

// Starts the copy of one piece (64 bytes of k) of `count` rows into a swizzled tile; zeros past the last row and past k.
template <int count, int threads>
DEVICE void copy_piece(char* tile, const char* from, int first_row, int rows, int chunks, int piece) {
#pragma unroll
  for (int i = 0; i < count * 4 / threads; i++) {
    const int at = static_cast<int>(threadIdx.x) + i * threads, row = at / 4, chunk = piece * 4 + at % 4;
    const bool valid = first_row + row < rows && chunk < chunks;
    const char* source = from + (static_cast<long long>(first_row + row) * chunks + chunk) * 16;
    cp_async16(tile + swizzled<4>(row, at % 4), valid ? source : from, valid);
  }
}

// Runs the pipeline of copies over all of k: `multiply(x tile, w tile)` once per piece.
template <class Shape, class Multiply>
DEVICE void over_pieces(char* tiles, const char* x, const char* w, const Epilogue& e, int chunks, Place place,
                        Multiply multiply) {
  const int pieces = (chunks + 3) / 4;
  const auto copy = [&](int piece) {
    if (piece < pieces) {
      char* stage = tiles + piece % Shape::stages * Shape::stage_bytes;
      copy_piece<Shape::rows, Shape::threads>(stage, x, place.row, e.m, chunks, piece);
      copy_piece<Shape::columns, Shape::threads>(stage + Shape::rows * 64, w, place.column, e.n, chunks, piece);
    }
    cp_async_commit();
  };
#pragma unroll
  for (int piece = 0; piece < Shape::stages - 1; piece++) copy(piece);
#pragma unroll 1
  for (int piece = 0; piece < pieces; piece++) {
    cp_async_wait<Shape::stages - 2>();
    // The piece is there for all, and nobody reads the stage of the one before it any more.
    __syncthreads();
    copy(piece + Shape::stages - 1);
    const char* stage = tiles + piece % Shape::stages * Shape::stage_bytes;
    multiply(stage, stage + Shape::rows * 64);
  }
  // The tiles' memory is used again by the epilogue; copies that were started since the last wait are of no piece.
  __syncthreads();
}

template <class Product, class Shape, class T>
DEVICE void tile_product(char* tiles, const char* x, const char* w, T* out, const Epilogue& e, int chunks) {
  constexpr int down = Shape::warp_rows / 16, across = Shape::warp_columns / 16;
  constexpr int pitch = Shape::warp_columns + 8;
  static_assert(Shape::warps * 16 * pitch * 4 <= Shape::stages * Shape::stage_bytes, "the epilogue fits the tiles");
  const Place place = tile_place<Shape>(e.m, e.n);
  const int warp_row = warp() / (Shape::columns / Shape::warp_columns) * Shape::warp_rows;
  const int warp_column = warp() % (Shape::columns / Shape::warp_columns) * Shape::warp_columns;

  typename Product::Sum sums[down][2 * across][4] = {};
  over_pieces<Shape>(tiles, x, w, e, chunks, place, [&](const char* x_tile, const char* w_tile) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      uint32_t a[down][4], b[across][4];
#pragma unroll
      for (int i = 0; i < down; i++) load_a<4>(a[i], x_tile, warp_row + 16 * i, 2 * half);
#pragma unroll
      for (int j = 0; j < across; j++) load_b<4>(b[j], w_tile, warp_column + 16 * j, 2 * half);
#pragma unroll
      for (int i = 0; i < down; i++) {
#pragma unroll
        for (int j = 0; j < 2 * across; j++) Product::add(sums[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
      }
    }
  });

  float* slab = reinterpret_cast<float*>(tiles) + warp() * 16 * pitch;
#pragma unroll
  for (int i = 0; i < down; i++) {
#pragma unroll
    for (int j = 0; j < 2 * across; j++) {
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const float first = static_cast<float>(sums[i][j][2 * half]), second = static_cast<float>(sums[i][j][2 * half + 1]);
        float* to = slab + d_row(2 * half) * pitch + 8 * j + d_column(0);
        *reinterpret_cast<float2*>(to) = {first, second};
      }
    }
    __syncwarp();
    finish_slab<T, 16, Shape::warp_columns, pitch>(e, out, slab, place.row + warp_row + 16 * i,
                                                   place.column + warp_column);
    __syncwarp();
  }
}

// Few rows: a block computes 16 outputs of 8 · tiles rows, its 8 warps sharing out k. Weights are the instruction's A and
// come from global memory straight into fragments: a lane's 16 bytes of a row are the words of two instructions, and x is
// read in the same order, which is another order of k than the instruction's, the same for both.
template <bool yes>
struct Whole {
  static constexpr bool value = yes;
};
constexpr int kRowsWarps = 8, kRowsOutputs = 16, kRowsAhead = 4;

template <class Product, int tiles, class T>
DEVICE void rows_product(typename Product::Sum* parts, const char* x, const char* w, T* out, const Epilogue& e,
                         int chunks) {
  const int row = static_cast<int>(blockIdx.y) * 8 * tiles, column = static_cast<int>(blockIdx.x) * kRowsOutputs;
  const int group = lane() / 4, within = lane() % 4;
  // Rows past the end read the last one; nobody stores their sums.
  const auto at = [&](const char* from, int line, int lines) {
    return from + static_cast<long long>(min(line, lines - 1)) * chunks * 16;
  };
  const char* upper = at(w, column + group, e.n);
  const char* lower = at(w, column + group + 8, e.n);
  const char* right[tiles];
#pragma unroll
  for (int j = 0; j < tiles; j++) right[j] = at(x, row + 8 * j + group, e.m);
  // `whole` says that all chunks are there: loads without a condition, which the compiler can start together.
  const auto load = [&](const char* line, int chunk, auto whole) {
    if (!decltype(whole)::value && chunk >= chunks) return uint4{0, 0, 0, 0};
    return reinterpret_cast<const uint4*>(line)[chunk];
  };
  typename Product::Sum sums[tiles][4] = {};
  const auto steps = [&](int first, auto whole) {
    uint4 a[kRowsAhead][2];
#pragma unroll
    for (int s = 0; s < kRowsAhead; s++) {
      a[s][0] = load(upper, first + s * kRowsWarps * 4, whole);
      a[s][1] = load(lower, first + s * kRowsWarps * 4, whole);
    }
#pragma unroll
    for (int s = 0; s < kRowsAhead; s++) {
      const uint32_t low[4] = {a[s][0].x, a[s][1].x, a[s][0].y, a[s][1].y};
      const uint32_t high[4] = {a[s][0].z, a[s][1].z, a[s][0].w, a[s][1].w};
#pragma unroll
      for (int j = 0; j < tiles; j++) {
        const uint4 b = load(right[j], first + s * kRowsWarps * 4, whole);
        Product::add(sums[j], low, b.x, b.y);
        Product::add(sums[j], high, b.z, b.w);
      }
    }
  };
  int first = warp() * 4 + within;
  constexpr int stride = kRowsWarps * 4 * kRowsAhead;
  for (; first - within + (kRowsAhead - 1) * kRowsWarps * 4 + 4 <= chunks; first += stride) steps(first, Whole<true>{});
  for (; first - within < chunks; first += stride) steps(first, Whole<false>{});
  constexpr int values = 8 * tiles * kRowsOutputs;
#pragma unroll
  for (int j = 0; j < tiles; j++) {
#pragma unroll
    for (int i = 0; i < 4; i++) parts[warp() * values + (8 * j + d_column(i)) * kRowsOutputs + d_row(i)] = sums[j][i];
  }
  __syncthreads();
  for (int i = threadIdx.x; i < values; i += kRowsWarps * kWarp) {
    typename Product::Sum sum = 0;
    for (int part = 0; part < kRowsWarps; part++) sum += parts[part * values + i];
    const int r = row + i / kRowsOutputs, c = column + i % kRowsOutputs;
    if (r >= e.m || c >= e.n) continue;
    T* to = out + static_cast<long long>(r) * e.n + c;
    *to = rounded<T>(finished(e, static_cast<float>(sum), r, c, e.adds ? f32(*to) : 0.0f));
  }
}
