// Pooling, elementwise work and transposes.

// Taps [first, last) of a window that lie inside the map.
inline void window(int64_t start, int64_t kernel, int64_t dilation, int64_t size, int64_t* first,
                   int64_t* last) {
  // A division takes as long as pooling some vectors.
  const auto taps = [=](int64_t n) { return dilation == 1 ? n : (n + dilation - 1) / dilation; };
  *first = start >= 0 ? 0 : imin(kernel, taps(-start));
  *last = start >= size ? 0 : imin(kernel, taps(size - start));
  *last = imax(*first, *last);
}

inline float divisor(const PoolArgs& p, int64_t oy, int64_t ox, int64_t inside) {
  if (p.divisor_override) return static_cast<float>(p.divisor_override);
  if (!p.count_include_pad) return static_cast<float>(inside);
  // Padding counts, the overhang that ceil_mode adds does not.
  const int64_t y = oy * p.stride_h - p.pad_h, x = ox * p.stride_w - p.pad_w;
  return static_cast<float>((imin(y + p.kernel_h, p.height + p.pad_h) - y) *
                            (imin(x + p.kernel_w, p.width + p.pad_w) - x));
}

// The larger of two; NaN wins, as in torch.
inline float larger(float a, float b) { return b > a || b != b ? b : a; }
#if FINEPRUNING_MASKS && FINEPRUNING_VECTOR_FLOATS == 16
inline V larger(V a, V b) {
  const __m512 first = reinterpret_cast<__m512>(a), second = reinterpret_cast<__m512>(b);
  const __m512 most = _mm512_max_ps(first, second);  // the second where either is NaN
  return reinterpret_cast<V>(_mm512_mask_mov_ps(most, _mm512_cmp_ps_mask(first, first, _CMP_UNORD_Q), first));
}
#elif FINEPRUNING_MASKS
inline V larger(V a, V b) {
  const __m256 first = reinterpret_cast<__m256>(a), second = reinterpret_cast<__m256>(b);
  const __m256 most = _mm256_max_ps(first, second);
  return reinterpret_cast<V>(_mm256_mask_mov_ps(most, _mm256_cmp_ps_mask(first, first, _CMP_UNORD_Q), first));
}
#else
inline V larger(V a, V b) { return ((b > a) | (b != b)) ? b : a; }
#endif

template <bool MAXIMUM>
inline V pooled(V a, V b) {
  if constexpr (MAXIMUM)
    return larger(a, b);
  else
    return a + b;
}

// `rows` x `columns` vectors combined, which lie so many floats apart.
template <bool MAXIMUM>
inline __attribute__((always_inline)) V pool_window(const float* x, int64_t rows, int64_t columns,
                                                    int64_t row_step, int64_t column_step) {
  V result = splat(MAXIMUM ? -__builtin_inff() : 0.0f);
  for (int64_t r = 0; r < rows; ++r, x += row_step) {
    V row = load(x);
    for (int64_t c = 1; c < columns; ++c) row = pooled<MAXIMUM>(row, load(x + c * column_step));
    result = pooled<MAXIMUM>(result, row);
  }
  return result;
}

template <bool MAXIMUM>
inline void pool_lanes_rows(const float* x, float* y, const PoolArgs& p) {
  const int64_t row_step = p.dilation_h * p.width * VL, column_step = p.dilation_w * VL;
  for (int64_t oy = p.first; oy < p.first + p.rows; ++oy) {
    const int64_t iy = oy * p.stride_h - p.pad_h;
    int64_t y0, y1;
    window(iy, p.kernel_h, p.dilation_h, p.height, &y0, &y1);
    const float* const row = x + (iy + y0 * p.dilation_h) * p.width * VL;
    for (int64_t ox = 0; ox < p.out_width; ++ox, y += VL) {
      const int64_t ix = ox * p.stride_w - p.pad_w;
      int64_t x0, x1;
      window(ix, p.kernel_w, p.dilation_w, p.width, &x0, &x1);
      const float* const from = row + (ix + x0 * p.dilation_w) * VL;
      V result;
      if (x0 == x1)
        result = splat(MAXIMUM ? -__builtin_inff() : 0.0f);
      else if (y1 - y0 == 3 && x1 - x0 == 3)  // unrolled
        result = pool_window<MAXIMUM>(from, 3, 3, row_step, column_step);
      else
        result = pool_window<MAXIMUM>(from, y1 - y0, x1 - x0, row_step, column_step);
      if (!MAXIMUM) result *= splat(1.0f / divisor(p, oy, ox, (y1 - y0) * (x1 - x0)));
      store(y, result);
    }
  }
}

void pool_lanes(const float* x, float* y, const PoolArgs& p) {
  p.maximum ? pool_lanes_rows<true>(x, y, p) : pool_lanes_rows<false>(x, y, p);
}

// The rows of a plane. Those of one band are found without a division.
class PlaneRows {
 public:
  PlaneRows(const float* x, const PoolArgs& p) : p_(p), x_(x), base_(x), begin_(0), end_(p.band_rows) {}
  bool near(int64_t y) const { return y >= begin_ && y < end_; }  // in the band last asked for
  const float* at(int64_t y) {
    if (!near(y)) {
      const int64_t band = y / p_.band_rows;
      begin_ = band * p_.band_rows;
      end_ = begin_ + p_.band_rows;
      base_ = x_ + band * p_.band - begin_ * p_.width;
    }
    return base_ + y * p_.width;
  }

 private:
  const PoolArgs& p_;
  const float *x_, *base_;
  int64_t begin_, end_;
};

// The rows of a window combined into one.
template <bool MAXIMUM>
inline void pool_rows(PlaneRows& plane, const PoolArgs& p, int64_t oy, float* row) {
  const float nothing = MAXIMUM ? -__builtin_inff() : 0.0f;
  const int64_t iy = oy * p.stride_h - p.pad_h, w = p.width;
  int64_t y0, y1;
  window(iy, p.kernel_h, p.dilation_h, p.height, &y0, &y1);
  const int64_t top = iy + y0 * p.dilation_h, bottom = iy + (y1 - 1) * p.dilation_h;
  const float* const from = y0 < y1 ? plane.at(top) : nullptr;
  const bool one_band = plane.near(bottom);
  int64_t i = 0;
  if (one_band && y1 - y0 == 3)  // unrolled
    for (const int64_t step = p.dilation_h * w; i + VL <= w; i += VL) {
      const float* at = from + i;
      const V two = pooled<MAXIMUM>(loadu(at), loadu(at + step));
      storeu(row + i, pooled<MAXIMUM>(two, loadu(at + 2 * step)));
    }
  for (; i < w; i += VL) {
    const First lanes = first_lanes(imin(w - i, VL));
    V v = splat(nothing);
    for (int64_t ky = y0; ky < y1; ++ky) {
      const int64_t below = (ky - y0) * p.dilation_h;
      v = pooled<MAXIMUM>(v, load_first(lanes, (one_band ? from + below * w : plane.at(top + below)) + i));
    }
    store_first(lanes, row + i, v);
  }
}

// The columns of every window of a row that has margins.
inline void pool_columns(const float* scratch, const PoolArgs& p, int64_t oy, float* out) {
  const float nothing = p.maximum ? -__builtin_inff() : 0.0f;
  int64_t ox = 0;
#if FINEPRUNING_MASKED_LOADS
  if (p.maximum && p.stride_w <= 2)
    for (; ox < p.out_width; ox += VL) {
      const float* from = scratch + ox * p.stride_w;
      V v = splat(nothing);
      for (int64_t kx = 0; kx < p.kernel_w; ++kx, from += p.dilation_w)
        v = larger(v, p.stride_w == 1 ? loadu(from) : even_lanes(loadu(from), loadu(from + VL)));
      store_lanes(out + ox, v, imin(p.out_width - ox, VL));
    }
#endif
  for (; ox < p.out_width; ++ox) {
    const float* from = scratch + ox * p.stride_w;
    float v = nothing;
    for (int64_t kx = 0; kx < p.kernel_w; ++kx)
      v = p.maximum ? larger(v, from[kx * p.dilation_w]) : v + from[kx * p.dilation_w];
    if (!p.maximum) {
      int64_t y0, y1, x0, x1;
      window(oy * p.stride_h - p.pad_h, p.kernel_h, p.dilation_h, p.height, &y0, &y1);
      window(ox * p.stride_w - p.pad_w, p.kernel_w, p.dilation_w, p.width, &x0, &x1);
      v /= divisor(p, oy, ox, (y1 - y0) * (x1 - x0));
    }
    out[ox] = v;
  }
}

// A window that is the whole plane.
inline float pool_plane(const float* x, const PoolArgs& p) {
  const float nothing = p.maximum ? -__builtin_inff() : 0.0f;
  V some = splat(nothing);
  float result = nothing;
  for (int64_t y = 0; y < p.height; y += p.band_rows, x += p.band) {
    const int64_t n = imin(p.band_rows, p.height - y) * p.width;
    int64_t i = 0;
    for (; i + VL <= n; i += VL) some = p.maximum ? larger(some, loadu(x + i)) : some + loadu(x + i);
    for (; i < n; ++i) result = p.maximum ? larger(result, x[i]) : result + x[i];
  }
  for (int l = 0; l < VL; ++l) result = p.maximum ? larger(result, some[l]) : result + some[l];
  return p.maximum ? result : result / divisor(p, 0, 0, p.height * p.width);
}

#if FINEPRUNING_MASKED_LOADS
// Windows of one position: every STEP-th of a row.
template <int STEP>
inline void take_positions(const float* x, float* y, const PoolArgs& p) {
  // One vector more takes what whole ones leave of a row.
  const int64_t whole = p.width / STEP / VL * VL, left = p.out_width - whole;
  const Take<STEP> all(0, STEP * VL, VL), rest(whole * STEP, p.width, left);
  const First lanes = first_lanes(left);
  PlaneRows plane(x, p);
  for (int64_t oy = p.first; oy < p.first + p.rows; ++oy, y += p.out_width) {
    const float* row = plane.at(oy * p.stride_h);
    for (int64_t i = 0; i < whole; i += VL) storeu(y + i, all.from(row + i * STEP));
    if (left > 0) store_first(lanes, y + whole, rest.from(row + whole * STEP));
  }
}
#endif

// Rows [p.first, p.first + p.rows), to `y`. First the rows of some windows, vector by vector, then their
// columns: read back at once, a row would wait for its own stores.
void pool(const float* x, float* y, const PoolArgs& p, float* scratch) {
  const bool whole = p.kernel_h == p.height && p.kernel_w == p.width && p.pad_h == 0 && p.pad_w == 0 &&
                     p.dilation_h == 1 && p.dilation_w == 1;
  if (whole) {
    *y = pool_plane(x, p);
    return;
  }
  if (p.maximum && p.kernel_h == 1 && p.kernel_w == 1 && p.pad_h == 0 && p.pad_w == 0) {
#if FINEPRUNING_MASKED_LOADS
    if (p.stride_w == 2) return take_positions<2>(x, y, p);
#endif
    PlaneRows plane(x, p);
    for (int64_t oy = p.first; oy < p.first + p.rows; ++oy, y += p.out_width)
      copy_run(y, plane.at(oy * p.stride_h), 0, p.stride_w, p.out_width, p.width, false);
    return;
  }
  const int64_t floats = pool_row_floats(p);
  // The margins; what lies between is written before it is read.
  const float nothing = p.maximum ? -__builtin_inff() : 0.0f;
  for (int64_t r = 0; r < imin(kPoolRows, p.rows); ++r) {
    for (int64_t i = 0; i < p.pad_w; ++i) scratch[r * floats + i] = nothing;
    for (int64_t i = p.pad_w + p.width; i < floats; ++i) scratch[r * floats + i] = nothing;
  }
  PlaneRows plane(x, p);
  for (int64_t done = 0; done < p.rows; done += kPoolRows) {
    const int64_t count = imin(p.rows - done, kPoolRows), oy = p.first + done;
    for (int64_t r = 0; r < count; ++r) {
      float* const row = scratch + r * floats + p.pad_w;
      p.maximum ? pool_rows<true>(plane, p, oy + r, row) : pool_rows<false>(plane, p, oy + r, row);
    }
    for (int64_t r = 0; r < count; ++r)
      pool_columns(scratch + r * floats, p, oy + r, y + (done + r) * p.out_width);
  }
}

inline float exponential(float x) {
  // Cody-Waite reduction to [-ln 2 / 2, ln 2 / 2], then a polynomial (Cephes expf): 2 ulp.
  if (x != x) return x;
  x = x > 88.0f ? 88.0f : x < -87.0f ? -87.0f : x;
  const float n = static_cast<float>(static_cast<int>(x * 1.44269504088896341f + (x < 0 ? -0.5f : 0.5f)));
  const float r = x - n * 0.693359375f + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
  float power;
  memcpy(&power, &bits, sizeof power);
  return p * power;
}

inline float gelu(float x) { return 0.5f * x * (1.0f + __builtin_erff(x * 0.70710678118654752f)); }

template <Activation A>
inline float activate(float x) {
  if constexpr (A == Activation::kRelu) return x < 0.0f ? 0.0f : x;
  if constexpr (A == Activation::kRelu6) return x < 0.0f ? 0.0f : x > 6.0f ? 6.0f : x;
  if constexpr (A == Activation::kHardswish || A == Activation::kHardsigmoid) {
    const float gate = (x + 3.0f < 0.0f ? 0.0f : x + 3.0f > 6.0f ? 6.0f : x + 3.0f) * (1.0f / 6.0f);
    return A == Activation::kHardswish ? x * gate : gate;
  }
  if constexpr (A == Activation::kSigmoid) return 1.0f / (1.0f + exponential(-x));
  // Below -88 the limit of the exponential would leave a share of x.
  if constexpr (A == Activation::kSilu) return x < -88.0f ? 0.0f : x / (1.0f + exponential(-x));
  if constexpr (A == Activation::kGelu) return gelu(x);
  return x;
}

template <class F>
inline void with_activation(Activation activation, F&& run) {
  switch (activation) {
    case Activation::kNone:
      return run([](float v) { return v; });
    case Activation::kRelu:
      return run([](float v) { return activate<Activation::kRelu>(v); });
    case Activation::kRelu6:
      return run([](float v) { return activate<Activation::kRelu6>(v); });
    case Activation::kHardswish:
      return run([](float v) { return activate<Activation::kHardswish>(v); });
    case Activation::kHardsigmoid:
      return run([](float v) { return activate<Activation::kHardsigmoid>(v); });
    case Activation::kSilu:
      return run([](float v) { return activate<Activation::kSilu>(v); });
    case Activation::kSigmoid:
      return run([](float v) { return activate<Activation::kSigmoid>(v); });
    case Activation::kGelu:
      return run([](float v) { return activate<Activation::kGelu>(v); });
  }
}

void elementwise(const float* a, const float* b, float* y, int64_t n, Binary op, Activation activation) {
  with_activation(activation, [=](auto f) {
    if (b == nullptr)
      for (int64_t i = 0; i < n; ++i) y[i] = f(a[i]);
    else if (op == Binary::kAdd)
      for (int64_t i = 0; i < n; ++i) y[i] = f(a[i] + b[i]);
    else
      for (int64_t i = 0; i < n; ++i) y[i] = f(a[i] * b[i]);
  });
}

void broadcast(const float* a, const float* b, float* y, int64_t channels, int64_t n, int lanes, Binary op,
               Activation activation) {
  with_activation(activation, [=](auto f) {
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t i = 0; i < n; ++i)
        for (int l = 0; l < lanes; ++l) {
          const int64_t at = (c * n + i) * lanes + l;
          const float w = b[c * lanes + l];
          y[at] = f(op == Binary::kAdd ? a[at] + w : a[at] * w);
        }
  });
}

// 4 x 4 floats, transposed in registers: row r of `x` is x + r * pitch.
inline void transpose4(const float* x, int64_t x_pitch, float* y, int64_t y_pitch) {
  typedef float Quad __attribute__((vector_size(16)));
  typedef float QuadU __attribute__((vector_size(16), aligned(4), may_alias));
  const Quad a = *reinterpret_cast<const QuadU*>(x), b = *reinterpret_cast<const QuadU*>(x + x_pitch);
  const Quad c = *reinterpret_cast<const QuadU*>(x + 2 * x_pitch);
  const Quad d = *reinterpret_cast<const QuadU*>(x + 3 * x_pitch);
  const Quad ab0 = __builtin_shufflevector(a, b, 0, 4, 1, 5), ab1 = __builtin_shufflevector(a, b, 2, 6, 3, 7);
  const Quad cd0 = __builtin_shufflevector(c, d, 0, 4, 1, 5), cd1 = __builtin_shufflevector(c, d, 2, 6, 3, 7);
  *reinterpret_cast<QuadU*>(y) = __builtin_shufflevector(ab0, cd0, 0, 1, 4, 5);
  *reinterpret_cast<QuadU*>(y + y_pitch) = __builtin_shufflevector(ab0, cd0, 2, 3, 6, 7);
  *reinterpret_cast<QuadU*>(y + 2 * y_pitch) = __builtin_shufflevector(ab1, cd1, 0, 1, 4, 5);
  *reinterpret_cast<QuadU*>(y + 3 * y_pitch) = __builtin_shufflevector(ab1, cd1, 2, 3, 6, 7);
}

// Images often lie a multiple of a page apart, where the first-level cache keeps fewer lines than there are
// images: what a line of one of them holds is used at once.
void to_lanes(const float* x, float* y, int64_t images, int64_t pitch, int64_t n) {
  const int64_t quads = images / 4 * 4;
  int64_t i = 0;
  for (; i + kLineFloats <= n; i += kLineFloats) {
    for (int64_t l = 0; l < quads; l += 4)
      for (int64_t j = i; j < i + kLineFloats; j += 4)
        transpose4(x + l * pitch + j, pitch, y + j * VL + l, VL);
    for (int64_t l = quads; l < VL; ++l)
      for (int64_t j = i; j < i + kLineFloats; ++j) y[j * VL + l] = l < images ? x[l * pitch + j] : 0.0f;
  }
  for (; i < n; ++i)
    for (int64_t l = 0; l < VL; ++l) y[i * VL + l] = l < images ? x[l * pitch + i] : 0.0f;
}

void from_lanes(const float* x, float* y, int64_t images, int64_t pitch, int64_t n) {
  const int64_t quads = images / 4 * 4;
  int64_t i = 0;
  for (; i + kLineFloats <= n; i += kLineFloats) {
    for (int64_t l = 0; l < quads; l += 4)
      for (int64_t j = i; j < i + kLineFloats; j += 4)
        transpose4(x + j * VL + l, VL, y + l * pitch + j, pitch);
    for (int64_t l = quads; l < images; ++l)
      for (int64_t j = i; j < i + kLineFloats; ++j) y[l * pitch + j] = x[j * VL + l];
  }
  for (; i < n; ++i)
    for (int64_t l = 0; l < images; ++l) y[l * pitch + i] = x[i * VL + l];
}
