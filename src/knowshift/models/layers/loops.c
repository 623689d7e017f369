/* Root-mean-square norm, rotary positions and attention to few keys, forward and backward, compiled (loops.py says
 * what and why).
 *
 * Numbers of a norm are added in the order in which PyTorch's own sum over a row adds them on x86-64 (up to 512
 * numbers), and no product is contracted with a sum, so that the results are those of the operations that they stand
 * for. Built by hatch_build.py with floating-point contraction off.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(KNOWSHIFT_CLONES)
#define EXPORT __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define EXPORT
#endif
#define INLINE static inline __attribute__((always_inline))

const char knowshift_source[] = KNOWSHIFT_SOURCE; /* a digest of this file, so that an older build is noticed */

enum { LANES = 8, BESIDE = 4 }; /* numbers at a time, and how many sums of these beside each other */

typedef float floats __attribute__((vector_size(32)));

INLINE floats load(const float *from) {
    floats loaded;
    memcpy(&loaded, from, sizeof loaded);
    return loaded;
}

/* The sum of a[i] * b[i]. */
INLINE float sum_of_products(const float *a, const float *b, int64_t width) {
    const int64_t vectors = width / LANES, rounds = vectors / BESIDE;
    floats sums[BESIDE] = {{0}};
    for (int64_t round = 0; round < rounds; round++)
        for (int64_t beside = 0; beside < BESIDE; beside++) {
            const int64_t at = (round * BESIDE + beside) * LANES;
            sums[beside] += load(a + at) * load(b + at);
        }
    for (int64_t at = rounds * BESIDE * LANES; at < vectors * LANES; at += LANES) sums[0] += load(a + at) * load(b + at);
    for (int64_t beside = 1; beside < BESIDE; beside++) sums[0] += sums[beside];
    float total = 0;
    for (int64_t at = vectors * LANES; at < width; at++) total += a[at] * b[at];
    for (int64_t lane = 0; lane < LANES; lane++) total += sums[0][lane];
    return total;
}

/* The mean of x^2 + epsilon of each row [rows] of x [rows, width]. With `added`, x is x + added, written to `summed`. */
EXPORT void knowshift_squares(
    int64_t rows, int64_t width, const float *x, const float *added, float *summed, float epsilon, float *squares
) {
    for (int64_t row = 0; row < rows; row++, x += width) {
        const float *own = x;
        if (added) {
            for (int64_t i = 0; i < width; i++) summed[i] = x[i] + added[i];
            own = summed;
            added += width, summed += width;
        }
        squares[row] = sum_of_products(own, own, width) / (float)width + epsilon;
    }
}

/* out = weight * (x * scale): x and out [rows, width], scale [rows], weight [width]. */
EXPORT void knowshift_scale(
    int64_t rows, int64_t width, const float *x, const float *scale, const float *weight, float *out
) {
    for (int64_t row = 0; row < rows; row++, x += width, out += width)
        for (int64_t i = 0; i < width; i++) out[i] = weight[i] * (x[i] * scale[row]);
}

/* The gradient of x, [rows, width], from that of the norm's output, plus `residual` where there is one; and
 * `products`, whose sums over the rows are the gradient of the weight. `room` takes `width` numbers. */
EXPORT void knowshift_norm_backward(
    int64_t rows, int64_t width, const float *x, const float *r, const float *weight, const float *gradient,
    const float *residual, float *products, float *room, float *out
) {
    for (int64_t row = 0; row < rows; row++, x += width, gradient += width, products += width, out += width) {
        const float scale = r[row];
        for (int64_t i = 0; i < width; i++) {
            products[i] = gradient[i] * (x[i] * scale);
            room[i] = gradient[i] * weight[i];
        }
        const float of_scale = sum_of_products(room, x, width);
        const float of_mean = (-0.5f * of_scale) * ((scale * scale) * scale) / (float)width;
        if (residual) {
            for (int64_t i = 0; i < width; i++) out[i] = (residual[i] + room[i] * scale) + of_mean * (2.0f * x[i]);
            residual += width;
        } else {
            for (int64_t i = 0; i < width; i++) out[i] = room[i] * scale + of_mean * (2.0f * x[i]);
        }
    }
}

/* Rotates the two halves of every head, [rows, heads, width], in place: by the angles of cosines and sines, row `row`
 * modulo `angles` of [angles, width]; back for a gradient. */
EXPORT void knowshift_rotate(
    int64_t rows, int64_t heads, int64_t width, int64_t angles, const float *cosine, const float *sine, int back, float *x
) {
    const int64_t half = width / 2;
    for (int64_t row = 0; row < rows; row++) {
        const float *c = cosine + row % angles * width, *s = sine + row % angles * width;
        for (int64_t head = 0; head < heads; head++, x += width) {
            float *first = x, *second = x + half;
            if (back)
                for (int64_t i = 0; i < half; i++) {
                    const float a = first[i], b = second[i];
                    first[i] = a * c[i] + b * s[half + i];
                    second[i] = b * c[half + i] - a * s[i];
                }
            else
                for (int64_t i = 0; i < half; i++) {
                    const float a = first[i], b = second[i];
                    first[i] = a * c[i] - b * s[i];
                    second[i] = b * c[half + i] + a * s[half + i];
                }
        }
    }
}

/* to += by * from. */
INLINE void add_scaled(float *restrict to, const float *restrict from, float by, int64_t width) {
    for (int64_t i = 0; i < width; i++) to[i] += by * from[i];
}

/* Attention of rows of queries to the keys that each may see: those of token t are keys[starts[t]] and so on, below
 * starts[t + 1], one or more; row `row` is token asked[row], or `row` without `asked`. q and out [rows, heads, width], k
 * and v [tokens, heads, width]; `probabilities` has one for each head and key that is seen, for the gradient. */
EXPORT void knowshift_attend(
    int64_t rows, int64_t heads, int64_t width, const int64_t *asked, const int64_t *starts, const int64_t *keys,
    float scale, const float *q, const float *k, const float *v, float *probabilities, float *out
) {
    const int64_t all = heads * width;
    memset(out, 0, sizeof(float) * (size_t)(rows * all));
    for (int64_t row = 0; row < rows; row++) {
        const int64_t token = asked ? asked[row] : row, count = starts[token + 1] - starts[token];
        const int64_t *seen = keys + starts[token];
        for (int64_t head = 0; head < heads; head++, q += width, out += width) {
            float *probability = probabilities + starts[token] * heads + head * count;
            float highest = -INFINITY, total = 0;
            for (int64_t i = 0; i < count; i++) {
                probability[i] = scale * sum_of_products(q, k + seen[i] * all + head * width, width);
                highest = probability[i] > highest ? probability[i] : highest;
            }
            for (int64_t i = 0; i < count; i++) total += probability[i] = expf(probability[i] - highest);
            for (int64_t i = 0; i < count; i++) {
                probability[i] /= total;
                add_scaled(out, v + seen[i] * all + head * width, probability[i], width);
            }
        }
    }
}

/* The gradients of q [rows, heads, width], and of k and v, which are 0 before, from that of the output. `room` takes as
 * many numbers as a token sees keys. */
EXPORT void knowshift_attend_backward(
    int64_t rows, int64_t heads, int64_t width, const int64_t *asked, const int64_t *starts, const int64_t *keys,
    float scale, const float *q, const float *k, const float *v, const float *probabilities, const float *gradient,
    float *room, float *of_q, float *of_k, float *of_v
) {
    const int64_t all = heads * width;
    memset(of_q, 0, sizeof(float) * (size_t)(rows * all));
    for (int64_t row = 0; row < rows; row++) {
        const int64_t token = asked ? asked[row] : row, count = starts[token + 1] - starts[token];
        const int64_t *seen = keys + starts[token];
        for (int64_t head = 0; head < heads; head++, q += width, gradient += width, of_q += width) {
            const float *probability = probabilities + starts[token] * heads + head * count;
            float mean = 0;
            for (int64_t i = 0; i < count; i++) {
                room[i] = sum_of_products(gradient, v + seen[i] * all + head * width, width);
                mean += probability[i] * room[i];
            }
            for (int64_t i = 0; i < count; i++) {
                const int64_t at = seen[i] * all + head * width;
                const float of_score = probability[i] * (room[i] - mean) * scale;
                add_scaled(of_q, k + at, of_score, width);
                add_scaled(of_k + at, q, of_score, width);
                add_scaled(of_v + at, gradient, probability[i], width);
            }
        }
    }
}
