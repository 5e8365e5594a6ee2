// Operands of matrix products that cannot be read where they lie: copies that are rounded to the product's dtype, whose
// rows are padded with zeros to whole copies of 16 bytes, or that hold chosen rows only.
//
// A thread writes 16 bytes, from neighbours in a row. Every shape and alignment so takes the products' one way of
// loading, at the price of reading and writing the operand once where it is odd; no product's bits depend on it.
#include <cstdint>

#include "cuda/launch.h"
#include "cuda/matmul/product.h"
#include "cuda/number.cuh"
#include "cuda/tiles/pack.cuh"
#include "cuda/tiles/shared_tile.cuh"

namespace pygpt::cuda {
namespace {

constexpr int threads = 256;

template <class To>
constexpr int chunk_elements = chunk_bytes / static_cast<int>(sizeof(To));

// All rows, which make up one long row of whole chunks.
template <class From, class To>
__global__ void __launch_bounds__(threads) copy_whole_kernel(const From* from, To* to, std::int64_t chunks) {
    constexpr int count = chunk_elements<To>;
    const std::int64_t at = std::int64_t{blockIdx.x} * threads + threadIdx.x;
    if (at >= chunks) return;
    store<true>(to + at * count, load<true, count>(from + at * count, count), count);
}

template <class From, class To>
__global__ void copy_operand_kernel(const From* from, To* to, std::int64_t rows, std::int64_t columns,
                                    std::int64_t chunks, const std::int64_t* row_of, Limit limit) {
    constexpr int count = chunk_elements<To>;
    struct alignas(chunk_bytes) Chunk {
        To value[count];
    };
    const std::int64_t at = std::int64_t{blockIdx.x} * threads + threadIdx.x;
    const std::int64_t row = at / chunks;
    const std::int64_t left_rows = row_of ? *limit.count - limit.first : rows;
    if (row >= rows || row >= zeroed_rows(left_rows)) return;
    const bool exists = row < left_rows;
    const std::int64_t column = at % chunks * count;
    const From* source = from + (row_of && exists ? row_of[limit.first + row] : row) * columns + column;
    Chunk chunk;
    for (int i = 0; i < count; ++i) {
        chunk.value[i] = from_float<To>(exists && column + i < columns ? to_float(source[i]) : 0.0f);
    }
    reinterpret_cast<Chunk*>(to)[at] = chunk;
}

std::int64_t chunks_of_row(std::int64_t columns, DType dtype) {
    return divide_up(columns * bytes_of(dtype), chunk_bytes);
}

Matrix copied(const TensorView& tensor, std::int64_t rows, std::int64_t columns, DType dtype,
              const std::int64_t* row_of, Limit limit, void* to) {
    const std::int64_t chunks = chunks_of_row(columns, dtype);
    const Launch shape{.grid = static_cast<unsigned>(divide_up(rows * chunks, threads)), .block = threads};
    with_storage(dtype, [&](auto storage) {
        using To = decltype(storage);
        const auto run = [&](const auto* from) {
            using From = std::remove_cvref_t<decltype(*from)>;
            if (row_of == nullptr && in_packs(chunk_elements<To>, columns, {from})) {
                return launch(copy_whole_kernel<From, To>, shape, from, static_cast<To*>(to), rows * chunks);
            }
            launch(copy_operand_kernel<From, To>, shape, from, static_cast<To*>(to), rows, columns, chunks, row_of,
                   limit);
        };
        if (tensor.dtype == dtype) {
            run(static_cast<const To*>(tensor.data));
        } else {
            run(static_cast<const float*>(tensor.data));
        }
    });
    return {to, chunks * chunk_bytes / bytes_of(dtype)};
}

}  // namespace

Matrix operand(const TensorView& tensor, std::int64_t rows, std::int64_t columns, DType dtype) {
    const bool whole = columns * bytes_of(dtype) % chunk_bytes == 0;
    const bool aligned = reinterpret_cast<std::uintptr_t>(tensor.data) % chunk_bytes == 0;
    if (tensor.dtype == dtype && whole && aligned) return {tensor.data, columns};
    return copied(tensor, rows, columns, dtype, nullptr, {},
                  scratch<unsigned char>(operand_bytes(rows, columns, dtype)));
}

Matrix gathered(const TensorView& tensor, std::int64_t columns, const std::int64_t* rows, Limit limit,
                std::int64_t most_rows, void* to) {
    return copied(tensor, most_rows, columns, tensor.dtype, rows, limit, to);
}

std::size_t operand_bytes(std::int64_t rows, std::int64_t columns, DType dtype) {
    return static_cast<std::size_t>(rows * chunks_of_row(columns, dtype) * chunk_bytes);
}

Either either(const TensorView& tensor) {
    return {tensor.data, tensor.dtype == DType::float32};
}
Either either(const std::optional<TensorView>& tensor) {
    return tensor ? either(*tensor) : Either{};
}

}  // namespace pygpt::cuda
