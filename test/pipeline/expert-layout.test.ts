import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { affineType } from '../../dist/model/affine-types.js';
import type { StridedPlace } from '../../dist/model/places.js';
import type { ExpertMatrix } from '../../dist/model/tensor-map.js';
import {
  chunksPerExpert,
  ExpertLayout,
  emptyChunkList,
  type LayerSource,
  SPANS_MAX,
  SPLIT_MAX,
  slotBytesOf,
} from '../../dist/pipeline/expert-layout.js';
import { PAGE_BYTES } from '../../dist/pipeline/memory.js';
import { layerSource } from '../../dist/pipeline/plan.js';

const span = fc.record({
  file: fc.integer({ min: 0, max: 2 }),
  offsetBytes: fc.integer({ min: 0, max: 3 * PAGE_BYTES }).map((offset) => offset * 32),
  byteLength: fc.integer({ min: 1, max: 20 * PAGE_BYTES }),
});

describe('ExpertLayout', () => {
  it('reads every byte of an expert exactly once, in whole pages, into its own place of the slot', () => {
    fc.assert(
      fc.property(
        fc.array(span, { minLength: 3, maxLength: SPANS_MAX }),
        fc.integer({ min: 1, max: SPLIT_MAX }),
        fc.integer({ min: 0, max: 7 }),
        (spans, split, expert) => {
          const layer = {
            spans: spans.map((each) => ({ ...each, strideBytes: each.byteLength })),
          } as unknown as LayerSource;
          const ends = [0, 1, 2].map((file) =>
            Math.max(
              1,
              ...layer.spans.filter((s) => s.file === file).map((s) => s.offsetBytes + 8 * s.strideBytes),
            ),
          );
          const layout = new ExpertLayout([layer], ends, split);
          const chunks = emptyChunkList();
          layout.chunksOf(0, expert, chunks);
          expect(chunks.count).toBeGreaterThanOrEqual(1);
          expect(chunks.count).toBeLessThanOrEqual(chunksPerExpert(layer, split));

          const slotBytes = slotBytesOf(layer);
          const slotPages = new Set<number>();
          const filePages = new Map<string, number>();
          for (let index = 0; index < chunks.count; index++) {
            const [offset, length, into] = [
              chunks.offsetBytes[index]!,
              chunks.byteLength[index]!,
              chunks.slotBytes[index]!,
            ];
            expect([offset % PAGE_BYTES, length % PAGE_BYTES, into % PAGE_BYTES]).toEqual([0, 0, 0]);
            expect(into + length).toBeLessThanOrEqual(slotBytes);
            const file = chunks.file[index]!;
            expect(chunks.requiredBytes[index]).toBe(Math.min(length, ends[file]! - offset));
            for (let page = 0; page < length; page += PAGE_BYTES) {
              expect(slotPages.has(into + page)).toBe(false);
              slotPages.add(into + page);
              filePages.set(`${into + page}`, offset + page);
            }
          }
          // Every byte of every span is where the layout says it is.
          layer.spans.forEach((source, index) => {
            const begin = source.offsetBytes + expert * source.strideBytes;
            const at = layout.spanSlotBytes(0, expert, index);
            for (const byte of [0, Math.floor(source.byteLength / 2), source.byteLength - 1]) {
              const slotPage = at + byte - ((at + byte) % PAGE_BYTES);
              expect(filePages.get(`${slotPage}`)).toBe(begin + byte - ((begin + byte) % PAGE_BYTES));
            }
          });
        },
      ),
      { numRuns: 500 },
    );
  });

  it('cuts an expert of the 397B Q3 shape as documented', () => {
    const matrices = [1_605_632, 1_605_632, 2_228_224];
    const layer = {
      spans: matrices.map((byteLength, index) => ({
        file: 0,
        offsetBytes: index * 2 ** 30,
        strideBytes: byteLength,
        byteLength,
      })),
    } as unknown as LayerSource;
    const lengths = (split: number): number[] => {
      const chunks = emptyChunkList();
      new ExpertLayout([layer], [2 ** 33], split).chunksOf(0, 3, chunks);
      return Array.from(chunks.byteLength.subarray(0, chunks.count));
    };
    expect(lengths(1)).toEqual(matrices);
    expect(lengths(4)).toEqual([1_605_632, 1_605_632, 1_114_112, 1_114_112]);
    expect(lengths(8).reduce((sum, bytes) => sum + bytes, 0)).toBe(5_439_488);
    expect(lengths(8)).toHaveLength(8);
  });

  it('reads matrices that touch as one', () => {
    const touching = (file: number): LayerSource =>
      ({
        spans: [
          { file: 0, offsetBytes: 4096, strideBytes: 20480, byteLength: 5000 },
          { file: 0, offsetBytes: 9096, strideBytes: 20480, byteLength: 5000 },
          { file, offsetBytes: 14096, strideBytes: 20480, byteLength: 6000 },
        ],
      }) as unknown as LayerSource;
    const chunks = emptyChunkList();
    const packed = new ExpertLayout([touching(0)], [2 ** 20, 2 ** 20], 1);
    packed.chunksOf(0, 2, chunks);
    expect([chunks.count, chunks.offsetBytes[0], chunks.byteLength[0]]).toEqual([1, 4096 + 2 * 20480, 16384]);
    expect([0, 1, 2].map((span) => packed.spanSlotBytes(0, 2, span))).toEqual([0, 5000, 10000]);
    // Every expert begins on a page, so the slot needs no room to spare.
    expect(slotBytesOf(touching(0))).toBe(16384);
    new ExpertLayout([touching(1)], [2 ** 20, 2 ** 20], 1).chunksOf(0, 2, chunks);
    expect(chunks.count).toBe(2);
  });

  it('reads an MLX expert as nine spans in as many chunks, and packed as one', () => {
    const matrix = (offsetBytes: number, apart: boolean): ExpertMatrix => {
      // 4 bits in groups of 64: 1024 x 4096.
      const [codes, side] = [2_097_152, 131_072];
      const stride = apart ? undefined : 7_077_888;
      const place = (at: number, byteLength: number): StridedPlace => ({
        file: 0,
        offsetBytes: at,
        strideBytes: stride ?? byteLength,
        byteLength,
      });
      const next = apart ? 2 ** 31 : codes;
      const last = apart ? 2 ** 32 : codes + side;
      return {
        type: affineType(4, 64)!,
        rows: 1024,
        cols: 4096,
        ...place(offsetBytes, codes),
        scales: place(offsetBytes + next, side),
        biases: place(offsetBytes + last, side),
      };
    };
    const each = 2_097_152 + 2 * 131_072;
    const chunks = emptyChunkList();
    for (const [apart, count] of [
      [true, 9],
      [false, 1],
    ] as const) {
      const step = apart ? 2 ** 34 : each;
      const source = layerSource({
        gate: matrix(0, apart),
        up: matrix(step, apart),
        down: matrix(2 * step, apart),
      });
      expect(source.roles).toEqual([0, 3, 6, 1, 2, 4, 5, 7, 8]);
      const layout = new ExpertLayout([source], [2 ** 40], 1);
      layout.chunksOf(0, 3, chunks);
      expect(chunks.count).toBe(count);
      expect(layout.expertBytes(0)).toBe(7_077_888);
      const places = source.roles!.map((span) => layout.spanSlotBytes(0, 3, span));
      expect(new Set(places).size).toBe(9);
      if (!apart) expect(places.slice(0, 3)).toEqual([0, each, 2 * each]);
    }
  });

  it('has no roles without scales, and none for a matrix that has none', () => {
    const plain = {
      type: affineType(4, 64)!,
      rows: 1,
      cols: 64,
      file: 0,
      offsetBytes: 0,
      strideBytes: 32,
      byteLength: 32,
    };
    expect(layerSource({ gate: plain, up: plain, down: plain }).roles).toBeUndefined();
    const affine = { ...plain, scales: plain, biases: plain };
    expect(layerSource({ gate: plain, up: affine, down: plain })).toMatchObject({
      roles: [0, 1, 4, -1, -1, 2, 3, -1, -1],
    });
  });
});
