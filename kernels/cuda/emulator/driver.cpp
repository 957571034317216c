// A stand-in for the CUDA driver (libcuda.so): device memory is the host's, kernels run on the emulator.
//
// It exists so that tests drive the real host path (module load, launch shapes, argument packing, allocation and release,
// graph capture, events, errors) without a GPU. It behaves as strictly as the driver: calls need a current context, wrong
// handles, double frees and unknown kernels are errors, and an error inside a kernel spoils its device's context until that
// is reset. Devices have memory and errors of their own, but their kernels run one after another.
#include <chrono>
#include <cstdlib>
#include <deque>
#include <memory>
#include <mutex>
#include <set>

#include "hopper.h"

namespace {

enum Result {
  kSuccess = 0,
  kInvalidValue = 1,
  kOutOfMemory = 2,
  kInvalidDevice = 101,
  kInvalidImage = 200,
  kInvalidContext = 201,
  kNotFound = 500,
  kLaunchFailed = 719,
  kCaptureUnsupported = 900,
  kCaptureInvalidated = 901,
};

using Pointer = unsigned long long;
using Work = std::function<int()>;

struct Event {
  std::chrono::steady_clock::time_point at;
  bool recorded = false;
};
struct Graph {
  std::vector<Work> nodes;
};
struct Device {
  std::map<Pointer, size_t> live;
  // Compute capability, 10·major + minor; below 0 what the environment says.
  int capability = -1;
  size_t used_bytes = 0, memory_bytes = 0;
  // An error that a kernel left behind; every later call in the context returns it.
  int sticky = kSuccess;
  int injected = kSuccess;
  long launches_until_failure = 0;
  Graph* capturing = nullptr;
  // Whether calls that are not the stream's own, allocations for one, may be made meanwhile.
  bool capture_is_relaxed = false;
};

std::mutex driver;
std::set<void*> pinned, streams;
int graph_launches = 0;
long enqueued = 0;
bool refuse_modules = false;
// The device of the calling thread's current context.
thread_local Device* current = nullptr;
// The seed of the calling thread's launches: tests beside each other do not disturb each other's orders.
thread_local unsigned seed = 0;

long from_environment(const char* name, long otherwise) {
  const char* value = std::getenv(name);
  return value == nullptr ? otherwise : std::atol(value);
}
// Contexts point into it; a deque does not move what it holds.
std::deque<Device>& devices() {
  static std::deque<Device> all = [] {
    std::deque<Device> made(from_environment("ZOETROPE_STANDIN_DEVICES", 1));
    for (auto& device : made) device.memory_bytes = from_environment("ZOETROPE_STANDIN_MEMORY_MIB", 4096) << 20;
    return made;
  }();
  return all;
}
bool is_device(int ordinal) { return ordinal >= 0 && static_cast<size_t>(ordinal) < devices().size(); }

// Whether [at, at + bytes) lies within one allocation of the current device.
bool is_ours(Pointer at, size_t bytes) {
  auto next = current->live.upper_bound(at);
  if (next == current->live.begin()) return false;
  const auto& [start, length] = *std::prev(next);
  return at - start <= length && bytes <= length - (at - start);
}

int now_or_in_graph(Work work) {
  if (current->capturing != nullptr) {
    current->capturing->nodes.push_back(std::move(work));
    return kSuccess;
  }
  return work();
}

int run_kernel(emulator::Kernel& kernel, dim3 grid, dim3 threads, unsigned shared, void** arguments) {
  if (current->injected != kSuccess && current->launches_until_failure-- <= 0) {
    current->sticky = std::exchange(current->injected, kSuccess);
    return current->sticky;
  }
  std::string error;
  kernel.launches++;
  if (!emulator::launch(grid, threads, shared, seed, [&] { kernel.run(arguments); }, &error)) {
    std::fprintf(stderr, "kernel %s: %s\n", kernel.name.c_str(), error.c_str());
    current->sticky = kLaunchFailed;
  }
  return current->sticky;
}

// At the end of the process: a line `kernel launches` for each kernel, appended to the file of ZOETROPE_STANDIN_REPORT.
struct Report {
  // The table is made first, so that it is there still when the report is written.
  Report() { emulator::kernels(); }
  ~Report() {
    const char* path = std::getenv("ZOETROPE_STANDIN_REPORT");
    std::FILE* file = path == nullptr ? nullptr : std::fopen(path, "a");
    if (file == nullptr) return;
    for (auto& [name, kernel] : emulator::kernels()) std::fprintf(file, "%s %ld\n", name.c_str(), kernel.launches);
    std::fclose(file);
  }
} report;

// The arguments of a launch, kept until it runs.
struct Arguments {
  std::vector<std::unique_ptr<unsigned char[]>> values;
  std::vector<void*> pointers;
};

}  // namespace

#define LOCKED                                       \
  std::lock_guard<std::mutex> locked(driver);        \
  if (current == nullptr) return kInvalidContext;    \
  if (current->sticky != kSuccess) return current->sticky

extern "C" {

int cuInit(unsigned) { return from_environment("ZOETROPE_STANDIN_INIT", kSuccess); }
int cuDriverGetVersion(int* version) {
  *version = static_cast<int>(from_environment("ZOETROPE_STANDIN_VERSION", 13000));
  return kSuccess;
}
int cuDeviceGetCount(int* count) {
  std::lock_guard<std::mutex> locked(driver);
  *count = static_cast<int>(devices().size());
  return kSuccess;
}
int cuDeviceGet(int* device, int ordinal) {
  std::lock_guard<std::mutex> locked(driver);
  if (!is_device(ordinal)) return kInvalidDevice;
  *device = ordinal;
  return kSuccess;
}
int cuDeviceGetName(char* name, int bytes, int) {
  std::snprintf(name, bytes, "stand-in");
  return kSuccess;
}
int cuDeviceTotalMem_v2(size_t* bytes, int device) {
  std::lock_guard<std::mutex> locked(driver);
  if (!is_device(device)) return kInvalidDevice;
  *bytes = devices()[device].memory_bytes;
  return kSuccess;
}
int cuDeviceGetAttribute(int* value, int attribute, int ordinal) {
  std::lock_guard<std::mutex> locked(driver);
  int capability = devices().at(ordinal).capability;
  if (capability < 0) capability = static_cast<int>(10 * from_environment("ZOETROPE_STANDIN_MAJOR", 9));
  switch (attribute) {
    case 75: *value = capability / 10; break;
    case 76: *value = capability % 10; break;
    case 16: *value = 4; break;              // multiprocessors
    case 97: *value = 227 << 10; break;      // shared memory of a block, opted in
    case 38: *value = 1 << 20; break;        // L2
    default: *value = 1;
  }
  return kSuccess;
}
int cuDevicePrimaryCtxRetain(void** context, int device) {
  std::lock_guard<std::mutex> locked(driver);
  if (!is_device(device)) return kInvalidDevice;
  *context = &devices()[device];
  return kSuccess;
}
int cuDevicePrimaryCtxRelease_v2(int) { return kSuccess; }
int cuDevicePrimaryCtxReset_v2(int ordinal) {
  std::lock_guard<std::mutex> locked(driver);
  if (!is_device(ordinal)) return kInvalidDevice;
  Device& device = devices()[ordinal];
  for (auto& [at, bytes] : device.live) std::free(reinterpret_cast<void*>(at));
  device.live.clear();
  device.used_bytes = 0;
  device.sticky = kSuccess;
  delete std::exchange(device.capturing, nullptr);
  return kSuccess;
}
int cuCtxSetCurrent(void* context) {
  std::lock_guard<std::mutex> locked(driver);
  const bool known = context == nullptr || std::any_of(devices().begin(), devices().end(),
                                                        [context](const Device& device) { return &device == context; });
  if (known) current = static_cast<Device*>(context);
  return known ? kSuccess : kInvalidContext;
}
int cuCtxGetCurrent(void** context) {
  *context = current;
  return kSuccess;
}
int cuCtxSynchronize() {
  LOCKED;
  return kSuccess;
}
int cuStreamCreate(void** stream, unsigned) {
  LOCKED;
  *stream = new char;
  streams.insert(*stream);
  return kSuccess;
}
int cuStreamDestroy_v2(void* stream) {
  std::lock_guard<std::mutex> locked(driver);
  if (streams.erase(stream) == 0) return kInvalidValue;
  delete static_cast<char*>(stream);
  return kSuccess;
}
int cuStreamSynchronize(void*) {
  LOCKED;
  return current->capturing == nullptr ? kSuccess : kCaptureUnsupported;
}
int cuEventCreate(void** event, unsigned) {
  LOCKED;
  *event = new Event;
  return kSuccess;
}
int cuEventRecord(void* event, void*) {
  LOCKED;
  *static_cast<Event*>(event) = {std::chrono::steady_clock::now(), true};
  return kSuccess;
}
int cuEventSynchronize(void*) {
  LOCKED;
  return kSuccess;
}
int cuEventElapsedTime(float* ms, void* start, void* end) {
  LOCKED;
  auto &from = *static_cast<Event*>(start), &to = *static_cast<Event*>(end);
  if (!from.recorded || !to.recorded) return kInvalidValue;
  *ms = std::chrono::duration<float, std::milli>(to.at - from.at).count();
  return kSuccess;
}
int cuEventElapsedTime_v2(float* ms, void* start, void* end) { return cuEventElapsedTime(ms, start, end); }
int cuEventDestroy_v2(void* event) {
  delete static_cast<Event*>(event);
  return kSuccess;
}

int cuMemGetInfo_v2(size_t* free, size_t* total) {
  LOCKED;
  *total = current->memory_bytes;
  *free = *total - std::min(*total, current->used_bytes);
  return kSuccess;
}
int cuMemAlloc_v2(Pointer* at, size_t bytes) {
  LOCKED;
  if (bytes == 0) return kInvalidValue;
  if (current->capturing != nullptr && !current->capture_is_relaxed) return kCaptureUnsupported;
  if (current->used_bytes + bytes > current->memory_bytes) return kOutOfMemory;
  // Exactly as long as asked for, so that the address sanitizer sees what lies beyond.
  void* memory;
  if (posix_memalign(&memory, 256, bytes) != 0) return kOutOfMemory;
  // What was there before is another's: never zeros by luck.
  std::memset(memory, 0xff, bytes);
  *at = reinterpret_cast<Pointer>(memory);
  current->live[*at] = bytes;
  current->used_bytes += bytes;
  return kSuccess;
}
int cuMemFree_v2(Pointer at) {
  LOCKED;
  auto found = current->live.find(at);
  if (found == current->live.end()) return kInvalidValue;
  current->used_bytes -= found->second;
  current->live.erase(found);
  std::free(reinterpret_cast<void*>(at));
  return kSuccess;
}
int cuMemHostAlloc(void** at, size_t bytes, unsigned) {
  LOCKED;
  *at = std::malloc(bytes);
  pinned.insert(*at);
  return kSuccess;
}
int cuMemFreeHost(void* at) {
  std::lock_guard<std::mutex> locked(driver);
  if (pinned.erase(at) == 0) return kInvalidValue;
  std::free(at);
  return kSuccess;
}
int cuMemcpyHtoDAsync_v2(Pointer to, const void* from, size_t bytes, void*) {
  LOCKED;
  if (!is_ours(to, bytes)) return kInvalidValue;
  if (current->capturing != nullptr) return kCaptureUnsupported;
  std::memcpy(reinterpret_cast<void*>(to), from, bytes);
  return kSuccess;
}
int cuMemcpyDtoHAsync_v2(void* to, Pointer from, size_t bytes, void*) {
  LOCKED;
  if (!is_ours(from, bytes)) return kInvalidValue;
  if (current->capturing != nullptr) return kCaptureUnsupported;
  std::memcpy(to, reinterpret_cast<void*>(from), bytes);
  return kSuccess;
}
int cuMemcpyDtoDAsync_v2(Pointer to, Pointer from, size_t bytes, void*) {
  LOCKED;
  if (!is_ours(to, bytes) || !is_ours(from, bytes)) return kInvalidValue;
  return now_or_in_graph([=] {
    std::memmove(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), bytes);
    return kSuccess;
  });
}
int cuMemsetD8Async(Pointer at, unsigned char value, size_t bytes, void*) {
  LOCKED;
  if (!is_ours(at, bytes)) return kInvalidValue;
  return now_or_in_graph([=] {
    std::memset(reinterpret_cast<void*>(at), value, bytes);
    return kSuccess;
  });
}

int cuModuleLoadData(void** module, const void* image) {
  LOCKED;
  if (refuse_modules) return kInvalidImage;
  uint32_t magic;
  std::memcpy(&magic, image, 4);
  // Kernels come from the emulator here: it does not matter when the program was built before they were compiled.
  const char uncompiled[] = "scripts/fatbins";
  const bool is_uncompiled = std::strncmp(static_cast<const char*>(image), uncompiled, sizeof uncompiled - 1) == 0;
  if (magic != 0xba55ed50u && !is_uncompiled) return kInvalidImage;
  *module = new char;
  return kSuccess;
}
int cuModuleUnload(void* module) {
  delete static_cast<char*>(module);
  return kSuccess;
}
int cuModuleGetFunction(void** function, void*, const char* name) {
  LOCKED;
  auto found = emulator::kernels().find(name);
  if (found == emulator::kernels().end()) return kNotFound;
  *function = &found->second;
  return kSuccess;
}
int cuFuncSetAttribute(void*, int, int value) {
  LOCKED;
  return value <= 227 << 10 ? kSuccess : kInvalidValue;
}
int cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void*, void** arguments, void**) {
  LOCKED;
  auto& kernel = *static_cast<emulator::Kernel*>(function);
  if (gx == 0 || gy == 0 || gz == 0 || gy > 65535 || gz > 65535 || gx > 0x7fffffff || bx * by * bz > 1024) {
    return kInvalidValue;
  }
  auto kept = std::make_shared<Arguments>();
  for (size_t i = 0; i < kernel.argument_bytes.size(); i++) {
    kept->values.push_back(std::make_unique<unsigned char[]>(kernel.argument_bytes[i] + 128));
    auto start = (reinterpret_cast<uintptr_t>(kept->values.back().get()) + 127) & ~uintptr_t{127};
    kept->pointers.push_back(reinterpret_cast<void*>(start));
    std::memcpy(kept->pointers.back(), arguments[i], kernel.argument_bytes[i]);
  }
  return now_or_in_graph([&kernel, gx, gy, gz, bx, by, bz, shared, kept] {
    return run_kernel(kernel, {gx, gy, gz}, {bx, by, bz}, shared, kept->pointers.data());
  });
}

int cuStreamBeginCapture_v2(void*, int mode) {
  LOCKED;
  if (current->capturing != nullptr) return kCaptureUnsupported;
  current->capture_is_relaxed = mode == 2;
  current->capturing = new Graph;
  return kSuccess;
}
int cuStreamEndCapture(void*, void** graph) {
  LOCKED;
  if (current->capturing == nullptr) return kCaptureInvalidated;
  *graph = std::exchange(current->capturing, nullptr);
  return kSuccess;
}
int cuGraphInstantiateWithFlags(void** executable, void* graph, unsigned long long) {
  LOCKED;
  *executable = new Graph(*static_cast<Graph*>(graph));
  return kSuccess;
}
int cuGraphLaunch(void* executable, void*) {
  LOCKED;
  graph_launches++;
  for (auto& node : static_cast<Graph*>(executable)->nodes) {
    if (int result = node(); result != kSuccess) return result;
  }
  return kSuccess;
}
int cuGraphExecDestroy(void* executable) {
  delete static_cast<Graph*>(executable);
  return kSuccess;
}
int cuGraphDestroy(void* graph) {
  delete static_cast<Graph*>(graph);
  return kSuccess;
}

// A map of rows of 2-byte values for copies of boxes in the 128-byte swizzle: what the kernels here use, and no more of what
// the driver has. Its demands are the driver's.
int cuTensorMapEncodeTiled(TensorMap* map, int dtype, unsigned rank, void* address, const uint64_t* sizes,
                           const uint64_t* strides, const unsigned* box, const unsigned* element_strides, int interleave,
                           int swizzle, int, int fill) {
  constexpr int kBfloat16 = 9, kSwizzle128 = 3;
  LOCKED;
  if (dtype != kBfloat16 || rank != 2 || interleave != 0 || swizzle != kSwizzle128 || fill != 0) return kInvalidValue;
  if (reinterpret_cast<uintptr_t>(map) % alignof(TensorMap) != 0 || reinterpret_cast<uintptr_t>(address) % 16 != 0) return kInvalidValue;
  if (strides[0] % 16 != 0 || strides[0] >= uint64_t{1} << 40 || strides[0] < sizes[0] * 2) return kInvalidValue;
  for (int i = 0; i < 2; i++) {
    if (sizes[i] == 0 || sizes[i] > uint64_t{1} << 32 || box[i] == 0 || box[i] > 256) return kInvalidValue;
    if (element_strides[i] != 1) return kInvalidValue;
  }
  // A row of the box is at most as long as the swizzle.
  if (box[0] * 2 > 128 || box[0] * 2 % 16 != 0) return kInvalidValue;
  if (!is_ours(reinterpret_cast<Pointer>(address), (sizes[1] - 1) * strides[0] + sizes[0] * 2)) return kInvalidValue;
  const emulator::EncodedMap encoded{emulator::EncodedMap::kMagic, static_cast<const unsigned char*>(address),
                                     sizes[0], sizes[1], strides[0], box[0], box[1]};
  std::memset(map, 0, sizeof *map);
  std::memcpy(map, &encoded, sizeof encoded);
  return kSuccess;
}

int cuGetErrorName(int result, const char** name) {
  switch (result) {
    case kSuccess: *name = "CUDA_SUCCESS"; break;
    case kInvalidValue: *name = "CUDA_ERROR_INVALID_VALUE"; break;
    case kOutOfMemory: *name = "CUDA_ERROR_OUT_OF_MEMORY"; break;
    case kInvalidDevice: *name = "CUDA_ERROR_INVALID_DEVICE"; break;
    case kInvalidImage: *name = "CUDA_ERROR_INVALID_IMAGE"; break;
    case kInvalidContext: *name = "CUDA_ERROR_INVALID_CONTEXT"; break;
    case kNotFound: *name = "CUDA_ERROR_NOT_FOUND"; break;
    case kLaunchFailed: *name = "CUDA_ERROR_LAUNCH_FAILED"; break;
    case kCaptureUnsupported: *name = "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"; break;
    case kCaptureInvalidated: *name = "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"; break;
    default: *name = "CUDA_ERROR_UNKNOWN";
  }
  return kSuccess;
}
int cuGetErrorString(int result, const char** text) {
  static thread_local std::string message;
  message = "error " + std::to_string(result) + " of the stand-in driver";
  *text = message.c_str();
  return kSuccess;
}

// What the stand-ins of other libraries ask.

// Runs `work` on the stream of the current context, or records it; `release` frees its state when it is no longer needed.
int zoetrope_standin_enqueue(void* stream, void (*work)(void*), void* state, void (*release)(void*)) {
  const std::shared_ptr<void> kept(state, release);
  LOCKED;
  if (streams.count(stream) == 0) return kInvalidValue;
  enqueued++;
  return now_or_in_graph([work, kept] {
    work(kept.get());
    return kSuccess;
  });
}
// Whether all of the bytes lie within one allocation of the current context.
int zoetrope_standin_owns(unsigned long long at, size_t bytes) {
  std::lock_guard<std::mutex> locked(driver);
  return current != nullptr && is_ours(at, bytes);
}

// What tests ask of the stand-in.

// How often a kernel has run; -1 when there is none of that name.
long zoetrope_standin_launches(const char* name) {
  std::lock_guard<std::mutex> locked(driver);
  auto found = emulator::kernels().find(name);
  return found == emulator::kernels().end() ? -1 : found->second.launches;
}
// The names of all kernels, each ended by a newline.
const char* zoetrope_standin_kernels() {
  static std::string all;
  all.clear();
  for (auto& [name, kernel] : emulator::kernels()) all += name + "\n";
  return all.c_str();
}
// The order in which threads run between barriers, in the calling thread's launches from now on.
void zoetrope_standin_seed(unsigned value) { seed = value; }
// How many devices there are, from now on; never fewer than before.
void zoetrope_standin_devices(int count) {
  std::lock_guard<std::mutex> locked(driver);
  const size_t memory_bytes = devices().front().memory_bytes;
  while (static_cast<int>(devices().size()) < count) devices().emplace_back().memory_bytes = memory_bytes;
}
// How much memory a device has, from now on.
void zoetrope_standin_memory(int device, size_t bytes) {
  std::lock_guard<std::mutex> locked(driver);
  devices().at(device).memory_bytes = bytes;
}
// Sets a device's compute capability, as 10·major + minor, for those who ask from now on.
void zoetrope_standin_capability(int device, int capability) {
  std::lock_guard<std::mutex> locked(driver);
  devices().at(device).capability = capability;
}
// Makes a launch on the device fail with `error`, after `launches` good ones; the context is then spoilt until it is reset.
void zoetrope_standin_fail(int device, int error, long launches) {
  std::lock_guard<std::mutex> locked(driver);
  devices().at(device).injected = error;
  devices().at(device).launches_until_failure = launches;
}
// Whether every module is refused, as by a driver that knows none of the compiled architectures.
void zoetrope_standin_refuse_modules(int refuse) {
  std::lock_guard<std::mutex> locked(driver);
  refuse_modules = refuse != 0;
}
size_t zoetrope_standin_used_bytes(int device) {
  std::lock_guard<std::mutex> locked(driver);
  return devices().at(device).used_bytes;
}
int zoetrope_standin_graph_launches() {
  std::lock_guard<std::mutex> locked(driver);
  return graph_launches;
}
// How often another library's stand-in has queued work.
long zoetrope_standin_enqueued() {
  std::lock_guard<std::mutex> locked(driver);
  return enqueued;
}
}
