// The packed product at this level: tiles of GROUP rows of Ŵ by TILE rows of x, sums in registers.

struct Level {
  static constexpr int TILE = 3;

  static void decode(const Linear& a, void* out, int64_t begin, int64_t end) {
    if (a.table)
      decode4(static_cast<const uint8_t*>(a.codes), a.scale, a.table, out, a.type, a.block, begin, end);
    else
      decode8(static_cast<const int8_t*>(a.codes), a.scale, out, a.type, a.block, begin, end);
  }

  template <Type T>
  static void dots(const void* w, int64_t count, const void* x, int64_t m, int64_t rows, int64_t k, float* sums) {
    if (count == GROUP && rows == 3) return tile<T, GROUP, 3>(w, x, m, k, sums);
    if (count == GROUP && rows == 2) return tile<T, GROUP, 2>(w, x, m, k, sums);
    if (count == GROUP) return tile<T, GROUP, 1>(w, x, m, k, sums);
    for (int64_t i = 0; i < rows; i++)
      for (int64_t r = 0; r < count; r++) tile<T, 1, 1>(at<T>(w, r * k), x, m + i, k, sums + i * GROUP + r);
  }

  template <Type T>
  static const void* at(const void* p, int64_t i) {
    return static_cast<const char*>(p) + i * (T == F32 ? 4 : 2);
  }

  template <Type T, int R, int M>
  static void tile(const void* w, const void* x, int64_t m, int64_t k, float* sums) {
    __m512 acc[M][R];
    for (int i = 0; i < M; i++)
      for (int r = 0; r < R; r++) acc[i][r] = _mm512_setzero_ps();
    constexpr int64_t STEP = T == F32 ? 16 : 32;
    int64_t i = 0;
    for (; i + STEP <= k; i += STEP) step<T, R, M>(w, at<T>(x, m * k), i, k, acc, words(STEP));
    if (i < k) step<T, R, M>(w, at<T>(x, m * k), i, k, acc, words(k - i));
    for (int j = 0; j < M; j++)
      for (int r = 0; r < R; r++) sums[j * GROUP + r] = _mm512_reduce_add_ps(acc[j][r]);
  }

  template <Type T, int R, int M>
  static inline void step(const void* w, const void* x, int64_t i, int64_t k, __m512 (&acc)[M][R], __mmask32 in) {
    __m512i v[M];
#pragma GCC unroll 8
    for (int j = 0; j < M; j++) v[j] = part<T>(at<T>(x, j * k + i), in);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      __m512i u = part<T>(at<T>(w, r * k + i), in);
#pragma GCC unroll 8
      for (int j = 0; j < M; j++) acc[j][r] = product<T>(acc[j][r], u, v[j]);
    }
  }

  template <Type T>
  static inline __m512i part(const void* p, __mmask32 in) {
    return T == F32 ? _mm512_maskz_loadu_epi32(__mmask16(in), p) : _mm512_maskz_loadu_epi16(in, p);
  }

  template <Type T>
  static inline __m512 product(__m512 acc, __m512i u, __m512i v) {
    if (T == F32) return _mm512_fmadd_ps(_mm512_castsi512_ps(u), _mm512_castsi512_ps(v), acc);
    return _mm512_dpbf16_ps(acc, (__m512bh)u, (__m512bh)v);
  }
};

void linear(const Linear& a, int64_t first, int64_t last, void* scratch) {
  linear_groups<Level>(a, first, last, scratch);
}
