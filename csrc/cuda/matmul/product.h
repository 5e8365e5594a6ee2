// The matrix product that linear, feed_forward and linear_cross_entropy are made of, and what stands around it.
//
//   out = activation(a · b + bias) · slope(z) + residual          a (M, K), b (K, N), out (M, N)
//
// There are two: <80> for all dtypes, on every device; <90> for 16-bit numbers on Hopper (product_sm80.cu,
// product_sm90.cu). The second is weak: a build without machine code for sm_90a lacks it, and the entries that would
// call it refuse.
#ifndef PYGPT_CUDA_MATMUL_PRODUCT_H
#define PYGPT_CUDA_MATMUL_PRODUCT_H

#include <cstdint>
#include <optional>

#include "core/tensor_view.h"
#include "ops/activation.h"

namespace pygpt::cuda {

// An operand in the dtype of the product: rows of `pitch` elements at a multiple of 16 bytes, both, so that a tile is
// made of whole copies of 16 bytes. What a row has past its columns is zeros, up to a multiple of 16 bytes.
struct Matrix {
    const void* data;
    std::int64_t pitch;
};

// A tensor (rows, columns) as an operand in `dtype`: where it lies if it can be read there, else a scratch copy that
// is rounded, and padded to whole copies.
Matrix operand(const TensorView& tensor, std::int64_t rows, std::int64_t columns, DType dtype);

// A number of rows that only the device knows: of `*count` rows those from `first` on, at most as many as the host
// says. Without `count` it is what the host says.
struct Limit {
    const std::int64_t* count = nullptr;
    std::int64_t first = 0;
    std::int64_t stored = 0;  // rows that there is memory for: fewer than the host says where that is a round number
};

// Of that many rows over which a sum with a limit goes the operands hold so many more as make up whole steps, zeros
// all: tensor copies clip at what the host knows alone.
constexpr std::int64_t zeroed_rows(std::int64_t rows) {
    return (rows + 63) / 64 * 64;
}

// Those rows of `tensor` (..., columns) whose indices stand in rows[limit.first] and on, in the tensor's dtype: written
// to `to`, which has operand_bytes().
Matrix gathered(const TensorView& tensor, std::int64_t columns, const std::int64_t* rows, Limit limit,
                std::int64_t most_rows, void* to);
std::size_t operand_bytes(std::int64_t rows, std::int64_t columns, DType dtype);

// Memory of float32 or of the product's dtype; data is null where there is none.
struct Either {
    void* data = nullptr;
    bool float32 = true;
};
Either either(const TensorView& tensor);
Either either(const std::optional<TensorView>& tensor);

// What happens to a sum, in float32, in this order. An activation is applied by products of rows_rows, its slope by
// those of rows_across.
struct Epilogue {
    Either bias = {};                // (N,), added
    void* pre_activation = nullptr;  // (M, N), written, in the product's dtype
    Activation activation = Activation::none;
    const void* slope_at = nullptr;        // (M, N), in the product's dtype: the activation's derivative there is a
                                           // factor; the activation itself is not applied
    void* activated = nullptr;             // (M, N), written: the activation of slope_at
    Either residual = {};                  // (M, N), added; may be `out`
    Either out = {};                       // (M, N)
    std::int64_t pitch = 0;                // of all these (M, N)
    const std::int64_t* row_of = nullptr;  // row i of the product is row row_of[i] of these
};

// How operands lie in memory.
enum class Form {
    rows_rows,      // a (M, K), b as (N, K)
    rows_across,    // a (M, K), b (K, N)
    across_across,  // a as (K, M), b (K, N)
};

struct Product {
    DType dtype;
    Form form;
    Matrix a;
    Matrix b;
    std::int64_t M, N, K;
    std::int64_t part_k = 0;  // unless 0, K is cut into parts of so many, each with an (M, N) of its own in `out`
    Limit m_limit = {};
    Limit k_limit = {};
    Epilogue epilogue;

    std::int64_t parts() const { return part_k == 0 ? 1 : (K + part_k - 1) / part_k; }
    // Rows along K that operands have memory for.
    std::int64_t k_stored() const { return k_limit.count ? k_limit.stored : K; }
};

// One output element is summed over k in order, by one block, whatever M and N are.
template <int architecture>
void product(const Product& p);
template <>
void product<80>(const Product& p);
template <>
[[gnu::weak]] void product<90>(const Product& p);

// The same of rows_rows, without limits, row_of and slope_at, for few rows: b is read at the rate of memory. Other bits
// than product()'s, but for any M the same ones.
void skinny_product(const Product& p);

// Weight gradients, Σ_k a[k, m] · b[k, n] over the rows k of a batch: `out` has few tiles and the sum is long. So it is
// cut into parts whose length M, N and K decide, and these are added in order. `add` adds to what `out` holds, which is
// float32 then. The parts lie in `parts`, which has room for part_floats(), or in scratch memory of their own.
struct WeightGradient {
    DType dtype;
    Matrix a;  // as (K, M)
    Matrix b;  // (K, N)
    std::int64_t M, N, K;
    Limit k_limit = {};
    Either out;  // (M, N)
    bool add = false;
    float* parts = nullptr;
};
template <int architecture>
std::int64_t part_floats(const WeightGradient& w);
template <int architecture>
void weight_gradient(const WeightGradient& w);

// out[i] = Σ_p parts[p, i], in order of p, onto what is there if `add`; parts (count, elements) in float32.
void add_parts(const float* parts, std::int64_t count, std::int64_t elements, Either out, DType dtype, bool add);

// g = grad_out · activation'(pre_activation), rounded to `dtype` and written to `written` unless that is null, and
// sums, unless its data is null: Σ_rows g, of groups of rows of a fixed number, in order. pitch is that of grad_out
// alone. The groups' sums lie in `parts` as above.
struct RowSums {
    DType dtype;
    Either grad_out;                       // (rows, width)
    const void* pre_activation = nullptr;  // (rows, width), in dtype
    Activation activation = Activation::none;
    void* written = nullptr;  // (rows, width)
    std::int64_t rows, width, pitch;
    Limit limit = {};
    Either sums = {};  // (width,)
    bool add = false;
    float* parts = nullptr;
};
std::int64_t part_floats(const RowSums& s);
void sum_rows(const RowSums& s);

}  // namespace pygpt::cuda

#endif
