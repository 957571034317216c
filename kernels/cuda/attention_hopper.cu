// Attention of bf16 on Hopper: softmax(q·kᵀ·scale)·v per head, with wgmma and tensor copies.
//
// inputs         q [queries, heads·d], k, v [keys, heads·d] bf16, heads side by side, each by a tensor map of boxes of
//                64 columns × 128 rows in the 128-byte swizzle; the maps of k and v end at the last visible key
// outputs        out [queries, heads·d] bf16, not aliased
// preconditions  compute capability 9.0; d is 64 or 128; unit = scale / ln 2 > 0; grid (queries / 128 rounded up,
//                heads), 384 threads, kSharedBytes<d> of dynamic shared memory
// reference      attention::reference; relative RMSE ≤ 1e-2 (weights and result are rounded to bf16)
// bound by       the tensor cores, 4·queries·keys·heads·d FLOP; then the exponentials, queries·keys·heads of 16 a cycle
// benchmark      attention
//
// Of three warpgroups one copies: it gives its registers away, and one thread keeps two tiles of keys and of values
// under way. The other two have 64 queries each. A warpgroup's tensor work overlaps with exponentials twice over: with
// its own, since the scores of the next tile and the sums of the last are asked for together and the softmax of those
// scores runs while the sums are still under way; and with the other warpgroup's, since the two take turns at asking
// (named barriers). The design is that of FlashAttention-3 (Shah et al. 2024, arXiv:2407.08608).
#include "hopper.cuh"
#include "softmax.cuh"

[[maybe_unused]] constexpr int kQueries = 128;
constexpr int kKeys = 128;
constexpr int kStages = 2;
constexpr int kThreads = 3 * kWarpgroup;
[[maybe_unused]] constexpr int kConsumerWarps = 8;
// 65536 registers over 384 threads are 168 each at the start; then 24 and 240 are as many together.
[[maybe_unused]] constexpr int kProducerRegisters = 24;
[[maybe_unused]] constexpr int kConsumerRegisters = 240;

template <int width>
constexpr int kTileBytes = kKeys * width * 2;
[[maybe_unused]] constexpr int kPanelBytes = kKeys * kPanelColumns * 2;
// Queries, keys, values and barriers, from the next multiple of 1024 on.
template <int width>
constexpr int kSharedBytes = kPatternBytes + (1 + 2 * kStages) * kTileBytes<width> + 128;

// Shared memory of a block.
template <int width>
struct Shared {
  unsigned char* q;
  uint64_t* barriers;

  DEVICE explicit Shared(unsigned char* bytes) {
    q = bytes + (kPatternBytes - shared_address(bytes) % kPatternBytes) % kPatternBytes;
    barriers = reinterpret_cast<uint64_t*>(q + (1 + 2 * kStages) * kTileBytes<width>);
  }
  DEVICE unsigned char* k(int stage) const { return q + (1 + stage) * kTileBytes<width>; }
  DEVICE unsigned char* v(int stage) const { return q + (1 + kStages + stage) * kTileBytes<width>; }
  DEVICE uint64_t* q_full() const { return barriers; }
  DEVICE uint64_t* k_full(int stage) const { return barriers + 1 + stage; }
  DEVICE uint64_t* v_full(int stage) const { return barriers + 1 + kStages + stage; }
  DEVICE uint64_t* k_empty(int stage) const { return barriers + 1 + 2 * kStages + stage; }
  DEVICE uint64_t* v_empty(int stage) const { return barriers + 1 + 3 * kStages + stage; }

  DEVICE void init_barriers() const {
    barrier_init(q_full(), 1);
    for (int stage = 0; stage < kStages; stage++) {
      barrier_init(k_full(stage), 1);
      barrier_init(v_full(stage), 1);
      barrier_init(k_empty(stage), kConsumerWarps);
      barrier_init(v_empty(stage), kConsumerWarps);
    }
    fence_barrier_init();
  }
};

// Where the i-th tile that is worked on lies, and the parity of that use of its stage.
DEVICE int stage_of(int i) { return i % kStages; }
DEVICE int parity_of(int i) { return i / kStages % 2; }

template <int width>
DEVICE void load_tile(unsigned char* to, const TensorMap* map, int row, uint64_t* full) {
  barrier_arrive_expect(full, kTileBytes<width>);
#pragma unroll
  for (int panel = 0; panel < width / kPanelColumns; panel++) {
    tensor_load(to + panel * kPanelBytes, map, blockIdx.y * width + panel * kPanelColumns, row, full);
  }
}

// The copying thread. Tiles of keys go from the last, which may be partly masked, to the first.
template <int width>
DEVICE void produce(const Shared<width>& shared, const TensorMap* q, const TensorMap* k, const TensorMap* v, int tiles) {
  tensor_prefetch(q);
  tensor_prefetch(k);
  tensor_prefetch(v);
  load_tile<width>(shared.q, q, blockIdx.x * kQueries, shared.q_full());
  for (int i = 0; i < tiles; i++) {
    const int stage = stage_of(i), row = (tiles - 1 - i) * kKeys;
    barrier_wait(shared.k_empty(stage), parity_of(i) ^ 1);
    load_tile<width>(shared.k(stage), k, row, shared.k_full(stage));
    barrier_wait(shared.v_empty(stage), parity_of(i) ^ 1);
    load_tile<width>(shared.v(stage), v, row, shared.v_full(stage));
  }
}

// Asks for the scores of a warpgroup's 64 queries against a tile of keys.
template <int width>
DEVICE void ask_scores(float (&s)[kKeys / 2], uint32_t q, uint32_t k) {
  keep_in_registers(s);
  wgmma_fence();
#pragma unroll
  for (int step = 0; step < width / 16; step++) {
    const int at = step / 4 * kPanelBytes + step % 4 * 32;
    wgmma_shared<kKeys>(s, descriptor(q + at, 0), descriptor(k + at, 0), step > 0);
  }
  wgmma_commit();
  keep_in_registers(s);
}

// Asks for the sums of a tile of values under the weights to be added.
template <int width>
DEVICE void ask_sums(float (&sums)[width / 2], const uint32_t (&weights)[kKeys / 16][4], uint32_t v) {
  keep_in_registers(sums);
  keep_in_registers(weights);
  wgmma_fence();
#pragma unroll
  for (int step = 0; step < kKeys / 16; step++) {
    wgmma_registers<width>(sums, weights[step], descriptor(v + step * 2 * kPatternBytes, kPanelBytes), true);
  }
  wgmma_commit();
  keep_in_registers(sums);
}

// Tells the copying thread that this warp has done with a tile.
DEVICE void release(uint64_t* empty) {
  if (lane() == 0) barrier_arrive(empty);
}

// A warpgroup asks for products when it is its turn, and then passes the turn on. Its barrier is 1 + its number.
struct Turns {
  int mine;

  DEVICE void wait() const { named_sync(1 + mine, 2 * kWarpgroup); }
  DEVICE void pass() const { named_arrive(1 + (mine ^ 1), 2 * kWarpgroup); }
};

// Divides by the totals and writes a warpgroup's rows.
template <int width>
DEVICE void write(bf16* __restrict__ out, const float (&sums)[width / 2], const Running& running, int first, int queries) {
#pragma unroll
  for (int row = 0; row < 2; row++) {
    const float inverse = 1.0f / quad_sum(running.total[row]);
    const int query = first + warp() % 4 * 16 + lane() / 4 + 8 * row;
    if (query >= queries) continue;
    auto* to = reinterpret_cast<uint32_t*>(out + (static_cast<long long>(query) * gridDim.y + blockIdx.y) * width);
#pragma unroll
    for (int j = 0; j < width / 8; j++) {
      to[4 * j + lane() % 4] = bf16_pair(sums[4 * j + 2 * row] * inverse, sums[4 * j + 2 * row + 1] * inverse);
    }
  }
}

// One warpgroup's 64 queries against all keys.
template <int width>
DEVICE void consume(const Shared<width>& shared, int group, bf16* __restrict__ out, int queries, int keys, int tiles,
                    float unit) {
  const uint32_t q = shared_address(shared.q) + group * 64 * kPanelColumns * 2;
  const Turns turns{group};
  Running running;
  float scores[kKeys / 2], sums[width / 2], factor[2];
  uint32_t weights[kKeys / 16][4];
#pragma unroll
  for (int i = 0; i < width / 2; i++) sums[i] = 0.0f;

  if (group == 1 && tiles > 1) turns.pass();
  barrier_wait(shared.q_full(), 0);
  barrier_wait(shared.k_full(0), 0);
  ask_scores<width>(scores, q, shared_address(shared.k(0)));
  wgmma_wait<0>();
  keep_in_registers(scores);
  release(shared.k_empty(0));
  if (keys % kKeys != 0) mask_columns(scores, keys % kKeys);
  soften(running, scores, unit, factor);
#pragma unroll
  for (int step = 0; step < kKeys / 16; step++) left_operand(weights[step], scores, step);

  for (int i = 1; i < tiles; i++) {
    const int last = i - 1;
    barrier_wait(shared.k_full(stage_of(i)), parity_of(i));
    turns.wait();
    ask_scores<width>(scores, q, shared_address(shared.k(stage_of(i))));
    barrier_wait(shared.v_full(stage_of(last)), parity_of(last));
    ask_sums<width>(sums, weights, shared_address(shared.v(stage_of(last))));
    // The first warpgroup began, so the second's last turn is nobody's.
    if (group == 0 || i < tiles - 1) turns.pass();
    wgmma_wait<1>();
    keep_in_registers(scores);
    release(shared.k_empty(stage_of(i)));
    soften(running, scores, unit, factor);
    wgmma_wait<0>();
    keep_in_registers(sums);
    release(shared.v_empty(stage_of(last)));
#pragma unroll
    for (int step = 0; step < kKeys / 16; step++) left_operand(weights[step], scores, step);
    rescale(sums, factor);
  }
  barrier_wait(shared.v_full(stage_of(tiles - 1)), parity_of(tiles - 1));
  ask_sums<width>(sums, weights, shared_address(shared.v(stage_of(tiles - 1))));
  wgmma_wait<0>();
  keep_in_registers(sums);
  write<width>(out, sums, running, blockIdx.x * kQueries + group * 64, queries);
}

template <int width>
DEVICE void attend(const TensorMap* q, const TensorMap* k, const TensorMap* v, bf16* __restrict__ out, int queries,
                   int keys, float unit) {
  if constexpr (!kHopperCode) {
    refuse();
  } else {
    DYNAMIC_SHARED(unsigned char, bytes);
    const Shared<width> shared(bytes);
    const int tiles = (keys + kKeys - 1) / kKeys;
    if (threadIdx.x == 0) shared.init_barriers();
    __syncthreads();
    if (warpgroup() == 0) {
      registers_lower<kProducerRegisters>();
      if (threadIdx.x == 0) produce<width>(shared, q, k, v, tiles);
    } else {
      registers_raise<kConsumerRegisters>();
      consume<width>(shared, warpgroup() - 1, out, queries, keys, tiles, unit);
    }
  }
}

KERNEL(kThreads, 1)
attention_hopper_64_bf16(const GRID_CONSTANT TensorMap q, const GRID_CONSTANT TensorMap k, const GRID_CONSTANT TensorMap v,
                         bf16* __restrict__ out, int queries, int keys, float unit) {
  attend<64>(&q, &k, &v, out, queries, keys, unit);
}
EXPORT(attention_hopper_64_bf16)

KERNEL(kThreads, 1)
attention_hopper_128_bf16(const GRID_CONSTANT TensorMap q, const GRID_CONSTANT TensorMap k, const GRID_CONSTANT TensorMap v,
                          bf16* __restrict__ out, int queries, int keys, float unit) {
  attend<128>(&q, &k, &v, out, queries, keys, unit);
}
EXPORT(attention_hopper_128_bf16)
