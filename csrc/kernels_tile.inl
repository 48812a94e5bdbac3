// Sparse times packed input over a register tile: the inner loop of every convolution and of fully
// connected layers over many images. A tile is ROWS x COLUMNS vectors of 16 lanes; every nonzero costs one
// aligned fused multiply-add per vector. UNROLL independent sums hide the latency of small tiles.
//
// The multiply-adds alone fill both load ports. Offsets and values are therefore read four at a time, and
// offsets one turn ahead: an address that is only just being loaded holds up the loads behind it.
//
// Rows come sorted by their number of nonzeros. Neighbouring rows then leave the loop after the same number
// of turns, which the branch predictor learns; in the weight's own order almost every row ends in a
// misprediction, and rows of a block are short.

#if defined(__AVX512F__)
// Where the vectors of a tile go, and which of their lanes lie inside the map.
template <int P>
struct Places {
  ptrdiff_t at[P];
  __mmask16 lanes[P];

  explicit Places(const TileArgs& t) {
    for (int v = 0; v < P; ++v) {
      const int r = v / t.columns, c = v % t.columns;
      const bool inside = r < t.rows_used && c < t.columns_used;
      at[v] = r * t.output_row + c * kLanes;
      lanes[v] = static_cast<__mmask16>(!inside ? 0u : c + 1 < t.columns_used ? 0xffffu : (1u << t.tail) - 1);
    }
  }
};
#else
// Adds the residual, clamps and stores one finished tile where rows or lanes are cut by the map's edge.
inline void finish_tile(const TileArgs& t, const float* tile, ptrdiff_t channel) {
  float* out = t.output + channel * t.output_channel;
  const float* residual = t.residual ? t.residual + channel * t.output_channel : nullptr;
  for (int r = 0; r < t.rows_used; ++r) {
    const float* sums = tile + r * t.columns * kLanes;
    for (int c = 0; c < t.columns_used; ++c) {
      int lanes = c + 1 < t.columns_used ? kLanes : t.tail;
      for (int h = 0; h < kParts; ++h) {
        int n = static_cast<int>(imin(lanes - h * VL, VL));
        if (n <= 0) break;
        ptrdiff_t at = r * t.output_row + c * kLanes + h * VL;
        V v = load(sums + c * kLanes + h * VL);
        if (residual) v += load_lanes(residual + at, n);
        store_lanes(out + at, clamp(v, t.low, t.high), n);
      }
    }
  }
}
#endif

// Clamps and stores the maxima of 2x2 vectors of one finished tile. What lies inside the map comes in pairs.
template <int ROWS, int COLUMNS>
inline __attribute__((always_inline)) void finish_pooled(const TileArgs& t, const V* sum, float* out) {
#pragma GCC unroll 8
  for (int r = 0; r + 1 < ROWS; r += 2)
#pragma GCC unroll 16
    for (int c = 0; c + 1 < COLUMNS; c += 2) {
      if (r >= t.rows_used || c >= t.columns_used) continue;
      const V* at = sum + r * COLUMNS + c;
      const V result = larger(larger(at[0], at[1]), larger(at[COLUMNS], at[COLUMNS + 1]));
      store(out + r / 2 * t.output_row + c / 2 * kLanes, clamp(result, t.low, t.high));
    }
}

// The same where the lanes of a vector are neighbours of an output row: `tile` holds the sums of all its
// rows.
inline void finish_pooled_rows(const TileArgs& t, const float* tile, float* out) {
  const ptrdiff_t row = static_cast<ptrdiff_t>(t.columns) * kLanes;
  for (int r = 0; r + 1 < t.rows_used; r += 2, tile += 2 * row, out += t.output_row)
    for (int c = 0; c < t.columns_used; ++c) {
      const float* at = tile + c * kLanes;
      const int windows = (c + 1 < t.columns_used ? kLanes : t.tail) / 2;
#if defined(__AVX512F__)
      const V tall = larger(load(at), load(at + row));
      const V swapped = reinterpret_cast<V>(_mm512_permute_ps(reinterpret_cast<__m512>(tall), 0xb1));
      const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 0, 2, 4, 6, 8, 10, 12, 14);
      const V result = clamp(larger(tall, swapped), t.low, t.high);
      _mm512_mask_storeu_ps(out + c * (kLanes / 2), static_cast<__mmask16>((1u << windows) - 1),
                            _mm512_permutexvar_ps(even, reinterpret_cast<__m512>(result)));
#else
      for (int i = 0; i < windows; ++i) {
        const float* pair = at + 2 * i;
        const float result = larger(larger(pair[0], pair[1]), larger(pair[row], pair[row + 1]));
        out[c * (kLanes / 2) + i] = result < t.low ? t.low : result > t.high ? t.high : result;
      }
#endif
    }
}

constexpr int kTurn = 4;  // nonzeros that are read together
static_assert(kTurn <= kReadAhead);

// Values of the nonzeros of a turn by one load; each is spread over a vector without another.
#if defined(__AVX512F__)
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
    for (int c = 0; c < COLUMNS; ++c) sum[r * COLUMNS + c] += w * load(p + c * kVectorBytes);
  }
}

// The nonzeros of one row times their inputs, added to UNROLL sets of sums.
template <int ROWS, int COLUMNS, int UNROLL>
inline __attribute__((always_inline)) void add_row(V (*sum)[ROWS * COLUMNS], const char* input, ptrdiff_t row,
                                                   const uint16_t* offset, const float* value,
                                                   uint32_t count) {
  TurnOffsets at(offset);
  const auto turn = [&](uint32_t e, int set) __attribute__((always_inline)) {
    const TurnOffsets next(offset + e + kTurn);
    const TurnValues w(value + e);
    add_nonzero<ROWS, COLUMNS>(sum[set % UNROLL], at.template in<0>(input), row, w.template at<0>());
    add_nonzero<ROWS, COLUMNS>(sum[(set + 1) % UNROLL], at.template in<1>(input), row, w.template at<1>());
    add_nonzero<ROWS, COLUMNS>(sum[(set + 2) % UNROLL], at.template in<2>(input), row, w.template at<2>());
    add_nonzero<ROWS, COLUMNS>(sum[(set + 3) % UNROLL], at.template in<3>(input), row, w.template at<3>());
    at = next;
  };
  uint32_t e = 0;
  if (UNROLL > kTurn)
    for (; e + 2 * kTurn <= count; e += 2 * kTurn) {
      turn(e, 0);
      turn(e + kTurn, kTurn);
    }
  for (; e + kTurn <= count; e += kTurn) turn(e, 0);
  if (e == count) return;
  const TurnValues w(value + e);
  add_nonzero<ROWS, COLUMNS>(sum[0], at.template in<0>(input), row, w.template at<0>());
  if (e + 1 == count) return;
  add_nonzero<ROWS, COLUMNS>(sum[1 % UNROLL], at.template in<1>(input), row, w.template at<1>());
  if (e + 2 == count) return;
  add_nonzero<ROWS, COLUMNS>(sum[2 % UNROLL], at.template in<2>(input), row, w.template at<2>());
}

template <int ROWS, int COLUMNS>
void run_tile(const TileArgs& t) {
  constexpr int P = ROWS * COLUMNS;
  constexpr int UNROLL = P >= 8 ? 1 : P >= 4 ? 2 : P >= 2 ? 4 : 8;
  const ptrdiff_t row = t.input_row;
  const uint16_t* offset = t.offset;
  const float* value = t.value;
  const bool whole =
      t.last && t.rows_used == ROWS && t.columns_used == COLUMNS && t.columns == COLUMNS && t.tail == kLanes;
#if defined(__AVX512F__)
  const Places<P> places(t);
#endif
  // One-row tiles serve rectangles, too, whose sides only `t` knows. Where those are pooled, and without
  // masked stores at the map's edge, sums go through memory.
  alignas(64) float tile[P * kLanes];
  for (int i = 0; i < t.rows; ++i) {
    const ptrdiff_t k = t.order[i];
    const uint32_t count = t.count[i];
    float* partial = t.partial + k * P * kLanes;
    const float* residual = t.residual ? t.residual + k * t.output_channel : nullptr;
    float* out = t.output + k * t.output_channel;
    for (int h = 0; h < kParts; ++h) {
      const char* input = t.input + h * VL * 4;
      V sum[UNROLL][P];
      const V start = splat(t.first && t.bias ? t.bias[k] : 0.0f);
#pragma GCC unroll 32
      for (int v = 0; v < P; ++v) sum[0][v] = t.first ? start : load(partial + v * kLanes + h * VL);
#pragma GCC unroll 8
      for (int u = 1; u < UNROLL; ++u)
#pragma GCC unroll 32
        for (int v = 0; v < P; ++v) sum[u][v] = V{};
      add_row<ROWS, COLUMNS, UNROLL>(sum, input, row, offset, value, count);
#pragma GCC unroll 8
      for (int u = 1; u < UNROLL; ++u)
#pragma GCC unroll 32
        for (int v = 0; v < P; ++v) sum[0][v] += sum[u][v];
      if (ROWS % 2 == 0 && COLUMNS % 2 == 0 && t.last && t.pooled) {
        finish_pooled<ROWS, COLUMNS>(t, sum[0], out + h * VL);
      } else if (ROWS == 1 && t.last && t.pooled) {
#pragma GCC unroll 32
        for (int v = 0; v < P; ++v) store(tile + v * kLanes + h * VL, sum[0][v]);
      } else if (whole) {
#pragma GCC unroll 32
        for (int v = 0; v < P; ++v) {
          ptrdiff_t at = (v / COLUMNS) * t.output_row + (v % COLUMNS) * kLanes + h * VL;
          V result = sum[0][v];
          if (residual) result += loadu(residual + at);
          storeu(out + at, clamp(result, t.low, t.high));
        }
#if defined(__AVX512F__)
      } else if (t.last) {
#pragma GCC unroll 32
        for (int v = 0; v < P; ++v) {
          V result = sum[0][v];
          const __mmask16 lanes = places.lanes[v];
          if (residual) result += reinterpret_cast<V>(_mm512_maskz_loadu_ps(lanes, residual + places.at[v]));
          result = clamp(result, t.low, t.high);
          _mm512_mask_storeu_ps(out + places.at[v], lanes, reinterpret_cast<__m512>(result));
        }
      } else {
        float* to = partial;
#else
      } else {
        float* to = t.last ? tile : partial;
#endif
#pragma GCC unroll 32
        for (int v = 0; v < P; ++v) store(to + v * kLanes + h * VL, sum[0][v]);
      }
    }
    if (ROWS == 1 && t.last && t.pooled) finish_pooled_rows(t, tile, out);
#if !defined(__AVX512F__)
    if (t.last && !whole && !t.pooled) finish_tile(t, tile, k);
#endif
    offset += count;
    value += count;
  }
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
