// Packs one block of input for the tile kernels: every unit becomes a run of aligned vectors.

#if defined(__AVX512F__)
// Lanes l of 16 with 0 <= x + l < width and l < count.
inline __mmask16 lanes_inside(int64_t x, int64_t width, int64_t count) {
  const int64_t low = imin(imax(-x, 0), 16), high = imax(imin(imin(width - x, count), 16), low);
  return static_cast<__mmask16>((1u << high) - (1u << low));
}

// Every other one of 32 elements; the masks say which of the first and last 16 may be read.
inline __m512 take_even(__mmask16 low, __mmask16 high, const float* from) {
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  return _mm512_permutex2var_ps(_mm512_maskz_loadu_ps(low, from), even,
                                _mm512_maskz_loadu_ps(high, from + 16));
}

// Every fourth of 64 elements.
inline __m512 take_fourth(const __mmask16* inside, const float* from) {
  const __m512i fourth = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28);
  const __m512 low = _mm512_permutex2var_ps(_mm512_maskz_loadu_ps(inside[0], from), fourth,
                                            _mm512_maskz_loadu_ps(inside[1], from + 16));
  const __m512 high = _mm512_permutex2var_ps(_mm512_maskz_loadu_ps(inside[2], from + 32), fourth,
                                             _mm512_maskz_loadu_ps(inside[3], from + 48));
  return _mm512_mask_blend_ps(0xff00, low, high);
}

// 16 elements of a row from x on, `step` apart, zero outside [0, width) and from lane `count` on.
inline __m512 take16(const float* row, int64_t x, int64_t step, int64_t count, int64_t width) {
  if (step == 1) return _mm512_maskz_loadu_ps(lanes_inside(x, width, count), row + x);
  if (step == 2)
    return take_even(lanes_inside(x, width, 2 * count), lanes_inside(x + 16, width, 2 * count - 16), row + x);
  if (step == 4) {
    const __mmask16 inside[4] = {
        lanes_inside(x, width, 4 * count), lanes_inside(x + 16, width, 4 * count - 16),
        lanes_inside(x + 32, width, 4 * count - 32), lanes_inside(x + 48, width, 4 * count - 48)};
    return take_fourth(inside, row + x);
  }
  const int64_t low = x >= 0 ? 0 : imin((-x + step - 1) / step, 16);
  const int64_t high = imax(x >= width ? 0 : imin(imin((width - x + step - 1) / step, count), 16), low);
  const __m512i index =
      _mm512_mullo_epi32(_mm512_set1_epi32(static_cast<int>(step)),
                         _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
  return _mm512_mask_i32gather_ps(_mm512_setzero_ps(), static_cast<__mmask16>((1u << high) - (1u << low)),
                                  index, row + x, 4);
}

// out[i] = row[x + i * step] for i < count, zero outside the row. Writes whole vectors if `whole`.
inline void copy_run(float* out, const float* row, int64_t x, int64_t step, int64_t count, int64_t width,
                     bool whole) {
  int64_t i = 0;
  if (step == 1 && x >= 0)
    for (const int64_t inside = imin(count, width - x); i + 16 <= inside; i += 16)
      _mm512_storeu_ps(out + i, _mm512_loadu_ps(row + x + i));
  for (; i < count; i += 16) {
    const __m512 v = take16(row, x + i * step, step, count - i, width);
    if (whole || count - i >= 16)
      _mm512_storeu_ps(out + i, v);
    else
      _mm512_mask_storeu_ps(out + i, static_cast<__mmask16>((1u << (count - i)) - 1), v);
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

// Rows of one unit under kRows: row r is read at plane + (y + r * step_y) * width, columns from x on.
inline void copy_rows(const GatherArgs& g, float* out, const float* plane, int64_t y, int64_t x) {
  const int64_t row_floats = static_cast<int64_t>(g.unit_columns) * kLanes;
  const int64_t above = y >= 0 ? 0 : imin(g.unit_rows, (-y + g.stride_h - 1) / g.stride_h);
  const int64_t inside = y >= g.height ? 0 : (g.height - y + g.stride_h - 1) / g.stride_h;
  const int64_t below = imax(above, imin(g.unit_rows, inside));
  zero(out, above * row_floats);
  zero(out + below * row_floats, (g.unit_rows - below) * row_floats);
  const float* row = plane + (y + above * g.stride_h) * g.width;
  const int64_t pitch = g.stride_h * g.width;
  out += above * row_floats;
#if defined(__AVX512F__)
  // What lies inside the map is the same in every row: one mask a vector serves them all.
  if (g.stride_w == 1) {
    for (int64_t c = 0; c < row_floats; c += kLanes) {
      const __mmask16 mask = lanes_inside(x + c, g.width, kLanes);
      const float* from = row + x + c;
      float* to = out + c;
      for (int64_t r = above; r < below; ++r, from += pitch, to += row_floats)
        _mm512_store_ps(to, _mm512_maskz_loadu_ps(mask, from));
    }
    return;
  }
  if (g.stride_w == 2) {
    for (int64_t c = 0; c < row_floats; c += kLanes) {
      const int64_t at = x + 2 * c;
      const __mmask16 low = lanes_inside(at, g.width, kLanes), high = lanes_inside(at + 16, g.width, kLanes);
      const float* from = row + at;
      float* to = out + c;
      for (int64_t r = above; r < below; ++r, from += pitch, to += row_floats)
        _mm512_store_ps(to, take_even(low, high, from));
    }
    return;
  }
  if (g.stride_w == 4) {
    for (int64_t c = 0; c < row_floats; c += kLanes) {
      const int64_t at = x + 4 * c;
      __mmask16 inside[4];
      for (int q = 0; q < 4; ++q) inside[q] = lanes_inside(at + 16 * q, g.width, kLanes);
      const float* from = row + at;
      float* to = out + c;
      for (int64_t r = above; r < below; ++r, from += pitch, to += row_floats)
        _mm512_store_ps(to, take_fourth(inside, from));
    }
    return;
  }
#endif
  for (int64_t r = above; r < below; ++r, row += pitch, out += row_floats)
    copy_run(out, row, x, g.stride_w, row_floats, g.width, true);
}

// Rectangles of output positions, 16 neighbours of a row to a vector.
void gather_rows_block(const GatherArgs& g) {
  for (int64_t u = 0; u < g.count; ++u) {
    const Unit unit = g.units[u];
    copy_rows(g, g.out + u * g.unit_rows * g.unit_columns * kLanes,
              g.source + unit.channel * g.height * g.width, g.y * g.stride_h + unit.dy - g.pad_h,
              g.x * g.stride_w + unit.dx - g.pad_w);
  }
}

// Runs of the flattened output map, as one tap of the kernel reads them.
void gather_flat_block(const GatherArgs& g) {
  const int64_t positions = g.out_height * g.out_width;
  const int64_t unit_floats = static_cast<int64_t>(g.unit_columns) * kLanes;
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
#if defined(__AVX512F__)
  // A small map in one tile.
  const bool narrow = g.stride_h == 1 && g.stride_w == 1 && g.out_width <= 16 && g.x == 0 && end == positions;
#endif
  for (int64_t u = 0; u < g.count; ++u) {
    const Unit unit = g.units[u];
    const float* plane = g.source + unit.channel * g.height * g.width;
    float* const out = g.out + u * unit_floats;
    // Zeros first where the map ends inside the last vectors: a run below may then cover part of a vector.
    const int64_t whole = (end - g.x) / kLanes * kLanes;
    zero(out + whole, unit_floats - whole);
    const int64_t x = unit.dx - g.pad_w;
    int64_t oy = first_row, ox = first_column;
#if defined(__AVX512F__)
    if (narrow) {
      // One masked load and store a row; the masks are those of every row.
      const __mmask16 inside = lanes_inside(x, g.width, g.out_width);
      const __mmask16 all = static_cast<__mmask16>((1u << g.out_width) - 1);
      float* to = out;
      const float* row = plane + (unit.dy - g.pad_h) * g.width + x;
      for (int64_t y = unit.dy - g.pad_h; oy < g.out_height; ++oy, ++y, row += g.width, to += g.out_width)
        _mm512_mask_storeu_ps(to, all, _mm512_maskz_loadu_ps(y >= 0 && y < g.height ? inside : 0, row));
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

// Rectangles of output positions, 16 images to a vector.
void gather_lanes_block(const GatherArgs& g) {
  const int64_t plane_floats = g.height * g.width * kLanes;
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
    const int64_t step = g.stride_w * kLanes;
    for (int r = 0; r < g.unit_rows; ++r, y += g.stride_h) {
      const bool inside = y >= 0 && y < g.height;
      const int64_t begin = inside ? first : g.unit_columns, end = inside ? last : g.unit_columns;
      const int64_t at = (y * g.width + x) * kLanes;
      for (int64_t i = 0; i < begin * kLanes; i += VL) store(out + i, V{});
      for (int64_t i = begin; i < end; ++i) {
        if (next) __builtin_prefetch(next + at + i * step);
#pragma GCC unroll 4
        for (int h = 0; h < kParts; ++h)
          store(out + i * kLanes + h * VL, load(plane + at + i * step + h * VL));
      }
      for (int64_t i = end * kLanes; i < g.unit_columns * kLanes; i += VL) store(out + i, V{});
      out += static_cast<int64_t>(g.unit_columns) * kLanes;
    }
  }
}
