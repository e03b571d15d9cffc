// Few rows of x by packed weights whose codes are never written out: Ŵ passes through registers alone. Looking up and
// adding up use different ports, so that decoding once for every few rows costs next to nothing.

// R rows of Ŵ by rows m .. m + M of x, which `prepare` laid out.
template <int R, int M>
void few(const Linear& a, int64_t n, int64_t m) {
  const uint8_t* codes = static_cast<const uint8_t*>(a.codes) + n * a.k / 2;
  const uint16_t* x = static_cast<const uint16_t*>(a.x) + m * a.k;
  __m512 table = _mm512_loadu_ps(a.table), acc[R][M];
  const float* scale[R];
  int64_t left[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; r++) {
    int64_t at = (n + r) * a.k;
    scale[r] = a.scale + at / a.block;
    left[r] = a.block - at % a.block;
#pragma GCC unroll 8
    for (int j = 0; j < M; j++) acc[r][j] = begin(a, m + j, n + r);
  }
  for (int64_t i = 0; i < a.k; i += 64) {
    __m512i even[R], odd[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      const uint8_t* q = codes + (r * a.k + i) / 2;
      if (!(i & 64)) _mm_prefetch(reinterpret_cast<const char*>(q + R * a.k), _MM_HINT_T1);  // a line, 2 R rows on
      split(q, table, *scale[r], even[r], odd[r]);
      left[r] -= 64;
      if (!left[r]) left[r] = a.block, scale[r]++;
    }
#pragma GCC unroll 8
    for (int j = 0; j < M; j++) {
      __m512bh u = (__m512bh)_mm512_loadu_si512(x + j * a.k + i), v = (__m512bh)_mm512_loadu_si512(x + j * a.k + i + 32);
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) acc[r][j] = _mm512_dpbf16_ps(acc[r][j], (__m512bh)even[r], u);
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) acc[r][j] = _mm512_dpbf16_ps(acc[r][j], (__m512bh)odd[r], v);
    }
  }
#pragma GCC unroll 8
  for (int j = 0; j < M; j++) {
    float sums[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) sums[r] = _mm512_reduce_add_ps(acc[r][j]);
    finish<BF16>(a, m + j, n, R, sums);
  }
}

// R rows of Ŵ by all rows of x, at most four of these at a time.
template <int R>
void few_rows(const Linear& a, int64_t n) {
  for (int64_t m = 0; m < a.rows;) {
    int64_t rest = a.rows - m, tiles = (rest + 3) / 4, rows = (rest + tiles - 1) / tiles;
    if (rows == 4) few<R, 4>(a, n, m);
    if (rows == 3) few<R, 3>(a, n, m);
    if (rows == 2) few<R, 2>(a, n, m);
    if (rows == 1) few<R, 1>(a, n, m);
    m += rows;
  }
}

void few_columns(const Linear& a, int64_t first, int64_t last) {
  int64_t n = first;
  for (; n + 4 <= last; n += 4) few_rows<4>(a, n);
  for (; n < last; n++) few_rows<1>(a, n);
}
