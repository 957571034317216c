// Kernels that are wrong on purpose: what the emulator and the address sanitizer must find.
#include "gpu.cuh"

constexpr int kThreads = 128;

// Reverses a block's values through shared memory; `good` decides whether the threads wait for each other.
DEVICE void reverse(float* x, bool good) {
  SHARED(float, part, [kThreads]);
  part[threadIdx.x] = x[threadIdx.x];
  if (good) __syncthreads();
  x[threadIdx.x] = part[kThreads - 1 - threadIdx.x];
}
KERNEL(kThreads) reverse_with_barrier(float* x) { reverse(x, true); }
EXPORT(reverse_with_barrier)
KERNEL(kThreads) reverse_without_barrier(float* x) { reverse(x, false); }
EXPORT(reverse_without_barrier)

// Copies 16 bytes a thread through shared memory in the background; `good` decides whether it waits for them.
DEVICE void copy_in_background(const float* x, float* y, bool good) {
  DYNAMIC_SHARED(float, part);
  float* mine = part + threadIdx.x * 4;
  cp_async16(mine, x + threadIdx.x * 4);
  cp_async_commit();
  if (good) cp_async_wait<0>();
  for (int i = 0; i < 4; i++) y[threadIdx.x * 4 + i] = mine[i];
}
KERNEL(kThreads) copy_after_waiting(const float* x, float* y) { copy_in_background(x, y, true); }
EXPORT(copy_after_waiting)
KERNEL(kThreads) copy_without_waiting(const float* x, float* y) { copy_in_background(x, y, false); }
EXPORT(copy_without_waiting)

// Half of the threads wait for all.
KERNEL(kThreads) divergent_barrier(float* x) {
  if (threadIdx.x < kThreads / 2) __syncthreads();
  x[threadIdx.x] = 0.0f;
}
EXPORT(divergent_barrier)

// Writes `index` of what may have fewer values, in each kind of memory.
KERNEL(kThreads) store_global(float* x, int index) { x[index] = 1.0f; }
EXPORT(store_global)
KERNEL(kThreads) store_static_shared(float* x, int index) {
  SHARED(float, part, [8]);
  part[index] = 1.0f;
  x[0] = part[index];
}
EXPORT(store_static_shared)
KERNEL(kThreads) store_dynamic_shared(float* x, int index) {
  DYNAMIC_SHARED(float, part);
  part[index] = 1.0f;
  x[0] = part[index];
}
EXPORT(store_dynamic_shared)
