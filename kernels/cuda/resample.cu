// Resizing, shuffling and warping of channels-last pictures, and the encoder's planes.
//
// meaning        backward_warp: bilinear at x + flow, clamped; blend_mask: a*sigma(m) + b*(1 - sigma(m)); warp_blend: both
//                warps and the blend in one pass; resize_bilinear: half-pixel centres; pixel_shuffle2x: channel 4i + 2dy + dx
//                of a pixel to channel i of pixel (2y + dy, 2x + dx); upsample_nearest2x: each pixel four times;
//                add_averaged, add_repeated: y plus the means or the repeats of a smaller or larger clip's values;
//                rgb_to_yuv420: RGB to the planes of BT.709, limited range, chroma the mean of 2x2
// inputs         pictures [h, w, c] and clips [f, h, w, c], f32 or bf16, channels last, contiguous; flow [h, w, 2] f32 in
//                pixels, x first; mask [h, w] f32, logits
// outputs        new buffers of the inputs' dtype that alias nothing; planes are bytes, Y then U then V, frame by frame
// preconditions  buffers aligned to 16 bytes; pixels of a clip below 2^31, pixels of a block a multiple of 8; elements of a
//                block below 2^20; phases of a change of size at most kPhasesMax; sides of an RGB picture even
// reference      src/resample/reference.rs; relative RMSE <= 1e-5 (f32), <= 1e-2 (bf16, rounded once); copies and planes
//                are exact
// bound by       memory: each input once, each output once (16 bytes a thread where the channels allow)
// benchmark      zoetrope bench kernels: backward_warp, blend_mask, warp_blend, resize_bilinear, pixel_shuffle2x,
//                upsample_nearest2x, add_averaged, add_repeated, rgb_to_yuv420
#include "gpu.cuh"

namespace {

constexpr int kThreads = 256;
// Pixels of a block at most: what shared memory holds a sample for.
constexpr int kPixelsMax = 512;
constexpr int kPhasesMax = 256;

// One element, handled like a Pack of them.
template <class T>
struct One {
  static constexpr int kCount = 1;
  T at[1];
};

// e / by, for e < 2^20: the reciprocal's error stays below half a quotient's step.
struct Divisor {
  int by;
  float reciprocal;
  DEVICE explicit Divisor(int divisor) : by(divisor), reciprocal(1.0f / divisor) {}
  DEVICE int of(int e) const { return static_cast<int>((e + 0.5f) * reciprocal); }
};

// The pixels that a block handles: `count` from `first` on.
struct Range {
  long long first;
  int count;
};
DEVICE Range block_pixels(long long pixels, int per_block) {
  const long long first = static_cast<long long>(blockIdx.x) * per_block;
  return {first, static_cast<int>(min(static_cast<long long>(per_block), pixels - first))};
}

// Where a pixel reads: the upper left one of four neighbours, by its number in the clip.
struct alignas(16) Sample {
  int at;
  // 1: there is a pixel to the right; 2: there is one below.
  int more;
  // Weights of the right and of the lower neighbours.
  float fx, fy;
};

// A coordinate clamped to 0..n: the first of two neighbours, at most n - 2, and the weight of the second. Not-a-number is 0.
struct Split {
  int first;
  float weight;
};
DEVICE Split split(float coordinate, int n) {
  const float clamped = fminf(fmaxf(coordinate, 0.0f), static_cast<float>(n - 1));
  // A whole number may be rounded down to the one before: then its weight is 1, which is the same sample.
  const float first = fmaxf(fminf(rintf(clamped - 0.5f), static_cast<float>(n - 2)), 0.0f);
  return {static_cast<int>(first), clamped - first};
}

DEVICE Sample warped(float2 flow, int pixel, int h, int w) {
  const int y = pixel / w, x = pixel - y * w;
  const Split column = split(x + flow.x, w), row = split(y + flow.y, h);
  return {row.first * w + column.first, (w > 1 ? 1 : 0) + (h > 1 ? 2 : 0), column.weight, row.weight};
}

// The weighted sum of a sample's four neighbours in `image`, V::kCount channels from `channel` on.
template <class V>
DEVICE void sampled(const V* __restrict__ image, const Sample& s, int w, int vectors, int channel, float* sum) {
  const long long from = static_cast<long long>(s.at) * vectors + channel;
  const long long right = s.more & 1 ? vectors : 0, below = s.more & 2 ? static_cast<long long>(w) * vectors : 0;
  const V taps[4] = {image[from], image[from + right], image[from + below], image[from + below + right]};
  const float gx = 1.0f - s.fx, gy = 1.0f - s.fy;
  const float weights[4] = {gy * gx, gy * s.fx, s.fy * gx, s.fy * s.fx};
#pragma unroll
  for (int i = 0; i < V::kCount; i++) {
    sum[i] = 0.0f;
#pragma unroll
    for (int tap = 0; tap < 4; tap++) sum[i] = fmaf(weights[tap], f32(taps[tap].at[i]), sum[i]);
  }
}

template <class T, class V>
DEVICE void warp_pixels(const T* __restrict__ image, T* __restrict__ out, Range range, int w, int c,
                        const Sample* samples) {
  const int vectors = c / V::kCount;
  const V* from = reinterpret_cast<const V*>(image);
  V* to = reinterpret_cast<V*>(out) + range.first * vectors;
  const Divisor per_pixel(vectors);
  for (int e = threadIdx.x; e < range.count * vectors; e += kThreads) {
    const int pixel = per_pixel.of(e);
    float sum[V::kCount];
    sampled(from, samples[pixel], w, vectors, e - pixel * vectors, sum);
    V result;
#pragma unroll
    for (int i = 0; i < V::kCount; i++) result.at[i] = rounded<T>(sum[i]);
    to[e] = result;
  }
}

template <class T>
DEVICE void backward_warp(const T* __restrict__ image, const float* __restrict__ flow, T* __restrict__ out, int h, int w,
                          int c, int per_block) {
  SHARED(Sample, samples, [kPixelsMax]);
  const Range range = block_pixels(static_cast<long long>(h) * w, per_block);
  const float2* flows = reinterpret_cast<const float2*>(flow);
  for (int p = threadIdx.x; p < range.count; p += kThreads) {
    samples[p] = warped(flows[range.first + p], static_cast<int>(range.first) + p, h, w);
  }
  __syncthreads();
  if (c % Pack<T>::kCount == 0) {
    warp_pixels<T, Pack<T>>(image, out, range, w, c, samples);
  } else {
    warp_pixels<T, One<T>>(image, out, range, w, c, samples);
  }
}

DEVICE float logistic(float x) { return __fdividef(1.0f, 1.0f + __expf(-x)); }

template <class T>
DEVICE T blended(T a, T b, float weight) {
  return rounded<T>(fmaf(f32(a) - f32(b), weight, f32(b)));
}

template <class T>
DEVICE void blend_mask(const T* __restrict__ a, const T* __restrict__ b, const float* __restrict__ mask,
                       T* __restrict__ out, long long pixels, int c, int per_block) {
  SHARED(float, weights, [kPixelsMax]);
  using V = Pack<T>;
  const Range range = block_pixels(pixels, per_block);
  for (int p = threadIdx.x; p < range.count; p += kThreads) weights[p] = logistic(mask[range.first + p]);
  __syncthreads();
  // A block begins at a multiple of eight pixels, so at a whole vector, whatever c is.
  const long long first = range.first * c;
  const V *va = reinterpret_cast<const V*>(a + first), *vb = reinterpret_cast<const V*>(b + first);
  V* to = reinterpret_cast<V*>(out + first);
  const Divisor per_pixel(c);
  const int elements = range.count * c, vectors = elements / V::kCount;
  for (int v = threadIdx.x; v < vectors; v += kThreads) {
    const V x = va[v], y = vb[v];
    V result;
#pragma unroll
    for (int i = 0; i < V::kCount; i++) {
      result.at[i] = blended(x.at[i], y.at[i], weights[per_pixel.of(v * V::kCount + i)]);
    }
    to[v] = result;
  }
  for (int e = vectors * V::kCount + threadIdx.x; e < elements; e += kThreads) {
    out[first + e] = blended(a[first + e], b[first + e], weights[per_pixel.of(e)]);
  }
}

template <class T, class V>
DEVICE void warp_blend_pixels(const T* __restrict__ a, const T* __restrict__ b, T* __restrict__ out, Range range, int w,
                              int c, const Sample* of_a, const Sample* of_b, const float* weights) {
  const int vectors = c / V::kCount;
  V* to = reinterpret_cast<V*>(out) + range.first * vectors;
  const Divisor per_pixel(vectors);
  for (int e = threadIdx.x; e < range.count * vectors; e += kThreads) {
    const int pixel = per_pixel.of(e), channel = e - pixel * vectors;
    float x[V::kCount], y[V::kCount];
    sampled(reinterpret_cast<const V*>(a), of_a[pixel], w, vectors, channel, x);
    sampled(reinterpret_cast<const V*>(b), of_b[pixel], w, vectors, channel, y);
    V result;
#pragma unroll
    for (int i = 0; i < V::kCount; i++) {
      result.at[i] = blended(rounded<T>(x[i]), rounded<T>(y[i]), weights[pixel]);
    }
    to[e] = result;
  }
}

template <class T>
DEVICE void warp_blend(const T* __restrict__ a, const T* __restrict__ b, const float* __restrict__ flow_a,
                       const float* __restrict__ flow_b, const float* __restrict__ mask, T* __restrict__ out, int h,
                       int w, int c, int per_block) {
  SHARED(Sample, of_a, [kPixelsMax]);
  SHARED(Sample, of_b, [kPixelsMax]);
  SHARED(float, weights, [kPixelsMax]);
  const Range range = block_pixels(static_cast<long long>(h) * w, per_block);
  for (int p = threadIdx.x; p < range.count; p += kThreads) {
    const int pixel = static_cast<int>(range.first) + p;
    of_a[p] = warped(reinterpret_cast<const float2*>(flow_a)[pixel], pixel, h, w);
    of_b[p] = warped(reinterpret_cast<const float2*>(flow_b)[pixel], pixel, h, w);
    weights[p] = logistic(mask[pixel]);
  }
  __syncthreads();
  if (c % Pack<T>::kCount == 0) {
    warp_blend_pixels<T, Pack<T>>(a, b, out, range, w, c, of_a, of_b, weights);
  } else {
    warp_blend_pixels<T, One<T>>(a, b, out, range, w, c, of_a, of_b, weights);
  }
}

// The source position under output position `i`: `ratio` is source length over output length.
DEVICE Split source(int i, float ratio, int n) {
  // Rounded after the product as on the CPU: a fused one moves samples of large pictures by a part in thousands.
  const float position = fmaxf(product(i + 0.5f, ratio) - 0.5f, 0.0f);
  const int first = min(static_cast<int>(position), n - 1);
  return {first, position - first};
}

template <class T, class V>
DEVICE void resize_pixels(const T* __restrict__ x, T* __restrict__ out, Range range, int w, int c, const Sample* samples) {
  const int vectors = c / V::kCount;
  const V* from = reinterpret_cast<const V*>(x);
  V* to = reinterpret_cast<V*>(out) + range.first * vectors;
  const Divisor per_pixel(vectors);
  for (int e = threadIdx.x; e < range.count * vectors; e += kThreads) {
    const int pixel = per_pixel.of(e);
    const Sample s = samples[pixel];
    const long long at = static_cast<long long>(s.at) * vectors + e - pixel * vectors;
    const long long right = s.more & 1 ? vectors : 0, below = s.more & 2 ? static_cast<long long>(w) * vectors : 0;
    const V upper_left = from[at], upper_right = from[at + right];
    const V lower_left = from[at + below], lower_right = from[at + below + right];
    V result;
#pragma unroll
    for (int i = 0; i < V::kCount; i++) {
      const float left = fmaf(f32(lower_left.at[i]) - f32(upper_left.at[i]), s.fy, f32(upper_left.at[i]));
      const float other = fmaf(f32(lower_right.at[i]) - f32(upper_right.at[i]), s.fy, f32(upper_right.at[i]));
      result.at[i] = rounded<T>(fmaf(other - left, s.fx, left));
    }
    to[e] = result;
  }
}

template <class T>
DEVICE void resize_bilinear(const T* __restrict__ x, T* __restrict__ out, int frames, int h, int w, int c, int height,
                            int width, float ratio_y, float ratio_x, int per_block) {
  SHARED(Sample, samples, [kPixelsMax]);
  const Range range = block_pixels(static_cast<long long>(frames) * height * width, per_block);
  for (int p = threadIdx.x; p < range.count; p += kThreads) {
    const unsigned pixel = static_cast<unsigned>(range.first) + p;
    const unsigned line = pixel / width, frame = line / height;
    const Split column = source(static_cast<int>(pixel - line * width), ratio_x, w);
    const Split row = source(static_cast<int>(line - frame * height), ratio_y, h);
    const int more = (column.first + 1 < w ? 1 : 0) + (row.first + 1 < h ? 2 : 0);
    samples[p] = {(static_cast<int>(frame) * h + row.first) * w + column.first, more, column.weight, row.weight};
  }
  __syncthreads();
  if (c % Pack<T>::kCount == 0) {
    resize_pixels<T, Pack<T>>(x, out, range, w, c, samples);
  } else {
    resize_pixels<T, One<T>>(x, out, range, w, c, samples);
  }
}

// Four neighbouring channels, which become the same channel of four pixels.
template <class T>
struct alignas(4 * sizeof(T)) Quad {
  T at[4];
};

// x [rows, w, 4c] -> [2 rows, 2w, c].
template <class T>
DEVICE void pixel_shuffle2x(const T* __restrict__ x, T* __restrict__ out, long long pixels, int w, int c, int per_block) {
  const Range range = block_pixels(pixels, per_block);
  const Quad<T>* from = reinterpret_cast<const Quad<T>*>(x) + range.first * c;
  const Divisor per_pixel(c);
  const long long line = 2LL * w * c;
  for (int e = threadIdx.x; e < range.count * c; e += kThreads) {
    const Quad<T> quad = from[e];
    const int p = per_pixel.of(e);
    const unsigned pixel = static_cast<unsigned>(range.first) + p, row = pixel / w;
    T* to = out + 2 * row * line + static_cast<long long>(pixel - row * w) * 2 * c + e - p * c;
    to[0] = quad.at[0];
    to[c] = quad.at[1];
    to[line] = quad.at[2];
    to[line + c] = quad.at[3];
  }
}

template <class T, class V>
DEVICE void repeat_pixels(const T* __restrict__ x, T* __restrict__ out, Range range, int w, int c) {
  const int vectors = c / V::kCount;
  const V* from = reinterpret_cast<const V*>(x) + range.first * vectors;
  const Divisor per_pixel(vectors);
  const long long line = 2LL * w * vectors;
  for (int e = threadIdx.x; e < range.count * vectors; e += kThreads) {
    const V value = from[e];
    const int p = per_pixel.of(e);
    const unsigned pixel = static_cast<unsigned>(range.first) + p, row = pixel / w;
    V* to = reinterpret_cast<V*>(out) + 2 * row * line + static_cast<long long>(pixel - row * w) * 2 * vectors + e -
            p * vectors;
    to[0] = value;
    to[vectors] = value;
    to[line] = value;
    to[line + vectors] = value;
  }
}

// x [rows, w, c] -> [2 rows, 2w, c].
template <class T>
DEVICE void upsample_nearest2x(const T* __restrict__ x, T* __restrict__ out, long long pixels, int w, int c,
                               int per_block) {
  const Range range = block_pixels(pixels, per_block);
  if (c % Pack<T>::kCount == 0) {
    repeat_pixels<T, Pack<T>>(x, out, range, w, c);
  } else {
    repeat_pixels<T, One<T>>(x, out, range, w, c);
  }
}

// A change of a clip's size: the larger clip's position of a phase, in the order (time, row, column).
struct Phases {
  int time, side;
  DEVICE int count() const { return time * side * side; }
};

// Sizes of two clips that a change of size relates: `h`, `w`, `cin` are those of x, the others the result's.
struct Sizes {
  int h, w, cin;
  int to_h, to_w, cout;
};

template <class T, class V>
DEVICE void average_pixels(const T* __restrict__ y, const T* __restrict__ x, T* __restrict__ out, Range range,
                           const Sizes& sizes, const Phases& phases, int missing, const long long* offsets) {
  const int volume = phases.count(), vectors = sizes.cout / V::kCount;
  const int group = sizes.cin * volume / sizes.cout;
  const Divisor per_pixel(vectors);
  const V* before = reinterpret_cast<const V*>(y) + range.first * vectors;
  V* to = reinterpret_cast<V*>(out) + range.first * vectors;
  for (int e = threadIdx.x; e < range.count * vectors; e += kThreads) {
    V value = before[e];
    const int p = per_pixel.of(e);
    const unsigned pixel = static_cast<unsigned>(range.first) + p;
    const unsigned line = pixel / sizes.to_w, frame = line / sizes.to_h;
    const int column = static_cast<int>(pixel - line * sizes.to_w), row = static_cast<int>(line - frame * sizes.to_h);
    // The first frame's group may begin before the clip: what is missing counts as zeros.
    const long long start = static_cast<long long>(frame) * phases.time - missing;
    const int skipped = frame == 0 ? missing * phases.side * phases.side : 0;
    const T* from = x + ((start * sizes.h + row * phases.side) * sizes.w + column * phases.side) * sizes.cin;
    int k = (e - p * vectors) * V::kCount * group;
    int channel = k / volume, phase = k - channel * volume;
#pragma unroll
    for (int i = 0; i < V::kCount; i++) {
      float sum = 0.0f;
#pragma unroll 2
      for (int n = 0; n < group; n++) {
        if (phase >= skipped) sum += f32(from[offsets[phase] + channel]);
        if (++phase == volume) {
          phase = 0;
          channel++;
        }
      }
      value.at[i] = rounded<T>(f32(value.at[i]) + sum / group);
    }
    to[e] = value;
  }
}

// y + means: x [f, h, w, cin] -> [ceil(f / time), h / side, w / side, cout]; `missing` frames before x's first are zeros.
template <class T>
DEVICE void add_averaged(const T* __restrict__ y, const T* __restrict__ x, T* __restrict__ out, long long pixels,
                         Sizes sizes, Phases phases, int missing, int per_block) {
  SHARED(long long, offsets, [kPhasesMax]);
  const int area = phases.side * phases.side;
  for (int phase = threadIdx.x; phase < phases.count(); phase += kThreads) {
    const int t = phase / area, dy = phase / phases.side % phases.side, dx = phase % phases.side;
    offsets[phase] = ((static_cast<long long>(t) * sizes.h + dy) * sizes.w + dx) * sizes.cin;
  }
  __syncthreads();
  const Range range = block_pixels(pixels, per_block);
  if (sizes.cout % Pack<T>::kCount == 0) {
    average_pixels<T, Pack<T>>(y, x, out, range, sizes, phases, missing, offsets);
  } else {
    average_pixels<T, One<T>>(y, x, out, range, sizes, phases, missing, offsets);
  }
}

template <class T, class V>
DEVICE void repeat_values(const T* __restrict__ y, const T* __restrict__ x, T* __restrict__ out, Range range,
                          const Sizes& sizes, const Phases& phases, int dropped) {
  const int volume = phases.count(), vectors = sizes.cout / V::kCount;
  const int repeats = sizes.cout * volume / sizes.cin, step = volume / repeats, rest = volume - step * repeats;
  const Divisor per_pixel(vectors);
  const V* before = reinterpret_cast<const V*>(y) + range.first * vectors;
  V* to = reinterpret_cast<V*>(out) + range.first * vectors;
  for (int e = threadIdx.x; e < range.count * vectors; e += kThreads) {
    V value = before[e];
    const int p = per_pixel.of(e);
    const unsigned pixel = static_cast<unsigned>(range.first) + p;
    const unsigned line = pixel / sizes.to_w, lines_before = line / sizes.to_h;
    const int column = static_cast<int>(pixel - line * sizes.to_w);
    const int row = static_cast<int>(line - lines_before * sizes.to_h);
    const int frame = static_cast<int>(lines_before) + dropped;
    const int t = frame / phases.time, source_row = row / phases.side, source_column = column / phases.side;
    const T* from = x + ((static_cast<long long>(t) * sizes.h + source_row) * sizes.w + source_column) * sizes.cin;
    const int phase = ((frame - t * phases.time) * phases.side + row - source_row * phases.side) * phases.side + column -
                      source_column * phases.side;
    const int n = (e - p * vectors) * V::kCount * volume + phase;
    int channel = n / repeats, left = n - channel * repeats;
#pragma unroll
    for (int i = 0; i < V::kCount; i++) {
      value.at[i] = rounded<T>(f32(value.at[i]) + f32(from[channel]));
      channel += step;
      left += rest;
      if (left >= repeats) {
        left -= repeats;
        channel++;
      }
    }
    to[e] = value;
  }
}

// y + repeats: x [f, h, w, cin] -> [f * time - dropped, h * side, w * side, cout], without the first `dropped` frames.
template <class T>
DEVICE void add_repeated(const T* __restrict__ y, const T* __restrict__ x, T* __restrict__ out, long long pixels,
                         Sizes sizes, Phases phases, int dropped, int per_block) {
  const Range range = block_pixels(pixels, per_block);
  if (sizes.cout % Pack<T>::kCount == 0) {
    repeat_values<T, Pack<T>>(y, x, out, range, sizes, phases, dropped);
  } else {
    repeat_values<T, One<T>>(y, x, out, range, sizes, phases, dropped);
  }
}

// Weights of red, green and blue in luma, blue difference and red difference, in parts of 2^16.
struct YuvWeights {
  int luma[3], blue[3], red[3];
};
constexpr int kFractionBits = 16;

DEVICE int weighed(const int* weights, const int* rgb) {
  return weights[0] * rgb[0] + weights[1] * rgb[1] + weights[2] * rgb[2];
}

// A value of 0..1 as a byte, halves away from zero.
DEVICE int byte_of(float value) {
  const float scaled = fminf(fmaxf(product(value, 255.0f), 0.0f), 255.0f);
  const float below = floorf(scaled);
  return static_cast<int>(below) + (scaled - below >= 0.5f ? 1 : 0);
}

// kColumns bytes that are written at once.
template <int kColumns>
struct alignas(kColumns) Bytes {
  uint8_t at[kColumns];
};

// kColumns pixels of one row: their values from memory, V::kCount at a time, as bytes.
template <class T, class V, int kColumns>
DEVICE void bytes_of_row(const T* __restrict__ row, int (*rgb)[3]) {
  const V* from = reinterpret_cast<const V*>(row);
#pragma unroll
  for (int v = 0; v < 3 * kColumns / V::kCount; v++) {
    const V values = from[v];
#pragma unroll
    for (int i = 0; i < V::kCount; i++) {
      const int at = v * V::kCount + i;
      rgb[at / 3][at % 3] = byte_of(f32(values.at[i]));
    }
  }
}

// Two rows of kColumns pixels each: their luma, and the chroma of their 2x2 blocks.
template <class T, class V, int kColumns>
DEVICE void convert_blocks(const T* __restrict__ rgb, uint8_t* __restrict__ planes, long long at, int h, int w,
                           const YuvWeights& weights) {
  const int across = w / kColumns;
  const long long down = at / across;
  const int column = static_cast<int>(at - down * across) * kColumns;
  const int pair = static_cast<int>(down % (h / 2));
  const long long frame = down / (h / 2), area = static_cast<long long>(h) * w;
  uint8_t* luma = planes + frame * (area + area / 2) + 2LL * pair * w + column;
  uint8_t* chroma = planes + frame * (area + area / 2) + area + static_cast<long long>(pair) * (w / 2) + column / 2;
  const T* from = rgb + (frame * area + 2LL * pair * w + column) * 3;
  int sums[kColumns / 2][3] = {};
#pragma unroll
  for (int row = 0; row < 2; row++) {
    int values[kColumns][3];
    bytes_of_row<T, V, kColumns>(from + static_cast<long long>(row) * w * 3, values);
    Bytes<kColumns> y;
#pragma unroll
    for (int i = 0; i < kColumns; i++) {
      const int half = (16 << kFractionBits) + (1 << (kFractionBits - 1));
      y.at[i] = static_cast<uint8_t>((weighed(weights.luma, values[i]) + half) >> kFractionBits);
#pragma unroll
      for (int channel = 0; channel < 3; channel++) sums[i / 2][channel] += values[i][channel];
    }
    *reinterpret_cast<Bytes<kColumns>*>(luma + static_cast<long long>(row) * w) = y;
  }
  Bytes<kColumns / 2> u, v;
#pragma unroll
  for (int i = 0; i < kColumns / 2; i++) {
    // Sums of four pixels carry two more bits.
    const int half = (128 << (kFractionBits + 2)) + (1 << (kFractionBits + 1));
    u.at[i] = static_cast<uint8_t>((weighed(weights.blue, sums[i]) + half) >> (kFractionBits + 2));
    v.at[i] = static_cast<uint8_t>((weighed(weights.red, sums[i]) + half) >> (kFractionBits + 2));
  }
  *reinterpret_cast<Bytes<kColumns / 2>*>(chroma) = u;
  *reinterpret_cast<Bytes<kColumns / 2>*>(chroma + area / 4) = v;
}

// A thread converts two rows of `columns` pixels: those of a vector where w is a multiple and planes begin at one, else 2.
template <class T>
DEVICE void rgb_to_yuv420(const T* __restrict__ rgb, uint8_t* __restrict__ planes, long long frames, int h, int w,
                          int columns, const YuvWeights& weights) {
  constexpr int kWide = Pack<T>::kCount;
  const long long at = static_cast<long long>(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= frames * (h / 2) * (w / columns)) return;
  if (columns == kWide) {
    convert_blocks<T, Pack<T>, kWide>(rgb, planes, at, h, w, weights);
  } else {
    convert_blocks<T, One<T>, 2>(rgb, planes, at, h, w, weights);
  }
}

}  // namespace

// Every kernel for both dtypes.
#define RESAMPLE_KERNELS(T, suffix)                                                                                      \
  KERNEL(kThreads) backward_warp_##suffix(const T* image, const float* flow, T* out, int h, int w, int c, int per_block) { \
    backward_warp(image, flow, out, h, w, c, per_block);                                                                 \
  }                                                                                                                      \
  EXPORT(backward_warp_##suffix)                                                                                         \
  KERNEL(kThreads)                                                                                                       \
  blend_mask_##suffix(const T* a, const T* b, const float* mask, T* out, long long pixels, int c, int per_block) {       \
    blend_mask(a, b, mask, out, pixels, c, per_block);                                                                   \
  }                                                                                                                      \
  EXPORT(blend_mask_##suffix)                                                                                            \
  KERNEL(kThreads)                                                                                                       \
  warp_blend_##suffix(const T* a, const T* b, const float* flow_a, const float* flow_b, const float* mask, T* out, int h, \
                      int w, int c, int per_block) {                                                                     \
    warp_blend(a, b, flow_a, flow_b, mask, out, h, w, c, per_block);                                                     \
  }                                                                                                                      \
  EXPORT(warp_blend_##suffix)                                                                                            \
  KERNEL(kThreads)                                                                                                       \
  resize_bilinear_##suffix(const T* x, T* out, int frames, int h, int w, int c, int height, int width, float ratio_y,    \
                           float ratio_x, int per_block) {                                                               \
    resize_bilinear(x, out, frames, h, w, c, height, width, ratio_y, ratio_x, per_block);                                \
  }                                                                                                                      \
  EXPORT(resize_bilinear_##suffix)                                                                                       \
  KERNEL(kThreads) pixel_shuffle2x_##suffix(const T* x, T* out, long long pixels, int w, int c, int per_block) {         \
    pixel_shuffle2x(x, out, pixels, w, c, per_block);                                                                    \
  }                                                                                                                      \
  EXPORT(pixel_shuffle2x_##suffix)                                                                                       \
  KERNEL(kThreads) upsample_nearest2x_##suffix(const T* x, T* out, long long pixels, int w, int c, int per_block) {      \
    upsample_nearest2x(x, out, pixels, w, c, per_block);                                                                 \
  }                                                                                                                      \
  EXPORT(upsample_nearest2x_##suffix)                                                                                    \
  KERNEL(kThreads)                                                                                                       \
  add_averaged_##suffix(const T* y, const T* x, T* out, long long pixels, Sizes sizes, Phases phases, int missing,       \
                        int per_block) {                                                                                 \
    add_averaged(y, x, out, pixels, sizes, phases, missing, per_block);                                                  \
  }                                                                                                                      \
  EXPORT(add_averaged_##suffix)                                                                                          \
  KERNEL(kThreads)                                                                                                       \
  add_repeated_##suffix(const T* y, const T* x, T* out, long long pixels, Sizes sizes, Phases phases, int dropped,       \
                        int per_block) {                                                                                 \
    add_repeated(y, x, out, pixels, sizes, phases, dropped, per_block);                                                  \
  }                                                                                                                      \
  EXPORT(add_repeated_##suffix)                                                                                          \
  KERNEL(kThreads)                                                                                                       \
  rgb_to_yuv420_##suffix(const T* rgb, uint8_t* planes, long long frames, int h, int w, int columns,                     \
                         YuvWeights weights) {                                                                           \
    rgb_to_yuv420(rgb, planes, frames, h, w, columns, weights);                                                          \
  }                                                                                                                      \
  EXPORT(rgb_to_yuv420_##suffix)

RESAMPLE_KERNELS(float, f32)
RESAMPLE_KERNELS(bf16, bf16)
