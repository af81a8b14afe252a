// Whole rollouts on a CUDA device: policy, simulator and cost over a horizon, forward and backward, one block of rollouts at a time.
//
// The contract is that of rollout.cpp. Of the threads of a block the first have one rollout each: they compute the simulator's
// step and its vector-Jacobian product for it. The layers of networks are computed by all threads of the block together, on
// activations in shared memory. A block runs over the whole horizon. Only the states are stored, in global memory; backward
// computes everything else again.
//
// Gradients by what rollouts share: a block adds them up in an order of its own, over intervals and over the blocks of its
// group, and stores one row for the group; `reduce` adds the rows in order. So the same call always gives the same bits.
//
// Above this text are T and the sizes; at EMITTED, below the layers, the code generated from the user's functions:
//   struct Policy, struct Value   layers: stage(), prologue(), forward(), backward(), weights(), prologue_vjp()
//   step(), step_vjp()            from the layers' results to the next state and the cost
//   value(), value_vjp()          from the layers' results to the terminal value
//   spread_weights()              from what a block gathered to the rows of its group

// SCALARS

// The inputs of one rollout, and the accumulators of its gradients. Arrays of size 0 get size 1.
struct In {
  T x[N];
  T timed[TIMED + 1];  // noise and open-loop controls of the interval, made noise first
  T own[OWN + 1];      // physical parameters with a value for every rollout
  T raw[RAW + 1];      // results of layers
  const T* const* shared;
  T dt;
  T* by_own;
  T* by_shared;
};

// ---- Noise, as in diffsim/rollouts/noise.py and rollout.cpp, operation by operation.
INLINE void philox(uint32_t* c, uint64_t seed) {
  uint32_t key[2] = {uint32_t(seed), uint32_t(seed >> 32)};
  for (int round = 0; round < 10; round++) {
    const uint32_t first = c[0], second = c[2];
    c[0] = high_word(second, 0xCD9E8D57u) ^ c[1] ^ key[0];
    c[1] = second * 0xCD9E8D57u;
    c[2] = high_word(first, 0xD2511F53u) ^ c[3] ^ key[1];
    c[3] = first * 0xD2511F53u;
    key[0] += 0x9E3779B9u;
    key[1] += 0xBB67AE85u;
  }
}
AS_WRITTEN void box_muller(uint32_t first, uint32_t second, float* normal) {
  const float uniform = MUL(ADD(float(first >> 9), 0.5f), 1.0f / 8388608);
  const int32_t bits = bits_of(uniform), exponent = (bits >> 23) - 127;
  float m = float_of((bits & 0x7FFFFF) | 0x3F800000);
  const bool large = m > 1.4142135381698608f;
  m = large ? MUL(m, 0.5f) : m;
  const float e = float(large ? exponent + 1 : exponent);
  const float s = DIV(SUB(m, 1.0f), ADD(m, 1.0f)), zs = MUL(s, s);
  float series = ADD(MUL(zs, 0.1111111119389534f), 0.1428571492433548f);
  series = MUL(zs, ADD(MUL(zs, ADD(MUL(zs, series), 0.20000000298023224f)), 0.3333333432674408f));
  const float twice = MUL(ADD(s, MUL(s, series)), 2.0f);
  const float radius = ROOT(MUL(ADD(MUL(e, 0.6931471824645996f), twice), -2.0f));
  const float angle = MUL(SUB(MUL(float((second & 0x3FFFFFFFu) >> 6), 1.0f / 16777216), 0.5f), 1.5707963705062866f);
  const float z = MUL(angle, angle);
  float sine = ADD(MUL(z, -0.00019515282474458218f), 0.00833216030150652f);
  sine = ADD(angle, MUL(angle, MUL(z, SUB(MUL(z, sine), 0.16666655242443085f))));
  float cosine = ADD(MUL(z, SUB(MUL(z, 2.443845005473122e-05f), 0.001388736767694354f)), 0.04166664555668831f);
  cosine = ADD(SUB(MUL(MUL(z, z), cosine), MUL(z, 0.5f)), 1.0f);
  const int32_t quadrant = int32_t(second >> 30);
  const float a = quadrant & 1 ? cosine : sine, b = quadrant & 1 ? sine : cosine;
  normal[0] = MUL(radius, (quadrant + 1) & 2 ? -b : b);
  normal[1] = MUL(radius, quadrant & 2 ? -a : a);
}
// `count` numbers for the rollout of this number; stream 0.
INLINE void noise(uint64_t seed, int64_t interval, uint32_t rollout, T scale, int count, T* to) {
  UNROLL_ALL for (int block = 0; 4 * block < count; block++) {
    uint32_t word[4] = {rollout, uint32_t(interval), uint32_t(block), 0};
    philox(word, seed);
    float normal[4];
    box_muller(word[0], word[1], normal);
    box_muller(word[2], word[3], normal + 2);
    UNROLL_ALL for (int i = 0; i < 4; i++)
      if (4 * block + i < count) to[4 * block + i] = T(normal[i]) * scale;
  }
}

// LAYERS

// EMITTED

// ARGUMENTS

// The rollouts of a block: they are `count` neighbours from `first` on, of one member. The threads of others repeat the last one.
struct Block {
  const Arguments& a;
  int64_t member, first;
  int count;

  INLINE_METHOD Block(const Arguments& a, int64_t index) : a(a) {
    const int64_t each = a.batch / a.members, per_member = (each + ROLLOUTS - 1) / ROLLOUTS;
    member = index / per_member;
    const int64_t begin = (index % per_member) * ROLLOUTS;
    first = member * each + begin;
    count = int(each - begin < ROLLOUTS ? each - begin : ROLLOUTS);
  }
  static INLINE_METHOD int64_t number(const Arguments& a) {
    return a.members * ((a.batch / a.members + ROLLOUTS - 1) / ROLLOUTS);
  }
  INLINE_METHOD void tables(const T** shared) const {
    for (int k = 0; k < SHARED; k++) shared[k] = a.shared[k] + member * a.member[k];
  }
  INLINE_METHOD T load(const Strided& from, int c, int64_t step = 0, int64_t component = 0) const {
    return from.data[step * from.time + component * from.component + (first + (c < count ? c : count - 1)) * from.rollout];
  }
  // A cotangent: zero where there is none and in threads beyond the batch.
  INLINE_METHOD T load_bar(const Strided& from, int c, int64_t step = 0, int64_t component = 0) const {
    return from.data && c < count ? load(from, c, step, component) : T(0);
  }
  INLINE_METHOD void store(T* to, int c, T v) const {
    if (c < count) to[first + c] = v;
  }
  INLINE_METHOD void load_constants(In& in, const T* const* shared, int c) const {
    in.shared = shared;
    in.dt = T(a.dt);
    UNROLL_ALL for (int k = 0; k < OWN; k++) in.own[k] = load(a.own[k], c);
  }
  INLINE_METHOD void load_timed(In& in, int c, int64_t t) const {
    if constexpr (MADE_NOISE > 0) {
      const int64_t own = first + c;
      const int64_t number = a.noise_of && own < a.batch ? a.noise_of[own] : own;
      noise(a.noise_seed, a.noise_start + t, uint32_t(number), T(a.noise_scale), MADE_NOISE, in.timed);
    }
    int at = MADE_NOISE;
    UNROLL_ALL for (int leaf = 0; leaf < TIMED_LEAVES; leaf++)
      UNROLL_ALL for (int j = 0; j < TIMED_SIZES[leaf]; j++, at++) in.timed[at] = load(a.timed[leaf], c, t, j);
  }
  INLINE_METHOD void load_state(In& in, int c, int64_t t) const {
    const T* at = a.states + t * N * a.batch + first + (c < count ? c : count - 1);
    UNROLL_ALL for (int i = 0; i < N; i++) in.x[i] = at[i * a.batch];
  }
  INLINE_METHOD void store_state(const In& in, int c, T* to) const {
    if (to)
      UNROLL_ALL for (int i = 0; i < N; i++) store(to + i * a.batch, c, in.x[i]);
  }
};

// The block's memory, in numbers from its beginning; the sizes are above. `partial` begins it, so that rows are aligned.
constexpr int64_t ACT = THREADS, BAR = ACT + WIDEST * NV, SCRATCH = BAR + WIDEST * NV, WEIGHTS = SCRATCH + SCRATCH_ROWS * NV;
constexpr int64_t SUMS = WEIGHTS + STAGED, BACKWARD_SIZE = SUMS + (SUMS_INSIDE ? BY_SHARED : 0);
constexpr int64_t FORWARD_WEIGHTS = BAR, FORWARD_SIZE = FORWARD_WEIGHTS + STAGED;

INLINE void forward_block(const Arguments& a, int64_t index, T* memory) {
  const Block block(a, index);
  const T* shared[SHARED + 1];
  block.tables(shared);
  T *act = memory + ACT, *weights = memory + FORWARD_WEIGHTS;
  In threads[PRIVATE];
  Policy::stage(shared, weights);
  EACH {
    In& in = threads[MINE];
    block.load_constants(in, shared, c);
    UNROLL_ALL for (int i = 0; i < N; i++) in.x[i] = block.load(a.x0, c, 0, i);
  }
  UNROLL_NONE for (int64_t t = 0; t < a.steps; t++) {
    EACH {
      In& in = threads[MINE];
      block.store_state(in, c, a.states ? a.states + t * N * a.batch : nullptr);
      block.load_timed(in, c, t);
      Policy::prologue(in, act + c);
    }
    Policy::forward(shared, weights, act);
    EACH {
      In& in = threads[MINE];
      Policy::results(act + c, in.raw);
      T next[N], cost;
      step(in, next, cost);
      UNROLL_ALL for (int i = 0; i < N; i++) in.x[i] = next[i];
      block.store(a.costs + t * a.batch, c, cost);
    }
  }
  EACH {
    In& in = threads[MINE];
    block.store_state(in, c, a.states ? a.states + a.steps * N * a.batch : nullptr);
    block.store_state(in, c, a.last);
    if (HAS_VALUE) Value::prologue(in, act + c);
  }
  if (HAS_VALUE) {
    Value::forward(shared, weights, act);
    EACH {
      In& in = threads[MINE];
      Value::results(act + c, in.raw);
      T result;
      value(in, result);
      block.store(a.values, c, result);
    }
  }
}

#if GRADIENT
struct Thread {
  In in;
  T lambda[N], by_own[OWN + 1];
  T by_scalar[SCALARS + 1];  // gradients by shared numbers that scalar expressions read
};

// Scales a costate that is longer than the bound down to it.
INLINE void bound_costate(const Arguments& a, T* lambda) {
  if (!(a.costate_bound > 0)) return;
  T square = 0;
  UNROLL_ALL for (int i = 0; i < N; i++) {
    const T scaled = lambda[i] * a.sizes[i];
    square += scaled * scaled;
  }
  const T length = v_sqrt(square), bound = T(a.costate_bound);
  const T factor = length > bound ? bound / length : T(1);
  UNROLL_ALL for (int i = 0; i < N; i++) lambda[i] *= factor;
}

INLINE void backward_block(const Block& block, const T* const* shared, Thread* threads, T* memory, T* sums) {
  const Arguments& a = block.a;
  T *partial = memory, *act = memory + ACT, *bar = memory + BAR, *scratch = memory + SCRATCH, *weights = memory + WEIGHTS;
  const bool valued = HAS_VALUE && a.by_values.data;
  EACH {
    Thread& own = threads[MINE];
    block.load_constants(own.in, shared, c);
    own.in.by_own = own.by_own;
    own.in.by_shared = own.by_scalar;
    UNROLL_ALL for (int k = 0; k < OWN + 1; k++) own.by_own[k] = 0;
    UNROLL_ALL for (int i = 0; i < N; i++) own.lambda[i] = block.load_bar(a.by_last, c, 0, i) + block.load_bar(a.by_states, c, a.steps, i);
    if (valued) {
      block.load_state(own.in, c, a.steps);
      Value::prologue(own.in, act + c);
    }
  }
  if (valued) {
    Value::forward(shared, weights, act);
    EACH {
      Thread& own = threads[MINE];
      Value::results(act + c, own.in.raw);
      T by_raw[RAW + 1];
      value_vjp(own.in, block.load_bar(a.by_values, c), own.lambda, by_raw);
      Value::seed(by_raw, bar + c);
    }
    Value::backward(shared, weights, act, bar, sums, scratch, partial);
    Value::weights(act, bar, sums, partial);
    EACH Value::prologue_vjp(threads[MINE].in, bar + c, threads[MINE].lambda);
  }
  UNROLL_NONE for (int64_t t = a.steps - 1; t >= 0; t--) {
    EACH {
      Thread& own = threads[MINE];
      bound_costate(a, own.lambda);
      block.load_state(own.in, c, t);
      block.load_timed(own.in, c, t);
      Policy::prologue(own.in, act + c);
    }
    Policy::forward(shared, weights, act);
    EACH {
      Thread& own = threads[MINE];
      Policy::results(act + c, own.in.raw);
      T by_x[N], by_raw[RAW + 1], by_timed[TIMED + 1];
      step_vjp(own.in, own.lambda, block.load_bar(a.by_costs, c, t), by_x, by_raw, by_timed);
      Policy::seed(by_raw, bar + c);
      UNROLL_ALL for (int i = 0; i < N; i++) own.lambda[i] = by_x[i];
      int k = MADE_NOISE;
      UNROLL_ALL for (int leaf = 0; leaf < TIMED_LEAVES; leaf++)
        UNROLL_ALL for (int j = 0; j < TIMED_SIZES[leaf]; j++, k++)
          if (a.by_timed[leaf]) block.store(a.by_timed[leaf] + (t * TIMED_SIZES[leaf] + j) * a.batch, c, by_timed[k]);
    }
    Policy::backward(shared, weights, act, bar, sums, scratch, partial);
    Policy::weights(act, bar, sums, partial);
    EACH {
      Thread& own = threads[MINE];
      Policy::prologue_vjp(own.in, bar + c, own.lambda);
      const bool cut = a.truncate && t % a.truncate == 0 && t > 0;
      UNROLL_ALL for (int i = 0; i < N; i++) own.lambda[i] = (cut ? T(0) : own.lambda[i]) + block.load_bar(a.by_states, c, t, i);
    }
  }
  EACH {
    Thread& own = threads[MINE];
    UNROLL_ALL for (int i = 0; i < N; i++) block.store(a.by_x0 + i * a.batch, c, own.lambda[i]);
    UNROLL_ALL for (int k = 0; k < OWN; k++)
      if (a.by_own[k]) block.store(a.by_own[k], c, own.by_own[k]);
  }
}

// All blocks of a group, one after the other; the groups do not depend on the device.
INLINE void backward_group(const Arguments& a, int64_t g, T* memory) {
  const int64_t blocks = Block::number(a);
  T* act = memory + ACT;
  T* sums = SUMS_INSIDE ? memory + SUMS : a.outside + g * BY_SHARED;
  Thread threads[PRIVATE];
  EACH {
    UNROLL_ALL for (int k = 0; k < SCALARS + 1; k++) threads[MINE].by_scalar[k] = 0;
  }
  PHASE for (int k = c; k < BY_SHARED; k += THREADS) sums[k] = 0;
  const T* shared[SHARED + 1];
  int64_t member = -1;
  for (int64_t b = g * blocks / a.groups; b < (g + 1) * blocks / a.groups; b++) {
    const Block block(a, b);
    if (block.member != member) {
      member = block.member;
      block.tables(shared);
      Policy::stage(shared, memory + WEIGHTS);
    }
    backward_block(block, shared, threads, memory, sums);
  }
  // What the threads have gathered, in as many rows as the activations have.
  UNROLL_NONE for (int first = 0; first < SCALARS; first += WIDEST) {
    EACH for (int k = first; k < SCALARS && k < first + WIDEST; k++) act[(k - first) * NV + c] = threads[MINE].by_scalar[k];
    PHASE for (int k = first + c; k < SCALARS && k < first + WIDEST; k += THREADS) {
      T total = 0;
      for (int q = 0; q < ROLLOUTS; q++) total += act[(k - first) * NV + q];
      sums[SCALAR_TO[k]] += total;
    }
  }
  UNROLL_NONE for (int k = 0; k < SHARED; k++) {
    if (!a.by_shared[k]) continue;
    T* to = a.by_shared[k] + g * SIZES[k];
    PHASE for (int j = c; j < SIZES[k]; j += THREADS) to[j] = OFFSETS[k] >= 0 ? sums[OFFSETS[k] + j] : T(0);
  }
  spread_weights(sums, a.by_shared, g);
}

// The sum over groups of number i of every slot.
INLINE void reduce_number(const Arguments& a, int64_t i) {
  for (int k = 0; k < SHARED; k++) {
    if (!a.by_shared[k] || i >= SIZES[k]) continue;
    T sum = 0;
    UNROLL_16 for (int64_t g = 0; g < a.groups; g++) sum += a.by_shared[k][g * SIZES[k] + i];
    a.by_shared[k][a.groups * SIZES[k] + i] = sum;
  }
}
#endif

#if ON_DEVICE
extern "C" {
__global__ void __launch_bounds__(THREADS, FORWARD_BLOCKS) forward(const __grid_constant__ Arguments a) {
  extern __shared__ float4 memory[];
  forward_block(a, blockIdx.x, reinterpret_cast<T*>(memory));
}
#if GRADIENT
__global__ void __launch_bounds__(THREADS, BACKWARD_BLOCKS) backward(const __grid_constant__ Arguments a) {
  extern __shared__ float4 memory[];
  backward_group(a, blockIdx.x, reinterpret_cast<T*>(memory));
}
__global__ void __launch_bounds__(128) reduce(const __grid_constant__ Arguments a) {
  reduce_number(a, int64_t(blockIdx.x) * 128 + threadIdx.x);
}
#endif
}
#else
extern "C" {
int64_t size_of_arguments() { return sizeof(Arguments); }
void forward(const Arguments* a) {
  T* memory = static_cast<T*>(std::malloc(FORWARD_SIZE * sizeof(T)));
  for (int64_t b = 0; b < Block::number(*a); b++) forward_block(*a, b, memory);
  std::free(memory);
}
#if GRADIENT
void backward(const Arguments* a) {
  T* memory = static_cast<T*>(std::malloc(BACKWARD_SIZE * sizeof(T)));
  for (int64_t g = 0; g < a->groups; g++) backward_group(*a, g, memory);
  std::free(memory);
  int most = 1;
  for (int size : SIZES) most = std::max(most, size);
  for (int64_t i = 0; i < most; i++) reduce_number(*a, i);
}
#endif
}
#endif
