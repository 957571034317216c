// Runs the blocks of a kernel on the CPU, each thread as a fiber.
//
// Threads of a block run in a shuffled order between barriers, so that a missing barrier shows as a wrong result under
// some seed. Shared memory starts as NaN. Asynchronous copies happen when they are waited for, not earlier. Divergent
// barriers end the launch with an error, and so does a block in which everyone waits for what nobody will do. What it
// does not model: concurrency of blocks (they run one after another), the memory model's finer points, and time.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <tuple>
#include <type_traits>
#include <typeindex>
#include <utility>
#include <vector>

#if !defined(__x86_64__)
#error "the emulator switches fibers by hand, for x86-64 only"
#endif

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};

// bfloat16: the upper half of a binary32, rounded to nearest even.
struct bf16 {
  uint16_t bits;
};
inline float f32(float x) { return x; }
inline float f32(bf16 x) {
  const uint32_t wide = static_cast<uint32_t>(x.bits) << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}
inline bf16 __float2bfloat16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if (x != x) return {static_cast<uint16_t>((bits >> 16) | 0x40)};
  return {static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}
inline uint32_t bf16_pair(float low, float high) {
  return __float2bfloat16(low).bits | static_cast<uint32_t>(__float2bfloat16(high).bits) << 16;
}
inline float __uint_as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

namespace emulator {

enum class State { kReady, kAtBarrier, kAtWarpBarrier, kWaiting, kDone };

struct Copy {
  void* to;
  const void* from;
  int group, bytes;
};

struct Fiber {
  void* stack_pointer = nullptr;
  void* sanitizer_stack = nullptr;
  dim3 index;
  int linear = 0;
  State state = State::kReady;
  // Of a thread that waits: whether what it waits for has happened, and what that is.
  std::function<bool()> until;
  const char* waits_for = "";
  std::vector<Copy> copies;
  int group = 0;
};

// What the threads of a warp show each other; 64 bytes a thread.
struct Slot {
  alignas(16) unsigned char bytes[64];
};

// A piece of a copy engine's work. One that is last is not done before all threads wait for something.
struct Errand {
  std::function<void()> work;
  bool last;
};

struct Block {
  std::vector<Fiber> fibers;
  std::vector<Slot> slots;
  dim3 index, size, grid;
  unsigned char* dynamic_shared = nullptr;
  size_t dynamic_shared_bytes = 0;
  const std::function<void()>* body = nullptr;
  // What copy engines have still to do. The scheduler does these one by one, at random and rather late.
  std::vector<Errand> in_flight;
  // What the twins of an instruction family keep for the length of a block, one of each type.
  std::map<std::type_index, std::shared_ptr<void>> states;
  std::mt19937 order;
  std::string error;
};

extern Block* block;
extern Fiber* self;

// Leaves the running fiber until the scheduler wakes it.
void wait_as(State state);
// Leaves the running fiber until `until` holds. Nobody who could make it hold is an error of the launch, which names
// `what`.
void wait_until(const char* what, std::function<bool()> until);
// The running block's T.
template <class T>
T& of_block() {
  auto& state = block->states[typeid(T)];
  if (state == nullptr) state = std::make_shared<T>();
  return *static_cast<T*>(state.get());
}
// Ends the launch with an error; does not return to the kernel.
[[noreturn]] void fail(const std::string& why);
// Static shared memory, filled with NaN before each block.
void register_shared(void* memory, size_t bytes);

struct RegisterShared {
  RegisterShared(void* memory, size_t bytes) { register_shared(memory, bytes); }
};

using Entry = std::function<void(void** arguments)>;
struct Kernel {
  std::string name;
  // Bytes of each argument, for launches that are recorded and run later.
  std::vector<size_t> argument_bytes;
  Entry run;
  long launches = 0;
};
std::map<std::string, Kernel>& kernels();

template <class... A, size_t... I>
Entry bound(void (*kernel)(A...), std::index_sequence<I...>) {
  return [kernel](void** arguments) { kernel(*static_cast<std::decay_t<A>*>(arguments[I])...); };
}
struct Export {
  template <class... A>
  Export(const char* name, void (*kernel)(A...)) {
    kernels()[name] = {name, {sizeof(std::decay_t<A>)...}, bound(kernel, std::index_sequence_for<A...>{}), 0};
  }
};

// Runs every block of the grid; false with `error` set when one of them failed.
bool launch(dim3 grid, dim3 threads, size_t shared_bytes, unsigned seed, const std::function<void()>& body,
            std::string* error);

inline Slot* warp_slots() { return &block->slots[self->linear / 32 * 32]; }

template <class T>
T shuffled(T value, int from) {
  static_assert(sizeof(T) <= sizeof(Slot::bytes));
  std::memcpy(block->slots[self->linear].bytes, &value, sizeof value);
  wait_as(State::kAtWarpBarrier);
  T result;
  std::memcpy(&result, warp_slots()[from & 31].bytes, sizeof result);
  wait_as(State::kAtWarpBarrier);
  return result;
}

}  // namespace emulator

#define KERNEL(...) extern "C" void
#define EXPORT(name) static emulator::Export export_##name(#name, name);
#define DEVICE inline
#define SHARED(type, name, extents) \
  static type name extents;         \
  static emulator::RegisterShared register_##name(&name, sizeof(name))
#define DYNAMIC_SHARED(type, name) type* name = reinterpret_cast<type*>(emulator::block->dynamic_shared)
#define __restrict__

#define threadIdx (emulator::self->index)
#define blockIdx (emulator::block->index)
#define blockDim (emulator::block->size)
#define gridDim (emulator::block->grid)

inline void __syncthreads() { emulator::wait_as(emulator::State::kAtBarrier); }
inline void __syncwarp(unsigned = ~0u) { emulator::wait_as(emulator::State::kAtWarpBarrier); }

template <class T>
T __shfl_sync(unsigned, T value, int from) {
  return emulator::shuffled(value, from);
}
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return emulator::shuffled(value, emulator::self->linear ^ mask);
}
template <class T>
T __shfl_down_sync(unsigned, T value, int by) {
  const int lane = emulator::self->linear & 31;
  return emulator::shuffled(value, lane + by < 32 ? lane + by : lane);
}

inline void add_atomically(float* at, float value) { *at += value; }

template <int bytes>
void cp_async_cached(void* shared, const void* from, bool valid = true) {
  static_assert(bytes == 4 || bytes == 8 || bytes == 16);
  if (reinterpret_cast<uintptr_t>(shared) % bytes != 0 || (valid && reinterpret_cast<uintptr_t>(from) % bytes != 0)) {
    emulator::fail("cp.async of an address that is not a multiple of " + std::to_string(bytes));
  }
  emulator::self->copies.push_back({shared, valid ? from : nullptr, emulator::self->group, bytes});
}
inline void cp_async16(void* shared, const void* from, bool valid = true) {
  cp_async_cached<16>(shared, from, valid);
}
inline void cp_async_commit() { emulator::self->group++; }
template <int newer>
void cp_async_wait() {
  auto& copies = emulator::self->copies;
  const int due = emulator::self->group - newer;
  for (auto& copy : copies) {
    if (copy.group >= due) continue;
    if (copy.from != nullptr) {
      std::memcpy(copy.to, copy.from, copy.bytes);
    } else {
      std::memset(copy.to, 0, copy.bytes);
    }
  }
  copies.erase(std::remove_if(copies.begin(), copies.end(), [due](const auto& copy) { return copy.group < due; }),
               copies.end());
}

inline float exp2_fast(float x) { return std::exp2(x); }
inline float product(float a, float b) { return a * b; }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float __expf(float x) { return std::exp(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __fmul_rn(float x, float y) { return x * y; }
// Saturates, and makes zero of NaN, as the device does.
inline int __float2int_rn(float x) {
  if (x != x) return 0;
  return static_cast<int>(std::clamp<double>(std::nearbyint(x), INT32_MIN, INT32_MAX));
}
using std::max;
using std::min;
