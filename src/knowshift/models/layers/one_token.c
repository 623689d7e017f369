/* What one new token takes, compiled: attention over a cache as it lies in memory, and the choice of the token that
 * follows (attention.py and sampling/next_token.py say what and why).
 *
 * Sixteen numbers at a time, in the same order whatever the processor, so that results do not depend on it. Built by
 * hatch_build.py with floating-point contraction off.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(KNOWSHIFT_CLONES)
#define EXPORT __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define EXPORT
#endif
#define INLINE static inline __attribute__((always_inline))

const char knowshift_source[] = KNOWSHIFT_SOURCE; /* a digest of this file, so that an older build is noticed */

enum { LANES = 16, WIDEST = 16 }; /* numbers at a time; the widest head, in lanes */

typedef float floats __attribute__((vector_size(64)));
typedef int32_t words __attribute__((vector_size(64)));
typedef uint16_t halves __attribute__((vector_size(32)));
typedef float eight __attribute__((vector_size(32)));
typedef float four __attribute__((vector_size(16)));

/* Sixteen numbers, float32 or bfloat16. */
INLINE floats load(int half, const char *from) {
    floats loaded;
    if (half) {
        halves bits;
        memcpy(&bits, from, sizeof bits);
        words wide = __builtin_convertvector(bits, words) << 16;
        memcpy(&loaded, &wide, sizeof loaded);
    } else {
        memcpy(&loaded, from, sizeof loaded);
    }
    return loaded;
}

INLINE float sum_of(floats all) {
    eight low, high;
    memcpy(&low, &all, sizeof low);
    memcpy(&high, (const char *)&all + sizeof low, sizeof high);
    low += high;
    four first, second;
    memcpy(&first, &low, sizeof first);
    memcpy(&second, (const char *)&low + sizeof first, sizeof second);
    first += second;
    return (first[0] + first[2]) + (first[1] + first[3]);
}

/* e^x for x <= 0 or NaN, to two units in the last place: 2^n e^r with |r| <= log(2) / 2, and 0 below -87.
 * The Taylor series of e^r to r^7 is off by less than 2e-8 there; log(2) is taken in two parts. */
INLINE floats exponential(floats x) {
    const floats shift = (floats){0} + 12582912.0f; /* 1.5 x 2^23: what is added to it is rounded to a whole number */
    words tiny = x < -87.0f;
    floats held = x * 1.44269504f + shift, n = held - shift;
    words power, bits;
    memcpy(&power, &held, sizeof power);
    floats r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    floats e = r * (1.0f / 5040) + 1.0f / 720;
    e = e * r + 1.0f / 120;
    e = e * r + 1.0f / 24;
    e = e * r + 1.0f / 6;
    e = e * r + 0.5f;
    e = e * r + 1.0f;
    e = e * r + 1.0f;
    power = (power - 0x4B400000 + 127) << 23;
    floats scale;
    memcpy(&scale, &power, sizeof scale);
    e *= scale;
    memcpy(&bits, &e, sizeof bits);
    bits &= ~tiny;
    memcpy(&e, &bits, sizeof e);
    return e;
}

/* A group of heads that share keys and values, in one row; numbers of bytes where it says "step". Token l lies at l
 * steps, or, with `places`, at places[l]. */
INLINE void attend(
    int half, const int lanes, int64_t heads, int64_t length, const int32_t *places, const char *query,
    int64_t head_step, const char *key, int64_t key_step, const char *value, int64_t value_step, float scale,
    float *scores, float *out
) {
    const int bytes = LANES * (half ? 2 : 4);
    const int64_t room = (length + LANES - 1) / LANES * LANES;
    for (int64_t h = 0; h < heads; h++) {
        floats own[WIDEST], sum[WIDEST];
        for (int i = 0; i < lanes; i++) own[i] = load(half, query + h * head_step + i * bytes) * scale;
        float most = -1.0f / 0.0f;
        for (int64_t l = 0; l < length; l++) {
            const char *at = key + (places ? places[l] : l) * key_step;
            floats part = own[0] * load(half, at);
            for (int i = 1; i < lanes; i++) part += own[i] * load(half, at + i * bytes);
            scores[l] = sum_of(part);
            most = scores[l] > most ? scores[l] : most;
        }
        for (int64_t l = length; l < room; l++) scores[l] = -1.0f / 0.0f;
        floats total = {0};
        for (int64_t l = 0; l < room; l += LANES) {
            floats some = exponential(load(0, (const char *)(scores + l)) - most);
            memcpy(scores + l, &some, sizeof some);
            total += some;
        }
        float share = 1.0f / sum_of(total);
        for (int i = 0; i < lanes; i++) sum[i] = (floats){0};
        for (int64_t l = 0; l < length; l++) {
            const char *at = value + (places ? places[l] : l) * value_step;
            for (int i = 0; i < lanes; i++) sum[i] += load(half, at + i * bytes) * scores[l];
        }
        for (int i = 0; i < lanes; i++) {
            sum[i] *= share;
            memcpy(out + (h * lanes + i) * LANES, &sum[i], sizeof sum[i]);
        }
    }
}

/* softmax(scale q k) v: query [rows, heads, width], key and value [rows, groups, length, width] with steps in bytes for
 * all but the last, out float32 [rows, heads, width] without gaps, scores room for `length` numbers and 15 more. With
 * `places` [rows, length], keys and values are those of nodes: a token's place is the number of its node. */
EXPORT void knowshift_attention(
    int half, int64_t rows, int64_t heads, int64_t groups, int64_t length, int64_t width, const int32_t *places,
    const char *query, const int64_t *query_steps, const char *key, const int64_t *key_steps, const char *value,
    const int64_t *value_steps, float scale, float *scores, float *out
) {
    const int64_t each = heads / groups;
#define ATTEND(HALF, WIDTH, PLACES) \
    attend(HALF, WIDTH, each, length, PLACES, query + r * query_steps[0] + g * each * query_steps[1], query_steps[1], \
           key + r * key_steps[0] + g * key_steps[1], key_steps[2], value + r * value_steps[0] + g * value_steps[1], \
           value_steps[2], scale, scores, out + (r * heads + g * each) * width)
#define EITHER(HALF, WIDTH) \
    do { \
        if (places) ATTEND(HALF, WIDTH, places + r * length); \
        else ATTEND(HALF, WIDTH, NULL); \
    } while (0)
    for (int64_t r = 0; r < rows; r++)
        for (int64_t g = 0; g < groups; g++) {
            if (width == 32 && !half) EITHER(0, 2);
            else if (width == 64 && !half) EITHER(0, 4);
            else if (width == 64) EITHER(1, 4);
            else if (width == 128 && !half) EITHER(0, 8);
            else if (width == 128) EITHER(1, 8);
            else EITHER(half, (int)(width / LANES));
        }
}

/* exp((x - most) scale) for 16 numbers. */
INLINE floats weight_of(const float *from, float most, float scale) {
    return exponential((load(0, (const char *)from) - most) * scale);
}

/* Of each row of logits, `step` numbers apart, weights exp((x - largest) scale) and their sums over blocks of `block`
 * numbers, a multiple of 16. Draws [draws] come in the order of their rows: `token` is where the sum up to it passes
 * `uniform` times the sum of all, and `chance` [draws, watched] the weights of the tokens watched (below 0: none) over
 * that sum. `weights` is room for a row in whole blocks, `passed` for one number a block. Whether all sums are finite. */
EXPORT int knowshift_choose(
    int64_t vocabulary, int64_t block, const float *logits, int64_t step, float scale, int64_t draws,
    const int64_t *row, const double *uniform, int64_t watched, const int64_t *watch, float *weights, double *passed,
    int64_t *token, double *chance
) {
    const int64_t blocks = (vocabulary + block - 1) / block, whole = vocabulary / LANES * LANES;
    const floats none = (floats){0} - 1.0f / 0.0f;
    double total = 0;
    for (int64_t d = 0; d < draws; d++) {
        if (!d || row[d] != row[d - 1]) {
            const float *x = logits + row[d] * step;
            float rest[LANES]; /* the last few numbers, and nothing */
            memcpy(rest, &none, sizeof rest);
            memcpy(rest, x + whole, (size_t)(vocabulary - whole) * sizeof *rest);
            float highest[LANES];
            memcpy(highest, rest, sizeof rest);
            for (int64_t i = 0; i < whole; i += LANES)
                for (int lane = 0; lane < LANES; lane++)
                    highest[lane] = x[i + lane] > highest[lane] ? x[i + lane] : highest[lane];
            float most = highest[0];
            for (int lane = 1; lane < LANES; lane++) most = highest[lane] > most ? highest[lane] : most;
            total = 0;
            for (int64_t b = 0; b < blocks; b++) {
                floats sum = {0};
                for (int64_t i = b * block; i < (b + 1) * block; i += LANES) {
                    floats some = {0};
                    if (i < whole) some = weight_of(x + i, most, scale);
                    else if (i < vocabulary) some = weight_of(rest, most, scale);
                    memcpy(weights + i, &some, sizeof some);
                    sum += some;
                }
                total += sum_of(sum);
                passed[b] = total;
            }
            if (!(total - total == 0)) return 0;
        }
        double goal = uniform[d] * total, so_far;
        int64_t low = 0, high = blocks - 1; /* the first block whose sum passes the goal, or the last */
        while (low < high) {
            const int64_t middle = (low + high) / 2;
            if (passed[middle] > goal) high = middle;
            else low = middle + 1;
        }
        so_far = low ? passed[low - 1] : 0;
        int64_t found = -1;
        for (int64_t i = low * block; i < (low + 1) * block; i++) {
            if (weights[i] > 0) found = i; /* rounding may leave the goal just beyond the block: its last that can be */
            so_far += weights[i];
            if (so_far > goal && weights[i] > 0) break;
        }
        while (found < 0 && low > 0) { /* a last block of no weight */
            low--;
            for (int64_t i = low * block; i < (low + 1) * block; i++)
                if (weights[i] > 0) found = i;
        }
        token[d] = found;
        for (int64_t w = 0; w < watched; w++) {
            const int64_t at = watch[d * watched + w];
            chance[d * watched + w] = at < 0 ? 0 : weights[at] / total;
        }
    }
    return 1;
}
