// Sparse times packed input over a register tile: the inner loop of every convolution and of fully
// connected layers over many images. A tile is ROWS x COLUMNS vectors; every nonzero costs one
// aligned fused multiply-add per vector. A multiply-add waits for the one before it in its sum: eight sums
// keep both units busy, so smaller tiles keep UNROLL sets of them. Fewer than eight do for the smallest ones,
// where the next rows help, which the processor begins meanwhile.
//
// The multiply-adds alone fill both load ports. Offsets and values are therefore read four at a time, and
// offsets one turn ahead: an address that is only just being loaded holds up the loads behind it.
//
// Rows come sorted by their number of nonzeros. Neighbouring rows then leave the loop after the same number
// of turns, which the branch predictor learns; in the weight's own order almost every row ends in a
// misprediction, and rows of a block are short.

// Where the vectors of a tile go, and which of their lanes lie inside the map.
template <int P>
struct Places {
  ptrdiff_t at[P];
  First lanes[P];

  explicit Places(const TileArgs& t) {
    for (int v = 0; v < P; ++v) {
      const int r = v / t.columns, c = v % t.columns;
      const bool inside = r < t.rows_used && c < t.columns_used;
      at[v] = r * t.output_row + c * VL;
      lanes[v] = first_lanes(!inside ? 0 : c + 1 < t.columns_used ? VL : t.tail);
    }
  }
};

// Clamps and stores the maxima of 2x2 vectors of one finished tile. What lies inside the map comes in pairs.
template <int ROWS, int COLUMNS>
inline __attribute__((always_inline)) void finish_pooled(const TileArgs& t, bool stream, const V* sum,
                                                         float* out) {
#pragma GCC unroll 8
  for (int r = 0; r + 1 < ROWS; r += 2)
#pragma GCC unroll 16
    for (int c = 0; c + 1 < COLUMNS; c += 2) {
      if (r >= t.rows_used || c >= t.columns_used) continue;
      const V* at = sum + r * COLUMNS + c;
      const V result = larger(larger(at[0], at[1]), larger(at[COLUMNS], at[COLUMNS + 1]));
      float* const to = out + r / 2 * t.output_row + c / 2 * VL;
      stream ? store_streamed(to, clamp(result, t.low, t.high)) : store(to, clamp(result, t.low, t.high));
    }
}

// The same where the lanes of a vector are neighbours of an output row: `tile` holds the sums of all its
// rows.
inline void finish_pooled_rows(const TileArgs& t, const float* tile, float* out) {
  const ptrdiff_t row = static_cast<ptrdiff_t>(t.columns) * VL;
  for (int r = 0; r + 1 < t.rows_used; r += 2, tile += 2 * row, out += t.output_row)
    for (int c = 0; c < t.columns_used; ++c) {
      const float* at = tile + c * VL;
      const int windows = (c + 1 < t.columns_used ? VL : t.tail) / 2;
#if FINEPRUNING_MASKED_LOADS
      const V tall = larger(load(at), load(at + row)), wide = larger(tall, swap_pairs(tall));
      const V result = clamp(even_lanes(wide, wide), t.low, t.high);
      store_lanes(out + c * (VL / 2), result, windows);
#else
      for (int i = 0; i < windows; ++i) {
        const float* pair = at + 2 * i;
        const float result = larger(larger(pair[0], pair[1]), larger(pair[row], pair[row + 1]));
        out[c * (VL / 2) + i] = result < t.low ? t.low : result > t.high ? t.high : result;
      }
#endif
    }
}

constexpr int kTurn = 4;  // nonzeros that are read together
static_assert(kTurn <= kReadAhead);

// Values of the nonzeros of a turn by one load; each is spread over a vector without another.
#if FINEPRUNING_VECTOR_FLOATS == 16
struct TurnValues {
  __m512 four;
  explicit TurnValues(const float* value) : four(_mm512_broadcast_f32x4(_mm_loadu_ps(value))) {
    __asm__("" : "+v"(four));  // the compiler would load each value by itself
  }
  template <int I>
  V at() const {
    return reinterpret_cast<V>(_mm512_permute_ps(four, I * 0x55));
  }
};
#elif defined(__AVX2__)
struct TurnValues {
  __m256 four;
  explicit TurnValues(const float* value)
      : four(_mm256_broadcast_ps(reinterpret_cast<const __m128*>(value))) {
    __asm__("" : "+x"(four));
  }
  template <int I>
  V at() const {
    return reinterpret_cast<V>(_mm256_permute_ps(four, I * 0x55));
  }
};
#else
struct TurnValues {
  const float* four;
  explicit TurnValues(const float* value) : four(value) {}
  template <int I>
  V at() const {
    return splat(four[I]);
  }
};
#endif

// Offsets of the nonzeros of a turn, by one load where instructions to take them apart are cheaper than
// loads.
#if defined(__AVX2__)
struct TurnOffsets {
  uint64_t four;
  explicit TurnOffsets(const uint16_t* offset) {
    memcpy(&four, offset, sizeof four);
    __asm__("" : "+r"(four));  // now, not where it is used
  }
  template <int I>
  const char* in(const char* input) const {
    return input + ((four >> (16 * I)) & 0xffff) * kOffsetUnit;
  }
};
#else
struct TurnOffsets {
  const uint16_t* four;
  explicit TurnOffsets(const uint16_t* offset) : four(offset) {}
  template <int I>
  const char* in(const char* input) const {
    return input + static_cast<size_t>(four[I]) * kOffsetUnit;
  }
};
#endif

// One nonzero times its tile of inputs.
template <int ROWS, int COLUMNS>
inline __attribute__((always_inline)) void add_nonzero(V* sum, const char* p, ptrdiff_t row, V w) {
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r, p += row) {
    // Keeps p in one register, with constant displacements: the compiler would otherwise hoist a pointer for
    // every vector of the tile and spill them.
    __asm__("" : "+r"(p));
#pragma GCC unroll 32
    for (int c = 0; c < COLUMNS; ++c) sum[r * COLUMNS + c] += w * load(p + c * VL * 4);
  }
}

// The nonzeros of one row times their inputs, added to UNROLL sets of sums.
template <int ROWS, int COLUMNS, int UNROLL>
inline __attribute__((always_inline)) void add_row(V (*sum)[ROWS * COLUMNS], const char* input, ptrdiff_t row,
                                                   const uint16_t* offset, const float* value,
                                                   uint32_t count) {
  // Small tiles run through their weights as fast as memory may deliver them; rows follow each other there.
  if (ROWS * COLUMNS <= 4) {
    for (uint32_t i = 0; i < count; i += 16) __builtin_prefetch(value + kWeightsAhead + i);
    for (uint32_t i = 0; i < count; i += 32) __builtin_prefetch(offset + kWeightsAhead + i);
  }
  TurnOffsets at(offset);
  uint32_t e = 0;
  for (; e + kTurn <= count; e += kTurn) {
    const TurnOffsets next(offset + e + kTurn);
    const TurnValues w(value + e);
    add_nonzero<ROWS, COLUMNS>(sum[0], at.template in<0>(input), row, w.template at<0>());
    add_nonzero<ROWS, COLUMNS>(sum[1 % UNROLL], at.template in<1>(input), row, w.template at<1>());
    add_nonzero<ROWS, COLUMNS>(sum[2 % UNROLL], at.template in<2>(input), row, w.template at<2>());
    add_nonzero<ROWS, COLUMNS>(sum[3 % UNROLL], at.template in<3>(input), row, w.template at<3>());
    at = next;
  }
  if (e == count) return;
  const TurnValues w(value + e);
  add_nonzero<ROWS, COLUMNS>(sum[0], at.template in<0>(input), row, w.template at<0>());
  if (e + 1 == count) return;
  add_nonzero<ROWS, COLUMNS>(sum[1 % UNROLL], at.template in<1>(input), row, w.template at<1>());
  if (e + 2 == count) return;
  add_nonzero<ROWS, COLUMNS>(sum[2 % UNROLL], at.template in<2>(input), row, w.template at<2>());
}

// Writes a row's sums: the result after the last block, what the next block starts from before.
// One-row tiles serve rectangles, too, whose sides only `t` knows; where those are pooled, sums go to `tile`,
// for finish_pooled_rows. `stream`: past the caches. `whole`: no edge of the map cuts the tile, and its sides
// are ROWS and COLUMNS.
template <int ROWS, int COLUMNS, bool LAST>
inline __attribute__((always_inline)) void write_row(const TileArgs& t, const Places<ROWS * COLUMNS>& places,
                                                     bool stream, bool whole, const V* sum, ptrdiff_t k,
                                                     float* tile) {
  constexpr int P = ROWS * COLUMNS;
  const float* residual = t.residual ? t.residual + k * t.output_channel : nullptr;
  float* out = t.output + k * t.output_channel;
  if (ROWS % 2 == 0 && COLUMNS % 2 == 0 && LAST && t.pooled) {
    finish_pooled<ROWS, COLUMNS>(t, stream, sum, out);
  } else if (!LAST || (ROWS == 1 && t.pooled)) {
    float* to = LAST ? tile : t.partial + k * P * VL;
    __asm__("" : "+r"(to));  // as in add_nonzero
#pragma GCC unroll 32
    for (int v = 0; v < P; ++v) store(to + v * VL, sum[v]);
  } else if (LAST && stream) {
#pragma GCC unroll 32
    for (int v = 0; v < P; ++v) store_streamed(out + places.at[v], clamp(sum[v], t.low, t.high));
  } else if (whole) {
#pragma GCC unroll 32
    for (int v = 0; v < P; ++v) {
      const ptrdiff_t at = (v / COLUMNS) * t.output_row + (v % COLUMNS) * VL;
      V result = sum[v];
      if (residual) result += loadu(residual + at);
      storeu(out + at, clamp(result, t.low, t.high));
    }
  } else {
#pragma GCC unroll 32
    for (int v = 0; v < P; ++v) {
      const First lanes = places.lanes[v];
      const ptrdiff_t at = places.at[v];
      V result = sum[v];
      if (residual) result += load_first(lanes, residual + at);
      store_first(lanes, out + at, clamp(result, t.low, t.high));
    }
  }
}

// Rows of a map lie far apart, where no hardware prefetcher looks, and a core keeps few stores that wait for
// their line: the lines of a row's result are fetched some rows before it is written. Zen 5 alone, of the
// processors measured, is as fast without.
constexpr int kRowsAhead = 3;
template <int P>
inline __attribute__((always_inline)) void fetch_row(const Places<P>& places, int columns, const float* out) {
  constexpr int kVectors = kLineFloats / VL;  // of a line
  const bool whole_lines = columns % kVectors == 0;
#pragma GCC unroll 32
  for (int v = 0; v < P; ++v)
    if (v % kVectors == 0 || !whole_lines) __builtin_prefetch(out + places.at[v], 1);
}

// All rows of a block; of the last block if LAST. What the two do with a row's sums is too different for one
// loop: with a branch in each row, short rows took a tenth longer.
template <int ROWS, int COLUMNS, bool LAST>
void run_block(const TileArgs& args) {
  constexpr int P = ROWS * COLUMNS;
  constexpr int UNROLL = sets_of_sums(P);
  const TileArgs t = args;  // no store can change it, as the compiler must think of `args`
  const Places<P> places(t);
  const bool whole = t.rows_used == ROWS && t.columns_used == COLUMNS && t.columns == COLUMNS && t.tail == VL;
  const bool stream = LAST && t.stream && t.rows_used * t.columns_used == P && t.tail == VL;
  const uint16_t* offset = t.offset;
  const float* value = t.value;
  alignas(64) float tile[P * VL];
  for (int i = 0; i < t.rows; ++i) {
    const ptrdiff_t k = t.order[i];
    const uint32_t count = t.count[i];
    const float* partial = t.partial + k * P * VL;
    __asm__("" : "+r"(partial));  // as in add_nonzero
    if (LAST && t.fetch && i + kRowsAhead < t.rows)
      fetch_row<P>(places, t.columns, t.output + t.order[i + kRowsAhead] * t.output_channel);
    V sum[UNROLL][P];
    const V start = splat(t.first && t.bias ? t.bias[k] : 0.0f);
#pragma GCC unroll 32
    for (int v = 0; v < P; ++v) sum[0][v] = t.first ? start : load(partial + v * VL);
#pragma GCC unroll 4
    for (int u = 1; u < UNROLL; ++u)
#pragma GCC unroll 32
      for (int v = 0; v < P; ++v) sum[u][v] = V{};
    add_row<ROWS, COLUMNS, UNROLL>(sum, t.input, t.input_row, offset, value, count);
#pragma GCC unroll 4
    for (int u = 1; u < UNROLL; ++u)
#pragma GCC unroll 32
      for (int v = 0; v < P; ++v) sum[0][v] += sum[u][v];
    write_row<ROWS, COLUMNS, LAST>(t, places, stream, whole, sum[0], k, tile);
    if (ROWS == 1 && LAST && t.pooled) finish_pooled_rows(t, tile, t.output + k * t.output_channel);
    offset += count;
    value += count;
  }
  if (stream) fence_streamed();
}

template <int ROWS, int COLUMNS>
void run_tile(const TileArgs& t) {
  t.last ? run_block<ROWS, COLUMNS, true>(t) : run_block<ROWS, COLUMNS, false>(t);
}

#define TILE(r, c) {r, c, run_tile<r, c>}
constexpr TileEntry kTiles[] = {
    TILE(1, 1),  TILE(1, 2),  TILE(1, 3),  TILE(1, 4),  TILE(1, 5),  TILE(1, 6),  TILE(1, 7),
    TILE(1, 8),  TILE(1, 9),  TILE(1, 10), TILE(1, 11), TILE(1, 12), TILE(2, 2),  TILE(2, 3),
    TILE(2, 4),  TILE(2, 5),  TILE(2, 6),  TILE(3, 3),  TILE(3, 4),
#if FINEPRUNING_TILE_VECTORS >= 14
    TILE(1, 13), TILE(1, 14), TILE(2, 7),
#endif
#if FINEPRUNING_TILE_VECTORS >= 28
    TILE(1, 16), TILE(1, 18), TILE(1, 20), TILE(1, 22), TILE(1, 24), TILE(1, 26), TILE(1, 27),
    TILE(1, 28), TILE(2, 8),  TILE(2, 11), TILE(2, 13), TILE(2, 14), TILE(3, 7),  TILE(3, 8),
    TILE(3, 9),  TILE(4, 4),  TILE(4, 6),  TILE(4, 7),  TILE(5, 5),
#endif
};
#undef TILE
