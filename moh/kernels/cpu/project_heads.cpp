// heads[r,h,:] = W_h x[r,:] + bias for the rows that selected head h, on CPUs.
//
// W_h is packed once per call, transposed into panels [C][kPanel] that stay in the L2 cache while the rows of the head
// pass by in tiles of kRows; rows of x are read in place through pointers. Heads beside one another that every row
// selected, as shared heads are, count as one wide head: a head of 72 alone fills 80 columns. A few rows (decode) read
// W_h in place.
#include "moh/kernels/cpu/projection_work.h"

namespace moh::kernels::MOH_ISA {
namespace {

constexpr int64_t kBlockRows = 96;  // rows of one head that a thread takes at a time
constexpr int64_t kDepth = 512;     // steps: 12 KB of kRows rows of x

// Results of row r for `size` columns from `column` on; columns of all heads are counted through.
void write_columns(const ProjectionParams& p, int64_t r, int64_t column, int64_t size, const float* from) {
  const int64_t h = column / p.head_dim, d = column % p.head_dim;
  const int64_t place = r * p.out.stride[0] + h * p.out.stride[1] + d * p.out.stride[2];
  write_row(static_cast<char*>(p.out.data) + place * size_of(p.dtype), p.out.stride[2], from, size, p.dtype, 1.0F);
}

void clear_skipped(const ProjectionParams& p) {
  constexpr int64_t kRowsAnItem = 256;
  for_each_item(p.parallel, (p.selection.num_rows + kRowsAnItem - 1) / kRowsAnItem, [&](int64_t item) {
    for (int64_t r = item * kRowsAnItem; r < min_of((item + 1) * kRowsAnItem, p.selection.num_rows); ++r) {
      for (int64_t h = 0; h < p.selection.num_heads; ++h) {
        if (p.selection.gates[r * p.selection.num_heads + h] != 0) continue;
        char* out = static_cast<char*>(p.out.data) + (r * p.out.stride[0] + h * p.out.stride[1]) * size_of(p.dtype);
        clear_row(out, p.out.stride[2], p.head_dim, p.dtype);
      }
    }
  });
}

// Each row of W_h is read once for all rows that need it.
void project_few(const ProjectionParams& p, const Selection& lists, const PlainRows& x) {
  constexpr int64_t kPart = 16;
  const int64_t parts = (p.head_dim + kPart - 1) / kPart;
  for_each_item(p.parallel, p.selection.num_heads * parts, [&](int64_t item) {
    const int64_t h = item / parts, begin = item % parts * kPart, end = min_of(begin + kPart, p.head_dim);
    float result[kFewProjected][kPart];
    for (int64_t d = begin; d < end; ++d) {
      const char* weight = byte_at(p.weight.data, h * p.weight.stride[0] + d * p.weight.stride[1], p.dtype);
      const float bias = p.bias == nullptr ? 0.0F : element(p.bias, h * p.head_dim + d, p.dtype);
      for (int64_t i = 0; i < lists.count(h); ++i) {
        Vec sums[4] = {};
        const float rest = add_products(sums, x.at(lists.begin(h)[i], 0), weight, p.width, p.dtype);
        result[i][d - begin] = bias + rest + total_of(sums);
      }
    }
    for (int64_t i = 0; i < lists.count(h); ++i)
      write_columns(p, lists.begin(h)[i], h * p.head_dim + begin, end - begin, result[i]);
  });
}

// Columns that the same rows need: a head, or a part of heads that every row needs (head = -1).
struct Piece {
  int64_t column, columns, padded, head, packed, first_item;  // packed: where its weights begin
  int64_t rows(const ProjectionParams& p, const Selection& lists) const {
    return head < 0 ? p.selection.num_rows : lists.count(head);
  }
  int64_t row(const Selection& lists, int64_t i) const { return head < 0 ? i : lists.begin(head)[i]; }
};

struct Pieces {
  Buffer<Piece> all;
  int64_t count = 0, packed = 0, items = 0;

  Pieces(const ProjectionParams& p, const Selection& lists)
      : all(p.selection.num_heads * (p.head_dim / kPieceColumns + 2)) {
    const bool joins =
        p.weight.stride[0] == p.head_dim * p.weight.stride[1] && p.out.stride[1] == p.head_dim * p.out.stride[2];
    for (int64_t h = 0; h < p.selection.num_heads;) {
      int64_t end = h;
      while (joins && end < p.selection.num_heads && lists.count(end) == p.selection.num_rows) ++end;
      if (end == h) {
        if (lists.count(h) > 0) add(p, lists, h * p.head_dim, p.head_dim, h);
        ++h;
        continue;
      }
      for (int64_t column = h * p.head_dim; column < end * p.head_dim; column += kPieceColumns) {
        add(p, lists, column, min_of(kPieceColumns, end * p.head_dim - column), -1);
      }
      h = end;
    }
  }

 private:
  static constexpr int64_t kPieceColumns = 128;

  void add(const ProjectionParams& p, const Selection& lists, int64_t column, int64_t columns, int64_t head) {
    Piece& piece = all[count++];
    piece = {column, columns, round_up(columns, kHalf), head, packed, items};
    packed += piece.padded * steps_of(p.width);
    items += (piece.rows(p, lists) + kBlockRows - 1) / kBlockRows;
  }
};

const char* weight_at(const ProjectionParams& p, int64_t column) {
  const int64_t h = column / p.head_dim, d = column % p.head_dim;
  return byte_at(p.weight.data, h * p.weight.stride[0] + d * p.weight.stride[1], p.dtype);
}

// Rows `begin` to `end` of those that need the piece.
void project_block(const ProjectionParams& p, const Selection& lists, const LeftRows& x, const Piece& piece,
                   const Step* packed, int64_t begin, int64_t end) {
  const Buffer<float> results(kRows * piece.padded), bias(piece.padded);
  const int64_t steps = steps_of(p.width);
  float* to[kRows];
  for (int64_t i = 0; i < kRows; ++i) to[i] = &results[i * piece.padded];
  if (p.bias != nullptr) {
    read_row(bias.data, byte_at(p.bias, piece.column, p.dtype), 1, piece.columns, piece.padded, p.dtype, 1.0F);
  }
  for (int64_t tile = begin; tile < end; tile += kRows) {
    const int64_t count = min_of(kRows, end - tile);
    const Step* from[kRows] = {};
    for (int64_t i = 0; i < count; ++i) {
      from[i] = x.at(piece.row(lists, tile + i), 0);
      if (p.bias != nullptr) memcpy(to[i], bias.data, static_cast<size_t>(piece.padded) * sizeof(float));
    }
    for (int64_t depth = 0; depth < steps; depth += kDepth) {  // a tile of x stays in L1 for all panels
      for (int64_t panel = 0; panel < piece.padded; panel += kPanel) {
        const int64_t width = min_of(kPanel, piece.padded - panel);
        gathered_product(count, width, min_of(kDepth, steps - depth), from, depth,
                         packed + panel * steps + depth * width, width, to, panel, p.bias != nullptr || depth > 0);
      }
    }
    for (int64_t i = 0; i < count; ++i) {
      write_columns(p, piece.row(lists, tile + i), piece.column, piece.columns, to[i]);
    }
  }
}

}  // namespace

void project_heads(const ProjectionParams& p) {
  clear_skipped(p);
  const Selection& lists = p.selection;
  if (p.selection.num_rows <= kFewProjected && p.weight.stride[2] == 1) {
    const PlainRows x(p.x.data, p.dtype, p.selection.num_rows, p.x.stride[0], 1, 0, p.width, p.x.stride[1], nullptr,
                      p.parallel);
    return project_few(p, lists, x);
  }
  const LeftRows x(p.x.data, p.dtype, p.selection.num_rows, p.x.stride[0], 1, 0, p.width, p.x.stride[1], nullptr,
                   p.parallel);

  const Pieces pieces(p, lists);
  const int64_t steps = steps_of(p.width);
  const Buffer<Step> packed(pieces.packed);  // [piece][panel][step of C][column]
  for_each_item(p.parallel, pieces.count, [&](int64_t item) {
    const Piece& piece = pieces.all[item];
    for (int64_t panel = 0; panel < piece.padded; panel += kPanel) {
      pack_right(&packed[piece.packed + panel * steps],
                 weight_at(p, piece.column) + panel * p.weight.stride[1] * size_of(p.dtype), p.dtype,
                 p.weight.stride[2], p.weight.stride[1], p.width, min_of(kPanel, piece.columns - panel),
                 min_of(kPanel, piece.padded - panel));
    }
  });
  for_each_item(p.parallel, pieces.items, [&](int64_t item) {
    int64_t i = 0;
    while (i + 1 < pieces.count && pieces.all[i + 1].first_item <= item) ++i;
    const Piece& piece = pieces.all[i];
    const int64_t begin = (item - piece.first_item) * kBlockRows;
    project_block(p, lists, x, piece, &packed[piece.packed], begin, min_of(begin + kBlockRows, piece.rows(p, lists)));
  });
}

}  // namespace moh::kernels::MOH_ISA
