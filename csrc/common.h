// Pieces of one element that every level uses for what does not fill a vector. Everything is static: a translation unit
// compiled for a newer processor must not lend its copy of a function to one compiled for an older.
#pragma once
#include <cstring>

#include "kernels.h"

namespace {

inline uint32_t bits(float v) {
  uint32_t u;
  std::memcpy(&u, &v, 4);
  return u;
}

inline float number(uint32_t u) {
  float v;
  std::memcpy(&v, &u, 4);
  return v;
}

// Round to nearest even; a NaN stays one.
inline uint16_t to_bf16(float v) {
  uint32_t u = bits(v);
  if ((u & 0x7fffffffu) > 0x7f800000u) return 0x7fc0;
  return uint16_t((u + 0x7fffu + ((u >> 16) & 1)) >> 16);
}

inline float from_bf16(uint16_t v) { return number(uint32_t(v) << 16); }

template <Type T>
inline float load(const void* x, int64_t i) {
  if (T == F32) return static_cast<const float*>(x)[i];
  return from_bf16(static_cast<const uint16_t*>(x)[i]);
}

template <Type T>
inline void store(void* out, int64_t i, float v) {
  if (T == F32)
    static_cast<float*>(out)[i] = v;
  else
    static_cast<uint16_t*>(out)[i] = to_bf16(v);
}

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

inline int nibble(const uint8_t* codes, int64_t i) { return i & 1 ? codes[i >> 1] & 15 : codes[i >> 1] >> 4; }

// |values| as integers order like |values|, and every NaN is above inf: the largest is NaN where one is.
template <Type T>
inline uint32_t absmax_bits(const void* x, int64_t begin, int64_t end) {
  uint32_t most = 0;
  for (int64_t i = begin; i < end; i++) {
    uint32_t u = bits(load<T>(x, i)) & 0x7fffffffu;
    most = u > most ? u : most;
  }
  return most;
}

// How many middles lie below: ties go to the lower value, NaN to the highest.
inline int place(const Book& book, float unit) {
  int id = 0;
  for (int step = 8; step; step >>= 1)
    if (!(book.middle[id + step - 1] >= unit)) id += step;
  return id;
}

template <Type T>
void encode4_plain(const void* x, uint8_t* codes, float* absmax, const Book& book, int64_t n, int64_t block,
                   int64_t first, int64_t last) {
  for (int64_t b = first; b < last; b++) {
    int64_t begin = b * block, end = least(n, begin + block);
    float most = number(absmax_bits<T>(x, begin, end)), divisor = most == 0 ? 1.0f : most;
    absmax[b] = most;
    for (int64_t i = begin; i < end; i++) {
      int code = book.order[place(book, load<T>(x, i) / divisor)];
      if (i & 1)
        codes[i >> 1] = uint8_t(codes[i >> 1] | code);
      else
        codes[i >> 1] = uint8_t(code << 4);
    }
  }
  if (last * block >= n && n & 1) codes[n >> 1] = uint8_t(codes[n >> 1] | book.zero);
}

template <Type T>
void decode4_plain(const uint8_t* codes, const float* absmax, const float* table, void* out, int64_t block,
                   int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end;) {
    int64_t b = i / block, stop = least(end, (b + 1) * block);
    float scaled[16];
    for (int c = 0; c < 16; c++) scaled[c] = table[c] * absmax[b];
    for (; i < stop; i++) store<T>(out, i - begin, scaled[nibble(codes, i)]);
  }
}

inline void scales_plain(const Weight& w, float* out, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end;) {
    float most = w.scale_absmax[i / w.scale_block];
    for (int64_t stop = least(end, (i / w.scale_block + 1) * w.scale_block); i < stop; i++)
      *out++ = w.scale_table[w.scales[i]] * most + *w.scale_offset;
  }
}

template <Type T>
void decode8_plain(const int8_t* codes, const float* scale, void* out, int64_t block, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end;) {
    int64_t b = i / block, stop = least(end, (b + 1) * block);
    for (; i < stop; i++) store<T>(out, i - begin, float(codes[i]) * scale[b]);
  }
}

// 127 / absmax, 0 where that is no number to multiply by: a row of zeros, of NaN, or too small.
inline float row_inverse(uint32_t most) {
  float inverse = 127.0f / number(most);
  return (bits(inverse) & 0x7fffffffu) < 0x7f800000u ? inverse : 0.0f;
}

}  // namespace
