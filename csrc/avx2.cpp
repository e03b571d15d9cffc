// AVX2 and FMA: eight floats at a time; a table of 16 bfloat16 is looked up by two byte shuffles.
#include "kernels.h"

#ifdef ABSENT
const Kernels* avx2_kernels() { return nullptr; }
#else

#include <immintrin.h>

#include "common.h"
#include "linear.h"
#include "token.h"

namespace {

template <Type T>
inline __m256 read(const void* x, int64_t i) {
  if (T == F32) return _mm256_loadu_ps(static_cast<const float*>(x) + i);
  __m128i h = _mm_loadu_si128(reinterpret_cast<const __m128i*>(static_cast<const uint16_t*>(x) + i));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}

// Eight floats to bfloat16 in the low halves of eight integers.
inline __m256i rounded(__m256 v) {
  __m256i u = _mm256_castps_si256(v);
  __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
  __m256i r = _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(u, _mm256_set1_epi32(0x7fff)), odd), 16);
  __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
  return _mm256_blendv_epi8(r, _mm256_set1_epi32(0x7fc0), nan);
}

inline __m128i halves(__m256i r) { return _mm_packus_epi32(_mm256_castsi256_si128(r), _mm256_extracti128_si256(r, 1)); }

template <Type T>
inline void write(void* out, int64_t i, __m256 v) {
  if (T == F32)
    _mm256_storeu_ps(static_cast<float*>(out) + i, v);
  else
    _mm_storeu_si128(reinterpret_cast<__m128i*>(static_cast<uint16_t*>(out) + i), halves(rounded(v)));
}

inline __m256i magnitude(__m256 v) { return _mm256_and_si256(_mm256_castps_si256(v), _mm256_set1_epi32(0x7fffffff)); }

inline uint32_t most_of(__m256i v) {
  __m128i m = _mm_max_epu32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0x4e));
  return uint32_t(_mm_cvtsi128_si32(_mm_max_epu32(m, _mm_shuffle_epi32(m, 0xb1))));
}

inline uint32_t greater(uint32_t a, uint32_t b) { return a > b ? a : b; }

// table[code] of 16 floats in two halves; bit 3 of a code picks the half
inline __m256 pick(__m256i code, __m256 low, __m256 high) {
  __m256 top = _mm256_castsi256_ps(_mm256_slli_epi32(code, 28));
  return _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, code), _mm256_permutevar8x32_ps(high, code), top);
}

inline __m256i place_of(__m256 unit, __m256 low, __m256 high) {
  __m256i id = _mm256_setzero_si256();
  for (int step = 8; step; step >>= 1) {
    __m256 at = pick(_mm256_add_epi32(id, _mm256_set1_epi32(step - 1)), low, high);
    __m256i above = _mm256_castps_si256(_mm256_cmp_ps(at, unit, _CMP_NGE_UQ));
    id = _mm256_add_epi32(id, _mm256_and_si256(above, _mm256_set1_epi32(step)));
  }
  return id;
}

template <Type T>
void encode(const void* x, uint8_t* codes, float* absmax, const Book& book, int64_t n, int64_t block, int64_t first,
            int64_t last) {
  __m256 low = _mm256_loadu_ps(book.middle), high = _mm256_loadu_ps(book.middle + 8);
  __m256 order_low = _mm256_loadu_ps(reinterpret_cast<const float*>(book.order));
  __m256 order_high = _mm256_loadu_ps(reinterpret_cast<const float*>(book.order + 8));
  const __m256i gather = _mm256_setr_epi8(0, 8, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 0, 8, -1, -1, -1,
                                          -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
  for (int64_t b = first; b < last; b++) {
    int64_t begin = b * block, end = least(n, begin + block), i = begin;
    __m256i top = _mm256_setzero_si256();
    for (; i + 8 <= end; i += 8) top = _mm256_max_epu32(top, magnitude(read<T>(x, i)));
    float most = number(greater(most_of(top), absmax_bits<T>(x, i, end)));
    float by = most == 0 ? 1.0f : most;
    __m256 divisor = _mm256_set1_ps(by);
    absmax[b] = most;
    for (i = begin; i + 8 <= end; i += 8) {
      __m256i place = place_of(_mm256_div_ps(read<T>(x, i), divisor), low, high);
      __m256i code = _mm256_castps_si256(pick(place, order_low, order_high));
      __m256i pair = _mm256_or_si256(_mm256_slli_epi32(code, 4), _mm256_srli_epi64(code, 32));
      pair = _mm256_shuffle_epi8(pair, gather);
      uint32_t four = uint32_t(_mm_cvtsi128_si32(_mm256_castsi256_si128(pair))) |
                      uint32_t(_mm_cvtsi128_si32(_mm256_extracti128_si256(pair, 1))) << 16;
      std::memcpy(codes + i / 2, &four, 4);
    }
    for (; i < end; i += 2) {
      int code = book.order[place(book, load<T>(x, i) / by)];
      int next = i + 1 < end ? book.order[place(book, load<T>(x, i + 1) / by)] : book.zero;
      codes[i / 2] = uint8_t(code << 4 | next);
    }
  }
}

void encode4(const void* x, Type type, uint8_t* codes, float* absmax, const Book& book, int64_t n, int64_t block,
             int64_t first, int64_t last) {
  if (block & 1)
    (type == F32 ? encode4_plain<F32> : encode4_plain<BF16>)(x, codes, absmax, book, n, block, first, last);
  else
    (type == F32 ? encode<F32> : encode<BF16>)(x, codes, absmax, book, n, block, first, last);
}

// sixteen bytes -> 32 bfloat16: low and high bytes are looked up apart, then interleaved
inline void run_bf16(const uint8_t* codes, __m256 low, __m256 high, uint16_t* out, int64_t n) {
  __m256i words = _mm256_permute4x64_epi64(_mm256_packus_epi32(rounded(low), rounded(high)), 0xd8);
  alignas(32) uint16_t scaled[16];
  _mm256_store_si256(reinterpret_cast<__m256i*>(scaled), words);
  __m256i even = _mm256_and_si256(words, _mm256_set1_epi16(255)), odd = _mm256_srli_epi16(words, 8);
  even = _mm256_permute4x64_epi64(_mm256_packus_epi16(even, odd), 0xd8);  // 16 low bytes, 16 high bytes
  __m256i low_bytes = _mm256_permute2x128_si256(even, even, 0x00), high_bytes = _mm256_permute2x128_si256(even, even, 0x11);
  int64_t i = 0;
  for (; i + 32 <= n; i += 32) {
    __m128i q = _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + i / 2));
    __m128i first = _mm_and_si128(_mm_srli_epi16(q, 4), _mm_set1_epi8(15)), second = _mm_and_si128(q, _mm_set1_epi8(15));
    __m256i code = _mm256_set_m128i(_mm_unpackhi_epi8(first, second), _mm_unpacklo_epi8(first, second));
    __m256i l = _mm256_shuffle_epi8(low_bytes, code), h = _mm256_shuffle_epi8(high_bytes, code);
    __m256i a = _mm256_unpacklo_epi8(l, h), b = _mm256_unpackhi_epi8(l, h);  // 0-7 16-23, 8-15 24-31
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i), _mm256_permute2x128_si256(a, b, 0x20));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i + 16), _mm256_permute2x128_si256(a, b, 0x31));
  }
  for (; i < n; i++) out[i] = scaled[nibble(codes, i)];
}

inline void run_f32(const uint8_t* codes, __m256 low, __m256 high, float* out, int64_t n) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    uint32_t four;
    std::memcpy(&four, codes + i / 2, 4);
    __m128i q = _mm_cvtsi32_si128(int(four));
    __m256i code = _mm256_cvtepu8_epi32(_mm_and_si128(_mm_unpacklo_epi8(_mm_srli_epi16(q, 4), q), _mm_set1_epi8(15)));
    _mm256_storeu_ps(out + i, pick(code, low, high));
  }
  alignas(32) float scaled[16];
  _mm256_store_ps(scaled, low);
  _mm256_store_ps(scaled + 8, high);
  for (; i < n; i++) out[i] = scaled[nibble(codes, i)];
}

template <Type T>
void decode(const uint8_t* codes, const float* absmax, const float* table, void* out, int64_t block, int64_t begin,
            int64_t end) {
  __m256 low = _mm256_loadu_ps(table), high = _mm256_loadu_ps(table + 8);
  int64_t b = begin / block;
  for (int64_t i = begin; i < end; b++) {
    int64_t stop = least(end, (b + 1) * block);
    __m256 scale = _mm256_set1_ps(absmax[b]), l = _mm256_mul_ps(low, scale), h = _mm256_mul_ps(high, scale);
    if (T == F32)
      run_f32(codes + i / 2, l, h, static_cast<float*>(out) + (i - begin), stop - i);
    else
      run_bf16(codes + i / 2, l, h, static_cast<uint16_t*>(out) + (i - begin), stop - i);
    i = stop;
  }
}

void decode4(const uint8_t* codes, const float* absmax, const float* table, void* out, Type type, int64_t block,
             int64_t begin, int64_t end) {
  if (block & 1)
    (type == F32 ? decode4_plain<F32> : decode4_plain<BF16>)(codes, absmax, table, out, block, begin, end);
  else
    (type == F32 ? decode<F32> : decode<BF16>)(codes, absmax, table, out, block, begin, end);
}

inline __m256 eight(const int8_t* codes) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes))));
}

template <Type T>
void decode_int8(const int8_t* codes, const float* scale, void* out, int64_t block, int64_t begin, int64_t end) {
  int64_t b = begin / block;
  for (int64_t i = begin; i < end; b++) {
    int64_t stop = least(end, (b + 1) * block);
    __m256 s = _mm256_set1_ps(scale[b]);
    for (; i + 8 <= stop; i += 8) write<T>(out, i - begin, _mm256_mul_ps(eight(codes + i), s));
    for (; i < stop; i++) store<T>(out, i - begin, float(codes[i]) * scale[b]);
  }
}

void decode8(const int8_t* codes, const float* scale, void* out, Type type, int64_t block, int64_t begin, int64_t end) {
  (type == F32 ? decode_int8<F32> : decode_int8<BF16>)(codes, scale, out, block, begin, end);
}

// eight columns of a row, those that are skipped as zeros
template <Type T>
inline __m256 kept(const void* x, int64_t row, const uint8_t* skip, int64_t i) {
  __m256 v = read<T>(x, row + i);
  if (!skip) return v;
  __m256i s = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(skip + i)));
  return _mm256_and_ps(v, _mm256_castsi256_ps(_mm256_cmpeq_epi32(s, _mm256_setzero_si256())));
}

template <Type T>
inline float kept_one(const void* x, int64_t row, const uint8_t* skip, int64_t i) {
  return skip && skip[i] ? 0.0f : load<T>(x, row + i);
}

template <Type T>
void rows(const void* x, const uint8_t* skip, int8_t* codes, float* scale, int64_t k, int64_t first, int64_t last) {
  for (int64_t r = first; r < last; r++) {
    __m256i top = _mm256_setzero_si256();
    int64_t i = 0;
    for (; i + 8 <= k; i += 8) top = _mm256_max_epu32(top, magnitude(kept<T>(x, r * k, skip, i)));
    uint32_t most = most_of(top);
    for (; i < k; i++) most = greater(most, bits(kept_one<T>(x, r * k, skip, i)) & 0x7fffffffu);
    scale[r] = number(most) / 127.0f;
    float by = row_inverse(most);
    if (by == 0) {
      std::memset(codes + r * k, 0, size_t(k));
      continue;
    }
    __m256 inverse = _mm256_set1_ps(by);
    for (i = 0; i + 8 <= k; i += 8) {
      __m256i code = _mm256_cvtps_epi32(_mm256_mul_ps(kept<T>(x, r * k, skip, i), inverse));
      __m128i half = _mm_packs_epi32(_mm256_castsi256_si128(code), _mm256_extracti128_si256(code, 1));
      _mm_storel_epi64(reinterpret_cast<__m128i*>(codes + r * k + i), _mm_packs_epi16(half, half));
    }
    for (; i < k; i++) codes[r * k + i] = int8_t(_mm_cvtss_si32(_mm_set_ss(kept_one<T>(x, r * k, skip, i) * by)));
  }
}

void quantize_rows(const void* x, Type type, const uint8_t* skip, int8_t* codes, float* scale, int64_t k, int64_t first,
                   int64_t last) {
  (type == F32 ? rows<F32> : rows<BF16>)(x, skip, codes, scale, k, first, last);
}

template <Type T>
void floats(const int32_t* acc, const float* row, const float* col, const float* bias, void* out, int64_t m,
            int64_t first, int64_t last) {
  for (int64_t r = first; r < last; r++) {
    __m256 by = _mm256_set1_ps(row[r]);
    int64_t i = 0;
    for (; i + 8 <= m; i += 8) {
      __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(acc + r * m + i));
      __m256 v = _mm256_mul_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(a), by), _mm256_loadu_ps(col + i));
      write<T>(out, r * m + i, bias ? _mm256_add_ps(v, _mm256_loadu_ps(bias + i)) : v);
    }
    for (; i < m; i++) {
      float v = float(acc[r * m + i]) * row[r] * col[i];
      store<T>(out, r * m + i, bias ? v + bias[i] : v);
    }
  }
}

void rescale(const int32_t* acc, const float* row, const float* col, const float* bias, void* out, Type type, int64_t m,
             int64_t first, int64_t last) {
  (type == F32 ? floats<F32> : floats<BF16>)(acc, row, col, bias, out, m, first, last);
}

struct Level {
  static constexpr auto low = add_low;
  static constexpr int TILE = 1;

  static void decode(const Linear& a, void* out, int64_t begin, int64_t end) {
    if (a.table)
      decode4(static_cast<const uint8_t*>(a.codes), a.scale, a.table, out, a.type, a.block, begin, end);
    else
      decode8(static_cast<const int8_t*>(a.codes), a.scale, out, a.type, a.block, begin, end);
  }

  template <Type T>
  static void dots(const void* w, int64_t count, const void* x, int64_t m, int64_t, int64_t k, bool, float* sums) {
    int64_t r = 0;
    for (; r + 4 <= count; r += 4) tile<T, 4>(w, r, x, m, k, sums + r);
    for (; r < count; r++) tile<T, 1>(w, r, x, m, k, sums + r);
  }

  template <Type T, int R>
  static void tile(const void* w, int64_t row, const void* x, int64_t m, int64_t k, float* sums) {
    __m256 acc[R];
    for (int r = 0; r < R; r++) acc[r] = _mm256_setzero_ps();
    int64_t i = 0;
    for (; i + 8 <= k; i += 8) {
      __m256 v = read<T>(x, m * k + i);
      for (int r = 0; r < R; r++) acc[r] = _mm256_fmadd_ps(read<T>(w, (row + r) * k + i), v, acc[r]);
    }
    for (int r = 0; r < R; r++) {
      alignas(32) float s[8];
      _mm256_store_ps(s, acc[r]);
      sums[r] = ((s[0] + s[4]) + (s[1] + s[5])) + ((s[2] + s[6]) + (s[3] + s[7]));
      for (int64_t j = i; j < k; j++) sums[r] += load<T>(w, (row + r) * k + j) * load<T>(x, m * k + j);
    }
  }
};

void linear(const Linear& a, int64_t first, int64_t last, void* scratch, const void*) {
  linear_groups<Level>(a, first, last, scratch);
}

const Kernels KERNELS = {"avx2",  encode4, decode4,       scales_plain, decode8, quantize_rows,
                         rescale, nullptr, project_plain, linear,       norm,    rotate,
                         attend, expand};

}  // namespace

const Kernels* avx2_kernels() { return &KERNELS; }

#endif
