// Convolutions as implicit matrix products.
//
// meaning        out = activation(conv(frames) + bias + residual): the rows of the product are the pixels of one output frame,
//                its columns the output channels, its depth the taps × input channels. The matrix of windows is never made:
//                each stage of the pipeline gathers its part of it, zeros for what lies outside
// inputs         cache [p, h, w, cin], x [f, h, w, cin] in the type of the products (bf16 or f32), channels last: frame i of the
//                history is cache[i] for i < p, x[i − p] after; weights [phases, cout, k_pitch] of the same type, row (o) holds
//                ((t·kh + y)·kw + x)·cin + c, zeros from k on; bias [cout] f32 or null; residual like out, or null
// outputs        out [frames, out_h, out_w, cout], bf16 or f32; a transposed convolution's four phases interleave in it.
//                out may be residual, and nothing else
// preconditions  k_pitch a multiple of 64 bytes; `conv_*_wide`: cin a multiple of 16 bytes; `narrow`: of `piece` bytes, which is
//                2, 4 or 8 (and no less than one value); sides below 32768; fewer than 2³¹ pixels in a frame, and in the cache
//                or x of one frame; at most 65535 frames × phases
// reference      conv and conv_transpose2d of src/conv/reference.rs; relative RMSE ≤ 1e-2 (bf16), ≤ 1e-4 (f32: FMA, never TF32)
// bound by       arithmetic: 2·taps·cin·cout FLOP per output pixel. What the tile asks of shared memory per 16 of depth, against
//                the FLOP: 128×128: 8 KB written + 16 KB read per 2¹⁹ FLOP; 128×96: 7 + 14 KB per 393,216; with 128 bytes a clock
//                both leave the units of sm_80 (2,048 FLOP a clock) busy, and allow 2,731 and 2,341 of the 4,096 of sm_90
// benchmark      conv2d, causal_conv3d, conv_transpose2d
//
// A transposed convolution 4×4 with stride 2 runs as its four phases, each an ordinary 2×2 convolution of the source that
// makes the output pixels of one parity of row and column: no product with a zero, no atomics, one launch.
#include "activation.cuh"
#include "mma.cuh"
#include "vector.cuh"

// What the host says of a convolution; `DeviceConvolution` in src/conv/cuda.rs.
struct Convolution {
  // From one output frame, and from one row, to the next, in values.
  long long out_frame, out_row;
  // From one output pixel to the next of its phase, in values.
  int out_pixel;
  int source_h, source_w, cin;
  int out_h, out_w, cout;
  // Taps in time, down and across, and the values of a row of weights with and without padding.
  int taps, taps_h, taps_w, k, k_pitch;
  int stride, top, left;
  // Tap t of output frame o reads frame o·frame_stride + first_frame + t of the history; one below zero is all zeros.
  int first_frame, frame_stride, cached;
  int phases;
  // Bytes that a narrow gather moves at a time.
  int piece;
  int out_is_bf16, activation;
  float slope;
};

namespace {

constexpr int kThreads = 128;
constexpr int kPixels = 128;
// A stage holds this much of the depth: 32 values of bf16, 16 of f32.
constexpr int kStageBytes = 64;
constexpr int kChunks = kStageBytes / 16;

// Stages that shared memory of 48 KB holds: two blocks then fit on an sm_89.
constexpr int stages_of(int columns) { return columns > 64 ? 3 : 4; }

// Where a pixel's window starts, which may be outside of the picture: the pixel's number there, its row and column.
struct Window {
  int pixel;
  short y, x;
};

// What a block works on.
struct Place {
  int frame, phase, first_pixel, first_column;
};

template <int columns>
DEVICE Place place_of(const Convolution& c) {
  const int tiles = (c.cout + columns - 1) / columns;
  // Blocks of the same pixels are neighbours: the gathered pixels are still in the second-level cache.
  const int x = blockIdx.x;
  return {static_cast<int>(blockIdx.z) / c.phases, static_cast<int>(blockIdx.z) % c.phases, x / tiles * kPixels,
          x % tiles * columns};
}

DEVICE Window window_of(const Convolution& c, const Place& place, int pixel) {
  // Pixels past the last read what the last reads; they are not stored.
  pixel = min(place.first_pixel + pixel, c.out_h * c.out_w - 1);
  // Phase (p, q) of a transposed convolution starts p rows and q columns later.
  const int y = pixel / c.out_w * c.stride - c.top + place.phase / 2;
  const int x = pixel % c.out_w * c.stride - c.left + place.phase % 2;
  return {y * c.source_w + x, static_cast<short>(y), static_cast<short>(x)};
}

// A position in the depth: a tap, and a channel of it.
struct Tap {
  int t, y, x, channel;
};

DEVICE Tap tap_at(const Convolution& c, int k) {
  const int tap = k / c.cin, plane = c.taps_h * c.taps_w;
  return {tap / plane, tap / c.taps_w % c.taps_h, tap % c.taps_w, k % c.cin};
}

DEVICE void advance(const Convolution& c, Tap& tap, int by) {
  tap.channel += by;
  while (tap.channel >= c.cin) {
    tap.channel -= c.cin;
    if (++tap.x < c.taps_w) continue;
    tap.x = 0;
    if (++tap.y < c.taps_h) continue;
    tap.y = 0;
    ++tap.t;
  }
}

template <class T>
DEVICE void gather_piece(void* to, const T* from, int bytes, bool valid) {
  switch (bytes) {
    case 8:
      return cp_async_cached<8>(to, from, valid);
    case 4:
      return cp_async_cached<4>(to, from, valid);
    default:
      *static_cast<T*>(to) = valid ? *from : rounded<T>(0.0f);
  }
}

// Fills the stages of the pipeline: each holds the windows of kPixels pixels and the weights of `columns` channels, rows of
// kStageBytes of the depth.
template <class T, int columns, bool wide>
struct Feed {
  static constexpr int kStages = stages_of(columns);
  static constexpr int kDepth = kStageBytes / sizeof(T);
  static constexpr int kBytes = (kPixels + columns) * kStageBytes;
  // Rows of a wide gather that a thread serves, and of the weights.
  static constexpr int kRows = kPixels * kChunks / kThreads;
  static constexpr int kWeightRows = columns * kChunks / kThreads;

  const Convolution& c;
  const Place place;
  const T *cache, *x, *weights;
  unsigned char* shared;
  // A narrow gather reads them from shared memory: it serves up to 32 rows.
  Window mine[kRows];
  Window* windows;
  Tap tap;
  int k, next_slot = 0;

  DEVICE Feed(const Convolution& c, const Place& place, const T* cache, const T* x, const T* weights,
              unsigned char* shared)
      : c(c), place(place), cache(cache), x(x), shared(shared) {
    this->weights = weights + static_cast<long long>(place.phase) * c.cout * c.k_pitch;
    windows = reinterpret_cast<Window*>(wide ? shared : shared + kStages * kBytes);
    windows[threadIdx.x] = window_of(c, place, threadIdx.x);
    __syncthreads();
    if (wide) {
#pragma unroll
      for (int i = 0; i < kRows; i++) mine[i] = windows[threadIdx.x / kChunks + i * (kThreads / kChunks)];
      // They lie where the first stage will be.
      __syncthreads();
    }
    // Taps before the first frame there is are left out, as far as they are whole stages.
    const int absent = min(max(-(place.frame * c.frame_stride + c.first_frame), 0), c.taps);
    k = absent * c.taps_h * c.taps_w * c.cin / kDepth * kDepth;
    tap = tap_at(c, k + piece_column() * piece_bytes() / static_cast<int>(sizeof(T)));
  }

  // Stages from here on.
  DEVICE int steps() const { return (c.k - k + kDepth - 1) / kDepth; }

  DEVICE int piece_bytes() const { return wide ? 16 : c.piece; }
  DEVICE int piece_column() const { return threadIdx.x % (kStageBytes / piece_bytes()); }

  // Starts the copies of the next stage, if there is one, and closes their group.
  DEVICE void fetch() {
    if (k < c.k) {
      unsigned char* slot = shared + next_slot * kBytes;
      gather(slot);
      fetch_weights(slot + kPixels * kStageBytes);
      k += kDepth;
      advance(c, tap, kDepth);
    }
    next_slot = next_slot + 1 == kStages ? 0 : next_slot + 1;
    cp_async_commit();
  }

  DEVICE void gather(unsigned char* tile) {
    const int frame = place.frame * c.frame_stride + c.first_frame + tap.t;
    const bool present = frame >= 0 && tap.t < c.taps;
    const long long frame_values = static_cast<long long>(c.source_h) * c.source_w * c.cin;
    const T* source = frame < c.cached ? cache + frame * frame_values : x + (frame - c.cached) * frame_values;
    source += tap.channel;
    const int moved = tap.y * c.source_w + tap.x;
    const int bytes = piece_bytes(), pieces = kStageBytes / bytes;
    const int at = piece_column() * bytes, row = threadIdx.x / pieces, step = kThreads / pieces;
    const auto each = [&](int i) {
      const Window window = wide ? mine[wide ? i : 0] : windows[row + i * step];
      const bool valid = present && static_cast<unsigned>(window.y + tap.y) < static_cast<unsigned>(c.source_h) &&
                         static_cast<unsigned>(window.x + tap.x) < static_cast<unsigned>(c.source_w);
      const T* from = source + static_cast<long long>(window.pixel + moved) * c.cin;
      unsigned char* to = tile + swizzled<kChunks>(row + i * step, at / 16) + at % 16;
      if (wide) {
        cp_async_cached<16>(to, from, valid);
      } else {
        gather_piece(to, from, bytes, valid);
      }
    };
    if (wide) {
#pragma unroll
      for (int i = 0; i < kRows; i++) each(i);
    } else {
#pragma unroll 1
      for (int i = 0; i < pieces; i++) each(i);
    }
  }

  DEVICE void fetch_weights(unsigned char* tile) {
    const int chunk = threadIdx.x % kChunks, first = threadIdx.x / kChunks;
    const T* from = weights + k + chunk * (16 / static_cast<int>(sizeof(T)));
#pragma unroll
    for (int i = 0; i < kWeightRows; i++) {
      const int row = first + i * (kThreads / kChunks), column = place.first_column + row;
      cp_async16(tile + swizzled<kChunks>(row, chunk), from + static_cast<long long>(column) * c.k_pitch,
                 column < c.cout);
    }
  }
};

// Runs the pipeline: `multiply(windows, weights)` for each stage, in order.
template <class F, class Multiply>
DEVICE void run(F& feed, Multiply multiply) {
  const int steps = feed.steps();
#pragma unroll 1
  for (int i = 0; i < F::kStages - 1; i++) feed.fetch();
  int slot = 0;
  for (int step = 0; step < steps; step++) {
    cp_async_wait<F::kStages - 2>();
    // All copies of this stage have arrived, and everybody has left the slot that the next one goes to.
    __syncthreads();
    feed.fetch();
    const unsigned char* tile = feed.shared + slot * F::kBytes;
    multiply(tile, tile + kPixels * kStageBytes);
    slot = slot + 1 == F::kStages ? 0 : slot + 1;
  }
  // No copy is under way: the stages after the last were empty. The epilogue takes the memory over.
  __syncthreads();
}

// The epilogue's other operands.
struct Finish {
  void* out;
  const void* residual;
  const float* bias;
};

// Adds the first `count` of eight values.
template <class T>
DEVICE void add_group(float (&to)[kGroup], const T* from, int count, bool whole) {
  float other[kGroup];
  load_up_to(from, count, whole, other);
#pragma unroll
  for (int i = 0; i < kGroup; i++) to[i] += other[i];
}

// Stores eight sums of one pixel, channels from `column` on, at value `at` of the output.
DEVICE void finish_group(const Convolution& c, const Finish& finish, const float* sums, long long at, int column) {
  const bool whole = c.cout % kGroup == 0, wide = !c.out_is_bf16;
  const int count = c.cout - column;
  float values[kGroup];
  load_group(sums, values);
  if (finish.bias != nullptr) add_group(values, finish.bias + column, count, whole);
  if (finish.residual != nullptr && wide) {
    add_group(values, static_cast<const float*>(finish.residual) + at, count, whole);
  } else if (finish.residual != nullptr) {
    add_group(values, static_cast<const bf16*>(finish.residual) + at, count, whole);
  }
#pragma unroll
  for (int i = 0; i < kGroup; i++) values[i] = activated(values[i], c.activation, c.slope);
  if (wide) {
    store_up_to(static_cast<float*>(finish.out) + at, count, whole, values);
  } else {
    store_up_to(static_cast<bf16*>(finish.out) + at, count, whole, values);
  }
}

// Stores a tile of sums in shared memory, `pitch` floats a row: rows are the pixels from `first_pixel` on, columns the
// channels from `first_column` on. `worker` of `workers` threads that do it together.
template <int rows, int columns, int workers>
DEVICE void store_tile(const Convolution& c, const Finish& finish, const Place& place, const float* sums, int pitch,
                       int first_pixel, int first_column, int worker) {
  constexpr int kGroups = columns / kGroup;
  const long long phase = place.phase / 2 * (c.out_row / 2) + place.phase % 2 * (c.out_pixel / 2);
#pragma unroll 1
  for (int i = worker; i < rows * kGroups; i += workers) {
    const int row = i / kGroups, column = first_column + i % kGroups * kGroup, pixel = first_pixel + row;
    if (pixel >= c.out_h * c.out_w || column >= c.cout) continue;
    const long long at = place.frame * c.out_frame + pixel / c.out_w * c.out_row +
                         static_cast<long long>(pixel % c.out_w) * c.out_pixel + phase + column;
    finish_group(c, finish, sums + row * pitch + i % kGroups * kGroup, at, column);
  }
}

// Writes a warp's sums of 16 pixels to shared memory, `pitch` floats a pixel.
template <int tiles>
DEVICE void store_slab(float* slab, int pitch, const float (&sums)[tiles][4]) {
#pragma unroll
  for (int j = 0; j < tiles; j++) {
#pragma unroll
    for (int half = 0; half < 4; half += 2) {
      *reinterpret_cast<float2*>(slab + d_row(half) * pitch + 8 * j + d_column(half)) =
          float2{sums[j][half], sums[j][half + 1]};
    }
  }
}

// The product of bf16 on tensor cores: 4 warps, each of `warp_pixels` × `warp_columns`.
template <int columns, int warp_pixels, int warp_columns, bool wide>
DEVICE void conv_bf16(const Convolution& c, const bf16* cache, const bf16* x, const bf16* weights,
                      const Finish& finish) {
  DYNAMIC_SHARED(unsigned char, shared);
  const Place place = place_of<columns>(c);
  Feed<bf16, columns, wide> feed(c, place, cache, x, weights, shared);
  constexpr int kRowTiles = warp_pixels / 16, kColumnTiles = warp_columns / 8, kAcross = columns / warp_columns;
  static_assert(kPixels / warp_pixels * kAcross * kWarp == kThreads, "the warps cover the tile");
  const int warp_row = warp() / kAcross * warp_pixels, warp_column = warp() % kAcross * warp_columns;
  float sums[kRowTiles][kColumnTiles][4] = {};

  run(feed, [&](const unsigned char* windows, const unsigned char* weights) {
#pragma unroll
    for (int chunk = 0; chunk < kChunks; chunk += 2) {
      uint32_t a[kRowTiles][4];
#pragma unroll
      for (int i = 0; i < kRowTiles; i++) load_a<kChunks>(a[i], windows, warp_row + 16 * i, chunk);
#pragma unroll
      for (int j = 0; j < kColumnTiles; j += 2) {
        uint32_t b[4];
        load_b<kChunks>(b, weights, warp_column + 8 * j, chunk);
#pragma unroll
        for (int i = 0; i < kRowTiles; i++) {
          mma_bf16(sums[i][j], a[i], b[0], b[1]);
          mma_bf16(sums[i][j + 1], a[i], b[2], b[3]);
        }
      }
    }
  });

  // Sums leave through shared memory, 16 pixels of a warp at a time, so that whole chunks of channels are stored. The loop
  // is not unrolled, as its body is long; which sums it takes is.
  constexpr int kPitch = warp_columns + 8;
  float* slab = reinterpret_cast<float*>(shared) + warp() * 16 * kPitch;
#pragma unroll 1
  for (int tile = 0; tile < kRowTiles; tile++) {
#pragma unroll
    for (int i = 0; i < kRowTiles; i++) {
      if (i == tile) store_slab(slab, kPitch, sums[i]);
    }
    __syncwarp();
    store_tile<16, warp_columns, kWarp>(c, finish, place, slab, kPitch, place.first_pixel + warp_row + 16 * tile,
                                        place.first_column + warp_column, lane());
    __syncwarp();
  }
}

constexpr int kColumnsF32 = 64;

// The product of f32 by fused multiply-adds: a thread makes 8 pixels, 16 apart, of 8 channels, 8 apart.
template <bool wide>
DEVICE void conv_f32(const Convolution& c, const float* cache, const float* x, const float* weights,
                     const Finish& finish) {
  DYNAMIC_SHARED(unsigned char, shared);
  const Place place = place_of<kColumnsF32>(c);
  Feed<float, kColumnsF32, wide> feed(c, place, cache, x, weights, shared);
  const int row = threadIdx.x / 8, column = threadIdx.x % 8;
  float sums[8][8] = {};

  run(feed, [&](const unsigned char* windows, const unsigned char* weights) {
#pragma unroll
    for (int chunk = 0; chunk < kChunks; chunk++) {
      float4 a[8];
#pragma unroll
      for (int i = 0; i < 8; i++) {
        a[i] = *reinterpret_cast<const float4*>(windows + swizzled<kChunks>(row + 16 * i, chunk));
      }
#pragma unroll
      for (int j = 0; j < 8; j++) {
        const float4 b = *reinterpret_cast<const float4*>(weights + swizzled<kChunks>(column + 8 * j, chunk));
#pragma unroll
        for (int i = 0; i < 8; i++) {
          sums[i][j] = fmaf(a[i].x, b.x, sums[i][j]);
          sums[i][j] = fmaf(a[i].y, b.y, sums[i][j]);
          sums[i][j] = fmaf(a[i].z, b.z, sums[i][j]);
          sums[i][j] = fmaf(a[i].w, b.w, sums[i][j]);
        }
      }
    }
  });

  constexpr int kPitch = kColumnsF32 + 8;
  float* tile = reinterpret_cast<float*>(shared);
#pragma unroll
  for (int i = 0; i < 8; i++) {
#pragma unroll
    for (int j = 0; j < 8; j++) tile[(row + 16 * i) * kPitch + column + 8 * j] = sums[i][j];
  }
  __syncthreads();
  store_tile<kPixels, kColumnsF32, kThreads>(c, finish, place, tile, kPitch, place.first_pixel, place.first_column,
                                             threadIdx.x);
}

}  // namespace

// Grid [⌈out pixels / 128⌉ · ⌈cout / columns⌉, 1, frames · phases], 128 threads; dynamic shared memory: the stages, and
// 1,024 bytes more in the narrow kernels.
#define CONV(name, T, ...)                                                                                       \
  KERNEL(kThreads, 2)                                                                                            \
  name(const Convolution c, const T* cache, const T* x, const T* weights, const float* bias, const void* residual, \
       void* out) {                                                                                              \
    __VA_ARGS__(c, cache, x, weights, Finish{out, residual, bias});                                              \
  }                                                                                                              \
  EXPORT(name)

CONV(conv_bf16_wide_128, bf16, conv_bf16<128, 64, 64, true>)
CONV(conv_bf16_wide_96, bf16, conv_bf16<96, 64, 48, true>)
CONV(conv_bf16_wide_64, bf16, conv_bf16<64, 64, 32, true>)
CONV(conv_bf16_wide_32, bf16, conv_bf16<32, 32, 32, true>)
CONV(conv_bf16_narrow_64, bf16, conv_bf16<64, 64, 32, false>)
CONV(conv_bf16_narrow_32, bf16, conv_bf16<32, 32, 32, false>)
CONV(conv_f32_wide_64, float, conv_f32<true>)
CONV(conv_f32_narrow_64, float, conv_f32<false>)
