// Kernels of Hopper's instructions that are wrong on purpose, in one way each.
#include "hopper.cuh"

enum Fault {
  kRight,
  kNoWaitForCopies,
  kNoWaitForProducts,
  kNoFence,
  kWrongStride,
  kWrongStart,
  kBytesThatNeverCome,
  kSumsWritten,
  kTileOverwritten,
};
constexpr int kRows = 64;
constexpr int kColumns = 128;

// d [64, 128] = a [64, 64] · bᵀ, b [128, 64] bf16, by one warpgroup.
KERNEL(kWarpgroup)
multiply(const GRID_CONSTANT TensorMap a, const GRID_CONSTANT TensorMap b, float* d, int fault) {
  DYNAMIC_SHARED(unsigned char, bytes);
  unsigned char* a_tile = bytes + (kPatternBytes - shared_address(bytes) % kPatternBytes) % kPatternBytes;
  unsigned char* b_tile = a_tile + kRows * kPanelColumns * 2;
  constexpr int kBytes = (kRows + kColumns) * kPanelColumns * 2;
  auto* full = reinterpret_cast<uint64_t*>(a_tile + kBytes);
  if (threadIdx.x == 0) {
    barrier_init(full, 1);
    fence_barrier_init();
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    barrier_arrive_expect(full, fault == kBytesThatNeverCome ? kBytes + 16 : kBytes);
    tensor_load(a_tile, &a, 0, 0, full);
    tensor_load(b_tile, &b, 0, 0, full);
  }
  if (fault != kNoWaitForCopies) barrier_wait(full, 0);
  float sums[kColumns / 2] = {};
  if (fault != kNoFence) wgmma_fence();
  for (int step = 0; step < kPanelColumns / 16; step++) {
    uint64_t left = descriptor(shared_address(a_tile) + step * 32, 0);
    if (fault == kWrongStride) left ^= uint64_t{1} << 37;
    if (fault == kWrongStart) left += 1;
    wgmma_shared<kColumns>(sums, left, descriptor(shared_address(b_tile) + step * 32, 0), true);
  }
  wgmma_commit();
  if (fault == kSumsWritten) sums[5] = 1.0f;
  __syncthreads();
  if (fault == kTileOverwritten && threadIdx.x == 0) b_tile[0] ^= 1;
  __syncthreads();
  if (fault != kNoWaitForProducts) wgmma_wait<0>();
  for (int i = 0; i < kColumns / 2; i++) {
    const int row = warp() * 16 + lane() / 4 + i / 2 % 2 * 8, column = i / 4 * 8 + lane() % 4 * 2 + i % 2;
    d[row * kColumns + column] = sums[i];
  }
}
EXPORT(multiply)

// d [64, 64]: row r is row r % 16 of v [16, 64] bf16, chosen by a product whose right operand has a row per k.
KERNEL(kWarpgroup) choose_rows(const GRID_CONSTANT TensorMap v, float* d, int fault) {
  DYNAMIC_SHARED(unsigned char, bytes);
  unsigned char* tile = bytes + (kPatternBytes - shared_address(bytes) % kPatternBytes) % kPatternBytes;
  auto* full = reinterpret_cast<uint64_t*>(tile + 2 * kPatternBytes);
  if (threadIdx.x == 0) {
    barrier_init(full, 1);
    fence_barrier_init();
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    barrier_arrive_expect(full, 2 * kPatternBytes);
    tensor_load(tile, &v, 0, 0, full);
  }
  barrier_wait(full, 0);
  float sums[kPanelColumns / 2] = {};
  // Ones on the diagonal of each 16 rows: row g in word 0 or 2, row g + 8 in word 1 or 3.
  const int g = lane() / 4, t = lane() % 4;
  uint32_t ones[4] = {};
  if (g / 2 == t) ones[0] = ones[3] = bf16_pair(g % 2 == 0, g % 2 == 1);
  wgmma_fence();
  uint64_t right = descriptor(shared_address(tile), 0);
  if (fault == kWrongStride) right ^= uint64_t{1} << 37;
  wgmma_registers<kPanelColumns>(sums, ones, right, false);
  wgmma_commit();
  wgmma_wait<0>();
  for (int i = 0; i < kPanelColumns / 2; i++) {
    const int row = warp() * 16 + g + i / 2 % 2 * 8, column = i / 4 * 8 + t * 2 + i % 2;
    d[row * kPanelColumns + column] = sums[i];
  }
}
EXPORT(choose_rows)

// Two of three warpgroups ask for registers that only the third can give.
KERNEL(3 * kWarpgroup, 1) share_registers(float* d, int gives) {
  if (warpgroup() == 0) {
    if (gives != 0) registers_lower<24>();
  } else {
    registers_raise<240>();
  }
  d[threadIdx.x] = 1.0f;
}
EXPORT(share_registers)

// A warp waits at a named barrier for another, which comes or does not.
KERNEL(2 * kWarp) meet(float* d, int comes) {
  if (warp() == 0) named_sync(1, 2 * kWarp);
  if (warp() == 1 && comes != 0) named_arrive(1, 2 * kWarp);
  d[threadIdx.x] = 1.0f;
}
EXPORT(meet)
