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

#if FINEPRUNING_MASKED_LOADS
// Rows `pitch` apart, of elements STEP apart. What lies inside the map is the same in every row.
template <int STEP>
inline void take_rows(float* out, int64_t row_floats, const float* row, int64_t pitch, int64_t rows,
                      int64_t x, int64_t width) {
  for (int64_t c = 0; c < row_floats; c += VL) {
    const Take<STEP> take(x + STEP * c, width, VL);
    const float* from = row + x + STEP * c;
    float* to = out + c;
    for (int64_t r = 0; r < rows; ++r, from += pitch, to += row_floats) store(to, take.from(from));
  }
}
#endif

// Rows of one unit under kRows: row r is read at plane + (y + r * step_y) * width, columns from x on.
inline void copy_rows(const GatherArgs& g, float* out, const float* plane, int64_t y, int64_t x) {
  const int64_t row_floats = static_cast<int64_t>(g.unit_columns) * VL;
  const int64_t above = y >= 0 ? 0 : imin(g.unit_rows, (-y + g.stride_h - 1) / g.stride_h);
  const int64_t inside = y >= g.height ? 0 : (g.height - y + g.stride_h - 1) / g.stride_h;
  const int64_t below = imax(above, imin(g.unit_rows, inside));
  zero(out, above * row_floats);
  zero(out + below * row_floats, (g.unit_rows - below) * row_floats);
  const float* row = plane + (y + above * g.stride_h) * g.width;
  const int64_t pitch = g.stride_h * g.width, rows = below - above;
  out += above * row_floats;
#if FINEPRUNING_MASKED_LOADS
  if (g.stride_w == 1) return take_rows<1>(out, row_floats, row, pitch, rows, x, g.width);
  if (g.stride_w == 2) return take_rows<2>(out, row_floats, row, pitch, rows, x, g.width);
  if (g.stride_w == 4) return take_rows<4>(out, row_floats, row, pitch, rows, x, g.width);
#endif
  for (int64_t r = 0; r < rows; ++r, row += pitch, out += row_floats)
    copy_run(out, row, x, g.stride_w, row_floats, g.width, true);
}

// Rectangles of output positions, neighbours of a row side by side in a vector.
void gather_rows_block(const GatherArgs& g) {
  for (int64_t u = 0; u < g.count; ++u) {
    const Unit unit = g.units[u];
    copy_rows(g, g.out + u * g.unit_rows * g.unit_columns * VL, g.source + unit.channel * g.height * g.width,
              g.y * g.stride_h + unit.dy - g.pad_h, g.x * g.stride_w + unit.dx - g.pad_w);
  }
}

#if FINEPRUNING_MASKED_LOADS
// All rows of a map of at most VL columns, back to back, as the tap at (y, x) reads them.
inline void copy_narrow(const GatherArgs& g, float* out, const float* plane, int64_t y, int64_t x) {
  for (int64_t c = 0; c < g.out_width; c += VL) {
    const Inside columns = lanes_inside(x + c, g.width, g.out_width - c), none = lanes_between(0, 0);
    const First lanes = first_lanes(imin(g.out_width - c, VL));
    const float* row = plane + y * g.width + x + c;
    float* to = out + c;
    for (int64_t r = y; r < y + g.out_height; ++r, row += g.width, to += g.out_width)
      store_first(lanes, to, load_inside(r >= 0 && r < g.height ? columns : none, row));
  }
}
#endif

// Runs of the flattened output map, as one tap of the kernel reads them.
void gather_flat_block(const GatherArgs& g) {
  const int64_t positions = g.out_height * g.out_width;
  const int64_t unit_floats = static_cast<int64_t>(g.unit_columns) * VL;
  const int64_t end = imin(g.x + unit_floats, positions);
  const bool pointwise = g.stride_h == 1 && g.stride_w == 1 && g.height * g.width == positions &&
                         g.pad_h == 0 && g.pad_w == 0 && g.width == g.out_width;
  if (pointwise) {
    for (int64_t u = 0; u < g.count; ++u)
      copy_run(g.out + u * unit_floats, g.source + g.units[u].channel * positions + g.x, 0, 1, unit_floats,
               end - g.x, true);
    return;
  }
  const int64_t first_row = g.x / g.out_width, first_column = g.x % g.out_width;
#if FINEPRUNING_MASKED_LOADS
  // A small map in one tile.
  const bool narrow = g.stride_h == 1 && g.stride_w == 1 && g.out_width <= VL && g.x == 0 && end == positions;
#endif
  for (int64_t u = 0; u < g.count; ++u) {
    const Unit unit = g.units[u];
    const float* plane = g.source + unit.channel * g.height * g.width;
    float* const out = g.out + u * unit_floats;
    // Zeros first where the map ends inside the last vectors: a run below may then cover part of a vector.
    const int64_t whole = (end - g.x) / VL * VL;
    zero(out + whole, unit_floats - whole);
    const int64_t x = unit.dx - g.pad_w;
    int64_t oy = first_row, ox = first_column;
#if FINEPRUNING_MASKED_LOADS
    if (narrow) {
      copy_narrow(g, out, plane, unit.dy - g.pad_h, x);
      continue;
    }
#endif
    for (int64_t q = g.x; q < end; ++oy, ox = 0) {
      const int64_t run = imin(g.out_width - ox, end - q), y = oy * g.stride_h + unit.dy - g.pad_h;
      // A row outside the map is a row of width 0.
      const bool inside = y >= 0 && y < g.height;
      copy_run(out + q - g.x, inside ? plane + y * g.width : plane, ox * g.stride_w + x, g.stride_w, run,
               inside ? g.width : 0, false);
      q += run;
    }
  }
}

// Rectangles of output positions, images side by side in a vector.
void gather_lanes_block(const GatherArgs& g) {
  const int64_t plane_floats = g.height * g.width * VL;
  float* out = g.out;
  for (int64_t u = 0; u < g.count; ++u) {
    const Unit unit = g.units[u];
    const float* plane = g.source + unit.channel * plane_floats;
    // The planes of neighbouring channels lie far apart, where no hardware prefetcher looks.
    const float* next =
        u + kAhead < g.count ? g.source + g.units[u + kAhead].channel * plane_floats : nullptr;
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
