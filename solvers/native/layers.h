// What the layers of a network are made of (solvers/compiler/print_layers.py): products, sums and normalisation over a
// block of NV vectors of rollouts. Above this text are T, vectors.h and NV.
//
// Activations of a block at one interval: feature after feature, NV vectors each.

// Loops over arrays that should be kept in registers. With them -O2 is as fast as -O3 and compiles in two thirds of the time.
#define UNROLL _Pragma("GCC unroll 64")

// The sum over the lanes, by halves.
static inline T total(V a) {
  T parts[LANES];
  std::memcpy(parts, &a, sizeof a);
  for (int width = LANES / 2; width > 0; width /= 2)
    for (int l = 0; l < width; l++) parts[l] += parts[l + width];
  return parts[0];
}

// R rows of w times C vectors: registers hold the sums. finish(row, sum) is what is stored.
template <int R, int C, bool ADD, class Finish>
static inline void tile(const T* w, int64_t row, int64_t column, int count, const V* in, int in_row, V* out, int out_row, int first, Finish finish) {
  V sum[R][C];
  UNROLL for (int r = 0; r < R; r++)
    UNROLL for (int c = 0; c < C; c++) sum[r][c] = V{};
  for (int k = 0; k < count; k++) {
    V a[C];
    UNROLL for (int c = 0; c < C; c++) a[c] = in[k * in_row + c];
    UNROLL for (int r = 0; r < R; r++) {
      const V weight = splat(w[(first + r) * row + k * column]);
      UNROLL for (int c = 0; c < C; c++) sum[r][c] += weight * a[c];
    }
  }
  UNROLL for (int r = 0; r < R; r++)
    UNROLL for (int c = 0; c < C; c++) {
      V& to = out[(first + r) * out_row + c];
      if (ADD) to = to + finish(first + r, sum[r][c]);
      else to = finish(first + r, sum[r][c]);
    }
}

template <int R, int C, bool ADD, class Finish>
static inline void rows(const T* w, int64_t row, int64_t column, int count, const V* in, int in_row, V* out, int out_row, int width, Finish finish) {
  int first = 0;
  for (; first + R <= width; first += R) tile<R, C, ADD>(w, row, column, count, in, in_row, out, out_row, first, finish);
  if (first + 4 <= width) tile<4, C, ADD>(w, row, column, count, in, in_row, out, out_row, first, finish), first += 4;
  for (; first < width; first++) tile<1, C, ADD>(w, row, column, count, in, in_row, out, out_row, first, finish);
}

// out[j][c] = finish(j, sum_k w[j * row + k * column] in[k][c]) for j < width and c < columns; rows of vectors.
template <bool ADD, class Finish>
static void matrix(const T* w, int64_t row, int64_t column, int count, const V* in, int in_row, V* out, int out_row, int width, int columns, Finish finish) {
  constexpr int C = VECTOR_BYTES == 64 ? 4 : 2;  // 32 registers or 16
  int c = 0;
  for (; c + C <= columns; c += C) rows<6, C, ADD>(w, row, column, count, in + c, in_row, out + c, out_row, width, finish);
  for (; c < columns; c++) rows<8, 1, ADD>(w, row, column, count, in + c, in_row, out + c, out_row, width, finish);
}

template <bool ADD, class Finish>
static inline void product(const T* w, int64_t row, int64_t column, int count, const V* in, V* out, int width, int nv, Finish finish) {
  matrix<ADD>(w, row, column, count, in, NV, out, NV, width, nv, finish);
}

// Transpose of LANES vectors as a square matrix.
template <int S>
static inline void exchange(V* r) {
  M low, high;
  UNROLL for (int l = 0; l < LANES; l++) {
    low[l] = l & S ? LANES + l - S : l;
    high[l] = l & S ? LANES + l : l + S;
  }
  UNROLL for (int i = 0; i < LANES; i++) {
    if (i & S) continue;
    const V a = r[i], b = r[i + S];
#ifdef __clang__
    UNROLL for (int l = 0; l < LANES; l++) {
      r[i][l] = l & S ? b[l - S] : a[l];
      r[i + S][l] = l & S ? b[l] : a[l + S];
    }
#else
    r[i] = __builtin_shuffle(a, b, low);
    r[i + S] = __builtin_shuffle(a, b, high);
#endif
  }
}
static inline void turn(V* r) {
  if constexpr (LANES >= 2) exchange<1>(r);
  if constexpr (LANES >= 4) exchange<2>(r);
  if constexpr (LANES >= 8) exchange<4>(r);
  if constexpr (LANES >= 16) exchange<8>(r);
}

constexpr int vectors_for(int width) { return (width + LANES - 1) / LANES; }

// [width][NV] vectors of rollouts to [rollouts][vectors_for(width)] vectors of features, zeros at the end.
static void turn(const V* in, V* out, int width, int nv) {
  const int across = vectors_for(width);
  for (int f = 0; f < across; f++)
    for (int c = 0; c < nv; c++) {
      V r[LANES];
      UNROLL for (int i = 0; i < LANES; i++) r[i] = f * LANES + i < width ? in[(f * LANES + i) * NV + c] : V{};
      turn(r);
      UNROLL for (int i = 0; i < LANES; i++) out[(c * LANES + i) * across + f] = r[i];
    }
}

// sums[j][k] += sum over rollouts of bar[j] in[k]: a product whose inner index is the rollout, with the wider of the two
// turned, so that features fill the vectors. TURNED says which: sums are [width of the other][features of the turned].
template <bool BAR_TURNED>
static void outer(const V* bar, const V* in, int width, int count, int nv, V* turned, V* sums) {
  const V* row = BAR_TURNED ? in : bar;
  const int across = vectors_for(BAR_TURNED ? width : count);
  turn(BAR_TURNED ? bar : in, turned, BAR_TURNED ? width : count, nv);
  matrix<true>(reinterpret_cast<const T*>(row), NV * LANES, 1, nv * LANES, turned, across, sums, across,
               BAR_TURNED ? count : width, across, [](int, V sum) { return sum; });
}

static void add_sums(const V* bar, int nv, V* by_bias, int width) {
  for (int j = 0; j < width; j++)
    for (int c = 0; c < nv; c++) by_bias[j] += bar[j * NV + c];
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
