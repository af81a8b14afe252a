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

template <class Function>
static void over_rows(const Arguments& a, Function function) {
  In in;
  in.shared = a.shared;
  for (int64_t first = 0; first < a.rows; first += LANES) {
    const int count = int(std::min<int64_t>(LANES, a.rows - first));
    for (int i = 0; i < N; i++)
      for (int l = 0; l < LANES; l++)  // the last state fills up the lanes
        in.x[i][l] = a.x[(first + std::min(l, count - 1)) * N + i];
    function(in, first, count);
  }
}

extern "C" {

int64_t size_of_arguments() { return sizeof(Arguments); }

// z [rows, O]
void values(const Arguments* arguments) {
  over_rows(*arguments, [&](const In& in, int64_t first, int count) {
    V z[O];
    observe(in, z);
    for (int l = 0; l < count; l++)
      for (int k = 0; k < O; k++) arguments->z[(first + l) * O + k] = z[k][l];
  });
}

// by [rows, O, N], which is zero before
void derivatives(const Arguments* arguments) {
  over_rows(*arguments, [&](const In& in, int64_t first, int count) {
    V by[ENTRIES + 1];
    jacobian(in, by);
    for (int l = 0; l < count; l++)
      for (int k = 0; k < ENTRIES; k++) arguments->by[(first + l) * O * N + PLACES[k]] = by[k][l];
  });
}
}
