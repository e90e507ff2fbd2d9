/**
 * The maker of random models: what it writes is what other tests and all benchmarks run on, so its files are read back
 * by two readers, its values are held against the deviation they promise, and its failures must leave nothing behind.
 */
import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { gguf } from '@huggingface/gguf';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { ggmlTypeNamed } from '../../dist/model/ggml-types.js';
import { type Gguf, type GgufTensor, readGguf } from '../../dist/model/gguf.js';
import { openModel } from '../../dist/model/model.js';
import { loadCpu } from '../../dist/native.js';
import { RANDOM_TYPES, randomBlocks } from '../../dist-scripts/scripts/model-maker/blocks.js';
import { toHalf } from '../../dist-scripts/scripts/model-maker/half.js';
import { makeModel } from '../../dist-scripts/scripts/model-maker/make-model.js';
import { mixFor } from '../../dist-scripts/scripts/model-maker/mixes.js';
import { planMlx } from '../../dist-scripts/scripts/model-maker/mlx.js';
import { Random } from '../../dist-scripts/scripts/model-maker/random.js';
import { ARCHITECTURES, modelShape } from '../../dist-scripts/scripts/model-maker/shapes.js';
import { modelTensors } from '../../dist-scripts/scripts/model-maker/tensors.js';
import { tokenizerTables } from '../../dist-scripts/scripts/model-maker/tokenizer.js';
import { WeightMaker } from '../../dist-scripts/scripts/model-maker/weights.js';

const cpu = loadCpu();
const COMMAND = fileURLToPath(new URL('../../dist-scripts/scripts/make-model.js', import.meta.url));
let folder: string;

beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'make-model-'));
});

afterAll(() => rmSync(folder, { recursive: true, force: true }));

function tensorOf(model: Gguf, name: string): GgufTensor {
  const tensor = model.tensors.get(name);
  if (tensor === undefined) throw new Error(`the model has no tensor ${name}`);
  return tensor;
}

function bytesOf(model: Gguf, tensor: GgufTensor): Buffer {
  const file = readFileSync(model.files[tensor.file]!.path);
  return file.subarray(tensor.offsetBytes, tensor.offsetBytes + tensor.byteLength);
}

function floatsOf(model: Gguf, name: string): Float32Array {
  const tensor = tensorOf(model, name);
  expect(tensor.type.name).toBe('F32');
  return new Float32Array(Uint8Array.from(bytesOf(model, tensor)).buffer);
}

describe.each(ARCHITECTURES)('a tiny %s', (arch) => {
  let path: string;
  let model: Gguf;

  beforeAll(async () => {
    path = join(folder, `${arch}.gguf`);
    await makeModel({ preset: 'tiny', arch, mix: 'UD_Q3_K_XL', outlier: 3, experts: 6, vocab: 600 }, path);
    model = readGguf(path);
  });

  test('has the shapes and types asked for, by our reader', () => {
    const { metadata } = model;
    expect(metadata.string('general.architecture')).toBe(arch);
    expect(metadata.integer(`${arch}.expert_count`, 0, 1e6)).toBe(6);
    expect(metadata.integer(`${arch}.expert_used_count`, 0, 1e6)).toBe(4);
    expect(metadata.strings('tokenizer.ggml.tokens').length).toBe(600);
    expect(tensorOf(model, 'token_embd.weight').shape).toEqual([256, 600]);
    const types = ['gate', 'up', 'down'].map((part) => tensorOf(model, `blk.0.ffn_${part}_exps.weight`));
    expect(types.map((tensor) => tensor.type.name)).toEqual(['IQ3_XXS', 'IQ3_XXS', 'IQ4_XS']);
    expect(types.map((tensor) => tensor.shape)).toEqual(Array(3).fill([256, 256, 6]));
    expect(tensorOf(model, 'blk.3.ffn_down_exps.weight').type.name).toBe('Q5_K');
    expect(tensorOf(model, 'blk.3.attn_q.weight').type.name).toBe('BF16');
  });

  test('reads the same by another reader', async () => {
    const { metadata, tensorInfos } = await gguf(path, { allowLocalFile: true });
    const theirs = metadata as Record<string, unknown>;
    expect(theirs['general.architecture']).toBe(arch);
    expect(theirs[`${arch}.embedding_length`]).toBe(256);
    const described = tensorInfos.map(({ name, shape, dtype }) => [name, shape.map(Number), dtype as number]);
    const ours = [...model.tensors.values()].map(({ name, shape, type }) => [name, shape, type.id]);
    expect(described).toEqual(ours);
  });

  test('has only the keys and tensors of its architecture', () => {
    const names = [...model.tensors.keys()];
    expect(names.some((name) => name.includes('ssm_'))).toBe(arch !== 'qwen3moe');
    expect(names.some((name) => name.includes('ssm_ba'))).toBe(arch === 'qwen3next');
    expect(names.some((name) => name.includes('shexp'))).toBe(arch !== 'qwen3moe');
    expect(model.metadata.plain(`${arch}.rope.dimension_sections`)).toEqual(
      arch === 'qwen35moe' ? [11, 11, 10, 0] : undefined,
    );
  });

  test('has values that a forward pass survives', () => {
    const spread = (name: string): readonly [number, number] => {
      const values = floatsOf(model, name);
      return [Math.min(...values), Math.max(...values)];
    };
    const [normMin, normMax] = spread('blk.3.attn_norm.weight');
    expect(normMin).toBeGreaterThan(0.6);
    expect(normMax).toBeLessThan(1.4);
    const router = floatsOf(model, 'blk.0.ffn_gate_inp.weight');
    expect(deviation(router)).toBeCloseTo(2 / Math.sqrt(256), 1);
    if (arch === 'qwen3moe') return;
    const [decayMin, decayMax] = spread('blk.0.ssm_a');
    expect(decayMin).toBeGreaterThanOrEqual(-8);
    expect(decayMax).toBeLessThan(0);
  });
});

function deviation(values: Float32Array): number {
  return Math.sqrt(values.reduce((sum, value) => sum + value * value, 0) / values.length);
}

describe('random blocks', () => {
  // 2^18 values: the deviation of the measured deviation is below 0.5%.
  const COUNT = 1 << 18;

  test.each(
    RANDOM_TYPES.flatMap((name) => [1, 1 / 64, 1 / Math.sqrt(8192)].map((std) => [name, std] as const)),
  )('%s of deviation %f', (name, std) => {
    const type = ggmlTypeNamed(name);
    const blocks = randomBlocks(name, std, COUNT / type.blockSize, new Random(name));
    const values = new Float32Array(COUNT);
    cpu.dequantize(type.id, blocks, values);
    expect(values.every(Number.isFinite)).toBe(true);
    expect(Math.abs(deviation(values) / std - 1)).toBeLessThan(0.03);
    const mean = values.reduce((sum, value) => sum + value, 0) / COUNT;
    expect(Math.abs(mean / std)).toBeLessThan(0.02);
  });

  test('every finite half survives the way through float32 and back', () => {
    const patterns = Uint16Array.from({ length: 1 << 16 }, (_, bits) => bits);
    const values = new Float32Array(patterns.length);
    cpu.dequantize(ggmlTypeNamed('F16').id, new Uint8Array(patterns.buffer), values);
    const wrong = patterns.findIndex(
      (bits) => Number.isFinite(values[bits]!) && toHalf(values[bits]!) !== bits,
    );
    expect(wrong).toBe(-1);
  });

  test('halves round to nearest, ties to even', () => {
    expect(toHalf(1 + 2 ** -11)).toBe(0x3c00);
    expect(toHalf(1 + 3 * 2 ** -11)).toBe(0x3c02);
    expect(toHalf(2 ** -25)).toBe(0);
    expect(toHalf(3 * 2 ** -25)).toBe(2);
    expect(toHalf(65519)).toBe(0x7bff);
    expect(toHalf(65520)).toBe(0x7c00);
  });
});

describe('large tensors', () => {
  function firstBytes(pieces: Iterable<Uint8Array>, sectionBytes: number): string[] {
    // Copied one by one: a piece is valid until the next.
    const bytes = Buffer.concat(Array.from(pieces, (piece) => Uint8Array.from(piece)));
    const sections = bytes.length / sectionBytes;
    return Array.from({ length: sections }, (_, i) =>
      bytes.toString('hex', i * sectionBytes, i * sectionBytes + 32),
    );
  }

  test.each(['Q8_0', 'IQ3_XXS', 'F32'])('no two experts begin alike: %s', (name) => {
    const type = ggmlTypeNamed(name);
    const matrixBytes = ((512 * 64) / type.blockSize) * type.blockBytes;
    const byteLength = 512 * matrixBytes;
    const content = { kind: 'noise', std: 0.1, distinctRows: 64 } as const;
    const tensor = { name: 'experts', shape: [512, 64, 512], type, byteLength, content };
    const firsts = firstBytes(new WeightMaker(1).pieces(tensor), matrixBytes);
    expect(new Set(firsts).size).toBe(512);
  });

  test('no two rows of the vocabulary begin alike', () => {
    const type = ggmlTypeNamed('Q6_K');
    const byteLength = 8192 * 4 * type.blockBytes;
    const content = { kind: 'noise', std: 0.1, distinctRows: 1 } as const;
    const tensor = { name: 'output', shape: [1024, 8192], type, byteLength, content };
    expect(new Set(firstBytes(new WeightMaker(1).pieces(tensor), 4 * type.blockBytes)).size).toBe(8192);
  });
});

describe('mixes', () => {
  const shape = modelShape('397b', {});
  const tensors = modelTensors(shape).filter((tensor) => tensor.content.kind === 'noise');
  const namesOfType = (mixName: string, type: string): string[] => {
    const mix = mixFor(mixName, shape.layers, undefined);
    return tensors
      .filter(({ name, shape }) => mix.typeOf(name, shape[0]!).name === type)
      .map(({ name }) => name);
  };

  test('UD_Q3_K_XL is the published one', () => {
    expect(namesOfType('UD_Q3_K_XL', 'Q6_K')).toEqual(['output.weight']);
    expect(namesOfType('UD_Q3_K_XL', 'Q5_K')).toEqual(['blk.27.ffn_down_exps.weight']);
    expect(namesOfType('UD_Q3_K_XL', 'BF16')).toEqual(
      ['attn_q', 'attn_k', 'attn_v', 'attn_output', 'ffn_gate_shexp', 'ffn_up_shexp', 'ffn_down_shexp'].map(
        (name) => `blk.27.${name}.weight`,
      ),
    );
    expect(namesOfType('UD_Q3_K_XL', 'IQ3_XXS')).toHaveLength(2 * 59);
    expect(namesOfType('UD_Q3_K_XL', 'IQ4_XS')).toHaveLength(59 + 2);
  });

  test('an expert of 397b in UD_Q3_K_XL has 5,439,488 bytes', () => {
    const mix = mixFor('UD_Q3_K_XL', shape.layers, undefined);
    const experts = tensors.filter(({ name }) => /^blk\.0\..*_exps/.test(name));
    const bytes = experts.map(({ name, shape: [cols, rows] }) => {
      const type = mix.typeOf(name, cols!);
      return (cols! / type.blockSize) * type.blockBytes * rows!;
    });
    expect(bytes.reduce((sum, count) => sum + count, 0)).toBe(5_439_488);
  });

  test('Q4_K_M gives 6 bits to the layers that llama-quantize chooses', () => {
    const layers = namesOfType('Q4_K_M', 'Q6_K')
      .filter((name) => name.includes('ffn_down_exps'))
      .map((name) => Number(name.split('.')[1]));
    const between = Array.from({ length: 15 }, (_, i) => 9 + 3 * i);
    expect(layers).toEqual([0, 1, 2, 3, 4, 5, 6, ...between, 52, 53, 54, 55, 56, 57, 58, 59]);
    expect(namesOfType('Q4_K_M', 'Q6_K')).toContain('blk.15.attn_v.weight');
    expect(namesOfType('Q4_K_M', 'Q6_K')).not.toContain('blk.7.attn_v.weight');
  });
});

describe('bytes', () => {
  const tiny = { preset: 'tiny', mix: 'Q4_K', layers: 4, experts: 4 } as const;

  test('depend on the seed alone', async () => {
    const [a, b, c] = ['a.gguf', 'b.gguf', 'c.gguf'].map((name) => join(folder, name)) as [
      string,
      string,
      string,
    ];
    await makeModel({ ...tiny, seed: 7 }, a);
    await makeModel({ ...tiny, seed: 7 }, b);
    await makeModel({ ...tiny, seed: 8 }, c);
    expect(readFileSync(a).equals(readFileSync(b))).toBe(true);
    expect(readFileSync(a).equals(readFileSync(c))).toBe(false);
  });

  test('of a tensor do not depend on how many layers follow', async () => {
    const path = join(folder, 'short.gguf');
    await makeModel({ ...tiny, seed: 7, layers: 2 }, path);
    const [short, long] = [readGguf(path), readGguf(join(folder, 'a.gguf'))];
    const name = 'blk.1.ffn_up_exps.weight';
    expect(bytesOf(short, tensorOf(short, name)).equals(bytesOf(long, tensorOf(long, name)))).toBe(true);
  });

  test('are the same in a set of three files', async () => {
    const made = await makeModel({ ...tiny, seed: 7, splitFiles: 3 }, join(folder, 'set.gguf'));
    expect(made.paths.map((path) => path.slice(folder.length + 1))).toEqual([
      'set-00001-of-00003.gguf',
      'set-00002-of-00003.gguf',
      'set-00003-of-00003.gguf',
    ]);
    const [set, whole] = [readGguf(made.paths[1]!), readGguf(join(folder, 'a.gguf'))];
    expect([...set.tensors.keys()]).toEqual([...whole.tensors.keys()]);
    expect(new Set([...set.tensors.values()].map((tensor) => tensor.file))).toEqual(new Set([0, 1, 2]));
    for (const [name, tensor] of set.tensors) {
      expect(bytesOf(set, tensor).equals(bytesOf(whole, tensorOf(whole, name)))).toBe(true);
    }
  });
});

test('the tokenizer is sound', () => {
  const { tokens, types, merges, endOfTurnId, paddingId } = tokenizerTables(1000);
  expect(tokens).toHaveLength(1000);
  expect(types).toHaveLength(1000);
  expect(new Set(tokens).size).toBe(1000);
  expect(tokens[endOfTurnId]).toBe('<|im_end|>');
  expect(tokens[paddingId]).toBe('<|endoftext|>');
  const known = new Set(tokens.slice(0, 256));
  for (const merge of merges) {
    const [left, right] = merge.split(' ') as [string, string];
    expect([known.has(left), known.has(right)]).toEqual([true, true]);
    known.add(left + right);
  }
  expect(tokens.slice(0, known.size)).toEqual([...known]);
  expect(tokens.at(-1)).toBe('[PAD999]');
});

describe('failures leave nothing behind', () => {
  const tiny = { preset: 'tiny', mix: 'Q4_K' } as const;
  const leftovers = (name: string): string[] => readdirSync(folder).filter((file) => file.startsWith(name));

  test('a model larger than the disk is refused before the first byte', async () => {
    const making = makeModel({ preset: '397b', mix: 'F32', experts: 65536 }, join(folder, 'huge.gguf'));
    await expect(making).rejects.toThrow(/needs 198\d{3}\.\d\d GB, but the disk of .* has .* free/);
    expect(leftovers('huge')).toEqual([]);
  });

  test('a disk that fills up meanwhile', async ({ skip }) => {
    skip(!existsSync('/dev/full'), 'this system has no /dev/full, the device that is always full');
    symlinkSync('/dev/full', join(folder, 'full.gguf.part'));
    await expect(makeModel(tiny, join(folder, 'full.gguf'))).rejects.toThrow(/the disk is full/);
    expect(leftovers('full')).toEqual([]);
  });

  test('an interruption', async () => {
    const controller = new AbortController();
    const options = { ...tiny, experts: 256, splitFiles: 2, signal: controller.signal };
    const onProgress = (writtenBytes: number): void => {
      if (writtenBytes > 40e6) controller.abort();
    };
    const making = makeModel({ ...options, onProgress }, join(folder, 'stopped.gguf'));
    await expect(making).rejects.toMatchObject({ kind: 'interrupted' });
    expect(leftovers('stopped')).toEqual([]);
  });

  test.each([
    [{ layers: 0 }, /the number of layers is 0/],
    [{ expertsPerToken: 17 }, /experts per token is 17, .* from 1 to 16/],
    [{ vocab: 100 }, /the vocabulary is 100/],
    [{ mix: 'Q9_K' }, /there is no mix Q9_K/],
    [{ mix: 'Q4_K', outlier: 1 }, /has no outlier layer/],
    [{ mix: 'UD_Q3_K_XL', outlier: 4 }, /the outlier layer is 4/],
    [{ splitFiles: 0 }, /0 files are asked for/],
  ])('%j is wrong usage', async (changes, message) => {
    const making = makeModel({ ...tiny, ...changes }, join(folder, 'wrong.gguf'));
    await expect(making).rejects.toMatchObject({ kind: 'usage', message: expect.stringMatching(message) });
  });
});

describe('the command', () => {
  const run = (...args: string[]) => spawnSync(process.execPath, [COMMAND, ...args], { encoding: 'utf8' });

  test('makes a model and says so in one line', () => {
    const path = join(folder, 'command.gguf');
    const { status, stdout, stderr } = run('--preset', 'tiny', '--experts', '4', '--seed', '7', '-o', path);
    expect([status, stderr]).toEqual([0, '']);
    expect(stdout).toMatch(/command\.gguf: 76 tensors, 0\.0\d GB, .* s, .* GB\/s\n$/);
    expect(existsSync(path)).toBe(true);
  });

  test('tells failure from wrong usage', () => {
    expect(run('--preset', 'tiny', '-o', join(folder, 'missing', 'x.gguf')).status).toBe(1);
    expect(run('--preset', 'tiny').status).toBe(2);
    expect(run('--preset', 'large', '-o', join(folder, 'x.gguf')).status).toBe(2);
    expect(run('--help').status).toBe(0);
  });
});

describe('an MLX checkpoint', () => {
  const options = { preset: 'tiny', format: 'mlx', experts: 6, vocab: 600 } as const;

  test('opens, has two files and an index, and experts that differ', async () => {
    const out = join(folder, 'mlx');
    const made = await makeModel({ ...options, bits: 4, expertBits: 2, splitFiles: 2 }, out);
    expect(made.paths.map((path) => path.slice(out.length + 1))).toEqual([
      'model-00001-of-00002.safetensors',
      'model-00002-of-00002.safetensors',
      'model.safetensors.index.json',
      'config.json',
      'tokenizer.json',
      'tokenizer_config.json',
    ]);
    const model = openModel(out);
    expect(model.hyperparameters).toMatchObject({ layers: 4, experts: 6, vocabulary: 600, hidden: 256 });
    expect(model.tensors.unused).toEqual([]);
    expect(model.tokenizer.encode('Hello', { parseSpecial: false }).length).toBeGreaterThan(0);
    const { gate, down } = model.tensors.experts[1]!;
    expect([gate.type.name, down.type.name]).toEqual(['AFFINE2_G64', 'AFFINE2_G64']);
    const file = readFileSync(model.files[gate.file]!.path);
    const beginnings = Array.from({ length: 6 }, (_, expert) => {
      const at = gate.offsetBytes + expert * gate.strideBytes;
      return file.toString('hex', at, at + 64);
    });
    expect(new Set(beginnings).size).toBe(6);
  });

  test('has the deviation that its matrices need, and the same bytes for the same seed', async () => {
    const [one, two, other] = ['one', 'two', 'other'].map((name) => join(folder, `mlx-${name}`)) as [
      string,
      string,
      string,
    ];
    await makeModel({ ...options, seed: 4 }, one);
    await makeModel({ ...options, seed: 4 }, two);
    await makeModel({ ...options, seed: 5 }, other);
    const [bytes, same, different] = [one, two, other].map((path) =>
      readFileSync(join(path, 'model.safetensors')),
    );
    expect(bytes!.equals(same!)).toBe(true);
    expect(bytes!.equals(different!)).toBe(false);
    const { up } = openModel(one).tensors.experts[0]!;
    const parts = [up, up.scales!, up.biases!].map(({ offsetBytes, byteLength }) =>
      bytes!.subarray(offsetBytes, offsetBytes + byteLength),
    );
    const values = new Float32Array(up.rows * up.cols);
    cpu.dequantize(up.type.id, Buffer.concat(parts), values);
    const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
    const deviation = Math.sqrt(values.reduce((sum, value) => sum + value ** 2, 0) / values.length);
    expect(Math.abs(mean)).toBeLessThan(0.01 * deviation);
    expect(Math.abs(deviation * Math.sqrt(up.cols) - 1)).toBeLessThan(0.03);
  });

  test('has experts of 7,077,888 bytes in the 397b shape', () => {
    const shape = modelShape('397b', { layers: 1, experts: 1, vocab: 300 });
    const { files } = planMlx({ preset: '397b' }, shape, join(folder, 'mlx-397b'));
    const [, header] = files[0]!.pieces();
    const sizes = Object.entries(
      JSON.parse(Buffer.from(header!).toString()) as Record<string, { data_offsets: number[] }>,
    )
      .filter(([name]) => name.includes('switch_mlp'))
      .map(
        ([
          ,
          {
            data_offsets: [begin, end],
          },
        ]) => end! - begin!,
      );
    expect(sizes).toHaveLength(9);
    expect(sizes.reduce((sum, size) => sum + size, 0)).toBe(7_077_888);
  });

  test('of what MLX does not have is refused, and leaves no file', async () => {
    const out = join(folder, 'mlx-refused');
    await expect(makeModel({ ...options, bits: 7 }, out)).rejects.toThrow(/7 bits are asked for/);
    await expect(makeModel({ ...options, arch: 'qwen3moe' }, out)).rejects.toThrow(/no qwen3moe/);
    await expect(makeModel({ preset: 'tiny', mix: 'Q8_0', bits: 4 }, join(out, 'x.gguf'))).rejects.toThrow(
      /bits are for format mlx/,
    );
    const stopped = makeModel({ ...options, signal: AbortSignal.abort() }, out);
    await expect(stopped).rejects.toMatchObject({ kind: 'interrupted' });
    expect(existsSync(join(out, 'config.json')) || existsSync(join(out, 'model.safetensors'))).toBe(false);
  });
});
