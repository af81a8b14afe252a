// Normalised observations and their derivatives by the state, LANES states at a time.
//
// Above this text are T, N states, O observations and the places of the ENTRIES of a Jacobian [O, N] that are not zero
// everywhere; at EMITTED, below the vectors, the code generated from the simulator: observe() and jacobian().

// VECTORS

struct In {
  V x[N];
  const T* const* shared;
};

// EMITTED

// ARGUMENTS

// Rows are numbered through all blocks; one block at a time, so that neighbours are where `row` says.
template <class Function>
static void over_rows(const Arguments& a, Function function) {
  In in;
  in.shared = a.shared;
  for (int64_t block = 0; block < a.blocks; block++)
    for (int64_t row = 0; row < a.rows; row += LANES) {
      const int count = int(std::min<int64_t>(LANES, a.rows - row));
      const T* from = a.x + block * a.by_block + row * a.by_row;
      for (int i = 0; i < N; i++) {
        const T* own = from + i * a.by_state;
        if (count == LANES && a.by_row == 1) std::memcpy(&in.x[i], own, sizeof(V));
        else
          for (int l = 0; l < LANES; l++) in.x[i][l] = own[std::min(l, count - 1) * a.by_row];  // the last fills up
      }
      function(in, block * a.rows + row, count);
    }
}

extern "C" {

int64_t size_of_arguments() { return sizeof(Arguments); }

// z [blocks, rows, O]
void values(const Arguments* arguments) {
  over_rows(*arguments, [&](const In& in, int64_t first, int count) {
    V z[O];
    observe(in, z);
    for (int l = 0; l < count; l++)
      for (int k = 0; k < O; k++) arguments->z[(first + l) * O + k] = z[k][l];
  });
}

// by [blocks, rows, O, N], which is zero before
void derivatives(const Arguments* arguments) {
  over_rows(*arguments, [&](const In& in, int64_t first, int count) {
    V by[ENTRIES + 1];
    jacobian(in, by);
    for (int l = 0; l < count; l++)
      for (int k = 0; k < ENTRIES; k++) arguments->by[(first + l) * O * N + PLACES[k]] = by[k][l];
  });
}
}
