// AVX-512 (F, BW, DQ, VL, BF16): sixteen floats or thirty-two bfloat16 at a time. A table of 16 values fits one register,
// so looking a code up is one permute; a block's table is scaled and rounded once, not its elements.
#include "kernels.h"

#ifdef ABSENT
const Kernels* avx512_kernels() { return nullptr; }
#else

#include <immintrin.h>
#include <type_traits>

#include "common.h"
#include "linear.h"
#include "token.h"

namespace {

inline __mmask16 lanes(int64_t n) { return n >= 16 ? __mmask16(0xffff) : __mmask16((1u << n) - 1); }
inline __mmask32 words(int64_t n) { return n >= 32 ? __mmask32(~0u) : __mmask32((1u << n) - 1); }

template <Type T>
inline __m512 read(const void* x, int64_t i, __mmask16 m) {
  if (T == F32) return _mm512_maskz_loadu_ps(m, static_cast<const float*>(x) + i);
  __m256i h = _mm256_maskz_loadu_epi16(m, static_cast<const uint16_t*>(x) + i);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}

// Like to_bf16; the processor's own conversion flushes denormals.
inline __m256i rounded(__m512 v) {
  __m512i u = _mm512_castps_si512(v);
  __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  __m512i r = _mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7fff)), odd);
  r = _mm512_mask_mov_epi32(r, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), _mm512_set1_epi32(0x7fc00000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(r, 16));
}

template <Type T>
inline void write(void* out, int64_t i, __m512 v, __mmask16 m) {
  if (T == F32)
    _mm512_mask_storeu_ps(static_cast<float*>(out) + i, m, v);
  else
    _mm256_mask_storeu_epi16(static_cast<uint16_t*>(out) + i, m, rounded(v));
}

inline __m512i magnitude(__m512 v) { return _mm512_and_si512(_mm512_castps_si512(v), _mm512_set1_epi32(0x7fffffff)); }

template <Type T>
inline uint32_t most_of(const void* x, int64_t begin, int64_t end) {
  __m512i most = _mm512_setzero_si512();
  int64_t i = begin;
  for (; i + 16 <= end; i += 16) most = _mm512_max_epu32(most, magnitude(read<T>(x, i, 0xffff)));
  if (i < end) most = _mm512_max_epu32(most, magnitude(read<T>(x, i, lanes(end - i))));
  return _mm512_reduce_max_epu32(most);
}

inline __m512i place_of(__m512 unit, __m512 middle) {
  __m512i id = _mm512_setzero_si512();
  for (int step = 8; step; step >>= 1) {
    __m512 at = _mm512_permutexvar_ps(_mm512_add_epi32(id, _mm512_set1_epi32(step - 1)), middle);
    id = _mm512_mask_add_epi32(id, _mm512_cmp_ps_mask(at, unit, _CMP_NGE_UQ), id, _mm512_set1_epi32(step));
  }
  return id;
}

template <Type T>
void encode(const void* x, uint8_t* codes, float* absmax, const Book& book, int64_t n, int64_t block, int64_t first,
            int64_t last) {
  __m512 middle = _mm512_loadu_ps(book.middle);
  __m512i order = _mm512_loadu_si512(book.order), zero = _mm512_set1_epi32(book.zero);
  for (int64_t b = first; b < last; b++) {
    int64_t begin = b * block, end = least(n, begin + block);
    float most = number(most_of<T>(x, begin, end));
    __m512 divisor = _mm512_set1_ps(most == 0 ? 1.0f : most);
    absmax[b] = most;
    for (int64_t i = begin; i < end; i += 16) {
      __mmask16 m = lanes(end - i);
      __m512i place = place_of(_mm512_div_ps(read<T>(x, i, m), divisor), middle);
      __m512i code = _mm512_mask_permutexvar_epi32(zero, m, place, order);
      // low byte of each pair: even code << 4 | odd code
      __m512i pair = _mm512_or_si512(_mm512_slli_epi32(code, 4), _mm512_srli_epi64(code, 32));
      _mm_mask_storeu_epi8(codes + i / 2, __mmask16((1u << ((least(16, end - i) + 1) / 2)) - 1),
                           _mm512_cvtepi64_epi8(pair));
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

// 32 codes -> 32 bfloat16 of the table that fills `table` twice
inline __m512i look_up(__m128i bytes, __m512i table) {
  __m512i wide = _mm512_cvtepu8_epi32(bytes);
  return _mm512_permutexvar_epi16(_mm512_or_si512(_mm512_srli_epi32(wide, 4), _mm512_slli_epi32(wide, 16)), table);
}

inline void run_bf16(const uint8_t* codes, __m512 scaled, uint16_t* out, int64_t n) {
  __m512i table = _mm512_broadcast_i64x4(rounded(scaled));
  int64_t i = 0;
  for (; i + 32 <= n; i += 32)
    _mm512_storeu_si512(out + i, look_up(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + i / 2)), table));
  if (i < n) {
    __m128i bytes = _mm_maskz_loadu_epi8(__mmask16((1u << ((n - i + 1) / 2)) - 1), codes + i / 2);
    _mm512_mask_storeu_epi16(out + i, words(n - i), look_up(bytes, table));
  }
}

inline void run_f32(const uint8_t* codes, __m512 scaled, float* out, int64_t n) {
  for (int64_t i = 0; i < n; i += 16) {
    __m128i bytes = _mm_maskz_loadu_epi8(__mmask16((1u << ((least(16, n - i) + 1) / 2)) - 1), codes + i / 2);
    __m512i code = _mm512_cvtepu8_epi32(_mm_unpacklo_epi8(_mm_srli_epi16(bytes, 4), bytes));  // low 4 bits count
    _mm512_mask_storeu_ps(out + i, lanes(n - i), _mm512_permutexvar_ps(code, scaled));
  }
}

template <Type T>
void decode(const uint8_t* codes, const float* absmax, const float* table, void* out, int64_t block, int64_t begin,
            int64_t end) {
  __m512 values = _mm512_loadu_ps(table);
  int64_t b = begin / block;
  for (int64_t i = begin; i < end; b++) {
    int64_t stop = least(end, (b + 1) * block);
    __m512 scaled = _mm512_mul_ps(values, _mm512_set1_ps(absmax[b]));
    if (T == F32)
      run_f32(codes + i / 2, scaled, static_cast<float*>(out) + (i - begin), stop - i);
    else
      run_bf16(codes + i / 2, scaled, static_cast<uint16_t*>(out) + (i - begin), stop - i);
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

// table[code] of sixteen codes: the table fills sixteen registers, each pair of which answers for 32 codes.
inline __m512 of_256(__m512i code, const __m512* table) {
  __m512 found[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++) found[i] = _mm512_permutex2var_ps(table[2 * i], code, table[2 * i + 1]);
#pragma GCC unroll 3
  for (int half = 4; half; half >>= 1) {
    __mmask16 high = _mm512_test_epi32_mask(code, _mm512_set1_epi32(32 * half));
#pragma GCC unroll 4
    for (int i = 0; i < half; i++) found[i] = _mm512_mask_mov_ps(found[i], high, found[i + half]);
  }
  return found[0];
}

void scales(const Weight& w, float* out, int64_t begin, int64_t end) {
  __m512 table[16], offset = _mm512_set1_ps(*w.scale_offset);
  for (int i = 0; i < 16; i++) table[i] = _mm512_loadu_ps(w.scale_table + 16 * i);
  for (int64_t i = begin; i < end;) {
    __m512 most = _mm512_set1_ps(w.scale_absmax[i / w.scale_block]);
    for (int64_t stop = least(end, (i / w.scale_block + 1) * w.scale_block); i < stop;) {
      __mmask16 m = lanes(stop - i);
      __m512i code = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(m, w.scales + i));
      __m512 v = _mm512_add_ps(_mm512_mul_ps(of_256(code, table), most), offset);
      _mm512_mask_storeu_ps(out + (i - begin), m, v);
      i += least(16, stop - i);
    }
  }
}

template <Type T>
void decode_int8(const int8_t* codes, const float* scale, void* out, int64_t block, int64_t begin, int64_t end) {
  int64_t b = begin / block;
  for (int64_t i = begin; i < end; b++) {
    __m512 s = _mm512_set1_ps(scale[b]);
    for (int64_t stop = least(end, (b + 1) * block); i < stop;) {
      __mmask16 m = lanes(stop - i);
      __m512 v = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(m, codes + i)));
      write<T>(out, i - begin, _mm512_mul_ps(v, s), m);
      i += least(16, stop - i);
    }
  }
}

void decode8(const int8_t* codes, const float* scale, void* out, Type type, int64_t block, int64_t begin, int64_t end) {
  (type == F32 ? decode_int8<F32> : decode_int8<BF16>)(codes, scale, out, block, begin, end);
}

// sixteen columns of a row, those that are skipped as zeros
template <Type T>
inline __m512 kept(const void* x, int64_t row, const uint8_t* skip, int64_t i, __mmask16 m) {
  if (skip) m &= ~_mm_test_epi8_mask(_mm_maskz_loadu_epi8(m, skip + i), _mm_set1_epi8(-1));
  return read<T>(x, row + i, m);
}

template <Type T>
void rows(const void* x, const uint8_t* skip, int8_t* codes, float* scale, int64_t k, int64_t first, int64_t last) {
  for (int64_t r = first; r < last; r++) {
    __m512i most = _mm512_setzero_si512();
    for (int64_t i = 0; i < k; i += 16)
      most = _mm512_max_epu32(most, magnitude(kept<T>(x, r * k, skip, i, lanes(k - i))));
    uint32_t found = _mm512_reduce_max_epu32(most);
    scale[r] = number(found) / 127.0f;
    float by = row_inverse(found);
    if (by == 0) {
      std::memset(codes + r * k, 0, size_t(k));
      continue;
    }
    __m512 inverse = _mm512_set1_ps(by);
    for (int64_t i = 0; i < k; i += 16) {
      __mmask16 m = lanes(k - i);
      __m512i code = _mm512_cvtps_epi32(_mm512_mul_ps(kept<T>(x, r * k, skip, i, m), inverse));
      _mm_mask_storeu_epi8(codes + r * k + i, m, _mm512_cvtepi32_epi8(code));
    }
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
    __m512 by = _mm512_set1_ps(row[r]);
    for (int64_t i = 0; i < m; i += 16) {
      __mmask16 in = lanes(m - i);
      __m512 v = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_maskz_loadu_epi32(in, acc + r * m + i)), by);
      v = _mm512_mul_ps(v, _mm512_maskz_loadu_ps(in, col + i));
      write<T>(out, r * m + i, bias ? _mm512_add_ps(v, _mm512_maskz_loadu_ps(in, bias + i)) : v, in);
    }
  }
}

void rescale(const int32_t* acc, const float* row, const float* col, const float* bias, void* out, Type type, int64_t m,
             int64_t first, int64_t last) {
  (type == F32 ? floats<F32> : floats<BF16>)(acc, row, col, bias, out, m, first, last);
}

#include "avx512_linear.h"

const Kernels KERNELS = {"avx512", encode4, decode4, scales,  decode8, quantize_rows,
                         rescale,  prepare, project, linear,  norm,    rotate,
                         attend, expand};

}  // namespace

const Kernels* avx512_kernels() { return &KERNELS; }

#endif
