// Pointwise arithmetic on dense tensors, the fused sampler step, and sums over whole tensors.
//
//                     inputs → outputs (all of n elements)
// activate            x f32 or bf16 → y f32 or bf16: an activation, or with none the conversion between dtypes
// clamp               x f32, in place: low ≤ x ≤ high; what is not a number stays
// multiply            a, b f32 or bf16 → y of a's dtype; b is rounded to it first
// linear_combination  16 terms at most, f32 or bf16 → y: Σ factor·term, summed in f32 in order
// combine_step        8 inputs at most, f32 → 4 outputs at most, f32: each Σ weight·input, summed in f64 and rounded once;
//                     an input of weight 0 is not looked at; an output may be the memory of an input
// gram                4 inputs at most, f32 → part f64 [blocks, 14]: each block's sums of the inputs, then of the products
//                     of each with itself and those after it
// count_infinite      x f32 or bf16 → part f32 [blocks]: how many of a block's elements are infinite or not numbers
//
// preconditions       memory starts at multiples of 16 bytes; gram and count_infinite: 256 threads a block, and results
//                     depend (in the last bits) on the number of blocks, so that is the same on every device
// reference           elementwise/reference.rs; relative RMSE ≤ 1e-4 (f32), ≤ 1e-2 (bf16: the result is rounded), and
//                     ≤ 1e-12 for gram
// bound by            memory: each input is read and each output written once
// benchmark           elementwise, combine_step
#include "activation.cuh"
#include "vector.cuh"

// Groups that a thread has in flight.
constexpr int kInFlight = 4;
constexpr int kThreads = 256;

// Where this thread's group `i` of n values starts: a block's groups are side by side.
template <int n>
DEVICE long long start(int i) {
  return ((static_cast<long long>(blockIdx.x) * kInFlight + i) * kThreads + threadIdx.x) * n;
}

template <class I, class O>
DEVICE void activate(const I* x, O* y, long long count, int code, float slope) {
  constexpr int n = kGroupOf<I, O>;
  float v[kInFlight][n];
#pragma unroll
  for (int i = 0; i < kInFlight; i++) load_up_to(x + start<n>(i), count - start<n>(i), start<n>(i) + n <= count, v[i]);
#pragma unroll
  for (int i = 0; i < kInFlight; i++) {
#pragma unroll
    for (int j = 0; j < n; j++) v[i][j] = activated(v[i][j], code, slope);
    store_up_to(y + start<n>(i), count - start<n>(i), start<n>(i) + n <= count, v[i]);
  }
}

#define ACTIVATE(I, O, suffix)                                                                   \
  KERNEL(kThreads) activate_##suffix(const I* x, O* y, long long count, int code, float slope) { \
    activate(x, y, count, code, slope);                                                          \
  }                                                                                              \
  EXPORT(activate_##suffix)

ACTIVATE(float, float, f32_f32)
ACTIVATE(float, bf16, f32_bf16)
ACTIVATE(bf16, float, bf16_f32)
ACTIVATE(bf16, bf16, bf16_bf16)

KERNEL(kThreads) clamp_f32(float* x, long long count, float low, float high) {
  float v[kInFlight][4];
#pragma unroll
  for (int i = 0; i < kInFlight; i++) load_up_to(x + start<4>(i), count - start<4>(i), start<4>(i) + 4 <= count, v[i]);
#pragma unroll
  for (int i = 0; i < kInFlight; i++) {
#pragma unroll
    for (int j = 0; j < 4; j++) v[i][j] = v[i][j] < low ? low : v[i][j] > high ? high : v[i][j];
    store_up_to(x + start<4>(i), count - start<4>(i), start<4>(i) + 4 <= count, v[i]);
  }
}
EXPORT(clamp_f32)

template <class A, class B>
DEVICE void multiply(const A* a, const B* b, A* y, long long count) {
  constexpr int n = kGroupOf<A, B>, in_flight = kInFlight / 2;
  float v[in_flight][n], w[in_flight][n];
#pragma unroll
  for (int i = 0; i < in_flight; i++) {
    const long long at = ((static_cast<long long>(blockIdx.x) * in_flight + i) * kThreads + threadIdx.x) * n;
    load_up_to(a + at, count - at, at + n <= count, v[i]);
    load_up_to(b + at, count - at, at + n <= count, w[i]);
  }
#pragma unroll
  for (int i = 0; i < in_flight; i++) {
    const long long at = ((static_cast<long long>(blockIdx.x) * in_flight + i) * kThreads + threadIdx.x) * n;
#pragma unroll
    for (int j = 0; j < n; j++) v[i][j] *= f32(rounded<A>(w[i][j]));
    store_up_to(y + at, count - at, at + n <= count, v[i]);
  }
}

#define MULTIPLY(A, B, suffix)                                                                                    \
  KERNEL(kThreads) multiply_##suffix(const A* a, const B* b, A* y, long long count) { multiply(a, b, y, count); } \
  EXPORT(multiply_##suffix)

MULTIPLY(float, float, f32_f32)
MULTIPLY(float, bf16, f32_bf16)
MULTIPLY(bf16, float, bf16_f32)
MULTIPLY(bf16, bf16, bf16_bf16)

// What a term's values are.
enum TermKind : int { kTermF32 = 0, kTermBf16 = 1, kTermF32ToBf16 = 2 };
constexpr int kTermsMax = 16;
struct Terms {
  const void* values[kTermsMax];
  float factor[kTermsMax];
  int kind[kTermsMax];
  int count;
};

template <class O>
DEVICE void linear_combination(const Terms& terms, O* y, long long count) {
  constexpr int n = kGroupOf<O, O>;
  const long long at = (static_cast<long long>(blockIdx.x) * kThreads + threadIdx.x) * n;
  const bool whole = at + n <= count;
  float sum[n];
#pragma unroll
  for (int j = 0; j < n; j++) sum[j] = 0.0f;
  for (int t = 0; t < terms.count; t++) {
    float v[n];
    if (terms.kind[t] == kTermBf16) {
      load_up_to(static_cast<const bf16*>(terms.values[t]) + at, count - at, whole, v);
    } else {
      load_up_to(static_cast<const float*>(terms.values[t]) + at, count - at, whole, v);
    }
#pragma unroll
    for (int j = 0; j < n; j++) {
      if (terms.kind[t] == kTermF32ToBf16) v[j] = f32(rounded<bf16>(v[j]));
      sum[j] = fmaf(terms.factor[t], v[j], sum[j]);
    }
  }
  store_up_to(y + at, count - at, whole, sum);
}

KERNEL(kThreads) linear_combination_f32(const Terms terms, float* y, long long count) {
  linear_combination(terms, y, count);
}
EXPORT(linear_combination_f32)
KERNEL(kThreads) linear_combination_bf16(const Terms terms, bf16* y, long long count) {
  linear_combination(terms, y, count);
}
EXPORT(linear_combination_bf16)

constexpr int kInputsMax = 8, kOutputsMax = 4;
struct Step {
  const float* inputs[kInputsMax];
  float* outputs[kOutputsMax];
  double weights[kOutputsMax][kInputsMax];
  int input_count, output_count;
};

KERNEL(kThreads) combine_step(const Step step, long long count) {
  const long long at = (static_cast<long long>(blockIdx.x) * kThreads + threadIdx.x) * 4;
  const bool whole = at + 4 <= count;
  float v[kInputsMax][4];
#pragma unroll
  for (int i = 0; i < kInputsMax; i++) {
    if (i < step.input_count) load_up_to(step.inputs[i] + at, count - at, whole, v[i]);
  }
#pragma unroll
  for (int o = 0; o < kOutputsMax; o++) {
    if (o >= step.output_count) return;
    double sum[4] = {0.0, 0.0, 0.0, 0.0};
#pragma unroll
    for (int i = 0; i < kInputsMax; i++) {
      if (i >= step.input_count || step.weights[o][i] == 0.0) continue;
#pragma unroll
      for (int j = 0; j < 4; j++) sum[j] += step.weights[o][i] * v[i][j];
    }
    const float out[4] = {static_cast<float>(sum[0]), static_cast<float>(sum[1]), static_cast<float>(sum[2]),
                          static_cast<float>(sum[3])};
    store_up_to(step.outputs[o] + at, count - at, whole, out);
  }
}
EXPORT(combine_step)

constexpr int kGramInputsMax = 4, kGramSums = kGramInputsMax * (kGramInputsMax + 3) / 2;
struct GramInputs {
  const float* inputs[kGramInputsMax];
  int count;
};

KERNEL(kThreads) gram(const GramInputs of, double* part, long long count) {
  SHARED(double, of_warps, [kGramSums][kThreads / kWarp]);
  double sums[kGramSums];
#pragma unroll
  for (int s = 0; s < kGramSums; s++) sums[s] = 0.0;
  const long long stride = static_cast<long long>(gridDim.x) * kThreads * 4;
  for (long long at = (static_cast<long long>(blockIdx.x) * kThreads + threadIdx.x) * 4; at < count; at += stride) {
    float v[kGramInputsMax][4];
#pragma unroll
    for (int i = 0; i < kGramInputsMax; i++) {
      // Absent ones are zeros, which add nothing.
      load_up_to(of.inputs[i] + at, i < of.count ? count - at : 0, at + 4 <= count, v[i]);
    }
#pragma unroll
    for (int j = 0; j < 4; j++) {
      int s = 0;
#pragma unroll
      for (int a = 0; a < kGramInputsMax; a++) sums[s++] += v[a][j];
#pragma unroll
      for (int a = 0; a < kGramInputsMax; a++) {
#pragma unroll
        for (int b = a; b < kGramInputsMax; b++) sums[s++] += static_cast<double>(v[a][j]) * v[b][j];
      }
    }
  }
#pragma unroll
  for (int s = 0; s < kGramSums; s++) {
#pragma unroll
    for (int mask = kWarp / 2; mask > 0; mask /= 2) sums[s] += __shfl_xor_sync(~0u, sums[s], mask);
    if (lane() == 0) of_warps[s][warp()] = sums[s];
  }
  __syncthreads();
  if (threadIdx.x >= kGramSums) return;
  double sum = 0.0;
  for (int w = 0; w < kThreads / kWarp; w++) sum += of_warps[threadIdx.x][w];
  part[blockIdx.x * kGramSums + threadIdx.x] = sum;
}
EXPORT(gram)

template <class T>
DEVICE void count_infinite(const T* x, float* part, long long count) {
  constexpr int n = kGroupOf<T, T>;
  SHARED(float, warps, [kWarp]);
  float found = 0.0f;
  const long long stride = static_cast<long long>(gridDim.x) * kThreads * n;
  for (long long at = (static_cast<long long>(blockIdx.x) * kThreads + threadIdx.x) * n; at < count; at += stride) {
    float v[n];
    load_up_to(x + at, count - at, at + n <= count, v);
#pragma unroll
    // What is finite is 0 times itself; infinity and what is not a number are not.
    for (int j = 0; j < n; j++) found += v[j] * 0.0f == 0.0f ? 0.0f : 1.0f;
  }
  const float sum = block_sum(found, warps);
  if (threadIdx.x == 0) part[blockIdx.x] = sum;
}

KERNEL(kThreads) count_infinite_f32(const float* x, float* part, long long count) { count_infinite(x, part, count); }
EXPORT(count_infinite_f32)
KERNEL(kThreads) count_infinite_bf16(const bf16* x, float* part, long long count) { count_infinite(x, part, count); }
EXPORT(count_infinite_bf16)
