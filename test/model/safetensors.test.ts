/** Headers of safetensors files: what reads, and what is refused, by name. */
import { symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { MoestreamError } from '../../dist/errors.js';
import {
  parseSafetensors,
  readSafetensors,
  SAFETENSORS_HEADER_BYTES_MAX,
} from '../../dist/model/safetensors.js';
import { safetensors } from '../support/checkpoint-builder.js';
import { temporaryFolder } from '../support/folder.js';

const folder = temporaryFolder();

/** What reading the bytes fails with; the message must name the file. */
function failureOf(bytes: Uint8Array): MoestreamError {
  const path = join(folder, 'model.safetensors');
  writeFileSync(path, bytes);
  try {
    readSafetensors(path);
  } catch (error) {
    if (!(error instanceof MoestreamError)) throw error;
    expect(error.message).toContain(path);
    return error;
  }
  throw new Error('the file reads');
}

const A = { dtype: 'F32', shape: [2, 3], data_offsets: [0, 24] };
const B = { dtype: 'BF16', shape: [4], data_offsets: [24, 32] };
const DATA = new Uint8Array(32);

describe('a sound file', () => {
  it('gives every tensor its place', () => {
    const bytes = safetensors(
      {
        __metadata__: { format: 'pt' },
        b: B,
        a: A,
        none: { dtype: 'I64', shape: [0, 4], data_offsets: [32, 32] },
      },
      DATA,
    );
    const path = join(folder, 'sound.safetensors');
    writeFileSync(path, bytes);
    const data = bytes.length - 32;
    expect(readSafetensors(path)).toEqual({
      path,
      sizeBytes: bytes.length,
      tensors: [
        { name: 'a', dtype: 'F32', shape: [2, 3], offsetBytes: data, byteLength: 24 },
        { name: 'b', dtype: 'BF16', shape: [4], offsetBytes: data + 24, byteLength: 8 },
        { name: 'none', dtype: 'I64', shape: [0, 4], offsetBytes: data + 32, byteLength: 0 },
      ],
    });
  });

  it.each([0x7b, 0x5b, 0x4b50, 0x3c])('may have a header of %i bytes, whatever these look like', (length) => {
    const padded = JSON.stringify({ a: A }).padEnd(length, ' ');
    if (padded.length !== length) return;
    writeFileSync(join(folder, 'padded.safetensors'), safetensors(padded, DATA));
    expect(readSafetensors(join(folder, 'padded.safetensors')).tensors).toHaveLength(1);
  });

  it('may have tensors of the names that every object inherits', () => {
    const text = `{"__proto__":${JSON.stringify(A)},"constructor":${JSON.stringify(B)}}`;
    writeFileSync(join(folder, 'names.safetensors'), safetensors(text, DATA));
    const { tensors } = readSafetensors(join(folder, 'names.safetensors'));
    expect(tensors.map(({ name }) => name)).toEqual(['__proto__', 'constructor']);
  });
});

describe('what is refused', () => {
  const wrong = (change: object): Buffer => safetensors({ a: { ...A, ...change } }, DATA);
  const length = (bytes: bigint): Buffer => {
    const head = Buffer.alloc(16);
    head.writeBigUInt64LE(bytes);
    head[8] = '{'.charCodeAt(0);
    return head;
  };

  const cases: readonly (readonly [what: string, bytes: Uint8Array, message: RegExp])[] = [
    ['an empty file', Buffer.alloc(0), /empty/],
    ['a file of three bytes', Buffer.from([1, 2, 3]), /ends inside the length of the header/],
    [
      'a Git LFS pointer',
      Buffer.from('version https://git-lfs.github.com/spec/v1\noid sha256:00\n'),
      /Git LFS pointer/,
    ],
    ['a web page', Buffer.from('<!doctype html><html></html>'), /web page/],
    ['a GGUF', Buffer.from('GGUF\x03\0\0\0aaaaaaaa', 'latin1'), /GGUF file/],
    ['a file of zeros', Buffer.alloc(100), /begins with zeros/],
    [
      'a header of 200 MB',
      length(200_000_000n),
      /the header is 200000000 bytes long, the limit is 100000000/,
    ],
    ['a header beyond all files', length(2n ** 63n), /which no file can hold/],
    ['a header longer than the file', length(1000n), /ends inside the header.*1000 bytes wanted/],
    ['a header that is no JSON', safetensors('{"a":'), /the header is not JSON/],
    ['a header that is a list', safetensors('[1]'), /begins with "\[1\]"/],
    [
      'a header that is not UTF-8',
      Buffer.concat([length(9n).subarray(0, 8), Buffer.from('{"\xff":1}', 'latin1'), Buffer.alloc(9)]),
      /not UTF-8/,
    ],
    [
      'a name twice',
      safetensors(`{"a":${JSON.stringify(A)},"b":${JSON.stringify(B)},"a":${JSON.stringify(B)}}`, DATA),
      /has "a" twice/,
    ],
    [
      'a name twice, once in escapes',
      safetensors(`{"a":${JSON.stringify(A)},"\\u0061":${JSON.stringify(B)}}`, DATA),
      /has "a" twice/,
    ],
    [
      'offsets twice',
      safetensors(`{"a":{"dtype":"F32","shape":[6],"data_offsets":[0,24],"data_offsets":[8,32]}}`, DATA),
      /has "data_offsets" twice/,
    ],
    ['an entry that is no object', safetensors({ a: 3 }), /tensor "a" is not an object/],
    ['an empty name', safetensors({ '': A }, DATA), /has no name/],
    ['no dtype', wrong({ dtype: undefined }), /tensor "a" has no dtype/],
    ['an unknown dtype', wrong({ dtype: 'Q4' }), /dtype "Q4", unknown/],
    ['no shape', wrong({ shape: undefined }), /the shape of tensor "a" is not a list/],
    ['a negative size', wrong({ shape: [-2, -3] }), /the shape of tensor "a" holds "-2"/],
    ['a size of one and a half', wrong({ shape: [1.5, 4] }), /holds "1.5"/],
    ['sizes whose product is too large', wrong({ shape: [2 ** 40, 2 ** 40] }), /takes/],
    ['nine dimensions', wrong({ shape: [1, 1, 1, 1, 1, 1, 1, 1, 6] }), /not a list of up to 8/],
    ['one offset', wrong({ data_offsets: [0] }), /data_offsets of tensor "a" is not a list of 2/],
    ['offsets the wrong way round', wrong({ data_offsets: [24, 0] }), /ends at 0, before its beginning 24/],
    [
      'bytes that its shape does not have',
      wrong({ data_offsets: [0, 20] }),
      /has 20 bytes, but F32 of shape 2 x 3 takes 24/,
    ],
    ['an end beyond the file', safetensors({ a: A }, new Uint8Array(23)), /cut off: tensor "a" ends at byte/],
    [
      'overlapping tensors',
      safetensors({ a: A, b: { ...B, data_offsets: [20, 28] } }, DATA),
      /tensor "b" at byte \d+ overlaps tensor "a"/,
    ],
    ['two tensors in one place', safetensors({ a: A, b: A }, DATA), /overlaps/],
  ];
  it.each(cases)('%s', (_, bytes, message) => {
    const error = failureOf(bytes);
    expect(error.message).toMatch(message);
    expect(error.code).toBe(/unknown/.test(message.source) ? 'MODEL_UNSUPPORTED' : 'MODEL_INVALID');
  });

  it('a folder and a name without a file', () => {
    expect(() => readSafetensors(folder)).toThrow(/is a folder/);
    expect(() => readSafetensors(join(folder, 'none'))).toThrow(/no such file/);
    symlinkSync('/dev/zero', join(folder, 'zero'));
    expect(() => readSafetensors(join(folder, 'zero'))).toThrow(/not a regular file/);
  });
});

describe('headers that nobody wrote', () => {
  /** Parses; anything but a typed error that names the file fails the test. Returns the tensors, if it reads. */
  function tryParse(header: Uint8Array, dataBytes: number): ReturnType<typeof parseSafetensors> | undefined {
    try {
      return parseSafetensors('PATH', header, 8 + header.length + dataBytes);
    } catch (error) {
      if (!(error instanceof MoestreamError)) throw error;
      // Plain checks: a hundred thousand calls of `expect` take half a minute.
      const isTyped = error.code === 'MODEL_INVALID' || error.code === 'MODEL_UNSUPPORTED';
      if (!isTyped || !error.message.startsWith('PATH: ')) throw error;
      return undefined;
    }
  }

  /** What must hold of any header that reads. */
  function checkPlaces(
    tensors: ReturnType<typeof parseSafetensors>,
    headerBytes: number,
    dataBytes: number,
  ): void {
    let end = 8 + headerBytes;
    for (const { offsetBytes, byteLength } of tensors) {
      if (byteLength === 0) continue;
      if (offsetBytes < end) throw new Error(`a tensor begins at ${offsetBytes}, before ${end}`);
      end = offsetBytes + byteLength;
    }
    if (end > 8 + headerBytes + dataBytes) throw new Error('a tensor ends behind the file');
  }

  const small = fc.integer({ min: 0, max: 9 });
  const odd = fc.oneof(fc.constantFrom(-1, 0.5, 1e300, 2 ** 53, 2 ** 31, null, 'x', [], {}), small);
  const entry = fc.record(
    {
      dtype: fc.oneof(
        { weight: 9, arbitrary: fc.constantFrom('F32', 'BF16', 'U8') },
        { weight: 1, arbitrary: odd },
      ),
      shape: fc.oneof(
        { weight: 9, arbitrary: fc.array(small, { maxLength: 3 }) },
        { weight: 1, arbitrary: odd },
      ),
      data_offsets: fc.oneof(
        { weight: 9, arbitrary: fc.tuple(fc.nat(64), fc.nat(64)) },
        { weight: 1, arbitrary: fc.array(odd, { maxLength: 3 }) },
      ),
    },
    { requiredKeys: [] },
  );

  it('made of the right words: 60,000 of them', () => {
    let reads = 0;
    fc.assert(
      fc.property(
        fc.array(fc.tuple(fc.constantFrom('a', 'b', 'c', '__metadata__', '__proto__'), entry), {
          maxLength: 4,
        }),
        (entries) => {
          const text = `{${entries.map(([name, value]) => `${JSON.stringify(name)}:${JSON.stringify(value)}`).join(',')}}`;
          const header = Buffer.from(text);
          const names = entries.map(([name]) => name);
          const tensors = tryParse(header, 64);
          if (tensors === undefined) return;
          reads++;
          if (new Set(names).size !== names.length) throw new Error('a name twice reads');
          checkPlaces(tensors, header.length, 64);
        },
      ),
      { numRuns: 60_000 },
    );
    expect(reads).toBeGreaterThan(100);
  });

  it('with shapes that fit, wherever the tensors are said to be: 30,000', () => {
    let reads = 0;
    fc.assert(
      fc.property(
        fc.array(fc.tuple(fc.nat(8), fc.nat(40)), { minLength: 1, maxLength: 5 }),
        fc.nat(80),
        (places, dataBytes) => {
          const entries = places.map(([count, begin], index) => [
            `t${index}`,
            { dtype: 'F32', shape: [count], data_offsets: [begin, begin + 4 * count] },
          ]);
          const header = Buffer.from(JSON.stringify(Object.fromEntries(entries)));
          const tensors = tryParse(header, dataBytes);
          const spans = places
            .filter(([count]) => count > 0)
            .map(([count, begin]) => [begin, begin + 4 * count] as const);
          const sound =
            places.every(([count, begin]) => begin + 4 * count <= dataBytes) &&
            spans.every(([begin, end], one) =>
              spans.every(([from, to], other) => one === other || end <= from || to <= begin),
            );
          if ((tensors !== undefined) !== sound) throw new Error(sound ? 'sound, but refused' : 'reads');
          if (tensors !== undefined) {
            reads++;
            checkPlaces(tensors, header.length, dataBytes);
          }
        },
      ),
      { numRuns: 30_000 },
    );
    expect(reads).toBeGreaterThan(100);
  });

  it('of a sound file with bytes changed: 20,000', () => {
    const sound = Buffer.from(JSON.stringify({ __metadata__: { format: 'mlx' }, a: A, b: B }));
    fc.assert(
      fc.property(
        fc.array(fc.tuple(fc.nat(sound.length - 1), fc.nat(255)), { minLength: 1, maxLength: 3 }),
        (changes) => {
          const header = Buffer.from(sound);
          for (const [at, byte] of changes) header[at] = byte;
          const tensors = tryParse(header, 32);
          if (tensors !== undefined) checkPlaces(tensors, header.length, 32);
        },
      ),
      { numRuns: 20_000 },
    );
  });

  it('deep and long ones end in time', () => {
    expect(tryParse(Buffer.from(`{"a":${'['.repeat(1e6)}${']'.repeat(1e6)}}`), 0)).toBeUndefined();
    expect(tryParse(Buffer.from('{'.repeat(1e5)), 0)).toBeUndefined();
    const many = Array.from(
      { length: 1e5 },
      (_, i) => `"t${i}":{"dtype":"U8","shape":[1],"data_offsets":[${i},${i + 1}]}`,
    );
    expect(tryParse(Buffer.from(`{${many.join(',')}}`), 1e5)).toHaveLength(1e5);
    expect(SAFETENSORS_HEADER_BYTES_MAX).toBe(1e8);
  });
});
