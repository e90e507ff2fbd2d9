import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import type { MoestreamError } from '../../dist/errors.js';
import { ggmlTypeNamed } from '../../dist/model/ggml-types.js';
import { type Gguf, readGguf } from '../../dist/model/gguf.js';
import { readHyperparameters } from '../../dist/model/hyperparameters.js';
import { mapTensors, type TensorMap } from '../../dist/model/tensor-map.js';
import {
  buildModel,
  type ModelSpec,
  SMALL,
  smallModel,
  type TensorSpec,
  temporaryFiles,
  u32,
} from '../support/gguf-builder.js';
import { BUILT_IN_MODEL } from '../support/golden.js';

const files = temporaryFiles();
const ARCHITECTURES = ['qwen35moe', 'qwen3next', 'qwen3moe'] as const;
const LAST = SMALL.layers - 1;

function map(model: ModelSpec): { gguf: Gguf; map: TensorMap; path: string } {
  const path = files.write('model.gguf', buildModel(model).bytes);
  const gguf = readGguf(path);
  return { gguf, map: mapTensors(gguf, readHyperparameters(gguf)), path };
}

function failureOf(model: ModelSpec): MoestreamError {
  try {
    map(model);
  } catch (error) {
    return error as MoestreamError;
  }
  throw new Error('the model maps');
}

/** The same model with `tensor` in place of the one of that name. */
function replace(model: ModelSpec, name: string, change: Partial<TensorSpec>): ModelSpec {
  const tensor = model.tensors.get(name);
  if (tensor === undefined) throw new Error(`no tensor ${name}`);
  model.tensors.set(name, { ...tensor, ...change });
  return model;
}

const fullName = (tensor: { name: string; layer: number }): string =>
  tensor.layer < 0 ? tensor.name : `blk.${tensor.layer}.${tensor.name}`;

/** [begin, end) of everything that a map points to, by file. */
function rangesOf({ dense, experts }: TensorMap, count: number): [number, number][] {
  const ranges = dense.map((each): [number, number] => [
    each.offsetBytes,
    each.offsetBytes + each.byteLength,
  ]);
  for (const layer of experts) {
    for (const matrix of [layer.gate, layer.up, layer.down]) {
      for (let expert = 0; expert < count; expert++) {
        const begin = matrix.offsetBytes + expert * matrix.strideBytes;
        ranges.push([begin, begin + matrix.byteLength]);
      }
    }
  }
  return ranges.sort((a, b) => a[0] - b[0]);
}

/** Adjacent ranges joined. */
function union(ranges: readonly [number, number][]): [number, number][] {
  const joined: [number, number][] = [];
  for (const [begin, end] of ranges) {
    const last = joined.at(-1);
    if (last !== undefined && begin < last[1]) throw new Error(`${begin} lies in two tensors`);
    if (last !== undefined && begin === last[1]) last[1] = end;
    else joined.push([begin, end]);
  }
  return joined;
}

function tensorRanges(gguf: Gguf, without: readonly string[] = []): [number, number][] {
  return [...gguf.tensors.values()]
    .filter((tensor) => !without.includes(tensor.name))
    .map((tensor): [number, number] => [tensor.offsetBytes, tensor.offsetBytes + tensor.byteLength])
    .sort((a, b) => a[0] - b[0]);
}

describe('a complete model', () => {
  it.each(ARCHITECTURES)('%s: every byte of every tensor is used, once', (architecture) => {
    const { gguf, map: mapped } = map(smallModel(architecture));
    expect(mapped.unused).toEqual([]);
    expect(union(rangesOf(mapped, SMALL.experts))).toEqual(union(tensorRanges(gguf)));
    expect(mapped.experts.length).toBe(SMALL.layers);
  });

  it('the built-in model: every byte of every tensor is used, once, in the types of its card', () => {
    const gguf = readGguf(BUILT_IN_MODEL);
    const mapped = mapTensors(gguf, readHyperparameters(gguf));
    expect(mapped.unused).toEqual([]);
    expect(union(rangesOf(mapped, 32))).toEqual(union(tensorRanges(gguf)));
    for (const { gate, up, down } of mapped.experts) {
      expect([gate.type.name, up.type.name, down.type.name]).toEqual(['IQ3_XXS', 'IQ3_XXS', 'IQ4_XS']);
      // 256 x 256 values: one block a row.
      expect([gate.byteLength, up.byteLength, down.byteLength]).toEqual([256 * 98, 256 * 98, 256 * 136]);
      expect(gate.strideBytes).toBe(gate.byteLength);
    }
    const types = new Map(mapped.dense.map((tensor) => [fullName(tensor), tensor.type.name]));
    expect(types.get('output.weight')).toBe('Q6_K');
    expect(types.get('blk.3.attn_q.weight')).toBe('Q8_0');
  });

  it('a matrix has its rows and columns, a vector one row', () => {
    const { map: mapped } = map(smallModel('qwen35moe'));
    const shapes = new Map(mapped.dense.map((each) => [fullName(each), [each.cols, each.rows]]));
    expect(shapes.get('token_embd.weight')).toEqual([64, 300]);
    expect(shapes.get('blk.3.attn_q.weight')).toEqual([64, 2 * 4 * 32]);
    expect(shapes.get('blk.3.attn_output.weight')).toEqual([128, 64]);
    expect(shapes.get('blk.0.ssm_conv1d.weight')).toEqual([4, 128]);
    expect(shapes.get('blk.0.ssm_a')).toEqual([4, 1]);
    expect(shapes.get('output_norm.weight')).toEqual([64, 1]);
    const { gate, down } = mapped.experts[0]!;
    expect([gate.cols, gate.rows, down.cols, down.rows]).toEqual([64, 96, 96, 64]);
  });

  it('without a head of its own has none in the map', () => {
    const model = smallModel('qwen3moe');
    model.tensors.delete('output.weight');
    const { map: mapped } = map(model);
    expect(mapped.dense.map(fullName)).not.toContain('output.weight');
    expect(mapped.dense.map(fullName)).toContain('token_embd.weight');
  });

  it('trailing dimensions of 1 do not count', () => {
    const model = replace(smallModel('qwen35moe'), 'blk.0.ffn_gate_inp_shexp.weight', { shape: [64, 1] });
    const found = map(model).map.dense.find((each) => fullName(each) === 'blk.0.ffn_gate_inp_shexp.weight');
    expect([found?.cols, found?.rows]).toEqual([64, 1]);
  });
});

describe('fused tensors', () => {
  const stride = (cols: number): number => (cols / 32) * 34;

  it.each(ARCHITECTURES)('%s: q, k and v rows of one attn_qkv', (architecture) => {
    const model = smallModel(architecture);
    const prefix = `blk.${LAST}.`;
    const rows = ['attn_q', 'attn_k', 'attn_v'].map((name) => {
      const [, count] = model.tensors.get(`${prefix}${name}.weight`)!.shape;
      model.tensors.delete(`${prefix}${name}.weight`);
      return count!;
    });
    const shape = [SMALL.hidden, rows[0]! + rows[1]! + rows[2]!];
    model.tensors.set(`${prefix}attn_qkv.weight`, { name: `${prefix}attn_qkv.weight`, type: 'Q8_0', shape });
    const { gguf, map: mapped } = map(model);
    const whole = gguf.tensors.get(`${prefix}attn_qkv.weight`)!;
    let at = whole.offsetBytes;
    for (const [index, name] of ['attn_q', 'attn_k', 'attn_v'].entries()) {
      const slice = mapped.dense.find((each) => fullName(each) === `${prefix}${name}.weight`)!;
      expect(slice).toMatchObject({
        cols: SMALL.hidden,
        rows: rows[index],
        offsetBytes: at,
        byteLength: rows[index]! * stride(SMALL.hidden),
        type: ggmlTypeNamed('Q8_0'),
      });
      at += slice.byteLength;
    }
    expect(at).toBe(whole.offsetBytes + whole.byteLength);
    expect(union(rangesOf(mapped, SMALL.experts))).toEqual(union(tensorRanges(gguf)));
    expect(mapped.unused).toEqual([]);
    const short = replace(model, `${prefix}attn_qkv.weight`, { shape: [shape[0]!, shape[1]! - 1] });
    expect(failureOf(short).message).toContain(
      `tensor "${prefix}attn_qkv.weight" has shape 64 x ${shape[1]! - 1}`,
    );
  });

  it('gate and up rows of one ffn_gate_up_exps', () => {
    fc.assert(
      fc.property(fc.constantFrom('F32', 'F16', 'Q8_0', 'IQ4_NL', 'MXFP4'), (type) => {
        const model = smallModel('qwen35moe');
        model.tensors.delete('blk.1.ffn_gate_exps.weight');
        model.tensors.delete('blk.1.ffn_up_exps.weight');
        const name = 'blk.1.ffn_gate_up_exps.weight';
        model.tensors.set(name, { name, type, shape: [SMALL.hidden, 2 * SMALL.expertWidth, SMALL.experts] });
        const { gguf, map: mapped } = map(model);
        const whole = gguf.tensors.get(name)!;
        const { gate, up } = mapped.experts[1]!;
        const each = whole.byteLength / SMALL.experts;
        expect(gate).toMatchObject({
          strideBytes: each,
          byteLength: each / 2,
          offsetBytes: whole.offsetBytes,
        });
        expect(up).toMatchObject({ ...gate, offsetBytes: whole.offsetBytes + each / 2 });
        expect([gate.rows, gate.cols]).toEqual([SMALL.expertWidth, SMALL.hidden]);
        expect(union(rangesOf(mapped, SMALL.experts))).toEqual(union(tensorRanges(gguf)));
      }),
      { numRuns: 10 },
    );
  });

  it('ssm_in of early conversions is refused by name', () => {
    const model = smallModel('qwen3next');
    const name = 'blk.0.ssm_in.weight';
    model.tensors.set(name, { name, type: 'Q8_0', shape: [64, 192] });
    expect(failureOf(model)).toMatchObject({
      code: 'MODEL_UNSUPPORTED',
      message: expect.stringContaining(`"${name}"`),
    });
  });
});

describe('a bias', () => {
  it('is refused, because leaving it out would answer wrongly', () => {
    const model = smallModel('qwen35moe');
    const name = 'blk.3.attn_q.bias';
    model.tensors.set(name, { name, type: 'F32', shape: [64] });
    expect(failureOf(model)).toMatchObject({
      code: 'MODEL_UNSUPPORTED',
      message: expect.stringContaining(`"${name}" is a bias`),
    });
  });
});

describe('a tensor that is not as it must be is named', () => {
  for (const architecture of ARCHITECTURES) {
    const names = [...smallModel(architecture).tensors.keys()].filter(
      (name) => name !== 'output.weight' && (!name.startsWith('blk.') || /^blk\.[03]\./.test(name)),
    );

    it.each(names)(`${architecture}: %s missing, too wide, too high, of an unsupported type`, (name) => {
      const missing = smallModel(architecture);
      missing.tensors.delete(name);
      const failure = failureOf(missing);
      expect(failure.code).toBe('MODEL_INVALID');
      expect(failure.message).toMatch(/"[^"]*" is missing/);
      // One half of a pair of gates: the reader may look for the pair first.
      expect(failure.message).toContain(name.replace('ssm_ba', 'ssm_beta'));

      const { shape, type } = smallModel(architecture).tensors.get(name)!;
      const block = type === 'Q8_0' ? 32 : 1;
      for (const wrong of [
        [shape[0]! + block, ...shape.slice(1)],
        shape.length > 1 ? [...shape.slice(0, -1), shape.at(-1)! + 1] : [...shape, 2],
        [...shape, 2],
      ]) {
        if (name === 'token_embd.weight' && wrong.length === 2 && wrong[0] === shape[0]) continue;
        const reshaped = failureOf(replace(smallModel(architecture), name, { shape: wrong }));
        expect(reshaped.code).toBe('MODEL_INVALID');
        expect(reshaped.message).toContain(
          `tensor "${name}" has shape ${wrong.join(' x ')}, expected ${shape.join(' x ')}`,
        );
      }

      const retyped = failureOf(replace(smallModel(architecture), name, { type: 'I32' }));
      expect(retyped).toMatchObject({
        code: 'MODEL_UNSUPPORTED',
        message: expect.stringContaining(`tensor "${name}" is of type I32, which cannot be computed with`),
      });
    });
  }

  it('an embedding of more rows than the head', () => {
    const model = replace(smallModel('qwen35moe'), 'token_embd.weight', { shape: [64, 301] });
    expect(failureOf(model).message).toContain(
      'tensor "output.weight" has shape 64 x 300, expected 64 x 301',
    );
  });

  it('with the file that holds it', () => {
    const model = replace(smallModel('qwen35moe'), 'output.weight', { shape: [64, 299] });
    expect(failureOf(model).message).toContain(files.folder);
  });
});

describe('tensors that nothing needs', () => {
  it('are listed: layers for further tokens, rope tables, vision, of whatever type', () => {
    const model = smallModel('qwen35moe');
    const spare = [
      'rope_freqs.weight',
      'v.patch_embd.weight',
      'blk.4.nextn.eh_proj.weight',
      'blk.4.attn_norm.weight',
    ];
    for (const name of spare) model.tensors.set(name, { name, type: 'I32', shape: [8] });
    model.metadata['qwen35moe.block_count'] = u32(5);
    model.metadata['qwen35moe.nextn_predict_layers'] = u32(1);
    const { gguf, map: mapped } = map(model);
    expect(mapped.unused).toEqual(spare);
    expect(union(rangesOf(mapped, SMALL.experts))).toEqual(union(tensorRanges(gguf, spare)));
    expect(mapped.experts.length).toBe(4);
  });
});
