// A function of INPUTS numbers of every rollout to RESULTS numbers, and its vector-Jacobian product, over a batch.
//
// Above this text are T, INPUTS, RESULTS and GRADIENT; at EMITTED the function: field(), and field_vjp() with a gradient.
// Arrays are [component, batch].

// VECTORS

struct In {
  V x[INPUTS];
};

// EMITTED

static void load(const T* from, int64_t batch, int64_t first, int count, int components, V* to) {
  for (int k = 0; k < components; k++) {
    const T* data = from + k * batch + first;
    // Lanes beyond the batch repeat its last rollout.
    for (int l = 0; l < LANES; l++) to[k][l] = data[l < count ? l : count - 1];
  }
}
static void store(T* to, int64_t batch, int64_t first, int count, int components, const V* from) {
  for (int k = 0; k < components; k++)
    for (int l = 0; l < count; l++) to[k * batch + first + l] = from[k][l];
}

extern "C" void forward(int64_t batch, const T* inputs, T* results) {
  for (int64_t first = 0; first < batch; first += LANES) {
    const int count = int(std::min<int64_t>(LANES, batch - first));
    In in;
    V out[RESULTS];
    load(inputs, batch, first, count, INPUTS, in.x);
    field(in, out);
    store(results, batch, first, count, RESULTS, out);
  }
}

#if GRADIENT
extern "C" void backward(int64_t batch, const T* inputs, const T* bars, T* by_inputs) {
  for (int64_t first = 0; first < batch; first += LANES) {
    const int count = int(std::min<int64_t>(LANES, batch - first));
    In in;
    V bar[RESULTS], by_x[INPUTS];
    load(inputs, batch, first, count, INPUTS, in.x);
    load(bars, batch, first, count, RESULTS, bar);
    field_vjp(in, bar, by_x);
    store(by_inputs, batch, first, count, INPUTS, by_x);
  }
}
#endif
