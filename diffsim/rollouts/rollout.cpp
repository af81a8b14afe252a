// Whole rollouts: policy, simulator and cost over a horizon, forward and backward, one block of rollouts at a time.
//
// A block is NV vectors of LANES rollouts. A block runs over the whole horizon, so that its data stays in the cache; blocks
// share read-only data. The states are stored, and where the caller gives a tape, what the policy's layers returned: backward
// goes through the control intervals from the last to the first, reads the tape or evaluates the policy on the state again, and
// applies the vjp of step and policy.
//
// Above this text are T and the sizes; at EMITTED, below the vectors, the code generated from the user's functions:
//   struct Policy, struct Value   layers: prologue(), forward(), backward(), weights(), prologue_vjp()
//   step(), step_vjp()            from the layers' results to the next state and the cost
//   value(), value_vjp()          from the layers' results to the terminal value

// VECTORS

#include <cstdlib>
#include <memory>

constexpr int NV = 4;  // vectors in a block

// The inputs of one vector of rollouts, and the accumulators of its gradients. Arrays of size 0 get size 1.
struct In {
  V x[N];
  V timed[TIMED + 1];  // noise and open-loop controls of the interval, made noise first
  V own[OWN + 1];      // physical parameters with a value for every rollout
  V raw[RAW + 1];      // results of layers
  const T* const* shared;
  T dt;
  V* by_own;
  V* by_shared;
};

// ---- Noise, as in diffsim/rollouts/noise.py, operation by operation: no contraction to fused multiply-adds here.
typedef uint32_t Word __attribute__((vector_size(4 * LANES)));
typedef int32_t Int __attribute__((vector_size(4 * LANES)));
typedef uint64_t Long __attribute__((vector_size(8 * LANES)));
typedef float Float __attribute__((vector_size(4 * LANES)));
#if defined(__clang__)
#define AS_WRITTEN
#pragma STDC FP_CONTRACT OFF
#else
#define AS_WRITTEN __attribute__((noinline, optimize("fp-contract=off")))
#endif

static inline void philox(Word* c, uint64_t seed) {
  uint32_t key[2] = {uint32_t(seed), uint32_t(seed >> 32)};
  for (int round = 0; round < 10; round++) {
    const Long first = __builtin_convertvector(c[0], Long) * uint64_t(0xD2511F53);
    const Long second = __builtin_convertvector(c[2], Long) * uint64_t(0xCD9E8D57);
    const Word mixed[4] = {__builtin_convertvector(second >> 32, Word) ^ c[1] ^ key[0], __builtin_convertvector(second, Word),
                           __builtin_convertvector(first >> 32, Word) ^ c[3] ^ key[1], __builtin_convertvector(first, Word)};
    for (int i = 0; i < 4; i++) c[i] = mixed[i];
    key[0] += 0x9E3779B9;
    key[1] += 0xBB67AE85;
  }
}
AS_WRITTEN static void box_muller(Word first, Word second, Float* normal) {
#if defined(__clang__)
#pragma clang fp contract(off)
#endif
  const Float uniform = (__builtin_convertvector(first >> 9, Float) + 0.5f) * (1.0f / 8388608);
  const Int bits = (Int)uniform, exponent = (bits >> 23) - 127;
  Float m = (Float)((bits & 0x7FFFFF) | 0x3F800000);
  const Int large = m > 1.4142135381698608f;
  m = large ? m * 0.5f : m;
  const Float e = __builtin_convertvector(large ? exponent + 1 : exponent, Float);
  const Float s = (m - 1.0f) / (m + 1.0f), zs = s * s;
  const Float series =
      zs * (zs * (zs * (zs * 0.1111111119389534f + 0.1428571492433548f) + 0.20000000298023224f) + 0.3333333432674408f);
  const Float minus_twice = (e * 0.6931471824645996f + (s + s * series) * 2.0f) * -2.0f;
  Float radius;
  for (int l = 0; l < LANES; l++) radius[l] = std::sqrt(minus_twice[l]);
  const Float angle = (__builtin_convertvector((second & 0x3FFFFFFF) >> 6, Float) * (1.0f / 16777216) - 0.5f) * 1.5707963705062866f;
  const Float z = angle * angle;
  const Float sine = angle + angle * (z * (z * (z * -0.00019515282474458218f + 0.00833216030150652f) - 0.16666655242443085f));
  Float cosine = z * z * (z * (z * 2.443845005473122e-05f - 0.001388736767694354f) + 0.04166664555668831f);
  cosine = (cosine - z * 0.5f) + 1.0f;
  const Int quadrant = (Int)(second >> 30), swap = (quadrant & 1) != 0;
  const Float a = swap ? cosine : sine, b = swap ? sine : cosine;
  normal[0] = radius * ((((quadrant + 1) & 2) != 0) ? -b : b);
  normal[1] = radius * (((quadrant & 2) != 0) ? -a : a);
}
// `count` numbers for a vector of rollouts with the numbers `rollouts`; stream 0.
static void noise(uint64_t seed, int64_t interval, const uint32_t* rollouts, T scale, int count, V* to) {
  for (int block = 0; 4 * block < count; block++) {
    Word c[4];
    for (int l = 0; l < LANES; l++) c[0][l] = rollouts[l], c[1][l] = uint32_t(interval), c[2][l] = block, c[3][l] = 0;
    philox(c, seed);
    Float normal[4];
    box_muller(c[0], c[1], normal);
    box_muller(c[2], c[3], normal + 2);
    for (int i = 0; i < 4 && 4 * block + i < count; i++) to[4 * block + i] = __builtin_convertvector(normal[i], V) * scale;
  }
}

// LAYERS

// EMITTED

// ARGUMENTS

// The rollouts of a block: they are `count` neighbours from `first` on, of one member.
struct Block {
  const Arguments& a;
  int64_t first;
  int count, nv;
  const T* shared[SHARED + 1];

  Block(const Arguments& a, int64_t index) : a(a) {
    const int64_t size = NV * LANES, each = a.batch / a.members, per_member = (each + size - 1) / size;
    const int64_t member = index / per_member, begin = (index % per_member) * size;
    first = member * each + begin;
    count = int(std::min(size, each - begin));
    nv = (count + LANES - 1) / LANES;
    for (int k = 0; k < SHARED; k++) shared[k] = a.shared[k] + member * a.member[k];
  }
  static int64_t number(const Arguments& a) {
    const int64_t size = NV * LANES, each = a.batch / a.members;
    return a.members * ((each + size - 1) / size);
  }
  // Vector c of a component; lanes beyond the batch repeat its last rollout.
  V load(const Strided& from, int c, int64_t step = 0, int64_t component = 0) const {
    const T* data = from.data + step * from.time + component * from.component + first * from.rollout;
    V v;
    if (from.rollout == 1 && (c + 1) * LANES <= count) {
      std::memcpy(&v, data + c * LANES, sizeof v);
      return v;
    }
    if (from.rollout == 0) return splat(*data);
    for (int l = 0; l < LANES; l++) v[l] = data[std::min(c * LANES + l, count - 1) * from.rollout];
    return v;
  }
  // A cotangent: zero where there is none and in lanes beyond the batch.
  V load_bar(const Strided& from, int c, int64_t step = 0, int64_t component = 0) const {
    if (!from.data) return V{};
    V v = load(from, c, step, component);
    if ((c + 1) * LANES > count)
      for (int l = count - c * LANES; l < LANES; l++) v[l] = 0;
    return v;
  }
  void store(T* to, int c, V v) const {
    to += first + c * LANES;
    if ((c + 1) * LANES <= count) std::memcpy(to, &v, sizeof v);
    else
      for (int l = 0; l < count - c * LANES; l++) to[l] = v[l];
  }
  void load_constants(In* in) const {
    for (int c = 0; c < nv; c++) {
      in[c].shared = shared;
      in[c].dt = T(a.dt);
      for (int k = 0; k < OWN; k++) in[c].own[k] = load(a.own[k], c);
    }
  }
  void load_timed(In& in, int c, int64_t t) const {
    int at = 0;
    if (MADE_NOISE) {
      uint32_t rollouts[LANES];
      for (int l = 0; l < LANES; l++) {
        const int64_t own = first + c * LANES + l;
        rollouts[l] = uint32_t(a.noise_of && own < a.batch ? a.noise_of[own] : own);
      }
      noise(a.noise_seed, a.noise_start + t, rollouts, T(a.noise_scale), MADE_NOISE, in.timed);
      at = MADE_NOISE;
    }
    for (int leaf = 0; leaf < TIMED_LEAVES; leaf++)
      for (int j = 0; j < TIMED_SIZES[leaf]; j++, at++) in.timed[at] = load(a.timed[leaf], c, t, j);
  }
  void load_state(In& in, int c, int64_t t) const {
    for (int i = 0; i < N; i++) in.x[i] = load({a.states + t * N * a.batch, 0, 1, a.batch}, c, 0, i);
  }
};

template <class Network>
static inline void run_layers(In* in, V* act, int nv, const T* const* shared) {
  for (int c = 0; c < nv; c++) Network::prologue(in[c], act + c);
  Network::forward(shared, act, nv);
  for (int c = 0; c < nv; c++) Network::results(act + c, in[c].raw);
}

constexpr int64_t TAPED = int64_t(Policy::WIDTH) * NV;  // vectors that an interval of a block takes of the tape

static V* tape_of(const Arguments& a, int64_t block) {
  return a.tape ? reinterpret_cast<V*>(a.tape) + block * a.steps * TAPED : nullptr;
}

static void forward_block(const Block& block, V* act, V* tape) {
  const Arguments& a = block.a;
  In in[NV];
  block.load_constants(in);
  for (int c = 0; c < block.nv; c++)
    for (int i = 0; i < N; i++) in[c].x[i] = block.load(a.x0, c, 0, i);
  auto keep = [&](T* to) {
    if (!to) return;
    for (int c = 0; c < block.nv; c++)
      for (int i = 0; i < N; i++) block.store(to + i * a.batch, c, in[c].x[i]);
  };
  for (int64_t t = 0; t < a.steps; t++) {
    if (a.states) keep(a.states + t * N * a.batch);
    for (int c = 0; c < block.nv; c++) block.load_timed(in[c], c, t);
    run_layers<Policy>(in, tape ? tape + t * TAPED : act, block.nv, block.shared);
    for (int c = 0; c < block.nv; c++) {
      V next[N], cost;
      step(in[c], next, cost);
      for (int i = 0; i < N; i++) in[c].x[i] = next[i];
      block.store(a.costs + t * a.batch, c, cost);
    }
  }
  if (a.states) keep(a.states + a.steps * N * a.batch);
  keep(a.last);
  if (HAS_VALUE) {
    run_layers<Value>(in, act, block.nv, block.shared);
    for (int c = 0; c < block.nv; c++) {
      V result;
      value(in[c], result);
      block.store(a.values, c, result);
    }
  }
}

#if GRADIENT
// Scales costates that are longer than the bound down to it.
static inline void bound_costates(const Arguments& a, V (*lambda)[N], int nv) {
  if (!(a.costate_bound > 0)) return;
  for (int c = 0; c < nv; c++) {
    V square = V{}, factor = splat(1);
    for (int i = 0; i < N; i++) {
      const V scaled = lambda[c][i] * splat(a.sizes[i]);
      square += scaled * scaled;
    }
    for (int l = 0; l < LANES; l++) {
      const T length = std::sqrt(square[l]);
      if (length > T(a.costate_bound)) factor[l] = T(a.costate_bound) / length;
    }
    for (int i = 0; i < N; i++) lambda[c][i] *= factor;
  }
}

template <class Network>
static inline void pull_layers(In* in, const V* act, V* bar, V (*by_x)[N], V* by_shared, int nv, const T* const* shared) {
  Network::backward(shared, act, bar, by_shared, nv);
  for (int c = 0; c < nv; c++) Network::prologue_vjp(in[c], bar + c, by_x[c]);
}

static void backward_block(const Block& block, V* act, V* tape, V* bar, V* turned, V* by_shared) {
  const Arguments& a = block.a;
  In in[NV];
  V lambda[NV][N], by_own[NV][OWN + 1];
  block.load_constants(in);
  for (int c = 0; c < block.nv; c++) {
    for (auto& v : by_own[c]) v = V{};
    in[c].by_own = by_own[c];
    in[c].by_shared = by_shared;
    for (int i = 0; i < N; i++) lambda[c][i] = block.load_bar(a.by_last, c, 0, i) + block.load_bar(a.by_states, c, a.steps, i);
    block.load_state(in[c], c, a.steps);
  }
  if (HAS_VALUE && a.by_values.data) {
    run_layers<Value>(in, act, block.nv, block.shared);
    for (int c = 0; c < block.nv; c++) {
      V by_raw[RAW + 1];
      value_vjp(in[c], block.load_bar(a.by_values, c), lambda[c], by_raw);
      Value::seed(by_raw, bar + c);
    }
    pull_layers<Value>(in, act, bar, lambda, by_shared, block.nv, block.shared);
    Value::weights(act, bar, block.nv, turned, by_shared);
  }
  for (int64_t t = a.steps - 1; t >= 0; t--) {
    bound_costates(a, lambda, block.nv);
    for (int c = 0; c < block.nv; c++) block.load_state(in[c], c, t), block.load_timed(in[c], c, t);
    if (tape) {
      act = tape + t * TAPED;
      for (int c = 0; c < block.nv; c++) Policy::results(act + c, in[c].raw);
    } else {
      run_layers<Policy>(in, act, block.nv, block.shared);
    }
    for (int c = 0; c < block.nv; c++) {
      V by_x[N], by_raw[RAW + 1], by_timed[TIMED + 1];
      step_vjp(in[c], lambda[c], block.load_bar(a.by_costs, c, t), by_x, by_raw, by_timed);
      Policy::seed(by_raw, bar + c);
      for (int i = 0; i < N; i++) lambda[c][i] = by_x[i];
      for (int leaf = 0, k = MADE_NOISE; leaf < TIMED_LEAVES; leaf++)
        for (int j = 0; j < TIMED_SIZES[leaf]; j++, k++)
          if (a.by_timed[leaf]) block.store(a.by_timed[leaf] + (t * TIMED_SIZES[leaf] + j) * a.batch, c, by_timed[k]);
    }
    pull_layers<Policy>(in, act, bar, lambda, by_shared, block.nv, block.shared);
    Policy::weights(act, bar, block.nv, turned, by_shared);
    for (int c = 0; c < block.nv; c++)
      for (int i = 0; i < N; i++) {
        if (a.truncate && t % a.truncate == 0 && t > 0) lambda[c][i] = V{};
        lambda[c][i] += block.load_bar(a.by_states, c, t, i);
      }
  }
  for (int c = 0; c < block.nv; c++) {
    for (int i = 0; i < N; i++) block.store(a.by_x0 + i * a.batch, c, lambda[c][i]);
    for (int k = 0; k < OWN; k++)
      if (a.by_own[k]) block.store(a.by_own[k], c, by_own[c][k]);
  }
}
#endif

struct Free {
  void operator()(V* memory) const { std::free(memory); }
};
static std::unique_ptr<V, Free> vectors(int64_t count) {
  V* memory = static_cast<V*>(std::aligned_alloc(VECTOR_BYTES, std::max<int64_t>(count, 1) * VECTOR_BYTES));
  return std::unique_ptr<V, Free>(memory);
}

constexpr int64_t WIDEST = Policy::WIDTH > Value::WIDTH ? Policy::WIDTH : Value::WIDTH;

extern "C" {
int64_t size_of_arguments() { return sizeof(Arguments); }
int64_t rollouts_of_a_block() { return NV * LANES; }
int64_t tape_of_an_interval() { return TAPED * LANES; }

void forward(const Arguments* a) {
  const int64_t blocks = Block::number(*a);
#pragma omp parallel num_threads(a->threads) if (a->threads > 1)
  {
    auto act = vectors(WIDEST * NV);
#pragma omp for schedule(dynamic)
    for (int64_t b = 0; b < blocks; b++) forward_block(Block(*a, b), act.get(), tape_of(*a, b));
  }
}

#if GRADIENT
// Blocks are divided into groups that do not depend on the number of threads, and what groups gather is added in order:
// so the number of threads changes no bit.
void backward(const Arguments* a) {
  const int64_t blocks = Block::number(*a);
#pragma omp parallel num_threads(a->threads) if (a->threads > 1)
  {
    auto act = vectors(WIDEST * NV), bar = vectors(WIDEST * NV), by_shared = vectors(BY_SHARED);
    auto turned = vectors(NV * LANES * (WIDEST / LANES + 1));
#pragma omp for schedule(dynamic)
    for (int64_t g = 0; g < a->groups; g++) {
      V* gathered = by_shared.get();
      for (int k = 0; k < BY_SHARED; k++) gathered[k] = V{};
      for (int64_t b = g * blocks / a->groups; b < (g + 1) * blocks / a->groups; b++)
        backward_block(Block(*a, b), act.get(), tape_of(*a, b), bar.get(), turned.get(), gathered);
      for (int k = 0; k < SHARED; k++) {
        if (!a->by_shared[k]) continue;
        T* to = a->by_shared[k] + g * SIZES[k];
        std::fill(to, to + SIZES[k], T(0));
        for (int j = 0; j < SIZES[k] && OFFSETS[k] >= 0; j++) to[j] = total(gathered[OFFSETS[k] + j]);
      }
      spread_weights(gathered, a->by_shared, g);
    }
  }
  for (int k = 0; k < SHARED; k++) {
    if (!a->by_shared[k]) continue;
    T* sum = a->by_shared[k] + a->groups * SIZES[k];
    for (int j = 0; j < SIZES[k]; j++) {
      sum[j] = 0;
      for (int64_t g = 0; g < a->groups; g++) sum[j] += a->by_shared[k][g * SIZES[k] + j];
    }
  }
}
#endif
}
