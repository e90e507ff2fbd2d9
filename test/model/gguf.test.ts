import { execFileSync, spawnSync } from 'node:child_process';
import { chmodSync, existsSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { gguf } from '@huggingface/gguf';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { MoestreamError } from '../../dist/errors.js';
import { GGML_TYPES } from '../../dist/model/ggml-types.js';
import { type Gguf, readGguf } from '../../dist/model/gguf.js';
import { Model } from '../../dist/model/model.js';
import {
  array,
  BYTE_CHARACTERS,
  bool,
  buildGguf,
  buildModel,
  f32,
  i32,
  i64,
  type MetadataValue,
  smallModel,
  string,
  type TensorSpec,
  temporaryFiles,
  u8,
  u16,
  u32,
  u64,
  vocabularyMetadata,
} from '../support/gguf-builder.js';
import { BUILT_IN_MODEL } from '../support/golden.js';

const files = temporaryFiles();

/** What reading the bytes fails with; the message must name the file. */
function failureOf(bytes: Uint8Array, name = 'model.gguf'): MoestreamError {
  return failureAt(files.write(name, bytes));
}

function failureAt(path: string): MoestreamError {
  try {
    readGguf(path);
  } catch (error) {
    if (!(error instanceof MoestreamError)) throw error;
    expect(error.message).toContain(path);
    return error;
  }
  throw new Error(`${path} reads`);
}

/** Two tensors and a key of each kind. */
const SMALL_FILE = {
  metadata: {
    'general.architecture': string('qwen35moe'),
    'a.u8': u8(200),
    'a.u16': u16(60_000),
    'a.u32': u32(4_000_000_000),
    'a.i32': i32(-5),
    'a.u64': u64(2n ** 40n),
    'a.i64': i64(-3n),
    'a.f32': f32(0.5),
    'a.bool': bool(true),
    'a.text': string('naïve 😀'),
    'a.numbers': array('i32', [1, -2, 3]),
    'a.texts': array('string', ['x', '', 'ÿé']),
    'a.bools': array('bool', [true, false]),
  },
  tensors: [
    { name: 'first', type: 'F32', shape: [3, 2], data: Buffer.alloc(24, 1) },
    { name: 'second', type: 'Q8_0', shape: [64, 2, 3, 2], data: Buffer.alloc(68 * 12, 2) },
  ],
} as const;

const small = buildGguf(SMALL_FILE);

describe('a valid file', () => {
  it('reads as another reader reads it: the built-in model', async () => {
    const theirs = await gguf(BUILT_IN_MODEL, { allowLocalFile: true });
    const ours = readGguf(BUILT_IN_MODEL);
    // Theirs adds the header's own fields.
    const { version, tensor_count, kv_count, ...metadata } = theirs.metadata as Record<string, unknown>;
    expect([version, tensor_count, kv_count]).toEqual([
      3,
      BigInt(ours.tensors.size),
      BigInt(ours.metadata.keys.length),
    ]);
    expect(ours.metadata.keys).toEqual(Object.keys(metadata));
    for (const [key, value] of Object.entries(metadata)) {
      expect(ours.metadata.plain(key), key).toEqual(typeof value === 'bigint' ? Number(value) : value);
    }
    expect(ours.files[0]!.dataOffsetBytes).toBe(Number(theirs.tensorDataOffset));
    expect(
      [...ours.tensors.values()].map(({ name, shape, type, offsetBytes }) => ({
        name,
        shape,
        dtype: type.id,
        offset: offsetBytes - ours.files[0]!.dataOffsetBytes,
      })),
    ).toEqual(
      theirs.tensorInfos.map(({ name, shape, dtype, offset }) => ({
        name,
        shape: shape.map(Number),
        dtype,
        offset: Number(offset),
      })),
    );
    const ends = [...ours.tensors.values()].map((tensor) => tensor.offsetBytes + tensor.byteLength);
    expect(Math.max(...ends)).toBe(readFileSync(BUILT_IN_MODEL).length);
  });

  it('gives every type of value back', () => {
    const { metadata, tensors } = readGguf(files.write('model.gguf', small.bytes));
    expect(Object.fromEntries(metadata.keys.map((key) => [key, metadata.plain(key)]))).toEqual({
      'general.architecture': 'qwen35moe',
      'a.u8': 200,
      'a.u16': 60_000,
      'a.u32': 4_000_000_000,
      'a.i32': -5,
      'a.u64': 2 ** 40,
      'a.i64': -3,
      'a.f32': 0.5,
      'a.bool': true,
      'a.text': 'naïve 😀',
      'a.numbers': [1, -2, 3],
      'a.texts': ['x', '', 'ÿé'],
      'a.bools': [true, false],
    });
    const bytes = small.bytes;
    for (const [name, byte, byteLength] of [
      ['first', 1, 24],
      ['second', 2, 816],
    ] as const) {
      const tensor = tensors.get(name)!;
      expect(tensor.byteLength).toBe(byteLength);
      expect(bytes.subarray(tensor.offsetBytes, tensor.offsetBytes + byteLength)).toEqual(
        Buffer.alloc(byteLength, byte),
      );
    }
  });

  it.each([8, 16, 64, 4096])('places tensors at an alignment of %d', (alignment) => {
    const built = buildGguf({
      ...SMALL_FILE,
      metadata: { 'general.alignment': u32(alignment) },
      alignment,
    });
    const { tensors } = readGguf(files.write('model.gguf', built.bytes));
    for (const [name, byte] of [
      ['first', 1],
      ['second', 2],
    ] as const) {
      const { offsetBytes, byteLength } = tensors.get(name)!;
      expect(offsetBytes % alignment).toBe(0);
      expect([built.bytes[offsetBytes], built.bytes[offsetBytes + byteLength - 1]]).toEqual([byte, byte]);
    }
  });

  it('knows the size of every type of tensor', () => {
    const tensors = [...GGML_TYPES.values()].map(
      (type): TensorSpec => ({ name: type.name, type: type.id, shape: [type.blockSize * 2, 3] }),
    );
    const read = readGguf(files.write('model.gguf', buildGguf({ metadata: {}, tensors }).bytes));
    for (const type of GGML_TYPES.values()) {
      expect(read.tensors.get(type.name)!.byteLength).toBe(type.blockBytes * 6);
    }
  });

  it('may hold no tensors and no keys', () => {
    const read = readGguf(files.write('model.gguf', buildGguf({ metadata: {} }).bytes));
    expect([read.tensors.size, read.metadata.keys]).toEqual([0, []]);
  });

  it('refuses to give a value as something that it is not', () => {
    const { metadata } = readGguf(files.write('model.gguf', small.bytes));
    const refusals: [() => unknown, RegExp][] = [
      [() => metadata.integer('a.none', 0, 9), /"a.none" is missing/],
      [() => metadata.integer('a.u8', 0, 199), /"a.u8" is 200, it must be between 0 and 199/],
      [() => metadata.integer('a.f32', 0, 9), /"a.f32" is f32, not an integer/],
      [() => metadata.integer('a.bool', 0, 9), /"a.bool" is bool, not an integer/],
      [() => metadata.integer('a.text', 0, 9), /"a.text" is string, not an integer/],
      [() => metadata.integer('a.numbers', 0, 9), /"a.numbers" is an array/],
      [() => metadata.optionalNumber('a.text', 0, 9), /"a.text"/],
      [() => metadata.optionalNumber('a.bool', 0, 9), /"a.bool" is bool/],
      [() => metadata.optionalBoolean('a.u8'), /"a.u8" is u8, not bool/],
      [() => metadata.string('a.u8'), /"a.u8" is u8, not a string/],
      [() => metadata.string('a.texts'), /"a.texts" is an array/],
      [() => metadata.strings('a.numbers'), /"a.numbers" is an array of i32, not of strings/],
      [() => metadata.strings('a.text'), /"a.text" is a single string, not an array/],
      [() => metadata.optionalIntegers('a.texts', 0, 9), /"a.texts" is an array of string/],
      [() => metadata.optionalIntegers('a.numbers', 0, 9), /"a.numbers\[1\]" is -2/],
    ];
    for (const [ask, message] of refusals) {
      expect(ask).toThrow(message);
      expect(ask).toThrow(expect.objectContaining({ code: 'MODEL_INVALID' }));
    }
    const nan = buildGguf({ metadata: { x: f32(Number.NaN), y: string(Buffer.from([0xff])) } });
    const odd = readGguf(files.write('model.gguf', nan.bytes)).metadata;
    expect(() => odd.optionalNumber('x', 0, 1)).toThrow(/"x" is NaN/);
    expect(() => odd.string('y')).toThrow(/"y" is not UTF-8/);
  });
});

describe('what is no model', () => {
  const start = (text: string): Buffer => Buffer.concat([Buffer.from(text, 'latin1'), Buffer.alloc(200, 32)]);
  it.each([
    ['an empty file', Buffer.alloc(0), /empty/],
    [
      'a Git LFS pointer',
      start('version https://git-lfs.github.com/spec/v1\noid sha256:00'),
      /Git LFS pointer/,
    ],
    ['a web page', start('\n<!DOCTYPE html><html>'), /web page/],
    ['XML', start('<?xml version="1.0"?>'), /web page/],
    ['a safetensors file', start('\x40\0\0\0\0\0\0\0{"__metadata__":{}}'), /safetensors/],
    ['a GGML file', start('tjgg\x01\0\0\0'), /before GGUF/],
    ['a zip archive', start('PK\x03\x04\x14\0'), /zip archive/],
    ['zeros', Buffer.alloc(5000), /zeros/],
    ['JSON', start('{"error":"not found"}'), /JSON/],
    ['text', start('Hello'), /begins with "Hell", not "GGUF"/],
    ['control characters', start('\x1b[2J'), /begins with "\\u001b\[2J"/],
  ])('%s', (_, bytes, message) => {
    expect(failureOf(bytes)).toMatchObject({
      code: 'MODEL_INVALID',
      message: expect.stringMatching(message),
    });
  });

  it.each([
    [1, /version 1/],
    [2, /version 2/],
    [4, /version 4/],
    [0, /version 0/],
    [3 << 24, /big-endian/],
    [2 << 24, /big-endian/],
  ])('version %d', (version, message) => {
    expect(failureOf(small.with('version', version))).toMatchObject({
      code: 'MODEL_UNSUPPORTED',
      message: expect.stringMatching(message),
    });
  });

  it('a magic with one wrong byte', () => {
    for (let byte = 0; byte < 4; byte++) {
      const bytes = Buffer.from(small.bytes);
      bytes[byte]! ^= 0x20;
      expect(failureOf(bytes).code).toBe('MODEL_INVALID');
    }
  });

  it('a missing path, a folder, a loop of links, a path through a file', () => {
    const folder = join(files.folder, 'folder.gguf');
    mkdirSync(folder);
    const loop = join(files.folder, 'loop.gguf');
    symlinkSync(loop, loop);
    const plain = files.write('plain.gguf', small.bytes);
    for (const [path, message] of [
      [join(files.folder, 'none.gguf'), 'no such file'],
      [folder, 'is a folder'],
      [loop, 'ELOOP'],
      [join(plain, 'x.gguf'), 'ENOTDIR'],
    ] as const) {
      expect(failureAt(path)).toMatchObject({
        code: 'MODEL_NOT_FOUND',
        message: expect.stringContaining(message),
      });
    }
  });

  it.skipIf(process.getuid?.() === 0)('a file that may not be read', () => {
    const path = files.write('secret.gguf', small.bytes);
    chmodSync(path, 0);
    expect(failureAt(path)).toMatchObject({
      code: 'MODEL_NOT_FOUND',
      message: expect.stringContaining('EACCES'),
    });
  });

  it('a named pipe, without waiting for a writer', () => {
    const path = join(files.folder, 'pipe.gguf');
    execFileSync('mkfifo', [path]);
    // In a process that can be ended: a reader that waits would hold this one for ever.
    const read = `const { readGguf } = await import(process.argv[1]);
      try { readGguf(process.argv[2]); } catch (error) { console.log(error.code); }`;
    const reader = new URL('../../dist/model/gguf.js', import.meta.url).href;
    const child = spawnSync(process.execPath, ['--input-type=module', '-e', read, reader, path], {
      timeout: 20_000,
      encoding: 'utf8',
    });
    expect(child).toMatchObject({ signal: null, stdout: 'MODEL_NOT_FOUND\n' });
  });

  it.runIf(existsSync('/dev/zero'))('a device', () => {
    expect(failureAt('/dev/zero').code).toBe('MODEL_NOT_FOUND');
  });
});

describe('a wrong field', () => {
  const HUGE = 2n ** 63n;
  it.each([
    ['tensors', 2n ** 40n, /number of tensors is 1099511627776/],
    ['tensors', HUGE, /number of tensors/],
    ['tensors', 200_000, /number of tensors is 200000, more than the file holds/],
    ['tensors', 3, /tensor 2|the file/],
    ['keys', 2n ** 40n, /number of metadata keys is 1099511627776/],
    ['keys', HUGE, /number of metadata keys/],
    ['keys', 60_000, /number of metadata keys is 60000, more than the file holds/],
    ['a.u8.key', 2n ** 32n, /metadata key 1 is 4294967296 bytes long/],
    ['a.u8.key', HUGE, /the length of metadata key 1/],
    ['a.u8.key', 60_000, /the file ends inside metadata key 1/],
    ['a.u8.key', 0, /metadata key 1 is empty/],
    ['a.u8.type', 13, /"a.u8" has value type 13/],
    ['a.u8.type', 2 ** 32 - 1, /"a.u8" has value type 4294967295/],
    ['a.text', 2n ** 31n, /"a.text" has a string of 2147483648 bytes/],
    ['a.text', HUGE, /"a.text" is 9223372036854775808/],
    ['a.text', 100_000, /the file ends inside metadata "a.text"/],
    ['a.texts', 2n ** 31n, /"a.texts" has a string of 2147483648 bytes/],
    ['a.texts', HUGE, /"a.texts"/],
    ['a.numbers.length', 2n ** 40n, /"a.numbers" claims 1099511627776 elements/],
    ['a.numbers.length', HUGE, /the length of metadata "a.numbers"/],
    ['a.numbers.length', 1_000_000, /the file ends inside metadata "a.numbers"/],
    ['a.texts.length', 2n ** 40n, /"a.texts" claims 1099511627776 elements/],
    ['a.texts.length', 10_000_000, /"a.texts" claims 10000000 strings/],
    ['a.numbers.elements', 9, /"a.numbers" is an array of arrays/],
    ['a.numbers.elements', 77, /the elements of metadata "a.numbers" has value type 77/],
    ['first.name', 64, /the name of tensor 0 is 64 bytes long, the limit is 63/],
    ['first.name', HUGE, /the name of tensor 0/],
    ['first.name', 0, /tensor 0 has an empty name/],
    ['first.dims', 0, /"first" has 0 dimensions/],
    ['first.dims', 5, /"first" has 5 dimensions/],
    ['first.dims', 2 ** 32 - 1, /"first" has 4294967295 dimensions/],
    ['first.dim0', 0, /dimension 0 of tensor "first" is 0/],
    ['first.dim1', 0, /dimension 1 of tensor "first" is 0/],
    ['first.dim0', 2n ** 53n - 1n, /"first" .*(too many bytes|ends at)|whole number/],
    ['first.dim0', HUGE, /dimension 0 of tensor "first" is 9223372036854775808/],
    ['first.dim1', 2n ** 53n - 1n, /"first" of shape 3 x 9007199254740991 has too many bytes/],
    ['first.dim1', 1000, /"first" ends at byte/],
    ['second.dim0', 48, /"second" has rows of 48 values, not a multiple of the 32 of Q8_0/],
    ['first.offset', 1, /offset of tensor "first" is 1, not a multiple of the alignment 32/],
    ['first.offset', 31, /not a multiple/],
    ['second.offset', 0, /tensor "(second|first)" at byte \d+ overlaps tensor "(first|second)"/],
    ['first.offset', 32, /overlaps/],
    ['second.offset', 64, /"second" ends at byte/],
    ['second.offset', 2n ** 53n - 32n, /"second" ends at byte/],
    ['second.offset', HUGE, /the offset of tensor "second"/],
  ] as const)('%s = %s', (field, value, message) => {
    expect(failureOf(small.with(field, value))).toMatchObject({
      code: 'MODEL_INVALID',
      message: expect.stringMatching(message),
    });
  });

  it.each([4, 5, 31, 36, 43, 99, 2 ** 32 - 1])('a tensor of type %d', (type) => {
    expect(failureOf(small.with('first.type', type))).toMatchObject({
      code: 'MODEL_UNSUPPORTED',
      message: expect.stringContaining(`tensor "first" has ggml type ${type}`),
    });
  });

  it.each([2, 3, 255])('a boolean of %d, alone and in an array', (byte) => {
    for (const key of ['a.bool', 'a.bools']) {
      const bytes = Buffer.from(small.bytes);
      bytes[small.fields.get(key)!.offsetBytes] = byte;
      expect(failureOf(bytes)).toMatchObject({
        code: 'MODEL_INVALID',
        message: expect.stringContaining(`"${key}" is the boolean ${byte}`),
      });
    }
  });

  it.each([0, 1, 4, 12, 33, 48, 131_072, 4_294_967_295])('an alignment of %d', (alignment) => {
    const built = buildGguf({ ...SMALL_FILE, metadata: { 'general.alignment': u32(alignment) } });
    expect(failureOf(built.bytes)).toMatchObject({
      code: 'MODEL_INVALID',
      message: expect.stringMatching(new RegExp(`"general.alignment" is ${alignment}`)),
    });
  });

  it('an alignment that is no integer', () => {
    const built = buildGguf({ metadata: { 'general.alignment': string('32') } });
    expect(failureOf(built.bytes).message).toContain('"general.alignment" is string');
  });

  it('the same key, the same tensor twice', () => {
    const key: readonly [string, MetadataValue] = ['general.name', string('x')];
    expect(failureOf(buildGguf({ metadata: [key, key] }).bytes).message).toContain(
      'metadata key "general.name" occurs twice',
    );
    const tensor = { name: 'same', type: 'F32', shape: [8] };
    expect(failureOf(buildGguf({ metadata: {}, tensors: [tensor, tensor] }).bytes).message).toContain(
      'tensor "same" occurs twice',
    );
  });

  it('a key or a name that is not UTF-8', () => {
    for (const field of ['a.u8.key', 'first.name']) {
      const bytes = Buffer.from(small.bytes);
      bytes[small.fields.get(field)!.offsetBytes + 8] = 0xff;
      expect(failureOf(bytes).message).toContain('is not UTF-8');
    }
  });

  it('keeps control characters of a file out of its messages', () => {
    const value = string('\u001b[2J\u0007');
    const metadata = Object.entries({ '\u001b[31m': value });
    const bytes = buildGguf({ metadata: [...metadata, ...metadata] }).bytes;
    // biome-ignore lint/suspicious/noControlCharactersInRegex: it is control characters that must not be there
    expect(failureOf(bytes).message).not.toMatch(/[\u0000-\u001f]/);
  });

  it('a file cut at any byte', () => {
    for (let end = 0; end < small.bytes.length; end++) {
      const { code } = failureOf(small.bytes.subarray(0, end));
      expect(code, `cut at ${end}`).toBe('MODEL_INVALID');
    }
    // The last tensor is there to its last byte, whatever its padding.
    readGguf(files.write('model.gguf', small.bytes));
  });
});

describe('a set of split files', () => {
  const tensor = (name: string): TensorSpec => ({ name, type: 'F32', shape: [8], data: Buffer.alloc(32, 7) });

  interface Part {
    readonly metadata?: Record<string, MetadataValue>;
    readonly tensors?: TensorSpec[];
  }

  let sets = 0;
  /** Paths of a valid set, with changes to its parts. */
  function writeSet(count: number, changes: Record<number, Part> = {}): string[] {
    const prefix = `set${sets++}`;
    return Array.from({ length: count }, (_, no) => {
      const metadata: Record<string, MetadataValue> = {
        ...(no === 0 ? { 'general.architecture': string('qwen35moe') } : {}),
        'split.no': u16(no),
        'split.count': u16(count),
        'split.tensors.count': i32(count * 2),
        ...changes[no]?.metadata,
      };
      const tensors = changes[no]?.tensors ?? [tensor(`${no}.a`), tensor(`${no}.b`)];
      const name = `${prefix}-${String(no + 1).padStart(5, '0')}-of-${String(count).padStart(5, '0')}.gguf`;
      return files.write(name, buildGguf({ metadata, tensors }).bytes);
    });
  }

  function failureOfSet(paths: string[], at = 0): { code: string; message: string } {
    try {
      readGguf(paths[at]!);
    } catch (error) {
      if (error instanceof MoestreamError) return { code: error.code, message: error.message };
      throw error;
    }
    throw new Error('the set reads');
  }

  it.each([2, 3])('of %d parts opens at any of them', (count) => {
    const paths = writeSet(count);
    for (const path of paths) {
      const read: Gguf = readGguf(path);
      expect(read.files.map((file) => file.path)).toEqual(paths);
      expect(read.metadata.string('general.architecture')).toBe('qwen35moe');
      expect([...read.tensors.values()].map((each) => [each.name, each.file])).toEqual(
        paths.flatMap((_, no) => [
          [`${no}.a`, no],
          [`${no}.b`, no],
        ]),
      );
      for (const { file, offsetBytes, byteLength } of read.tensors.values()) {
        const bytes = readFileSync(paths[file]!).subarray(offsetBytes, offsetBytes + byteLength);
        expect(bytes).toEqual(Buffer.alloc(32, 7));
      }
    }
  });

  it('whose first part has no tensors', () => {
    const paths = writeSet(3, {
      0: { metadata: { 'split.tensors.count': i32(4) }, tensors: [] },
    });
    expect(readGguf(paths[2]!).tensors.size).toBe(4);
  });

  it('with a part missing', () => {
    const paths = writeSet(3);
    execFileSync('rm', [paths[1]!]);
    for (const at of [0, 2]) {
      expect(failureOfSet(paths, at)).toEqual({
        code: 'MODEL_NOT_FOUND',
        message: `${paths[1]}: part 2 of 3 is missing`,
      });
    }
  });

  it.each([
    ['split.count of another set', { 1: { metadata: { 'split.count': u16(3) } } }, 1, /"split.count" is 3/],
    ['split.no out of order', { 1: { metadata: { 'split.no': u16(0) } } }, 1, /"split.no" is 0/],
    ['split.no beyond the set', { 0: { metadata: { 'split.no': u16(9) } } }, 0, /"split.no" is 9/],
    [
      'too many tensors promised',
      { 0: { metadata: { 'split.tensors.count': i32(5) } } },
      0,
      /"split.tensors.count" is 5, the parts hold 4/,
    ],
    [
      'a negative number of tensors',
      { 0: { metadata: { 'split.tensors.count': i32(-1) } } },
      0,
      /"split.tensors.count" is -1/,
    ],
    ['a tensor in two parts', { 1: { tensors: [tensor('0.a'), tensor('1.b')] } }, 1, /"0.a" occurs twice/],
    ['split.count of a wrong type', { 1: { metadata: { 'split.count': string('2') } } }, 1, /"split.count"/],
  ] as const)('with %s', (_, changes, culprit, message) => {
    const paths = writeSet(2, changes as unknown as Record<number, Part>);
    const failure = failureOfSet(paths);
    expect(failure.code).toBe('MODEL_INVALID');
    expect(failure.message).toMatch(message);
    expect(failure.message).toContain(paths[culprit]);
  });

  it('whose part is a file of its own', () => {
    const paths = writeSet(2);
    writeFileSync(paths[1]!, buildGguf({ metadata: {} }).bytes);
    expect(failureOfSet(paths)).toMatchObject({
      code: 'MODEL_INVALID',
      message: `${paths[1]}: metadata "split.count" is missing`,
    });
  });

  it('whose part is damaged names that part', () => {
    const paths = writeSet(2);
    writeFileSync(paths[1]!, readFileSync(paths[1]!).subarray(0, 50));
    expect(failureOfSet(paths).message).toContain(paths[1]);
  });

  it('with a name that cannot be', () => {
    for (const name of ['x-00003-of-00002.gguf', 'x-00000-of-00002.gguf', 'x-00001-of-00000.gguf']) {
      expect(failureOf(small.bytes, name)).toMatchObject({
        code: 'MODEL_INVALID',
        message: expect.stringContaining('which cannot be'),
      });
    }
  });

  it('renamed so that its parts cannot be found', () => {
    const paths = writeSet(2);
    expect(failureOf(readFileSync(paths[0]!), 'renamed.gguf')).toMatchObject({
      code: 'MODEL_INVALID',
      message: expect.stringContaining('is one of 2 parts, but is not named like a part'),
    });
  });

  it('of one part is a file like any other', () => {
    const paths = writeSet(1);
    expect(readGguf(paths[0]!).tensors.size).toBe(2);
  });
});

describe('a damaged file', () => {
  const model = smallModel('qwen35moe');
  const vocabulary = vocabularyMetadata({
    tokens: [...BYTE_CHARACTERS, 'ab', '<|im_end|>'],
    merges: ['a b'],
    types: [...BYTE_CHARACTERS.map(() => 1), 1, 3],
    more: { 'tokenizer.ggml.eos_token_id': u32(257), 'tokenizer.chat_template': string('{{ messages }}') },
  });
  const built = buildModel({ ...model, metadata: { ...model.metadata, ...vocabulary } });

  /** Everything that is read of a file before it runs. */
  function openAll(path: string): void {
    const opened = new Model(readGguf(path));
    const { metadata } = opened.source as Gguf;
    for (const key of metadata.keys) metadata.plain(key);
    const ids = opened.tokenizer.encode('abc <|im_end|> é', { parseSpecial: true });
    for (const id of ids) opened.tokenizer.tokenBytes(id);
    opened.renderChat([{ role: 'user', content: 'x' }]);
  }

  it('opens or fails with an error of ours, quickly and within memory, whatever bytes are flipped', () => {
    const path = files.write('flipped.gguf', built.bytes);
    openAll(path);
    let succeeded = 0;
    let failed = 0;
    const flip = fc.record({
      // The header matters, its numbers most of all.
      at: fc.oneof(
        fc.integer({ min: 0, max: built.headerBytes - 1 }),
        fc
          .constantFrom(...[...built.fields.values()].map((field) => field.offsetBytes))
          .chain((at) => fc.integer({ min: at, max: at + 7 })),
      ),
      byte: fc.oneof(fc.constantFrom(0, 1, 0x7f, 0x80, 0xff), fc.integer({ min: 0, max: 255 })),
    });
    fc.assert(
      fc.property(fc.array(flip, { minLength: 1, maxLength: 4 }), (flips) => {
        const bytes = Buffer.from(built.bytes);
        for (const { at, byte } of flips) bytes[at] = byte;
        writeFileSync(path, bytes);
        const began = performance.now();
        const { external, arrayBuffers } = process.memoryUsage();
        const before = external + arrayBuffers;
        try {
          openAll(path);
          succeeded++;
        } catch (error) {
          expect(error).toBeInstanceOf(MoestreamError);
          expect((error as MoestreamError).code).toMatch(/^MODEL_(INVALID|UNSUPPORTED)$/);
          failed++;
        }
        const after = process.memoryUsage();
        expect(performance.now() - began).toBeLessThan(1000);
        expect(after.external + after.arrayBuffers - before).toBeLessThan(50e6);
      }),
      { numRuns: 3000 },
    );
    // Both happen, or the flips miss what matters.
    expect(Math.min(succeeded, failed)).toBeGreaterThan(20);
  });
});
