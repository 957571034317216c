// Moving elements without arithmetic: rows joined, cut and gathered, matrices transposed, dimensions in another order.
//
// Kernels move units of 2, 4 or 16 bytes, the largest that divides all lengths and starts; extents count units.
//
//                inputs → outputs
// join_rows      16 parts at most, each [rows, width] → y [rows, Σ count]: of every part's row the units start..start +
//                count, side by side
// gather_rows    table [v, width], ids u32 [rows] → y [rows, width]
// transpose      x [rows, columns] → y [columns, rows]
// permute        x → y dense, of 7 dimensions (some of them 1): y's element (i₀, …, i₆) is x's at Σ iₖ · strideₖ
//
// outputs        never the memory of an input
// preconditions  256 threads a block; ids below v; width < 2³⁰; memory starts at multiples of 16 bytes
// reference      the host's copies; equal to the bit
// bound by       memory: each element is read and written once
// benchmark      layout
#include "gpu.cuh"

constexpr int kThreads = 256;
// Units that a thread of a copy moves.
constexpr int kUnits = 4;

// A place in a matrix, of which a block walks a part: one long division a block, then short ones.
struct Place {
  long long row;
  int column;
};
DEVICE Place block_start(int width) {
  const long long first = static_cast<long long>(blockIdx.x) * (kThreads * kUnits), row = first / width;
  return {row, static_cast<int>(first - row * width)};
}
// The place of this thread's unit `i`.
DEVICE Place place(const Place& start, int i, int width) {
  const unsigned at = static_cast<unsigned>(start.column) + i * kThreads + threadIdx.x, rows = at / width;
  return {start.row + rows, static_cast<int>(at - rows * width)};
}

// y [rows, width] becomes what `from` reads for each place; all of a thread's units are under way at once.
template <class Unit, class From>
DEVICE void move_units(Unit* y, long long rows, int width, From from) {
  const Place start = block_start(width);
  Unit units[kUnits];
#pragma unroll
  for (int i = 0; i < kUnits; i++) {
    const Place at = place(start, i, width);
    if (at.row < rows) units[i] = from(at);
  }
#pragma unroll
  for (int i = 0; i < kUnits; i++) {
    const Place at = place(start, i, width);
    if (at.row < rows) y[at.row * width + at.column] = units[i];
  }
}

constexpr int kPartsMax = 16;
struct Parts {
  const void* values[kPartsMax];
  int width[kPartsMax];
  int start[kPartsMax];
  // The column of the result behind the part's last one.
  int end[kPartsMax];
};

template <class Unit>
DEVICE void join_rows(const Parts& parts, Unit* y, long long rows, int width) {
  move_units(y, rows, width, [&parts](const Place& at) {
    int p = 0;
    while (at.column >= parts.end[p]) p++;
    const int column = at.column - (p > 0 ? parts.end[p - 1] : 0) + parts.start[p];
    const Unit* values = static_cast<const Unit*>(parts.values[p]);
    return values[at.row * parts.width[p] + column];
  });
}

template <class Unit>
DEVICE void gather_rows(const Unit* table, const uint32_t* ids, Unit* y, long long rows, int width) {
  move_units(y, rows, width, [table, ids, width](const Place& at) {
    return table[static_cast<long long>(ids[at.row]) * width + at.column];
  });
}

#define COPIES(Unit, suffix)                                                                                          \
  KERNEL(kThreads) join_rows_##suffix(const Parts parts, Unit* y, long long rows, int width) {                        \
    join_rows(parts, y, rows, width);                                                                                 \
  }                                                                                                                   \
  EXPORT(join_rows_##suffix)                                                                                          \
  KERNEL(kThreads) gather_rows_##suffix(const Unit* table, const uint32_t* ids, Unit* y, long long rows, int width) { \
    gather_rows(table, ids, y, rows, width);                                                                          \
  }                                                                                                                   \
  EXPORT(gather_rows_##suffix)

COPIES(uint16_t, 2)
COPIES(uint32_t, 4)
COPIES(uint4, 16)

// Units of a tile of a transpose. Rows lie an odd number of units apart, so that a column meets all banks.
constexpr int kTile = 1024;

// A block takes a tile of `tile_rows` rows and kTile / tile_rows columns.
template <class Unit>
DEVICE void transpose(const Unit* x, Unit* y, long long rows, long long columns, int tile_rows) {
  SHARED(Unit, tile, [kTile * 3 / 2]);
  const int tile_columns = kTile / tile_rows, pitch = tile_columns | 1;
  const long long across = (columns + tile_columns - 1) / tile_columns;
  const long long row = blockIdx.x / across * tile_rows, column = blockIdx.x % across * tile_columns;
  const int h = static_cast<int>(min(static_cast<long long>(tile_rows), rows - row));
  const int w = static_cast<int>(min(static_cast<long long>(tile_columns), columns - column));
  for (int i = threadIdx.x; i < h * w; i += kThreads) {
    tile[i / w * pitch + i % w] = x[(row + i / w) * columns + column + i % w];
  }
  __syncthreads();
  for (int i = threadIdx.x; i < h * w; i += kThreads) {
    y[(column + i / h) * rows + row + i % h] = tile[i % h * pitch + i / h];
  }
}

constexpr int kDimensions = 7;
struct Order {
  int extent[kDimensions];
  long long stride[kDimensions];
};

// Index is as short as the number of elements allows: division by a 64-bit number takes five times as long.
template <class Index, class Unit>
DEVICE void permute(const Unit* x, Unit* y, const Order& order, Index count) {
  const Index at = static_cast<Index>(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= count) return;
  Index rest = at;
  long long from = 0;
#pragma unroll
  for (int d = kDimensions - 1; d >= 0; d--) {
    const Index extent = order.extent[d], above = rest / extent;
    from += static_cast<long long>(rest - above * extent) * order.stride[d];
    rest = above;
  }
  y[at] = x[from];
}

#define ORDERS(Unit, suffix)                                                                                      \
  KERNEL(kThreads) transpose_##suffix(const Unit* x, Unit* y, long long rows, long long columns, int tile_rows) { \
    transpose(x, y, rows, columns, tile_rows);                                                                    \
  }                                                                                                               \
  EXPORT(transpose_##suffix)                                                                                      \
  KERNEL(kThreads) permute_##suffix(const Unit* x, Unit* y, const Order order, long long count) {                 \
    if (count < 0x7fffffff - kThreads) {                                                                          \
      permute<uint32_t>(x, y, order, static_cast<uint32_t>(count));                                               \
    } else {                                                                                                      \
      permute<long long>(x, y, order, count);                                                                     \
    }                                                                                                             \
  }                                                                                                               \
  EXPORT(permute_##suffix)

ORDERS(uint16_t, 2)
ORDERS(uint32_t, 4)
