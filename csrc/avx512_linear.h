// The packed product at this level: tiles of GROUP rows of Ŵ by TILE rows of x, sums in registers.
//
// bfloat16 over whole blocks takes a shorter way: both operands keep, in every 64 elements, the even ones before the odd
// ones (for few rows every fourth of 128), so that a nibble is looked up where it lies. x is laid out so once; few rows of
// x need no scratch for Ŵ at all. The processor rounds there, which makes denormals of Ŵ zero.

inline __m512 begin(const Linear& a, int64_t m, int64_t n);

struct Level {
  static constexpr int TILE = 3;

  static void low(const Linear& a, int64_t m, int64_t n, int64_t count, float* sums) {
    if (count < GROUP) return add_low(a, m, n, count, sums);
    __m512 v[GROUP];
    for (int r = 0; r < GROUP && a.rank; r++) v[r] = begin(a, m, n + r);
    if (a.rank)
      _mm256_storeu_ps(sums, _mm256_add_ps(_mm256_loadu_ps(sums), sum8(v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7])));
  }

  static void decode(const Linear& a, void* out, int64_t begin, int64_t end) {
    if (a.table)
      decode4(static_cast<const uint8_t*>(a.codes), a.scale, a.table, out, a.type, a.block, begin, end);
    else if (a.type == BF16 && a.k % 32 == 0 && a.block % 32 == 0)
      decode8_whole(a, static_cast<uint16_t*>(out), begin, end);
    else
      decode8(static_cast<const int8_t*>(a.codes), a.scale, out, a.type, a.block, begin, end);
  }

  static void decode8_whole(const Linear& a, uint16_t* out, int64_t begin, int64_t end) {
    const int8_t* codes = static_cast<const int8_t*>(a.codes);
    for (int64_t i = begin, b = begin / a.block; i < end; b++) {
      __m512 scale = _mm512_set1_ps(a.scale[b]);
      for (int64_t stop = least(end, (b + 1) * a.block); i < stop; i += 32) {
        __m512 low = _mm512_mul_ps(sixteen(codes + i), scale), high = _mm512_mul_ps(sixteen(codes + i + 16), scale);
        _mm512_storeu_si512(out + (i - begin), (__m512i)_mm512_cvtne2ps_pbh(high, low));
      }
    }
  }

  static inline __m512 sixteen(const int8_t* codes) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes))));
  }

  template <Type T>
  static void dots(const void* w, int64_t count, const void* x, int64_t m, int64_t rows, int64_t k, bool ahead,
                   float* sums) {
    x = at<T>(x, m * k);
    bool straight = ahead && rows == 1;  // one row of x: memory is read fastest as it lies
    if (count == GROUP && rows == 3) return tile<T, 3>(w, x, k, ahead, sums);
    if (count == GROUP && rows == 2) return tile<T, 2>(w, x, k, ahead, sums);
    if (count == GROUP && !straight) return tile<T, 1>(w, x, k, ahead, sums);
    for (int64_t i = 0; i < rows; i++)
      for (int64_t r = 0; r < count; r++) sums[i * GROUP + r] = dot<T>(at<T>(w, r * k), at<T>(x, i * k), k, ahead);
  }

  template <Type T>
  static const void* at(const void* p, int64_t i) {
    return static_cast<const char*>(p) + i * (T == F32 ? 4 : 2);
  }

  template <Type T>
  static constexpr int64_t step = T == F32 ? 16 : 32;

  template <Type T>
  static inline __m512i part(const void* p, __mmask32 in) {
    return T == F32 ? _mm512_maskz_loadu_epi32(__mmask16(in), p) : _mm512_maskz_loadu_epi16(in, p);
  }

  template <Type T>
  static inline __m512 product(__m512 acc, __m512i u, __m512i v) {
    if (T == F32) return _mm512_fmadd_ps(_mm512_castsi512_ps(u), _mm512_castsi512_ps(v), acc);
    return _mm512_dpbf16_ps(acc, (__m512bh)u, (__m512bh)v);
  }

  // One row in four sums. `ahead`: w goes on in memory behind it.
  template <Type T>
  static float dot(const void* w, const void* x, int64_t k, bool ahead) {
    __m512 acc[4] = {};
    int64_t i = 0;
    for (; i + 4 * step<T> <= k; i += 4 * step<T>)
#pragma GCC unroll 4
      for (int j = 0; j < 4; j++) {
        const void *u = at<T>(w, i + j * step<T>), *v = at<T>(x, i + j * step<T>);
        if (ahead) _mm_prefetch(static_cast<const char*>(u) + 2048, _MM_HINT_T1);
        acc[j] = product<T>(acc[j], _mm512_loadu_si512(u), _mm512_loadu_si512(v));
      }
    for (; i < k; i += step<T>) {
      __mmask32 in = words(least(step<T>, k - i));
      acc[0] = product<T>(acc[0], part<T>(at<T>(w, i), in), part<T>(at<T>(x, i), in));
    }
    return _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(acc[0], acc[1]), _mm512_add_ps(acc[2], acc[3])));
  }

  // Every index of `acc` is a constant once unrolled; only then does it live in registers.
  template <Type T, int M>
  static void tile(const void* w, const void* x, int64_t k, bool ahead, float* sums) {
    __m512 acc[M][GROUP];
#pragma GCC unroll 8
    for (int j = 0; j < M; j++)
#pragma GCC unroll 8
      for (int r = 0; r < GROUP; r++) acc[j][r] = _mm512_setzero_ps();
    for (int64_t i = 0; i < k; i += step<T>) {
      __mmask32 in = words(least(step<T>, k - i));
      __m512i v[M];
#pragma GCC unroll 8
      for (int j = 0; j < M; j++) v[j] = part<T>(at<T>(x, j * k + i), in);
#pragma GCC unroll 8
      for (int r = 0; r < GROUP; r++) {
        const void* here = at<T>(w, r * k + i);
        if (ahead) _mm_prefetch(static_cast<const char*>(here) + GROUP * k * 2, _MM_HINT_T1);
        __m512i u = part<T>(here, in);
#pragma GCC unroll 8
        for (int j = 0; j < M; j++) acc[j][r] = product<T>(acc[j][r], u, v[j]);
      }
    }
#pragma GCC unroll 8
    for (int j = 0; j < M; j++)
      _mm256_storeu_ps(sums + j * GROUP, sum8(acc[j][0], acc[j][1], acc[j][2], acc[j][3], acc[j][4], acc[j][5], acc[j][6],
                                              acc[j][7]));
  }

  static inline __m256 half(__m512 v) {
    return _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
  }

  // Eight sums over lanes at once.
  static inline __m256 sum8(__m512 a, __m512 b, __m512 c, __m512 d, __m512 e, __m512 f, __m512 g, __m512 h) {
    __m256 low = _mm256_hadd_ps(_mm256_hadd_ps(half(a), half(b)), _mm256_hadd_ps(half(c), half(d)));
    __m256 high = _mm256_hadd_ps(_mm256_hadd_ps(half(e), half(f)), _mm256_hadd_ps(half(g), half(h)));
    return _mm256_add_ps(_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31));
  }
};

inline bool whole(const Linear& a) { return a.type == BF16 && a.table && a.k % 64 == 0 && a.block % 64 == 0; }

// few rows of x: Ŵ passes through registers; a decoded group of long rows no longer fits the first cache
inline bool few_of(const Linear& a) { return a.rows <= 4 || (a.rows <= 16 && a.k > 2048); }

inline bool quartered(const Linear& a) { return a.rows <= 3; }

// the even words of u and v, then their odd ones
inline void halve(__m512i& u, __m512i& v) {
  alignas(64) uint16_t even[32];
  for (int i = 0; i < 32; i++) even[i] = uint16_t(2 * i);
  __m512i first = _mm512_load_si512(even), second = _mm512_add_epi16(first, _mm512_set1_epi16(1)), old = u;
  u = _mm512_permutex2var_epi16(old, first, v);
  v = _mm512_permutex2var_epi16(old, second, v);
}

// In every 64 elements of x: the even ones, then the odd ones. Where `quartered` in every 128: the first of each four,
// then the second, third and fourth of each; rows end in zeros there.
void prepare(const Linear& a, void* shared) {
  if (!whole(a)) return;
  const uint16_t* x = static_cast<const uint16_t*>(a.x);
  uint16_t* out = static_cast<uint16_t*>(shared);
  if (!quartered(a))
    for (int64_t i = 0; i < a.rows * a.k; i += 64) {
      __m512i u = _mm512_loadu_si512(x + i), v = _mm512_loadu_si512(x + i + 32);
      halve(u, v);
      _mm512_storeu_si512(out + i, u), _mm512_storeu_si512(out + i + 32, v);
    }
  else
    for (int64_t m = 0; m < a.rows; m++, x += a.k)
      for (int64_t i = 0; i < a.k; i += 128, out += 128) {
        __m512i w[4] = {};
        for (int s = 0; s < (a.k - i < 128 ? 2 : 4); s++) w[s] = _mm512_loadu_si512(x + i + 32 * s);
        halve(w[0], w[1]), halve(w[2], w[3]);
        halve(w[0], w[2]), halve(w[1], w[3]);
        for (int s = 0; s < 4; s++) _mm512_storeu_si512(out + 32 * s, w[s]);
      }
}

// 64 codes of one block as bfloat16, even ones and odd ones; `values` is the scaled table twice over: a fifth bit of an
// index is idle.
inline void halves(__m256i codes, __m512i values, __m512i* w) {
  __m512i wide = _mm512_cvtepu8_epi16(codes);
  w[0] = _mm512_permutexvar_epi16(_mm512_srli_epi16(wide, 4), values);
  w[1] = _mm512_permutexvar_epi16(wide, values);
}

struct Split : Level {
  static void decode(const Linear& a, void* out, int64_t begin, int64_t end) {
    const uint8_t* codes = static_cast<const uint8_t*>(a.codes);
    __m512 table = _mm512_loadu_ps(a.table);
    uint16_t* to = static_cast<uint16_t*>(out);
    int64_t b = begin / a.block, left = (b + 1) * a.block - begin;
    for (int64_t i = begin; i < end; i += 64, to += 64) {
      __m512i w[2];
      __m512 scaled = _mm512_mul_ps(table, _mm512_set1_ps(a.scale[b]));
      if (!(i & 64)) _mm_prefetch(reinterpret_cast<const char*>(codes + (i + GROUP * a.k) / 2), _MM_HINT_T1);
      halves(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + i / 2)),
             (__m512i)_mm512_cvtne2ps_pbh(scaled, scaled), w);
      _mm512_storeu_si512(to, w[0]);
      _mm512_storeu_si512(to + 32, w[1]);
      left -= 64;
      if (!left) left = a.block, b++;
    }
  }
};

template <Type X, Type A>
void project_row(const Linear& a, float* low, int64_t r) {
  for (int64_t m = 0; m < a.rows; m++) {
    __m512 acc = _mm512_setzero_ps(), other = _mm512_setzero_ps();
    for (int64_t i = 0; i < a.k; i += 32) {
      __mmask16 in = lanes(a.k - i), more = a.k - i > 16 ? lanes(a.k - i - 16) : __mmask16(0);
      acc = _mm512_fmadd_ps(read<X>(a.x, m * a.k + i, in), read<A>(a.A, r * a.k + i, in), acc);
      other = _mm512_fmadd_ps(read<X>(a.x, m * a.k + i + 16, more), read<A>(a.A, r * a.k + i + 16, more), other);
    }
    low[m * a.rank + r] = a.c * _mm512_reduce_add_ps(_mm512_add_ps(acc, other));
  }
}

void project(const Linear& a, float* low, int64_t first, int64_t last) {
  for (int64_t r = first; r < last; r++)
    if (a.A_type == F32)
      (a.type == F32 ? project_row<F32, F32> : project_row<BF16, F32>)(a, low, r);
    else
      (a.type == F32 ? project_row<F32, BF16> : project_row<BF16, BF16>)(a, low, r);
}

// Where sums over lanes begin: the low-rank term, element by element.
inline __m512 begin(const Linear& a, int64_t m, int64_t n) {
  __m512 acc = _mm512_setzero_ps();
  for (int64_t i = 0; i < a.rank; i += 16) {
    _mm_prefetch(static_cast<const char*>(a.B) + ((n + 16) * a.rank + i) * (a.B_type == F32 ? 4 : 2), _MM_HINT_T1);
    __mmask16 in = lanes(a.rank - i);
    __m512 B = a.B_type == F32 ? read<F32>(a.B, n * a.rank + i, in) : read<BF16>(a.B, n * a.rank + i, in);
    acc = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(in, a.low + m * a.rank + i), B, acc);
  }
  return acc;
}

#include "avx512_few.h"

void linear(const Linear& a, int64_t first, int64_t last, void* scratch, const void* shared) {
  if (!whole(a)) return linear_groups<Level>(a, first, last, scratch);
  Linear b = a;
  b.x = shared;
  if (!few_of(a)) return linear_groups<Split>(b, first, last, scratch);
  few_columns(b, first, last);
}
