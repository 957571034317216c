#include "emulator.h"

#include <sys/mman.h>

#include <cstdlib>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define SANITIZED 1
#else
#define SANITIZED 0
#endif

// Saves the callee's registers on the running stack, stores its top at *from and goes on with the stack `to`.
extern "C" void zoetrope_switch_stack(void** from, void* to);
asm(R"(
.text
.globl zoetrope_switch_stack
.type zoetrope_switch_stack, @function
zoetrope_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size zoetrope_switch_stack, .-zoetrope_switch_stack
)");

namespace emulator {

Block* block = nullptr;
Fiber* self = nullptr;

namespace {

constexpr size_t kStackBytes = 64 << 10;

void* scheduler_stack_pointer = nullptr;
#if SANITIZED
void* scheduler_sanitizer_stack = nullptr;
const void* scheduler_bottom = nullptr;
size_t scheduler_bytes = 0;
#endif
// The low ends of the fibers' stacks, kept from launch to launch.
std::vector<unsigned char*> stacks;
std::vector<std::pair<void*, size_t>>& shared_memory() {
  static std::vector<std::pair<void*, size_t>> all;
  return all;
}

void leave(bool for_ever) {
  Fiber& fiber = *self;
#if SANITIZED
  __sanitizer_start_switch_fiber(for_ever ? nullptr : &fiber.sanitizer_stack, scheduler_bottom, scheduler_bytes);
#else
  (void)for_ever;
#endif
  zoetrope_switch_stack(&fiber.stack_pointer, scheduler_stack_pointer);
#if SANITIZED
  __sanitizer_finish_switch_fiber(fiber.sanitizer_stack, &scheduler_bottom, &scheduler_bytes);
#endif
}

void run_fiber() {
#if SANITIZED
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_bottom, &scheduler_bytes);
#endif
  (*block->body)();
  self->state = State::kDone;
  leave(true);
}

void resume(size_t i) {
  self = &block->fibers[i];
#if SANITIZED
  __sanitizer_start_switch_fiber(&scheduler_sanitizer_stack, stacks[i], kStackBytes);
#endif
  zoetrope_switch_stack(&scheduler_stack_pointer, self->stack_pointer);
#if SANITIZED
  __sanitizer_finish_switch_fiber(scheduler_sanitizer_stack, nullptr, nullptr);
#endif
}

// Below the stack lies a page that nobody may touch: a kernel that needs more ends the process instead of spoiling
// another.
unsigned char* new_stack() {
  constexpr size_t kGuardBytes = 4096;
  void* low = mmap(nullptr, kGuardBytes + kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (low == MAP_FAILED || mprotect(low, kGuardBytes, PROT_NONE) != 0) throw std::bad_alloc();
  return static_cast<unsigned char*>(low) + kGuardBytes;
}

void prepare(Fiber& fiber, size_t i) {
  if (stacks.size() <= i) stacks.push_back(new_stack());
#if SANITIZED
  __asan_unpoison_memory_region(stacks[i], kStackBytes);
#endif
  auto top = (reinterpret_cast<uintptr_t>(stacks[i]) + kStackBytes) & ~uintptr_t{15};
  void** slot = reinterpret_cast<void**>(top);
  *--slot = nullptr;
  *--slot = reinterpret_cast<void*>(run_fiber);
  for (int saved = 0; saved < 6; saved++) *--slot = nullptr;
  fiber.stack_pointer = slot;
}

// Wakes groups of threads that have all arrived where they wait; false when nobody could be woken.
bool wake(Block& b) {
  bool woken = false;
  const size_t count = b.fibers.size();
  auto release = [&](auto first, auto last) {
    for (auto fiber = first; fiber != last; ++fiber) fiber->state = State::kReady;
    woken = true;
  };
  for (size_t start = 0; start < count; start += 32) {
    const auto first = b.fibers.begin() + start, last = b.fibers.begin() + std::min(count, start + 32);
    if (std::all_of(first, last, [](const Fiber& f) { return f.state == State::kAtWarpBarrier; })) release(first, last);
  }
  if (std::all_of(b.fibers.begin(), b.fibers.end(), [](const Fiber& f) { return f.state == State::kAtBarrier; })) {
    release(b.fibers.begin(), b.fibers.end());
  }
  for (auto fiber = b.fibers.begin(); fiber != b.fibers.end(); ++fiber) {
    if (fiber->state == State::kWaiting && fiber->until()) release(fiber, fiber + 1);
  }
  return woken;
}

// Lets a copy engine do one of its pieces of work, at random; false when there is none. Threads that can run mostly go
// first, so that data tends to be late: a kernel that does not wait for it reads what was there before.
bool land(Block& b, bool threads_ran) {
  if (b.in_flight.empty()) return false;
  if (threads_ran && b.order() % 4 != 0) return true;
  const size_t which = b.order() % b.in_flight.size();
  if (threads_ran && b.in_flight[which].last) return true;
  const auto work = std::move(b.in_flight[which].work);
  b.in_flight.erase(b.in_flight.begin() + static_cast<long>(which));
  work();
  return true;
}

// What the threads wait for that will never come.
std::string description_of_deadlock(const Block& b) {
  const auto in = [&](State state) {
    return std::count_if(b.fibers.begin(), b.fibers.end(), [state](const Fiber& f) { return f.state == state; });
  };
  std::string text = "barrier divergence: of " + std::to_string(b.fibers.size()) + " threads " +
                     std::to_string(in(State::kAtBarrier)) + " wait for their block, " +
                     std::to_string(in(State::kAtWarpBarrier)) + " for their warp, " + std::to_string(in(State::kDone)) +
                     " have ended";
  std::map<std::string, int> others;
  for (const Fiber& f : b.fibers) {
    if (f.state == State::kWaiting) others[f.waits_for]++;
  }
  for (const auto& [what, count] : others) text += ", " + std::to_string(count) + " wait for " + what;
  return text;
}

constexpr size_t kWarpThreads = 32;

// The order in which warps, and threads within one, have their turns. Some warps stand back until nobody else can run:
// they fall a whole stretch between two barriers behind, as a barrier that is missing there would allow.
class Turns {
 public:
  enum class Ran { kSomeone, kNobody, kHeldBack };

  explicit Turns(Block& b) : block_(b), warps_((b.fibers.size() + kWarpThreads - 1) / kWarpThreads), back_(warps_.size()) {
    for (size_t i = 0; i < warps_.size(); i++) warps_[i] = i;
    draw();
  }

  // A turn for every thread that can run. Stops at an error.
  Ran round() {
    Ran ran = Ran::kNobody;
    std::shuffle(warps_.begin(), warps_.end(), block_.order);
    for (size_t warp : warps_) {
      if (!back_[warp]) {
        if (run(warp)) ran = Ran::kSomeone;
        if (!block_.error.empty()) return ran;
      } else if (ran == Ran::kNobody && can_run(warp)) {
        ran = Ran::kHeldBack;
      }
    }
    if (ran != Ran::kSomeone || block_.order() % 256 == 0) draw();
    return ran;
  }

 private:
  void draw() {
    for (auto&& back : back_) back = block_.order() % 2 == 0;
  }
  size_t end_of(size_t warp) const { return std::min((warp + 1) * kWarpThreads, block_.fibers.size()); }
  bool can_run(size_t warp) const {
    const auto first = block_.fibers.begin();
    return std::any_of(first + warp * kWarpThreads, first + end_of(warp),
                       [](const Fiber& f) { return f.state == State::kReady; });
  }
  bool run(size_t warp) {
    std::array<size_t, kWarpThreads> threads;
    const size_t first = warp * kWarpThreads, count = end_of(warp) - first;
    for (size_t i = 0; i < count; i++) threads[i] = first + i;
    std::shuffle(threads.begin(), threads.begin() + count, block_.order);
    bool ran = false;
    for (size_t i = 0; i < count && block_.error.empty(); i++) {
      if (block_.fibers[threads[i]].state != State::kReady) continue;
      resume(threads[i]);
      ran = true;
    }
    return ran;
  }

  Block& block_;
  std::vector<size_t> warps_;
  std::vector<bool> back_;
};

bool run_block(Block& b, std::string* error) {
  Turns turns(b);
  for (;;) {
    const auto ran = turns.round();
    const auto has_ended = [](const Fiber& f) { return f.state == State::kDone; };
    const bool ended = b.error.empty() && std::all_of(b.fibers.begin(), b.fibers.end(), has_ended);
    if (ended && b.in_flight.empty()) return true;
    if (ended) b.error = "the block ended while copies into its shared memory were under way";
    const bool landed = b.error.empty() && land(b, ran != Turns::Ran::kNobody);
    if (b.error.empty() && !wake(b) && ran == Turns::Ran::kNobody && !landed) b.error = description_of_deadlock(b);
    if (!b.error.empty()) {
      *error = b.error;
      return false;
    }
  }
}

}  // namespace

void wait_as(State state) {
  self->state = state;
  leave(false);
}

void wait_until(const char* what, std::function<bool()> until) {
  if (until()) return;
  self->until = std::move(until);
  self->waits_for = what;
  wait_as(State::kWaiting);
  self->until = nullptr;
}

void fail(const std::string& why) {
  block->error = why;
  for (;;) leave(false);
}

void register_shared(void* memory, size_t bytes) {
  shared_memory().emplace_back(memory, bytes);
  std::memset(memory, 0xff, bytes);
}

std::map<std::string, Kernel>& kernels() {
  static std::map<std::string, Kernel> all;
  return all;
}

bool launch(dim3 grid, dim3 threads, size_t shared_bytes, unsigned seed, const std::function<void()>& body,
            std::string* error) {
  const size_t count = static_cast<size_t>(threads.x) * threads.y * threads.z;
  if (count == 0 || count > 1024) {
    *error = "a block of " + std::to_string(count) + " threads";
    return false;
  }
  // Exactly as long as asked for, so that the address sanitizer sees what lies beyond.
  void* allocated = nullptr;
  if (posix_memalign(&allocated, 128, shared_bytes) != 0) {
    *error = "no memory for " + std::to_string(shared_bytes) + " bytes of shared memory";
    return false;
  }
  unsigned char* const shared = static_cast<unsigned char*>(allocated);
  bool good = true;
  for (unsigned z = 0; z < grid.z && good; z++) {
    for (unsigned y = 0; y < grid.y && good; y++) {
      for (unsigned x = 0; x < grid.x && good; x++) {
        Block b;
        b.fibers.resize(count);
        b.slots.resize(count);
        b.index = {x, y, z};
        b.size = threads;
        b.grid = grid;
        b.body = &body;
        b.dynamic_shared = shared;
        b.dynamic_shared_bytes = shared_bytes;
        b.order.seed(seed * 7919 + x * 31 + y * 17 + z);
        std::memset(shared, 0xff, shared_bytes);
        for (auto& [memory, bytes] : shared_memory()) std::memset(memory, 0xff, bytes);
        for (size_t i = 0; i < count; i++) {
          Fiber& fiber = b.fibers[i];
          fiber.linear = static_cast<int>(i);
          fiber.index = {static_cast<unsigned>(i % threads.x), static_cast<unsigned>(i / threads.x % threads.y),
                         static_cast<unsigned>(i / threads.x / threads.y)};
          prepare(fiber, i);
        }
        block = &b;
        good = run_block(b, error);
        block = nullptr;
      }
    }
  }
  std::free(shared);
  return good;
}

}  // namespace emulator
