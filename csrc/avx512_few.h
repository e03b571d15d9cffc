// Few rows of x by packed weights whose codes are never written out: Ŵ passes through registers alone. Looking up and
// adding up use different ports, so that decoding once for every few rows costs next to nothing.

// 128 codes as bfloat16, in quarters: codes 4 i + s of the 32 words in w[s]. `values` is the table times the scale of the
// first 64 codes, and of the second 64 behind it.
inline void quarters(__m512i codes, __m512i values, __m512i* w) {
  const __m512i nibbles = _mm512_set1_epi16(0x0f0f);
  const __m512i second = _mm512_mask_set1_epi16(_mm512_setzero_si512(), 0xffff0000u, 0x1010);
  __m512i high = _mm512_ternarylogic_epi64(_mm512_srli_epi16(codes, 4), nibbles, second, 0xea);  // a & b | c
  __m512i low = _mm512_ternarylogic_epi64(codes, nibbles, second, 0xea);
  w[0] = _mm512_permutexvar_epi16(high, values);
  w[1] = _mm512_permutexvar_epi16(low, values);
  w[2] = _mm512_permutexvar_epi16(_mm512_srli_epi16(high, 8), values);
  w[3] = _mm512_permutexvar_epi16(_mm512_srli_epi16(low, 8), values);
}

// R rows of Ŵ by rows m .. m + M of x, which `prepare` laid out; 32 S codes at a time, S = 4 in quarters, S = 2 in halves.
template <int R, int M, int S>
void few(const Linear& a, int64_t n, int64_t m) {
  int64_t wide = S == 4 ? (a.k + 127) / 128 * 128 : a.k;
  int64_t ahead = (a.k > 2048 ? R : 2 * R) * a.k;  // in bytes: two or four times R rows
  const uint8_t* codes = static_cast<const uint8_t*>(a.codes) + n * a.k / 2;
  const uint16_t* x = static_cast<const uint16_t*>(a.x) + m * wide;
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
  auto scaled = [&](int r) __attribute__((always_inline)) {
    __m512 v = _mm512_mul_ps(table, _mm512_set1_ps(*scale[r]));
    left[r] -= 64;
    if (!left[r]) left[r] = a.block, scale[r]++;
    return v;
  };
  auto step = [&](int64_t i, auto half) __attribute__((always_inline)) {
    __m512i w[R][S];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      const uint8_t* q = codes + (r * a.k + i) / 2;
      if (S == 4 || !(i & 64)) _mm_prefetch(reinterpret_cast<const char*>(q + ahead), _MM_HINT_T1);
      __m512 one = scaled(r), two = half || S == 2 ? one : scaled(r);
      __m512i values = (__m512i)_mm512_cvtne2ps_pbh(two, one);
      __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(q));
      if (S == 2)
        halves(low, values, w[r]);
      else
        quarters(half ? _mm512_zextsi256_si512(low) : _mm512_loadu_si512(q), values, w[r]);
    }
#pragma GCC unroll 8
    for (int j = 0; j < M; j++)
#pragma GCC unroll 8
      for (int s = 0; s < S; s++) {
        __m512bh u = (__m512bh)_mm512_loadu_si512(x + j * wide + i + 32 * s);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) acc[r][j] = _mm512_dpbf16_ps(acc[r][j], (__m512bh)w[r][s], u);
      }
  };
  int64_t i = 0;
  for (; i + 32 * S <= a.k; i += 32 * S) step(i, std::false_type());
  if (i < a.k) step(i, std::true_type());
#pragma GCC unroll 8
  for (int j = 0; j < M; j++) {
    float sums[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) sums[r] = _mm512_reduce_add_ps(acc[r][j]);
    finish<BF16>(a, m + j, n, R, sums);
  }
}

// R rows of Ŵ by all rows of x, at most four of these at a time: so many sums leave no registers for quarters.
template <int R>
void few_rows(const Linear& a, int64_t n) {
  if (a.rows == 1) return few<R, 1, 4>(a, n, 0);
  if (a.rows == 2) return few<R, 2, 4>(a, n, 0);
  if (a.rows == 3) return few<R, 3, 4>(a, n, 0);
  for (int64_t m = 0; m < a.rows;) {
    int64_t rest = a.rows - m, tiles = (rest + 3) / 4, rows = (rest + tiles - 1) / tiles;
    if (rows == 4) few<R, 4, 2>(a, n, m);
    if (rows == 3) few<R, 3, 2>(a, n, m);
    if (rows == 2) few<R, 2, 2>(a, n, m);
    m += rows;
  }
}

void few_columns(const Linear& a, int64_t first, int64_t last) {
  int64_t n = first;
  const char* start = static_cast<const char*>(a.codes) + first * a.k / 2;
  for (int64_t i = 0; i < 8192; i += 64) _mm_prefetch(start + i, _MM_HINT_T1);  // lines that no row before asks for
  for (; n + 4 <= last; n += 4) few_rows<4>(a, n);
  for (; n < last; n++) few_rows<1>(a, n);
}
