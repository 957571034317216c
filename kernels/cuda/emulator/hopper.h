// What hopper.cuh names, for the CPU: mbarriers, tensor copies, named barriers, register budgets and wgmma.
//
// The twins read the very descriptors, tensor maps and swizzled addresses that the hardware reads, and are as late as
// it may be: a tensor copy lands some time after it was asked for (the scheduler decides), a product is computed when
// it is waited for. A wrong descriptor therefore gives a wrong result, a wait for what never comes ends the launch with
// an error, and so does an operand or an accumulator that changes while a product is under way.
#pragma once

#include "emulator.h"

// Passing a TensorMap by value was another matter before GCC 4.6, it says.
#pragma GCC diagnostic ignored "-Wpsabi"

// As large and as aligned as the driver's CUtensorMap. What is in it here is the stand-in driver's own (EncodedMap).
struct alignas(128) TensorMap {
  uint64_t opaque[16];
};

namespace emulator {

// What cuTensorMapEncodeTiled of the stand-in driver writes: a matrix of 2-byte values and the box that one copy moves.
struct EncodedMap {
  static constexpr uint64_t kMagic = 0x7a6f6574726f7065;
  uint64_t magic;
  const unsigned char* values;
  uint64_t columns, rows, row_bytes;
  uint32_t box_columns, box_rows;
};
static_assert(sizeof(EncodedMap) <= sizeof(TensorMap));

// Where dynamic shared memory starts in the window of shared memory: a multiple of 128, deliberately not of 1024.
constexpr uint32_t kDynamicShared = 1024 + 128;

inline uint32_t address_of_shared(const void* at) {
  const auto offset = static_cast<const unsigned char*>(at) - block->dynamic_shared;
  if (offset < 0 || offset >= static_cast<long>(block->dynamic_shared_bytes)) fail("an address that is not of shared memory");
  return kDynamicShared + static_cast<uint32_t>(offset);
}
// The memory at an address of the window; null outside of the launch's dynamic shared memory.
inline unsigned char* at_shared(uint32_t address, size_t bytes) {
  const size_t offset = address - kDynamicShared;
  if (address < kDynamicShared || offset + bytes > block->dynamic_shared_bytes) return nullptr;
  return block->dynamic_shared + offset;
}
// The 128-byte swizzle: bits 4..6 of an address, the 16-byte chunk, take in bits 7..9, the row of eight.
inline uint32_t swizzled_128(uint32_t address) { return address ^ ((address >> 7 & 7) << 4); }

// One phase of a barrier ends when everyone has arrived and all bytes announced have landed.
struct MemoryBarrier {
  int arrivals = 0, pending = 0;
  long bytes = 0;
  int phase = 0;

  void settle() {
    if (pending != 0 || bytes != 0) return;
    phase ^= 1;
    pending = arrivals;
  }
};
struct NamedBarrier {
  int threads = 0, arrived = 0, generation = 0;
};
// A matrix operand in shared memory as its descriptor says, [rows, 16] as wgmma uses it.
struct Operand {
  uint64_t descriptor = 0;
  int rows = 0;
  bool k_is_contiguous = true;
  std::vector<uint16_t> values;
};
// One wgmma of one warpgroup. Its operands are read when its first thread issues it and again when it is first waited
// for.
struct Product {
  Operand a, b;
  bool checked = false;
};
struct Warpgroup {
  std::vector<Product> products;
};
// One thread's share of a product: rows g and g + 8 of its warp's 16, columns 8j + 2t and 8j + 2t + 1.
struct Share {
  size_t product;
  int group;
  float* d;
  int columns;
  bool accumulate, first_on_d;
  std::vector<float> before;
  // Rows g and g + 8 of A when it came in registers.
  std::array<float, 32> a{};
};
struct ThreadProducts {
  size_t issued = 0;
  int group = 0;
  bool fenced = false;
  std::vector<Share> shares;
};

struct HopperState {
  std::map<const void*, MemoryBarrier> barriers;
  std::array<NamedBarrier, 16> named;
  std::map<int, Warpgroup> warpgroups;
  std::map<int, ThreadProducts> threads;
  std::map<int, int> registers;
  // Registers that nobody in the block holds; negative before the first thread asks.
  int free_registers = -1;

  MemoryBarrier& barrier(const void* at) {
    auto found = barriers.find(at);
    if (found == barriers.end()) fail("an mbarrier that was not initialised");
    return found->second;
  }
};
inline HopperState& hopper() { return of_block<HopperState>(); }

// Value [row, k] of an operand lies where the PTX ISA's canonical layout for 128-byte swizzling puts it.
inline bool read_operand(Operand& operand) {
  const uint64_t d = operand.descriptor;
  const uint32_t start = (d & 0x3fff) << 4, leading = (d >> 16 & 0x3fff) << 4, stride = (d >> 32 & 0x3fff) << 4;
  if (d >> 62 != 1 || (d >> 49 & 7) != 0) return false;
  operand.values.resize(operand.rows * 16);
  for (int row = 0; row < operand.rows; row++) {
    for (int k = 0; k < 16; k++) {
      const uint32_t at = operand.k_is_contiguous
                              ? start + row / 8 * stride + row % 8 * 128 + k * 2
                              : start + row / 64 * leading + row % 64 * 2 + k / 8 * stride + k % 8 * 128;
      const unsigned char* from = at_shared(swizzled_128(at), 2);
      if (from == nullptr) return false;
      std::memcpy(&operand.values[row * 16 + k], from, 2);
    }
  }
  return true;
}

inline void check_unchanged(Operand& operand) {
  if (operand.descriptor == 0) return;
  const auto before = std::move(operand.values);
  if (!read_operand(operand) || operand.values != before) fail("shared memory changed while a wgmma was reading it");
}

// Books this thread's share of the warpgroup's next product.
inline Share& issue(uint64_t a, uint64_t b, bool b_is_k_major, float* d, int columns, bool accumulate) {
  auto& mine = hopper().threads[self->linear];
  auto& products = hopper().warpgroups[self->linear / 128].products;
  if (!mine.fenced) fail("wgmma without a wgmma.fence before it");
  const size_t index = mine.issued++;
  if (index == products.size()) {
    products.emplace_back();
    auto& made = products.back();
    made.b = {b, columns, b_is_k_major, {}};
    made.a = {a, 64, true, {}};
    if (!read_operand(made.b) || (a != 0 && !read_operand(made.a))) fail("a wgmma descriptor that does not fit");
  }
  const auto& product = products[index];
  if (product.b.descriptor != b || product.a.descriptor != a) fail("a warpgroup's threads disagree on a wgmma");
  const bool first = std::none_of(mine.shares.begin(), mine.shares.end(), [d](const Share& s) { return s.d == d; });
  mine.shares.push_back({index, mine.group, d, columns, accumulate, first, {}, {}});
  if (first) mine.shares.back().before.assign(d, d + columns / 2);
  return mine.shares.back();
}

inline void compute(Share& share) {
  auto& product = hopper().warpgroups[self->linear / 128].products[share.product];
  if (!product.checked) {
    check_unchanged(product.a);
    check_unchanged(product.b);
    product.checked = true;
  }
  if (share.first_on_d && std::memcmp(share.before.data(), share.d, share.columns / 2 * sizeof(float)) != 0) {
    fail("the accumulator of a wgmma was written while it was under way");
  }
  const int g = self->linear % 32 / 4, t = self->linear % 4, warp_row = self->linear % 128 / 32 * 16;
  if (product.a.descriptor != 0) {
    for (int i = 0; i < 32; i++) share.a[i] = f32(bf16{product.a.values[(warp_row + g + i / 16 * 8) * 16 + i % 16]});
  }
  for (int i = 0; i < share.columns / 2; i++) {
    const int column = i / 4 * 8 + t * 2 + i % 2;
    const float* a = &share.a[i / 2 % 2 * 16];
    float sum = share.accumulate ? share.d[i] : 0.0f;
    for (int k = 0; k < 16; k++) sum += a[k] * f32(bf16{product.b.values[column * 16 + k]});
    share.d[i] = sum;
  }
}

}  // namespace emulator

#define GRID_CONSTANT
constexpr bool kHopperCode = true;
inline void refuse() { emulator::fail("a kernel that this target does not have"); }

inline uint32_t shared_address(const void* at) { return emulator::address_of_shared(at); }

inline void barrier_init(uint64_t* barrier, int arrivals) {
  if (reinterpret_cast<uintptr_t>(barrier) % 8 != 0) emulator::fail("an mbarrier at an odd address");
  emulator::hopper().barriers[barrier] = {arrivals, arrivals, 0, 0};
}
inline void fence_barrier_init() {}
inline void barrier_arrive(uint64_t* barrier) {
  auto& b = emulator::hopper().barrier(barrier);
  if (b.pending == 0) emulator::fail("more arrivals at an mbarrier than it counts");
  b.pending--;
  b.settle();
}
inline void barrier_arrive_expect(uint64_t* barrier, int bytes) {
  emulator::hopper().barrier(barrier).bytes += bytes;
  barrier_arrive(barrier);
}
inline void barrier_wait(uint64_t* barrier, int parity) {
  auto* b = &emulator::hopper().barrier(barrier);
  emulator::wait_until("an mbarrier", [b, parity] { return b->phase != parity; });
}

inline void tensor_prefetch(const TensorMap*) {}
inline void tensor_load(void* to, const TensorMap* map, int column, int row, uint64_t* barrier) {
  emulator::EncodedMap encoded;
  std::memcpy(&encoded, map, sizeof encoded);
  if (encoded.magic != emulator::EncodedMap::kMagic) emulator::fail("a tensor copy by something that is no tensor map");
  const uint32_t address = shared_address(to);
  const uint32_t box_row_bytes = encoded.box_columns * 2;
  if (address % 1024 != 0 || box_row_bytes != 128) emulator::fail("a swizzled tensor copy to an address off the pattern");
  auto* b = &emulator::hopper().barrier(barrier);
  for (uint32_t r = 0; r < encoded.box_rows; r++) {
    for (uint32_t chunk = 0; chunk < 8; chunk++) {
      if (emulator::at_shared(emulator::swizzled_128(address + r * 128 + chunk * 16), 16) == nullptr) {
        emulator::fail("a tensor copy beyond shared memory");
      }
    }
  }
  auto work = [encoded, address, column, row, b] {
    for (uint32_t r = 0; r < encoded.box_rows; r++) {
      for (uint32_t c = 0; c < encoded.box_columns; c++) {
        // What lies outside of the matrix is zero.
        uint16_t value = 0;
        const uint64_t from_row = static_cast<uint64_t>(row) + r, from_column = static_cast<uint64_t>(column) + c;
        if (from_row < encoded.rows && from_column < encoded.columns) {
          std::memcpy(&value, encoded.values + from_row * encoded.row_bytes + from_column * 2, 2);
        }
        std::memcpy(emulator::at_shared(emulator::swizzled_128(address + r * 128 + c * 2), 2), &value, 2);
      }
    }
    b->bytes -= static_cast<long>(encoded.box_rows) * encoded.box_columns * 2;
    b->settle();
  };
  emulator::block->in_flight.push_back({std::move(work), emulator::block->order() % 2 == 0});
}

inline void named_arrive(int id, int threads) {
  if (id < 1 || id > 15 || threads % 32 != 0) emulator::fail("a named barrier that the hardware does not have");
  auto& barrier = emulator::hopper().named[id];
  if (barrier.arrived > 0 && barrier.threads != threads) emulator::fail("threads disagree on the size of a named barrier");
  barrier.threads = threads;
  if (++barrier.arrived < threads) return;
  barrier.arrived = 0;
  barrier.generation++;
}
inline void named_sync(int id, int threads) {
  auto* barrier = &emulator::hopper().named[id & 15];
  const int generation = barrier->generation;
  named_arrive(id, threads);
  emulator::wait_until("a named barrier", [barrier, generation] { return barrier->generation != generation; });
}

// A block starts with as many registers a thread as its size allows, in steps of 8, and has no others to give.
template <int count>
void set_registers() {
  static_assert(count % 8 == 0 && count >= 24 && count <= 256);
  auto* state = &emulator::hopper();
  const int threads = static_cast<int>(emulator::block->fibers.size());
  const int at_launch = std::min(65536 / threads / 8 * 8, 255);
  if (state->free_registers < 0) state->free_registers = 0;
  auto& mine = state->registers.try_emplace(emulator::self->linear, at_launch).first->second;
  const int more = count - mine;
  emulator::wait_until("registers", [state, more] { return state->free_registers >= more; });
  state->free_registers -= more;
  mine = count;
}
template <int count>
void registers_lower() {
  set_registers<count>();
}
template <int count>
void registers_raise() {
  set_registers<count>();
}

template <int n>
void keep_in_registers(float (&)[n]) {}
template <int n>
void keep_in_registers(const uint32_t (&)[n][4]) {}

inline void wgmma_fence() { emulator::hopper().threads[emulator::self->linear].fenced = true; }
inline void wgmma_commit() {
  auto& mine = emulator::hopper().threads[emulator::self->linear];
  mine.group++;
  mine.fenced = false;
}
template <int newer>
void wgmma_wait() {
  auto* state = &emulator::hopper();
  const int me = emulator::self->linear;
  auto& mine = state->threads[me];
  size_t due = 0;
  while (due < mine.shares.size() && mine.shares[due].group < mine.group - newer) due++;
  if (due == 0) return;
  // The instruction is the whole warpgroup's: it runs once all of its threads have issued it.
  const size_t last = mine.shares[due - 1].product;
  emulator::wait_until("the rest of its warpgroup to issue a wgmma", [state, me, last] {
    for (int thread = me / 128 * 128; thread < me / 128 * 128 + 128; thread++) {
      if (state->threads[thread].issued <= last) return false;
    }
    return true;
  });
  for (size_t i = 0; i < due; i++) emulator::compute(mine.shares[i]);
  mine.shares.erase(mine.shares.begin(), mine.shares.begin() + static_cast<long>(due));
}

template <int columns>
void wgmma_shared(float (&d)[columns / 2], uint64_t a, uint64_t b, bool accumulate) {
  emulator::issue(a, b, true, d, columns, accumulate);
}
template <int columns>
void wgmma_registers(float (&d)[columns / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
  struct Words {
    uint32_t at[4];
  };
  Words words;
  std::memcpy(&words, a, sizeof words);
  auto& share = emulator::issue(0, b, false, d, columns, accumulate);
  float* rows = share.a.data();
  for (int t = 0; t < 4; t++) {
    // Lane 4g + t holds of rows g and g + 8 columns 2t, 2t + 1 (words 0 and 1) and 2t + 8, 2t + 9 (words 2 and 3).
    const Words theirs = emulator::shuffled(words, emulator::self->linear % 32 / 4 * 4 + t);
    for (int word = 0; word < 4; word++) {
      for (int half = 0; half < 2; half++) {
        const bf16 value{static_cast<uint16_t>(theirs.at[word] >> (16 * half))};
        rows[word % 2 * 16 + word / 2 * 8 + t * 2 + half] = f32(value);
      }
    }
  }
}
