/* The loops that every weight goes through, compiled: keys, sorting out by brackets, counting, putting back.
 *
 * Each does, bit for bit, what the numpy code beside its caller does (criteria.py, brackets.py, methods.py, radix.py),
 * in one reading of memory instead of many, and without the interpreter's lock. Nothing here allocates or fails. Built
 * by hatch_build.py with floating-point contraction off: a fused multiply-add would round differently.
 */
#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(KNOWSHIFT_CLONES)
#define FAST __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#define EXPORT FAST
#else
#define EXPORT
#endif
#define INLINE static inline __attribute__((always_inline))

const char knowshift_source[] = KNOWSHIFT_SOURCE; /* a digest of this file, so that an older build is noticed */

enum { RELATIVE, ABSOLUTE, LEAST, MAGNITUDE, AUTHORS, TIES, FAPM }; /* as compiled.py numbers them */
enum { BLOCK = 1024 }; /* weights at a time: what belongs to them stays in the innermost cache */

static const int32_t INFINITE = 0x7F800000;

INLINE int32_t bits_of(float value) {
    int32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

INLINE float float_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

INLINE float bfloat16(float value) { /* to nearest, ties to even; NaN stays NaN */
    uint32_t bits = (uint32_t)bits_of(value);
    uint32_t rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000u;
    return value != value ? value : float_of(rounded);
}

/* Weights start to start + count as float32, from bfloat16 or float32. */
INLINE void load(int half, const void *from, int64_t start, int count, float *to) {
    if (half) {
        const uint16_t *bits = (const uint16_t *)from + start;
        for (int i = 0; i < count; i++) to[i] = float_of((uint32_t)bits[i] << 16);
    } else {
        memcpy(to, (const float *)from + start, sizeof(float) * (size_t)count);
    }
}

INLINE float clamped(float value, float nan) { /* torch.nan_to_num: infinities become the largest numbers there are */
    if (isnan(value)) return nan;
    return fminf(fmaxf(value, -FLT_MAX), FLT_MAX);
}

/* |s - p|, as criteria.absolute has it for numbers that need care. */
INLINE float careful_change(float p, float s) {
    if (p == s || (isnan(p) && isnan(s))) return 0.0f;
    float change = fabsf(s - p);
    if (isinf(change) && isfinite(p) && isfinite(s)) return FLT_MAX;
    return isnan(change) ? INFINITY : change;
}

/* |s - p| / |p|, as criteria.ratio has it. */
INLINE float careful_ratio(float change, float magnitude) {
    if (change == 0.0f) return 0.0f;
    float score = change / magnitude;
    if (isinf(score) && magnitude != 0.0f && isfinite(change)) return FLT_MAX;
    return isnan(score) ? INFINITY : score;
}

INLINE int32_t largest(const float *values, int count) { /* of non-negative floats and NaN, as bits */
    int32_t most = 0;
    for (int i = 0; i < count; i++) {
        int32_t bits = bits_of(values[i]) & 0x7FFFFFFF;
        most = bits > most ? bits : most;
    }
    return most;
}

/* Keys of one block; whether all its weights are finite. */
INLINE int score_block(int criterion, int count, const float *p, const float *s, float mean, int32_t *keys) {
    float score[BLOCK];
    int seen = 0; /* what is not finite shows in |s - p| and in what is made of it */
    switch (criterion) {
    case RELATIVE:
    case LEAST:
        for (int i = 0; i < count; i++) score[i] = fabsf((s[i] - p[i]) / p[i]);
        seen = largest(score, count) < INFINITE;
        if (!seen)
            for (int i = 0; i < count; i++) score[i] = careful_ratio(careful_change(p[i], s[i]), fabsf(p[i]));
        break;
    case ABSOLUTE:
    case TIES:
        for (int i = 0; i < count; i++) score[i] = fabsf(s[i] - p[i]);
        seen = largest(score, count) < INFINITE;
        if (!seen)
            for (int i = 0; i < count; i++) score[i] = careful_change(p[i], s[i]);
        break;
    case MAGNITUDE:
        for (int i = 0; i < count; i++) score[i] = clamped(fabsf(p[i]), INFINITY);
        break;
    case AUTHORS:
        for (int i = 0; i < count; i++) {
            float base = bfloat16(p[i]);
            float change = fabsf(bfloat16(bfloat16(s[i]) - base));
            score[i] = clamped(bfloat16(change / bfloat16(fabsf(base) + 1e-8f)), INFINITY);
        }
        break;
    case FAPM:
        for (int i = 0; i < count; i++) {
            float change = fabsf(s[i] - p[i]);
            float value = change - mean * (change / fabsf(p[i]));
            score[i] = clamped(change == 0.0f ? 0.0f : value, -INFINITY) + 0.0f; /* -0.0 and 0.0 are one score */
        }
        break;
    }
    switch (criterion) {
    case RELATIVE:
    case ABSOLUTE:
    case AUTHORS:
        memcpy(keys, score, sizeof(float) * (size_t)count);
        break;
    case FAPM: /* the smallest first, negative ones too */
        for (int i = 0; i < count; i++) {
            int32_t bits = bits_of(score[i]);
            keys[i] = ~(bits < 0 ? bits ^ 0x7FFFFFFF : bits);
        }
        break;
    default: /* the smallest first */
        for (int i = 0; i < count; i++) keys[i] = INFINITE - bits_of(score[i]);
    }
    return seen || (largest(p, count) < INFINITE && largest(s, count) < INFINITE);
}

/* Keys of count weights; whether any weight is NaN or infinite. */
EXPORT int knowshift_keys(int criterion, int half, const void *base, const void *tuned, int64_t count, float mean,
                          int32_t *keys) {
    float p[BLOCK], s[BLOCK];
    int finite = 1;
    for (int64_t start = 0; start < count; start += BLOCK) {
        int here = count - start < BLOCK ? (int)(count - start) : BLOCK;
        load(half, base, start, here, p);
        load(half, tuned, start, here, s);
        finite &= score_block(criterion, here, p, s, mean, keys + start);
    }
    return !finite;
}

INLINE uint32_t mix(uint32_t value) { /* Wellons' lowbias32 */
    value ^= value >> 16;
    value *= 0x7FEB352Du;
    value ^= value >> 15;
    value *= 0x846CA68Bu;
    value ^= value >> 16;
    return value;
}

/* The hash of positions start to start + count, salted with two words. */
EXPORT void knowshift_random_keys(uint32_t first, uint32_t second, int64_t start, int64_t count, int32_t *keys) {
    for (int64_t i = 0; i < count; i++) {
        uint64_t position = (uint64_t)(start + i);
        uint32_t value = (uint32_t)(position + (position >> 32) * 0x9E3779B1u);
        keys[i] = (int32_t)(mix(mix(value + first) ^ second) & 0x7FFFFFFFu);
    }
}

/* For each bracket how many keys lie above it and how many equal its common key (where it has one), and the keys that
 * lie in any bracket and are not common to it, in order; how many these are. Edges are the upper halves of keys; near
 * has room for one more than there are keys. */
EXPORT int64_t knowshift_sort_out(const int32_t *keys, int64_t count, int brackets, const int16_t *low,
                                  const int16_t *high, const int32_t *common, const uint8_t *has_common,
                                  int64_t *over, int64_t *same, int32_t *near) {
    int16_t upper[BLOCK];
    uint16_t inside[BLOCK];
    int64_t found = 0;
    memset(over, 0, sizeof(int64_t) * (size_t)brackets);
    memset(same, 0, sizeof(int64_t) * (size_t)brackets);
    for (int64_t start = 0; start < count; start += BLOCK) {
        int here = count - start < BLOCK ? (int)(count - start) : BLOCK;
        const int32_t *block = keys + start;
        for (int i = 0; i < here; i++) upper[i] = (int16_t)(block[i] >> 16);
        memset(inside, 0, sizeof inside);
        for (int b = 0; b < brackets; b++) {
            int16_t from = low[b], to = high[b];
            int16_t above = 0; /* a block has no more than fit */
            for (int i = 0; i < here; i++) above += upper[i] > to;
            over[b] += above;
            if (has_common[b]) {
                int32_t key = common[b];
                int32_t equal = 0;
                for (int i = 0; i < here; i++) {
                    equal += block[i] == key;
                    inside[i] |= (uint16_t)((upper[i] >= from) & (upper[i] <= to) & (block[i] != key));
                }
                same[b] += equal;
            } else {
                for (int i = 0; i < here; i++) inside[i] |= (uint16_t)((upper[i] >= from) & (upper[i] <= to));
            }
        }
        for (int i = 0; i < here; i += 4) {
            uint64_t word;
            memcpy(&word, inside + i, sizeof word); /* what lies past the end of the last block is 0 */
            if (word == 0) continue;
            for (int j = i; j < i + 4 && j < here; j++) {
                near[found] = block[j];
                found += inside[j];
            }
        }
    }
    return found;
}

#define PUT_BACK(type)                                                             \
    for (int i = 0; i < here; i++)                                                 \
        ((type *)out)[start + i] = taken[i] ? ((const type *)base)[start + i] : ((const type *)tuned)[start + i];

/* The base's value where a key lies above key, or equals it before end, else the tuned one; out may be tuned. How many
 * were put back; finite is set to whether every weight is. */
EXPORT int64_t knowshift_restore(int criterion, int half, const void *base, const void *tuned, int64_t count,
                                 float mean, int32_t key, int64_t end, void *out, int *finite) {
    float p[BLOCK], s[BLOCK];
    int32_t keys[BLOCK];
    int16_t taken[BLOCK];
    int64_t restored = 0;
    *finite = 1;
    for (int64_t start = 0; start < count; start += BLOCK) {
        int here = count - start < BLOCK ? (int)(count - start) : BLOCK;
        load(half, base, start, here, p);
        load(half, tuned, start, here, s);
        *finite &= score_block(criterion, here, p, s, mean, keys);
        int64_t left = end - start;
        int equals = left <= 0 ? 0 : left >= here ? here : (int)left;
        for (int i = 0; i < equals; i++) taken[i] = keys[i] >= key;
        for (int i = equals; i < here; i++) taken[i] = keys[i] > key;
        int16_t number = 0; /* a block has no more than fit */
        for (int i = 0; i < here; i++) number += taken[i];
        restored += number;
        if (half) {
            PUT_BACK(uint16_t)
        } else {
            PUT_BACK(uint32_t)
        }
    }
    return restored;
}

/* Adds to counts (65536) how many keys each value of the upper 16 bits holds. */
EXPORT void knowshift_upper_counts(const int32_t *keys, int64_t count, int64_t *counts) {
    for (int64_t i = 0; i < count; i++) counts[(keys[i] >> 16) + 32768]++;
}

/* Adds to sums (65536) how much weight each value of the upper 16 bits holds. */
EXPORT void knowshift_upper_sums(const int32_t *keys, int64_t count, const double *weights, double *sums) {
    for (int64_t i = 0; i < count; i++) sums[(keys[i] >> 16) + 32768] += weights[i];
}

/* The same at once for keys that are scores (their bit patterns): how many, their sum and the sum of their squares. One
 * that is not finite adds nothing to the sums. */
EXPORT void knowshift_tally(const int32_t *keys, int64_t count, int64_t *counts, double *sums, double *squares) {
    for (int64_t i = 0; i < count; i++) {
        int32_t bin = (keys[i] >> 16) + 32768;
        double score = keys[i] < INFINITE ? (double)float_of((uint32_t)keys[i]) : 0.0;
        counts[bin]++;
        sums[bin] += score;
        squares[bin] += score * score;
    }
}

/* Of the keys whose upper bits have a row (65536 of them; -1 for none): row << 16 | lower bits, in order. How many. */
EXPORT int64_t knowshift_inside(const int32_t *keys, int64_t count, const int32_t *rows, int32_t *places) {
    int64_t found = 0;
    for (int64_t i = 0; i < count; i++) {
        int32_t row = rows[(keys[i] >> 16) + 32768];
        places[found] = (int32_t)((uint32_t)row << 16 | ((uint32_t)keys[i] & 0xFFFF));
        found += row >= 0;
    }
    return found;
}

/* Adds one to the count of each place. */
EXPORT void knowshift_count(const int32_t *places, int64_t count, int64_t *counts) {
    for (int64_t i = 0; i < count; i++) counts[places[i]]++;
}
