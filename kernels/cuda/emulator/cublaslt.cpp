// A stand-in for cuBLASLt (libcublasLt.so): the calls that the host makes, in plain loops over the stand-in driver's memory.
//
// It is as strict as the library where a wrong call would go unnoticed here: handles and descriptions must live, leading
// dimensions must cover the rows, types must be a combination of the documented table, the algorithm must come from the
// heuristic for the same product, operands must lie within allocations of the current device and be aligned, and the
// workspace must be as large as the heuristic said. It takes its work to the driver, so that a captured product is recorded.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <vector>

#include "emulator.h"
#include "mma.h"

// Of the stand-in driver, which is loaded first.
extern "C" int zoetrope_standin_enqueue(void* stream, void (*work)(void*), void* state, void (*release)(void*));
extern "C" int zoetrope_standin_owns(unsigned long long at, size_t bytes);

namespace {

enum Status { kSuccess = 0, kNotInitialized = 1, kInvalidValue = 7, kExecutionFailed = 13, kNotSupported = 15 };
enum Type { kF32 = 0, kBf16 = 14, kE4m3 = 28 };
constexpr int kCompute32F = 68;

enum Attribute { kTransA = 3, kTransB = 4, kEpilogue = 7, kBiasPointer = 8, kBiasType = 26 };
enum Epilogue { kDefault = 1, kBias = 4, kGelu = 32, kGeluBias = 36 };
constexpr size_t kWorkspaceBytes = 1 << 20;

struct Description {
  int trans_a = 0, trans_b = 0, epilogue = kDefault, bias_type = -1;
  uint64_t bias = 0;
  bool has_bias() const { return epilogue == kBias || epilogue == kGeluBias; }
};
struct Layout {
  int type;
  uint64_t rows, columns;
  int64_t leading;
  bool operator==(const Layout& o) const {
    return type == o.type && rows == o.rows && columns == o.columns && leading == o.leading;
  }
};
struct Preference {
  uint64_t workspace_bytes = 0;
};
// The first words of cublasLtMatmulAlgo_t: for which product it was found.
struct Algorithm {
  uint64_t magic, fingerprint, unused[6];
};
struct Heuristic {
  Algorithm algorithm;
  size_t workspace_bytes;
  int state;
  float waves;
  int reserved[4];
};
constexpr uint64_t kMagic = 0x7a6f6574726f7065;

std::mutex library;
std::set<const void*> living;

template <class T>
int make(void** to, T value) {
  std::lock_guard<std::mutex> locked(library);
  *to = new T(value);
  living.insert(*to);
  return kSuccess;
}
template <class T>
int destroy(void* what) {
  std::lock_guard<std::mutex> locked(library);
  if (living.erase(what) == 0) return kInvalidValue;
  delete static_cast<T*>(what);
  return kSuccess;
}
bool live(std::initializer_list<const void*> all) {
  std::lock_guard<std::mutex> locked(library);
  for (const void* one : all) {
    if (living.count(one) == 0) return false;
  }
  return true;
}

size_t size_of(int type) { return type == kF32 ? 4 : type == kBf16 ? 2 : 1; }
float value_of(const unsigned char* at, int type) {
  if (type == kE4m3) return emulator::f32_of_e4m3(*at);
  if (type == kBf16) {
    bf16 value;
    std::memcpy(&value, at, 2);
    return f32(value);
  }
  float value;
  std::memcpy(&value, at, 4);
  return value;
}

// Whether the library multiplies these types: the rows of the documented table that the host uses.
bool types_fit(const Description& d, const Layout& a, const Layout& b, const Layout& c, const Layout& out) {
  if (a.type != b.type || !(c == out)) return false;
  const bool results = out.type == kF32 || (out.type == kBf16 && a.type != kF32);
  // The bias of a product has the result's type.
  return results && (!d.has_bias() || d.bias_type == out.type);
}
// e4m3 wants whole 16-byte steps in every matrix.
bool shapes_supported(const Layout& a, const Layout& out) {
  return a.type != kE4m3 || (a.rows % 16 == 0 && out.rows * size_of(out.type) % 16 == 0);
}
bool shapes_fit(const Description& d, const Layout& a, const Layout& b, const Layout& out) {
  if (d.trans_a != 1 || d.trans_b != 0) return false;
  if (a.rows != b.rows || a.columns != out.rows || b.columns != out.columns) return false;
  for (const Layout* one : {&a, &b, &out}) {
    if (one->rows == 0 || one->columns == 0 || one->leading < static_cast<int64_t>(one->rows)) return false;
  }
  return true;
}
uint64_t fingerprint(const Description& d, const Layout& a, const Layout& b, const Layout& out) {
  uint64_t all = 1469598103934665603u;
  for (uint64_t part : {uint64_t(d.epilogue), uint64_t(a.type), a.rows, a.columns, uint64_t(a.leading), b.columns,
                        uint64_t(b.leading), uint64_t(out.type), uint64_t(out.leading)}) {
    all = (all ^ part) * 1099511628211u;
  }
  return all;
}

struct Product {
  Description description;
  Layout a, b, out;
  const unsigned char *a_at, *b_at;
  unsigned char* out_at;
  float alpha, beta;

  // op(A)·B, both as rows of k values.
  void run() const {
    const auto wide = [](const unsigned char* from, const Layout& layout) {
      std::vector<float> all(layout.rows * layout.columns);
      for (uint64_t c = 0; c < layout.columns; c++) {
        for (uint64_t r = 0; r < layout.rows; r++) {
          all[c * layout.rows + r] = value_of(from + (c * layout.leading + r) * size_of(layout.type), layout.type);
        }
      }
      return all;
    };
    const auto left = wide(a_at, a), right = wide(b_at, b);
    const size_t size = size_of(out.type), k = a.rows;
    for (uint64_t c = 0; c < out.columns; c++) {
      for (uint64_t r = 0; r < out.rows; r++) {
        float sum = 0.0f;
        for (size_t i = 0; i < k; i++) sum += left[r * k + i] * right[c * k + i];
        unsigned char* at = out_at + (c * out.leading + r) * size;
        float y = alpha * sum + (beta == 0.0f ? 0.0f : beta * value_of(at, out.type));
        if (description.has_bias()) {
          y += value_of(reinterpret_cast<const unsigned char*>(description.bias) + r * size, out.type);
        }
        if (description.epilogue == kGelu || description.epilogue == kGeluBias) {
          y = 0.5f * y * (1.0f + std::tanh(0.7978846f * (y + 0.044715f * y * y * y)));
        }
        if (out.type == kF32) {
          std::memcpy(at, &y, 4);
        } else {
          const bf16 narrow = __float2bfloat16(y);
          std::memcpy(at, &narrow, 2);
        }
      }
    }
  }
};

bool readable(const void* at, const Layout& layout) {
  const size_t bytes = ((layout.columns - 1) * layout.leading + layout.rows) * size_of(layout.type);
  return reinterpret_cast<uintptr_t>(at) % 16 == 0 && zoetrope_standin_owns(reinterpret_cast<uintptr_t>(at), bytes);
}

}  // namespace

extern "C" {

size_t cublasLtGetVersion() { return 130001; }
int cublasLtCreate(void** handle) { return make(handle, char{0}); }
int cublasLtDestroy(void* handle) { return destroy<char>(handle); }

int cublasLtMatmulDescCreate(void** description, int compute, int scale) {
  if (compute != kCompute32F || scale != kF32) return kInvalidValue;
  return make(description, Description{});
}
int cublasLtMatmulDescDestroy(void* description) { return destroy<Description>(description); }
int cublasLtMatmulDescSetAttribute(void* description, int attribute, const void* value, size_t bytes) {
  if (!live({description})) return kInvalidValue;
  auto& d = *static_cast<Description*>(description);
  std::map<int, std::pair<void*, size_t>> known = {{kTransA, {&d.trans_a, 4}},
                                                   {kTransB, {&d.trans_b, 4}},
                                                   {kEpilogue, {&d.epilogue, 4}},
                                                   {kBiasPointer, {&d.bias, 8}},
                                                   {kBiasType, {&d.bias_type, 4}}};
  auto found = known.find(attribute);
  if (found == known.end() || found->second.second != bytes) return kInvalidValue;
  std::memcpy(found->second.first, value, bytes);
  return kSuccess;
}
int cublasLtMatrixLayoutCreate(void** layout, int type, uint64_t rows, uint64_t columns, int64_t leading) {
  if (type != kF32 && type != kBf16 && type != kE4m3) return kInvalidValue;
  return make(layout, Layout{type, rows, columns, leading});
}
int cublasLtMatrixLayoutDestroy(void* layout) { return destroy<Layout>(layout); }
int cublasLtMatmulPreferenceCreate(void** preference) { return make(preference, Preference{}); }
int cublasLtMatmulPreferenceDestroy(void* preference) { return destroy<Preference>(preference); }
int cublasLtMatmulPreferenceSetAttribute(void* preference, int attribute, const void* value, size_t bytes) {
  if (!live({preference}) || attribute != 1 || bytes != 8) return kInvalidValue;
  std::memcpy(&static_cast<Preference*>(preference)->workspace_bytes, value, 8);
  return kSuccess;
}

int cublasLtMatmulAlgoGetHeuristic(void* handle, void* description, void* a, void* b, void* c, void* out,
                                   void* preference, int wanted, Heuristic* results, int* found) {
  if (!live({handle, description, a, b, c, out, preference}) || wanted < 1) return kInvalidValue;
  const auto& d = *static_cast<Description*>(description);
  const auto &left = *static_cast<Layout*>(a), &right = *static_cast<Layout*>(b), &result = *static_cast<Layout*>(out);
  *found = 0;
  if (!shapes_fit(d, left, right, result)) return kInvalidValue;
  if (!types_fit(d, left, right, *static_cast<Layout*>(c), result) || !shapes_supported(left, result)) {
    return kNotSupported;
  }
  const size_t workspace = std::min<uint64_t>(kWorkspaceBytes, static_cast<Preference*>(preference)->workspace_bytes);
  *results = {{kMagic, fingerprint(d, left, right, result), {}}, workspace, kSuccess, 1.0f, {}};
  *found = 1;
  return kSuccess;
}

int cublasLtMatmul(void* handle, void* description, const float* alpha, const void* a, void* a_layout, const void* b,
                   void* b_layout, const float* beta, const void* c, void* c_layout, void* out, void* out_layout,
                   const Algorithm* algorithm, void* workspace, size_t workspace_bytes, void* stream) {
  if (!live({handle})) return kNotInitialized;
  if (!live({description, a_layout, b_layout, c_layout, out_layout})) return kInvalidValue;
  const auto& d = *static_cast<Description*>(description);
  const auto &left = *static_cast<Layout*>(a_layout), &right = *static_cast<Layout*>(b_layout);
  const auto &before = *static_cast<Layout*>(c_layout), &result = *static_cast<Layout*>(out_layout);
  if (!shapes_fit(d, left, right, result) || c != out) return kInvalidValue;
  if (!types_fit(d, left, right, before, result) || !shapes_supported(left, result)) return kNotSupported;
  if (algorithm->magic != kMagic || algorithm->fingerprint != fingerprint(d, left, right, result)) return kInvalidValue;
  if (workspace_bytes < kWorkspaceBytes ||
      !zoetrope_standin_owns(reinterpret_cast<uintptr_t>(workspace), workspace_bytes)) {
    return kInvalidValue;
  }
  const Layout bias = {result.type, result.rows, 1, static_cast<int64_t>(result.rows)};
  if (!readable(a, left) || !readable(b, right) || !readable(out, result) ||
      (d.has_bias() && !readable(reinterpret_cast<const void*>(d.bias), bias))) {
    return kInvalidValue;
  }
  auto* product = new Product{d, left, right, result, static_cast<const unsigned char*>(a),
                              static_cast<const unsigned char*>(b), static_cast<unsigned char*>(out), *alpha, *beta};
  const auto run = [](void* state) { static_cast<Product*>(state)->run(); };
  const auto release = [](void* state) { delete static_cast<Product*>(state); };
  return zoetrope_standin_enqueue(stream, run, product, release) == 0 ? kSuccess : kExecutionFailed;
}
}
