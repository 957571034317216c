// The activation functions of the epilogues: what `Activation` of the Rust side names, by its `device_code`.
#pragma once

#include "gpu.cuh"

enum Activation : int { kIdentity = 0, kGelu = 1, kGeluTanh = 2, kSilu = 3, kLeakyRelu = 4 };

// x·σ(t), by the fast exponential.
DEVICE float times_logistic(float x, float t) { return __fdividef(x, 1.0f + __expf(-t)); }

// The activation `code` at x; `slope` is the leaky ReLU's.
DEVICE float activated(float x, int code, float slope) {
  switch (code) {
    case kGelu:
      return 0.5f * x * (1.0f + erff(x * 0.70710678f));
    case kGeluTanh:
      return times_logistic(x, 2.0f * 0.7978846f * x * (1.0f + 0.044715f * x * x));
    case kSilu:
      return times_logistic(x, x);
    case kLeakyRelu:
      return x >= 0.0f ? x : slope * x;
    default:
      return x;
  }
}
