// A stack of linear layers with tanh between them: results, gradients by its parameters, and what a critic does with one
// (diffsim/algorithms/costate_critic.py): targets and their scale, and the fit to values and derivatives, all minibatches in
// one call.
//
// Above this text are T and LAYERS, the number of linear layers; their widths are arguments.  Rows are in the lanes: a block
// is NV vectors of LANES rows, whose activations stay in the cache.  One thread; sums are in the order of the rows.

// VECTORS

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <vector>

constexpr int NV = 4;  // vectors in a block
constexpr int ROWS = NV * LANES;
constexpr int HIDDEN = LAYERS - 1;

// LAYERS

// ARGUMENTS

static inline V load(const T* from) {
  V a;
  std::memcpy(&a, from, sizeof a);
  return a;
}
static inline V load(const T* from, int64_t count) {
  if (count >= LANES) return load(from);
  V a = V{};
  std::memcpy(&a, from, size_t(count) * sizeof(T));
  return a;
}
static inline void store(T* to, V a, int64_t count) {
  if (count >= LANES) std::memcpy(to, &a, sizeof a);
  else std::memcpy(to, &a, size_t(count) * sizeof(T));
}

// Rows of data in parts one after the other.
struct Rows {
  const T* const* parts;  // null for one part, `first`
  const int64_t* ends;    // the number of the row after a part's last
  const T* first;

  const T* row(int64_t number, int64_t width) const {
    if (!parts) return first + number * width;
    int part = 0;
    int64_t before = 0;
    for (; number >= ends[part]; part++) before = ends[part];
    return parts[part] + (number - before) * width;
  }
};

// Rows of `from`, those with the numbers `which` or the first ones, to [width][NV] vectors; zeros in lanes from `count` on.
static void gather(const Rows& from, const int64_t* which, int count, int64_t width, V* to) {
  T* lanes = reinterpret_cast<T*>(to);
  for (int c = 0; c < NV; c++) {
    const T* row[LANES];
    for (int l = 0; l < LANES; l++) {
      const int r = c * LANES + l;
      row[l] = r < count ? from.row(which ? which[r] : r, width) : nullptr;
    }
    const bool full = (c + 1) * LANES <= count;
    int64_t f = 0;
    for (; full && f + LANES <= width; f += LANES) {
      V square[LANES];
      UNROLL for (int l = 0; l < LANES; l++) square[l] = load(row[l] + f);
      turn(square);
      UNROLL for (int l = 0; l < LANES; l++) to[(f + l) * NV + c] = square[l];
    }
    for (; f < width; f++)
      for (int l = 0; l < LANES; l++) lanes[(f * NV + c) * LANES + l] = row[l] ? row[l][f] : T(0);
  }
}
static void gather(const T* from, const int64_t* which, int count, int64_t width, V* to) {
  gather(Rows{nullptr, nullptr, from}, which, count, width, to);
}
// The other way: rows of `to`, one after the other.
static void scatter(const V* from, int count, int64_t width, T* to) {
  const T* lanes = reinterpret_cast<const T*>(from);
  for (int r = 0; r < count; r++)
    for (int64_t f = 0; f < width; f++) to[r * width + f] = lanes[f * ROWS + r];
}

// A network's parameters, and a block's working memory.
struct Stack {
  const T* w[LAYERS];
  const T* b[LAYERS];
  int width[LAYERS + 1];
  int64_t sizes = 0;                     // of all activations of a row
  V* act[LAYERS + 1];                    // activations; the first are the inputs, the last the results
  V* bar[LAYERS + 1];                    // derivatives by what is squashed, the last by the results
  V* turned;                             // room to turn a matrix
  V* sums_w[LAYERS];                     // gradients by the matrices, as outer() lays them out
  V* sums_b[LAYERS];
  V* memory;

  Stack(const Arguments& a, int64_t more) {
    int64_t widest = 0, sums = 0;
    for (int k = 0; k <= LAYERS; k++) {
      width[k] = int(a.widths[k]), sizes += width[k];
      widest = std::max<int64_t>(widest, vectors_for(width[k]));
    }
    for (int k = 0; k < LAYERS; k++) w[k] = a.weights[k], b[k] = a.biases[k], sums += room(k) + width[k + 1];
    const int64_t vectors = 2 * sizes * NV + ROWS * widest + sums + more;
    memory = static_cast<V*>(std::aligned_alloc(64, size_t((vectors * sizeof(V) + 63) / 64 * 64)));
    if (!memory) std::abort();
    V* at = memory;
    for (int k = 0; k <= LAYERS; k++) act[k] = at, at += width[k] * NV;
    for (int k = 0; k <= LAYERS; k++) bar[k] = at, at += width[k] * NV;
    turned = at, at += ROWS * widest;
    for (int k = 0; k < LAYERS; k++) {
      sums_w[k] = at, at += room(k);
      sums_b[k] = at, at += width[k + 1];
    }
    rest = at;
  }
  ~Stack() { std::free(memory); }
  Stack(const Stack&) = delete;

  V* rest;  // what was asked for beside

  // The gradient of a narrow matrix is summed in the lanes; of others the wider side is turned, so that it fills the vectors.
  bool narrow(int k) const { return std::min(width[k], width[k + 1]) <= 4; }
  bool turns(int k) const { return width[k + 1] > width[k]; }
  int64_t room(int k) const {
    if (narrow(k)) return int64_t(width[k]) * width[k + 1];
    return int64_t(std::min(width[k], width[k + 1])) * vectors_for(std::max(width[k], width[k + 1]));
  }
  void clear() {
    for (int k = 0; k < LAYERS; k++) {
      std::fill(sums_w[k], sums_w[k] + room(k), V{});
      std::fill(sums_b[k], sums_b[k] + width[k + 1], V{});
    }
  }
  void hidden() {
    for (int k = 0; k < HIDDEN; k++) {
      const T* bias = b[k];
      product<false>(w[k], width[k], 1, width[k], act[k], act[k + 1], width[k + 1], NV,
                     [=](int j, V sum) { return v_tanh(sum + splat(bias[j])); });
    }
  }
  void results() {
    const T* bias = b[HIDDEN];
    product<false>(w[HIDDEN], width[HIDDEN], 1, width[HIDDEN], act[HIDDEN], act[LAYERS], width[LAYERS], NV,
                   [=](int j, V sum) { return sum + splat(bias[j]); });
  }
  // out = transposed matrix k times in.
  void back(int k, const V* in, V* out) {
    product<false>(w[k], 1, width[k], width[k + 1], in, out, width[k], NV, [](int, V sum) { return sum; });
  }
  void gather_matrix(int k, const V* left, const V* right) {
    if (narrow(k)) {
      for (int j = 0; j < width[k + 1]; j++)
        for (int i = 0; i < width[k]; i++) {
          V sum = sums_w[k][j * width[k] + i];
          UNROLL for (int c = 0; c < NV; c++) sum += left[j * NV + c] * right[i * NV + c];
          sums_w[k][j * width[k] + i] = sum;
        }
    } else if (turns(k)) outer<true>(left, right, width[k + 1], width[k], NV, turned, sums_w[k]);
    else outer<false>(left, right, width[k + 1], width[k], NV, turned, sums_w[k]);
  }
  void gather_layer(int k) {
    gather_matrix(k, bar[k + 1], act[k]);
    add_sums(bar[k + 1], NV, sums_b[k], width[k + 1]);
  }
  // From bar[LAYERS] on: the gradients of all layers.
  void backward() {
    for (int k = HIDDEN; k >= 0; k--) {
      gather_layer(k);
      if (k == 0) break;
      back(k, bar[k + 1], bar[k]);
      squash(bar[k], act[k], width[k]);
    }
  }
  static void squash(V* bar, const V* act, int width) {
    for (int i = 0; i < width * NV; i++) bar[i] *= T(1) - act[i] * act[i];
  }
  // What has gathered, as torch lays it out.
  void spread(int k, T* by_weight, T* by_bias) const {
    const int rows = width[k + 1], columns = width[k], across = vectors_for(std::max(rows, columns));
    const T* sums = reinterpret_cast<const T*>(sums_w[k]);
    if (narrow(k)) {
      for (int i = 0; i < rows * columns; i++) by_weight[i] = total(sums_w[k][i]);
    } else {
      const int row = turns(k) ? 1 : across * LANES, column = turns(k) ? across * LANES : 1;
      for (int j = 0; j < rows; j++)
        for (int i = 0; i < columns; i++) by_weight[j * columns + i] = sums[j * row + i * column];
    }
    for (int j = 0; j < rows; j++) by_bias[j] = total(sums_b[k][j]);
  }
};

// Data of the fit, whose parts are arrays of addresses.
static Rows in_parts(const int64_t* addresses, const int64_t* ends) {
  return {reinterpret_cast<const T* const*>(addresses), ends, nullptr};
}
static T standardised(const Arguments& a, T cost) { return (cost - *a.mean) / *a.scale; }

// What the fit needs beside: derivatives of the result by activations (p), by what is squashed (q) and along v.
struct Slopes {
  V *p[LAYERS], *q[LAYERS], *along[LAYERS], *sum[LAYERS];
  V *jacobian, *wanted, *residual;
  std::vector<T> slopes, weights;  // of all starts, [S, n] and [S]

  static int64_t room(const Arguments& a) {
    int64_t sizes = 0;
    for (int k = 0; k < LAYERS; k++) sizes += a.widths[k];
    return (4 * sizes + (a.widths[0] + 2) * a.states) * NV;
  }
  Slopes(const Arguments& a, const Stack& s) {
    V* at = s.rest;
    for (V** array : {p, q, along, sum})
      for (int k = 0; k < LAYERS; k++) array[k] = at, at += s.width[k] * NV;
    jacobian = at, at += s.width[0] * a.states * NV;
    wanted = at, at += a.states * NV;
    residual = at;
    find(a);
  }

  // The derivatives that the network is to have at the starts, and the weights of their errors.
  void find(const Arguments& a) {
    const int64_t count = a.start_ends[a.parts - 1], n = a.states;
    const Rows costs = in_parts(a.cost_parts, a.start_ends), costates = in_parts(a.costate_parts, a.start_ends);
    slopes.resize(size_t(count * n)), weights.resize(size_t(count));
    std::vector<T> positive;
    for (int64_t r = 0; r < count; r++) {
      const T y = standardised(a, *costs.row(r, 1)), scale = *a.scale * std::sqrt(1 + y * y);
      const T* costate = costates.row(r, n);
      T square = 0;
      for (int64_t i = 0; i < n; i++) {
        const T slope = slopes[size_t(r * n + i)] = costate[i] / scale;
        square += slope * slope;
      }
      weights[size_t(r)] = std::sqrt(square);
      if (square > 0) positive.push_back(weights[size_t(r)]);
    }
    T median = 0;
    if (!positive.empty()) {
      const auto middle = positive.begin() + (positive.size() - 1) / 2;
      std::nth_element(positive.begin(), middle, positive.end());
      median = *middle;
    }
    for (T& q : weights) {
      const T share = q > 0 ? std::min(T(1), T(a.costate_bound) * median / q) : T(1);
      q = T(a.costate_weight) * share * share;
    }
  }
};

// mean (f - asinh y)^2 of `count` rows of a minibatch of a.rows.
static void values(const Arguments& a, Stack& s, const int64_t* which, int count) {
  gather(in_parts(a.z_parts, a.z_ends), which, count, s.width[0], s.act[0]);
  const Rows targets = in_parts(a.target_parts, a.z_ends);
  V y[NV] = {};
  for (int r = 0; r < count; r++)
    y[r / LANES][r % LANES] = std::asinh(standardised(a, *targets.row(which[r], 1)));
  s.hidden();
  s.results();
  const T factor = T(2) / T(a.rows);
  for (int c = 0; c < NV; c++) {
    V bar = (s.act[LAYERS][c] - y[c]) * factor;
    for (int l = 0; l < LANES; l++)
      if (c * LANES + l >= count) bar[l] = T(0);
    s.bar[LAYERS][c] = bar;
  }
  s.backward();
}

// mean weights |J' grad f - slopes|^2 of `count` rows of a minibatch of a.starts.
static void derivatives(const Arguments& a, Stack& s, Slopes& d, const int64_t* which, int count) {
  const int o = s.width[0], n = int(a.states);
  gather(in_parts(a.start_parts, a.start_ends), which, count, o, s.act[0]);
  gather(in_parts(a.jacobian_parts, a.start_ends), which, count, int64_t(o) * n, d.jacobian);
  gather(d.slopes.data(), which, count, n, d.wanted);
  V weights[NV];
  gather(d.weights.data(), which, count, 1, weights);
  s.hidden();
  for (int j = 0; j < s.width[HIDDEN]; j++)
    for (int c = 0; c < NV; c++) d.p[HIDDEN][j * NV + c] = splat(s.w[HIDDEN][j]);
  for (int k = HIDDEN; k > 0; k--) {
    for (int i = 0; i < s.width[k] * NV; i++) d.q[k][i] = d.p[k][i] * (T(1) - s.act[k][i] * s.act[k][i]);
    s.back(k - 1, d.q[k], d.p[k - 1]);
  }
  const T factor = T(2) / T(a.starts);
  for (int i = 0; i < n; i++) {
    V sum[NV] = {};
    for (int j = 0; j < o; j++)
      UNROLL for (int c = 0; c < NV; c++) sum[c] += d.jacobian[(j * n + i) * NV + c] * d.p[0][j * NV + c];
    UNROLL for (int c = 0; c < NV; c++)
      d.residual[i * NV + c] = (sum[c] - d.wanted[i * NV + c]) * (weights[c] * factor);
  }
  for (int j = 0; j < o; j++) {
    V sum[NV] = {};
    for (int i = 0; i < n; i++)
      UNROLL for (int c = 0; c < NV; c++) sum[c] += d.jacobian[(j * n + i) * NV + c] * d.residual[i * NV + c];
    UNROLL for (int c = 0; c < NV; c++) d.along[0][j * NV + c] = sum[c];
  }
  for (int k = 1; k <= HIDDEN; k++) {
    product<false>(s.w[k - 1], s.width[k - 1], 1, s.width[k - 1], d.along[k - 1], d.sum[k], s.width[k], NV,
                   [](int, V sum) { return sum; });
    for (int i = 0; i < s.width[k] * NV; i++) d.along[k][i] = d.sum[k][i] * (T(1) - s.act[k][i] * s.act[k][i]);
  }
  // The result is linear in the last matrix.
  for (int c = 0; c < NV; c++) s.bar[LAYERS][c] = splat(T(1));
  s.gather_matrix(HIDDEN, s.bar[LAYERS], d.along[HIDDEN]);
  for (int k = HIDDEN; k > 0; k--) {
    for (int i = 0; i < s.width[k] * NV; i++) {
      const V act = s.act[k][i], from = k == HIDDEN ? V{} : s.bar[k][i];
      s.bar[k][i] = (from - T(2) * act * d.sum[k][i] * d.p[k][i]) * (T(1) - act * act);
    }
    s.gather_layer(k - 1);
    s.gather_matrix(k - 1, d.q[k], d.along[k - 1]);
    if (k > 1) s.back(k - 1, s.bar[k], s.bar[k - 1]);
  }
}

static void minibatch(const Arguments& a, Stack& s, Slopes& d, int64_t batch) {
  s.clear();
  for (int64_t r = 0; r < a.rows; r += ROWS) {
    values(a, s, a.which + batch * a.rows + r, int(std::min<int64_t>(ROWS, a.rows - r)));
  }
  for (int64_t r = 0; r < a.starts; r += ROWS)
    derivatives(a, s, d, a.which_start + batch * a.starts + r, int(std::min<int64_t>(ROWS, a.starts - r)));
}

static T lerp(T from, T to, T share) {
  return share < T(0.5) ? from + share * (to - from) : to - (to - from) * (T(1) - share);
}

// Between the two values next to this rank of the sorted ones, which are put in another order.
static T quantile(std::vector<T>& values, T share) {
  const T rank = share * T(values.size() - 1), below = std::floor(rank);
  const auto at = values.begin() + int64_t(below);
  std::nth_element(values.begin(), at, values.end());
  if (at + 1 == values.end()) return *at;
  return lerp(*at, rank > below ? *std::min_element(at + 1, values.end()) : *at, rank - below);
}

// Mean, scale and bounds of the values, as CostateCritic.renormalise has them.
static void rescale(const Arguments& a, int64_t size) {
  std::vector<T> targets(a.targets, a.targets + size);
  double sum = 0, square = 0;
  for (const T q : targets) sum += q;
  const double average = sum / double(size);
  for (const T q : targets) square += (q - average) * (q - average);
  T middle = std::numeric_limits<T>::quiet_NaN(), scale = 1;
  if (average == average) {  // otherwise one is NaN, and there is no order
    middle = quantile(targets, T(0.5));
    const T half = (quantile(targets, T(0.84)) - quantile(targets, T(0.16))) / 2;
    scale = std::max(half, T(0.02 * std::sqrt(square / double(size))));
    if (!(scale > 0)) scale = 1;
  }
  if (a.fitted) {
    middle = lerp(*a.mean, middle, T(a.rate));
    scale = lerp(*a.scale, scale, T(a.rate));
  }
  *a.mean = middle, *a.scale = scale;
  const bool any = std::find(a.typical, a.typical + size, 1) != a.typical + size;
  for (int64_t r = 0; r < size; r++)
    if (!any || a.typical[r]) {
      *a.least = std::min(*a.least, a.costs[r]);
      *a.largest = std::max(*a.largest, a.costs[r]);
    }
  *a.low = *a.least / T(1 - a.gamma), *a.high = *a.largest / T(1 - a.gamma);
}

// One step of Adam (Kingma and Ba, arXiv 1412.6980), in torch's order of operations.
struct Adam {
  T rate, first, second, root, eps;

  Adam(const Arguments& a, double step) {
    rate = T(a.learning_rate / (1 - std::pow(a.beta_first, step)));
    root = T(std::sqrt(1 - std::pow(a.beta_second, step)));
    first = T(1 - a.beta_first), second = T(a.beta_second), eps = T(a.eps);
    rest = T(1 - a.beta_second);
  }
  T rest;
  void step(T* parameter, T* mean, T* square, const T* gradient, int64_t size) const {
    for (int64_t i = 0; i < size; i += LANES) {
      const int64_t count = size - i;
      const V g = load(gradient + i, count);
      V m = load(mean + i, count), v = load(square + i, count);
      m = m + first * (g - m);
      v = v * second + rest * g * g;
      store(mean + i, m, count);
      store(square + i, v, count);
      store(parameter + i, load(parameter + i, count) - rate * m / (v_sqrt(v) / root + eps), count);
    }
  }
};

extern "C" {

int64_t size_of_arguments() { return sizeof(Arguments); }

// results [rows, last width] of z.
void forward(const Arguments* arguments) {
  const Arguments& a = *arguments;
  Stack s(a, 0);
  const int64_t in = s.width[0], out = s.width[LAYERS];
  for (int64_t r = 0; r < a.rows; r += ROWS) {
    const int count = int(std::min<int64_t>(ROWS, a.rows - r));
    gather(a.z + r * in, nullptr, count, in, s.act[0]);
    s.hidden();
    s.results();
    scatter(s.act[LAYERS], count, out, a.results + r * out);
  }
}

// by_weights and by_biases: the gradient of the sum of by_results times the results of z.
void pull(const Arguments* arguments) {
  const Arguments& a = *arguments;
  Stack s(a, 0);
  s.clear();
  const int64_t in = s.width[0], out = s.width[LAYERS];
  for (int64_t r = 0; r < a.rows; r += ROWS) {
    const int count = int(std::min<int64_t>(ROWS, a.rows - r));
    gather(a.z + r * in, nullptr, count, in, s.act[0]);
    gather(a.by_results + r * out, nullptr, count, out, s.bar[LAYERS]);
    s.hidden();
    s.backward();
  }
  for (int k = 0; k < LAYERS; k++) s.spread(k, a.by_weights[k], a.by_biases[k]);
}

// targets [steps, batch] of windows whose observations are z [steps + 1, batch], and the scale that follows them.
void find_targets(const Arguments* arguments) {
  const Arguments& a = *arguments;
  Stack s(a, 0);
  const int64_t in = s.width[0], size = a.steps * a.rows;
  const T mean = *a.mean, scale = *a.scale, low = *a.low, high = *a.high;
  for (int64_t r = 0; r < size; r += ROWS) {
    const int count = int(std::min<int64_t>(ROWS, size - r));
    gather(a.z + (a.rows + r) * in, nullptr, count, in, s.act[0]);
    s.hidden();
    s.results();
    for (int c = 0; c < NV; c++) {
      const V f = v_min(v_max(s.act[LAYERS][c], splat(T(-a.steepest))), splat(T(a.steepest)));
      const V value = splat(mean) + splat(scale) * (T(0.5) * (v_exp(f) - v_exp(-f)));
      s.act[LAYERS][c] = v_minimum(v_maximum(value, splat(low)), splat(high));
    }
    scatter(s.act[LAYERS], count, 1, a.targets + r);
  }
  for (int64_t t = a.steps - 1; t >= 0; t--) {
    T* target = a.targets + t * a.rows;  // holds the values so far
    const T *cost = a.costs + t * a.rows, *goes_on = a.goes_on ? a.goes_on + t * a.rows : nullptr;
    for (int64_t b = 0; b < a.rows; b++) {
      const T following = t + 1 < a.steps ? target[b + a.rows] : target[b];
      const T discount = goes_on ? T(a.gamma) * goes_on[b] : T(a.gamma);
      target[b] = cost[b] + discount * (following - (following - target[b]) * T(1 - a.td_lambda));
    }
  }
  rescale(a, size);
}

// by_weights and by_biases: the gradient of the loss of the first minibatch.
void gradient(const Arguments* arguments) {
  const Arguments& a = *arguments;
  Stack s(a, Slopes::room(a));
  Slopes d(a, s);
  minibatch(a, s, d, 0);
  for (int k = 0; k < LAYERS; k++) s.spread(k, a.by_weights[k], a.by_biases[k]);
}

// Steps of Adam on all minibatches, then the average of the target's parameters.
void fit(const Arguments* arguments) {
  const Arguments& a = *arguments;
  Stack s(a, Slopes::room(a));
  Slopes d(a, s);
  for (int64_t batch = 0; batch < a.batches; batch++) {
    minibatch(a, s, d, batch);
    const Adam adam(a, a.steps_before + double(batch) + 1);
    for (int k = 0; k < LAYERS; k++) {
      const int64_t size = int64_t(s.width[k]) * s.width[k + 1];
      s.spread(k, a.by_weights[k], a.by_biases[k]);
      adam.step(a.weights[k], a.mean_weights[k], a.square_weights[k], a.by_weights[k], size);
      adam.step(a.biases[k], a.mean_biases[k], a.square_biases[k], a.by_biases[k], s.width[k + 1]);
    }
  }
  const T tau = T(a.tau);
  for (int k = 0; k < LAYERS; k++) {
    const auto follow = [&](T* to, const T* from, int64_t size) {
      for (int64_t i = 0; i < size; i++) to[i] = lerp(to[i], from[i], tau);
    };
    follow(a.target_weights[k], a.weights[k], int64_t(s.width[k]) * s.width[k + 1]);
    follow(a.target_biases[k], a.biases[k], s.width[k + 1]);
  }
}
}
