// Whole rollouts: policy, simulator and cost over a horizon, forward and backward, one block of rollouts at a time.
//
// A block is NV vectors of LANES rollouts. Within a block the horizon runs from end to end while everything it touches is
// in cache; blocks share nothing but what they read. The tape is the states alone: backward takes KEPT control intervals
// at a time, runs the policy on their states again, pulls gradients back through step and policy one interval after the
// other, and then takes the gradients of the weight matrices as one product over all of them.
//
// Above this text stand T and the sizes; at EMITTED, below the vectors, what was made from the user's functions:
//   struct Policy, struct Value   layers: prologue(), forward(), backward(), weights(), prologue_vjp()
//   step(), step_vjp()            from the layers' results to the next state and the cost
//   value(), value_vjp()          from the layers' results to the terminal value

// VECTORS

#include <cstdlib>
#include <memory>

constexpr int NV = 4;    // vectors in a block
constexpr int KEPT = 8;  // control intervals whose activations backward keeps

static inline T total(V a) {
  T parts[LANES];
  std::memcpy(parts, &a, sizeof a);
  for (int width = LANES / 2; width > 0; width /= 2)
    for (int l = 0; l < width; l++) parts[l] += parts[l + width];
  return parts[0];
}

// What one vector of rollouts reads, and where its gradients gather. Arrays of size 0 are left at size 1.
struct In {
  V x[N];
  V timed[TIMED + 1];  // noise and open-loop controls of the interval
  V own[OWN + 1];      // physical parameters with a value for every rollout
  V raw[RAW + 1];      // results of layers
  const T* const* shared;
  T dt;
  V* by_own;
  V* by_shared;
};

// ---- Layers. Activations of a block at one interval: feature after feature, NV vectors each.

// R rows of w times C vectors: registers hold the sums. finish(row, sum) is what is stored.
template <int R, int C, bool ADD, class Finish>
static inline void tile(const T* w, int64_t row, int64_t column, int count, const V* in, V* out, int first, Finish finish) {
  V sum[R][C];
  for (int r = 0; r < R; r++)
    for (int c = 0; c < C; c++) sum[r][c] = V{};
  for (int k = 0; k < count; k++) {
    V a[C];
    for (int c = 0; c < C; c++) a[c] = in[k * NV + c];
    for (int r = 0; r < R; r++) {
      const V weight = splat(w[(first + r) * row + k * column]);
      for (int c = 0; c < C; c++) sum[r][c] += weight * a[c];
    }
  }
  for (int r = 0; r < R; r++)
    for (int c = 0; c < C; c++) {
      V& to = out[(first + r) * NV + c];
      if (ADD) to = to + finish(first + r, sum[r][c]);
      else to = finish(first + r, sum[r][c]);
    }
}

template <int R, int C, bool ADD, class Finish>
static inline void rows(const T* w, int64_t row, int64_t column, int count, const V* in, V* out, int width, Finish finish) {
  int first = 0;
  for (; first + R <= width; first += R) tile<R, C, ADD>(w, row, column, count, in, out, first, finish);
  for (; first + 2 <= width; first += 2) tile<2, C, ADD>(w, row, column, count, in, out, first, finish);
  if (first < width) tile<1, C, ADD>(w, row, column, count, in, out, first, finish);
}

// out[j] = finish(j, sum_k w[j * row + k * column] in[k]) for j < width, over nv vectors.
template <bool ADD, class Finish>
static void product(const T* w, int64_t row, int64_t column, int count, const V* in, V* out, int width, int nv, Finish finish) {
#if VECTOR_BYTES == 64
  if (nv == NV) return rows<6, NV, ADD>(w, row, column, count, in, out, width, finish);
#else
  if (nv == NV) {
    rows<6, 2, ADD>(w, row, column, count, in, out, width, finish);
    return rows<6, 2, ADD>(w, row, column, count, in + 2, out + 2, width, finish);
  }
#endif
  for (int c = 0; c < nv; c++) rows<8, 1, ADD>(w, row, column, count, in + c, out + c, width, finish);
}

// by_w[j][k] += sum over intervals and rollouts of bar[j] in[k]; J x K sums in registers.
template <int J, int K>
static inline void outer_tile(const V* bar, const V* in, int64_t stride, int intervals, int nv, T* by_w, int64_t row, int64_t column) {
  V sum[J][K];
  for (int j = 0; j < J; j++)
    for (int k = 0; k < K; k++) sum[j][k] = V{};
  for (int s = 0; s < intervals; s++)
    for (int c = 0; c < nv; c++) {
      const V *b = bar + s * stride + c, *a = in + s * stride + c;
      for (int j = 0; j < J; j++)
        for (int k = 0; k < K; k++) sum[j][k] += b[j * NV] * a[k * NV];
    }
  for (int j = 0; j < J; j++)
    for (int k = 0; k < K; k++) by_w[j * row + k * column] += total(sum[j][k]);
}

template <int J>
static inline void outer_rows(const V* bar, const V* in, int64_t stride, int intervals, int nv, T* by_w, int64_t row, int64_t column, int count) {
  int k = 0;
  for (; k + 6 <= count; k += 6) outer_tile<J, 6>(bar, in + k * NV, stride, intervals, nv, by_w + k * column, row, column);
  for (; k + 2 <= count; k += 2) outer_tile<J, 2>(bar, in + k * NV, stride, intervals, nv, by_w + k * column, row, column);
  if (k < count) outer_tile<J, 1>(bar, in + k * NV, stride, intervals, nv, by_w + k * column, row, column);
}

static void outer(const V* bar, const V* in, int64_t stride, int intervals, int nv, T* by_w, int64_t row, int64_t column, int width, int count) {
  int j = 0;
  for (; j + 4 <= width; j += 4) outer_rows<4>(bar + j * NV, in, stride, intervals, nv, by_w + j * row, row, column, count);
  for (; j < width; j++) outer_rows<1>(bar + j * NV, in, stride, intervals, nv, by_w + j * row, row, column, count);
}

static void sums(const V* bar, int64_t stride, int intervals, int nv, T* by_bias, int width) {
  for (int j = 0; j < width; j++) {
    V sum = V{};
    for (int s = 0; s < intervals; s++)
      for (int c = 0; c < nv; c++) sum += bar[s * stride + j * NV + c];
    by_bias[j] += total(sum);
  }
}

// Layer normalisation without its scale and shift (Ba et al., arXiv 1607.06450): (a - mean) / sqrt(variance + eps).
static inline void moments(const V* in, int width, int c, T eps, V& mean, V& inverse) {
  V sum = V{}, squares = V{};
  for (int j = 0; j < width; j++) sum += in[j * NV + c];
  mean = sum / T(width);
  for (int j = 0; j < width; j++) {
    const V off = in[j * NV + c] - mean;
    squares += off * off;
  }
  inverse = T(1) / v_sqrt(squares / T(width) + eps);
}
static void standardise(const V* in, V* out, int width, int nv, T eps) {
  for (int c = 0; c < nv; c++) {
    V mean, inverse;
    moments(in, width, c, eps, mean, inverse);
    for (int j = 0; j < width; j++) out[j * NV + c] = (in[j * NV + c] - mean) * inverse;
  }
}
template <bool ADD>
static void standardise_vjp(const V* in, const V* out, const V* bar, V* by_in, int width, int nv, T eps) {
  for (int c = 0; c < nv; c++) {
    V mean, inverse, sum = V{}, along = V{};
    moments(in, width, c, eps, mean, inverse);
    for (int j = 0; j < width; j++) {
      sum += bar[j * NV + c];
      along += bar[j * NV + c] * out[j * NV + c];
    }
    for (int j = 0; j < width; j++) {
      const V term = inverse * (bar[j * NV + c] - (sum + out[j * NV + c] * along) / T(width));
      if (ADD) by_in[j * NV + c] += term;
      else by_in[j * NV + c] = term;
    }
  }
}

// EMITTED

// An array in the caller's layout.
struct Strided {
  const T* data;
  int64_t time, rollout, component;
};

struct Arguments {
  int64_t batch, steps, members, threads, groups, truncate;
  double dt;
  Strided x0, timed[TIMED_LEAVES + 1], own[OWN + 1];
  const T* shared[SHARED + 1];
  int64_t member[SHARED + 1];  // numbers from one member's values to the next; 0: the same for all
  T *states, *last, *costs, *values;                         // [steps + 1, N, batch], [N, batch], [steps, batch], [batch]
  Strided by_costs, by_states, by_last, by_values;           // data may be null
  T *by_x0, *by_timed[TIMED_LEAVES + 1], *by_own[OWN + 1];   // [N, batch], [steps, size, batch], [batch]; may be null
  T* by_shared[SHARED + 1];                                  // [groups + 1, size]: the last is the sum of the others
};

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
    for (int l = 0; l < LANES; l++) v[l] = data[std::min(c * LANES + l, count - 1) * from.rollout];
    return v;
  }
  // A cotangent: zero where there is none and in lanes beyond the batch.
  V load_bar(const Strided& from, int c, int64_t step = 0, int64_t component = 0) const {
    if (!from.data) return V{};
    V v = load(from, c, step, component);
    for (int l = std::max(0, count - c * LANES); l < LANES; l++) v[l] = 0;
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
    for (int leaf = 0, at = 0; leaf < TIMED_LEAVES; leaf++)
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

static void forward_block(const Block& block, V* act) {
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
    run_layers<Policy>(in, act, block.nv, block.shared);
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
template <class Network>
static inline void pull_layers(In* in, const V* act, V* bar, V (*by_x)[N], V* by_shared, int nv, const T* const* shared) {
  Network::backward(shared, act, bar, by_shared, nv);
  for (int c = 0; c < nv; c++) Network::prologue_vjp(in[c], bar + c, by_x[c]);
}

static void backward_block(const Block& block, V* act, V* bar, V* by_shared, T* const* by_weights) {
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
    Value::weights(act, bar, 1, block.nv, by_weights);
  }
  for (int64_t end = a.steps; end > 0; end -= KEPT) {
    const int64_t begin = std::max<int64_t>(0, end - KEPT);
    for (int64_t t = begin; t < end && Policy::WIDTH > 0; t++) {
      for (int c = 0; c < block.nv; c++) block.load_state(in[c], c, t), block.load_timed(in[c], c, t);
      run_layers<Policy>(in, act + (t - begin) * Policy::WIDTH * NV, block.nv, block.shared);
    }
    for (int64_t t = end - 1; t >= begin; t--) {
      const int64_t at = (t - begin) * Policy::WIDTH * NV;
      for (int c = 0; c < block.nv; c++) {
        V by_x[N], by_raw[RAW + 1], by_timed[TIMED + 1];
        block.load_state(in[c], c, t);
        block.load_timed(in[c], c, t);
        Policy::results(act + at + c, in[c].raw);
        step_vjp(in[c], lambda[c], block.load_bar(a.by_costs, c, t), by_x, by_raw, by_timed);
        Policy::seed(by_raw, bar + at + c);
        for (int i = 0; i < N; i++) lambda[c][i] = by_x[i];
        for (int leaf = 0, k = 0; leaf < TIMED_LEAVES; leaf++)
          for (int j = 0; j < TIMED_SIZES[leaf]; j++, k++)
            if (a.by_timed[leaf]) block.store(a.by_timed[leaf] + (t * TIMED_SIZES[leaf] + j) * a.batch, c, by_timed[k]);
      }
      pull_layers<Policy>(in, act + at, bar + at, lambda, by_shared, block.nv, block.shared);
      for (int c = 0; c < block.nv; c++)
        for (int i = 0; i < N; i++) {
          if (a.truncate && t % a.truncate == 0 && t > 0) lambda[c][i] = V{};
          lambda[c][i] += block.load_bar(a.by_states, c, t, i);
        }
    }
    Policy::weights(act, bar, int(end - begin), block.nv, by_weights);
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

void forward(const Arguments* a) {
  const int64_t blocks = Block::number(*a);
#pragma omp parallel num_threads(a->threads) if (a->threads > 1)
  {
    auto act = vectors(WIDEST * NV);
#pragma omp for schedule(dynamic)
    for (int64_t b = 0; b < blocks; b++) forward_block(Block(*a, b), act.get());
  }
}

#if GRADIENT
// Blocks are divided into groups that do not depend on the number of threads, and what groups gather is added in order:
// so the number of threads changes no bit.
void backward(const Arguments* a) {
  const int64_t blocks = Block::number(*a);
#pragma omp parallel num_threads(a->threads) if (a->threads > 1)
  {
    auto act = vectors(KEPT * WIDEST * NV), bar = vectors(KEPT * WIDEST * NV), by_shared = vectors(BY_SHARED);
#pragma omp for schedule(dynamic)
    for (int64_t g = 0; g < a->groups; g++) {
      T* by_weights[SHARED + 1];
      for (int k = 0; k < SHARED; k++) {
        by_weights[k] = a->by_shared[k] ? a->by_shared[k] + g * SIZES[k] : nullptr;
        if (by_weights[k]) std::fill(by_weights[k], by_weights[k] + SIZES[k], T(0));
      }
      for (int k = 0; k < BY_SHARED; k++) by_shared.get()[k] = V{};
      for (int64_t b = g * blocks / a->groups; b < (g + 1) * blocks / a->groups; b++)
        backward_block(Block(*a, b), act.get(), bar.get(), by_shared.get(), by_weights);
      for (int k = 0; k < SHARED; k++)
        for (int j = 0; j < SIZES[k] && by_weights[k] && OFFSETS[k] >= 0; j++) by_weights[k][j] += total(by_shared.get()[OFFSETS[k] + j]);
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
