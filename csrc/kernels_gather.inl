// Packs one block of input for the tile kernels: every unit becomes a run of aligned vectors.

#if FINEPRUNING_MASKED_LOADS
// out[i] = row[x + i * step] for i < count, zero outside the row. Writes whole vectors if `whole`.
inline void copy_run(float* out, const float* row, int64_t x, int64_t step, int64_t count, int64_t width,
                     bool whole) {
  int64_t i = 0;
  if (step == 1 && x >= 0)
    for (const int64_t inside = imin(count, width - x); i + VL <= inside; i += VL)
      storeu(out + i, loadu(row + x + i));
  for (; i < count; i += VL) {
    const V v = take(row, x + i * step, step, count - i, width);
    if (whole || count - i >= VL)
      storeu(out + i, v);
    else
      store_lanes(out + i, v, count - i);
  }
}
#else
inline void copy_run(float* out, const float* row, int64_t x, int64_t step, int64_t count, int64_t width,
                     bool) {
  // first <= i < last are the elements inside the row.
  const int64_t first = x >= 0 ? 0 : imin(count, (-x + step - 1) / step);
  const int64_t last = imax(first, x >= width ? 0 : imin(count, (width - x + step - 1) / step));
  int64_t i = 0;
  for (; i < first; ++i) out[i] = 0.0f;
  if (step == 1)
    for (; i + VL <= last; i += VL) storeu(out + i, loadu(row + x + i));
  for (; i < last; ++i) out[i] = row[x + i * step];
  for (; i < count; ++i) out[i] = 0.0f;
}
#endif

inline void zero(float* out, int64_t floats) {
  for (int64_t i = 0; i < floats; i += VL) store(out + i, V{});
}

// Of `rows` rows that are read from input row y on, [above, below) lie inside the map.
struct RowsInside {
  int64_t above = 0, below;

  RowsInside(const GatherArgs& g, int64_t y, int64_t rows) : below(rows) {
    // A division takes as long as packing some rows.
    if (y < 0) above = imin(below, (-y + g.stride_h - 1) / g.stride_h);
    if (y + (below - 1) * g.stride_h >= g.height)
      below = imax(above, y >= g.height ? 0 : (g.height - y + g.stride_h - 1) / g.stride_h);
  }
};

// Row y of a channel.
inline const float* row_of(const GatherArgs& g, int64_t channel, int64_t y) {
  const int64_t band = g.band_rows >= g.height ? 0 : y / g.band_rows;
  return g.source + band * g.band + channel * g.pitch + (y - band * g.band_rows) * g.width;
}

// The bands of the source from the tile's first row on, without divisions: one takes as long as packing some
// rows.
struct BandCursor {
  const float* base;  // of channel 0 and input row 0, were all rows where this band's are
  int64_t end;        // the first row beyond it

  BandCursor(const GatherArgs& g, int64_t y) {
    const int64_t band = g.band_rows >= g.height || y <= 0 ? 0 : y / g.band_rows;
    base = g.source + band * step(g);
    end = (band + 1) * g.band_rows;
  }
  static int64_t step(const GatherArgs& g) { return g.band - g.band_rows * g.width; }
  void advance(const GatherArgs& g, int64_t y) {
    for (; y >= end; end += g.band_rows) base += step(g);
  }
  // Of `count` rows that are read from row y on, those before the band's end.
  int64_t inside(const GatherArgs& g, int64_t y, int64_t count) const {
    if (y + (count - 1) * g.stride_h < end) return count;
    return g.stride_h == 1 ? end - y : (end - y + g.stride_h - 1) / g.stride_h;
  }
};

#if FINEPRUNING_MASKED_LOADS
// Rectangles of output positions, read at every STEP-th column. Row by row: column after column, a wide tile
// would come back to each line of a large map several times, when it is no longer near.
template <int STEP>
inline void gather_rows_of(const GatherArgs& args) {
  const GatherArgs g = args;  // no store can change it, as the compiler must think of `args`
  const int64_t row_floats = static_cast<int64_t>(g.unit_columns) * VL, step = g.stride_h * g.width;
  const int64_t y = g.y * g.stride_h - g.pad_h, x = g.x * STEP - g.pad_w;
  const BandCursor begin(g, y);
  // What lies inside the map is the same in every row and channel: it is found once for each tap.
  constexpr int kTaps = 8;
  Take<STEP> takes[kTaps][FINEPRUNING_TILE_VECTORS];
  int64_t known[kTaps] = {};  // the tap + 1, or 0
  float* out = g.out;
  for (int64_t u = 0; u < g.count; ++u, out += g.unit_rows * row_floats) {
    const Unit unit = g.units[u];
    Take<STEP>* const take = takes[unit.dx % kTaps];
    if (known[unit.dx % kTaps] != unit.dx + 1) {
      known[unit.dx % kTaps] = unit.dx + 1;
      for (int c = 0; c < g.unit_columns; ++c) take[c] = Take<STEP>(x + unit.dx + STEP * c * VL, g.width, VL);
    }
    const RowsInside rows(g, y + unit.dy, g.unit_rows);
    float* to = out + rows.above * row_floats;
    int64_t r = rows.above, iy = y + unit.dy + r * g.stride_h;
    zero(out, r * row_floats);
    for (BandCursor band = begin; r < rows.below;) {
      band.advance(g, iy);
      const float* from = band.base + unit.channel * g.pitch + iy * g.width + x + unit.dx;
      const int64_t stop = r + band.inside(g, iy, rows.below - r);
      iy += (stop - r) * g.stride_h;
      if (g.unit_columns == 1) {
        const Take<STEP> only = take[0];
        for (; r < stop; ++r, from += step, to += VL) store(to, only.from(from));
      } else {
        for (; r < stop; ++r, from += step, to += row_floats)
          for (int c = 0; c < g.unit_columns; ++c) store(to + c * VL, take[c].from(from + STEP * c * VL));
      }
    }
    zero(to, (g.unit_rows - r) * row_floats);
  }
}
#endif

// Rectangles of output positions, neighbours of a row side by side in a vector.
void gather_rows_block(const GatherArgs& g) {
#if FINEPRUNING_MASKED_LOADS
  if (g.stride_w == 1) return gather_rows_of<1>(g);
  if (g.stride_w == 2) return gather_rows_of<2>(g);
  if (g.stride_w == 4) return gather_rows_of<4>(g);
#endif
  const int64_t row_floats = static_cast<int64_t>(g.unit_columns) * VL;
  float* out = g.out;
  for (int64_t u = 0; u < g.count; ++u) {
    const Unit unit = g.units[u];
    const int64_t x = g.x * g.stride_w + unit.dx - g.pad_w, y = g.y * g.stride_h + unit.dy - g.pad_h;
    const RowsInside rows(g, y, g.unit_rows);
    for (int64_t r = 0; r < g.unit_rows; ++r, out += row_floats) {
      if (r < rows.above || r >= rows.below)
        zero(out, row_floats);
      else
        copy_run(out, row_of(g, unit.channel, y + r * g.stride_h), x, g.stride_w, row_floats, g.width, true);
    }
  }
}

// Part of an output row from `column` on, as the tap of `unit` reads it.
inline void copy_part(const GatherArgs& g, const Unit& unit, float* out, int64_t oy, int64_t column,
                      int64_t count) {
  const int64_t y = oy * g.stride_h + unit.dy - g.pad_h, x = column * g.stride_w + unit.dx - g.pad_w;
  const bool inside = y >= 0 && y < g.height;  // a row outside the map is a row of width 0
  copy_run(out, row_of(g, unit.channel, inside ? y : 0), x, g.stride_w, count, inside ? g.width : 0, false);
}

#if FINEPRUNING_MASKED_LOADS
// Runs of the flattened output map, whose rows fill no more than a vector, of every STEP-th column.
template <int STEP>
inline void gather_narrow(const GatherArgs& args, int64_t end) {
  const GatherArgs g = args;  // no store can change it, as the compiler must think of `args`
  const int64_t unit_floats = static_cast<int64_t>(g.unit_columns) * VL;
  const int64_t size = end - g.x, width = g.out_width, step = g.stride_h * g.width;
  // What lies in a row that begins before the run, and in one that ends after it; rows between are whole.
  const int64_t before = (width - g.x % width) % width, head = imin(before, size);
  const int64_t rows = (size - head) / width, tail = (size - head) % width;
  const int64_t oy = (g.x + before) / width;
  // Whole vectors are written in rising order: what one writes beyond the end of its row, the next row
  // overwrites. The last rows have no room for that.
  const int64_t room = size - head - VL;
  const int64_t roomy = room < 0 ? 0 : imin(rows, room / width + 1);
  const First lanes = first_lanes(width);
  const BandCursor begin(g, oy * g.stride_h - g.pad_h);
  float* out = g.out;
  for (int64_t u = 0; u < g.count; ++u, out += unit_floats) {
    const Unit unit = g.units[u];
    if (head > 0) copy_part(g, unit, out, oy - 1, g.x % width, head);
    const int64_t x = unit.dx - g.pad_w, y = oy * g.stride_h + unit.dy - g.pad_h;
    const RowsInside inside(g, y, rows);
    const Take<STEP> take(x, g.width, width);
    float* to = out + head;
    int64_t r = 0;
    const auto put = [&](V v) __attribute__((always_inline)) {
      r < roomy ? storeu(to, v) : store_first(lanes, to, v);
      to += width;
    };
    for (; r < inside.above; ++r) put(V{});
    int64_t iy = y + r * g.stride_h;
    for (BandCursor band = begin; r < inside.below;) {
      band.advance(g, iy);
      const float* from = band.base + unit.channel * g.pitch + iy * g.width + x;
      const int64_t stop = r + band.inside(g, iy, inside.below - r);
      iy += (stop - r) * g.stride_h;
      for (; r < stop; ++r, from += step) put(take.from(from));
    }
    for (; r < rows; ++r) put(V{});
    if (tail > 0) copy_part(g, unit, to, oy + rows, 0, tail);
    for (int64_t i = size; i < unit_floats; ++i) out[i] = 0.0f;
  }
}

// The same where output and input map are of one size: a tap then reads the run of the input that lies
// (dy, dx) further on, without what crosses the map's edge. The run lies in one band; what a tap reads beyond
// the band's edges lies in the bands beside it, which is loaded and put in between.
inline void gather_shifted(const GatherArgs& args, int64_t band) {
  const GatherArgs g = args;
  Inside columns[kFlatReach][FINEPRUNING_TILE_VECTORS], rows[kFlatReach][FINEPRUNING_TILE_VECTORS];
  Inside above[kFlatReach][FINEPRUNING_TILE_VECTORS], below[kFlatReach][FINEPRUNING_TILE_VECTORS];
  const int width = static_cast<int>(g.width), height = static_cast<int>(g.height);
  const int first = static_cast<int>(band * g.band_rows);  // rows of the band
  const int count = static_cast<int>(imin(g.band_rows, height - first));
  const int after = static_cast<int>(imin(g.band_rows, height - first - count));
  const int pad_h = static_cast<int>(g.pad_h), pad_w = static_cast<int>(g.pad_w);
  VI column = reinterpret_cast<VI>(lane_numbers()) + static_cast<int>(g.x % g.width);
  VI row = VI{} + static_cast<int>(g.x / g.width);
  for (int v = 0; v < g.unit_columns; ++v, column += VL) {
    for (int beyond = VL + width; beyond >= width; beyond -= width) {
      const VI next_row = column >= width;  // -1 where so
      column += next_row & -width;
      row -= next_row;
    }
    // Maps of one size: taps reach as far to one side as to the other.
    for (int dx = 0; dx <= 2 * pad_w; ++dx) columns[dx][v] = lanes_below(column + (dx - pad_w), width);
    for (int dy = 0; dy <= 2 * pad_h; ++dy) {
      const VI in_band = row + (dy - pad_h - first);
      rows[dy][v] = lanes_below(in_band, count);
      above[dy][v] = lanes_below(in_band + static_cast<int>(g.band_rows), first > 0 ? g.band_rows : 0);
      below[dy][v] = lanes_below(in_band - count, after);
    }
  }
  const int64_t first_row = g.x / g.width,
                last_row = imin(g.end - 1, g.x + g.unit_columns * VL - 1) / g.width;
  const int64_t step = BandCursor::step(g);
  const float* base = g.source + g.x + band * step - g.pad_h * g.width - g.pad_w;
  float* out = g.out;
  for (int64_t u = 0; u < g.count; ++u, out += static_cast<int64_t>(g.unit_columns) * VL) {
    const Unit unit = g.units[u];
    const float* from = base + unit.channel * g.pitch + unit.dy * g.width + unit.dx;
    const Inside* in_column = columns[unit.dx];
    const auto put = [&](const Inside* in_row, const float* at, bool more) __attribute__((always_inline)) {
      for (int v = 0; v < g.unit_columns; ++v) {
        const V found = load_inside(in_row[v] & in_column[v], at + v * VL);
        store(out + v * VL, more ? load(out + v * VL) + found : found);
      }
    };
    put(rows[unit.dy], from, false);
    const int64_t tap = unit.dy - g.pad_h - first;
    if (first > 0 && first_row + tap < 0) put(above[unit.dy], from - step, true);
    if (first + count < height && last_row + tap >= count) put(below[unit.dy], from + step, true);
  }
}
#endif

// Runs of the flattened output map, as one tap of the kernel reads them.
void gather_flat_block(const GatherArgs& g) {
  const int64_t unit_floats = static_cast<int64_t>(g.unit_columns) * VL;
  const int64_t end = imin(g.x + unit_floats, g.end);
  const bool same = g.stride_h == 1 && g.stride_w == 1 && g.out_height == g.height && g.out_width == g.width;
  const int64_t band = g.band_rows >= g.height ? 0 : g.x / g.width / g.band_rows;
  const bool one_band = end <= (band + 1) * g.band_rows * g.width;  // the rows of the run
  if (same && one_band && g.pad_h == 0 && g.pad_w == 0) {           // pointwise
    const float* from = g.source + g.x + band * BandCursor::step(g);
    for (int64_t u = 0; u < g.count; ++u) {
      if (u + kRunsAhead < g.count) {  // planes lie far apart, as in gather_lanes_block
        const float* next = from + g.units[u + kRunsAhead].channel * g.pitch;
        for (int64_t i = 0; i < unit_floats; i += kLineFloats) __builtin_prefetch(next + i);
        __builtin_prefetch(next + unit_floats - 1);
      }
      copy_run(g.out + u * unit_floats, from + g.units[u].channel * g.pitch, 0, 1, unit_floats, end - g.x,
               true);
    }
    return;
  }
#if FINEPRUNING_MASKED_LOADS
  if (same && one_band && 2 * imax(g.pad_h, g.pad_w) < kFlatReach && g.pad_h <= g.band_rows)
    return gather_shifted(g, band);
  if (g.stride_w == 1 && g.out_width <= VL) return gather_narrow<1>(g, end);
  if (g.stride_w == 2 && g.out_width <= VL) return gather_narrow<2>(g, end);
#endif
  for (int64_t u = 0; u < g.count; ++u) {
    float* const out = g.out + u * unit_floats;
    // Zeros first where the map ends inside the last vectors: a run below may then cover part of a vector.
    const int64_t whole = (end - g.x) / VL * VL;
    zero(out + whole, unit_floats - whole);
    int64_t oy = g.x / g.out_width, ox = g.x % g.out_width;
    for (int64_t q = g.x; q < end; ++oy, ox = 0) {
      const int64_t run = imin(g.out_width - ox, end - q);
      copy_part(g, g.units[u], out + q - g.x, oy, ox, run);
      q += run;
    }
  }
}

// Rectangles of output positions, images side by side in a vector.
void gather_lanes_block(const GatherArgs& g) {
  const int64_t plane_floats = g.height * g.width * VL;
  const int64_t ahead = g.unit_rows * g.unit_columns * VL <= kShortFloats ? kRunsAhead : kAhead;
  float* out = g.out;
  for (int64_t u = 0; u < g.count; ++u) {
    const Unit unit = g.units[u];
    const float* plane = g.source + unit.channel * plane_floats;
    // The planes of neighbouring channels lie far apart, where no hardware prefetcher looks.
    const float* next = u + ahead < g.count ? g.source + g.units[u + ahead].channel * plane_floats : nullptr;
    const int64_t x = g.x * g.stride_w + unit.dx - g.pad_w;
    int64_t y = g.y * g.stride_h + unit.dy - g.pad_h;
    // first <= i < last are the columns inside the map.
    const int64_t first = x >= 0 ? 0 : imin(g.unit_columns, (-x + g.stride_w - 1) / g.stride_w);
    const int64_t last =
        imax(first, x >= g.width ? 0 : imin(g.unit_columns, (g.width - x + g.stride_w - 1) / g.stride_w));
    const int64_t step = g.stride_w * VL;
    for (int r = 0; r < g.unit_rows; ++r, y += g.stride_h) {
      const bool inside = y >= 0 && y < g.height;
      const int64_t begin = inside ? first : g.unit_columns, end = inside ? last : g.unit_columns;
      const int64_t at = (y * g.width + x) * VL;
      for (int64_t i = 0; i < begin * VL; i += VL) store(out + i, V{});
      for (int64_t i = begin; i < end; ++i) {
        if (next) __builtin_prefetch(next + at + i * step);
        store(out + i * VL, load(plane + at + i * step));
      }
      for (int64_t i = end * VL; i < g.unit_columns * VL; i += VL) store(out + i, V{});
      out += static_cast<int64_t>(g.unit_columns) * VL;
    }
  }
}
