// Losses of windows and their derivatives by what the policy returned (diffsim/algorithms/window_losses.py).
//
// Above this text is T.  One thread; sums are in the order of time and components, separately for each window.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

// STRIDED

// ARGUMENTS

// f(b, value) for every window b at a time and component.
template <class F>
static void each(const Strided& q, int64_t time, int64_t component, int64_t batch, F f) {
  const T* at = q.data + time * q.time + component * q.component;
  if (q.rollout == 1)
    for (int64_t b = 0; b < batch; b++) f(b, at[b]);
  else
    for (int64_t b = 0; b < batch; b++) f(b, at[b * q.rollout]);
}

extern "C" {

int64_t size_of_arguments() { return sizeof(Arguments); }

void window_losses(Arguments* arguments) {
  Arguments& a = *arguments;
  const int64_t batch = a.batch;
  std::vector<T> room(size_t(4 * batch));
  T *weight = room.data(), *slope = weight + batch, *wrong = slope + batch, *square = wrong + batch;

  std::fill(a.discounted, a.discounted + batch, T(0));
  for (int64_t t = 0; t <= a.steps; t++) {
    each(a.weights, t, 0, batch, [&](int64_t b, T q) { weight[b] = q; });
    const bool last = t == a.steps;
    each(last ? a.values : a.costs, last ? 0 : t, 0, batch, [&](int64_t b, T q) { a.discounted[b] += weight[b] * q; });
  }
  const T mean = *a.mean, scale = *a.scale, c = T(a.compression);
  const bool linear = std::isinf(c);
  for (int64_t b = 0; b < batch; b++) {
    const T y = linear ? (a.discounted[b] - mean) / scale : (a.discounted[b] - mean) / scale / c;
    a.losses[b] = linear ? y : c * std::asinh(y);
    slope[b] = linear ? 1 / scale : 1 / (std::sqrt(1 + y * y) * scale);
    wrong[b] = a.losses[b] - a.losses[b];  // 0, and NaN if it is not finite
  }
  for (int64_t t = 0; t < a.steps; t++)
    for (int64_t k = 0; k < a.actions; k++)
      each(a.by_noise, t, k, batch, [&](int64_t b, T q) {
        const T by = slope[b] * q;
        square[b] += by * by;
        wrong[b] += by - by;
      });
  std::fill(a.typical, a.typical + a.steps * batch, uint8_t(1));
  for (int64_t i = 0; i < a.states; i++) {
    each(a.costates, 0, i, batch, [&](int64_t b, T q) { wrong[b] += q - q; });
    const T middle = a.middle[i], reach = a.reach[i];
    for (int64_t t = 0; t <= a.steps; t++) {
      uint8_t* typical = a.typical + t * batch;
      const bool counts = t < a.steps;
      each(a.x, t, i, batch, [&](int64_t b, T q) {
        wrong[b] += q - q;
        if (counts) typical[b] &= uint8_t(std::abs(q - middle) <= reach);
      });
    }
  }
  a.left_out = a.unmoved = 0;
  for (int64_t b = 0; b < batch; b++) {
    const bool ok = wrong[b] == 0;
    const T length = ok ? std::sqrt(square[b]) : T(0);
    if (!a.bounded) a.bounds[b] = length > a.bound ? T(a.bound) / length : T(1);
    a.ok[b] = ok;
    a.losses[b] *= a.bounds[b];
    a.left_out += !ok;
    a.still[b] = ok && length == 0;
    a.unmoved += a.still[b];
  }
  for (int64_t t = 0; t < a.steps; t++)
    for (int64_t k = 0; k < a.actions; k++) {
      T* to = a.by_results + t * batch * a.actions + k;
      each(a.by_noise, t, k, batch, [&](int64_t b, T q) { to[b * a.actions] = slope[b] * q * a.bounds[b]; });
    }
}
}
