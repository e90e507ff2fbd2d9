import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { TextGate } from '../../dist/workers/text-gate.js';

const encoder = new TextEncoder();
const decoder = new TextDecoder();

/** Feeds the text in the given pieces; returns what came out and whether a stop string ended it. */
function feed(stops: string[], pieces: Uint8Array[]): { out: string; stopped: boolean } {
  const gate = new TextGate(stops, 4096);
  const out: number[] = [];
  const take = (count: number): void => {
    out.push(...gate.bytes.subarray(0, count));
    gate.drop(count);
  };
  for (const piece of pieces) {
    take(gate.add(piece, 0, piece.length));
    if (gate.stopped) break;
  }
  if (!gate.stopped) take(gate.end());
  return { out: decoder.decode(Uint8Array.from(out)), stopped: gate.stopped };
}

function cut(bytes: Uint8Array, at: number[]): Uint8Array[] {
  const borders = [...new Set([0, ...at.map((each) => each % (bytes.length + 1)), bytes.length])].sort(
    (a, b) => a - b,
  );
  return borders.slice(1).map((border, index) => bytes.slice(borders[index], border));
}

describe('TextGate', () => {
  it('ends before the first stop string, wherever token borders fall', () => {
    fc.assert(
      fc.property(
        fc
          .array(fc.constantFrom('a', 'b', 'ab', 'é', '漢', '🙂', '\n'), { maxLength: 40 })
          .map((parts) => parts.join('')),
        fc.array(fc.constantFrom('ab', 'aab', 'b\n', '漢é', '🙂', 'ba'), { maxLength: 3 }),
        fc.array(fc.nat(), { maxLength: 20 }),
        (text, stops, borders) => {
          const { out, stopped } = feed(stops, cut(encoder.encode(text), borders));
          // A stop string that completes first wins, even when one that began earlier would complete later.
          const ends = stops.map((stop) => text.indexOf(stop)).filter((at) => at >= 0);
          expect(stopped).toBe(ends.length > 0);
          if (!stopped) expect(out).toBe(text);
          else {
            expect(text.startsWith(out)).toBe(true);
            for (const stop of stops) expect(out.includes(stop)).toBe(false);
            expect(stops.some((stop) => text.startsWith(out + stop))).toBe(true);
          }
        },
      ),
      { numRuns: 1000 },
    );
  });

  it('holds back only what could become a stop string', () => {
    const gate = new TextGate(['<end>'], 100);
    const add = (text: string): number => {
      const bytes = encoder.encode(text);
      const free = gate.add(bytes, 0, bytes.length);
      gate.drop(free);
      return free;
    };
    expect(add('abc')).toBe(3);
    expect(add('<e')).toBe(0);
    expect(add('x')).toBe(3);
    expect(add('<end')).toBe(0);
    expect(gate.end()).toBe(4);
  });

  it('refuses stop strings that are empty, too long or too many', () => {
    expect(() => new TextGate([''], 10)).toThrow(/stop string 1 has 0 bytes/);
    expect(() => new TextGate(['a', 'x'.repeat(2000)], 10)).toThrow(/stop string 2 has 2000 bytes/);
    expect(() => new TextGate(new Array(17).fill('a'), 10)).toThrow(/17 stop strings/);
  });
});
