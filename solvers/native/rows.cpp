// A function of the rows of an array, LANES rows at a time, one in each lane of a vector.
//
// Above this text stand T, ROW and OUT, the numbers in a row and in its result; at EMITTED the code of compute(), made from
// the user's function.

// VECTORS

struct In {
  V row[ROW];
  const T* const* shared;  // tensors that the function holds
};

// EMITTED

static inline M moderate(V a) { return v_abs(a) < T(1e30); }

// from [rows, ROW], to [rows, OUT]; whether all numbers of both are finite and less than 1e30 in size.
extern "C" int compute_rows(const T* from, T* to, const T* const* shared, int64_t rows) {
  M good = M{} - 1;
  for (int64_t first = 0; first < rows; first += LANES) {
    const int64_t left = std::min<int64_t>(LANES, rows - first);
    In in;
    in.shared = shared;
    for (int64_t l = 0; l < LANES; l++) {
      const T* row = from + (first + std::min(l, left - 1)) * ROW;  // lanes without a row repeat the last
      for (int j = 0; j < ROW; j++) in.row[j][l] = row[j];
    }
    V out[OUT];
    compute(in, out);
    for (int j = 0; j < ROW; j++) good &= moderate(in.row[j]);
    for (int j = 0; j < OUT; j++) good &= moderate(out[j]);
    for (int64_t l = 0; l < left; l++)
      for (int j = 0; j < OUT; j++) to[(first + l) * OUT + j] = out[j][l];
  }
  return !any(~good);
}
