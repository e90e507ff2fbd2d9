import { describe, expect, it } from 'vitest';
import { readGguf } from '../../dist/model/gguf.js';
import { type Hyperparameters, readHyperparameters } from '../../dist/model/hyperparameters.js';
import {
  array,
  bool,
  buildModel,
  f32,
  i32,
  type MetadataValue,
  type ModelSpec,
  SMALL,
  smallModel,
  string,
  temporaryFiles,
  u32,
} from '../support/gguf-builder.js';
import { BUILT_IN_MODEL } from '../support/golden.js';

const files = temporaryFiles();

type Changes = Record<string, MetadataValue | undefined>;

function changed(model: ModelSpec, changes: Changes): ModelSpec {
  const metadata = { ...model.metadata };
  for (const [key, value] of Object.entries(changes)) {
    if (value === undefined) delete metadata[key];
    else metadata[key] = value;
  }
  return { metadata, tensors: model.tensors };
}

function read(model: ModelSpec, expertsPerToken?: number): Hyperparameters {
  return readHyperparameters(readGguf(files.write('model.gguf', buildModel(model).bytes)), expertsPerToken);
}

const MTP_LAYER = SMALL.layers;

describe('the built-in model', () => {
  const gguf = readGguf(BUILT_IN_MODEL);

  it('is what its card says', () => {
    expect(readHyperparameters(gguf)).toEqual({
      architecture: 'qwen35moe',
      name: 'tldr-58M-A13M',
      layers: 8,
      hidden: 256,
      vocabulary: 8192,
      contextLength: 4096,
      rmsEpsilon: Math.fround(1e-6),
      attentionLayers: Uint8Array.of(0, 0, 0, 1, 0, 0, 0, 1),
      heads: 4,
      kvHeads: 2,
      headDim: 64,
      rotaryDims: 16,
      ropeTheta: 10_000,
      gatedAttention: true,
      deltaKeyHeads: 2,
      deltaValueHeads: 4,
      deltaHeadDim: 64,
      convKernel: 4,
      tiledValueHeads: true,
      experts: 32,
      trainedExpertsPerToken: 4,
      expertsPerToken: 4,
      expertWidth: 256,
      sharedWidth: 256,
      sampling: { temperature: undefined, topK: undefined, topP: undefined },
    });
  });

  it.each([1, 3, 32])('can use %d experts per token', (expertsPerToken) => {
    expect(readHyperparameters(gguf, expertsPerToken)).toMatchObject({
      expertsPerToken,
      trainedExpertsPerToken: 4,
    });
  });

  it.each([0, -1, 33, 2.5, Number.NaN, Number.POSITIVE_INFINITY])(
    'cannot use %d experts per token',
    (expertsPerToken) => {
      expect(() => readHyperparameters(gguf, expertsPerToken)).toThrow(
        expect.objectContaining({
          code: 'USAGE',
          message: `${expertsPerToken} experts per token, this model can have 1 to 32`,
        }),
      );
    },
  );
});

describe('the other architectures', () => {
  const common = {
    layers: 4,
    hidden: 64,
    vocabulary: 300,
    contextLength: 512,
    heads: 4,
    kvHeads: 2,
    headDim: 32,
    ropeTheta: 1e6,
    experts: 6,
    expertsPerToken: 2,
    expertWidth: 96,
  };

  it('qwen35moe: heads in tiles', () => {
    expect(read(smallModel('qwen35moe'))).toMatchObject({ ...common, tiledValueHeads: true });
  });

  it('qwen3next: DeltaNet with grouped heads', () => {
    expect(read(smallModel('qwen3next'))).toMatchObject({
      ...common,
      architecture: 'qwen3next',
      attentionLayers: Uint8Array.of(0, 0, 0, 1),
      rotaryDims: 8,
      gatedAttention: true,
      deltaKeyHeads: 2,
      deltaValueHeads: 4,
      deltaHeadDim: 16,
      convKernel: 4,
      tiledValueHeads: false,
      sharedWidth: 32,
    });
  });

  it('qwen3moe: attention everywhere, no gate, no shared expert', () => {
    expect(read(smallModel('qwen3moe'))).toMatchObject({
      ...common,
      architecture: 'qwen3moe',
      attentionLayers: Uint8Array.of(1, 1, 1, 1),
      rotaryDims: 32,
      gatedAttention: false,
      deltaKeyHeads: 0,
      deltaValueHeads: 0,
      deltaHeadDim: 0,
      convKernel: 0,
      tiledValueHeads: false,
      sharedWidth: 0,
    });
  });

  it.each(['llama', 'qwen3', 'QWEN35MOE', ''])('"%s" is refused by name', (name) => {
    expect(() => read(changed(smallModel('qwen3moe'), { 'general.architecture': string(name) }))).toThrow(
      expect.objectContaining({
        code: 'MODEL_UNSUPPORTED',
        message: expect.stringContaining(
          `is a "${name}" model; this build runs qwen35moe, qwen3next, qwen3moe`,
        ),
      }),
    );
  });

  it('a name with control characters does not reach the terminal', () => {
    const model = changed(smallModel('qwen3moe'), { 'general.architecture': string('\u001b[2J') });
    expect(() => read(model)).toThrow(/"\\u001b\[2J"/);
  });
});

describe('values that a file may leave out or write otherwise', () => {
  it('per-layer arrays that agree, with 0 where a layer has none', () => {
    const model = changed(smallModel('qwen3next'), {
      'qwen3next.attention.head_count': array('u32', [0, 0, 0, 4]),
      'qwen3next.attention.head_count_kv': array('i32', [0, 0, 0, 2]),
      'qwen3next.expert_used_count': array('u32', [2, 2, 2, 2]),
      'qwen3next.expert_feed_forward_length': array('u32', [96, 96, 96, 96]),
    });
    expect(read(model)).toMatchObject({ heads: 4, kvHeads: 2, expertsPerToken: 2, expertWidth: 96 });
  });

  it.each([
    ['attention.head_count', [4, 4, 8, 4], '4, 8'],
    ['expert_used_count', [2, 2, 2, 1], '2, 1'],
    ['expert_feed_forward_length', [96, 64, 96, 96], '96, 64'],
  ])('per-layer arrays of %s that differ are refused', (name, values, listed) => {
    const key = `qwen3moe.${name}`;
    expect(() => read(changed(smallModel('qwen3moe'), { [key]: array('u32', values) }))).toThrow(
      expect.objectContaining({
        code: 'MODEL_UNSUPPORTED',
        message: expect.stringContaining(`"${key}" differs between layers (${listed})`),
      }),
    );
  });

  it('recurrent_layers instead of an interval', () => {
    const key = 'qwen35moe.attention.recurrent_layers';
    const layers = (values: MetadataValue): Uint8Array =>
      read(changed(smallModel('qwen35moe'), { [key]: values })).attentionLayers;
    expect(layers(array('bool', [true, false, true, false]))).toEqual(Uint8Array.of(0, 1, 0, 1));
    expect(layers(array('u32', [0, 1, 1, 1, 0]))).toEqual(Uint8Array.of(1, 0, 0, 0));
    expect(() => layers(array('bool', [true, true, true]))).toThrow(
      /recurrent_layers" has 3 entries for 4 layers/,
    );
    expect(() => layers(array('i32', [0, 1, 2, 1]))).toThrow(/recurrent_layers\[2\]" is 2/);
    expect(() => layers(u32(1))).toThrow(/recurrent_layers" is a single u32/);
  });

  it('another interval', () => {
    const model = changed(smallModel('qwen35moe'), { 'qwen35moe.full_attention_interval': u32(2) });
    expect(read(model).attentionLayers).toEqual(Uint8Array.of(0, 1, 0, 1));
  });

  it('layers that predict further tokens do not count', () => {
    const model = changed(smallModel('qwen35moe'), {
      'qwen35moe.block_count': u32(MTP_LAYER + 1),
      'qwen35moe.nextn_predict_layers': u32(1),
    });
    expect(read(model)).toMatchObject({ layers: 4, attentionLayers: Uint8Array.of(0, 0, 0, 1) });
    const all = changed(model, { 'qwen35moe.nextn_predict_layers': u32(5) });
    expect(() => read(all)).toThrow(/"qwen35moe.nextn_predict_layers" leaves 0 of 5 layers/);
  });

  it('defaults: head size from the width, all dimensions rotary, theta 10000', () => {
    const model = changed(smallModel('qwen3moe'), {
      'qwen3moe.attention.key_length': undefined,
      'qwen3moe.attention.value_length': undefined,
      'qwen3moe.rope.freq_base': undefined,
    });
    expect(read(model)).toMatchObject({ headDim: 16, rotaryDims: 16, ropeTheta: 10_000 });
  });

  it('heads that do not divide the width are refused, not rounded', () => {
    for (const heads of [6, 128]) {
      const model = changed(smallModel('qwen3moe'), {
        'qwen3moe.attention.key_length': undefined,
        'qwen3moe.attention.value_length': undefined,
        'qwen3moe.attention.head_count': u32(heads),
      });
      expect(() => read(model)).toThrow(
        expect.objectContaining({
          code: 'MODEL_INVALID',
          message: expect.stringContaining(`"qwen3moe.attention.head_count" is ${heads}`),
        }),
      );
    }
  });

  it('sampling defaults', () => {
    const model = changed(smallModel('qwen3moe'), {
      'general.sampling.temp': f32(0.5),
      'general.sampling.top_k': i32(20),
      'general.sampling.top_p': f32(0.75),
    });
    expect(read(model).sampling).toEqual({ temperature: 0.5, topK: 20, topP: 0.75 });
  });
});

describe('scaling of RoPE', () => {
  const scaled = (changes: Changes): ModelSpec => changed(smallModel('qwen3moe'), changes);

  it.each([
    ['yarn', { 'qwen3moe.rope.scaling.type': string('yarn'), 'qwen3moe.rope.scaling.factor': f32(4) }],
    ['linear', { 'qwen3moe.rope.scaling.type': string('linear') }],
    ['linear', { 'qwen3moe.rope.scaling.factor': f32(4) }],
    ['linear', { 'qwen3moe.rope.scale_linear': f32(2) }],
  ] as const)('%s is refused', (type, changes) => {
    expect(() => read(scaled(changes))).toThrow(
      expect.objectContaining({
        code: 'MODEL_UNSUPPORTED',
        message: expect.stringContaining(`RoPE scaling "${type}" is not supported`),
      }),
    );
  });

  it.each([
    { 'qwen3moe.rope.scaling.type': string('none'), 'qwen3moe.rope.scaling.factor': f32(4) },
    { 'qwen3moe.rope.scaling.factor': f32(1) },
    { 'qwen3moe.rope.scaling.factor': f32(0) },
  ] as const)('none is none: %j', (changes) => {
    expect(read(scaled(changes)).ropeTheta).toBe(1e6);
  });
});

describe('a bad value is named with its key', () => {
  const cases: [name: string, value: MetadataValue | undefined, message: string][] = [
    ['block_count', undefined, 'is missing'],
    ['block_count', u32(0), 'is 0'],
    ['block_count', u32(1025), 'is 1025'],
    ['block_count', string('4'), 'is string'],
    ['block_count', f32(4), 'is f32'],
    ['block_count', array('u32', [4]), 'is an array'],
    ['nextn_predict_layers', i32(-1), 'is -1'],
    ['context_length', u32(0), 'is 0'],
    ['embedding_length', u32(2 ** 31), 'is 2147483648'],
    ['embedding_length', i32(-64), 'is -64'],
    ['attention.head_count', u32(0), 'is 0'],
    ['attention.head_count', u32(3), 'is 3, not a multiple of the 2 KV heads'],
    ['attention.head_count_kv', u32(5000), 'is 5000'],
    ['attention.key_length', u32(0), 'is 0'],
    ['attention.key_length', u32(8192), 'is 8192'],
    ['attention.layer_norm_rms_epsilon', undefined, 'is missing'],
    ['attention.layer_norm_rms_epsilon', f32(Number.NaN), 'is NaN'],
    ['attention.layer_norm_rms_epsilon', f32(-1), 'is -1'],
    ['rope.freq_base', f32(0), 'is 0'],
    ['rope.freq_base', f32(Number.POSITIVE_INFINITY), 'is Infinity'],
    ['rope.dimension_count', u32(7), 'is 7, it must be even'],
    ['rope.dimension_count', u32(34), 'is 34'],
    ['rope.dimension_count', u32(0), 'is 0'],
    ['expert_count', u32(0), 'is 0'],
    ['expert_count', u32(65_537), 'is 65537'],
    ['expert_used_count', u32(7), 'is 7, there are 6 experts'],
    ['expert_used_count', u32(0), 'is 0'],
    ['expert_feed_forward_length', bool(true), 'is bool'],
    ['ssm.conv_kernel', u32(65), 'is 65'],
    ['ssm.conv_kernel', undefined, 'is missing'],
    ['ssm.state_size', u32(0), 'is 0'],
    ['ssm.group_count', u32(3), 'time_step_rank" is 4, not a multiple of the 3 key heads'],
    ['ssm.inner_size', u32(63), 'is 63, not 4 heads of 16'],
    ['full_attention_interval', u32(0), 'is 0'],
  ];
  it.each(cases)('%s: %j', (name, value, message) => {
    const model = changed(smallModel('qwen35moe'), { [`qwen35moe.${name}`]: value });
    expect(() => read(model)).toThrow(
      expect.objectContaining({
        code: 'MODEL_INVALID',
        message: expect.stringContaining(message.includes('"') ? message : `"qwen35moe.${name}" ${message}`),
      }),
    );
  });

  it('value heads of another size than key heads', () => {
    const model = changed(smallModel('qwen35moe'), { 'qwen35moe.attention.value_length': u32(16) });
    expect(() => read(model)).toThrow(
      expect.objectContaining({
        code: 'MODEL_UNSUPPORTED',
        message: expect.stringContaining('value heads of 16'),
      }),
    );
  });

  it('no embedding', () => {
    const model = smallModel('qwen35moe');
    model.tensors.delete('token_embd.weight');
    expect(() => read(model)).toThrow(/"token_embd.weight" is missing/);
  });
});

describe('what would answer wrongly if it were ignored', () => {
  const unsupported = (text: string) =>
    expect.objectContaining({ code: 'MODEL_UNSUPPORTED', message: expect.stringContaining(text) });

  it.each([
    ['expert_weights_scale', f32(2.5), 'expert_weights_scale is 2.5'],
    ['expert_gating_func', u32(2), 'expert_gating_func is 2'],
    ['expert_group_count', u32(4), 'expert_group_count is 4'],
  ] as const)('%s is refused', (name, value, text) => {
    const model = changed(smallModel('qwen35moe'), { [`qwen35moe.${name}`]: value });
    expect(() => read(model)).toThrow(unsupported(text));
  });

  it('a shared expert that the metadata leaves out is still there', () => {
    const key = 'qwen35moe.expert_shared_feed_forward_length';
    const width = read(smallModel('qwen35moe')).sharedWidth;
    expect(width).toBeGreaterThan(0);
    expect(read(changed(smallModel('qwen35moe'), { [key]: undefined })).sharedWidth).toBe(width);
    expect(() => read(changed(smallModel('qwen35moe'), { [key]: u32(0) }))).toThrow(
      /is 0, the file has one of/,
    );
  });

  it('rotary sections that leave a pair without a position', () => {
    const key = 'qwen35moe.rope.dimension_sections';
    expect(() => read(changed(smallModel('qwen35moe'), { [key]: array('i32', [1, 0, 0, 9]) }))).toThrow(
      unsupported('leaves rotary pair'),
    );
    expect(
      read(changed(smallModel('qwen35moe'), { [key]: array('i32', [0, 0, 0, 0]) })).rotaryDims,
    ).toBeGreaterThan(0);
  });

  it('without a number of KV heads every head has its own', () => {
    const { heads, kvHeads } = read(
      changed(smallModel('qwen3moe'), { 'qwen3moe.attention.head_count_kv': undefined }),
    );
    expect(kvHeads).toBe(heads);
  });
});
