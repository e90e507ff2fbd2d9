// The codebooks of the IQ formats: constants that the file format publishes.
//
// An entry's values are three or eight different ones, so codebooks.cpp keeps 16 bits per entry (5 KB in all) and the
// compiler unpacks them. They unpack to floats: 4 to 32 KB per format, which a core's first cache holds, and a lookup
// needs no conversion.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace moestream::cpu {

template <std::size_t kEntries, std::size_t kValues>
using Grid = std::array<std::array<float, kValues>, kEntries>;

extern const Grid<256, 8> kGridIq2Xxs;
extern const Grid<512, 8> kGridIq2Xs;
extern const Grid<1024, 8> kGridIq2S;
extern const Grid<256, 4> kGridIq3Xxs;
extern const Grid<512, 4> kGridIq3S;

// The values of 4-bit codes: IQ4_NL and IQ4_XS, and twice those of MXFP4.
inline constexpr std::array<std::int8_t, 16> kValuesIq4{-127, -104, -83, -65, -49, -35, -22, -10,
                                                        1,    13,   25,  38,  53,  69,  89,  113};
inline constexpr std::array<std::int8_t, 16> kValuesMxfp4{0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

// The same grids and values for integer products: magnitudes as bytes, in plain arrays (what is compiled with an
// instruction set of its own must call nothing that the linker could share).
template <std::size_t kEntries, std::size_t kValues>
struct ByteGrid {
  alignas(64) std::uint8_t entries[kEntries][kValues];
};

extern const ByteGrid<256, 8> kBytesIq2Xxs;
extern const ByteGrid<512, 8> kBytesIq2Xs;
extern const ByteGrid<1024, 8> kBytesIq2S;
extern const ByteGrid<256, 4> kBytesIq3Xxs;
extern const ByteGrid<512, 4> kBytesIq3S;

// The choices among the eight magnitudes of a 3-bit format: pairs[h][entry] has that of value 2h in its low nibble and
// that of value 2h + 1 in its high one.
template <std::size_t kEntries>
struct PairTable {
  alignas(64) std::uint8_t pairs[2][kEntries];
};

extern const PairTable<256> kPairsIq3Xxs;
extern const PairTable<512> kPairsIq3S;

alignas(16) inline constexpr std::int8_t kCodesIq4[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                                          1,    13,   25,  38,  53,  69,  89,  113};
alignas(16) inline constexpr std::int8_t kCodesMxfp4[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

}  // namespace moestream::cpu
