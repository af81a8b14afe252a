// What the layers of a network are made of (solvers/compiler/print_block_layers.py): products, sums and normalisation over a
// block of rollouts. Above this text are T, scalars.h, ROLLOUTS, THREADS and block.h.
//
// Activations of a block at one interval: feature after feature, NV numbers each, of which the first ROLLOUTS are rollouts; the
// others keep rows that are read at once in different memory banks. Sizes are constants, so that sums stay in registers. Every sum
// has an order of its own that no schedule changes.

constexpr int NV = ROLLOUTS + 16 / sizeof(T);
constexpr int FOUR = 4;

constexpr int least(int a, int b) { return a < b ? a : b; }
constexpr int parts(int count, int size) { return (count + size - 1) / size; }
constexpr int power_up_to(int n) { return n < 2 ? 1 : 2 * power_up_to(n / 2); }
constexpr int power_from(int n) { return n < 2 ? 1 : 2 * power_from((n + 1) / 2); }

// A thread's share of an index range: SIZE of them, spread over GROUPS threads one by one, or in fours.
template <int SIZE, int GROUPS, bool FOURS>
INLINE int spread_index(int group, int i) {
  if constexpr (FOURS && SIZE >= FOUR) return (i / FOUR) * FOUR * GROUPS + group * FOUR + i % FOUR;
  return i * GROUPS + group;
}

// A side of the tiles that cover `width` by `count` numbers: from a by b on they are halved until there is one for every thread.
// `first` asks for the side along width.
constexpr int tile_side(int width, int count, int a, int b, bool first) {
  while (parts(width, a) * parts(count, b) < THREADS && a * b > 1) {
    if (a >= b) a /= 2;
    else b /= 2;
  }
  return first ? a : b;
}
constexpr int LARGEST = sizeof(T) == 8 ? 4 : 8;

// How a product of WIDTH rows is divided: a task is ROWS rows of COLUMNS rollouts.
template <int WIDTH>
struct Tasks {
  static constexpr int WIDE = least(8, power_up_to(WIDTH));
  static constexpr int ROWS = tile_side(WIDTH, ROLLOUTS, WIDE, LARGEST, true), GROUPS = parts(WIDTH, ROWS);
  static constexpr int COLUMNS = tile_side(WIDTH, ROLLOUTS, WIDE, LARGEST, false), ACROSS = ROLLOUTS / COLUMNS;
  static constexpr int COUNT = GROUPS * ACROSS;
  static constexpr bool WHOLE = WIDTH % ROWS == 0;
};

// out[j][c] = finish(j, sum_k w[j * ROW + k * COLUMN] in[k][c]) for j < WIDTH; rows of rollouts. ALIGNED: rows of w begin at
// multiples of 16 bytes.
template <bool ADDS, int WIDTH, int COUNT, int ROW, int COLUMN, bool ALIGNED, class Finish>
INLINE void product(const T* w, const T* in, T* out, Finish finish) {
  using Q = Tasks<WIDTH>;
  constexpr int ROWS = Q::ROWS, COLUMNS = Q::COLUMNS;
  constexpr bool ALONG = ALIGNED && COLUMN == 1;                              // four weights of a row at once
  constexpr bool ACROSS = ALIGNED && ROW == 1 && ROWS >= FOUR && Q::WHOLE;  // of four neighbouring rows
  PHASE for (int task = c; task < Q::COUNT; task += THREADS) {
    const int across = task % Q::ACROSS, group = task / Q::ACROSS;
    int row[ROWS];
    UNROLL_ALL for (int r = 0; r < ROWS; r++) {
      row[r] = spread_index<ROWS, Q::GROUPS, ACROSS>(group, r);
      if (!Q::WHOLE && row[r] >= WIDTH) row[r] = WIDTH - 1;
    }
    T sum[ROWS][COLUMNS];
    UNROLL_ALL for (int r = 0; r < ROWS; r++)
      UNROLL_ALL for (int q = 0; q < COLUMNS; q++) sum[r][q] = 0;
    auto add = [&](int k, const T* weight, int step) {
      T a[COLUMNS];
      if constexpr (COLUMNS >= FOUR)
        UNROLL_ALL for (int q = 0; q < COLUMNS; q += FOUR) copy<FOUR>(in + k * NV + spread_index<COLUMNS, Q::ACROSS, true>(across, q), a + q);
      else
        UNROLL_ALL for (int q = 0; q < COLUMNS; q++) a[q] = in[k * NV + spread_index<COLUMNS, Q::ACROSS, true>(across, q)];
      UNROLL_ALL for (int r = 0; r < ROWS; r++)
        UNROLL_ALL for (int q = 0; q < COLUMNS; q++) sum[r][q] += weight[r * step] * a[q];
    };
    constexpr int FOURS = ALONG ? COUNT / FOUR * FOUR : 0;
    UNROLL_NONE for (int k = 0; k < FOURS; k += FOUR) {
      T weight[ROWS * FOUR];
      UNROLL_ALL for (int r = 0; r < ROWS; r++) copy<FOUR>(w + row[r] * ROW + k, weight + r * FOUR);
      UNROLL_ALL for (int i = 0; i < FOUR; i++) add(k + i, weight + i, FOUR);
    }
    UNROLL_4 for (int k = FOURS; k < COUNT; k++) {
      T weight[ROWS];
      if constexpr (ACROSS)
        UNROLL_ALL for (int r = 0; r < ROWS; r += FOUR) copy<FOUR>(w + row[r] + k * COLUMN, weight + r);
      else
        UNROLL_ALL for (int r = 0; r < ROWS; r++) weight[r] = w[row[r] * ROW + k * COLUMN];
      add(k, weight, 1);
    }
    UNROLL_ALL for (int r = 0; r < ROWS; r++)
      UNROLL_ALL for (int q = 0; q < COLUMNS; q++) sum[r][q] = finish(row[r], sum[r][q]);
    UNROLL_ALL for (int r = 0; r < ROWS; r++) {
      if (!Q::WHOLE && spread_index<ROWS, Q::GROUPS, ACROSS>(group, r) >= WIDTH) continue;
      T* to = out + row[r] * NV;
      if constexpr (ADDS)
        UNROLL_ALL for (int q = 0; q < COLUMNS; q++) sum[r][q] += to[spread_index<COLUMNS, Q::ACROSS, true>(across, q)];
      if constexpr (COLUMNS >= FOUR)
        UNROLL_ALL for (int q = 0; q < COLUMNS; q += FOUR) put<FOUR>(sum[r] + q, to + spread_index<COLUMNS, Q::ACROSS, true>(across, q));
      else
        UNROLL_ALL for (int q = 0; q < COLUMNS; q++) to[spread_index<COLUMNS, Q::ACROSS, true>(across, q)] = sum[r][q];
    }
  }
}

// sums[j * COUNT + k] += sum over the rollouts of bar[j] in[k].
template <int WIDTH, int COUNT>
INLINE void outer(const T* bar, const T* in, T* sums) {
  constexpr int TALL = least(LARGEST, power_from(WIDTH)), WIDE = least(LARGEST, power_from(COUNT));
  constexpr int A = tile_side(WIDTH, COUNT, TALL, WIDE, true), B = tile_side(WIDTH, COUNT, TALL, WIDE, false);
  constexpr int DOWN = parts(WIDTH, A), ACROSS = parts(COUNT, B);
  PHASE for (int task = c; task < DOWN * ACROSS; task += THREADS) {
    const int down = task / ACROSS, across = task % ACROSS;
    T sum[A][B];
    UNROLL_ALL for (int i = 0; i < A; i++)
      UNROLL_ALL for (int k = 0; k < B; k++) sum[i][k] = 0;
    UNROLL_NONE for (int q = 0; q < ROLLOUTS; q += FOUR) {
      T left[A][FOUR], right[B][FOUR];
      UNROLL_ALL for (int i = 0; i < A; i++) copy<FOUR>(bar + least(down + i * DOWN, WIDTH - 1) * NV + q, left[i]);
      UNROLL_ALL for (int k = 0; k < B; k++) copy<FOUR>(in + least(across + k * ACROSS, COUNT - 1) * NV + q, right[k]);
      UNROLL_ALL for (int l = 0; l < FOUR; l++)
        UNROLL_ALL for (int i = 0; i < A; i++)
          UNROLL_ALL for (int k = 0; k < B; k++) sum[i][k] += left[i][l] * right[k][l];
    }
    UNROLL_ALL for (int i = 0; i < A; i++)
      UNROLL_ALL for (int k = 0; k < B; k++)
        if (down + i * DOWN < WIDTH && across + k * ACROSS < COUNT)
          sums[(down + i * DOWN) * COUNT + across + k * ACROSS] += sum[i][k];
  }
}

// sums[j] += sum over the rollouts of rows[j]; `partial` has room for THREADS numbers.
template <int WIDTH>
INLINE void add_sums(const T* rows, T* sums, T* partial) {
  // Of few rows several threads share each.
  constexpr int SHARES = least(ROLLOUTS / FOUR, power_up_to(THREADS / WIDTH)), SHARE = ROLLOUTS / (SHARES ? SHARES : 1);
  auto part = [&](int j, int from, int count) {
    T total = 0;
    for (int q = 0; q < count; q += FOUR) {
      T four[FOUR];
      copy<FOUR>(rows + j * NV + from + q, four);
      total += (four[0] + four[1]) + (four[2] + four[3]);
    }
    return total;
  };
  if constexpr (SHARES > 1) {
    PHASE if (c < WIDTH * SHARES) partial[c] = part(c / SHARES, c % SHARES * SHARE, SHARE);
    PHASE if (c < WIDTH) {
      T total = 0;
      for (int i = 0; i < SHARES; i++) total += partial[c * SHARES + i];
      sums[c] += total;
    }
  } else {
    PHASE for (int j = c; j < WIDTH; j += THREADS) sums[j] += part(j, 0, ROLLOUTS);
  }
}

// *sum += sum over the rollouts and all rows.
template <int WIDTH>
INLINE void add_all(const T* rows, T* sum, T* partial) {
  EACH {
    T total = 0;
    for (int j = 0; j < WIDTH; j++) total += rows[j * NV + c];
    partial[c] = total;
  }
  PHASE if (c == 0)
    for (int q = 0; q < ROLLOUTS; q++) *sum += partial[q];
}

// A matrix of the caller's in rows that begin at multiples of 16 bytes, STRIDE numbers each.
template <int WIDTH, int COUNT, int ROW, int COLUMN, int STRIDE>
INLINE void stage_matrix(const T* w, T* to) {
  PHASE for (int i = c; i < WIDTH * COUNT; i += THREADS) {
    const int j = i / COUNT, k = i % COUNT;
    to[j * STRIDE + k] = w[j * ROW + k * COLUMN];
  }
}

// Layer normalisation without its scale and shift (Ba et al., arXiv 1607.06450): (a - mean) / sqrt(variance + eps).
INLINE void moments(const T* in, int width, T eps, T& mean, T& inverse) {
  T sum = 0, squares = 0;
  for (int j = 0; j < width; j++) sum += in[j * NV];
  mean = sum / T(width);
  for (int j = 0; j < width; j++) {
    const T off = in[j * NV] - mean;
    squares += off * off;
  }
  inverse = T(1) / v_sqrt(squares / T(width) + eps);
}
INLINE void standardise(const T* in, T* out, int width, T eps) {
  EACH {
    T mean, inverse;
    moments(in + c, width, eps, mean, inverse);
    for (int j = 0; j < width; j++) out[j * NV + c] = (in[j * NV + c] - mean) * inverse;
  }
}
template <bool ADDS>
INLINE void standardise_vjp(const T* in, const T* out, const T* bar, T* by_in, int width, T eps) {
  EACH {
    T mean, inverse, sum = 0, along = 0;
    moments(in + c, width, eps, mean, inverse);
    for (int j = 0; j < width; j++) {
      sum += bar[j * NV + c];
      along += bar[j * NV + c] * out[j * NV + c];
    }
    for (int j = 0; j < width; j++) {
      const T term = inverse * (bar[j * NV + c] - (sum + out[j * NV + c] * along) / T(width));
      if (ADDS) by_in[j * NV + c] += term;
      else by_in[j * NV + c] = term;
    }
  }
}
