// Adaptive explicit Runge-Kutta steps for a batch, a step size per rollout: forward with a tape, and backward.
//
// LANES rollouts share a block, one in each lane of a vector; blocks share nothing, so a rollout's numbers depend on
// nothing but itself. Above this text stand: T, N, STAGES, ERROR_ORDER, the tableau, the leaves (controls and
// parameters) and, below the vector functions, the structs that Python passes (ARGUMENTS) and field() and field_vjp()
// made from the user's function.
// The algorithm is that of solvers/marching/march.py and solvers/marching/step_size.py, line by line.

// VECTORS

#include <vector>

// ARGUMENTS

// Values of all leaves for a block, under one control.
struct Values {
  V own[OWN_SIZE > 0 ? OWN_SIZE : 1];
  const T* shared[LEAVES > 0 ? LEAVES : 1];

  void load(const Leaf* leaves, int64_t first, int64_t batch, int64_t control, M replace, int good) {
    int at = 0;
    for (int k = 0; k < LEAVES; k++) {
      const T* data = leaves[k].data + leaves[k].held * control;
      shared[k] = data;
      if (!leaves[k].rollouts) continue;
      for (int64_t j = 0; j < leaves[k].size; j++, at++)
        for (int l = 0; l < LANES; l++) {
          int64_t row = std::min(first + (replace[l] ? good : l), batch - 1);
          own[at][l] = data[row * leaves[k].size + j];
        }
    }
  }
};

// FIELD

struct Entry {
  V t, h, x[N];
};

struct BlockTape {
  std::vector<Entry> entries;
  std::vector<int64_t> leg_ends;  // how many entries there are when a leg is complete
  M failed;
};

struct Tape {
  std::vector<BlockTape> blocks;
};

static inline V norm(const V* e, const V* scale) {
  V total = splat(0);
  for (int i = 0; i < N; i++) {
    V r = e[i] / scale[i];
    total = total + r * r;
  }
  return v_sqrt(total / T(N));
}

// Stage slopes of the step (t, x, h), k[0] being given; `last` is the state of the last stage.
static inline void stages(const Values& values, V t, V h, const V* x, V (*k)[N], V* last) {
#pragma GCC unroll 8
  for (int i = 1; i < STAGES; i++) {
    V z[N];
    for (int c = 0; c < N; c++) {
      V rise = A[i][0] * k[0][c];
      for (int j = 1; j < i; j++)
        if (A[i][j] != 0) rise = rise + A[i][j] * k[j][c];
      z[c] = x[c] + h * rise;
    }
    field(values, t + C[i] * h, z, k[i]);
    if (i == STAGES - 1)
      for (int c = 0; c < N; c++) last[c] = z[c];
  }
}

static inline V dense_weight(int i, V theta) {
  return theta * (DENSE[i][0] + theta * (DENSE[i][1] + theta * (DENSE[i][2] + theta * DENSE[i][3])));
}
static inline V dense_slope(int i, V theta) {
  return DENSE[i][0] + theta * (2 * DENSE[i][1] + theta * (3 * DENSE[i][2] + theta * (4 * DENSE[i][3])));
}

static void forward_block(const Settings& s, const Grid& grid, const Leaf* leaves, const T* x0, T start, T* xs,
                          int64_t* status, int64_t* accepted, int64_t* rejected, T* failed_at, T* last_step,
                          int64_t first, BlockTape* tape) {
  const I STEP_UNDERFLOW = 1, MAX_STEPS = 2, NOT_FINITE = 3;  // as in solvers/failure.py
  const T nan = std::numeric_limits<T>::quiet_NaN(), resolution = 4 * std::numeric_limits<T>::epsilon();
  V x[N], k[STAGES][N], x_new[N] = {};
  auto row = [&](int l) { return std::min(first + l, s.batch - 1); };
  for (int c = 0; c < N; c++)
    for (int l = 0; l < LANES; l++) x[c][l] = x0[row(l) * N + c];
  V t = splat(start), proposal = splat(0), before = splat(1), taken = splat(0);
  M live = M{} - 1, outcome = M{}, kept = M{}, lost = M{};
  bool first_step_known = false;
  Values values;
  int64_t control = -1, next = 0;
  auto put = [&](int64_t output, int l, int c, T value) {
    if (first + l < s.batch) xs[(output * s.batch + first + l) * N + c] = value;
  };
  for (int64_t leg = 0; leg < s.legs; leg++) {
    const V target = splat(grid.targets[leg]), started = t;
    if (grid.controls[leg] != control) {
      control = grid.controls[leg];
      values.load(leaves, first, s.batch, control, M{}, 0);
      field(values, t, x, k[0]);
    }
    for (;;) {
      const M active = live & (t < target);
      if (!any(active)) break;
      const V remaining = target - t;
      if (!first_step_known) {
        first_step_known = true;
        if (s.first_step > 0) {
          proposal = splat(s.first_step);
        } else {
          V scale[N], y[N], ahead[N];
          for (int c = 0; c < N; c++) scale[c] = s.atol + s.rtol * v_abs(x[c]);
          const V d0 = norm(x, scale), d1 = norm(k[0], scale);
          V h0 = ((d0 < T(1e-5)) | (d1 < T(1e-5))) ? splat(T(1e-6)) : T(0.01) * d0 / d1;
          h0 = v_min(h0, remaining);
          for (int c = 0; c < N; c++) y[c] = x[c] + h0 * k[0][c];
          field(values, t + h0, y, ahead);
          for (int c = 0; c < N; c++) ahead[c] = ahead[c] - k[0][c];
          const V largest = v_max(d1, norm(ahead, scale) / h0);
          const V rest = v_exp(v_log(T(0.01) / v_max(largest, splat(T(1e-30)))) / T(ERROR_ORDER));
          const V h1 = largest <= T(1e-15) ? v_max(T(1e-3) * h0, splat(T(1e-6))) : rest;
          const V h = v_min(T(100) * h0, h1);
          proposal = (finite(h) & (h > 0)) ? h : T(1e-3) * remaining;
        }
      }
      if (s.max_step > 0) proposal = v_min(proposal, splat(s.max_step));
      const M to_target = active & (proposal >= remaining);
      V h = active ? (to_target ? remaining : proposal) : splat(0);
      stages(values, t, h, x, k, x_new);
      V total = splat(0);
      M good = active;
      for (int c = 0; c < N; c++) {
        V e = E[0] * k[0][c];
        for (int i = 1; i < STAGES; i++)
          if (E[i] != 0) e = e + E[i] * k[i][c];
        const V r = h * e / (s.atol + s.rtol * v_max(v_abs(x[c]), v_abs(x_new[c])));
        total = total + r * r;
        good = good & finite(x_new[c]);
      }
      const V error = v_sqrt(total / T(N));
      good = good & finite(error);
      const M stands = good & (error <= 1);
      const V small = v_max(error, splat(T(1e-10))), small_before = v_max(before, splat(T(1e-10)));
      V factor = s.safety * v_exp((s.proportional * v_log(small_before) - s.integral * v_log(small)) / T(ERROR_ORDER));
      factor = v_min(v_max(factor, splat(s.smallest)), splat(s.largest));
      factor = error <= 1 ? factor : v_min(factor, splat(1));
      factor = good ? factor : splat(s.smallest);
      before = (stands & ~to_target) ? error : before;
      const V grown = (to_target & stands) ? v_max(h * factor, proposal) : h * factor;
      proposal = active ? grown : proposal;
      const V shortest = v_max(resolution * v_abs(t), T(1e-25) * (target - started));
      const M unresolved = (active & ~stands & (proposal <= shortest)) | (active & ~to_target & (t + h == t));
      outcome = unresolved ? (good ? M{} + STEP_UNDERFLOW : M{} + NOT_FINITE) : outcome;
      const M there = stands & to_target & (leg == s.legs - 1 ? M{} - 1 : M{});
      const M exhausted = active & (kept + lost + 1 >= M{} + I(std::min<int64_t>(s.max_steps, 2000000000))) & ~there & (outcome == 0);
      outcome = exhausted ? M{} + MAX_STEPS : outcome;
      taken = active ? h : taken;
      h = stands ? h : splat(0);
      const V t_new = stands ? (to_target ? target : t + h) : t;
      for (int64_t at = next; at < grid.inside_ends[leg]; at++) {
        const int64_t output = grid.inside[at];
        const T when = grid.ts[output];
        const M passed = stands & (when > t) & (when <= t_new);
        if (!any(when <= t_new)) break;
        if (!any(passed)) continue;
        const V theta = (when - t) / (h > 0 ? h : splat(1));
        for (int c = 0; c < N; c++) {
          V rise = splat(0);
          for (int i = 0; i < STAGES; i++) rise = rise + dense_weight(i, theta) * k[i][c];
          const V value = x[c] + h * rise;
          for (int l = 0; l < LANES; l++)
            if (passed[l]) put(output, l, c, value[l]);
        }
      }
      if (tape) {
        Entry entry;
        entry.t = t;
        entry.h = h;
        for (int c = 0; c < N; c++) entry.x[c] = x[c];
        tape->entries.push_back(entry);
      }
      kept = kept - stands;
      lost = lost - (active & ~stands);
      live = outcome == 0;
      for (int c = 0; c < N; c++) {
        x[c] = stands ? x_new[c] : x[c];
        k[0][c] = stands ? k[STAGES - 1][c] : k[0][c];
      }
      t = t_new;
      // Outputs that every rollout has passed need no further look.
      T slowest = std::numeric_limits<T>::infinity();
      for (int l = 0; l < LANES; l++)
        if (live[l]) slowest = std::min(slowest, t[l]);
      while (next < grid.inside_ends[leg] && grid.ts[grid.inside[next]] <= slowest) next++;
    }
    next = grid.inside_ends[leg];
    if (tape) tape->leg_ends.push_back(tape->entries.size());
    if (grid.at_target[leg] >= 0)
      for (int c = 0; c < N; c++)
        for (int l = 0; l < LANES; l++) put(grid.at_target[leg], l, c, live[l] ? x[c][l] : nan);
  }
  for (int l = 0; l < LANES && first + l < s.batch; l++) {
    const int64_t b = first + l;
    status[b] = outcome[l];
    accepted[b] = kept[l];
    rejected[b] = lost[l];
    failed_at[b] = t[l];
    last_step[b] = taken[l];
  }
  if (tape) tape->failed = outcome != 0;
}

static void backward_block(const Settings& s, const Grid& grid, const Leaf* leaves, const T* by_xs, T* by_x0,
                           T** by_own, T** by_shared, T* by_targets, T* by_start, T* by_ts, int64_t first,
                           int64_t block, const BlockTape& tape) {
  int good = -1;
  for (int l = LANES - 1; l >= 0; l--)
    if (!tape.failed[l]) good = l;
  if (good < 0) return;
  V lambda[N], by_t = splat(0);
  for (int c = 0; c < N; c++) lambda[c] = splat(0);
  auto pull = [&](int64_t output, int c) {
    V g = splat(0);
    for (int l = 0; l < LANES; l++)
      if (first + l < s.batch && !tape.failed[l]) g[l] = by_xs[(output * s.batch + first + l) * N + c];
    return g;
  };
  Values values;
  int64_t control = -1;
  V own[OWN_SIZE > 0 ? OWN_SIZE : 1], shared[SHARED_SIZE > 0 ? SHARED_SIZE : 1];
  auto flush = [&]() {
    if (control < 0) return;
    int at = 0;
    int from = 0;
    for (int q = 0; q < LEAVES; q++) {
      if (!WANTED[q]) {
        if (leaves[q].rollouts) at += leaves[q].size;
        continue;
      }
      if (leaves[q].rollouts) {
        for (int64_t j = 0; j < leaves[q].size; j++, at++)
          for (int l = 0; l < LANES && first + l < s.batch; l++)
            by_own[q][leaves[q].held * control + (first + l) * leaves[q].size + j] += tape.failed[l] ? T(0) : own[at][l];
      } else {
        for (int64_t j = 0; j < leaves[q].size; j++, from++) {
          T total = 0;
          for (int l = 0; l < LANES; l++) total += shared[from][l];
          by_shared[q][block * leaves[q].controls * leaves[q].size + leaves[q].held * control + j] += total;
        }
      }
    }
  };
  const M failed = tape.failed;
  for (int64_t leg = s.legs - 1; leg >= 0; leg--) {
    if (grid.controls[leg] != control) {
      flush();
      control = grid.controls[leg];
      values.load(leaves, first, s.batch, control, failed, good);
      for (auto& v : own) v = splat(0);
      for (auto& v : shared) v = splat(0);
    }
    if (grid.at_target[leg] >= 0)
      for (int c = 0; c < N; c++) lambda[c] = lambda[c] + pull(grid.at_target[leg], c);
    M pending = M{} - 1;
    V by_target = splat(0);
    const int64_t inside_begin = leg ? grid.inside_ends[leg - 1] : 0;
    int64_t inside_end = grid.inside_ends[leg];
    const int64_t begin = leg ? tape.leg_ends[leg - 1] : 0;
    for (int64_t e = tape.leg_ends[leg] - 1; e >= begin; e--) {
      const Entry& entry = tape.entries[e];
      V t = entry.t, h = entry.h, x[N], k[STAGES][N], bar[STAGES][N], z[STAGES][N];
      V saved[STAGES][SAVED > 0 ? SAVED : 1];
      for (int c = 0; c < N; c++) x[c] = entry.x[c];
      if (any(failed)) {
        // A rollout that failed waits, with weight zero, where its neighbour's field is finite.
        for (int l = 0; l < LANES; l++)
          if (failed[l]) {
            t[l] = entry.t[good];
            h[l] = 0;
            for (int c = 0; c < N; c++) x[c][l] = entry.x[c][good];
          }
      }
      const M moved = h > 0;
      const M last = moved & pending;
      pending = pending & ~moved;
      // The outputs this step passed, of those that no later step did.
      if (!any(last))
        while (inside_end > inside_begin && !any(grid.ts[grid.inside[inside_end - 1]] <= t + h)) inside_end--;
      int64_t first_inside = inside_end;
      while (first_inside > inside_begin && any(grid.ts[grid.inside[first_inside - 1]] > t)) first_inside--;
      bool dense = false;
      for (int64_t at = first_inside; at < inside_end && !dense; at++) {
        const T when = grid.ts[grid.inside[at]];
        dense = any(moved & (when > t) & ((when <= t + h) | last));
      }
      const int count = dense ? STAGES : USED;
      for (int i = 0; i < count; i++) {
        for (int c = 0; c < N; c++) {
          V rise = splat(0);
          for (int j = 0; j < i; j++)
            if (A[i][j] != 0) rise = rise + A[i][j] * k[j][c];
          z[i][c] = i ? x[c] + h * rise : x[c];
        }
        field_keeping(values, t + C[i] * h, z[i], k[i], saved[i]);
      }
      V by_h = splat(0), by_now = splat(0);
      for (int i = 0; i < count; i++)
        for (int c = 0; c < N; c++) {
          bar[i][c] = B[i] != 0 ? h * B[i] * lambda[c] : splat(0);
          if (B[i] != 0) by_h = by_h + B[i] * k[i][c] * lambda[c];
        }
      if (dense)
        for (int64_t at = first_inside; at < inside_end; at++) {
          const int64_t output = grid.inside[at];
          const T when = grid.ts[output];
          const M passed = moved & (when > t) & ((when <= t + h) | last);
          if (!any(passed)) continue;
          const V length = h > 0 ? h : splat(1), theta = (when - t) / length;
          V by_theta = splat(0), along = splat(0);
          for (int c = 0; c < N; c++) {
            const V g = passed ? pull(output, c) : splat(0);
            lambda[c] = lambda[c] + g;
            for (int i = 0; i < STAGES; i++) {
              const V w = dense_weight(i, theta);
              bar[i][c] = bar[i][c] + h * w * g;
              along = along + w * k[i][c] * g;
              by_theta = by_theta + h * dense_slope(i, theta) * k[i][c] * g;
            }
          }
          by_h = by_h + along - by_theta * theta / length;
          by_now = by_now - by_theta / length;
          T total = 0;
          for (int l = 0; l < LANES; l++) total += passed[l] ? by_theta[l] / length[l] : T(0);
          by_ts[block * s.outputs + output] += total;
        }
      for (int i = count - 1; i >= 0; i--) {
        V gx[N], gt = splat(0);
        field_vjp(values, t + C[i] * h, z[i], saved[i], bar[i], gx, gt, own, shared);
        for (int c = 0; c < N; c++) {
          lambda[c] = lambda[c] + gx[c];
          for (int j = 0; j < i; j++)
            if (A[i][j] != 0) {
              bar[j][c] = bar[j][c] + h * A[i][j] * gx[c];
              by_h = by_h + A[i][j] * k[j][c] * gx[c];
            }
        }
        by_h = by_h + C[i] * gt;
        by_now = by_now + gt;
      }
      by_target = by_target + (last ? by_t + by_h : splat(0));
      by_t = last ? by_now - by_h : by_t + by_now;
    }
    T total = 0;
    for (int l = 0; l < LANES; l++) total += by_target[l];
    by_targets[block * s.legs + leg] = total;
  }
  flush();
  T total = 0;
  for (int l = 0; l < LANES; l++) total += by_t[l];
  by_start[block] = total;
  for (int c = 0; c < N; c++)
    for (int l = 0; l < LANES && first + l < s.batch; l++)
      by_x0[(first + l) * N + c] = failed[l] ? T(0) : lambda[c][l];
}

extern "C" {
int64_t lanes() { return LANES; }

// Writes the field at t = start for every rollout: what the caller checks the translation by.
void slopes(const Leaf* leaves, const T* x0, T start, int64_t control, T* out, int64_t batch) {
  for (int64_t first = 0; first < batch; first += LANES) {
    Values values;
    V x[N], k[N];
    values.load(leaves, first, batch, control, M{}, 0);
    for (int c = 0; c < N; c++)
      for (int l = 0; l < LANES; l++) x[c][l] = x0[std::min(first + l, batch - 1) * N + c];
    field(values, splat(start), x, k);
    for (int c = 0; c < N; c++)
      for (int l = 0; l < LANES && first + l < batch; l++) out[(first + l) * N + c] = k[c][l];
  }
}

void* forward(const Settings* s, const Grid* grid, const Leaf* leaves, const T* x0, T start, T* xs, int64_t* status,
              int64_t* accepted, int64_t* rejected, T* failed_at, T* last_step, int64_t keep, int64_t threads) {
  const int64_t blocks = (s->batch + LANES - 1) / LANES;
  Tape* tape = keep ? new Tape : nullptr;
  if (keep) tape->blocks.resize(blocks);
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1)
  for (int64_t b = 0; b < blocks; b++)
    forward_block(*s, *grid, leaves, x0, start, xs, status, accepted, rejected, failed_at, last_step, b * LANES,
                  keep ? &tape->blocks[b] : nullptr);
  return tape;
}

void backward(const void* tape, const Settings* s, const Grid* grid, const Leaf* leaves, const T* by_xs, T* by_x0,
              T** by_own, T** by_shared, T* by_targets, T* by_start, T* by_ts, int64_t threads) {
  const auto& blocks = static_cast<const Tape*>(tape)->blocks;
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1)
  for (int64_t b = 0; b < int64_t(blocks.size()); b++)
    backward_block(*s, *grid, leaves, by_xs, by_x0, by_own, by_shared, by_targets, by_start, by_ts, b * LANES, b,
                   blocks[b]);
}

void release(void* tape) { delete static_cast<Tape*>(tape); }
}
